"""The pages in Chromium: accessible, nothing fetched from elsewhere, smooth with htmx, whole without JavaScript."""

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from platform_under_test import EMAIL, HOSTILE, HOSTILE_CODE, PASSWORD, Platform
from playwright.sync_api import Browser, Page, expect

from deployments.front.page import path_of

pytestmark = [pytest.mark.postgres, pytest.mark.browser]

PATHS = (
    "/",
    "/customers",
    path_of("customers", HOSTILE_CODE) + "?explain=1",
    "/subscriptions",
    "/subscriptions/S-10001",
    "/meters",
    "/plans",
    "/plans/compute?quantity=x",
    "/invoices",
    "/bill-runs",
    "/bill-runs/new",
    "/archive",
    "/statistics/usage",
    "/statistics/completeness",
    "/search?q=K-1",
    "/operations",
    "/settings",
    "/settings/keys/new",
    "/settings/erasures",
)
WIDE, PHONE = (1280, 800), (390, 844)


@contextmanager
def signed_in(
    browser: Browser, platform: Platform, size: tuple[int, int] = WIDE, scheme: str = "light", **options: object
) -> Iterator[tuple[Page, list[str]]]:
    """A page of somebody who signed in by the form, and what it fetched or complained about."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,
        base_url=platform.url,
        locale="en-GB",
        **options,
    )
    page = context.new_page()
    odd: list[str] = []

    def look(address: str) -> None:
        if not address.startswith((platform.url, "chrome-extension://", "chrome://", "data:", "blob:", "about:")):
            odd.append(f"fetched {address}")

    page.on("request", lambda request: look(request.url))
    page.on("console", lambda message: odd.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: odd.append(str(error)))
    page.goto("/sign-in")
    page.fill("#email", EMAIL)
    page.fill("#password", PASSWORD)
    page.click("button.primary")
    page.wait_for_url(platform.url + "/")
    try:
        yield page, odd
    finally:
        context.close()


def invoice_path(platform: Platform) -> str:
    client = platform.client()
    found = re.findall(r'class="go" href="(/invoices/[^"]+)"', client.get("/invoices?kind=invoice").text)
    client.close()
    return html.unescape(found[-1])


def findings(page: Page) -> list[str]:
    result = Axe().run(page)
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in result.response["violations"]]


BEYOND = """() => [...document.querySelectorAll('.panel table, .panel span')]
  .filter(one => !one.closest('.scroll') && one.offsetParent && !one.classList.contains('unseen'))
  .filter(one => one.getBoundingClientRect().right > one.closest('.panel').getBoundingClientRect().right + 1)
  .map(one => one.outerHTML.slice(0, 120))"""


def test_axe_finds_nothing_on_any_page_and_nothing_is_fetched_from_elsewhere(
    chromium: Browser, platform: Platform
) -> None:
    run = _client_path(platform, "/bill-runs", "/bill-runs/")
    with signed_in(chromium, platform) as (page, odd):
        for path in (*PATHS, run, invoice_path(platform) + "?explain=1"):
            page.goto(path)
            assert findings(page) == [], path
            assert page.evaluate("document.documentElement.scrollWidth") <= WIDE[0], path
            assert page.evaluate(BEYOND) == [], path
        assert odd == []


@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "light"), (WIDE, "dark")])
def test_axe_finds_nothing_on_a_phone_and_at_night(
    chromium: Browser, platform: Platform, size: tuple[int, int], scheme: str
) -> None:
    paths = (*PATHS[:4], *PATHS[7:9], "/settings", invoice_path(platform) + "?explain=1")
    with signed_in(chromium, platform, size, scheme) as (page, odd):
        for path in paths:
            page.goto(path)
            assert findings(page) == [], path
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0], path
            assert page.evaluate(BEYOND) == [], path
        assert odd == []


@pytest.mark.parametrize("area", ["customers", "subscriptions", "invoices", "bill-runs"])
def test_a_row_of_a_list_leads_to_a_page_of_its_own(chromium: Browser, platform: Platform, area: str) -> None:
    """Filters and pages of a list are swapped in place; a row's page was swapped away with them and came out empty."""
    with signed_in(chromium, platform) as (page, odd):
        page.goto(f"/{area}")
        row = page.locator(f"main tbody a[href^='/{area}/']").first
        name = row.inner_text()
        row.click()
        page.wait_for_url(re.compile(f"/{area}/"))
        expect(page.locator("h1")).to_contain_text(name)
        expect(page.locator("main")).not_to_be_empty()
        assert odd == []


def test_the_sign_in_page_has_no_finding_and_says_what_is_wrong(chromium: Browser, platform: Platform) -> None:
    context = chromium.new_context(base_url=platform.url, locale="de-DE")
    page = context.new_page()
    page.goto("/sign-in")
    assert page.locator("html").get_attribute("lang") == "de"
    assert findings(page) == []
    page.fill("#email", "niemand@nordwind.example")
    page.fill("#password", "falsch, ganz sicher")
    page.click("button.primary")
    expect(page.get_by_role("alert")).to_contain_text("stimmt nicht")
    assert page.input_value("#email") == "niemand@nordwind.example"
    assert findings(page) == []
    context.close()


