"""Where bytes outlive every process: one object store protocol, a local directory and S3.

Owns durability and "create if absent"; what the keys mean is their owners' business. The usage log, the master chain,
bill run results and the archive stand on `create`: who creates a key first has decided it, for all and for ever.

Three answers to a write, and no fourth: stored (True), somebody else's object lies there (False), or an error. Errors
say which kind: `StoreRefused` was surely not stored by this call, `StoreUnavailable` leaves it open, so repeat the SAME
bytes under the SAME key. The callers of `create` compare bytes before they believe a False: it may be their own first
try, stored, unanswered and sent again (storage/usage_log/lane.py does it for lanes).
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

from billing.errors import Unavailable

DRAFT_PREFIX = ".draft-"  # never listed; left behind only by a crash, swept by `sweep_drafts`
DRAFT_AGE_S_MIN = 86_400


class StoreUnavailable(Unavailable):
    """The store did not say what became of a write, or cannot be read now: repeat the same call."""

    code, title = "store_unavailable", "The object store is not available"


class StoreRefused(Unavailable):
    """This call surely stored nothing, and will not until somebody helps: disk full, read-only, no permission."""

    code, title = "store_refused", "The object store takes no data"


class StoreUnfit(Exception):
    """The store breaks a promise the platform is built on (create if absent); it must not be used."""


class ObjectStore(Protocol):
    """Keys are relative, `/` between parts. All methods may be called from several threads."""

    def create(self, key: str, data: bytes) -> bool:
        """Store `data` durably under a new key, whole or not at all. False: the key exists."""
        ...

    def get(self, key: str) -> bytes | None:
        """The bytes under a key; None if it does not exist just now."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Store `data` durably, whole or not at all, in place of what was there."""
        ...

    def replace(self, key: str, old: bytes, data: bytes) -> bool:
        """Store `data` durably in place of `old`. False: other bytes lie there, or none; nothing was changed.

        A writer that slept since it read `old` cannot bring it back over what another one wrote meanwhile.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove a key; no error if it is not there."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Keys that begin with `prefix`, in order of their characters. Decides nothing: it may lag."""
        ...

    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        """A part of an object; shorter where the object ends before, None if it does not exist just now."""
        ...

    def exists(self, key: str) -> bool: ...

    def settle(self, key: str) -> None:
        """Make sure that a key this process SAW is durable too, before something is built on it."""
        ...

    def local_path(self, key: str) -> Path | None:
        """A file of this machine with the object's bytes, to be mapped; None where there is none."""
        ...


def open_object_store(
    url: str | Path, *, endpoint_url: str | None = None, key: str | None = None, secret: str | None = None
) -> ObjectStore:
    """The store behind "s3://bucket/prefix", "file:///dir" or a plain directory."""
    text = str(url)
    if text.startswith("s3://"):
        parts = urlsplit(text)
        return S3ObjectStore(parts.netloc, parts.path.strip("/"), endpoint_url=endpoint_url, key=key, secret=secret)
    return LocalObjectStore(Path(text.removeprefix("file://")))


@dataclass(frozen=True)
class StoreAddress:
    """Where the store is, as a value that travels to other processes."""

    url: str
    endpoint_url: str | None = None
    key: str | None = None
    secret: str | None = field(default=None, repr=False)
    claims_dsn: str | None = field(default=None, repr=False)  # PostgreSQL decides who creates a key, not the store

    def open(self) -> ObjectStore:
        store = open_object_store(self.url, endpoint_url=self.endpoint_url, key=self.key, secret=self.secret)
        if self.claims_dsn is None:
            return store
        from storage.claimed_store import ClaimedStore  # here: other stores need no driver of SQL
        from storage.sql.database import Database

        return ClaimedStore(store, Database(self.claims_dsn, size_max=4), self.url)


def probe(store: ObjectStore) -> None:
    """Create the same key twice: the second must fail. Some servers and file systems get it wrong."""
    key = f"probe/{uuid4().hex}"
    try:
        first = store.create(key, b"first")
        second = store.create(key, b"second")
        content = store.get(key)
    finally:
        store.delete(key)
    if not first or second or content != b"first":
        raise StoreUnfit(
            f"The object store does not create if absent: first={first}, second={second}, content={content!r}. "
            "Nothing was written to the usage log. Use a store with conditional writes."
        )


