"""How a bill run says what went wrong and how long it takes: errors that are over, stores that are away, time left."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from billing.errors import Unavailable
from cluster.cli import billing as bill_run_command
from pipelines import chunk_executor, document_files
from pipelines.bill_run import BillRunDriver
from pipelines.run_view import seconds_left
from storage.archive import Archive
from storage.master_chain import MasterChain
from storage.object_store import LocalObjectStore, StoreRefused, StoreUnavailable
from storage.sql import overview
from storage.sql.database import Database
from tests.chaos.bill_run_world import CUSTOMERS, MARCH, NOW, World

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def undisturbed(world: World) -> dict[str, Any]:
    tenant_id = world.make_tenant()
    with Database(world.dsn) as database:
        driver = world.driver(database)
        assert driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "test")["id"])["state"] == "done"
    return world.outcome(tenant_id)


def broken_run(world: World, database: Database, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Tenant and run, of which a chunk failed for good; what broke it is mended by now."""
    tenant_id = world.make_tenant()
    driver = world.driver(database)
    run_id = driver.plan(tenant_id, MARCH, "ann")["id"]

    def odd(*_: Any) -> Any:
        raise RuntimeError("this chunk breaks")

    with monkeypatch.context() as broken:
        broken.setattr(chunk_executor, "compute_chunk", odd)
        with pytest.raises(RuntimeError, match="this chunk breaks"):
            driver.drive(tenant_id, run_id)
    assert "this chunk breaks" in driver.get(tenant_id, run_id)["error"]
    return tenant_id, run_id


