"""Long work that is kept in the object store: what deletes it while it is driven leaves nothing behind."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from billing.errors import Conflict, InvalidInput, NotFound, Unavailable
from pipelines.kept_work import KeptWork
from storage.object_store import LocalObjectStore

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
FACTS = {"id": "1", "chunks": [3, 2]}


@pytest.fixture
def kept(tmp_path: Path) -> KeptWork:
    one = KeptWork(LocalObjectStore(tmp_path), lambda: NOW, "preview", "previews", 2)
    one.plan("t", FACTS)
    return one


def keys(kept: KeptWork) -> list[str]:
    return sorted(kept.store.list("previews/"))


def test_progress_is_told_in_customers_and_the_summary_ends_it(kept: KeptWork) -> None:
    kept.note("t", "1", "running", 1, stage="computing")
    view = kept.view("t", "1", FACTS, kept.state("t", "1"), ("chunks",))
    assert (view["state"], view["progress"]["done"], view["progress"]["total"]) == ("running", 3, 5)
    with pytest.raises(Conflict, match="goes on: cancel it first"):
        kept.delete("t", "1", view["state"])
    kept.end("t", "1", {"sum": "1"}, 2)
    kept.note("t", "1", "running", 1)  # a second driver that is late
    view = kept.view("t", "1", FACTS, kept.state("t", "1"), ("chunks",))
    assert (view["state"], view["result"], view["progress"]["done"]) == ("done", {"sum": "1"}, 5)


def test_what_does_not_mend_itself_is_noted_and_what_does_is_not(kept: KeptWork) -> None:
    def fails(error: Exception) -> str:
        raise error

    with pytest.raises(Unavailable):
        kept.guarded("t", "1", lambda: fails(Unavailable("away")))
    assert kept.state("t", "1")["state"] == "planned"
    with pytest.raises(InvalidInput):
        kept.guarded("t", "1", lambda: fails(InvalidInput("odd")))
    assert (kept.state("t", "1")["state"], kept.state("t", "1")["error"]) == ("failed", "odd")
    with pytest.raises(ZeroDivisionError):
        kept.guarded("t", "1", lambda: fails(ZeroDivisionError("bug")))
    assert kept.state("t", "1")["error"] == "ZeroDivisionError: bug"


def test_one_that_an_erasure_deleted_while_it_was_driven_leaves_nothing(kept: KeptWork) -> None:
    def erased() -> str:
        for key in keys(kept):
            kept.store.delete(key)
        kept.store.put("previews/t/1/chunk-000001.parquet", b"of a task that was under way")
        raise Conflict("what was computed is gone")

    with pytest.raises(Conflict):
        kept.guarded("t", "1", erased)
    assert keys(kept) == []

    def chunk_of_a_task_that_was_under_way() -> None:
        kept.store.put("previews/t/1/chunk-000001.parquet", b"of a task that was under way")

    def finds_no_facts() -> str:
        chunk_of_a_task_that_was_under_way()
        kept.facts("t", "1")
        raise AssertionError("there are none")

    with pytest.raises(NotFound):
        kept.guarded("t", "1", finds_no_facts)
    assert keys(kept) == []

    def ends_all_the_same() -> str:
        chunk_of_a_task_that_was_under_way()
        return kept.end("t", "1", {"sum": "1"}, 2)

    assert kept.guarded("t", "1", ends_all_the_same) == "cancelled"
    assert keys(kept) == []


def test_one_that_does_not_find_something_else_has_failed(kept: KeptWork) -> None:
    def fails() -> str:
        raise NotFound("there is no such customer")

    with pytest.raises(NotFound):
        kept.guarded("t", "1", fails)
    assert (kept.state("t", "1")["state"], kept.state("t", "1")["error"]) == ("failed", "there is no such customer")


def test_what_a_dead_driver_left_of_a_deleted_one_is_swept_and_a_plan_being_written_is_not(kept: KeptWork) -> None:
    def made(before: timedelta) -> str:
        number = int((NOW - before).timestamp() * 1_000) << 80 | 7 << 76 | 2 << 62
        return str(UUID(int=number))

    old, whole, new = made(timedelta(hours=2)), made(timedelta(hours=3)), made(timedelta(minutes=1))
    kept.plan("t", {"id": whole, "chunks": [1]})
    for id_ in (old, new, "of-nobody"):
        kept.store.put(f"previews/t/{id_}/usage/a/chunk-000001.parquet", b"put late")
    kept.store.put(f"previews/t/{old}/summary.json", b"{}")
    before = keys(kept)
    assert kept.sweep("t") == 1
    assert keys(kept) == [key for key in before if f"/{old}/" not in key]


def test_what_goes_on_is_told_by_one_list_and_one_request_for_each_that_may(tmp_path: Path) -> None:
    asked: list[str] = []

    class Counted(LocalObjectStore):
        def get(self, key: str) -> bytes | None:
            asked.append(f"get {key.split('/')[-1]}")
            return super().get(key)

        def exists(self, key: str) -> bool:
            asked.append(f"exists {key.split('/')[-1]}")
            return super().exists(key)

    store = Counted(tmp_path)
    kept = KeptWork(store, lambda: NOW, "preview", "previews", 9)
    for id_ in ("1", "2", "3", "4"):
        kept.plan("t", {"id": id_, "chunks": [1]})
    kept.end("t", "1", {}, 1)
    kept.cancel("t", "2", "planned")
    kept.note("t", "3", "running", 0)
    asked.clear()
    heads = kept.heads("t")
    assert asked == ["get progress.json"] * 2
    assert [(one.id, one.state, one.goes_on) for one in heads] == [
        ("4", "planned", True), ("3", "running", True), ("2", "cancelled", False), ("1", "done", False)
    ]  # fmt: skip
    assert [one.state for one in heads] == [kept.state("t", one.id)["state"] for one in heads]
    with pytest.raises(Conflict, match="goes on"):
        kept.make_room(heads)
    kept.make_room(heads[2:])
