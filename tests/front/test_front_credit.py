"""Crediting an invoice in the browser: chosen, looked at, written; refused in place and to who has no right."""

from __future__ import annotations

import html
import re
from decimal import Decimal

import httpx
import pytest
from platform_under_test import READER, Platform
from playwright.sync_api import Browser, expect
from test_front_browser import BEYOND, PHONE, WIDE, findings, signed_in
from test_front_documents import text_of, token_of

from billing.document_json import document_from
from deployments.front.documents import credit
from deployments.front.page import path_of
from storage.sql import bill_runs, invoices

pytestmark = pytest.mark.postgres
REASON = "Ausfall am 3. März"


@pytest.fixture
def path(platform: Platform) -> str:
    """The page of an invoice over some amount and several lines that nobody has credited yet."""
    with platform.services.database.tenant(platform.tenant_id) as connection:
        for row in invoices.page(connection, type="invoice", limit=500):
            found = invoices.get(connection, row["number"])
            if row["gross"] > 20 and not found["referred_by"] and len(found["document"].lines) > 1:
                return path_of("invoices", row["number"])
    raise AssertionError("no invoice is left to credit")


def form_of(client: httpx.Client, path: str, **said: str | list[str]) -> dict[str, str | list[str]]:
    page = client.get(f"{path}/credit")
    assert page.status_code == 200, text_of(page.text)
    return {"form_token": token_of(page.text), "kind": "amount", "reason": REASON, **said}


def confirmation(page: str) -> dict[str, str | list[str]]:
    """The hidden fields of the form that writes."""
    (form,) = re.findall(r'<form[^>]*id="confirm".*?</form>', page, re.DOTALL)
    fields: dict[str, str | list[str]] = {}
    for name, value in re.findall(r'name="(\w+)" value="([^"]*)"', form):
        value = html.unescape(value)
        if name in ("picked", "amounts"):
            fields[name] = [*fields.get(name, []), value]
        else:
            fields[name] = value
    return fields


def test_an_amount_is_looked_at_then_written_and_linked(platform: Platform, path: str) -> None:
    client = platform.client()
    assert f'href="{path}/credit"' in client.get(path).text
    shown = client.post(f"{path}/credit", data=form_of(client, path, amount="12.50"))
    assert shown.status_code == 200, text_of(shown.text)
    assert "Write the credit note of 12.50\u00a0EUR" in shown.text
    assert "Credited 12.50" in text_of(shown.text).replace("\u00a0", " ")
    assert "Credit note" not in text_of(client.get(path).text)  # looking writes nothing
    fields = confirmation(shown.text)
    made = client.post(f"{path}/credit", data=fields)
    assert made.status_code == 200, text_of(made.text)
    written = re.search(r"Credit note (\S+) is written", text_of(made.text))
    assert written is not None
    note = client.get(path_of("invoices", written[1]))
    assert "12.50" in text_of(note.text)
    assert REASON in text_of(note.text)
    again = client.post(f"{path}/credit", data=fields)  # the same click twice
    assert again.status_code == 409
    assert "credited in the meantime" in text_of(again.text)
    assert len(re.findall(r"credited=", str(made.url))) == 1


def test_lines_are_credited_in_part_and_whole(platform: Platform, path: str) -> None:
    client = platform.client()
    page = client.get(f"{path}/credit").text
    rows = len(re.findall(r'name="amounts"', page))
    document = document_from(client.get(f"{path}?format=json").json())
    first = next(number for number, line in enumerate(document.lines, start=1) if line.amount > Decimal("0.01"))
    other = next(n for n, line in enumerate(document.lines, start=1) if line.amount > 0 and n != first)
    amounts = ["" for _ in range(rows)]
    amounts[first - 1] = "0.01"
    said = form_of(client, path, kind="lines", amounts=amounts, picked=[str(other)])
    shown = client.post(f"{path}/credit", data=said)
    assert shown.status_code == 200, text_of(shown.text)
    made = client.post(f"{path}/credit", data=confirmation(shown.text))
    number = re.search(r"Credit note (\S+) is written", text_of(made.text))
    assert number is not None
    note = document_from(client.get(path_of("invoices", number[1]) + "?format=json").json())
    assert {one.corrects.line: one.stated for one in note.lines if one.corrects} == {
        first: Decimal("0.01"), other: document.lines[other - 1].stated,
    }  # fmt: skip


def test_a_whole_invoice_is_credited_and_then_nothing_is_left(platform: Platform, path: str) -> None:
    client = platform.client()
    shown = client.post(f"{path}/credit", data=form_of(client, path, kind="whole"))
    made = client.post(f"{path}/credit", data=confirmation(shown.text))
    assert "is written" in text_of(made.text)
    assert f'href="{path}/credit"' not in made.text
    assert "Nothing is left to credit" in text_of(client.get(f"{path}/credit").text)
    note = re.search(r"Credit note (\S+) is written", text_of(made.text))
    assert note is not None
    refused = client.get(path_of("invoices", note[1]) + "/credit")
    assert refused.status_code == 422
    assert "Only invoices are credited" in text_of(refused.text)


