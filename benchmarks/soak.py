"""A platform at a steady load for a long time: does the memory of any of its processes grow?

60 minutes with `--long`, 5 otherwise (`CLOUDBILLING_SOAK_MINUTES`), at a fixed offered rate (`CLOUDBILLING_SOAK_RATE`
events/s; default 20,000, about half of what a small machine carries beside the sender), a tenth of them repeats. Every
second the resident size of each process is noted. The first third is warm-up: caches, pools and the table of recent ids
fill. After it a line is fitted to each process's sizes; flat means that no line rises by more than GROWTH_MAX_PERCENT
of the process's size (and GROWTH_MIN_MB) over the rest of the run. All that was acknowledged is counted at the end.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.ingest import NDJSON, bodies, stored_events
from benchmarks.platform import Measured, platform
from benchmarks.runner import Say

MINUTES = {"small": 0.2, "normal": 5.0, "long": 60.0}
RATES = {"small": 500, "normal": 20_000, "long": 20_000}
CUSTOMERS = {"small": 20, "normal": 5_000, "long": 5_000}
SENDERS = 4
WARM_UP = 1 / 3
GROWTH_MAX_PERCENT, GROWTH_MIN_MB = 15, 40
SAMPLE_S = 1.0


def run(size: str, say: Say) -> dict[str, Any]:
    minutes = float(os.environ.get("CLOUDBILLING_SOAK_MINUTES", MINUTES[size]))
    rate = int(os.environ.get("CLOUDBILLING_SOAK_RATE", RATES[size]))
    with platform(size, CUSTOMERS[size]) as ours:
        assert ours.pid is not None, "a soak watches the processes of a platform that it starts"
        say(f"{ours.kind} is up; {rate:,} events/s for {minutes:g} minutes")
        sizes = Sizes(ours.pid)
        sender = Sender(ours, rate, 200 if size == "small" else 2_000, CUSTOMERS[size], minutes * 60)
        sizes.start()
        sender.run(lambda text: say(f"{text}, {sizes.total_mb():,} MB"))
        sizes.stop()
        stored = stored_events(ours)
        assert stored == sender.new, f"{stored} events are stored, {sender.new} were acknowledged as new"
    grown = sizes.growth()
    worst = max(grown, key=lambda one: one["grew_mb"], default=None)
    flat = all(not one["grows"] for one in grown)
    for one in grown:
        say(f"{one['process']}: {one['mb']} MB, {one['grew_mb']:+} MB after warm-up{'  GROWS' if one['grows'] else ''}")
    assert flat, f"memory grows: {worst}"
    return {
        "figure": round(sender.rows / sender.seconds),
        "unit": "events/s",
        "minutes": minutes,
        "offered": rate,
        "events": sender.new,
        "repeats": sender.repeats,
        "sent_again": sender.sent_again,
        "slowest_s": round(sender.slowest_s, 2),
        "flat": flat,
        "rss_mb": sizes.total_mb(),
        "bound": f"{GROWTH_MAX_PERCENT} % and {GROWTH_MIN_MB} MB a process after warm-up",
        "processes": grown,
        "platform": ours.kind,
    }


class Sender:
    """Sends on a fixed schedule from some threads; a tenth of the requests are sent twice."""

    def __init__(self, ours: Measured, rate: int, rows: int, customers: int, seconds: float) -> None:
        self.new = self.repeats = self.rows = self.sent_again = 0
        self.seconds, self.slowest_s = seconds, 0.0
        self._ours, self._rows, self._customers = ours, rows, customers
        self._gap_s = rows / rate
        self._lock = threading.Lock()
        self._errors: list[str] = []

    def run(self, say: Say) -> None:
        began = time.monotonic()
        due = itertools.count()
        threads = [threading.Thread(target=self._send, args=(began, due, number)) for number in range(SENDERS)]
        for thread in threads:
            thread.start()
        told = began
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.5)
            if time.monotonic() - told > 30:
                told = time.monotonic()
                say(f"{told - began:.0f} s: {self.rows:,} events sent")
        for thread in threads:
            thread.join()
        assert not self._errors, self._errors[0]
        self.seconds = time.monotonic() - began

    def _send(self, began: float, due: Iterator[int], number: int) -> None:
        headers = {"Authorization": f"Bearer {self._ours.key}", **NDJSON}
        try:
            with httpx.Client(base_url=self._ours.url, headers=headers, timeout=60, trust_env=False) as http:
                while True:
                    with self._lock:
                        place = next(due)
                    at = began + place * self._gap_s
                    if at - began > self.seconds:
                        return
                    (body,) = bodies(self._rows, self._rows, self._customers, seed=place)
                    time.sleep(max(0.0, at - time.monotonic()))
                    for _ in range(2 if place % 10 == 9 else 1):
                        self._post(http, body)
        except Exception as error:  # noqa: BLE001 - told by the caller, who waits for all
            self._errors.append(f"sender {number}: {type(error).__name__}: {error}")

    def _post(self, http: httpx.Client, body: bytes) -> None:
        began = time.monotonic()
        while True:
            answer = http.post("/v1/usage", content=body)
            if answer.status_code == 200:
                break
            assert answer.status_code in (429, 503), answer.text[:300]
            with self._lock:
                self.sent_again += 1
            assert time.monotonic() - began < 60, "the platform does not take the offered load"
            time.sleep(0.2)
        found = answer.json()
        with self._lock:
            self.new += found["accepted"] + found["suspended"]
            self.repeats += found["duplicates"]
            self.rows += self._rows
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)


class Sizes:
    """Resident sizes of a process tree, one note a second and process."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._stop = threading.Event()
        self._began = time.monotonic()
        self._seen: dict[tuple[int, str], list[tuple[float, float]]] = {}  # process -> (seconds, MB)
        self._thread = threading.Thread(target=self._watch, name="sizes", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def total_mb(self) -> int:
        return round(sum(notes[-1][1] for notes in self._seen.values() if notes[-1][0] > self._newest() - 5))

    def _newest(self) -> float:
        return max((notes[-1][0] for notes in self._seen.values()), default=0.0)

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            at = time.monotonic() - self._began
            for process in [self._root, *self._root.children(recursive=True)]:
                try:
                    name = (process.cmdline() or [process.name()])[0].rpartition("/")[2][:40]
                    mb = process.memory_info().rss / 2**20
                except psutil.NoSuchProcess:
                    continue
                self._seen.setdefault((process.pid, name), []).append((at, mb))

    def growth(self) -> list[dict[str, Any]]:
        """Of each process that lived through it: its size, and what the line through its sizes rises after warm-up."""
        end = self._newest()
        found: list[dict[str, Any]] = []
        for (_, name), notes in self._seen.items():
            kept = [(at, mb) for at, mb in notes if at >= end * WARM_UP]
            if len(kept) < 5 or kept[-1][0] < end - 5 or kept[0][0] > end * WARM_UP + 5:
                continue  # it came or went meanwhile
            at, mb = (np.array(column) for column in zip(*kept, strict=True))
            slope = float(np.polyfit(at, mb, 1)[0])
            grew = slope * float(at[-1] - at[0])
            bound = max(GROWTH_MIN_MB, float(np.median(mb)) * GROWTH_MAX_PERCENT / 100)
            found.append(
                {
                    "process": name,
                    "mb": round(float(mb[-1])),
                    "grew_mb": round(grew, 1),
                    "mb_an_hour": round(slope * 3_600, 1),
                    "grows": grew > bound,
                }
            )
        return sorted(found, key=lambda one: -one["mb"])[:20]
