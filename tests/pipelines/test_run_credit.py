"""Wallet credit in bill runs: held before, settled after, used once, whatever dies in between."""

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl
import pytest

from actors.accounts_desk import AccountsDesk, RunDesk
from actors.local_router import LocalUsageRouter
from billing.errors import InvalidInput, Unavailable
from billing.run_credit import Ask, Move, RunAnswer, RunHold
from billing.usage import EVENT_SCHEMA, Verdict
from pipelines.bill_run import BillRunDriver
from pipelines.run_credit import bring_moves
from pipelines.verify_invoices import verify_run
from storage.archive import Archive
from storage.master_chain import MasterChain
from storage.object_store import LocalObjectStore
from storage.sql import bill_runs, invoices, steps, tenants, wallet_moves
from storage.sql.database import Database
from storage.sql.embedded import EmbeddedPostgres
from storage.sql.migrate import migrate
from storage.usage_log.lane import count_lanes, walk
from storage.usage_log.segment import RowKind

pytestmark = pytest.mark.postgres
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
CATALOG: list[dict[str, Any]] = [
    {"tax_code": {"code": "t", "percents": [{"from": "2020-01-01", "percent": "20"}]}},
    {"publish": {"plan": {"code": "p", "currency": "EUR", "interval": "month", "charges": [
        {"code": "base", "kind": "recurring", "timing": "advance", "tax": "t",
         "price": {"model": "flat", "amount": "10.00"}}]}}},
]  # fmt: skip


class Killed(BaseException):
    """The driver's process is gone."""


