"""Wallets on the pages: balance, what is reserved, what is left of each top-up, and what became of reservations."""

from __future__ import annotations

import asyncio
import html
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from platform_under_test import HOSTILE_CODE, NOW, Platform
from playwright.sync_api import Browser
from test_front_browser import BEYOND, PHONE, WIDE, signed_in

from actors.accounts_desk import AccountsDesk
from deployments.front.page import path_of
from storage.sql import steps

pytestmark = pytest.mark.postgres


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def test_a_customer_page_shows_the_wallet_as_the_lane_knows_it(platform: Platform) -> None:
    services = platform.services
    path = path_of("customers", HOSTILE_CODE)
    client = platform.client()
    assert "Prepaid value" not in text_of(client.get(path).text)
    credit = {"customer": HOSTILE_CODE, "amount": "50.00", "kind": "purchased"}
    gift = {"customer": HOSTILE_CODE, "amount": "5.00", "kind": "promotional", "expires": "2026-01-02"}
    with services.database.tenant(platform.tenant_id) as connection:
        top_ups = [{"at": "2026-01-01", "top_up": one} for one in (credit, gift)]
        number = steps.append_steps(connection, platform.tenant_id, top_ups, "test", now=NOW).number
    services.masters.project(services.database, platform.tenant_id)
    desk, tenant = AccountsDesk(services.router), platform.tenant_id
    asked = [{"customer": HOSTILE_CODE, "id": f"<b>{n}", "amount": "20.00"} for n in range(2)]
    outcomes = asyncio.run(desk.reserve(tenant, asked, master=number))
    assert [one["granted"] for one in outcomes if isinstance(one, dict)] == ["20.00", "20.00"]
    asyncio.run(desk.commit(tenant, [{"id": "<b>0", "amount": "12.50", "customer": HOSTILE_CODE}]))
    page = client.get(path).text
    assert "<b>0" not in page
    shown = text_of(page)
    assert "Balance 37.50 EUR Reserved 20.00 EUR Free 17.50 EUR Spent 12.50 EUR pays the next invoices" in shown
    assert re.search(r"Promotional expired .{5,20} 5\.00 EUR of 5\.00 EUR", shown)
    assert re.search(r"Purchased \S+ \S+ \S+ 37\.50 EUR of 50\.00 EUR", shown)
    assert re.search(r"<b>1 .{5,40} 20\.00 EUR open", shown)
    assert re.search(r"<b>0 .{5,40} 20\.00 EUR spent, 12\.50 EUR of it", shown)


@pytest.mark.parametrize("size", [PHONE, WIDE])
def test_long_ids_and_large_amounts_stay_inside_their_panel(
    chromium: Browser, platform: Platform, size: tuple[int, int]
) -> None:
    """Both tables had laid over their neighbours, on a desk, too."""
    services = platform.services
    credit = {"customer": HOSTILE_CODE, "amount": "123456789.50", "kind": "purchased"}
    with services.database.tenant(platform.tenant_id) as connection:
        step = {"at": "2026-01-01", "top_up": credit}
        number = steps.append_steps(connection, platform.tenant_id, [step], "test", now=NOW).number
    services.masters.project(services.database, platform.tenant_id)
    asked = [
        {"customer": HOSTILE_CODE, "id": f"call-{size[0]}-2026-11-27T05:30:00.123456Z-{n}" * n, "amount": "1234567.89"}
        for n in range(1, 5)
    ]

    async def reserve() -> list[object]:
        return list(await AccountsDesk(services.router).reserve(platform.tenant_id, asked, master=number))

    with ThreadPoolExecutor(1) as pool:  # the browser's loop is in this thread
        assert all(isinstance(one, dict) for one in pool.submit(lambda: asyncio.run(reserve())).result())
    with signed_in(chromium, platform, size) as (page, odd):
        page.goto(path_of("customers", HOSTILE_CODE))
        assert page.locator("#reservations").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert page.evaluate(BEYOND) == []
        assert odd == []
