"""The product's main job in one process, everything real but Ray: usage in, bills out, numbered, archived, once."""

import asyncio
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl
import pytest
import yaml

from actors.local_router import LocalUsageRouter
from billing.errors import Conflict, InvalidInput
from billing.usage import EVENT_SCHEMA, Verdict
from pipelines.bill_run import BillRunDriver
from pipelines.usage_mapping import UsageMapping
from pipelines.verify_invoices import verify_run
from storage.archive import Archive
from storage.master_chain import MasterChain
from storage.object_store import LocalObjectStore
from storage.sources.tables import read_table
from storage.sql import invoices, overview, steps, tenants
from storage.sql.database import Database
from storage.sql.embedded import EmbeddedPostgres
from storage.sql.migrate import migrate

pytestmark = pytest.mark.postgres
FOCUS = Path(__file__).parents[2] / "examples" / "focus"
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


@dataclass
class World:
    """A platform without HTTP and Ray: one database, one object store, shards in this process."""

    database: Database
    store: LocalObjectStore
    masters: MasterChain
    router: LocalUsageRouter

    def tenant(self, **form: Any) -> str:
        whole = {"currency": "USD", "timezone": "UTC", "country": "US", **form}
        with self.database.system() as connection:
            made = tenants.create(
                connection, code=uuid4().hex, name="T", kind="live", form=whole, generated=True, now=NOW
            )
        with self.database.tenant(made.id) as connection:
            steps.start_master(connection, made.id, whole, "test")
            tenants.put_legal_entity(
                connection, made.id, "main", {"name": "T Inc"}, country="US", now=NOW, is_default=True
            )
        self.masters.project(self.database, made.id)
        return made.id

    def apply(self, tenant_id: str, forms: list[dict[str, Any]]) -> None:
        with self.database.tenant(tenant_id) as connection:
            change = steps.append_steps(connection, tenant_id, forms, "test")
        self.masters.project(self.database, tenant_id, up_to=change.number)

    def send(self, tenant_id: str, events: pl.DataFrame) -> list[Verdict]:
        number, _ = self.masters.newest(tenant_id)
        result = asyncio.run(self.router.ingest(tenant_id, events, master_number=number))
        return [Verdict(int(verdict)) for verdict in result.verdicts]

    def bill(self, tenant_id: str, up_to: date) -> dict[str, Any]:
        driver = BillRunDriver(self.database, self.store, self.masters, Archive(self.database, self.store), lambda: NOW)
        run = driver.plan(tenant_id, up_to, "test")
        # Whatever a look at the run finds: these lives have sums that jump, and nobody to approve them.
        return driver.drive(tenant_id, run["id"], approve=True)

    def documents(self, tenant_id: str) -> list[Any]:
        with self.database.tenant(tenant_id) as connection:
            rows = invoices.page(connection, limit=1000, descending=False)
            return [invoices.get(connection, row["number"])["document"] for row in rows]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder:
        postgres = EmbeddedPostgres(Path(folder) / "postgres")
        dsn = postgres.start()
        try:
            migrate(dsn)
            store = LocalObjectStore(Path(folder) / "objects")
            masters = MasterChain(store)
            router = LocalUsageRouter.open(store, shards=3, master=masters)
            with Database(dsn) as database:
                yield World(database, store, masters, router)
            asyncio.run(router.close())
        finally:
            postgres.stop()


def event(id_: str, at: str, amount: str, customer: str = "acme") -> dict[str, Any]:
    time = datetime.fromisoformat(at).replace(tzinfo=UTC)
    data = f'{{"amount":"{amount}"}}'
    return {
        "source": "s",
        "id": id_,
        "type": "use",
        "customer": customer,
        "subscription": None,
        "time": time,
        "data": data,
    }


