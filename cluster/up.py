"""`cloudbilling up`: the embedded profile in the foreground. Starts everything, watches it, stops everything.

Owns the order of start and stop and nothing else: PostgreSQL, migrations, keys, Ray with shards and Serve, what was
left unfinished, the demo. A second by second look brings PostgreSQL back when it died; a Ray head that died takes the
whole process with it into a fresh start over the same data.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from billing.errors import BillingError, Conflict, Unavailable
from cluster.instance import Instance, descendants, end
from cluster.platform_address import platform_address, usage_log_settings
from cluster.ray_head import RayHead, free_port
from cluster.settings import Settings

LOG = logging.getLogger("cloudbilling.up")
READY_S = 120.0
WATCH_S = 1.0
NOTE_EVERY = 5  # looks between notes of what runs
SIGN_IN = "demo@cloudbilling.example"

Say = Callable[[str], None]


class Platform:
    """One platform on one data folder, from start to stop."""

    def __init__(self, settings: Settings, say: Say) -> None:
        from storage.sql.embedded import EmbeddedPostgres

        self._settings = settings
        self._say = say
        self._data = settings.data_dir
        self._instance = Instance.take(self._data)
        self._postgres = None if settings.database_url else EmbeddedPostgres(self._data / "postgres")
        self._stop = threading.Event()
        self._began = time.monotonic()
        self._status: dict[str, Any] = {"state": "starting", "ready": False, "demo": "none", "url": settings.url}
        self._head: RayHead | None = None
        self._raylet: psutil.Process | None = None

    # -- Start ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """All up to the first answer. Errors: Conflict if the port is taken, Unavailable if a part stays away."""
        self._write()
        if self._instance.end_leftovers():
            self._say("ended what an earlier platform on this folder had left behind")
        _port_must_be_free(self._settings.port)
        dsn = self._start_database()
        self._step("database ready")
        self._write_admin_key(dsn)
        address = self._start_ray(dsn)
        self._start_shards_and_http(address)
        self._wait_until_ready()
        from deployments.upkeep_actor import start_upkeep  # behind the start of Ray, whose environment is read at once

        start_upkeep(address)
        self._step("platform answers")
        self._set(state="serving", ready=True)

    def _start_database(self) -> str:
        from storage.sql.migrate import migrate

        dsn = self._settings.database_url
        if self._postgres is not None:
            dsn = self._postgres.start()
        migrate(dsn)
        return dsn

    def _write_admin_key(self, dsn: str) -> None:
        """The platform key: written to its file before it is stored, so a crash in between leaves no unknown key."""
        from deployments.access import PLATFORM_SCOPES
        from storage.sql import keys
        from storage.sql.database import Database

        path = self._settings.admin_key_file
        rotated = not path.exists()
        if rotated:
            draft = path.with_name(".admin.key")
            draft.unlink(missing_ok=True)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(f"cb_{secrets.token_urlsafe(32)}")
            draft.replace(path)
        key = path.read_text().strip()
        now = datetime.now(UTC)
        with Database(dsn, size_max=1) as database, database.system() as connection:
            if rotated:  # whoever deletes the file wants the old key to end
                keys.end_platform_keys(connection, "up", now)
            if keys.find(connection, key, now) is None:
                keys.create(
                    connection, tenant_id=None, name="up", scopes=sorted(PLATFORM_SCOPES), actor="up", now=now, key=key
                )

    def _start_ray(self, dsn: str) -> Any:
        from actors.supervisor import shards_default

        settings = self._settings
        dashboard = settings.dashboard_port or _port_or_free(settings.port + 185)
        direct = settings.direct_port or _port_or_free(settings.port + 1)
        if direct > 0:
            _port_must_be_free(direct, "DIRECT_PORT")
        shards = settings.shards or shards_default()
        self._head = RayHead(self._data, settings.port, dashboard, shards)
        self._head.prepare()
        from storage import telemetry

        telemetry.pass_on(endpoint=settings.otel_endpoint, level=settings.log_level)
        from storage.object_store import probe

        address = platform_address(settings, dsn, dashboard=f"http://127.0.0.1:{dashboard}", direct_port=max(0, direct))
        self._set(direct_url=f"http://127.0.0.1:{direct}" if direct > 0 else None)
        probe(address.store.open())
        address.archive.open()
        self._step("starting Ray (some 15 s) and Serve (some 10 s)")
        self._head.start()
        self._raylet = next((p for p in descendants() if "raylet" in _command(p)), None)
        self._note()
        return address

    def _start_shards_and_http(self, address: Any) -> None:
        """Shards and HTTP side by side: each takes seconds of starting processes."""
        from ray import serve

        from actors.supervisor_actor import start_usage_log
        from deployments.serve_app import APPLICATION, application

        failed: list[BaseException] = []

        def shards() -> None:
            try:
                start_usage_log(usage_log_settings(self._settings))
            except BaseException as error:  # noqa: BLE001 - raised again below, in the starting thread
                failed.append(error)

        thread = threading.Thread(target=shards, name="start-shards")
        thread.start()
        serve.run(
            application(address, replicas=self._settings.replicas), name=APPLICATION, route_prefix="/", blocking=False
        )
        thread.join()
        if failed:
            raise failed[0]
        self._step("shards and HTTP started")

    def _wait_until_ready(self) -> None:
        import httpx

        deadline = time.monotonic() + READY_S
        last = "no answer"
        with httpx.Client(trust_env=False, timeout=10.0) as client:
            while time.monotonic() < deadline and not self._stop.is_set():
                try:
                    answer = client.get(f"{self._settings.url}/v1/health/ready")
                    if answer.status_code == 200:
                        return
                    last = answer.text[:300]
                except httpx.TransportError as error:
                    last = str(error)
                time.sleep(0.2)
        raise Unavailable(f"the platform does not become ready: {last}; logs are in {self._logs()}")

    # -- Watch ---------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Until a signal comes. The exit code; never returns when Ray died: the process then starts afresh."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._stop.set())
        if self._settings.demo:
            threading.Thread(target=self._load_demo, name="demo", daemon=True).start()
        looks = 0
        while not self._stop.wait(WATCH_S):
            looks += 1
            if self._postgres is not None:
                with suppress(Unavailable):
                    if self._postgres.ensure_running():
                        self._say("PostgreSQL had died and was started again")
            if self._raylet is not None and not _alive(self._raylet):
                self._say("Ray has died: starting afresh over the same data")
                self.stop()
                os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - the very same command
            if looks % NOTE_EVERY == 0:
                self._note()
        return 0

    def _load_demo(self) -> None:
        from cluster.demo import load_all

        self._set(demo="loading")
        try:
            loaded = load_all(self._settings, self._say_progress, sign_in=SIGN_IN)
        except Exception as error:
            detail = error.detail if isinstance(error, BillingError) else repr(error)
            LOG.exception("the demo could not be loaded")
            self._set(demo="failed", demo_error=detail)
            self._say(f"the demo could not be loaded: {detail}")
            return
        self._set(demo="done", **loaded)
        self._say(f"demo loaded, {time.monotonic() - self._began:.0f} s after the start")
        password = Path(loaded["sign_in"]["password_file"]).read_text().strip()
        self._say(f"  sign in   {self._settings.url}   {SIGN_IN}   {password}")

    def _say_progress(self, what: str, done: int, total: int) -> None:
        self._set(demo_progress={"what": what, "done": done, "total": total})

    # -- Stop ----------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop all that was started, in reverse, and make sure of it."""
        self._set(state="stopping", ready=False)
        ours = descendants()
        if self._head is not None:
            try:
                self._head.stop()
            except Exception as error:  # noqa: BLE001 - whatever Ray says, its processes are ended below
                LOG.warning("Ray did not stop by itself: %s", error)
        ours = {process.pid: process for process in [*ours, *descendants()]}.values()
        postgres = self._postgres.pid if self._postgres is not None else None
        end(process for process in ours if process.pid != postgres and not _below(process, postgres))
        if self._postgres is not None:
            self._postgres.stop()
        self._instance.note_processes(())
        self._instance.release()

    # -- Small things --------------------------------------------------------------------------------------------------

    def _step(self, what: str) -> None:
        self._say(f"{time.monotonic() - self._began:5.1f} s  {what}")

    def _set(self, **changes: Any) -> None:
        self._status = {**self._status, **changes}
        self._write()

    def _write(self) -> None:
        self._instance.write_status(self._status)

    def _note(self) -> None:
        postgres = self._postgres.pid if self._postgres is not None else None
        self._instance.note_processes(p for p in descendants() if p.pid != postgres and not _below(p, postgres))

    def _logs(self) -> Path:
        return self._head.short / "ray" / "session_latest" / "logs" if self._head else self._data


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _below(process: psutil.Process, pid: int | None) -> bool:
    """Whether a process is a child of PostgreSQL's: those it ends itself."""
    try:
        return pid is not None and process.ppid() == pid
    except psutil.NoSuchProcess:
        return False


def _command(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def _port_must_be_free(port: int, setting: str = "PORT") -> None:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise Conflict(
                f"port {port} is in use by another program; choose another one: "
                f"CLOUDBILLING_{setting}={port + 1} cloudbilling up"
            ) from error


def _port_or_free(port: int) -> int:
    try:
        _port_must_be_free(port)
    except Conflict:
        return free_port()
    return port
