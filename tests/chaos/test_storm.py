"""The storm in its short form, in a process and a Ray of its own: nothing lost, nothing double, equal to the digit.

The long form is `make chaos`; both print their seed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from tests.chaos.storm import failed
from tests.chaos.storm_events import DUPLICATES, Batches, Expected, events_of

ROOT = Path(__file__).parents[2]


def test_the_events_of_a_storm_are_what_its_oracle_says() -> None:
    batches = [numbers for sender in range(3) for numbers in Batches(7, sender, 3, 10_000, 500)]
    rows = np.concatenate(batches)
    assert (np.unique(rows) == np.arange(10_000)).all(), "each number is sent"
    assert 0.8 * DUPLICATES < 1 - 10_000 / len(rows) < 1.2 * DUPLICATES
    assert not (np.diff(batches[0]) >= 0).all(), "in disorder"
    events = events_of(np.arange(2_000))
    quantities = events["data"].str.json_path_match("$.gb").to_list()
    expected = Expected.of(np.arange(2_000))
    for customer in (0, 7, 499):
        own = [Decimal(text) for text, key in zip(quantities, events["customer"], strict=True) if key == f"c{customer}"]
        assert sum(own) == expected.quantity(customer)


def test_a_storms_result_is_wrong_as_soon_as_one_event_is() -> None:
    fine = {"errors": [], "lost": 0, "doubled": 0, "sums_equal": True, "unsent": 0}
    assert failed(fine) == []
    for change in ({"lost": 1}, {"doubled": 1}, {"sums_equal": False}, {"unsent": 1}, {"errors": ["a sender hangs"]}):
        assert failed(fine | change), change
    for change in ({"complete": False}, {"days_differ": [3]}, {"live_differs": [3]}):
        assert failed(fine | change), change


@pytest.mark.ray
@pytest.mark.chaos
def test_a_short_storm_over_two_nodes_loses_nothing_and_doubles_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.storm", "--events", "200000", "--kills", "2", "--minutes", "4"],
        cwd=ROOT,
        env={**os.environ, "POLARS_MAX_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3_000:]}"
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["stored"] == 200_000
    assert result["happened"]["shard"] == 2
    assert result["happened"]["hang"] == 1
