"""kill -9 of a real writer at each named step and at random moments: nothing acknowledged is lost or doubled."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actors.rating_shard import RatingShard
from storage.object_store import LocalObjectStore
from tests.chaos.usage_writer import BATCH_ROWS, STEPS
from tests.usage_log_support import logged_ids, make_events, send

pytestmark = pytest.mark.chaos
ROOT = Path(__file__).parents[2]


def start_writer(directory: Path, first: int, last: int, step: str = "", count: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.usage_writer", str(directory), str(first), str(last), step, str(count)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "POLARS_MAX_THREADS": "1"},
    )


def acknowledged_in(output: str) -> list[int]:
    """Whole lines only: a kill may leave the last one torn."""
    return [
        int(line.split()[1]) for line in output.splitlines(keepends=True) if re.fullmatch(r"acknowledged \d+\n", line)
    ]


def ids_of(batch: int) -> set[str]:
    return {f"event-{number}" for number in range(batch * BATCH_ROWS, (batch + 1) * BATCH_ROWS)}


@pytest.mark.parametrize("step", STEPS)
def test_a_writer_killed_at_a_step_loses_nothing_and_doubles_nothing(tmp_path: Path, step: str) -> None:
    rare = step in ("run written", "snapshot written", "checkpoint announced")
    writer = start_writer(tmp_path, 0, 40, step, 1 if rare else 7)
    output, _ = writer.communicate(timeout=60)
    assert writer.returncode == -signal.SIGKILL, f"it was not killed at {step!r}: {output}"
    acknowledged = acknowledged_in(output)
    assert acknowledged, "killed before anything was acknowledged: the test would show nothing"
    stored = set(logged_ids(LocalObjectStore(tmp_path)))
    for batch in acknowledged:
        assert ids_of(batch) <= stored, f"batch {batch} was acknowledged and is lost"

    successor = RatingShard(0, LocalObjectStore(tmp_path))
    successor.start()
    for batch in range(40):
        answer = send(successor, make_events(BATCH_ROWS, batch * BATCH_ROWS))
        assert answer.failed is None
        assert (answer.verdicts == 1).all() or not ids_of(batch) <= stored
    successor.stop()
    ids = logged_ids(LocalObjectStore(tmp_path))
    assert len(ids) == len(set(ids)) == 40 * BATCH_ROWS


def test_a_writer_killed_at_random_moments_and_two_writers_at_once_keep_each_event_once(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}")
    dice = random.Random(seed)
    acknowledged: set[int] = set()
    for _ in range(5):
        first = max(0, max(acknowledged, default=0) - 20)
        writer = start_writer(tmp_path, first, first + 5_000)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "serving\n"
        # Another one on the same lane: it claims, so the first must lose, whatever either believes.
        rival = start_writer(tmp_path, first, first + 5_000) if dice.random() < 0.4 else None
        time.sleep(dice.uniform(0.05, 0.6))
        writer.kill()
        output = writer.communicate(timeout=30)[0]
        if rival is not None:
            time.sleep(dice.uniform(0.8, 1.5))
            rival.kill()
            output += rival.communicate(timeout=30)[0]
        acknowledged.update(acknowledged_in(output))
    ids = logged_ids(LocalObjectStore(tmp_path))
    assert acknowledged
    assert len(ids) == len(set(ids)), "stored twice"
    for batch in acknowledged:
        assert ids_of(batch) <= set(ids), f"batch {batch} was acknowledged and is lost"


def test_a_draft_that_a_crash_left_torn_is_never_read_and_swept_a_day_later(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)
    shard = RatingShard(0, store)
    shard.start()
    send(shard, make_events(10))
    shard.stop()
    torn = tmp_path / "log/lanes/0000/000000/.draft-torn"
    torn.write_bytes(b"PAR1 half of it")
    successor = RatingShard(0, store)
    successor.start()
    assert (send(successor, make_events(10)).verdicts == 1).all()
    successor.stop()
    assert not any("draft" in key for key in store.list("log/"))
    assert store.sweep_drafts(now=time.time()) == 0, "a draft of today may be in use"
    assert store.sweep_drafts(now=time.time() + 2 * 86_400) == 1
    assert not torn.exists()
