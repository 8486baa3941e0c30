"""One spreading of partitions at a time, which goes on by itself when whoever asked for it has waited long enough.

Owns the waiting and the count; what a move is and which are needed is the caller's. It rests on nothing durable: who
dies in the middle has moved some partitions, and asking for the same again moves the rest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from billing.errors import BillingError, Conflict, Unavailable


@dataclass(frozen=True)
class Spread:
    """How far a spreading is, or how it ended. `stayed`: partitions that could not move."""

    lanes: tuple[int, ...]
    moved: int = 0
    stayed: int = 0
    left: int = 0
    done: bool = False
    error: str = ""


Tell = Callable[[Spread], None]


class SpreadJob:
    """`do(spread, tell)` makes the moves in a thread of the job, and tells after each how far it is."""

    def __init__(self, do: Callable[[Spread, Tell], None]) -> None:
        self._do = do
        self._lock = threading.Lock()
        self._now: Spread | None = None
        self._ended = threading.Event()
        self._failed: BillingError | None = None

    def now(self) -> Spread | None:
        """The one that is under way, or the last one."""
        return self._now

    def ask(self, lanes: Sequence[int], wait_s: float) -> Spread:
        """Begin it, or join the one that is under way with the same lanes; how far it is after `wait_s` at most.

        Raises what ended it; Conflict while partitions are spread over other lanes.
        """
        wanted = tuple(sorted(set(lanes)))
        with self._lock:
            now = self._now
            if now is None or now.done:
                self._now, self._failed, self._ended = Spread(wanted), None, threading.Event()
                threading.Thread(target=self._run, args=(self._now, self._ended), name="spread", daemon=True).start()
            elif now.lanes != wanted:
                names = ", ".join(map(str, now.lanes))
                raise Conflict(f"partitions are being spread over lanes {names}: {now.left} are left")
            ended = self._ended
        ended.wait(wait_s)
        with self._lock:
            if ended.is_set() and self._failed is not None and self._ended is ended:
                raise self._failed
            assert self._now is not None
            return self._now

    def _run(self, spread: Spread, ended: threading.Event) -> None:
        try:
            self._do(spread, self._tell)
        except BillingError as error:
            self._failed = error
        except Exception as error:
            self._failed = Unavailable(f"Spreading ended: {type(error).__name__}: {error}. Send the same again.")
            raise
        finally:
            assert self._now is not None
            self._now = replace(self._now, done=True, error="" if self._failed is None else self._failed.detail)
            ended.set()

    def _tell(self, spread: Spread) -> None:
        self._now = spread
