"""A bill run on several Ray nodes: all of them work, and it ends the same although one is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.postgres
def test_a_bill_run_uses_all_nodes_and_ends_the_same_although_one_is_killed() -> None:
    with TemporaryDirectory(prefix="cb-nodes-") as directory:
        done = subprocess.run(
            [sys.executable, "-m", "tests.chaos.bill_run_nodes", directory],
            cwd=ROOT,
            env={**os.environ, "POLARS_MAX_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=290,
            check=False,
        )
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3_000:]}"
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["documents"] > 0
    assert seen["nodes"] == 3, seen
    assert sum(seen["tasks"]) >= seen["groups"], "each group of partitions is a task"
    assert seen["same_on_three"]
    assert seen["killed"] > 0
    assert seen["same_with_kill"]
