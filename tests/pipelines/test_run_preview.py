"""A preview of a whole run: it touches nothing but its own place, and the run after it equals it to the cent."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest

import pipelines.run_preview as run_preview
from billing.errors import Conflict, InvalidInput, NotFound
from pipelines import usage_slices
from pipelines.chunk_executor import InProcess
from pipelines.reused_ids import passes_over
from pipelines.run_preview import KEPT_FOR, LINE_COLUMNS, RunPreviews, lines_csv
from storage.master_chain import MasterChain
from storage.object_store import LocalObjectStore
from storage.sql import bill_runs, billing_settings, invoices, steps
from storage.sql.database import Database
from storage.usage_log.reader import Cut, UsageLogReader
from tests.chaos.bill_run_world import FEBRUARY, MARCH, NOW, World, _tenant

pytestmark = pytest.mark.postgres


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three customers, as the world's runs have them."""
    monkeypatch.setattr(run_preview, "CUSTOMERS", 3)


def previews(world: World, database: Database, **options: Any) -> RunPreviews:
    store = LocalObjectStore(world.directory)
    return RunPreviews(database, store, MasterChain(store), options.pop("clock", lambda: NOW), **options)


def previewed(world: World, database: Database, tenant_id: str, up_to: Any = MARCH, **asked: Any) -> dict[str, Any]:
    known = previews(world, database)
    made = known.plan(tenant_id, up_to, "ann", **asked)
    assert known.drive(tenant_id, made["id"]) == "done"
    return known.get(tenant_id, made["id"])


def everything(world: World) -> dict[str, str]:
    """A hash of every row of every table and of every object, but for the place of previews."""
    found: dict[str, str] = {}
    with psycopg.connect(world.dsn) as connection:
        tables = connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables"
            " WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        for schema, table in tables:
            name = psycopg.sql.Identifier(schema, table)
            rows = connection.execute(psycopg.sql.SQL("SELECT t::text FROM {} t ORDER BY 1").format(name)).fetchall()
            found[f"table {schema}.{table}"] = hashlib.sha256(repr(rows).encode()).hexdigest()
    assert len(found) > 30, "row-level security hides nothing from who makes this comparison"
    store = LocalObjectStore(world.directory)
    for key in store.list(""):
        if not key.startswith("run-previews/"):
            found[key] = hashlib.sha256(store.get(key) or b"").hexdigest()
    return found


def lines_of(world: World, database: Database, tenant_id: str, preview: dict[str, Any]) -> pl.DataFrame:
    return pl.concat(previews(world, database).lines(tenant_id, preview["id"]))


def settle(database: Database, tenant_id: str, form: dict[str, Any]) -> None:
    with database.tenant(tenant_id) as connection:
        billing_settings.put(connection, tenant_id, form, "test", NOW)


def test_a_preview_touches_nothing_and_the_run_after_it_equals_it_to_the_cent(world: World, database: Database) -> None:
    tenant_id = world.make_tenant()
    settle(database, tenant_id, {"guard_rails": {"on": True, "times_last": "1.01", "change_percent": "0.001"}})
    before = everything(world)
    preview = previewed(world, database, tenant_id)
    lines = lines_of(world, database, tenant_id, preview)
    assert everything(world) == before
    store = LocalObjectStore(world.directory)
    own = [key.split("/")[-1] for key in store.list(f"run-previews/{tenant_id}/{preview['id']}/")]
    chunks = [f"chunk-{place:06}.parquet" for place in range(3)]
    assert sorted(own) == [*chunks, "facts.json", "progress.json", "summary.json"]
    driver = world.driver(database)
    run = driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "ann")["id"], approve=False)
    found = preview["result"]
    assert found["totals"] == run["totals"]
    assert (found["documents"], found["lines"]) == (run["documents"]["made"], run["lines"])
    assert found["checks"] == run["checks"]
    assert (found["held_back"], found["held_back_count"]) == (run["held_back"], len(run["held_back"]))
    assert found["held_back"], "a rail that holds somebody is part of what is compared"
    assert found["checks"]["stops"]
    assert found["parked"] == run["parked"]
    held = {one["customer"] for one in found["held_back"]}
    assert set(lines.filter(pl.col("outcome") == "held_back")["customer"]) == held
    driver.release(tenant_id, run["id"], sorted(held), "bob")
    assert driver.drive(tenant_id, run["id"], approve=True)["state"] == "done"
    billed: list[tuple[Any, ...]] = []
    with database.tenant(tenant_id) as connection:
        for row in invoices.page(connection, run_id=run["id"], descending=False, limit=1_000):
            document = invoices.get(connection, row["number"])["document"]
            billed += [
                (document.customer, document.type, place, line.subscription, line.charge, line.start, line.end,
                 line.quantity, line.amount, line.tax_percent)
                for place, line in enumerate(document.lines, start=1)
            ]  # fmt: skip
    names = ("customer", "type", "line", "subscription", "charge", "period_start", "period_end")
    seen = [
        (*(row[name] for name in names), *(Decimal(row[name]) for name in ("quantity", "amount", "tax_percent")))
        for row in lines.iter_rows(named=True)
    ]
    assert seen == billed
    assert len(billed) == found["lines"] > 10