class LocalObjectStore:
    """A directory. Draft, fsync, link (exclusive, atomic), fsync of the folder.

    A file system without hard links is refused by `probe`: rename would replace, and O_EXCL shows half an object.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: set[Path] = set()  # folders whose own entry is durable
        self._known_lock = threading.Lock()
        root.mkdir(parents=True, exist_ok=True)

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        if path.exists():  # the usual end of a lost race, without writing a draft
            return False
        linked = False
        try:
            self._ensure_folder(path.parent)
            draft = _write_draft(path.parent, data)
            try:
                os.link(draft, path)
                linked = True
            finally:
                draft.unlink(missing_ok=True)
            _fsync_folder(path.parent)
        except FileExistsError:
            return False
        except OSError as error:
            # Before the link nothing can be seen by anybody, so "not stored" is the truth; after it, it is open.
            raise _translated(error, key, open_outcome=linked) from error
        return True

    def get(self, key: str) -> bytes | None:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _translated(error, key, open_outcome=True) from error

    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        try:
            with self._path(key).open("rb") as file:
                file.seek(start)
                return file.read(length)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _translated(error, key, open_outcome=True) from error

    def modified_us(self, key: str) -> int | None:
        """When an object was written, by the file system's clock (another machine's, on a network)."""
        try:
            return self._path(key).stat().st_mtime_ns // 1_000
        except FileNotFoundError:
            return None

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        try:
            self._ensure_folder(path.parent)
            draft = _write_draft(path.parent, data)
            try:
                os.replace(draft, path)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
            _fsync_folder(path.parent)
        except OSError as error:
            raise _translated(error, key, open_outcome=False) from error

    def replace(self, key: str, old: bytes, data: bytes) -> bool:
        import fcntl

        path = self._path(key)
        try:
            while True:
                try:
                    file = path.open("rb")
                except (FileNotFoundError, NotADirectoryError):
                    return False
                with file:
                    fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed: one replaces, the others wait
                    try:
                        if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                            continue  # another one replaced it while we waited: look at what lies there now
                    except FileNotFoundError:
                        return False
                    there = file.read()
                    if there != old:
                        return there == data
                    self.put(key, data)
                    return True
        except OSError as error:
            raise _translated(error, key, open_outcome=True) from error

    def delete(self, key: str) -> None:
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise _translated(error, key, open_outcome=True) from error

    def list(self, prefix: str) -> Iterator[str]:
        folder = self.root / prefix.rpartition("/")[0]
        keys: list[str] = []
        for directory, _, names in os.walk(folder):
            relative = Path(directory).relative_to(self.root).as_posix()
            start = "" if relative == "." else f"{relative}/"
            keys.extend(f"{start}{name}" for name in names if not name.startswith(DRAFT_PREFIX))
        yield from sorted(key for key in keys if key.startswith(prefix))

    def exists(self, key: str) -> bool:
        return self._path(key).exists()

    def settle(self, key: str) -> None:
        try:
            _fsync_folder(self._path(key).parent)
        except FileNotFoundError:
            return  # deleted meanwhile: the reader's rule H finds that out
        except OSError as error:
            raise _translated(error, key, open_outcome=True) from error

    def local_path(self, key: str) -> Path | None:
        return self._path(key)

    def sweep_drafts(self, now: float) -> int:
        """Remove drafts that a crash left behind a day ago or earlier; nobody can be writing them any more."""
        swept = 0
        for directory, _, names in os.walk(self.root):
            for name in names:
                if name.startswith(DRAFT_PREFIX):
                    path = Path(directory) / name
                    try:
                        if now - path.stat().st_mtime >= DRAFT_AGE_S_MIN:
                            path.unlink()
                            swept += 1
                    except FileNotFoundError:
                        continue
        return swept

    def _path(self, key: str) -> Path:
        if not key or key.startswith("/") or ".." in key.split("/"):
            raise ValueError(f"not a key of the object store: {key!r}")
        return self.root / key

    def _ensure_folder(self, folder: Path) -> None:
        """Make the folder and make the entries of all new folders durable: a lost entry loses all that is below."""
        if folder in self._known:
            return
        with self._known_lock:
            missing: list[Path] = []
            step = folder
            while step not in self._known and step != self.root:
                missing.append(step)
                step = step.parent
            for step in reversed(missing):
                step.mkdir(exist_ok=True)
                _fsync_folder(step.parent)
                self._known.add(step)
            self._known.add(folder)


class S3ObjectStore:
    """One bucket and prefix by s3fs. One PUT with `If-None-Match: *`, never multipart.

    No lifecycle rule may lie on the usage log's prefix: an expired number could be created again.
    """

    CREATE_BYTES_MAX = 64 * 1024 * 1024  # one PUT; the log's own stay far below (storage/usage_log/sizes.py)

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        key: str | None = None,
        secret: str | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        import s3fs  # here, not above: it takes 0.6 s and the embedded profile never needs it

        # retries: 1 - the client must not repeat behind our back more than needed; our own loop repeats, and compares
        # bytes before it believes a 412 (the client's repeats report 412 for their own write).
        self._fs: Any = s3fs.S3FileSystem(
            key=key,
            secret=secret,
            endpoint_url=endpoint_url,
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={
                "retries": {"max_attempts": 1, "mode": "standard"},
                "connect_timeout": timeout_s,
                "read_timeout": timeout_s,
            },
        )
        self._fs.retries = 1
        self._matches = False  # whether `replace` was tried and found to look at its condition
        self._bucket = bucket
        self._prefix = f"{bucket}/{prefix}/" if prefix else f"{bucket}/"

    def create(self, key: str, data: bytes, **terms: Any) -> bool:
        """As the protocol says; `terms` are further arguments of the PUT, such as those of Object Lock."""
        assert len(data) <= self.CREATE_BYTES_MAX, f"{key}: {len(data)} bytes would become a multipart upload"
        try:
            # s3fs sends If-None-Match: * for mode="create"; chunksize above the size keeps it one PUT
            self._fs.pipe_file(self._path(key), data, mode="create", chunksize=max(len(data) + 1, 5 * 2**20), **terms)
        except OSError as error:
            if _precondition_failed(error):
                return False
            raise StoreUnavailable(f"The object store did not say whether it stored {key}: {error}") from error
        except Exception as error:
            raise self._unavailable(error, key) from error
        return True

    def get(self, key: str) -> bytes | None:
        try:
            return self._fs.cat_file(self._path(key))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._unavailable(error, key) from error

    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        try:
            return self._fs.cat_file(self._path(key), start=start, end=start + length) if length else b""
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._unavailable(error, key) from error

    def modified_us(self, key: str) -> int | None:
        """When an object was written, by the store's clock (to the second); None if it is not there."""
        try:
            modified = self._fs.info(self._path(key), refresh=True)["LastModified"]
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._unavailable(error, key) from error
        return int(modified.timestamp()) * 1_000_000

    def put(self, key: str, data: bytes, **terms: Any) -> None:
        try:
            self._fs.pipe_file(self._path(key), data, **terms)
        except Exception as error:
            raise self._unavailable(error, key) from error

    def call(self, method: str, key: str | None = None, **arguments: Any) -> dict[str, Any]:
        """One call of the S3 API about the bucket, or about a key of it, for what the protocol does not have.

        Raises FileNotFoundError, PermissionError or another OSError where the store refuses.
        """
        if key is not None:
            arguments["Key"] = self.path_in_bucket(key)
        return self._fs.call_s3(method, Bucket=self._bucket, **arguments)

    def get_version(self, key: str, version_id: str) -> bytes | None:
        """The bytes of one version in a bucket that keeps them; None if it does not exist."""
        from fsspec.asyn import sync

        async def read() -> bytes:
            found = await self._fs._call_s3(
                "get_object", Bucket=self._bucket, Key=self.path_in_bucket(key), VersionId=version_id
            )
            return await found["Body"].read()

        try:
            return sync(self._fs.loop, read)
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._unavailable(error, key) from error

    def path_in_bucket(self, key: str) -> str:
        return self._path(key)[len(self._bucket) + 1 :]

    def replace(self, key: str, old: bytes, data: bytes) -> bool:
        if not self._matches:
            self._probe_match()
        tag = self._tag(key)
        there = self.get(key)
        if there == data:
            return True  # our own first try, stored, unanswered and sent again
        if there != old or tag is None or tag != self._tag(key):
            return False
        return self._put_if_match(key, tag, data)

    def _put_if_match(self, key: str, tag: str, data: bytes) -> bool:
        assert len(data) <= self.CREATE_BYTES_MAX, f"{key}: {len(data)} bytes"
        try:
            self.call("put_object", key, Body=data, IfMatch=tag)
        except FileNotFoundError:
            return False
        except OSError as error:
            if _precondition_failed(error):
                return False
            raise StoreUnavailable(f"The object store did not say whether it replaced {key}: {error}") from error
        except Exception as error:
            raise self._unavailable(error, key) from error
        return True

    def _tag(self, key: str) -> str | None:
        try:
            return str(self._fs.info(self._path(key), refresh=True)["ETag"])
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._unavailable(error, key) from error

    def _probe_match(self) -> None:
        """A server that does not know `If-Match` would replace whatever lies there: it is asked once."""
        key = f"probe/{uuid4().hex}"
        try:
            self.put(key, b"first")
            replaced = self._put_if_match(key, '"00000000000000000000000000000000"', b"second")
            content = self.get(key)
        finally:
            self.delete(key)
        if replaced or content != b"first":
            raise StoreUnfit(
                "The object store does not replace on condition (If-Match): what is erased there could come back. "
                "Nothing was changed."
            )
        self._matches = True

    def delete(self, key: str) -> None:
        try:
            self._fs.rm_file(self._path(key))
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._unavailable(error, key) from error

    def list(self, prefix: str) -> Iterator[str]:
        folder = self._path(prefix.rpartition("/")[0])
        try:
            found: list[str] = self._fs.find(folder)
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._unavailable(error, prefix) from error
        start = len(self._prefix)
        yield from sorted(path[start:] for path in found if path[start:].startswith(prefix))

    def exists(self, key: str) -> bool:
        try:
            self._fs.info(self._path(key))
        except FileNotFoundError:
            return False
        except Exception as error:
            raise self._unavailable(error, key) from error
        return True

    def settle(self, key: str) -> None:
        """S3 answers a PUT when it is durable, and shows nothing before."""

    def local_path(self, key: str) -> Path | None:
        return None

    def _path(self, key: str) -> str:
        return f"{self._prefix}{key}"

    @staticmethod
    def _unavailable(error: Exception, key: str) -> StoreUnavailable:
        return StoreUnavailable(f"The object store gave no answer about {key}: {type(error).__name__}: {error}")


