"""How a line came about, the next invoice, what a change costs, what other prices would have earned: as pages."""

import csv
import html
import io
import re
import time
from decimal import Decimal

import httpx
import pytest
from platform_under_test import READER, Platform, sign_in, token_of
from playwright.sync_api import Browser, expect
from test_front_browser import PHONE, WIDE, findings, signed_in

from deployments.front.formats import Formats
from deployments.front.texts import Texts

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def client(platform: Platform) -> httpx.Client:
    return platform.client()


def line_of(client: httpx.Client) -> tuple[str, int]:
    """An invoice and its line that bills hours of compute."""
    for link in re.findall(r'class="go" href="(/invoices/[^"]+)"', client.get("/invoices?kind=invoice").text):
        invoice = html.unescape(link)
        for part in client.get(invoice).text.split('<tbody id="line-')[1:]:
            if "vCPU h" in part.partition("</tbody>")[0]:
                return invoice, int(part.partition('"')[0])
    raise AssertionError("no invoice bills compute")


def simulated(client: httpx.Client, **changes: str) -> httpx.Response:
    """The form as it stands, sent with some fields changed; the page that it leads to when the simulation has ended."""
    page = client.get("/simulations/new?plan=compute")
    fields = re.findall(r'<input id="(charges[^"]+)" name="[^"]+" value="([^"]*)"', page.text)
    form = {name: html.unescape(value) for name, value in fields}
    form |= {"plan": "compute", "name": "", "from": "2026-10", "to": "2026-10", "form_token": token_of(page.text)}
    answer = client.post("/simulations", data=form | changes)
    for _ in range(200):
        if "every 1s" not in answer.text:
            return answer
        time.sleep(0.1)
        answer = client.get(str(answer.url))
    raise AssertionError("the simulation does not end")


def test_each_line_has_a_page_with_its_events_and_the_proof(client: httpx.Client) -> None:
    invoice, number = line_of(client)
    path = f"{invoice}/lines/{number}"
    assert f'href="{path}"' in client.get(f"{invoice}?explain={number}").text
    page = client.get(path)
    assert page.status_code == 200
    assert "agrees with the log" in page.text
    assert "differs from the log" not in page.text
    count = int(re.findall(r"<dd>([0-9]+) events</dd>", page.text)[0])
    events = client.get(f"{path}/events")
    assert f"{count} events" in events.text
    rows = list(csv.DictReader(io.StringIO(client.get(f"{path}/events?format=csv").text)))
    assert len(rows) == count
    quantity = sum(Decimal(row["value"]) for row in rows)
    shown = re.findall(r"<dt>Quantity vCPU h</dt><dd>([0-9.,]+)</dd>", page.text)[0]
    assert Decimal(shown.replace(",", "")) == quantity
    assert client.get(f"{invoice}/lines/99").status_code == 404


def test_the_next_invoice_shows_what_the_next_run_makes_and_explains_each_amount(client: httpx.Client) -> None:
    page = client.get("/customers/K-10400/next-invoice")
    assert page.status_code == 200
    assert "a preview, without a number" in page.text
    assert 'value="2026-11-30"' in page.text
    opened = client.get("/customers/K-10400/next-invoice?explain=1.1").text
    assert 'id="explain-1"' in opened
    assert "Events and proof" not in opened  # there is no document yet
    wrong = client.get("/customers/K-10400/next-invoice?last_day=2026-02-30")
    assert wrong.status_code == 422
    assert 'value="2026-02-30"' in wrong.text


def test_a_change_is_previewed_line_by_line_and_nothing_is_changed(client: httpx.Client) -> None:
    code = re.findall(r'class="go" href="/subscriptions/(S-[0-9]+)"', client.get("/subscriptions?plan=team").text)[0]
    before = client.get(f"/subscriptions/{code}").text
    empty = client.get(f"/subscriptions/{code}/preview")
    assert "What would it cost" in empty.text
    page = client.get(f"/subscriptions/{code}/preview?to=compute&when=now&day=2026-11-24")
    assert page.status_code == 200
    assert "Due at once EUR" in page.text
    assert "Platform base price" in page.text
    cancelled = client.get(f"/subscriptions/{code}/preview?to=-cancel-&when=period_end&day=2026-11-24")
    assert cancelled.status_code == 200
    wrong = client.get(f"/subscriptions/{code}/preview?to=nothing&when=now")
    assert wrong.status_code == 422
    assert "there is no plan" in html.unescape(wrong.text)
    assert client.get(f"/subscriptions/{code}").text == before


