"""The common runner: finds a benchmark by name, watches its cost, prints one JSON line.

A benchmark is a module of this package with `run(size, say) -> dict`; the dict holds `figure`, `unit`, and what else it
measured (`p50_ms`, `ratio_<peer>` ...). One that only has `main(arguments)` is run as a child process and prints its
own line last. Correctness is asserted inside: a run that loses an event raises and has no figure. The runner adds what
every figure needs beside it: processor time and memory (children included), versions, load before the start.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

NAMES = (
    *(
        "rating",
        "documents",
        "archive",
        "bill_run",
        "recovery",
        "takeover",
        "dedup",
        "event_bytes",
        "ingest_log",
        "aggregation",
    ),
    *("ingest", "ingest_filled", "move_pause", "ingest_single", "ingest_steps", "freshness", "reservations", "soak"),
)
VERSIONS = ("ray", "polars", "pyarrow", "psycopg", "fastapi", "typst")
SECONDS_MAX = {"small": 300, "normal": 1_800, "long": 7_200}
QUIET_LOAD = 0.5  # per core; above it a figure is printed, but says so

Say = Callable[[str], None]


def measure(name: str, size: str, say: Say) -> dict[str, Any]:
    """Run one benchmark; its result with the cost around it. Raises what the benchmark raises."""
    before = os.getloadavg()[0]
    cpu, began = _cpu_seconds(), time.monotonic()
    module = importlib.import_module(f"benchmarks.{name}")
    result = dict(module.run(size, say)) if hasattr(module, "run") else _in_a_child(name, size)
    cores = os.cpu_count() or 1
    return {
        "name": name,
        "size": size,
        **result,
        "seconds": round(time.monotonic() - began, 1),
        "cpu_s": result.get("cpu_s") or round(_cpu_seconds() - cpu, 2),
        "rss_mb": result.get("rss_mb") or _rss_mb(),
        "load_before": round(before, 2),
        "quiet": before <= QUIET_LOAD * cores,
        "versions": versions() | result.get("versions", {}),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "cores": str(os.cpu_count()), "machine": platform.machine()}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def available() -> list[str]:
    """The benchmarks that exist, in the order of running."""
    return [name for name in NAMES if importlib.util.find_spec(f"benchmarks.{name}") is not None]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", default="all", help=f"one of {', '.join(available())}, or all")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_const", const="small", dest="size", help="seconds, no figure to quote")
    size.add_argument("--long", action="store_const", const="long", dest="size", help="the full size")
    options = parser.parse_args(arguments)
    names = [name for name in available() if name != "soak"] if options.name == "all" else [options.name]
    if unknown := [name for name in names if name not in available()]:
        print(f"there is no benchmark {unknown[0]}; there are: {', '.join(available())}", file=sys.stderr)
        return 2
    for name in names:
        say(f"{name}: starting")
        print(json.dumps(measure(name, options.size or "normal", say), sort_keys=False), flush=True)
    return 0


def say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds of a list of times (nearest rank)."""
    ordered = sorted(seconds)
    assert ordered, "no time was measured"
    return {
        f"p{percent}_ms": round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] * 1_000, 2)
        for percent in (50, 95, 99)
    }


def _in_a_child(name: str, size: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.{name}", *(["--small"] if size == "small" else [])]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, timeout=SECONDS_MAX[size], cwd=Path(__file__).parents[1]
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _rss_mb() -> int:
    """The largest resident size of this process or of one ended child."""
    unit = 1024 if sys.platform == "linux" else 1024 * 1024
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) // unit


def tree_cost(pid: int) -> tuple[float, int]:
    """Processor seconds and resident MB of a running process tree: what a platform beside us costs."""
    seconds, bytes_resident = 0.0, 0
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
            seconds += times.user + times.system
            bytes_resident += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return seconds, bytes_resident // (1024 * 1024)
