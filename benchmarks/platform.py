"""A platform to measure: the one that `CLOUDBILLING_URL` names, one started for this run, or one in a child process.

`small` uses the application in one child process without Ray, over the same stores and shards: seconds instead of a
minute, good for tests, no figure to quote.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import httpx

from cluster.client import Client

ROOT = Path(__file__).resolve().parents[1]
START_S, STOP_S = 240.0, 60.0
SETTLE_S = 10.0  # after it is ready: a warm spare starts, and takes a core for some seconds
STEPS = (
    {"at": "2026-01-01", "tax_code": {"code": "standard", "percents": [{"from": "2021-01-01", "percent": "19"}]}},
    *(
        {
            "at": "2026-01-01",
            "meter": {"code": f"m{number}", "event_type": f"use.{number}", "aggregation": "sum", "value": "amount"},
        }
        for number in range(5)
    ),
    {
        "at": "2026-01-01",
        "publish": {
            "plan": {
                "code": "basic",
                "currency": "EUR",
                "interval": "month",
                "charges": [
                    {
                        "code": f"m{number}",
                        "kind": "usage",
                        "meter": f"m{number}",
                        "tax": "standard",
                        "price": {"model": "per_unit", "unit": "0.0001"},
                    }
                    for number in range(5)
                ],
            }
        },
    },
)


@dataclass(frozen=True)
class Measured:
    """A platform under test: where it is, a key of a fresh tenant, the process whose cost counts (if ours)."""

    url: str
    key: str
    pid: int | None
    kind: str
    direct: str = ""  # the address beside the proxy; empty where there is none
    platform_key: str = field(default="", repr=False)  # of who may make tenants and move partitions

    @property
    def quick(self) -> str:
        """Where many small requests go."""
        return self.direct or self.url


@contextmanager
def platform(size: str, customers: int) -> Iterator[Measured]:
    """A platform with a fresh tenant of that many subscribed customers (`c0`, `c1` ...)."""
    given = os.environ.get("CLOUDBILLING_URL")
    if given:
        platform_key = Path(os.environ["CLOUDBILLING_ADMIN_KEY_FILE"]).read_text().strip()
        direct = os.environ.get("CLOUDBILLING_DIRECT_URL", "")
        yield Measured(given, _tenant(given, platform_key, customers), None, "running platform", direct, platform_key)
        return
    with tempfile.TemporaryDirectory(prefix="cb-bench-") as folder:
        port = free_port()
        environment = {**os.environ, "CLOUDBILLING_PORT": str(port), "CLOUDBILLING_DATA_DIR": f"{folder}/data"}
        module = ["benchmarks.small_platform"] if size == "small" else ["cluster.cli", "up"]
        with open(f"{folder}/up.log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *module], cwd=ROOT, env=environment, stdout=log, stderr=log
            )
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until_ready(url, process, Path(folder) / "up.log")
            platform_key = Path(folder, "data", "admin.key").read_text().strip()
            kind = "one process" if size == "small" else "cloudbilling up"
            if size != "small":
                time.sleep(SETTLE_S)
            status = Path(folder, "data", "status.json")
            direct = json.loads(status.read_text()).get("direct_url") or "" if status.exists() else ""
            yield Measured(url, _tenant(url, platform_key, customers), process.pid, kind, direct, platform_key)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _tenant(url: str, platform_key: str, customers: int) -> str:
    """The key of a new tenant with catalog and subscribed customers."""
    form = {"code": f"bench-{uuid4().hex[:10]}", "currency": "EUR", "timezone": "Europe/Berlin", "country": "DE"}
    with Client(url, platform_key) as client:
        key = client.post("/v1/tenants", form)["key"]
    steps: list[dict[str, object]] = list(STEPS)
    for number in range(customers):
        steps.append({"at": "2026-01-01", "customer": {"code": f"c{number}", "name": f"C {number}", "country": "DE"}})
        subscription = {"code": f"s{number}", "customer": f"c{number}", "plan": "basic", "anchor": "calendar"}
        steps.append({"at": "2026-01-01", "subscribe": subscription})
    with Client(url, key) as client:
        for first in range(0, len(steps), 5_000):
            client.steps(steps[first : first + 5_000])
    return key


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the platform ended while starting:\n{log.read_text()[-2000:]}")
        try:
            if httpx.get(f"{url}/v1/health/ready", trust_env=False, timeout=5.0).status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet; the deadline above ends this
        time.sleep(0.2)
    raise TimeoutError(f"the platform is not ready after {START_S:.0f} s:\n{log.read_text()[-2000:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