@dataclass
class World:
    database: Database
    store: LocalObjectStore
    masters: MasterChain
    router: LocalUsageRouter

    def tenant(self, *customers: str, top_ups: Sequence[dict[str, Any]] = (), **form: Any) -> str:
        whole = {"currency": "EUR", "timezone": "UTC", "country": "DE", **form}
        with self.database.system() as connection:
            made = tenants.create(
                connection, code=uuid4().hex, name="T", kind="live", form=whole, generated=True, now=NOW
            )
        with self.database.tenant(made.id) as connection:
            steps.start_master(connection, made.id, whole, "test")
            tenants.put_legal_entity(
                connection, made.id, "main", {"name": "T Inc"}, country="DE", now=NOW, is_default=True
            )
        self.masters.project(self.database, made.id)
        self.apply(made.id, *CATALOG)
        for code in customers:
            self.apply(made.id, {"customer": {"code": code, "name": code, "country": "DE"}})
            self.apply(made.id, {"subscribe": {"code": code, "customer": code, "plan": "p"}}, at="2026-09-01")
        self.apply(made.id, *({"top_up": one} for one in top_ups))
        return made.id

    def apply(self, tenant_id: str, *forms: dict[str, Any], at: str = "2026-01-01") -> None:
        with self.database.tenant(tenant_id) as connection:
            change = steps.append_steps(connection, tenant_id, [{"at": at, **form} for form in forms], "test")
        self.masters.project(self.database, tenant_id, up_to=change.number)

    def use(self, tenant_id: str, id: str, customer: str, amount: str) -> None:
        names = {"source": "s", "id": id, "type": "use", "customer": customer, "subscription": None}
        event = {**names, "time": datetime(2026, 9, 10, tzinfo=UTC), "data": json.dumps({"amount": amount})}
        number, _ = self.masters.newest(tenant_id)
        events = pl.DataFrame([event], schema=EVENT_SCHEMA)
        result = asyncio.run(self.router.ingest(tenant_id, events, master_number=number))
        assert [Verdict(int(one)) for one in result.verdicts] == [Verdict.ACCEPTED]

    def driver(self, desk: RunDesk | None = None, **options: Any) -> BillRunDriver:
        archive = Archive(self.database, self.store)
        way = desk or RunDesk(self.router)
        return BillRunDriver(self.database, self.store, self.masters, archive, lambda: NOW, desk=way, **options)

    def bill(self, tenant_id: str, up_to: date, **options: Any) -> dict[str, Any]:
        driver = self.driver(**options)
        # Whatever a look at the run finds: these lives have sums that jump, and nobody to approve them.
        return driver.drive(tenant_id, driver.plan(tenant_id, up_to, "test")["id"], approve=True)

    def documents(self, tenant_id: str) -> list[dict[str, Any]]:
        with self.database.tenant(tenant_id) as connection:
            rows = invoices.page(connection, limit=1000, descending=False)
            return [invoices.get(connection, row["number"]) for row in rows]

    def prepaid(self, tenant_id: str) -> list[tuple[str, str]]:
        return [(row["customer"], str(row["prepaid"])) for row in self.documents(tenant_id)]

    def desk(self, name: str, tenant_id: str, *forms: Any) -> Any:
        return asyncio.run(getattr(AccountsDesk(self.router), name)(tenant_id, list(forms)))

    def wallet(self, tenant_id: str, customer: str) -> tuple[str, str, str]:
        [form] = self.desk("wallets", tenant_id, customer)
        [wallet] = form["wallets"]
        return wallet["balance"], wallet["reserved"], wallet["committed"]

    def settled(self, tenant_id: str) -> Decimal:
        """What the lanes say that documents used, read from the rows themselves."""
        used, held = Decimal(0), dict[str, dict[str, Any]]()
        used_by = dict[tuple[str, str], Decimal]()  # by customer and number of the document
        for lane in range(count_lanes(self.store)):
            for segment in walk(self.store, lane, 0):
                for row in segment.rows().iter_rows(named=True):
                    if row["tenant"] != tenant_id or row["detail"] is None:
                        continue
                    detail = json.loads(row["detail"])
                    if row["kind"] == RowKind.WALLET_HELD:
                        held[f"{detail['run']}/{row['customer']}"] = detail
                    elif row["kind"] == RowKind.WALLET_SETTLED:
                        hold = held[f"{detail['run']}/{row['customer']}"]
                        used -= sum(used_by.pop((row["customer"], number), Decimal(0)) for number in hold["restores"])
                        for key, use in hold["uses"].items():
                            amount = Decimal(use["promotional"]) + Decimal(use["purchased"])
                            used_by[row["customer"], detail["documents"][key]] = amount
                            used += amount
                    elif row["kind"] == RowKind.WALLET_RESTORED:
                        used -= sum((Decimal(part) for _, part in detail["parts"]), Decimal(0))
        return used

    def used(self, tenant_id: str) -> Decimal:
        """What the documents say."""
        total = Decimal(0)
        for row in self.documents(tenant_id):
            document = row["document"]
            promotional = sum((a.amount for a in document.allowances if a.kind == "promotional"), Decimal(0))
            total += (-1 if document.type == "credit_note" else 1) * (document.prepaid + promotional)
        return total

    def assert_consistent(self, tenant_id: str) -> None:
        """No credit is used twice or lost: what lanes settled is what documents used, and every run proves itself."""
        assert self.settled(tenant_id) == self.used(tenant_id)
        with self.database.tenant(tenant_id) as connection:
            assert wallet_moves.waiting(connection, 10) == []
            runs = [row for row in bill_runs.page(connection) if row["state"] == "done"]
        for run in runs:
            proof = verify_run(
                self.database, self.store, MasterChain(self.store), tenant_id, str(run["id"]), RunDesk(self.router)
            )
            assert proof.proven, proof.findings


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
            assert [one.stopped_because for one in (shard.status() for shard in router.shards.values())] == [""] * 3
            router.stop()
        finally:
            postgres.stop()


def top_up(customer: str, amount: str, kind: str = "purchased") -> dict[str, Any]:
    return {"customer": customer, "amount": amount, "kind": kind}


