"""Wallets on the pages: balance, what is reserved, what is left of each top-up, and what became of reservations."""

from __future__ import annotations

import asyncio
import html
import re

import pytest
from platform_under_test import HOSTILE_CODE, NOW, Platform

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
    assert re.search(r"Promotional .{5,20} expired 5\.00 EUR 5\.00 EUR", shown)
    assert re.search(r"Purchased \S+ \S+ \S+ 50\.00 EUR 37\.50 EUR", shown)
    assert re.search(r"<b>1 .{5,40} open 20\.00 EUR 0\.00 EUR", shown)
    assert re.search(r"<b>0 .{5,40} spent 20\.00 EUR 12\.50 EUR", shown)
