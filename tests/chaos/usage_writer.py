"""The process that tests/chaos/test_usage_kills.py kills: one rating shard that is sent numbered batches.

Prints a line for each acknowledged batch. With a step and a count it sends itself SIGKILL at that step, the real one,
at the place of the code where it happens; nothing runs after it, no handler, no flush.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import storage.object_store as object_store
import storage.usage_log.checkpoints as checkpoints
from actors.rating_shard import RatingShard, ShardSettings
from storage.object_store import LocalObjectStore
from tests.usage_log_support import make_events, send

BATCH_ROWS = 50
STEPS = (
    "before the draft",
    "draft written",
    "before the link",
    "linked",
    "folder durable",
    "before the answer",
    "run written",
    "snapshot written",
    "checkpoint announced",
)


def kill_at(step: str, count: int) -> None:
    """Arrange for SIGKILL the `count`-th time that `step` is reached while serving."""
    left = {"count": count}

    def reached() -> None:
        left["count"] -= 1
        if left["count"] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(module: Any, name: str, *, before: bool, wanted: Callable[..., bool] = lambda *_: True) -> None:
        original = getattr(module, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if before and wanted(*args):
                reached()
            result = original(*args, **kwargs)
            if not before and wanted(*args):
                reached()
            return result

        setattr(module, name, wrapped)

    def in_lane(folder: Any, *_: Any) -> bool:
        return "lanes" in str(folder)

    match step:
        case "before the draft":
            around(object_store, "_write_draft", before=True, wanted=in_lane)
        case "draft written":
            around(object_store, "_fsync", before=True)
        case "before the link":
            around(object_store.os, "link", before=True, wanted=lambda _, path: in_lane(path))
        case "linked":
            around(object_store.os, "link", before=False, wanted=lambda _, path: in_lane(path))
        case "folder durable":
            around(object_store, "_fsync_folder", before=False, wanted=in_lane)
        case "before the answer":
            around(RatingShard, "_finish", before=True)
        case "run written":
            around(checkpoints, "write_run", before=False)
        case "snapshot written":
            around(LocalObjectStore, "put", before=False, wanted=lambda _, key, __: "snapshots" in key)
        case "checkpoint announced":
            around(LocalObjectStore, "create", before=False, wanted=lambda _, key, __: "manifest" in key)
        case _:
            assert not step, step


def main(directory: str, first: int, last: int, step: str, count: int) -> None:
    shard = RatingShard(0, LocalObjectStore(Path(directory)), settings=ShardSettings(checkpoint_rows=400))
    shard.start()
    kill_at(step, count)
    print("serving", flush=True)
    for number in range(first, last):
        answer = send(shard, make_events(BATCH_ROWS, number * BATCH_ROWS))
        assert answer.failed is None, answer
        print("acknowledged", number, flush=True)
    shard.stop()
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