def test_invoices_use_free_and_committed_credit_and_leave_what_is_reserved(world: World) -> None:
    credit = [top_up("a", "100.00"), top_up("b", "15.00"), top_up("c", "4.00", "promotional")]
    tenant = world.tenant("a", "b", "c", "d", top_ups=credit)
    world.desk("reserve", tenant, {"customer": "b", "id": "1", "amount": "10.00"})
    world.desk("reserve", tenant, {"customer": "a", "id": "2", "amount": "50.00"})
    world.desk("commit", tenant, {"id": "2", "amount": "5.00"})
    assert world.bill(tenant, date(2026, 9, 1))["state"] == "done"
    assert world.prepaid(tenant) == [("a", "12.00"), ("b", "5.00"), ("c", "0.00"), ("d", "0.00")]
    assert world.wallet(tenant, "a") == ("88.00", "0.00", "0.00")
    assert world.wallet(tenant, "b") == ("10.00", "10.00", "0.00")
    assert world.wallet(tenant, "c") == ("0.00", "0.00", "0.00")
    world.assert_consistent(tenant)
    world.desk("release", tenant, {"id": "1"})
    world.bill(tenant, date(2026, 10, 1))
    assert world.prepaid(tenant)[4:] == [("a", "12.00"), ("b", "10.00"), ("c", "0.00"), ("d", "0.00")]
    world.assert_consistent(tenant)


@pytest.mark.parametrize("step", ["chunk computed", "chunk finalising", "chunk finalised", "credit settled"])
def test_a_run_killed_between_the_two_stores_uses_credit_once(world: World, step: str) -> None:
    tenant = world.tenant("a", "b", top_ups=[top_up("a", "30.00"), top_up("b", "7.00", "promotional")])

    def kill(passed: str) -> None:
        if passed == step:
            raise Killed(step)

    driver = world.driver(checkpoint=kill)
    run = driver.plan(tenant, date(2026, 9, 1), "test")
    with pytest.raises(Killed):
        driver.drive(tenant, run["id"])
    # Credit that comes free meanwhile changes nothing for what was computed.
    world.apply(tenant, {"top_up": top_up("b", "50.00", "promotional")})
    assert world.driver().drive(tenant, run["id"])["state"] == "done"
    assert world.prepaid(tenant) == [("a", "12.00"), ("b", "0.00")]
    assert world.wallet(tenant, "a") == ("18.00", "0.00", "0.00")
    world.assert_consistent(tenant)


def test_a_chunk_computed_again_gets_the_recorded_answers(world: World) -> None:
    """The result is lost between the hold and the store: the repeat makes the same bytes, whatever was released."""
    tenant = world.tenant("a", top_ups=[top_up("a", "20.00")])
    world.desk("reserve", tenant, {"customer": "a", "id": "1", "amount": "15.00"})
    driver = world.driver()
    run = driver.plan(tenant, date(2026, 9, 1), "test", approve=False)
    driver.drive(tenant, run["id"])
    with world.database.tenant(tenant) as connection:
        [chunk] = bill_runs.chunks(connection, run["id"])
        connection.execute("UPDATE bill_run_chunks SET state = 'planned', result = NULL")
        connection.execute("UPDATE bill_runs SET state = 'planned' WHERE id = %s", (run["id"],))
    first = world.store.get(chunk["result"])
    world.store.delete(chunk["result"])
    world.desk("release", tenant, {"id": "1"})
    world.driver().drive(tenant, run["id"], approve=True)
    assert world.store.get(chunk["result"]) == first
    assert world.prepaid(tenant) == [("a", "5.00")]
    world.assert_consistent(tenant)


def test_a_cancelled_run_gives_its_credit_back_and_holds_none_any_more(world: World) -> None:
    tenant = world.tenant("a", top_ups=[top_up("a", "20.00")])
    driver = world.driver()
    run = driver.plan(tenant, date(2026, 9, 1), "test", approve=False)
    driver.drive(tenant, run["id"])
    assert world.wallet(tenant, "a") == ("8.00", "0.00", "0.00")
    driver.cancel(tenant, run["id"])
    assert world.wallet(tenant, "a") == ("20.00", "0.00", "0.00")
    world.bill(tenant, date(2026, 9, 1))
    assert world.prepaid(tenant) == [("a", "12.00")]
    world.assert_consistent(tenant)