def frame(*events: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(list(events), schema=EVENT_SCHEMA)


CATALOG: list[dict[str, Any]] = [
    {"at": "2026-01-01", "tax_code": {"code": "t", "percents": [{"from": "2020-01-01", "percent": "0"}]}},
    {"at": "2026-01-01", "meter": {"code": "use", "event_type": "use", "aggregation": "sum", "value": "amount"}},
    {"at": "2026-01-01", "publish": {"plan": {"code": "p", "currency": "USD", "interval": "month", "charges": [
        {"code": "c", "kind": "usage", "meter": "use", "tax": "t", "price": {"model": "per_unit", "unit": "2"}}]}}},
]  # fmt: skip
ACME: list[dict[str, Any]] = [
    {"at": "2026-01-01", "customer": {"code": "acme", "name": "A", "country": "US", "tax_treatment": "outside_scope"}},
    {"at": "2026-01-01", "subscribe": {"code": "s1", "customer": "acme", "plan": "p", "anchor": "calendar"}},
]


def test_real_usage_becomes_numbered_archived_documents_that_add_up_to_the_last_digit(world: World) -> None:
    tenant = world.tenant()
    for name in ("catalog.yaml", "customers.yaml"):
        world.apply(tenant, yaml.safe_load((FOCUS / name).read_text())["steps"])
    mapping = UsageMapping.parse(yaml.safe_load((FOCUS / "mapping.yaml").read_text()))
    rows = pl.concat(read_table(FOCUS / "focus_usage.csv", missing=mapping.missing))
    events = mapping.events(rows)
    assert set(world.send(tenant, events)) == {Verdict.ACCEPTED}
    assert set(world.send(tenant, events)) == {Verdict.DUPLICATE}  # sent again: nothing is counted twice
    run = world.bill(tenant, date(2024, 10, 1))
    assert (run["state"], run["parked"]) == ("done", [])
    assert (run["documents"]["made"], run["documents"]["archived"]) == (63, 63)
    documents = world.documents(tenant)
    exact = Fraction(0)
    for document in documents:
        sign = -1 if document.type == "credit_note" else 1
        exact += sign * sum(Fraction(line.explanation["exact"]) for line in document.lines)
        assert sum(line.amount for line in document.lines) == document.net
    prices = zip(rows["ListUnitPrice"], rows["PricingQuantity"], rows["ListCost"], strict=True)
    wanted = sum(Fraction(price) * Fraction(quantity) if price else Fraction(cost) for price, quantity, cost in prices)
    assert exact == wanted
    with world.database.tenant(tenant) as connection:
        assert invoices.number_gaps(connection) == []
    assert world.bill(tenant, date(2024, 10, 1))["documents"]["made"] == 0  # again: nothing new


def test_usage_under_a_key_that_is_assigned_after_its_period_was_billed_is_billed_by_the_next_run(world: World) -> None:
    """Its row lies before the last cut, so only the new master data tells that it is new to billing."""
    tenant = world.tenant()
    world.apply(tenant, CATALOG + ACME)
    sent = frame(event("1", "2026-01-10", "5"), event("2", "2026-01-11", "7", "sim-1"))
    assert world.send(tenant, sent) == [Verdict.ACCEPTED, Verdict.SUSPENDED]
    world.bill(tenant, date(2026, 2, 1))
    customer = {**ACME[0]["customer"], "keys": ["sim-1"]}
    world.apply(tenant, [{"at": "2026-01-01", "customer": customer}])
    world.bill(tenant, date(2026, 3, 1))
    first, second = world.documents(tenant)
    assert (first.net, second.net) == (Decimal("10.00"), Decimal("14.00"))
    assert [(line.correction, line.quantity) for line in second.lines] == [(True, Decimal("7"))]


def test_usage_of_a_customer_who_is_made_after_its_period_was_billed_is_billed_by_the_next_run(world: World) -> None:
    tenant = world.tenant()
    world.apply(tenant, CATALOG)
    sent = frame(event("1", "2026-01-10", "5"), event("2", "2026-01-11", "7", "later"))
    assert world.send(tenant, sent) == [Verdict.SUSPENDED, Verdict.SUSPENDED]
    world.apply(tenant, ACME)
    world.bill(tenant, date(2026, 2, 1))
    assert [document.net for document in world.documents(tenant)] == [Decimal("10.00")]
    late = [{"at": "2026-01-01", **one} for one in (
        {"customer": {"code": "later", "name": "L", "country": "US", "tax_treatment": "outside_scope"}},
        {"subscribe": {"code": "s2", "customer": "later", "plan": "p", "anchor": "calendar"}},
    )]  # fmt: skip
    world.apply(tenant, late)
    world.bill(tenant, date(2026, 3, 1))
    assert [(d.customer, d.net) for d in world.documents(tenant)] == [
        ("acme", Decimal("10.00")),
        ("later", Decimal("14.00")),
    ]


def test_a_new_meter_rates_old_events_of_a_billed_period_as_a_correction(world: World) -> None:
    tenant = world.tenant()
    world.apply(tenant, CATALOG + ACME)
    other = {**event("9", "2026-01-12", "3"), "type": "other"}
    assert world.send(tenant, frame(event("1", "2026-01-10", "5"), other)) == [Verdict.ACCEPTED, Verdict.SUSPENDED]
    world.bill(tenant, date(2026, 2, 1))
    meter = {"code": "use", "event_type": "other", "aggregation": "sum", "value": "amount"}
    world.apply(tenant, [{"at": "2026-01-01", "meter": {**meter, "code": "other"}}])
    world.bill(tenant, date(2026, 3, 1))
    # The meter is there now, no charge bills it: the event is rated, and costs nothing.
    assert [document.net for document in world.documents(tenant)] == [Decimal("10.00")]


def test_late_usage_is_a_correction_of_its_own_period(world: World) -> None:
    tenant = world.tenant()
    world.apply(tenant, CATALOG + ACME)
    world.send(tenant, frame(event("1", "2026-01-10", "5")))
    world.bill(tenant, date(2026, 2, 1))
    world.send(tenant, frame(event("2", "2026-01-31", "1.5"), event("3", "2026-02-02", "2")))
    world.bill(tenant, date(2026, 3, 1))
    last = world.documents(tenant)[-1]
    assert [(line.correction, line.quantity, line.amount) for line in last.lines] == [
        (True, Decimal("1.5"), Decimal("3.00")),
        (False, Decimal("2"), Decimal("4.00")),
    ]


def test_a_run_that_was_planned_while_another_one_ended_is_refused_and_bills_nothing_twice(world: World) -> None:
    tenant = world.tenant()
    world.apply(tenant, CATALOG + ACME)
    world.send(tenant, frame(event("1", "2026-01-10", "5")))
    archive = Archive(world.database, world.store)
    first = BillRunDriver(world.database, world.store, world.masters, archive, lambda: NOW)
    ended: list[str] = []

    class EndsMeanwhile(MasterChain):
        """Between the second plan's reading and its taking the place, the first run begins and ends."""

        def project(self, database: Database, tenant_id: str, *, up_to: int | None = None) -> int:
            if not ended:
                ended.append(first.plan(tenant, date(2026, 2, 1), "test")["id"])
                assert first.drive(tenant, ended[0])["state"] == "done"
            return super().project(database, tenant_id, up_to=up_to)

    second = BillRunDriver(world.database, world.store, EndsMeanwhile(world.store), archive, lambda: NOW)
    with pytest.raises(Conflict, match="ended meanwhile"):
        second.plan(tenant, date(2026, 2, 1), "test")
    assert [document.net for document in world.documents(tenant)] == [Decimal("10.00")]
    assert world.bill(tenant, date(2026, 2, 1))["documents"]["made"] == 0


@pytest.mark.parametrize(
    "series",
    [
        {"invoice": "RE-{n:06}"},  # the same numbers every year
        {"invoice": "A-{yyyy}-{n}", "credit_note": "A-{yyyy}-{n}"},
        {"invoice": "A-{yyyy}"},
        {"invoice": "A-{yyyy}-{n:>999999999}"},
        {"reminder": "M-{yyyy}-{n}"},
        {"invoice": 7},
    ],
    ids=str,
)
def test_number_patterns_that_would_repeat_a_number_are_refused(series: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        invoices.check_patterns(series)
    invoices.check_patterns({"invoice": "R{yy}-{n}"})


def test_a_parent_pays_prices_that_contain_the_tax_and_the_run_is_proven(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of one customer: the family stays together. Then a child pays for itself, and late usage of it comes."""
    monkeypatch.setattr("pipelines.bill_run.CUSTOMERS", 1)
    tenant = world.tenant(currency="EUR", timezone="Europe/Berlin", country="DE")
    base = {"code": "seat", "kind": "recurring", "price": {"model": "per_unit", "unit": "9.99"}, "tax": "t"}
    use = {"code": "use", "kind": "usage", "meter": "use", "price": {"model": "per_unit", "unit": "1.19"}, "tax": "t"}
    plan = {"code": "p", "currency": "EUR", "interval": "month", "tax_behavior": "inclusive", "charges": [base, use]}
    forms: list[dict[str, Any]] = [
        {"tax_code": {"code": "t", "percents": [{"from": "2020-01-01", "percent": "19"}]}},
        {"meter": {"code": "use", "event_type": "use", "aggregation": "sum", "value": "amount"}},
        {"publish": {"plan": plan}},
        *({"customer": {"code": code, "name": code.upper()}} for code in ("alone", "parent", "zoe")),
        *({"customer": {"code": code, "name": code.upper(), "payer": "parent"}} for code in ("ann", "bob")),
        {"top_up": {"customer": "ann", "amount": "5", "kind": "promotional"}},
        {"top_up": {"customer": "ann", "amount": "2", "kind": "purchased"}},
        {"top_up": {"customer": "parent", "amount": "1", "kind": "purchased"}},
        *(
            {"subscribe": {"code": f"s-{code}", "customer": code, "plan": "p", "quantities": {"seat": "3"}}}
            for code in ("alone", "ann", "bob", "zoe")
        ),
    ]
    world.apply(tenant, [{"at": "2026-10-01", **form} for form in forms])
    assert world.send(tenant, frame(event("1", "2026-10-10", "10", "ann"))) == [Verdict.ACCEPTED]
    first = world.bill(tenant, date(2026, 11, 1))
    assert (first["state"], first["parked"], first["documents"]["parked"]) == ("done", [], 0)
    alone, parent, zoe = world.documents(tenant)
    assert [one.customer for one in (alone, parent, zoe)] == ["alone", "parent", "zoe"]
    # Two months of 3 seats: 59.94, tax 9.57 (9.5703), net 50.37.
    assert (alone.gross, alone.tax, alone.net) == (Decimal("59.94"), Decimal("9.57"), Decimal("50.37"))
    assert [(line.customer, line.charge, line.gross) for line in parent.lines] == [
        ("ann", "seat", Decimal("29.97")),
        ("ann", "seat", Decimal("29.97")),
        ("ann", "use", Decimal("11.90")),
        ("bob", "seat", Decimal("29.97")),
        ("bob", "seat", Decimal("29.97")),
    ]
    assert [(one.source, one.gross) for one in parent.allowances] == [("ann", Decimal("5.00"))]
    assert parent.gross == Decimal("126.78")  # 131.78 as agreed, less ann's credit
    assert [(one.code, one.name) for one in parent.members] == [("ann", "ANN"), ("bob", "BOB")]

    world.apply(tenant, [{"at": "2026-11-20", "customer": {"code": "ann", "payer": None}}])
    late = [event("2", "2026-10-11", "20", "ann"), event("3", "2026-11-02", "1", "zoe")]
    assert set(world.send(tenant, frame(*late))) == {Verdict.ACCEPTED}
    second = world.bill(tenant, date(2026, 11, 2))
    (correction,) = world.documents(tenant)[3:]
    assert (correction.customer, correction.gross) == ("parent", Decimal("23.80"))
    assert [(line.customer, line.correction, line.corrects.line) for line in correction.lines] == [("ann", True, 3)]
    with world.database.tenant(tenant) as connection:

        def numbers(customer: str) -> list[str]:
            return [one["number"] for one in invoices.page(connection, descending=False, customer=customer)]

        assert numbers("parent") == numbers("ann") == ["RE-2026-000002", "RE-2026-000004"]
        assert numbers("bob") == ["RE-2026-000002"]
        assert numbers("zoe") == ["RE-2026-000003"]
        found = overview.documents_of(connection, "ann", limit=5)
        assert ([one.number for one in found.items], found.total, dict(found.prepaid)) == (
            ["RE-2026-000004", "RE-2026-000002"],
            2,
            {"EUR": Decimal("2.00")},
        )
        assert overview.documents_of(connection, "parent", limit=5).prepaid == {"EUR": Decimal("1.00")}
    for run in (first, second):
        proof = verify_run(world.database, world.store, world.masters, tenant, run["id"])
        assert (proof.findings, proof.gaps) == ((), ())
    assert proof.documents == 1
