"""Long work that is kept in the object store: what deletes it while it is driven leaves nothing behind."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from billing.errors import Conflict, InvalidInput, Unavailable
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
    view = kept.view("t", "1", FACTS, ("chunks",))
    assert (view["state"], view["progress"]["done"], view["progress"]["total"]) == ("running", 3, 5)
    with pytest.raises(Conflict, match="goes on: cancel it first"):
        kept.delete("t", "1", view["state"])
    kept.end("t", "1", {"sum": "1"}, 2)
    kept.note("t", "1", "running", 1)  # a second driver that is late
    view = kept.view("t", "1", FACTS, ("chunks",))
    assert (view["state"], view["result"]) == ("done", {"sum": "1"})


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
