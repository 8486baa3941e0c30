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

from tests.chaos import storm as storm_module
from tests.chaos.storm import Settings, Storm, failed
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
    fine = {"errors": [], "lost": 0, "doubled": 0, "sums_equal": True, "unsent": 0, "planned": {}, "happened": {}}
    assert failed(fine) == []
    for change in ({"lost": 1}, {"doubled": 1}, {"sums_equal": False}, {"unsent": 1}, {"errors": ["a sender hangs"]}):
        assert failed(fine | change), change
    for change in ({"complete": False}, {"days_differ": [3]}, {"live_differs": [3]}):
        assert failed(fine | change), change


@pytest.mark.parametrize("missing", ["shard", "replica", "hang", "node", "moves"])
def test_a_storm_in_which_something_did_not_happen_is_none(missing: str, tmp_path: Path) -> None:
    settings = Settings(
        events=100, rows=10, senders=1, lanes=3, nodes=3, kills=8, node_kills=1, hangs=2, moves=True, http=True,
        minutes=1, seed=7,
    )  # fmt: skip
    storm = Storm(settings, tmp_path)
    storm.counts.update({"shard": 6, "replica": 2, "hang": 2, "node": 1, "moves": 12, "moves interrupted": 3})
    fine = {"errors": [], "lost": 0, "doubled": 0, "sums_equal": True, "unsent": 0, **storm._figures(125.0)}
    assert failed(fine) == []
    storm.counts[missing] -= 1
    assert failed(fine | storm._figures(125.0)) == [
        f"it was no storm: {missing} happened {storm.counts[missing]} times, not {storm.counts[missing] + 1}"
    ]
    del storm.counts[missing]
    assert failed(fine | storm._figures(125.0))


def test_strikes_that_come_when_all_is_sent_do_not_count_and_one_without_a_victim_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        events=700, rows=10, senders=1, lanes=1, nodes=1, kills=4, node_kills=0, hangs=0, moves=False, http=True,
        minutes=1, seed=7,
    )  # fmt: skip
    storm = Storm(settings, tmp_path)
    struck: list[str] = []

    def strike(kind: str) -> None:
        struck.append(kind)
        storm.progress.rows += 300
        storm._sending = len(struck) < 2

    monkeypatch.setattr(storm, "_strike", strike)
    storm.progress.rows = 300
    storm._make_chaos()
    assert struck == [kind for _, kind in storm.plan][:2]

    class NoReplicas:
        def processes(self, _: str) -> list[object]:
            return []

    storm = Storm(settings, tmp_path)
    storm.nodes = NoReplicas()  # type: ignore[assignment]
    storm.plan = [(0.0, "replica")]
    monkeypatch.setattr(storm_module, "BACK_S_MAX", 0.05)
    storm._make_chaos()
    assert storm.progress.errors == ["chaos: AssertionError: there is no replica to kill"]


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_short_storm_over_two_nodes_loses_nothing_and_doubles_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.storm", "--events", "2000000", "--kills", "5", "--minutes", "6"],
        cwd=ROOT,
        env={**os.environ, "POLARS_MAX_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3_000:]}"
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["stored"] == 2_000_000
    assert result["planned"] == {"shard": 5, "hang": 1}
