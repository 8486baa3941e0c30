"""Pages of layouts: the empty list, the editor with its preview, publishing, going back, mistakes with their place."""

import re
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest
from platform_under_test import READER, Platform, token_of
from playwright.sync_api import Browser

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def client(platform: Platform) -> Iterator[httpx.Client]:
    with closing(platform.client()) as made:
        yield made


def form(client: httpx.Client, path: str, **more: str) -> dict[str, str]:
    token = token_of(client.get(path).text)
    usual = {"form_token": token, "engine": "typst", "accent": "#a01040", "font": "Inter", "size": "9"}
    return usual | {"grouping": "subscription", "appendix": "on", "kind": "invoice", "language": "de"} | more


def test_the_empty_list_says_what_belongs_there_and_offers_the_first_step(client: httpx.Client) -> None:
    page = client.get("/layouts")
    assert page.status_code == 200
    assert 'href="/layouts/new"' in page.text


def test_a_layout_is_made_with_a_preview_published_used_and_an_older_one_comes_back(client: httpx.Client) -> None:
    shown = client.post("/layouts/preview", data=form(client, "/layouts/new", fresh="yes"))
    assert shown.status_code == 200, shown.text[:500]
    assert shown.text.count("data:image/png;base64,") >= 2
    assert "img-src 'self' data:" in shown.headers["content-security-policy"]
    kept = client.post(
        "/layouts",
        data=form(client, "/layouts/new", fresh="yes", code="house", name="Haus", act="use"),
        follow_redirects=False,
    )
    assert kept.status_code == 303, kept.text[:500]
    page = client.get(kept.headers["location"])
    assert "Haus" in page.text
    again = form(client, "/layouts/house", code="house", name="Haus", accent="#104080", act="use")
    assert client.post("/layouts", data=again, follow_redirects=False).status_code == 303
    token = token_of(client.get("/layouts/house").text)
    back = client.post("/layouts/house/use", data={"form_token": token, "version": "1"}, follow_redirects=False)
    assert back.status_code == 303
    assert re.search(r"ersion 1 (in use|in Gebrauch)", client.get("/layouts/house").text)
    assert client.get("/layouts/house?version=2").status_code == 200


def test_a_mistake_is_told_with_its_line_and_nothing_that_was_typed_is_lost(client: httpx.Client) -> None:
    typed = form(client, "/layouts/new", fresh="yes", code="broken", source="= A\n#nobody", act="publish")
    answer = client.post("/layouts", data=typed)
    assert answer.status_code == 422
    assert "line 2, column 2" in answer.text
    assert "#nobody" in answer.text


def test_a_logo_that_is_none_is_refused_in_words(client: httpx.Client) -> None:
    data = form(client, "/layouts/new", fresh="yes", code="logo", act="keep")
    answer = client.post("/layouts", data=data, files={"logo_file": ("logo.png", b"GIF89a", "image/png")})
    assert answer.status_code == 422
    assert "neither a PNG nor an SVG" in answer.text


def test_who_may_only_read_sees_layouts_and_changes_none(platform: Platform) -> None:
    with closing(platform.client(READER)) as reader:
        assert reader.get("/layouts").status_code == 200
        assert reader.get("/layouts/new").status_code == 403


def test_what_accompanies_invoices_has_layouts_with_its_own_columns(client: httpx.Client) -> None:
    page = client.get("/layouts").text
    assert "Kontoauszug" in page or "Account statement" in page
    fresh = client.get("/layouts/new?kind=account_statement").text
    assert 'value="balance" checked' in fresh
    assert 'name="grouping"' not in fresh
    assert 'id="document"' not in fresh
    typed = form(client, "/layouts/new", fresh="yes", kind="account_statement", columns_for="account_statement")
    typed |= {"code": "statements", "name": "Auszug", "columns": "due_on", "intro_de": "hier ist er.", "act": "use"}
    kept = client.post("/layouts", data=typed, follow_redirects=False)
    assert kept.status_code == 303, kept.text[:500]
    page = client.get("/layouts/statements").text
    assert 'value="due_on" checked' in page
    assert 'value="balance" checked' not in page
    assert "hier ist er." in page
    assert "/layouts/statements" in client.get("/layouts").text
    # Another type than the boxes were of: all of its columns.
    other = client.post("/layouts/preview", data={**typed, "kind": "reminder"}).text
    assert 'value="invoiced" checked' in other
    assert other.count("data:image/png;base64,") >= 1
    assert client.post("/layouts/preview", data={**typed, "kind": "letter"}).status_code == 404


@pytest.mark.browser
def test_columns_follow_the_type_that_is_chosen(platform: Platform, chromium: Browser) -> None:
    with closing(platform.client()) as client:
        cookies = [{"name": one.name, "value": one.value, "url": platform.url} for one in client.cookies.jar]
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    context.add_cookies(cookies)
    page = context.new_page()
    page.goto(f"{platform.url}/layouts/new")
    page.locator("#name").fill("Mahnungen")
    page.locator("#kind").select_option("reminder")
    page.locator("#of-kind input[value=invoiced]").wait_for(timeout=60_000)
    assert page.locator("#of-kind input[value=position]").count() == 0
    assert page.locator("#grouping").count() == 0
    assert page.locator("#document").count() == 0
    assert page.locator("#name").input_value() == "Mahnungen"
    page.locator("#kind").select_option("invoice")
    page.locator("#grouping").wait_for(timeout=60_000)
    assert page.locator("#document").count() == 1
    context.close()


@pytest.mark.browser
def test_the_preview_follows_what_is_typed_on_wide_and_narrow_screens(platform: Platform, chromium: Browser) -> None:
    with closing(platform.client()) as client:
        cookies = [{"name": one.name, "value": one.value, "url": platform.url} for one in client.cookies.jar]
    for width in (1280, 390):
        context = chromium.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce")
        context.add_cookies(cookies)
        page = context.new_page()
        page.goto(f"{platform.url}/layouts/new")
        first = page.locator("#preview img").first.get_attribute("src")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        with page.expect_response("**/layouts/preview", timeout=60_000):
            page.locator("#accent").fill("#a01040")
            page.locator("#accent").dispatch_event("change")
        page.wait_for_function(
            "before => document.querySelector('#preview img')?.getAttribute('src') !== before",
            arg=first,
            timeout=60_000,
        )
        context.close()