class Meddling(RunDesk):
    """A desk before which something happens each time that a run wants to hold credit."""

    def __init__(self, router: LocalUsageRouter, before: Callable[[], object]) -> None:
        super().__init__(router)
        self._before = before

    def run_hold(self, tenant_id: str, asked: RunHold) -> Mapping[str, RunAnswer]:
        self._before()
        return super().run_hold(tenant_id, asked)


def test_a_wallet_that_changes_between_reading_and_holding_is_read_again(world: World) -> None:
    tenant = world.tenant("a", "b", top_ups=[top_up("a", "14.00"), top_up("b", "100.00")])
    ids = iter(range(3))

    def reserve_one_more() -> None:
        number = next(ids, None)
        if number is not None:
            world.desk("reserve", tenant, {"customer": "a", "id": f"m{number}", "amount": "3.00"})

    world.bill(tenant, date(2026, 9, 1), desk=Meddling(world.router, reserve_one_more))
    assert world.prepaid(tenant) == [("a", "5.00"), ("b", "12.00")]
    assert world.wallet(tenant, "a") == ("9.00", "9.00", "0.00")
    world.assert_consistent(tenant)


def test_a_wallet_that_never_stands_still_parks_its_customer_alone(world: World) -> None:
    tenant = world.tenant("a", "b", top_ups=[top_up("a", "10.00"), top_up("b", "100.00")])
    count = iter(range(1000))

    def reserve_one_more() -> None:
        world.desk("reserve", tenant, {"customer": "a", "id": f"m{next(count)}", "amount": "0.50"})

    run = world.bill(tenant, date(2026, 9, 1), desk=Meddling(world.router, reserve_one_more))
    assert [one["customer"] for one in run["parked"]] == ["a"]
    assert world.prepaid(tenant) == [("b", "12.00")]
    world.bill(tenant, date(2026, 9, 1))
    assert [customer for customer, _ in world.prepaid(tenant)] == ["b", "a"]
    world.assert_consistent(tenant)


def test_credit_held_by_a_process_whose_result_was_not_taken_is_freed(world: World) -> None:
    """Two compute one chunk: the one that parks the customer stores its result, the other one holds his credit."""
    tenant = world.tenant("a", top_ups=[top_up("a", "10.00")])
    count = iter(range(1000))
    held: list[Any] = []

    def reserve_one_more() -> None:
        world.desk("reserve", tenant, {"customer": "a", "id": f"m{next(count)}", "amount": "0.50"})

    def hold_elsewhere(passed: str) -> None:
        if passed == "chunk computed" and not held:
            asks = {"a": [Ask("a/EUR/0", "EUR", "purchased", Decimal("5.00"), Decimal("5.00"))]}
            held.append(RunDesk(world.router).run_hold(tenant, RunHold(run["id"], asks, NOW, 10**6)))
            assert held[0]["a"].held

    desk = Meddling(world.router, reserve_one_more)
    driver = world.driver(desk=desk, checkpoint=hold_elsewhere)
    run = driver.plan(tenant, date(2026, 9, 1), "test")
    assert [one["customer"] for one in driver.drive(tenant, run["id"])["parked"]] == ["a"]
    assert held
    assert world.wallet(tenant, "a")[0] == "10.00"
    world.assert_consistent(tenant)


def test_a_lane_that_is_away_leaves_the_move_for_the_next_driver(world: World) -> None:
    tenant = world.tenant("a", top_ups=[top_up("a", "20.00")])

    class Away(Meddling):
        def run_move(self, tenant_id: str, moves: Sequence[Move]) -> int:
            raise Unavailable("the lane is away")

    desk = Away(world.router, lambda: None)
    driver = world.driver(desk=desk)
    run = driver.plan(tenant, date(2026, 9, 1), "test")
    with pytest.raises(Unavailable):
        driver.drive(tenant, run["id"])
    assert world.prepaid(tenant) == [("a", "12.00")]
    assert tenant not in world.driver().bring_waiting_moves()
    assert world.driver().drive(tenant, run["id"])["state"] == "done"
    world.assert_consistent(tenant)


