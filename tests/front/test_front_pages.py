"""The pages over HTTP, as a browser without JavaScript sees them: who may see what, and what stands there."""

import csv
import html
import io
import re
import time
from contextlib import closing

import httpx
import pytest
from platform_under_test import EMAIL, HOSTILE, HOSTILE_CODE, PASSWORD, READER, Platform, sign_in, token_of

from deployments.front.page import CONTENT_SECURITY_POLICY, path_of

pytestmark = pytest.mark.postgres

PAGES = (
    "/",
    "/customers",
    "/customers/K-10400",
    "/customers/K-10400/documents",
    path_of("customers", HOSTILE_CODE),
    "/subscriptions",
    "/subscriptions/S-10001",
    "/subscriptions/S-10001/references",
    "/customers/K-10400/references",
    "/meters",
    "/plans",
    "/plans/compute?quantity=4821",
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
)
PAGE_BYTES_MAX = 150_000


@pytest.fixture(scope="module")
def client(platform: Platform) -> httpx.Client:
    return platform.client()


def first_link(client: httpx.Client, page: str, start: str) -> str:
    return html.unescape(re.findall(rf'class="go" href="({start}[^"]+)"', client.get(page).text)[0])


@pytest.mark.parametrize("language", ["en", "de"])
@pytest.mark.parametrize("path", PAGES)
def test_each_page_is_whole_small_and_fetches_nothing_from_elsewhere(
    client: httpx.Client, path: str, language: str
) -> None:
    answer = client.get(path, headers={"Accept-Language": language})
    assert answer.status_code == 200
    assert f'<html lang="{language}">' in answer.text
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "</html>" in answer.text
    assert not re.search(r"\sstyle=|<style|<script(?! src=)|\son\w+=", answer.text)
    links = re.findall(r'\s(?:src|href|action)="([^"]*)"', answer.text)
    outside = [link for link in links if not link.startswith(("/", "#", "?")) and "127.0.0.1:8265" not in link]
    assert outside == []
    assets = sum(len(client.get(link).content) for link in links if link.startswith("/static/"))
    assert len(answer.content) + assets < PAGE_BYTES_MAX + 51_238  # htmx is fetched once and kept for a year


def test_static_files_are_kept_for_a_year_and_named_by_their_content(client: httpx.Client) -> None:
    links = re.findall(r'"(/static/[^"]+)"', client.get("/").text)
    assert any("htmx" in link for link in links)
    for link in links:
        answer = client.get(link)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        assert re.search(r"\?v=[0-9a-f]{12}$", link)
    assert client.get("/static/../page.py").status_code == 404


def test_whoever_is_not_signed_in_is_asked_to_and_led_back(platform: Platform) -> None:
    with httpx.Client(base_url=platform.url, follow_redirects=True) as client:
        answer = client.get("/invoices?kind=invoice")
        assert answer.url.path == "/sign-in"
        assert 'name="next" value="/invoices?kind=invoice"' in answer.text
        form = {
            "email": EMAIL,
            "password": PASSWORD,
            "form_token": token_of(answer.text),
            "next": "/invoices?kind=invoice",
        }
        answer = client.post("/sign-in", data=form)
        assert answer.url.path == "/invoices"
        cookie = next(one for one in client.cookies.jar if one.name == "cloudbilling_session")
        assert cookie.has_nonstandard_attr("HttpOnly")
        answer = client.post("/sign-out", data={"form_token": token_of(answer.text)})
        assert answer.url.path == "/sign-in"
        assert client.get("/customers").url.path == "/sign-in"


def test_cookies_are_secure_where_the_proxy_in_front_speaks_tls(platform: Platform) -> None:
    with httpx.Client(base_url=platform.url, trust_env=False) as client:
        plain = client.get("/sign-in").headers["set-cookie"]
        behind_tls = client.get("/sign-in", headers={"X-Forwarded-Proto": "https"}).headers["set-cookie"]
    assert "httponly" in plain.lower()
    assert "secure" not in plain.lower()
    assert "secure" in behind_tls.lower()


def test_wrong_passwords_are_refused_in_words_and_slowed_down(platform: Platform) -> None:
    with httpx.Client(base_url=platform.url, follow_redirects=True) as client:
        answers = [sign_in(client, READER, "wrong password") for _ in range(7)]
        assert [answer.status_code for answer in answers[:5]] == [401] * 5
        assert "is not right" in answers[0].text
        assert f'value="{READER}"' in answers[0].text
        assert answers[6].status_code == 429
        assert "Too many wrong passwords" in answers[6].text
        unknown = sign_in(client, "nobody@nordwind.example", "wrong password")
        assert unknown.status_code == 401


