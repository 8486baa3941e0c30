"""Loops in threads of actors that watch, carry and tidy: they go on whatever a round runs into."""

from __future__ import annotations

import threading
from collections.abc import Callable

import polars as pl
import structlog

LOG = structlog.get_logger("cloudbilling.loops")


def keep_going(
    name: str,
    work: Callable[[], object],
    every_s: float,
    stopping: threading.Event,
    *,
    said: Callable[[str], None] = lambda _: None,
    pause_s: float = 0.0,
    bell: threading.Event | None = None,
) -> None:
    """Do the work every `every_s` seconds until told to stop, `pause_s` at least after a fault.

    Who sets `bell` has it done at once; whoever sets `stopping` sets it, too.
    `said` hears each round's error, or "". The log has an error once for as long as it stays the same. A loop that
    ended would be missed by nobody: its actor lives on, and what the loop did stands still.
    """
    pause, before = every_s, ""
    while not _told(stopping, bell, pause):
        try:
            work()
            said("")
            pause, before = every_s, ""
        except (Exception, pl.exceptions.PanicException) as error:
            now = f"{type(error).__name__}: {error}"
            said(now)
            if now != before:
                LOG.warning("a round failed and is tried again", loop=name, error=now, exc_info=True)
            pause, before = max(pause_s, every_s), now


def _told(stopping: threading.Event, bell: threading.Event | None, pause_s: float) -> bool:
    if bell is None:
        return stopping.wait(pause_s)
    bell.wait(pause_s)
    bell.clear()  # before the work: what rings during it is not missed
    return stopping.is_set()
