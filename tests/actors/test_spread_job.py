"""Spreading in the background: whoever asks hears in time, one at a time, and an end of any kind is told."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from actors.spread_job import Spread, SpreadJob, Tell
from billing.errors import Conflict, Unavailable


class Moves:
    """Five moves, each as soon as the test lets it."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.go = threading.Semaphore(0)
        self.begun = 0
        self._fails = fails

    def __call__(self, spread: Spread, tell: Tell) -> None:
        self.begun += 1
        for done in range(5):
            tell(replace(spread, moved=done, left=5 - done))
            assert self.go.acquire(timeout=10.0)
            if self._fails is not None:
                raise self._fails
        tell(replace(spread, moved=5, left=0))


def test_who_asks_hears_how_far_it_is_and_who_asks_again_joins_it() -> None:
    moves = Moves()
    job = SpreadJob(moves)
    assert job.now() is None
    began = time.monotonic()
    first = job.ask([1, 0, 1], 0.1)
    assert time.monotonic() - began < 5.0
    assert (first.lanes, first.done) == ((0, 1), False)
    moves.go.release()
    moves.go.release()
    seen = job.ask([0, 1], 0.2)
    assert (seen.moved, seen.left, seen.done) == (2, 3, False)
    with pytest.raises(Conflict, match="spread over lanes 0, 1"):
        job.ask([0], 0.1)
    for _ in range(3):
        moves.go.release()
    last = job.ask([0, 1], 10.0)
    assert (last.moved, last.left, last.done, moves.begun) == (5, 0, True, 1)
    assert job.now() == last


@pytest.mark.parametrize("error", [Unavailable("a lane does not answer"), RuntimeError("a lane does not answer")])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_ends_it_is_told_to_who_waits_and_to_who_looks_later(error: Exception) -> None:
    moves = Moves(fails=error)
    job = SpreadJob(moves)
    moves.go.release()
    with pytest.raises(Unavailable, match="a lane does not answer"):
        job.ask([0], 10.0)
    now = job.now()
    assert now is not None
    assert now.done
    assert "a lane does not answer" in now.error
    moves.go.release()
    with pytest.raises(Unavailable):
        job.ask([0], 10.0)
    assert moves.begun == 2, "asking again begins it again"