def test_a_simulation_of_dearer_prices_says_who_would_pay_more(client: httpx.Client) -> None:
    page = simulated(client, **{"charges.0.price.amount": "30", "name": "One more"})
    assert "One more" in page.text
    assert "What was tried" in page.text
    assert "Would pay more" in page.text
    path = page.url.path
    rows = list(csv.DictReader(io.StringIO(client.get(f"{path}/csv").text)))
    assert rows
    assert {row["month"] for row in rows} == {"2026-10"}
    dearer = [row for row in rows if row["charge"] == "platform"]
    assert {Decimal(row["after"]) > Decimal(row["before"]) for row in dearer} == {True}
    assert {row["difference"] for row in rows if row["charge"] != "platform"} == {"0.00"}
    assert "One more" in client.get("/simulations").text
    assert client.get(f"{path}/customers?sort=customer").status_code == 200
    gone = client.post(f"{path}/delete", data={"form_token": token_of(client.get(path).text)})
    assert gone.url.path == "/simulations"
    assert client.get(path).status_code == 404


def test_a_wrong_price_is_named_at_its_field_and_what_was_typed_stays(client: httpx.Client) -> None:
    page = simulated(client, **{"charges.0.price.amount": "12,5x", "name": "Typed", "from": "2026-10", "to": "2026-01"})
    assert page.status_code == 422
    assert '<a href="#charges.0.price.amount">' in page.text
    assert 'name="charges.0.price.amount" value="12,5x"' in page.text
    assert 'value="Typed"' in page.text
    assert '<a href="#to">' in page.text


def test_a_reader_sees_simulations_and_starts_none(platform: Platform) -> None:
    with httpx.Client(base_url=platform.url, follow_redirects=True, timeout=30) as reader:
        sign_in(reader, READER)
        page = reader.get("/simulations")
        assert page.status_code == 200
        assert "/simulations/new" not in page.text
        assert reader.get("/simulations/new?plan=compute").status_code == 403
        assert reader.post("/simulations", data={"plan": "compute"}).status_code == 403


def test_numbers_are_read_in_the_reader_s_way_of_writing_them_and_never_guessed() -> None:
    english, german = (Formats(Texts(language), "UTC") for language in ("en", "de"))
    assert [english.exact(text) for text in ("1,000.50", " 0.031 ", "1,5", "−3", "x")] == [
        "1000.50", "0.031", "1,5", "-3", "x"
    ]  # fmt: skip
    assert [german.exact(text) for text in ("1.000,50", "0,031", "1.5", "12")] == ["1000.50", "0.031", "1.5", "12"]


@pytest.mark.browser
@pytest.mark.parametrize(("size", "scheme"), [(WIDE, "light"), (PHONE, "dark")])
def test_axe_finds_nothing_on_the_pages_that_look_back_and_ahead(
    chromium: Browser, platform: Platform, client: httpx.Client, size: tuple[int, int], scheme: str
) -> None:
    invoice, number = line_of(client)
    done = simulated(client, **{"charges.0.price.amount": "27"}).url.path
    code = re.findall(r'class="go" href="/subscriptions/(S-[0-9]+)"', client.get("/subscriptions?plan=team").text)[0]
    paths = [
        f"{invoice}/lines/{number}",
        f"{invoice}/lines/{number}/events",
        "/customers/K-10400/next-invoice?explain=1.1",
        f"/subscriptions/{code}/preview?to=compute&when=now",
        "/simulations",
        "/simulations/new?plan=compute",
        done,
        f"{done}/customers",
    ]
    with signed_in(chromium, platform, size, scheme) as (page, odd):
        for path in paths if size == WIDE else paths[::2]:
            page.goto(path)
            assert findings(page) == [], path
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0], path
        assert odd == []


@pytest.mark.browser
def test_a_price_is_tried_from_its_plan_to_the_result_without_leaving_the_keyboard(
    chromium: Browser, platform: Platform
) -> None:
    with signed_in(chromium, platform) as (page, odd):
        page.goto("/plans/compute")
        page.get_by_role("link", name="Simulate other prices").click()
        page.fill('[name="charges.0.price.amount"]', "31.50")
        page.keyboard.press("Enter")
        page.wait_for_url("**/simulations/0*")
        expect(page.get_by_role("heading", name="Revenue by month")).to_be_visible(timeout=20_000)
        expect(page.get_by_role("heading", name="Would pay more")).to_be_visible()
        assert odd == []