def test_two_previews_are_alike_and_a_run_that_ends_between_makes_the_older_one_stale(
    world: World, database: Database
) -> None:
    tenant_id = world.make_tenant()
    first, second = (previewed(world, database, tenant_id) for _ in range(2))
    assert first["result"] == second["result"]
    known = previews(world, database)
    march = datetime(2026, 2, 28, 23, tzinfo=UTC)
    assert known.fresh(tenant_id, march) == known.get(tenant_id, second["id"])
    assert known.fresh(tenant_id, march - timedelta(days=1)) is None
    driver = world.driver(database)
    assert driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "ann")["id"])["state"] == "done"
    assert known.fresh(tenant_id, march) is None
    after = previewed(world, database, tenant_id)
    assert (after["result"]["documents"], after["result"]["totals"]) == (0, {})
    assert known.fresh(tenant_id, march) == known.get(tenant_id, after["id"])


def test_a_run_that_becomes_final_meanwhile_fails_the_preview_and_one_that_does_lets_none_begin(
    world: World, database: Database
) -> None:
    tenant_id = world.make_tenant()
    known = previews(world, database)
    made = known.plan(tenant_id, MARCH, "ann")
    driver = world.driver(database)
    run = driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "ann")["id"], approve=False)
    # A run that is only computed changes nothing: neither is in the other's way.
    other = previewed_beside(world, database, tenant_id, made["id"])
    assert other["result"]["totals"] == run["totals"]
    late = known.plan(tenant_id, MARCH, "ann")
    driver.approve(tenant_id, run["id"], "ann")
    with pytest.raises(Conflict, match="begin the preview when it is over"):
        known.drive(tenant_id, late["id"])
    assert known.get(tenant_id, late["id"])["state"] == "failed"
    with pytest.raises(Conflict, match="is approved: begin the preview when it is over"):
        known.plan(tenant_id, MARCH, "ann")
    driver.drive(tenant_id, run["id"])
    with pytest.raises(Conflict, match="became final, or was reversed, meanwhile"):
        known.drive(tenant_id, late["id"])
    assert "begin the preview again" in known.get(tenant_id, late["id"])["error"]


def previewed_beside(world: World, database: Database, tenant_id: str, preview_id: str) -> dict[str, Any]:
    known = previews(world, database)
    assert known.drive(tenant_id, preview_id) == "done"
    return known.get(tenant_id, preview_id)


def test_a_preview_looks_ahead_and_into_the_collection_window_where_a_run_may_not(
    world: World, database: Database
) -> None:
    tenant_id = world.make_tenant()
    settle(database, tenant_id, {"collection_window": "PT72H"})
    driver = world.driver(database)
    with pytest.raises(Conflict, match="look at a preview"):
        driver.plan(tenant_id, MARCH, "ann")
    now = previewed(world, database, tenant_id)
    assert now["usage_may_come_until"] == "2026-03-03T23:00:00+00:00"
    early = driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "ann", early=True)["id"], approve=False)
    assert now["result"]["totals"] == early["totals"]
    driver.cancel(tenant_id, early["id"])
    ahead = previewed(world, database, tenant_id, date(2026, 4, 1))
    assert (ahead["document_date"], ahead["usage_may_come_until"]) == ("2026-04-01", "2026-04-03T22:00:00+00:00")
    lines = lines_of(world, database, tenant_id, ahead)
    assert lines.filter(pl.col("charge") == "base")["customer"].len() == 14, "February's and March's fee of each"
    with pytest.raises(InvalidInput, match="more than 800 days after the clock"):
        previews(world, database).plan(tenant_id, date(2029, 1, 1), "ann")
    dated = previewed(world, database, tenant_id, document_date=FEBRUARY)
    assert dated["document_date"] == "2026-02-01"
    with pytest.raises(InvalidInput, match="document date of its own"):
        previews(world, database).plan(tenant_id, MARCH, "ann", document_date=date(2026, 3, 2))