def test_an_error_that_is_mended_is_said_no_more(
    world: World, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_id, run_id = broken_run(world, database, monkeypatch)
    while_it_works: list[str | None] = []

    def look(step: str) -> None:
        if step == "usage gathered":
            while_it_works.append(driver.get(tenant_id, run_id)["error"])

    driver = world.driver(database, checkpoint=look)
    done = driver.drive(tenant_id, run_id)  # nobody resumed it: a platform that starts drives it on
    assert while_it_works == [None]
    assert (done["state"], done["error"]) == ("done", None)
    driver._note(tenant_id, run_id, "another driver came late", waits=False)
    assert driver.get(tenant_id, run_id)["error"] is None


def test_who_resumes_a_run_and_follows_it_does_not_meet_the_old_error(
    world: World, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_id, run_id = broken_run(world, database, monkeypatch)
    driver = world.driver(database)
    driver.resume(tenant_id, run_id)

    class Platform:
        """It begins to drive after the first look."""

        def get(self, path: str) -> dict[str, Any]:
            return driver.drive(tenant_id, run_id)

    assert bill_run_command._follow(Platform(), driver.get(tenant_id, run_id))["state"] == "done"


class SickStore(LocalObjectStore):
    """A store that takes no data of some kind: full, or dead and what became of the write is open."""

    sick: Callable[[str, str], bool] | None = None
    stores_and_dies = False

    def create(self, key: str, data: bytes) -> bool:
        self._ask("create", key, data)
        return super().create(key, data)

    def get(self, key: str) -> bytes | None:
        self._ask("get", key)
        return super().get(key)

    def _ask(self, what: str, key: str, data: bytes = b"") -> None:
        if self.sick is None or not self.sick(what, key):
            return
        if not self.stores_and_dies:
            raise StoreRefused("The object store takes no data: no space is left")
        if what == "create":
            super().create(key, data)
        raise StoreUnavailable("The object store cannot say what became of it")


PLACES: dict[str, tuple[str, Callable[[str, str], bool]]] = {
    "gather": ("planned", lambda what, key: what == "create" and "/usage/" in key),
    "result": ("planned", lambda what, key: what == "create" and key.startswith("runs/") and "/usage/" not in key),
    "approval": ("approved", lambda what, key: what == "create" and key.startswith("master")),
    "finalising": ("approved", lambda what, key: what == "get" and key.startswith("runs/") and "/usage/" not in key),
    "files": ("finalised", lambda what, key: what == "create" and key.startswith("archive/")),
}


@pytest.mark.parametrize("stores_and_dies", [False, True], ids=["full", "dead"])
@pytest.mark.parametrize("place", PLACES)
def test_a_store_that_is_full_or_dead_is_said_at_the_run_and_nothing_is_lost_or_doubled(
    place: str, stores_and_dies: bool, world: World, database: Database, undisturbed: dict[str, Any]
) -> None:
    tenant_id = world.make_tenant()
    store = SickStore(world.directory)
    store.stores_and_dies = stores_and_dies
    state, sick = PLACES[place]
    seen: list[str | None] = []

    def look(step: str) -> None:
        if step == "computed" and state != "planned":
            store.sick = sick
        if step in ("chunk noted", "credit settled", "files made") and store.sick is None:
            seen.append(driver.get(tenant_id, run_id)["waiting_reason"])

    driver = BillRunDriver(database, store, MasterChain(store), Archive(database, store), lambda: NOW, checkpoint=look)
    run_id = driver.plan(tenant_id, MARCH, "ann")["id"]
    if state == "planned":
        store.sick = sick
    # The actor's loop: it says so for as long as it lasts. What follows the approval asks for nothing of the kind.
    for _ in range(1 if place == "approval" else 2):
        with pytest.raises(Unavailable):
            driver.drive(tenant_id, run_id)
        waits = driver.get(tenant_id, run_id)
        assert (waits["state"], waits["error"]) == (state, None)
        assert waits["waiting_reason"].startswith("The object store")
        assert "seconds_left" not in waits["progress"]
        with database.tenant(tenant_id) as connection:
            row = overview.run(connection, run_id)
            assert row is not None
            assert row.waiting_reason == waits["waiting_reason"]
    store.sick = None
    seen.clear()
    done = driver.drive(tenant_id, run_id)
    assert (done["state"], done["waiting_reason"]) == ("done", None)
    assert seen
    assert set(seen) == {None}  # from the first thing that is done again
    assert world.outcome(tenant_id) == undisturbed


def test_time_left_is_that_of_the_stage_by_its_own_speed(
    world: World, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_files, "BATCH", 2)
    tenant_id = world.make_tenant()
    now = NOW
    left: dict[str, tuple[int, int, float | None]] = {}

    def look(step: str) -> None:
        nonlocal now
        if step in ("chunk noted", "credit settled", "files made") and step not in left:
            now += timedelta(seconds=10)
            progress = driver.get(tenant_id, run_id)["progress"]
            left[step] = progress["done"], progress["total"], progress.get("seconds_left")

    def clock() -> datetime:
        return now

    gather = chunk_executor.gather_usage

    def slow(*given: Any) -> None:
        nonlocal now
        now += timedelta(minutes=10)  # read once, whatever the chunks take
        gather(*given)

    monkeypatch.setattr(chunk_executor, "gather_usage", slow)
    store = LocalObjectStore(world.directory)
    driver = BillRunDriver(database, store, MasterChain(store), Archive(database, store), clock, checkpoint=look)
    run_id = driver.plan(tenant_id, MARCH, "ann")["id"]
    driver.drive(tenant_id, run_id, approve=False)
    now += timedelta(hours=12)
    assert "seconds_left" not in driver.get(tenant_id, run_id)["progress"]
    done = driver.drive(tenant_id, run_id, approve=True)
    assert done["state"] == "done"
    assert "seconds_left" not in done["progress"]
    documents = done["documents"]["made"]
    assert left == {
        "chunk noted": (3, CUSTOMERS, pytest.approx(13.3)),
        "credit settled": (3, CUSTOMERS, pytest.approx(13.3)),
        "files made": (2, documents, pytest.approx(10 * (documents - 2) / 2)),
    }


def test_who_takes_a_stage_up_again_measures_from_there() -> None:
    run = {
        "state": "finalised", "paused": False, "error": None, "waiting_reason": None,
        "stage_since": NOW, "stage_from": 500,
    }  # fmt: skip
    assert seconds_left(run, 600, 1_000, NOW + timedelta(seconds=10)) == 40
    assert seconds_left(run, 500, 1_000, NOW + timedelta(seconds=10)) is None
    for name, value in (("paused", True), ("error", "x"), ("waiting_reason", "x"), ("state", "computed")):
        assert seconds_left(run | {name: value}, 600, 1_000, NOW + timedelta(seconds=10)) is None


def test_the_command_says_what_a_run_waits_for_and_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    def run(state: str, **more: Any) -> dict[str, Any]:
        progress = {"stage": "making documents", "done": 500, "total": 1_000, "seconds": 9.0, **more}
        return {"id": "r1", "state": state, "error": None, "waiting_reason": more.get("why"), "progress": progress}

    class Platform:
        looks = iter([run("finalised", seconds_left=42.0), run("done")])

        def get(self, path: str) -> dict[str, Any]:
            return next(self.looks)

    bill_run_command._follow(Platform(), run("finalised", why="no space is left"))
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == [
        "making documents, waits: no space is left: 500 of 1,000",
        "making documents: 500 of 1,000 (42 s left)",
    ]
