"""A month in the browser: plan a bill run, look at it, let it through, read an invoice, find it in the archive.

With CLOUDBILLING_PICTURES=docs/pictures it also takes the pictures of docs/month-in-the-browser.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from platform_under_test import Platform, start
from playwright.sync_api import Browser, Page, expect
from test_front_browser import PHONE, WIDE, findings, signed_in

pytestmark = [pytest.mark.postgres, pytest.mark.browser]
DECEMBER = datetime(2026, 12, 2, 9, 20, tzinfo=UTC)


@pytest.fixture(scope="module")
def december(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A tenant whose November is over and not billed yet."""
    customers = {"team": 4, "compute": 5}
    running = start(tmp_path_factory.mktemp("month"), now=DECEMBER, customers=customers, name="Kieler Söhne & Co. KG")
    try:
        yield running
    finally:
        running.close()


def picture(page: Page, name: str) -> None:
    assert findings(page) == [], name
    folder = os.environ.get("CLOUDBILLING_PICTURES")
    if folder:
        page.screenshot(path=str(Path(folder) / f"month-{name}.png"))


def settled(page: Page, words: str) -> None:
    """Wait for the page to follow the run by itself, without a reload."""
    expect(page.locator("#run .live-line strong")).to_contain_text(re.compile(words, re.I), timeout=90_000)


def test_november_goes_from_plan_to_archived_invoices(chromium: Browser, december: Platform) -> None:
    with signed_in(chromium, december) as (page, odd):
        page.goto("/bill-runs")
        page.get_by_role("link", name="New bill run").click()
        expect(page.locator("#last_day")).to_have_value("2026-11-30")  # the end of the last month is offered
        picture(page, "1-plan")
        page.locator("main form button.primary").click()

        page.wait_for_url(re.compile(r"/bill-runs/[0-9a-f-]{36}$"))
        settled(page, "waits for approval")
        run = page.url
        page.reload()
        picture(page, "2-check")
        # Nothing is final yet: no invoice of the run, none in the archive.
        assert page.get_by_role("link", name="Invoices", exact=True).count() == 1  # that of the menu alone
        page.locator("button.primary[popovertarget=approve]").click()
        expect(page.locator("#approve")).to_be_visible()
        picture(page, "3-approve")
        page.locator("#approve button.primary").click()

        page.wait_for_url(run)
        settled(page, "all documents are made")
        page.reload()
        picture(page, "4-done")
        page.locator(".actions a.button").first.click()
        rows = page.locator("main tbody tr")
        assert rows.count() == 10
        picture(page, "5-invoices")
        page.locator("main a[href^='/invoices/RE-']").nth(1).click()
        expect(page.locator("h1")).to_contain_text("RE-")
        number = re.search(r"RE-[0-9-]+", page.locator("h1").inner_text())
        assert number is not None
        picture(page, "6-invoice")

        page.goto("/archive")
        page.locator("main input[name=q]").fill(number.group(0))
        page.locator("main input[name=q]").press("Enter")
        expect(page.locator("main tbody tr").first).to_contain_text(number.group(0))
        assert page.locator("main tbody tr").count() == 2  # the PDF and its XML
        page.locator("form[action='/archive/verify'] button").click()
        expect(page.locator("main [role=status]")).to_contain_text("Everything is as it was archived", timeout=60_000)
        picture(page, "7-archive")
        assert odd == []
    archive = december.services.archive
    assert archive.verify(december.tenant_id).intact


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_the_run_that_is_over_reads_well_at_a_desk_and_on_a_phone(
    chromium: Browser, december: Platform, size: tuple[int, int]
) -> None:
    with signed_in(chromium, december, size) as (page, odd):
        page.goto("/bill-runs")
        page.locator("main a[href^='/bill-runs/']").nth(1).click()
        page.wait_for_load_state()
        assert findings(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert odd == []