def test_what_is_wrong_is_said_at_its_field_and_nothing_typed_is_lost(platform: Platform, path: str) -> None:
    client = platform.client()
    for said, at, words in (
        ({"amount": "9999999"}, "amount", "Enter an amount of at most"),
        ({"amount": "0.001"}, "amount", "Enter an amount of at most"),
        ({"amount": "much"}, "amount", "Enter an amount, such as 12.50"),
        ({"amount": "5", "reason": " "}, "reason", "Say why, in one line"),
        ({"kind": "lines"}, "lines", "Choose at least one line"),
        ({"kind": "lines", "amounts": ["9999999"]}, "line-1", "Line 1: at most"),
        ({"kind": "lines", "amounts": ["x"]}, "line-1", "Enter an amount, such as 12.50"),
        ({"kind": "whole", "amount": "5"}, "amount", "An amount is entered, but not chosen"),
        ({"kind": "lines", "picked": ["1"], "amount": "5"}, "amount", "An amount is entered, but not chosen"),
        ({"kind": "whole", "amounts": ["", "5"]}, "lines", "lines are not chosen above"),
        ({"kind": "amount", "amount": "5", "picked": ["1"]}, "lines", "lines are not chosen above"),
    ):
        answer = client.post(f"{path}/credit", data=form_of(client, path, **said))
        assert answer.status_code == 422
        assert f'<a href="#{at}">' in answer.text
        assert f'id="{at}"' in answer.text
        assert words in text_of(answer.text)
        assert "confirm" not in re.findall(r'<form[^>]*id="(\w+)"', answer.text)
        for value in ("9999999", "0.001", "much"):
            if value in str(said):
                assert f'value="{value}"' in answer.text
    german = platform.client(**{"Accept-Language": "de"})
    shown = german.post(f"{path}/credit", data=form_of(german, path, amount="12,50"))
    assert "Rechnungskorrektur über 12,50\u00a0EUR schreiben" in shown.text


def test_a_long_invoice_comes_in_pages_of_lines(platform: Platform, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credit, "LINES_SHOWN", 1)
    client = platform.client()
    first = client.get(f"{path}/credit").text
    assert len(re.findall(r'name="amounts"', first)) == 1
    assert f'href="{path}/credit?from=2"' in first
    second = client.get(f"{path}/credit?from=2").text
    assert 'id="line-2"' in second
    assert f'href="{path}/credit?from=1"' in second
    said = form_of(client, path, kind="lines", first="2", amounts=["0.01"])
    made = client.post(f"{path}/credit", data=confirmation(client.post(f"{path}/credit", data=said).text))
    number = re.search(r"Credit note (\S+) is written", text_of(made.text))
    assert number is not None
    note = document_from(client.get(path_of("invoices", number[1]) + "?format=json").json())
    assert [one.corrects.line for one in note.lines if one.corrects] == [2]


def test_while_a_bill_run_goes_on_nothing_is_credited(
    platform: Platform, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = platform.client()
    said = form_of(client, path, amount="1.00")
    fields = confirmation(client.post(f"{path}/credit", data=said).text)
    monkeypatch.setattr(bill_runs, "active", lambda _: {"id": "some"})
    for sent in (said, fields):
        refused = client.post(f"{path}/credit", data=sent)
        assert refused.status_code == 409
        assert "A bill run is going on" in text_of(refused.text)
        assert 'value="1.00"' in refused.text


def test_only_who_may_bill_credits_and_only_by_the_pages_own_form(platform: Platform, path: str) -> None:
    reader = platform.client(READER)
    assert f'href="{path}/credit"' not in reader.get(path).text
    assert reader.get(f"{path}/credit").status_code == 403
    assert reader.post(f"{path}/credit", data={"kind": "whole", "reason": REASON}).status_code == 403
    client = platform.client()
    said = form_of(client, path, kind="whole", step="write", seen="0", form_token="x")
    assert client.post(f"{path}/credit", data=said).status_code == 403
    assert client.get("/invoices/none/credit").status_code == 404


@pytest.mark.browser
@pytest.mark.parametrize(("size", "scheme"), [(WIDE, "light"), (PHONE, "dark")])
def test_the_form_reads_well_and_writes_at_a_desk_and_on_a_phone(
    chromium: Browser, platform: Platform, path: str, size: tuple[int, int], scheme: str
) -> None:
    with signed_in(chromium, platform, size, scheme) as (page, odd):
        page.goto(path)
        page.click(f'a[href="{path}/credit"]')
        assert findings(page) == []
        page.check("input[value=amount]")
        page.fill("#amount", "7.77")
        page.fill("#reason", REASON)
        page.click("text=Show what will be written")
        expect(page.locator("#confirm button.primary")).to_have_text("Write the credit note of 7.77\u00a0EUR")
        assert findings(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert page.evaluate(BEYOND) == []
        page.click("#confirm button.primary")
        expect(page.locator("[role=status]")).to_contain_text("is written")
        page.click("[role=status] a")
        expect(page.locator("h1")).to_be_visible()
        assert odd == []
