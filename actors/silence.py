"""Ends a named actor that is there and does not answer, so that Ray starts it again; who has died, Ray restarts itself.

The supervisor of the lanes and the platform's upkeep watch each other like this: each notices of its own children
whether they hang, and nobody above them does.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Protocol

import ray
import structlog
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError

LOG = structlog.get_logger("cloudbilling.silence")
SUPERVISOR_NAME = "usage-supervisor"
UPKEEP_NAME = "upkeep"
EVERY_S = 2.0  # between two questions
ASK_TIMEOUT_S = 2.0  # a thread of its own answers, in milliseconds
SILENT_S_MAX = 10.0
STARTING_S_MAX = 60.0  # of one that was ended: until its process is up


class Watched(Protocol):
    def answers(self) -> bool | None:
        """None: there is none, or it is dead, which is not ours to mend."""
        ...

    def end(self) -> None: ...


class SilenceWatch:
    """Asks in rounds; ends who has been silent for too long, and gives its successor the time of a start."""

    def __init__(self, watched: Watched, name: str, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._watched, self._name, self._now_s = watched, name, now_s
        self._silent_since_s: float | None = None
        self._patience_s = SILENT_S_MAX

    def round(self) -> None:
        asked_s = self._now_s()
        answer = self._watched.answers()
        if answer is not False:
            self._silent_since_s = None
            if answer:
                self._patience_s = SILENT_S_MAX
            return
        if self._silent_since_s is None:
            self._silent_since_s = asked_s
        silent_s = self._now_s() - self._silent_since_s
        if silent_s < self._patience_s:
            return
        LOG.error("a process hangs and is ended, so that it starts again", actor=self._name, silent_s=round(silent_s))
        self._watched.end()
        self._silent_since_s, self._patience_s = None, STARTING_S_MAX


class NamedActor:
    """`Watched` over Ray: any actor with a method `is_there`, best in a concurrency group of its own."""

    def __init__(self, name: str, namespace: str) -> None:
        self._name, self._namespace = name, namespace

    def answers(self) -> bool | None:
        try:
            actor = ray.get_actor(self._name, namespace=self._namespace)
            # Without retries: a question that nobody answered in time is not asked of the successor.
            answer = actor.is_there.options(max_task_retries=0).remote()
            return bool(ray.get(answer, timeout=ASK_TIMEOUT_S))
        except (GetTimeoutError, ActorUnavailableError):  # the latter: the way to it is broken, it may live
            return False
        except (ValueError, RayError):
            return None

    def end(self) -> None:
        with contextlib.suppress(ValueError, RayError):  # it went by itself meanwhile
            ray.kill(ray.get_actor(self._name, namespace=self._namespace), no_restart=False)


def watch(name: str, namespace: str) -> SilenceWatch:
    return SilenceWatch(NamedActor(name, namespace), name)