def test_whom_the_run_would_park_the_preview_parks_with_the_same_reason(world: World, database: Database) -> None:
    tenant_id = _tenant(database)
    with database.tenant(tenant_id) as connection:
        one = {"at": "2026-01-01", "customer": {"code": "c4", "legal_entity": "nowhere"}}
        steps.append_steps(connection, tenant_id, [one], "test", now=NOW)
    store = LocalObjectStore(world.directory)
    MasterChain(store).project(database, tenant_id)
    preview = previewed(world, database, tenant_id)
    driver = world.driver(database)
    run = driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "ann")["id"], approve=False)
    assert [(one["customer"], one["code"]) for one in run["parked"]] == [("c4", "unknown_legal_entity")]
    assert preview["result"]["parked"] == run["parked"]
    lines = lines_of(world, database, tenant_id, preview)
    assert set(lines.filter(pl.col("outcome") == "parked")["customer"]) == {"c4"}


class Stopping(InProcess):
    """Does something after the first chunk."""

    def after_first(self) -> None:
        raise NotImplementedError

    def compute(self, tasks: Any) -> Iterator[Any]:
        for place, result in enumerate(super().compute(tasks)):
            yield result
            if place == 0:
                self.after_first()


def test_a_preview_goes_on_where_it_was_left_and_is_cancelled_and_deleted(world: World, database: Database) -> None:
    tenant_id = world.make_tenant()
    store = LocalObjectStore(world.directory)
    chain = MasterChain(store)

    class Dies(Stopping):
        def after_first(self) -> None:
            raise RuntimeError("killed")

    dying = previews(world, database, executor=Dies(store, database, chain))
    made = dying.plan(tenant_id, MARCH, "ann")
    assert list(dying.unfinished(tenant_id)) == [made["id"]]
    with pytest.raises(Conflict, match="a preview of this tenant goes on"):
        dying.plan(tenant_id, MARCH, "ann")
    with pytest.raises(RuntimeError, match="killed"):
        dying.drive(tenant_id, made["id"])
    assert dying.get(tenant_id, made["id"])["error"] == "RuntimeError: killed"
    known = previews(world, database)
    assert known.drive(tenant_id, made["id"]) == "done"
    whole = previewed(world, database, tenant_id)
    assert known.get(tenant_id, made["id"])["result"] == whole["result"]

    class Cancels(Stopping):
        def after_first(self) -> None:
            known.cancel(tenant_id, known.list(tenant_id)[0]["id"])

    stopped = previews(world, database, executor=Cancels(store, database, chain))
    again = stopped.plan(tenant_id, MARCH, "ann")
    assert stopped.drive(tenant_id, again["id"]) == "cancelled"
    assert known.get(tenant_id, again["id"])["result"] is None
    assert [key for key in store.list(f"run-previews/{tenant_id}/{again['id']}/") if "/usage/" in key] == []
    with pytest.raises(Conflict, match="the preview is cancelled"):
        known.lines(tenant_id, again["id"])
    with pytest.raises(Conflict, match="the preview is cancelled"):
        known.cancel(tenant_id, again["id"])
    known.delete(tenant_id, again["id"])
    assert list(store.list(f"run-previews/{tenant_id}/{again['id']}/")) == []
    with pytest.raises(NotFound):
        known.get(tenant_id, again["id"])


