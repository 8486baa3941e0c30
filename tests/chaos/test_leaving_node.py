"""A node that leaves, on two Ray nodes of this machine."""

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
def test_the_lanes_of_a_node_that_leaves_go_elsewhere_while_usage_comes_in() -> None:
    with TemporaryDirectory(prefix="cb-nodes-") as directory:
        done = subprocess.run(
            [sys.executable, "-m", "tests.chaos.leaving_node", directory],
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
    assert seen["on_it_before"], seen
    assert seen["told"]
    assert seen["last_is_refused"]
    assert seen["sent"] == seen["logged"] == seen["distinct"], seen
