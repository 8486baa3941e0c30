"""Credit notes by hand over REST and in the terminal: by an amount, as a preview, and never beyond what is left."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
import typer

from cluster.cli import context
from cluster.cli import credit_notes as commands
from cluster.client import Client
from pipelines.demo_generator import TENANT
from tests.deployments.conftest import Api, Tenant

pytestmark = pytest.mark.postgres
BUYER = {
    "code": "acme", "name": "ACME GmbH", "country": "DE", "tax_treatment": "domestic",
    "address": {"street": "Gasse 1", "post_code": "10115", "city": "Berlin"}, "einvoice": "factur-x",
}  # fmt: skip


@pytest.fixture
def tenant(api: Api) -> Tenant:
    """An e-invoice of 119.00 at 19 % and 107.00 (60 + 40) at 7 %: 226.00."""
    made = api.tenant(kind="test", test_clock="2026-01-10", legal_entity=TENANT["legal_entity"])
    codes = [("full", "19"), ("less", "7")]
    charges = [("a", "100", "full"), ("b", "60", "less"), ("c", "40", "less")]
    plan = {
        "code": "fees", "currency": "EUR", "interval": "month",
        "charges": [
            {"code": code, "kind": "one_off", "tax": tax, "price": {"model": "flat", "amount": amount}}
            for code, amount, tax in charges
        ],
    }  # fmt: skip
    steps: list[dict[str, Any]] = [
        {"tax_code": {"code": code, "percents": [{"from": "2021-01-01", "percent": percent}]}}
        for code, percent in codes
    ]
    steps += [{"publish": {"plan": plan}}, {"customer": BUYER}]
    steps += [{"subscribe": {"code": "s1", "customer": "acme", "plan": "fees"}}]
    answer = made.post("/v1/steps", [{"at": "2026-01-01", **step} for step in steps])
    assert answer.status_code == 201, answer.text
    run = made.post("/v1/bill-runs", {"up_to": "2026-01-02"})
    assert run.status_code == 202, run.text
    return made


def number_of(tenant: Tenant) -> str:
    (invoice,) = tenant.get("/v1/invoices?type=invoice").json()["items"]
    assert invoice["gross"] == "226.00"
    return str(invoice["number"])


def test_an_amount_is_spread_and_its_note_is_a_valid_e_invoice(tenant: Tenant) -> None:
    number = number_of(tenant)
    wish = {"document": number, "amount": "75.33", "reason": "Outage"}
    note = tenant.post("/v1/credit-notes", wish).json()
    assert (note["gross"], note["net"], note["tax"], note["refers_to"]) == ("75.33", "66.67", "8.66", number)
    assert [one["amount"] for one in note["lines"]] == ["33.33", "20.00", "13.34"]
    read = tenant.get(f"/v1/invoices/{note['number']}").json()
    assert (read["file"], read["e_invoice"], read["reason"]) == ("archived", True, "Outage"), read["file_reason"]
    # One cent alone, of which no tax comes: the official rules let it pass, too.
    cent = tenant.post("/v1/credit-notes", {"document": number, "amount": "0.03"}).json()
    assert tenant.get(f"/v1/invoices/{cent['number']}").json()["e_invoice"] is True
    rest = tenant.post("/v1/credit-notes", {"document": number, "amount": "150.64"}).json()
    notes = [note, cent, rest]
    assert [sum(Decimal(one[key]) for one in notes) for key in ("net", "tax", "gross")] == [
        Decimal("200.00"), Decimal("26.00"), Decimal("226.00"),
    ]  # fmt: skip


def test_a_preview_is_what_is_written_then_and_writes_nothing(tenant: Tenant) -> None:
    number = number_of(tenant)
    wish = {"document": number, "amount": "100.00", "reason": "Goodwill"}
    reader = tenant.key_with("billing:read")
    shown = tenant.post("/v1/credit-notes/preview", wish, key=reader).json()
    assert (shown["left"], shown["left_after"]) == ("226.00", "126.00")
    assert tenant.get("/v1/invoices?type=credit_note").json()["items"] == []
    assert tenant.post("/v1/credit-notes", wish, key=reader).status_code == 403
    note = tenant.post("/v1/credit-notes", wish).json()
    keys = ("net", "tax", "gross", "due", "date", "lines", "taxes", "allowances")
    assert {key: shown[key] for key in keys} == {key: note[key] for key in keys}
    assert tenant.post("/v1/credit-notes/preview", wish).json()["left_after"] == "26.00"
    assert tenant.post("/v1/credit-notes/preview", {"document": number}).status_code == 409  # whole: parts are credited


@pytest.mark.parametrize(
    ("wish", "pointer"),
    [
        ({"amount": "226.01"}, "/amount"),
        ({"amount": "0.00"}, "/amount"),
        ({"amount": "0.001"}, "/amount"),
        ({"amount": "much"}, "/amount"),
        ({"amount": "1.00", "lines": [{"line": 1}]}, "/amount"),
        ({"lines": [{"line": 4}]}, "/lines/0/line"),
    ],
)
def test_what_cannot_be_credited_is_named_by_its_place(tenant: Tenant, wish: dict[str, Any], pointer: str) -> None:
    for path in ("/v1/credit-notes", "/v1/credit-notes/preview"):
        answer = tenant.post(path, {"document": number_of(tenant), **wish})
        assert answer.status_code == 422, answer.text
        assert [one["pointer"] for one in answer.json()["errors"]] == [pointer]
    assert tenant.get("/v1/invoices?type=credit_note").json()["items"] == []


def test_the_terminal_shows_then_writes(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    number = number_of(tenant)
    asked: list[Any] = []

    def client(*given: Any) -> Client:
        asked.append(given[2])
        return Client("", tenant.key, http=tenant.api.http)

    monkeypatch.setattr(context, "tenant_client", client)

    def call(lines: list[str], amount: str | None, dry_run: bool) -> str:
        wish = {"document": number, "reason": "Outage", **commands.wanted(lines, amount)}
        commands.write(wish, dry_run, None, None, None, False)
        return capsys.readouterr().out

    assert f"would credit {number}: net 88.49, tax 11.51, gross 100.00 EUR" in call([], "100.00", True)
    assert tenant.get("/v1/invoices?type=credit_note").json()["items"] == []
    made = call(["1=50", "3"], None, False)
    (note,) = tenant.get("/v1/invoices?type=credit_note").json()["items"]
    assert f"credit note {note['number']} of {number}: net 90.00, tax 12.30, gross 102.30 EUR" in made
    assert asked == [["billing:read"], ["billing:write"]]
    for lines, amount in (([], "200.00"), (["x"], None), (["1="], None), (["1"], "5.00")):
        with pytest.raises(typer.Exit) as refused:
            call(lines, amount, False)
        assert refused.value.exit_code == context.WRONG_CALL
