"""What documents say of orders and references, shown and changed on the pages of subscriptions and customers."""

from __future__ import annotations

import html
import re

import pytest
from platform_under_test import HOSTILE, HOSTILE_CODE, READER, Platform, token_of

from deployments.front.page import path_of

pytestmark = pytest.mark.postgres
LEITWEG = "04011000-1234512345-06"


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def test_the_references_of_a_subscription_are_set_on_its_page(platform: Platform) -> None:
    client = platform.client()
    path = "/subscriptions/S-10001"
    assert "As the customer's data say" in text_of(client.get(path).text)
    form = {"form_token": token_of(client.get(f"{path}/references").text)}
    wrong = client.post(f"{path}/references", data={**form, "order_reference": HOSTILE, "leitweg_id": LEITWEG + "7"})
    assert wrong.status_code == 422
    assert "check digits are wrong" in text_of(wrong.text)
    assert HOSTILE not in wrong.text
    assert f'value="{html.escape(HOSTILE)}"' in wrong.text.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")
    good = {**form, "order_reference": "4711", "cost_centre": " K-7 ", "leitweg_id": LEITWEG}
    assert client.post(f"{path}/references", data=good).status_code == 200
    shown = text_of(client.get(path).text)
    assert f"Order no. 4711 Cost centre K-7 Leitweg-ID {LEITWEG}" in shown
    assert client.post(f"{path}/references", data={**good, "cost_centre": ""}).status_code == 200
    assert "Cost centre" not in text_of(client.get(path).text)


def test_what_goes_on_one_document_of_a_customer_is_set_on_his_page(platform: Platform) -> None:
    client = platform.client()
    path = path_of("customers", HOSTILE_CODE)
    assert "One document per customer (as for everybody)" in text_of(client.get(path).text)
    form = {"form_token": token_of(client.get(f"{path}/references").text)}
    assert client.post(f"{path}/references", data={**form, "document_per": "month"}).status_code == 422
    good = {**form, "document_per": "cost_centre", "leitweg_id": LEITWEG}
    assert client.post(f"{path}/references", data=good).status_code == 200
    shown = text_of(client.get(path).text)
    assert "One document per cost centre" in shown
    assert f"Leitweg-ID {LEITWEG}" in shown
    assert client.post(f"{path}/references", data=form).status_code == 200
    shown = text_of(client.get(path).text)
    assert "One document per customer (as for everybody)" in shown
    assert LEITWEG not in shown


def test_who_may_only_read_sees_no_form_and_changes_nothing(platform: Platform) -> None:
    reader = platform.client(READER)
    assert "/references" not in reader.get("/subscriptions/S-10001").text
    assert reader.get("/subscriptions/S-10001/references").status_code == 403
    assert reader.post("/subscriptions/S-10001/references", data={"order_reference": "1"}).status_code == 403
    assert reader.post("/customers/K-10400/references", data={"document_per": "order"}).status_code == 403


def test_a_form_of_another_page_changes_nothing(platform: Platform) -> None:
    client = platform.client()
    assert client.post("/subscriptions/S-10001/references", data={"cost_centre": "X"}).status_code == 403
    assert client.post("/customers/K-10400/references", data={"document_per": "order"}).status_code == 403
