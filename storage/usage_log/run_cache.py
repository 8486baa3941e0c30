"""Id runs of an object store, as files of this machine: fetched once, mapped by any process, kept up to a bound.

Owns the folder. A file that is open anywhere is never removed: who maps it holds a shared lock on it, which the kernel
lets go with the process, however that ends. Beyond the bound the least recently used of the others go; what is wanted
again is fetched again, for the store has it. So the folder may hold more than the bound only while more is open.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

BYTES_MAX = 8 * 1024**3  # 14 bytes an id: of 600 million ids
_SUFFIXES = (".run", ".bloom")
_DRAFT = ".draft"
_LOCK = "trim.lock"


class Lease:
    """A file that is open: it stays until `close`, or until nobody has the lease any more."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._closed = weakref.finalize(self, _let_go, path, descriptor)

    def close(self) -> None:
        self._closed()


class RunCache:
    """One folder, shared by all processes of a machine that name it. No state of its own: the folder is all."""

    def __init__(self, directory: Path, bytes_max: int = BYTES_MAX) -> None:
        self.directory = directory
        self.bytes_max = bytes_max

    def open(self, key: str, fetch: Callable[[], bytes]) -> Lease:
        """The file of an object, fetched where it is not there. Raises what `fetch` raises."""
        path = self.directory / key.replace("/", "_")
        while True:
            lease = _opened(path) or self._fetched(path, fetch)
            if lease is not None:
                return lease

    def _fetched(self, path: Path, fetch: Callable[[], bytes]) -> Lease | None:
        """The file as it was fetched now; None if a trim took the draft before it was locked."""
        data = fetch()
        self.trim(len(data))  # before, so that a disk that is full of old runs has room
        draft = path.with_name(f"{path.name}.{uuid4().hex}{_DRAFT}")
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # the lock is the file's, whatever its name
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # a machine that loses power must not leave a name without the bytes
            draft.replace(path)
        except FileNotFoundError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            draft.unlink(missing_ok=True)
            raise
        return Lease(path, descriptor)

    def trim(self, room: int = 0) -> int:
        """Remove what is not open, least recently used first, until the bound leaves `room` bytes; returns how many."""
        removed = 0
        self.directory.mkdir(parents=True, exist_ok=True)
        with _locked(self.directory / _LOCK):
            files = sorted(self._files(), key=lambda one: one[:2])
            size = sum(one[2] for one in files)
            for is_run, _, bytes_, path in files:
                if is_run and size + room <= self.bytes_max:
                    break
                if _removed(path):
                    size -= bytes_
                    removed += 1
        return removed

    def _files(self) -> Iterator[tuple[bool, int, int, Path]]:
        """Whether it is a whole run (drafts are nobody's, or locked), when it was used last, its bytes and its path."""
        for entry in os.scandir(self.directory):
            if entry.name.endswith((*_SUFFIXES, _DRAFT)):
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # its fetcher has just named it
                    continue
                yield entry.name.endswith(_SUFFIXES), status.st_mtime_ns, status.st_size, Path(entry.path)


def _opened(path: Path) -> Lease | None:
    """The file under its lock; None if it is not there, also if it was removed before the lock was had."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    lease = Lease(path, descriptor)
    if not _is_there(path, descriptor):
        lease.close()
        return None
    os.utime(descriptor)
    return lease


def _removed(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)  # network file systems lock alone only what may be written
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_there(path, descriptor):  # else another file has the name by now
            path.unlink()
            return True
    except BlockingIOError:  # it is open
        pass
    finally:
        os.close(descriptor)
    return False


def _is_there(path: Path, descriptor: int) -> bool:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)


def _let_go(path: Path, descriptor: int) -> None:
    if _is_there(path, descriptor):
        os.utime(descriptor)  # used until now
    os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One at a time among all processes; the lock of one that died is free."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