def test_a_move_that_is_refused_holds_up_its_own_customer_only_and_is_shown(world: World) -> None:
    tenant = world.tenant("a", "b", "c", top_ups=[top_up(one, "20.00") for one in "abc"])

    class Refusing(Meddling):
        def run_move(self, tenant_id: str, moves: Sequence[Move]) -> int:
            if any(move.customer == "b" for move in moves):
                raise InvalidInput("b does not fit")
            return super().run_move(tenant_id, moves)

    desk = Refusing(world.router, lambda: None)
    driver = world.driver(desk=desk)
    run = driver.plan(tenant, date(2026, 9, 1), "test")
    assert driver.drive(tenant, run["id"])["state"] == "done"
    with world.database.tenant(tenant) as connection:
        waiting = wallet_moves.page(connection, after=None, limit=10)
    assert [(one["customer"], one["refused"]) for one in waiting] == [("b", "b does not fit")]
    assert bring_moves(world.database, desk, world.masters, tenant, lambda: NOW) == 0
    assert bring_moves(world.database, RunDesk(world.router), world.masters, tenant, lambda: NOW) == 1
    world.assert_consistent(tenant)


def test_a_tenant_without_wallets_never_asks_a_lane(world: World) -> None:
    tenant = world.tenant("a", "b")
    asked: list[str] = []
    desk = Meddling(world.router, lambda: asked.append("hold"))
    desk.run_credit = lambda *_: asked.append("read")  # type: ignore[method-assign, assignment]
    assert world.bill(tenant, date(2026, 9, 1), desk=desk)["state"] == "done"
    assert asked == []
    assert bring_moves(world.database, desk, world.masters, tenant, lambda: NOW) == 0


USAGE: list[dict[str, Any]] = [
    {"meter": {"code": "use", "event_type": "use", "aggregation": "sum", "value": "amount"}},
    {"publish": {"plan": {"code": "u", "currency": "EUR", "interval": "month", "charges": [
        {"code": "c", "kind": "usage", "meter": "use", "tax": "t", "price": {"model": "per_unit", "unit": "2"}}]}}},
]  # fmt: skip


@pytest.mark.parametrize("late", ["-5", "-7"])
def test_credit_of_an_invoice_that_is_made_again_without_need_of_any_comes_back(world: World, late: str) -> None:
    tenant = world.tenant(late_usage="reissue")
    world.apply(tenant, *USAGE, {"customer": {"code": "a", "name": "a", "country": "DE"}}, {"top_up": top_up("a", "9")})
    world.apply(tenant, {"subscribe": {"code": "a", "customer": "a", "plan": "u"}}, at="2026-09-01")
    world.use(tenant, "1", "a", "5")
    world.bill(tenant, date(2026, 10, 1))
    assert world.prepaid(tenant) == [("a", "9.00")]
    world.use(tenant, "2", "a", late)
    world.bill(tenant, date(2026, 10, 1))
    made = [(row["document"].refers_to is not None, row["type"]) for row in world.documents(tenant)]
    assert made == [(False, "invoice"), (True, "credit_note"), (True, "invoice" if late == "-5" else "credit_note")]
    assert world.wallet(tenant, "a") == ("9.00", "0.00", "0.00")
    world.assert_consistent(tenant)


def test_credit_of_a_member_comes_back_when_only_the_payer_has_lines_on_what_is_made_again(world: World) -> None:
    tenant = world.tenant(late_usage="reissue")
    world.apply(tenant, *USAGE)
    for code, more in (("p", {}), ("m", {"payer": "p"})):
        world.apply(tenant, {"customer": {"code": code, "name": code, "country": "DE", **more}})
        world.apply(tenant, {"subscribe": {"code": code, "customer": code, "plan": "u"}}, at="2026-09-01")
        world.apply(tenant, {"top_up": top_up(code, "9")})
        world.use(tenant, f"{code}1", code, "3")
    world.bill(tenant, date(2026, 10, 1))
    assert world.prepaid(tenant) == [("p", "14.40")]
    assert world.wallet(tenant, "m") == ("1.80", "0.00", "0.00")
    world.use(tenant, "m2", "m", "-3")
    world.bill(tenant, date(2026, 10, 1))
    assert world.prepaid(tenant) == [("p", "14.40"), ("p", "14.40"), ("p", "7.20")]
    assert (world.wallet(tenant, "p")[0], world.wallet(tenant, "m")[0]) == ("1.80", "9.00")
    world.assert_consistent(tenant)


