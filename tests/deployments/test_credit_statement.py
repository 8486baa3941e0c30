"""A customer's credit statement from top-ups, reservations, bill runs and credit notes, held against the ledger."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import typer

from cluster.cli import context
from cluster.cli import documents as commands
from cluster.client import Client
from storage.sql.database import Database
from storage.usage_log.partitions import partition_of
from tests.deployments.conftest import Api, Tenant, bearer
from tests.deployments.test_accompanying_routes import event, made, pdf_of

pytestmark = pytest.mark.postgres
MONTHS = {"01": "31", "02": "28", "03": "31", "04": "30"}


def top_up(tenant: Tenant, amount: str, kind: str, at: str, expires: str | None = None, currency: str = "EUR") -> None:
    form = {"customer": "acme", "amount": amount, "kind": kind, "currency": currency}
    form |= {"expires": expires} if expires else {}
    answer = tenant.post(f"/v1/top-ups?at={at}", form)
    assert answer.status_code == 201, answer.text


def bill(tenant: Tenant, day: str) -> None:
    assert tenant.post("/v1/test-clock/advance", {"to": day}).status_code == 200
    run = tenant.post("/v1/bill-runs", {"up_to": f"{day[:8]}01"})
    assert run.status_code == 202, run.text


def statement(tenant: Tenant, month: str, currency: str = "EUR") -> dict[str, Any]:
    form = {"type": "credit_statement", "from": f"2026-{month}-01", "to": f"2026-{month}-{MONTHS[month]}"}
    return made(tenant, form | {"currency": currency})["document"]["credit"]


def moved(entries: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(one["booked_on"], one["kind"], one["amount"]) for one in entries]


@pytest.fixture(scope="module")
def lived(api: Api) -> Tenant:
    """Four months: credit of both kinds, one that expires unused, one that a reservation holds beyond its end, an
    invoice taken back whole and one in part, and a wallet in dollars."""
    tenant = api.tenant(kind="test", test_clock="2026-01-06")
    tenant.catalog()
    top_up(tenant, "5.00", "promotional", "2026-01-05", "2026-02-15")
    top_up(tenant, "30.00", "purchased", "2026-01-05")
    top_up(tenant, "7.00", "purchased", "2026-01-05", currency="USD")
    top_up(tenant, "20.00", "promotional", "2026-01-06", "2026-01-20")
    days = [("e1", "2026-01-10T10:00:00Z", "100"), ("e2", "2026-02-10T10:00:00Z", "150")]
    assert tenant.post("/v1/test-clock/advance", {"to": "2026-01-10T12:00:00+01:00"}).status_code == 200
    reservation = {"customer": "acme", "id": "r1", "amount": "8.00", "expires": "2026-03-10T00:00:00+01:00"}
    assert tenant.post("/v1/reservations", reservation).json()["granted"] == "8.00"  # of the 20.00 that end in January
    assert tenant.usage(event(*days[0])).status_code == 200
    bill(tenant, "2026-02-02")
    (invoice,) = tenant.get("/v1/invoices").json()["items"]
    assert tenant.post("/v1/test-clock/advance", {"to": "2026-02-20"}).status_code == 200
    assert tenant.post("/v1/reservations/r1/commit", {"amount": "3.00"}).json()["committed"] == "3.00"
    assert tenant.post("/v1/credit-notes", {"document": invoice["number"]}).status_code == 201
    assert tenant.usage(event(*days[1])).status_code == 200
    bill(tenant, "2026-03-02")
    second = tenant.get("/v1/invoices?order=oldest").json()["items"][-1]
    assert second["type"] == "invoice"
    part = {"document": second["number"], "lines": [{"line": 1, "amount": "4.00"}]}
    assert tenant.post("/v1/credit-notes", part).status_code == 201
    assert tenant.post("/v1/test-clock/advance", {"to": "2026-04-05"}).status_code == 200
    return tenant


def test_each_month_says_what_moved_and_goes_on_where_the_one_before_ended(lived: Tenant) -> None:
    months = {month: statement(lived, month) for month in MONTHS}
    assert moved(months["01"]["entries"]) == [
        ("2026-01-05", "promotional", "5"),
        ("2026-01-05", "purchased", "30"),
        ("2026-01-06", "promotional", "20"),
        ("2026-01-20", "expired", "-12"),  # 8.00 of it are reserved, so they are still there
    ]
    # 10.00 of usage: 5.00 promotional before tax, the rest with tax out of what was paid in. The mirror gives both
    # back: what was granted has expired by then, and is gone the same day.
    assert moved(months["02"]["entries"]) == [
        ("2026-02-02", "invoice", "-10.95"),
        ("2026-02-20", "returned", "10.95"),
        ("2026-02-20", "expired", "-5"),  # of the reservation 3.00 were used
        ("2026-02-20", "expired", "-5"),
    ]
    assert [one["kind"] for one in months["03"]["entries"]] == ["invoice", "credit_note", "set_off"]
    for before, after in (("01", "02"), ("02", "03"), ("03", "04")):
        assert months[after]["opening"] == months[before]["closing"]
    for one in months.values():
        amounts = [Decimal(entry["amount"]) for entry in one["entries"]]
        assert Decimal(one["opening"]) + sum(amounts) == Decimal(one["closing"])


def test_the_closing_balance_is_what_the_lane_says_is_there(lived: Tenant) -> None:
    wallets = {one["currency"]: one for one in lived.get("/v1/wallets/acme?fresh=true").json()["wallets"]}
    for currency in ("EUR", "USD"):
        there = Decimal(wallets[currency]["balance"]) + Decimal(wallets[currency]["committed"])
        assert Decimal(statement(lived, "04", currency)["closing"]) == there
    assert Decimal(wallets["EUR"]["balance"]) > 0
    assert moved(statement(lived, "01", "USD")["entries"]) == [("2026-01-05", "purchased", "7")]


def sums_of(database: Database, tenant: Tenant, question: str) -> Decimal:
    with database.tenant(tenant.id) as connection:
        row = connection.execute(question).fetchone()  # pyright: ignore[reportArgumentType] - words of this module
    assert row is not None
    return Decimal(row["amount"])


def test_the_sums_are_those_of_the_ledger(lived: Tenant) -> None:
    """Purchased credit and credit notes by postings, promotional credit by the allowances of the documents."""
    entries = [one for month in MONTHS for one in statement(lived, month)["entries"]]
    by_kind = {
        kind: sum((Decimal(one["amount"]) for one in entries if one["kind"] == kind), Decimal(0))
        for kind in ("invoice", "returned", "credit_note", "set_off")
    }
    database = lived.api.services.database
    ledger = sums_of(
        database, lived, "SELECT coalesce(sum(CASE WHEN debit = 'prepaid' THEN amount WHEN credit = 'prepaid'"
        " THEN -amount ELSE 0 END), 0) AS amount FROM postings WHERE currency = 'EUR'",
    )  # fmt: skip
    granted = Decimal(0)
    for one in lived.get("/v1/invoices").json()["items"]:
        document = lived.get(f"/v1/invoices/{one['number']}").json()
        allowed = sum((Decimal(a["amount"]) for a in document["allowances"] if a["kind"] == "promotional"), Decimal(0))
        if one["type"] == "invoice":
            granted += allowed
        elif Decimal(document["prepaid"]):  # the mirror; one over a line gives no credit back
            granted -= allowed
    assert granted
    assert -(by_kind["invoice"] + by_kind["returned"]) == ledger + granted
    owed = sums_of(
        database, lived,
        "SELECT coalesce(sum(owed), 0) AS amount FROM receivable_documents WHERE type = 'credit_note'",
    )  # fmt: skip
    assert by_kind["credit_note"] == -by_kind["set_off"] == -owed > 0


def test_it_is_numbered_archived_and_says_what_expired(lived: Tenant) -> None:
    found = made(lived, {"type": "credit_statement", "from": "2026-02-01", "to": "2026-02-28", "currency": "EUR"})
    again = made(lived, {"type": "credit_statement", "from": "2026-02-01", "to": "2026-02-28", "currency": "EUR"})
    assert found["files"] == again["files"]
    assert {one["number"] for one in found["files"]} == {"GA-acme-2026-02"}
    assert {Decimal(one["amount"]) for one in found["files"]} == {Decimal(found["document"]["credit"]["closing"])}
    text = pdf_of(lived, found["files"])
    assert "Guthabenauszug GA-acme-2026-02" in text
    assert "Zurück aus Rechnungskorrektur" in text
    assert "Verfallen, gewährtes Guthaben" in text
    which = lived.post("/v1/customers/acme/documents", {"type": "credit_statement", "from": "2026-02-01",
                                                        "to": "2026-02-28"})  # fmt: skip
    assert which.json()["errors"][0] == {
        "pointer": "/currency", "detail": "there are documents in EUR, USD: name one of them",
    }  # fmt: skip
    other = made(lived, {"type": "credit_statement", "from": "2026-01-01", "to": "2026-01-31", "currency": "USD"})
    assert other["document"]["number"] == "GA-acme-2026-01-USD"
    assert json.dumps(other).count("GA-acme-2026-01-USD") >= 3


def test_the_terminal_makes_it_and_writes_the_archived_files(
    lived: Tenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(context, "tenant_client", lambda *_: Client("", lived.key, http=lived.api.http))
    form = {"type": "credit_statement", "from": "2026-03-01", "to": "2026-03-31", "currency": "EUR", "level": None}
    commands.make(form, "acme", tmp_path, None, None, None, False)
    pdf, rows = (tmp_path / f"GA-acme-2026-03.{kind}" for kind in ("pdf", "csv"))
    assert pdf.read_bytes().startswith(b"%PDF-")
    amounts = [line.split(",") for line in rows.read_text("utf-8").splitlines()]
    assert amounts[0] == ["booked_on", "kind", "number", "text", "expires_on", "amount", "balance", "currency"]
    closing = statement(lived, "03")["closing"]
    assert amounts[-1][6] == closing
    assert f"{closing} EUR at the end" in capsys.readouterr().out
    with pytest.raises(typer.Exit) as refused:
        commands.make({"type": "letter"}, "acme", None, None, None, None, False)
    assert refused.value.exit_code == context.WRONG_CALL


def test_a_customer_whose_partition_moved_has_all_of_his_rows(api: Api) -> None:
    """Reserved in one lane, used in another: what expired is the same as if he had stayed."""
    tenant = api.tenant(kind="test", test_clock="2026-01-05")
    tenant.catalog()
    top_up(tenant, "20.00", "purchased", "2026-01-05", "2026-01-20")
    assert tenant.post("/v1/reservations", {"customer": "acme", "id": "r1", "amount": "8.00"}).status_code == 200
    partition = partition_of(api.services.router._genesis.seed, tenant.id, "acme")  # type: ignore[attr-defined]
    owners = {one["lane"]: one["owned"] for one in platform(api, "GET", "/v1/lanes")["items"]}
    [home] = [lane for lane, owned in owners.items() if partition in owned]
    away, further = [lane for lane in owners if lane != home][:2]
    for lane, day, amount in ((away, "2026-01-25", "3.00"), (further, "2026-02-05", None)):
        assert platform(api, "POST", "/v1/lanes/moves", {"partition": partition, "lane": lane})["moved"]
        assert tenant.post("/v1/test-clock/advance", {"to": day}).status_code == 200
        if amount:
            assert tenant.post("/v1/reservations/r1/commit", {"amount": amount}).json()["committed"] == amount
    platform(api, "POST", "/v1/lanes/moves", {"partition": partition, "lane": home})
    assert moved(statement(tenant, "01")["entries"]) == [
        ("2026-01-05", "purchased", "20"),
        ("2026-01-20", "expired", "-12"),
        ("2026-01-25", "expired", "-5"),
    ]
    [wallet] = tenant.get("/v1/wallets/acme?fresh=true").json()["wallets"]
    assert (wallet["balance"], wallet["committed"]) == ("0.00", "3.00")
    assert statement(tenant, "01")["closing"] == "3"


def platform(api: Api, method: str, path: str, body: Any = None) -> Any:
    answer = api.http.request(method, path, json=body, headers=bearer(api.platform_key))
    assert answer.status_code == 200, answer.text
    return answer.json()
