"""Several Ray nodes on one machine, and the processes on them: the only place that touches Ray's own test tools.

`Nodes` starts a head and more, kills one with all that runs on it, and finds actors' processes by what they are called.
Everything it starts is a child of this process and is ended by its id.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from cluster.instance import descendants, end
from cluster.ray_head import NAMESPACE, RayHead, free_port

REPLICA = "ray::ServeReplica"
CPUS = 4


class Nodes:
    """A head and `more` nodes; Ray is imported here, after the environment that it reads is set."""

    def __init__(self, folder: Path, *, http_port: int, more: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._head = RayHead(folder, http_port, free_port(), shards=1)
        self._head.prepare()
        # Nodes share this machine, so the replicas' own ports would meet: requests go by Serve's own proxy.
        os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
        import ray
        from ray.cluster_utils import Cluster

        (self._head.short / "ray").mkdir(parents=True, exist_ok=True)
        # Whatever `temp_dir` says, Ray notes the newest cluster in its usual folder, and does not make that.
        Path(tempfile.gettempdir(), "ray").mkdir(exist_ok=True)
        common: dict[str, Any] = {"num_cpus": CPUS, "object_store_memory": 150_000_000, "include_dashboard": False}
        self._cluster = Cluster(
            initialize_head=True,
            connect=False,
            head_node_args={
                **common,
                # A node that is gone is noticed after some 4 s instead of 30.
                "_system_config": {
                    "health_check_initial_delay_ms": 5_000,
                    "health_check_period_ms": 1_000,
                    "health_check_timeout_ms": 1_000,
                    "health_check_failure_threshold": 4,
                },
                "temp_dir": str(self._head.short / "ray"),
            },
        )
        self._more = [self._cluster.add_node(**common) for _ in range(more)]
        ray.init(address=self._cluster.address, namespace=NAMESPACE, log_to_driver=False)
        self.ray = ray

    def start_serve(self) -> None:
        from ray import serve

        serve.start(
            http_options={"host": "127.0.0.1", "port": self._head.http_port, "request_timeout_s": 120},
            proxy_location="HeadOnly",
        )

    def processes(self, name: str) -> list[psutil.Process]:
        """Living processes of actors of this name, on any node."""
        return [process for process in descendants() if _title(process).startswith(name) and _alive(process)]

    def kill_one(self) -> list[int]:
        """SIGKILL to the raylet of a node that is not the head's, and to all below it; the pids of what died."""
        node = self._more.pop()
        raylet = node.all_processes["raylet"][0].process
        below = psutil.Process(raylet.pid).children(recursive=True)
        victims = [raylet.pid, *(process.pid for process in below)]
        for pid in victims:
            _signal(pid, signal.SIGKILL)
        raylet.wait()  # until it is reaped its workers believe that it lives
        self._cluster.remove_node(node, allow_graceful=False)
        return victims

    @property
    def more(self) -> int:
        return len(self._more)

    def stop(self) -> None:
        """End everything, whatever state it is in; what was frozen is woken to die."""
        ours = descendants()
        try:
            self.ray.shutdown()
            self._cluster.shutdown()
        finally:
            left = {process.pid: process for process in [*ours, *descendants()]}.values()
            for process in left:
                _signal(process.pid, signal.SIGCONT)
            end(left)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:1])
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def waited(seconds: float, *, step: float = 0.1) -> Iterator[None]:
    """Turns of a loop until so many seconds have passed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(step)