# -- A run that made invoices again is taken back ----------------------------------------------------------------------

METERED: list[dict[str, Any]] = [
    {"meter": {"code": "m", "event_type": "use", "aggregation": "sum", "value": "amount"}},
    {"publish": {"plan": {"code": "used", "currency": "EUR", "interval": "month", "charges": [
        {"code": "use", "kind": "usage", "meter": "m", "tax": "t", "price": {"model": "per_unit", "unit": "1"}}]}}},
]  # fmt: skip


def made_again(world: World, late: str, *top_ups: dict[str, Any]) -> str:
    """A tenant that reissues: 10.00 of usage in September are billed, and once more with what came late."""
    tenant = world.tenant(late_usage="reissue")
    world.apply(tenant, *METERED, {"customer": {"code": "a", "name": "a", "country": "DE"}})
    world.apply(tenant, *({"top_up": one} for one in top_ups))
    world.apply(tenant, {"subscribe": {"code": "a", "customer": "a", "plan": "used"}}, at="2026-09-01")
    world.use(tenant, "1", "a", "10")
    world.bill(tenant, date(2026, 10, 1))
    world.use(tenant, "2", "a", late)
    world.bill(tenant, date(2026, 10, 1))
    return tenant


def last_run(world: World, tenant: str) -> str:
    with world.database.tenant(tenant) as connection:
        last = bill_runs.last_finalised(connection)
    assert last is not None
    return str(last["id"])


def take_back(world: World, tenant: str, **options: Any) -> dict[str, Any]:
    run_id, driver = last_run(world, tenant), world.driver(**options)
    driver.reverse(tenant, run_id, "bob")
    return driver.drive(tenant, run_id)


def credit_of(row: dict[str, Any]) -> tuple[str, str, str]:
    promotional = sum((one.amount for one in row["document"].allowances if one.kind == "promotional"), Decimal("0.00"))
    return str(promotional), str(row["prepaid"]), str(row["due"])


def test_an_invoice_that_is_issued_again_uses_the_credit_that_it_had_used(world: World) -> None:
    credit = (top_up("a", "3.00", "promotional"), top_up("a", "20.00"))
    tenant = made_again(world, "7", *credit)
    first, _, again = world.documents(tenant)
    assert (credit_of(first), credit_of(again)) == (("3.00", "8.40", "0.00"), ("3.00", "16.80", "0.00"))
    assert take_back(world, tenant)["state"] == "reversed"
    whole = world.documents(tenant)[-1]
    assert replace(whole["document"], date=first["document"].date, refers_to=None) == first["document"]
    assert world.wallet(tenant, "a") == ("11.60", "0.00", "0.00")
    world.assert_consistent(tenant)
    world.bill(tenant, date(2026, 10, 1))
    assert credit_of(world.documents(tenant)[-1]) == ("3.00", "16.80", "0.00")
    assert world.wallet(tenant, "a") == ("3.20", "0.00", "0.00")
    world.assert_consistent(tenant)


def test_credit_that_was_given_back_and_spent_since_is_money_on_the_invoice_that_is_issued_again(world: World) -> None:
    tenant = made_again(world, "-6", top_up("a", "4.00", "promotional"), top_up("a", "8.00"))
    first, _, again = world.documents(tenant)
    assert (credit_of(first), credit_of(again)) == (("4.00", "7.20", "0.00"), ("4.00", "0.00", "0.00"))
    world.desk("reserve", tenant, {"customer": "a", "id": f"spent {tenant}", "amount": "5.00"})
    assert take_back(world, tenant)["state"] == "reversed"
    whole = world.documents(tenant)[-1]
    assert [line.amount for line in whole["document"].lines] == [Decimal("10.00")]
    assert credit_of(whole) == ("4.00", "3.00", "4.20")
    assert world.wallet(tenant, "a") == ("5.00", "5.00", "0.00")
    world.assert_consistent(tenant)
    world.desk("release", tenant, {"id": f"spent {tenant}"})
    world.bill(tenant, date(2026, 10, 1))  # what is open of the one that stands is taken back with it
    assert credit_of(world.documents(tenant)[-1]) == ("4.00", "0.00", "0.00")
    assert world.wallet(tenant, "a") == ("8.00", "0.00", "0.00")
    world.assert_consistent(tenant)