def _precondition_failed(error: OSError) -> bool:
    """Whether a conditional PUT was answered 412: s3fs turns it into FileExistsError only where the server names the
    condition (AWS, versitygw); MinIO's comes as EINVAL, so the code of the cause decides. 409 is not 412: repeat."""
    step: BaseException | None = error
    for _ in range(5):
        if step is None:
            return False
        response: Any = getattr(step, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = response.get("Error", {}).get("Code")
            return status == 412 or code == "PreconditionFailed"
        step = step.__cause__ or step.__context__
    return isinstance(error, FileExistsError)


def _write_draft(folder: Path, data: bytes) -> Path:
    draft = folder / f"{DRAFT_PREFIX}{uuid4().hex}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            _fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return draft


def _fsync(descriptor: int) -> None:
    import fcntl

    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone leaves the data in the drive's cache
    if full is None:
        os.fsync(descriptor)
    else:
        fcntl.fcntl(descriptor, full)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _translated(error: OSError, key: str, *, open_outcome: bool) -> Unavailable:
    reasons = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: "permission is denied",
        errno.EPERM: "the file system refuses it (no hard links?)",
    }
    reason = reasons.get(error.errno or 0, f"{error.strerror or error}")
    if open_outcome:
        return StoreUnavailable(f"The object store cannot say what became of {key}: {reason}")
    return StoreRefused(f"Nothing was stored under {key}: {reason}. Free the cause and send the same again.")