def test_previews_expire_and_are_limited(world: World, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant_id = _tenant(database)
    MasterChain(LocalObjectStore(world.directory)).project(database, tenant_id)
    monkeypatch.setattr(run_preview, "KEPT_MAX", 1)
    preview = previewed(world, database, tenant_id)
    with pytest.raises(Conflict, match="1 previews are kept"):
        previews(world, database).plan(tenant_id, MARCH, "ann")
    later = previews(world, database, clock=lambda: NOW + KEPT_FOR - timedelta(seconds=1))
    assert later.expire(tenant_id) == 0
    over = previews(world, database, clock=lambda: NOW + KEPT_FOR)
    assert over.expire(tenant_id) == 1
    assert over.list(tenant_id) == []
    with pytest.raises(NotFound):
        over.get(tenant_id, preview["id"])


class Meeting(LocalObjectStore):
    """Who puts facts waits a little for somebody else who does."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.met = threading.Barrier(2)

    def create(self, key: str, data: bytes) -> bool:
        if key.endswith("/facts.json"):
            with suppress(threading.BrokenBarrierError):
                self.met.wait(2)
        return super().create(key, data)


def test_of_two_that_are_begun_at_once_one_is_refused(world: World, database: Database) -> None:
    tenant_id = _tenant(database)
    store = Meeting(world.directory)
    MasterChain(store).project(database, tenant_id)

    def begin(_: int) -> str:
        try:
            return RunPreviews(database, store, MasterChain(store), lambda: NOW).plan(tenant_id, MARCH, "ann")["state"]
        except Conflict as error:
            return error.detail

    with ThreadPoolExecutor(2) as pool:
        told = sorted(pool.map(begin, range(2)))
    assert told == ["a preview of this tenant goes on: wait for it or cancel it", "planned"]


def test_a_request_that_is_repeated_before_it_was_answered_gets_its_own_preview(
    world: World, database: Database
) -> None:
    tenant_id = world.make_tenant()
    known = previews(world, database)
    made = known.plan(tenant_id, MARCH, "ann", request="r1")
    assert "request" not in made
    assert known.plan(tenant_id, MARCH, "ann", request="r1") == made
    with pytest.raises(Conflict, match="goes on"):
        known.plan(tenant_id, MARCH, "ann", request="r2")
    assert known.drive(tenant_id, made["id"]) == "done"
    assert known.plan(tenant_id, MARCH, "ann", request="r1") == known.get(tenant_id, made["id"])
    later = previews(world, database, clock=lambda: NOW + timedelta(days=7))
    assert later.plan(tenant_id, MARCH, "ann", request="r1")["id"] != made["id"]


def test_a_second_driver_that_comes_while_the_first_computes_does_no_harm(
    world: World, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_id = world.make_tenant()
    store = LocalObjectStore(world.directory)
    known = previews(world, database)
    late: list[str] = []
    states: list[str] = []

    def forget(of: Any, prefix: str) -> None:
        states.append(known.list(tenant_id)[0]["state"])
        usage_slices.forget(of, prefix)

    monkeypatch.setattr(run_preview, "forget", forget)

    class Overtaken(Stopping):
        def after_first(self) -> None:
            late.append(known.drive(tenant_id, made["id"]))

    first = previews(world, database, executor=Overtaken(store, database, MasterChain(store)))
    made = first.plan(tenant_id, MARCH, "ann")
    assert (first.drive(tenant_id, made["id"]), late) == ("done", ["done"])
    assert set(states) == {"done"}, "who misses usage while the preview goes on would make it failed"
    found = known.get(tenant_id, made["id"])
    assert found["progress"]["done"] == found["progress"]["total"]
    assert found["result"] == previewed(world, database, tenant_id)["result"]
    assert [key for key in store.list(f"run-previews/{tenant_id}/{made['id']}/") if "/usage/" in key] == []


class Remote(LocalObjectStore):
    """A store whose objects are no files of this machine, as those of S3 are."""

    def local_path(self, key: str) -> Path | None:
        return None


def test_a_preview_over_a_remote_store_reads_the_ids_of_the_passes_before(world: World, database: Database) -> None:
    tenant_id = world.make_tenant()
    store = Remote(world.directory)
    reader, chain = UsageLogReader(store), MasterChain(store)
    passes = passes_over(store, reader)
    with database.tenant(tenant_id) as connection:
        last = bill_runs.last_finalised(connection)
    assert last is not None
    first = passes.look(tenant_id, Cut.from_json(json.dumps(last["cut"])))
    assert not first.nothing_new
    passes.note(tenant_id, first)
    assert not passes.look(tenant_id, reader.now()).nothing_new, "else the runs of the pass are not looked into"
    known = RunPreviews(database, store, chain, lambda: NOW)
    made = known.plan(tenant_id, MARCH, "ann")
    assert known.drive(tenant_id, made["id"]) == "done"
    assert known.get(tenant_id, made["id"])["result"]["findings"] == []


def test_the_lines_come_as_one_parquet_file_and_as_csv(world: World, database: Database) -> None:
    tenant_id = world.make_tenant()
    preview = previewed(world, database, tenant_id)
    known = previews(world, database)
    lines = lines_of(world, database, tenant_id, preview)
    with known.lines_parquet(tenant_id, preview["id"]) as file:
        assert pl.read_parquet(file).equals(lines)
    text = b"".join(lines_csv(known.lines(tenant_id, preview["id"]))).decode()
    rows = text.split("\r\n")
    assert rows[0] == ",".join(LINE_COLUMNS)
    assert len(rows) == lines.height + 2
    assert lines["document"].unique().to_list() == list(range(1, preview["result"]["documents"] + 1))