def test_promotional_credit_that_has_expired_since_counts_for_the_invoice_that_had_used_it(world: World) -> None:
    promotional = {**top_up("a", "4.00", "promotional"), "expires": "2026-11-25T12:00:00+00:00"}
    tenant = world.tenant(late_usage="reissue")
    clock = {"now": NOW - timedelta(days=1)}

    def bill() -> None:
        driver = world.driver()
        driver._clock = lambda: clock["now"]
        run = driver.drive(tenant, driver.plan(tenant, date(2026, 10, 1), "test")["id"], approve=True)
        assert run["state"] == "done"

    world.apply(tenant, *METERED, {"customer": {"code": "a", "name": "a", "country": "DE"}}, {"top_up": promotional})
    world.apply(tenant, {"subscribe": {"code": "a", "customer": "a", "plan": "used"}}, at="2026-09-01")
    world.use(tenant, "1", "a", "10")
    bill()
    clock["now"] = NOW + timedelta(days=1)
    world.use(tenant, "2", "a", "1")
    bill()
    first, _, again = world.documents(tenant)
    assert (credit_of(first), credit_of(again)) == (("4.00", "0.00", "7.20"), ("0.00", "0.00", "13.20"))
    assert take_back(world, tenant)["state"] == "reversed"
    assert credit_of(world.documents(tenant)[-1]) == ("4.00", "0.00", "7.20")
    world.assert_consistent(tenant)


@pytest.mark.parametrize("step", ["reversing", "batch reversed", "issuing again", "reversal marked"])
def test_a_reversal_killed_between_the_two_stores_uses_credit_once(world: World, step: str) -> None:
    tenant = made_again(world, "7", top_up("a", "3.00", "promotional"), top_up("a", "20.00"))

    def kill(passed: str) -> None:
        if passed == step:
            raise Killed(step)

    with pytest.raises(Killed):
        take_back(world, tenant, checkpoint=kill)
    with world.database.tenant(tenant) as connection:
        active = bill_runs.active(connection)
    assert active is not None
    # Credit that comes free meanwhile changes nothing for what the lane has answered.
    world.apply(tenant, {"top_up": top_up("a", "50.00", "promotional")})
    assert world.driver().drive(tenant, str(active["id"]))["state"] == "reversed"
    assert credit_of(world.documents(tenant)[-1]) == ("3.00", "8.40", "0.00")
    world.assert_consistent(tenant)


def test_a_reversal_waits_for_a_lane_that_is_away_and_for_a_wallet_that_never_stands_still(world: World) -> None:
    tenant = made_again(world, "7", top_up("a", "12.00"))
    count = iter(range(1000))

    class Away(Meddling):
        def run_move(self, tenant_id: str, moves: Sequence[Move]) -> int:
            raise Unavailable("the lane is away")

    def reserve_one_more() -> None:
        world.desk("reserve", tenant, {"customer": "a", "id": f"{tenant}/{next(count)}", "amount": "0.50"})

    with pytest.raises(Unavailable, match="away"):
        take_back(world, tenant, desk=Away(world.router, lambda: None))
    with world.database.tenant(tenant) as connection:
        active = bill_runs.active(connection)
    assert active is not None
    with pytest.raises(Unavailable, match="faster"):
        world.driver(desk=Meddling(world.router, reserve_one_more)).drive(tenant, str(active["id"]))
    assert world.driver().drive(tenant, str(active["id"]))["state"] == "reversed"
    world.assert_consistent(tenant)
