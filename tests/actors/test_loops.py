"""Loops of actors go on, whatever a round of theirs runs into, and say what it was."""

from __future__ import annotations

import threading

import polars as pl
import psycopg
import pytest
from structlog.testing import capture_logs

from actors.loops import keep_going
from billing.errors import Unavailable


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("moving"),
        AssertionError("a table has changed"),
        psycopg.OperationalError("the server closed the connection"),
        KeyError("x"),
        pl.exceptions.PanicException("overflow"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_loop_outlives_what_its_work_raises_and_says_it(error: BaseException) -> None:
    stopping, said, rounds = threading.Event(), list[str](), list[int]()

    def work() -> int:
        rounds.append(1)
        if len(rounds) == 2:
            raise error
        if len(rounds) == 4:
            stopping.set()
        return 0

    thread = threading.Thread(target=keep_going, args=("work", work, 0.001, stopping), kwargs={"said": said.append})
    thread.start()
    thread.join(timeout=20)
    assert len(rounds) == 4
    assert [bool(one) for one in said] == [False, True, False, False]
    assert said[1] == f"{type(error).__name__}: {error}"


def test_a_loop_stops_when_it_is_told_to_and_not_before() -> None:
    stopping = threading.Event()
    stopping.set()
    keep_going("work", lambda: 1 // 0, 0.001, stopping, said=lambda _: pytest.fail("it ran"))


def test_the_log_has_an_error_once_while_it_stays_the_same() -> None:
    stopping, rounds = threading.Event(), list[int]()

    def work() -> None:
        rounds.append(1)
        if len(rounds) == 6:
            stopping.set()
        if len(rounds) != 4:
            raise KeyError(len(rounds) > 4)

    with capture_logs() as logs:
        keep_going("work", work, 0.001, stopping)
    assert [one["error"] for one in logs] == ["KeyError: False", "KeyError: True"]


def test_a_bell_has_the_work_done_at_once_also_when_it_rings_during_the_work() -> None:
    stopping, bell, rounds = threading.Event(), threading.Event(), list[int]()

    def work() -> None:
        rounds.append(1)
        bell.set()
        if len(rounds) == 3:
            stopping.set()

    bell.set()
    thread = threading.Thread(target=keep_going, args=("work", work, 60.0, stopping), kwargs={"bell": bell})
    thread.start()
    thread.join(timeout=20)
    assert (len(rounds), thread.is_alive()) == (3, False)