def test_an_amount_opens_its_explanation_in_place_and_closes_it(chromium: Browser, platform: Platform) -> None:
    with signed_in(chromium, platform) as (page, odd):
        page.goto(invoice_path(platform))
        page.evaluate("window.same = true")
        page.click("#amount-1")
        expect(page.locator("#explain-1")).to_be_visible()
        expect(page.locator("#amount-1")).to_have_attribute("aria-expanded", "true")
        assert page.evaluate("window.same") is True
        page.click("#amount-1")
        expect(page.locator("#explain-1")).to_have_count(0)
        frame = page.frame_locator("iframe")
        assert page.locator("iframe").get_attribute("src").endswith("view=FitH")
        assert frame is not None
        assert odd == []


def test_the_slash_key_goes_to_the_search_and_finds_a_customer(chromium: Browser, platform: Platform) -> None:
    with signed_in(chromium, platform) as (page, odd):
        page.goto("/invoices")
        page.keyboard.press("/")
        expect(page.locator(".find input")).to_be_focused()
        page.keyboard.type("K-10400")
        page.keyboard.press("Enter")
        page.wait_for_url("**/customers/K-10400")
        assert odd == []


def test_filter_and_order_stay_in_the_address_and_the_page_is_not_loaded_again(
    chromium: Browser, platform: Platform
) -> None:
    with signed_in(chromium, platform) as (page, odd):
        page.goto("/invoices")
        page.evaluate("window.same = true")
        page.fill(".filter input[name=q]", "RE-2026-00000")
        page.keyboard.press("Enter")
        page.wait_for_url("**/invoices?q=RE-2026-00000*")
        page.get_by_role("link", name="Gross EUR").click()
        page.wait_for_url("**sort=-gross*")
        amounts = page.locator("tbody td:nth-child(7)").all_inner_texts()
        values = [float(text.replace(",", "").replace("\u2212", "-")) for text in amounts]
        assert values == sorted(values, reverse=True)
        assert page.evaluate("window.same") is True
        assert odd == []


def test_a_hostile_name_runs_nothing(chromium: Browser, platform: Platform) -> None:
    with signed_in(chromium, platform) as (page, odd):
        dialogs: list[str] = []
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.goto(path_of("customers", HOSTILE_CODE))
        assert HOSTILE in page.locator("h1").inner_text()
        page.goto("/search?q=%3Cscript%3Ealert(1)%3C/script%3E")
        assert dialogs == []
        assert odd == []


def test_a_bill_run_is_started_looked_at_approved_and_finished_in_the_browser(
    chromium: Browser, platform: Platform
) -> None:
    before = len(_numbers(platform))
    with signed_in(chromium, platform) as (page, odd):
        page.goto("/bill-runs/new")
        page.fill("#last_day", "2026-11-23")
        page.fill("#document_date", "2026-11-24")
        page.get_by_role("button", name="Compute and show what it makes").click()
        page.wait_for_url("**/bill-runs/*")
        expect(page.get_by_text("Waits for approval")).to_be_visible(timeout=30_000)
        page.reload()
        assert len(_numbers(platform)) == before
        assert findings(page) == []
        page.get_by_role("button", name="Cancel…").click()
        expect(page.locator("#cancel")).to_contain_text("Nothing is final")
        page.get_by_role("button", name="Keep it").click()
        page.get_by_role("button", name="Approve…").click()
        page.get_by_role("button", name="Finalise").click()
        expect(page.get_by_text("All documents are made")).to_be_visible(timeout=60_000)
        assert odd == []


def test_everything_works_without_javascript(chromium: Browser, platform: Platform) -> None:
    with signed_in(chromium, platform, PHONE, java_script_enabled=False) as (page, odd):
        page.goto(invoice_path(platform))
        page.click("#amount-1")
        expect(page.locator("#explain-1")).to_be_visible()
        page.get_by_role("button", name="Menu").click()
        page.locator("#nav").get_by_role("link", name="Plans", exact=True).click()
        page.wait_for_url("**/plans")
        page.get_by_role("link", name="Compute Scale").click()
        page.fill("input[name=quantity] >> nth=0", "1,200.75")
        page.get_by_role("button", name="Compute the price").first.click()
        expect(page.locator(".try .total").nth(1)).to_contain_text("36.72")
        assert odd == []


def _numbers(platform: Platform) -> list[str]:
    client = platform.client()
    rows = client.get("/invoices?format=json").json()
    client.close()
    return [row["number"] for row in rows]


def _client_path(platform: Platform, page: str, start: str) -> str:
    client: httpx.Client = platform.client()
    found = re.findall(rf'class="go" href="({start}[^"]+)"', client.get(page).text)
    client.close()
    return html.unescape(found[0])
