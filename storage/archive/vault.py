"""Who writes archived objects and takes them away: plainly, or with a lock of the store's own (S3 Object Lock).

A lock is the store's promise, kept against everybody: with `compliance` not even the owner of the account deletes or
changes an object before its day, with `governance` only whom the store grants the bypass. The register's rules stand
above it (`retention.py`): the lock is as long as the rule was when the object was written, or longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, Protocol

from storage.object_store import ObjectStore, S3ObjectStore, StoreUnavailable, StoreUnfit

LockMode = Literal["governance", "compliance"]
LOCK_YEARS_MAX = 99  # stores refuse 100 years and more; what stays for ever is locked that long
VERSIONS_MAX = 1_000  # of one key, that are looked at


class Vault(Protocol):
    """All methods may be called from several threads. Days are the last ones on which an object must be kept."""

    locks: bool

    def create(self, key: str, data: bytes, until: date) -> bool:
        """Store `data` durably under a new key, locked up to the day. False: the key exists."""
        ...

    def keep(self, key: str, until: date) -> None:
        """Lock an object that is there up to the day, if it is not locked so long already. Never shortens."""
        ...

    def is_locked(self, key: str, until: date) -> bool:
        """Whether the store lets nobody take it away up to the day, or as long as stores lock at all."""
        ...

    def take_away(self, key: str) -> bool:
        """Remove an object with all its versions; no error if it is not there. False: the store keeps it still."""
        ...

    def restore(self, key: str, is_right: Callable[[bytes], bool]) -> bool:
        """Bring back the version that is right, if somebody hid or covered it; `keep` it then. False: there is none."""
        ...


class PlainVault:
    """No lock: what the register forbids, only the register forbids."""

    locks = False

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def create(self, key: str, data: bytes, until: date) -> bool:
        return self._store.create(key, data)

    def keep(self, key: str, until: date) -> None:
        """Nothing to lock with."""

    def is_locked(self, key: str, until: date) -> bool:
        return False

    def take_away(self, key: str) -> bool:
        self._store.delete(key)
        return True

    def restore(self, key: str, is_right: Callable[[bytes], bool]) -> bool:
        return False


class LockedVault:
    """A bucket with versions and Object Lock. What is deleted or overwritten there is only hidden: `restore`."""

    locks = True

    def __init__(self, store: S3ObjectStore, mode: LockMode, *, today: Callable[[], date] | None = None) -> None:
        self._store = store
        self._mode = mode.upper()
        self._today = today or (lambda: datetime.now(UTC).date())

    def probe(self) -> None:
        """Raise StoreUnfit if the bucket has no Object Lock: a lock that does nothing is worse than none."""
        try:
            found = self._store.call("get_object_lock_configuration")
        except OSError as error:
            raise StoreUnfit(
                f"The archive's bucket has no Object Lock ({error}). Nothing was written. Make a bucket with it"
                " enabled (it cannot be switched on later everywhere), or set CLOUDBILLING_ARCHIVE_LOCK to none."
            ) from error
        if found.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") != "Enabled":
            raise StoreUnfit("The archive's bucket has Object Lock switched off. Nothing was written.")

    def create(self, key: str, data: bytes, until: date) -> bool:
        return self._store.create(key, data, **self._terms(until))

    def keep(self, key: str, until: date) -> None:
        if self.is_locked(key, until):
            return
        terms = {"Mode": self._mode, "RetainUntilDate": _midnight_after(self._longest(until))}
        self._store.call("put_object_retention", key, Retention=terms)

    def is_locked(self, key: str, until: date) -> bool:
        if until < self._today():
            return True
        try:
            found = self._store.call("head_object", key)
        except FileNotFoundError:
            return True  # nothing there to lock; that it is missing is said elsewhere
        locked = found.get("ObjectLockRetainUntilDate")
        return locked is not None and locked >= _midnight_after(self._longest(until))

    def take_away(self, key: str) -> bool:
        for version in list(self._versions(key)):
            try:
                self._store.call("delete_object", key, VersionId=version["VersionId"])
            except OSError:
                # Stores name a refusal differently (AccessDenied, InvalidRequest): what counts is whether it is there.
                if any(one["VersionId"] == version["VersionId"] for one in self._versions(key)):
                    return False
        return True

    def restore(self, key: str, is_right: Callable[[bytes], bool]) -> bool:
        for version in self._versions(key):
            data = self._store.get_version(key, version["VersionId"]) if "Size" in version else None
            if data is not None and is_right(data):
                # Written anew above whatever hides it: what is above may be locked itself.
                self._store.put(key, data)
                return True
        return False

    def _versions(self, key: str) -> Iterator[dict[str, Any]]:
        """Versions (with a Size) and delete markers (without) of a key, the newest first."""
        answer = self._store.call("list_object_versions", Prefix=self._store.path_in_bucket(key), MaxKeys=VERSIONS_MAX)
        if answer.get("IsTruncated"):
            raise StoreUnavailable(f"{key} has more than {VERSIONS_MAX} versions: somebody writes over it")
        found = [one for kind in ("Versions", "DeleteMarkers") for one in answer.get(kind, ())]
        path = self._store.path_in_bucket(key)
        mine = sorted((one for one in found if one["Key"] == path), key=lambda one: one["LastModified"], reverse=True)
        yield from sorted(mine, key=lambda one: not one["IsLatest"])  # times have whole seconds only

    def _terms(self, until: date) -> dict[str, Any]:
        if until < self._today():
            return {}  # its time is over already: no store locks into the past
        return {"ObjectLockMode": self._mode, "ObjectLockRetainUntilDate": _midnight_after(self._longest(until))}

    def _longest(self, until: date) -> date:
        return min(until, date(self._today().year + LOCK_YEARS_MAX, 1, 1))


def _midnight_after(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