def test_a_form_without_its_token_changes_nothing(client: httpx.Client, platform: Platform) -> None:
    for path in ("/sign-out", "/bill-runs", "/settings/keys", "/archive/verify", "/tenant"):
        answer = client.post(
            path, data={"name": "x", "scopes": "usage:read", "last_day": "2026-10-31", "code": "empty"}
        )
        assert answer.status_code == 403, path
    good = token_of(client.get("/bill-runs/new").text)
    answer = client.post("/sign-out", data={"form_token": good}, headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403
    assert client.get("/customers").url.path == "/customers"


def test_a_reader_sees_contracts_and_invoices_but_no_settings_and_starts_nothing(platform: Platform) -> None:
    with platform.services.database.system() as connection:
        connection.execute("UPDATE users SET failures = 0, paused_until = NULL WHERE email = %s", (READER,))
    with closing(platform.client(READER)) as client:
        home = client.get("/")
        assert home.status_code == 200
        assert "/settings" not in home.text
        assert client.get("/settings").status_code == 403
        assert client.get("/operations").status_code == 403
        assert client.get("/bill-runs/new").status_code == 403
        token = token_of(home.text)
        assert client.post("/settings/keys", data={"form_token": token, "name": "x"}).status_code == 403
        assert client.post("/bill-runs", data={"form_token": token, "last_day": "2026-10-31"}).status_code == 403


def test_another_tenants_things_are_not_there(platform: Platform) -> None:
    with closing(platform.client()) as client:
        invoice = first_link(client, "/invoices", "/invoices/")
        run = first_link(client, "/bill-runs", "/bill-runs/")
        client.post("/tenant", data={"code": "empty", "form_token": token_of(client.get("/").text)})
        for path in (invoice, f"{invoice}/pdf", run, "/customers/K-10400", "/subscriptions/S-10001", "/plans/compute"):
            assert client.get(path).status_code == 404, path
        page = client.get("/")
        assert "From the first event to the first invoice" in page.text
        for path in ("/customers", "/subscriptions", "/meters", "/plans", "/invoices", "/bill-runs", "/archive"):
            answer = client.get(path)
            assert answer.status_code == 200
            assert 'class="empty"' in answer.text, path


def test_a_hostile_name_is_text_on_every_page_and_in_exports(client: httpx.Client) -> None:
    for path in (
        "/customers",
        path_of("customers", HOSTILE_CODE),
        "/invoices?customer=K%2F99+%C3%BC",
        "/search?q=alert",
    ):
        page = client.get(path).text
        assert (
            html.escape(HOSTILE, quote=False).split(" & ")[0].split('"')[0] in html.unescape(page) or "alert(1)" in page
        )
        assert "<script>alert" not in page, path
    rows = list(csv.DictReader(io.StringIO(client.get("/customers?format=csv").text)))
    assert HOSTILE in [row["name"] for row in rows]


def test_all_pages_of_a_list_show_each_invoice_once_in_any_order(client: httpx.Client, platform: Platform) -> None:
    exported = client.get("/invoices?format=json").json()
    everything = sorted(row["number"] for row in exported)
    assert len(everything) > 20
    for sort in ("number", "-customer", "-issued", "due", "-gross"):
        seen: list[str] = []
        path = f"/invoices?sort={sort}"
        for _ in range(20):
            page = client.get(path).text
            seen += re.findall(r'class="go" href="/invoices/[^"]+">([^<]+)<', page)
            following = re.search(r'href="([^"]+)" rel="next"', page)
            if following is None:
                break
            path = html.unescape(following[1])
        assert sorted(seen) == everything, sort


def test_the_sums_above_a_list_are_the_sums_of_its_export(client: httpx.Client) -> None:
    from decimal import Decimal

    rows = client.get("/invoices?format=json").json()
    for column in ("net", "tax", "gross", "due"):
        total = sum((Decimal(row[column]) for row in rows), Decimal(0))
        assert f"<dd>{total:,.2f}</dd>" in client.get("/invoices").text, column


def test_each_line_of_an_invoice_explains_itself_and_the_files_come_from_the_archive(client: httpx.Client) -> None:
    path = first_link(client, "/invoices", "/invoices/")
    page = client.get(path).text
    numbers = re.findall(r'id="amount-(\d+)"', page)
    assert numbers
    for number in numbers:
        explained = client.get(f"{path}?explain={number}").text
        assert explained.count('class="why"') == 1
        assert "Line net" in explained
    pdf = client.get(f"{path}/pdf")
    assert pdf.content.startswith(b"%PDF-")
    assert pdf.headers["content-type"] == "application/pdf"
    assert "frame-ancestors 'self'" in pdf.headers["content-security-policy"]
    if f"{path}/xml" in page:
        assert b"CrossIndustryInvoice" in client.get(f"{path}/xml").content


def test_usage_that_is_not_billed_yet_is_priced_by_the_engine(client: httpx.Client) -> None:
    page = client.get(path_of("customers", HOSTILE_CODE)).text
    # 1200.75 hours in tiers of 0.0310 up to 1000 and 0.0285 above: 31 + 5.721375
    assert "36.72" in page
    assert "1,200.75" in page


def test_completeness_sums_up_and_names_what_is_in_suspense(client: httpx.Client) -> None:
    page = client.get("/statistics/completeness").text
    stored, rated, suspended = (
        int(text.replace(",", "")) for text in re.findall(r"<strong>([\d,]+)</strong>", page)[:3]
    )
    assert stored == rated + suspended
    assert suspended == 2
    assert "unknown customer" in page
    rows = list(csv.DictReader(io.StringIO(client.get("/statistics/completeness?format=csv").text)))
    assert sum(int(row["stored"]) for row in rows) == stored


def test_a_key_is_shown_once_and_can_be_ended(client: httpx.Client, platform: Platform) -> None:
    token = token_of(client.get("/settings/keys/new").text)
    wrong = client.post("/settings/keys", data={"name": "  ", "form_token": token})
    assert wrong.status_code == 422
    assert "Choose at least one right" in wrong.text
    made = client.post("/settings/keys", data={"name": "probe", "scopes": ["billing:read"], "form_token": token})
    key = re.search(r"<code>(cb_[\w-]{40,})</code>", made.text)
    assert key is not None
    assert key[1] not in client.get("/settings").text
    bearer = {"Authorization": f"Bearer {key[1]}"}
    assert httpx.get(f"{platform.url}/v1/invoices", headers=bearer).status_code == 200
    settings = client.get("/settings").text
    revoke = re.search(r'Revoke key “probe”.*?action="([^"]+)"', settings, re.DOTALL)
    assert revoke is not None
    assert "revoked" in client.post(revoke[1], data={"form_token": token}).text
    assert httpx.get(f"{platform.url}/v1/invoices", headers=bearer).status_code == 401


def test_verifying_the_archive_reads_it_again_and_says_what_it_found(client: httpx.Client) -> None:
    answer = client.post("/archive/verify", data={"form_token": token_of(client.get("/archive").text)})
    assert "Everything is as it was archived." in answer.text


def test_odd_addresses_get_a_page_that_says_so(client: httpx.Client) -> None:
    for path in ("/customers/nobody", "/invoices/RE-0", "/plans/none", "/bill-runs/none", "/plans/compute?version=99"):
        answer = client.get(path)
        assert answer.status_code == 404, path
        assert "There is no such" in answer.text
    for path in (
        "/invoices?month=2026-13",
        "/invoices?kind=x",
        "/invoices?after=%21%21",
        "/bill-runs?after=WyJ4Il0",
        "/invoices?after=WyJ4IiwieCJd",
    ):
        assert client.get(path).status_code == 422, path
    assert client.get("/invoices?q=%25%5C%27%3B--").status_code == 200
    assert client.get("/plans/compute?quantity=many").text.count("Enter a number") > 0


def test_pages_take_a_tenth_of_a_second_of_the_server(client: httpx.Client) -> None:
    slow: list[tuple[str, float]] = []
    for path in PAGES:
        best = min(_seconds(client, path) for _ in range(5))
        if best > 0.1:
            slow.append((path, round(best, 3)))
    assert slow == []


def _seconds(client: httpx.Client, path: str) -> float:
    begin = time.process_time()  # of this process, which is the server, too: the clock would tell what else is running
    client.get(path)
    return time.process_time() - begin
