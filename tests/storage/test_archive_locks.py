"""An archive in a bucket with Object Lock: what nobody can take away, what comes back, and what goes after its time."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from test_archive import entry, kinds

from deployments.wiring import ArchiveStore
from storage.archive import Archive, retention
from storage.archive.deletion import delete, sweep
from storage.archive.vault import LockedVault
from storage.object_store import S3ObjectStore, StoreAddress, StoreUnfit
from storage.sql.database import Database
from tests.s3_server import KEY, SECRET, S3Server

pytestmark = [pytest.mark.postgres, pytest.mark.services]
NOW = datetime.now(UTC)  # the server's own clock decides what is locked


@pytest.fixture
def store(s3_server: S3Server) -> S3ObjectStore:
    return s3_server.bucket_with_lock(f"kept-{uuid4().hex[:12]}")


@pytest.fixture
def archive(database: Database, store: S3ObjectStore) -> Archive:
    return Archive(database, store, clock=lambda: NOW, vault=LockedVault(store, "compliance"))


def objects(archive: Archive, tenant: str) -> list[str]:
    return list(archive.store.list(f"archive/{tenant}/"))


def test_every_object_is_locked_until_its_rule_ends_and_not_even_its_writer_deletes_it(
    archive: Archive, store: S3ObjectStore, tenant: str
) -> None:
    archive.put_many(tenant, [entry(1), entry(2), replace(entry(3), document_type="contract")])
    packs = objects(archive, tenant)
    assert len(packs) == 2  # eight and ten years are not locked together
    years = sorted(store.call("head_object", key)["ObjectLockRetainUntilDate"].astimezone(UTC).year for key in packs)
    assert years == [2035, 2037]  # the midnight after the last day of 2034 and 2036
    (version, *_) = store.call("list_object_versions", Prefix=store.path_in_bucket(packs[0]))["Versions"]
    with pytest.raises(OSError):
        store.call("delete_object", packs[0], VersionId=version["VersionId"])
    terms = {"Mode": "COMPLIANCE", "RetainUntilDate": datetime(2027, 1, 1, tzinfo=UTC)}
    with pytest.raises(OSError):
        store.call("put_object_retention", packs[0], Retention=terms)
    assert archive.get(tenant, "d1") == b"pdf of 1"
    assert archive.verify(tenant).intact


@pytest.mark.parametrize("harm", ["hide", "overwrite"])
def test_what_is_hidden_or_overwritten_is_found_and_comes_back(
    archive: Archive, store: S3ObjectStore, tenant: str, harm: str
) -> None:
    archive.put_many(tenant, [entry(1), entry(2)])
    (key,) = objects(archive, tenant)
    if harm == "hide":
        store.delete(key)  # lays a delete marker over it
    else:
        store.put(key, b"other bytes")
    found = kinds(archive.verify(tenant))
    assert {kind for kind, _ in found} >= {"missing" if harm == "hide" else "changed"}
    assert archive.restore(tenant) == [key]
    assert archive.verify(tenant).intact
    assert archive.get(tenant, "d2") == b"pdf of 2"
    assert archive.restore(tenant) == []


def test_a_longer_rule_lengthens_the_locks_and_an_object_without_one_is_a_finding(
    archive: Archive, store: S3ObjectStore, tenant: str
) -> None:
    archive.put_many(tenant, [entry(1), entry(2)])
    (key,) = objects(archive, tenant)
    with archive.database.tenant(tenant) as connection:
        retention.set_years(connection, tenant, "invoice", 12, actor="user ann", now=NOW)
    assert kinds(archive.verify(tenant)) == [("lock", None)]
    archive.lengthen_locks(tenant)
    assert archive.verify(tenant).intact
    assert store.call("head_object", key)["ObjectLockRetainUntilDate"].astimezone(UTC).date() == date(2039, 1, 1)


def test_what_is_over_its_time_goes_with_all_its_versions(archive: Archive, store: S3ObjectStore, tenant: str) -> None:
    old = [replace(entry(number), document_date=date(2010, 5, number)) for number in (1, 2, 3)]
    archive.put_many(tenant, old)
    (before,) = objects(archive, tenant)
    delete(archive, tenant, ["d1"], actor="user ann", reason="its time is over")
    assert before not in objects(archive, tenant)  # written anew without the file
    assert "Versions" not in store.call("list_object_versions", Prefix=store.path_in_bucket(before))
    assert archive.get(tenant, "d3") == b"pdf of 3"
    assert archive.verify(tenant).intact


def test_an_object_locked_longer_than_its_files_stays_named_until_the_store_lets_it_go(
    archive: Archive, store: S3ObjectStore, tenant: str
) -> None:
    archive.put(tenant, replace(entry(1), document_date=date(2010, 5, 1)))
    (key,) = objects(archive, tenant)
    archive.vault.keep(key, date(2040, 1, 1))  # somebody locked it by hand
    delete(archive, tenant, ["d1"], actor="user ann", reason="its time is over")
    assert key in objects(archive, tenant)
    assert sweep(archive, tenant) == 0
    assert ("added", None) in kinds(archive.verify(tenant))


def test_a_bucket_without_object_lock_and_a_folder_are_refused_at_the_start(
    s3_server: S3Server, tmp_path: Path
) -> None:
    address = StoreAddress("s3://bucket/kept", s3_server.url, KEY, SECRET)
    with pytest.raises(StoreUnfit, match="Object Lock"):
        ArchiveStore(address, "compliance").open()
    with pytest.raises(StoreUnfit, match="folder"):
        ArchiveStore(StoreAddress(str(tmp_path)), "governance").open()
