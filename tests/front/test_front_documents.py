"""A customer's accompanying documents in the browser: empty, made, made again, refused, fetched, read-only."""

from __future__ import annotations

import html
import re

import pytest
from platform_under_test import HOSTILE_CODE, READER, Platform

from deployments.front.page import path_of

pytestmark = pytest.mark.postgres


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def token_of(page: str) -> str:
    found = re.search(r'name="form_token" value="([^"]+)"', page)
    assert found is not None
    return found.group(1)


def test_documents_are_made_listed_and_fetched(platform: Platform) -> None:
    client = platform.client()
    path = "/customers/K-10400/documents"
    page = client.get(path).text
    assert "No document yet" in text_of(page)
    form = {"form_token": token_of(page), "type": "usage_record", "first": "2026-09-01", "last": "2026-09-30"}
    shown = client.post(path, data=form, follow_redirects=True)
    assert shown.status_code == 200, text_of(shown.text)
    assert "VN-K-10400-2026-09 is in the archive. Nothing was sent." in text_of(shown.text)
    links = re.findall(r'href="(/archive/files/[^"]+)"', shown.text)
    assert len(links) == 2
    assert client.get(links[0]).content.startswith(b"%PDF-")
    assert client.get(links[1]).text.startswith("subscription,meter,day,")
    for kind, number in (("account_statement", "KA-K-10400-2026-09"), ("credit_statement", "GA-K-10400-2026-09")):
        again = client.post(path, data={**form, "type": kind}, follow_redirects=True)
        assert f"{number} is in the archive" in text_of(again.text)


def test_what_cannot_be_made_is_said_on_the_page_and_the_form_keeps_its_values(platform: Platform) -> None:
    client = platform.client()
    path = "/customers/K-10400/documents"
    token = token_of(client.get(path).text)
    form = {"form_token": token, "type": "delivery_note", "first": "2026-09-30", "last": "2026-09-01"}
    wrong = client.post(path, data=form)
    assert wrong.status_code == 422
    assert "Choose a first and a last day" in text_of(wrong.text)
    assert 'value="2026-09-30"' in wrong.text
    assert client.post(path, data={**form, "form_token": "x"}).status_code == 403
    assert client.post(path, data={**form, "type": "invoice"}).status_code == 422
    assert client.post(path, data={**form, "type": "reminder", "level": "²", "due_on": "x"}).status_code == 422


def test_a_code_with_signs_is_escaped_and_its_number_is_its_own(platform: Platform) -> None:
    client = platform.client()
    path = path_of("customers", HOSTILE_CODE) + "/documents"
    page = client.get(path)
    assert page.status_code == 200
    form = {"form_token": token_of(page.text), "type": "account_statement", "first": "2026-09-01", "last": "2026-09-30"}
    shown = client.post(path, data=form, follow_redirects=True)
    assert shown.status_code == 200, text_of(shown.text)
    assert re.search(r"KA-K-99--~[0-9a-f]{8}-2026-09 is in the archive", text_of(shown.text))
    assert "<script>alert" not in shown.text


def test_a_reader_sees_no_form(platform: Platform) -> None:
    client = platform.client(READER)
    page = client.get("/customers/K-10400/documents")
    assert page.status_code == 200
    assert '<form class="filter"' not in page.text
    assert client.post("/customers/K-10400/documents", data={"type": "usage_record"}).status_code == 403
