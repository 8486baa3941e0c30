"""Benchmarks at their small size: they run, count right and print one JSON line last. No time is judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.runner import NAMES, available, percentiles

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.postgres
@pytest.mark.parametrize("name", ["ingest", "ingest_single", "freshness", "reservations"])
def test_ingest_over_http_counts_every_event_and_ends_with_one_json_line(name: str) -> None:
    done = bench(name, "--small")
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert (result["name"], result["size"]) == (name, "small")
    assert result["figure"] > 0
    for wanted in ("unit", "p50_ms", "p95_ms", "p99_ms", "cpu_s", "rss_mb", "load_before", "versions"):
        assert wanted in result, f"{wanted} is missing"


def test_the_steps_of_the_road_are_measured_for_each_size_of_requests() -> None:
    done = bench("ingest_steps", "--small")
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert set(result["whole"]) == set(result["steps"]) == {"1000", "1"}
    assert all(us >= 0 for steps in result["steps"].values() for us in steps.values())


def test_an_unknown_name_is_refused_with_the_names_that_exist() -> None:
    done = bench("speed")
    assert done.returncode == 2
    assert "ingest_single" in done.stderr


def test_every_benchmark_of_the_foundation_is_there() -> None:
    assert set(available()) == set(NAMES)


def test_percentiles_are_those_of_the_nearest_rank() -> None:
    assert percentiles([number / 1_000 for number in range(1, 101)]) == {
        "p50_ms": 51.0,
        "p95_ms": 96.0,
        "p99_ms": 100.0,
    }
