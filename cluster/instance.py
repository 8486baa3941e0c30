"""One platform per data folder: the lock that says so, its status file, and processes that an earlier one left behind.

A process is known by its id and its start time, so a number that the system gave to somebody else meanwhile is never
touched. Nothing is ended that is not listed here.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import psutil

from billing.errors import Conflict

GRACE_S = 5.0


@dataclass
class Instance:
    """Holds the data folder while the platform runs; the kernel frees the lock whatever kills the process."""

    data: Path
    _lock: TextIO

    @classmethod
    def take(cls, data: Path) -> Instance:
        """Take the folder. Conflict, in words, if a platform runs on it."""
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (data / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            status = read_status(data)
            where = f" at {status['url']} (process {status['pid']})" if status.get("pid") else ""
            lock.close()
            raise Conflict(
                f"a platform runs on {data}{where}; choose another folder and port: "
                "CLOUDBILLING_DATA_DIR=... CLOUDBILLING_PORT=... cloudbilling up"
            ) from error
        return cls(data, lock)

    def end_leftovers(self) -> list[str]:
        """End what an earlier platform on this folder left when it was killed; names of what was ended."""
        ended: list[psutil.Process] = []
        for entry in _read(self.data / "processes.json", []):
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(entry["pid"])
                if abs(process.create_time() - entry["started"]) < 1.0:
                    ended.append(process)
        names = [_name(process) for process in ended]
        end(ended)
        self.note_processes(())
        return names

    def note_processes(self, processes: Iterable[psutil.Process]) -> None:
        """Remember what runs for this platform, for `end_leftovers` of the next start."""
        entries: list[dict[str, Any]] = []
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                entries.append({"pid": process.pid, "started": process.create_time(), "name": _name(process)})
        _write(self.data / "processes.json", entries)

    def write_status(self, status: dict[str, Any]) -> None:
        _write(self.data / "status.json", {**status, "pid": os.getpid()})

    def release(self) -> None:
        self.write_status({"state": "stopped"})
        self._lock.close()


def running(data: Path) -> bool:
    """Whether a platform holds this folder now."""
    try:
        with (data / "lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def read_status(data: Path) -> dict[str, Any]:
    """What the platform on this folder last said of itself; empty if there never was one."""
    return _read(data / "status.json", {})


def descendants(root: psutil.Process | None = None) -> list[psutil.Process]:
    """All processes below one (default: this), deepest last."""
    with suppress(psutil.NoSuchProcess):
        return (root or psutil.Process()).children(recursive=True)
    return []


def end(processes: Iterable[psutil.Process], grace_s: float = GRACE_S) -> None:
    """Ask processes to end, then make them; those that are gone already are no error."""
    waiting = list(processes)
    for process in waiting:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(waiting, timeout=grace_s)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=grace_s)


def _name(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return " ".join(process.cmdline()[:2])[:120] or process.name()
    return "?"


def _read(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return default


def _write(path: Path, value: Any) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(value, indent=1))
    draft.replace(path)
