"""The archive on a real PostgreSQL and a real directory: write once, chained, and every tampering is found by name."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest

from billing.errors import Conflict, InvalidInput, NotFound, Unavailable
from storage.archive import BATCH_MAX, GENESIS, Archive, Entry, Finding, Proof
from storage.archive.deletion import delete
from storage.object_store import LocalObjectStore, StoreRefused
from storage.sql.database import Database

pytestmark = pytest.mark.postgres
NOW = datetime(2026, 11, 1, 7, 15, tzinfo=UTC)


@pytest.fixture
def archive(database: Database, store: LocalObjectStore) -> Archive:
    return Archive(database, store, clock=lambda: NOW)


def entry(number: int, data: bytes | None = None, kind: str = "pdf", customer: str = "acme") -> Entry:
    return Entry(
        document_id=f"d{number}",
        kind=kind,
        number=f"RE-2026-{number:06}",
        document_type="invoice",
        customer=customer,
        document_date=date(2026, 11, number),
        amount=Decimal(number) * Decimal("10.10"),
        currency="EUR",
        data=data if data is not None else f"{kind} of {number}".encode(),
    )


def object_path(store: LocalObjectStore, tenant: str, sha256: str) -> Path:
    path = store.local_path(f"archive/{tenant}/{sha256[:2]}/{sha256}")
    assert path is not None
    return path


def kinds(proof: Proof) -> list[tuple[str, int | None]]:
    return [(one.kind, one.position) for one in proof.findings]


def as_owner(dsn: str, statement: str, *values: object) -> None:
    """What somebody with the database's own password could do, and the product's roles cannot."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement, values)


def test_what_is_put_is_got_back_and_proven(archive: Archive, tenant: str) -> None:
    first, second = archive.put_many(tenant, [entry(1), entry(1, kind="xml")])
    assert (first.position, second.position) == (1, 2)
    assert (first.previous, second.previous) == (GENESIS.hex(), first.chain)
    assert archive.get(tenant, "d1") == b"pdf of 1"
    assert archive.get(tenant, "d1", "xml") == b"xml of 1"
    proof = archive.verify(tenant)
    assert proof == Proof(2, 16, second.chain, ())
    assert proof.intact


def test_the_same_put_again_is_the_same_entry_and_other_bytes_are_refused(archive: Archive, tenant: str) -> None:
    first = archive.put(tenant, entry(1))
    assert archive.put(tenant, entry(1)) == first
    assert archive.put_many(tenant, [entry(1), entry(1), entry(2)])[1] == first
    with pytest.raises(Conflict, match="other bytes"):
        archive.put(tenant, entry(1, b"forged"))
    assert archive.get(tenant, "d1") == b"pdf of 1"
    assert archive.verify(tenant).entries == 2


def test_nothing_is_deleted_before_its_time(archive: Archive, tenant: str) -> None:
    archive.put(tenant, entry(1))
    with pytest.raises(Conflict, match="RE-2026-000001 is to be kept until 2034-12-31"):
        delete(archive, tenant, ["d1"], actor="user ann", reason="tidying up")
    with pytest.raises(NotFound):
        delete(archive, tenant, ["d2"], actor="user ann", reason="tidying up")
    assert archive.get(tenant, "d1") == b"pdf of 1"
    assert archive.verify(tenant).intact


@pytest.mark.parametrize("statement", ["UPDATE archive_entries SET amount = 0", "DELETE FROM archive_entries"])
def test_the_application_s_role_may_not_touch_the_register(
    statement: str, archive: Archive, database: Database, tenant: str
) -> None:
    archive.put(tenant, entry(1))
    with pytest.raises(psycopg.errors.InsufficientPrivilege), database.tenant(tenant) as connection:
        connection.execute(statement)


def test_another_tenant_sees_nothing(archive: Archive, other_tenant: str, tenant: str) -> None:
    archive.put(tenant, entry(1))
    with pytest.raises(NotFound):
        archive.get(other_tenant, "d1")
    assert archive.search(other_tenant) == []
    assert archive.verify(other_tenant) == Proof(0, 0, GENESIS.hex(), ())


def test_a_changed_byte_is_found_and_never_handed_out(archive: Archive, store: LocalObjectStore, tenant: str) -> None:
    archive.put(tenant, entry(1))
    kept = archive.put(tenant, entry(2))
    path = object_path(store, tenant, kept.sha256)
    path.chmod(0o600)
    path.write_bytes(b"pdf of 3")
    proof = archive.verify(tenant)
    assert kinds(proof) == [("changed", 2)]
    assert proof.findings[0].number == "RE-2026-000002"
    with pytest.raises(Conflict, match="was changed"):
        archive.get(tenant, "d2")
    with pytest.raises(Conflict, match="damaged"):
        archive.put(tenant, replace(entry(2), document_id="d9"))


def test_an_added_byte_is_found(archive: Archive, store: LocalObjectStore, tenant: str) -> None:
    kept = archive.put(tenant, entry(1))
    path = object_path(store, tenant, kept.sha256)
    path.chmod(0o600)
    path.write_bytes(b"pdf of 1\n")
    (finding,) = archive.verify(tenant).findings
    assert finding.kind == "changed"
    assert "9 instead of 8 bytes" in finding.detail


def test_missing_bytes_are_found(archive: Archive, store: LocalObjectStore, tenant: str) -> None:
    kept = archive.put(tenant, entry(1))
    object_path(store, tenant, kept.sha256).unlink()
    assert kinds(archive.verify(tenant)) == [("missing", 1)]
    with pytest.raises(Unavailable, match="missing"):
        archive.get(tenant, "d1")


def test_an_object_that_nobody_registered_is_found(archive: Archive, store: LocalObjectStore, tenant: str) -> None:
    archive.put(tenant, entry(1))
    key = f"archive/{tenant}/ab/{'ab' * 32}"
    store.create(key, b"smuggled")
    assert archive.verify(tenant).findings == (
        Finding("added", "nothing in the register names this object", key, None, None),
    )


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE archive_entries SET amount = amount + 1 WHERE tenant_id = %s AND position = 2", [("register", 2)]),
        ("UPDATE archive_entries SET customer = 'eve' WHERE tenant_id = %s AND position = 3", [("register", 3)]),
        ("DELETE FROM archive_entries WHERE tenant_id = %s AND position = 3", [("chain", None)]),
        ("UPDATE archive_heads SET position = 9 WHERE tenant_id = %s", [("chain", None)]),
        ("UPDATE archive_entries SET previous = sha256('x') WHERE tenant_id = %s AND position = 2",
         [("chain", 2), ("register", 2)]),
    ],
)  # fmt: skip
def test_a_register_changed_behind_the_product_s_back_is_found(
    statement: str, expected: list[tuple[str, int | None]], archive: Archive, server: str, tenant: str
) -> None:
    archive.put_many(tenant, [entry(1), entry(2), entry(3)])
    as_owner(server, statement, tenant)
    assert kinds(archive.verify(tenant)) == expected


def test_a_removed_first_entry_breaks_the_chain_for_all_that_follow(archive: Archive, server: str, tenant: str) -> None:
    archive.put_many(tenant, [entry(1), entry(2)])
    as_owner(server, "DELETE FROM archive_entries WHERE tenant_id = %s AND position = 1", tenant)
    assert ("chain", 2) in kinds(archive.verify(tenant))


def test_a_chain_cut_off_with_its_head_is_found_by_a_head_known_from_before(
    archive: Archive, server: str, store: LocalObjectStore, tenant: str
) -> None:
    first = archive.put(tenant, entry(1))
    second = archive.put(tenant, entry(2))
    head = archive.verify(tenant).head
    as_owner(server, "DELETE FROM archive_entries WHERE tenant_id = %s AND position = 2", tenant)
    as_owner(
        server,
        "UPDATE archive_heads SET position = 1, chain = decode(%s, 'hex') WHERE tenant_id = %s",
        first.chain,
        tenant,
    )
    as_owner(server, "DELETE FROM archive_places WHERE tenant_id = %s AND sha256 = decode(%s, 'hex')", tenant,
             second.sha256)  # fmt: skip
    object_path(store, tenant, second.sha256).unlink()
    assert archive.verify(tenant).intact  # nothing inside tells it
    assert kinds(archive.verify(tenant, known_head=head)) == [("chain", None)]


def test_a_put_cut_off_after_its_bytes_is_taken_over_by_the_next(
    archive: Archive, store: LocalObjectStore, tenant: str
) -> None:
    kept = entry(1)
    store.create(f"archive/{tenant}/x", b"")  # another leftover, which nobody will register
    digest = hashlib.sha256(kept.data).hexdigest()
    store.create(f"archive/{tenant}/{digest[:2]}/{digest}", kept.data)
    assert [one.kind for one in archive.verify(tenant).findings] == ["added", "added"]
    archive.put(tenant, kept)
    assert [one.key for one in archive.verify(tenant).findings] == [f"archive/{tenant}/x"]


def test_a_store_that_takes_nothing_leaves_the_register_as_it_was(
    database: Database, store: LocalObjectStore, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive(database, store)

    def full(key: str, data: bytes) -> bool:
        raise StoreRefused("no space left on device")

    monkeypatch.setattr(store, "create", full)
    with pytest.raises(Unavailable, match="no space"):
        archive.put_many(tenant, [entry(1), entry(2)])
    monkeypatch.undo()
    assert archive.search(tenant) == []
    archive.put_many(tenant, [entry(1), entry(2)])
    assert archive.verify(tenant).intact


def test_two_writers_at_once_make_one_chain(archive: Archive, tenant: str) -> None:
    errors: list[BaseException] = []

    def write(start: int) -> None:
        try:
            for number in range(start, 25, 2):
                archive.put_many(tenant, [entry(number), entry(number, kind="xml"), entry(1)])
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=write, args=(start,)) for start in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    proof = archive.verify(tenant)
    assert (proof.entries, proof.findings) == (48, ())


def test_search_finds_by_customer_number_date_and_amount_in_pages(archive: Archive, tenant: str) -> None:
    archive.put_many(tenant, [entry(number, customer=f"c{number % 2}") for number in range(1, 21)])

    def numbers(**given: object) -> list[int]:
        return [one.position for one in archive.search(tenant, **given)]  # type: ignore[arg-type]

    assert numbers(customer="c0") == list(range(2, 21, 2))
    assert numbers(number="RE-2026-00001") == list(range(10, 20))
    assert numbers(number="%") == []
    assert numbers(since=date(2026, 11, 19)) == [19, 20]
    assert numbers(until=date(2026, 11, 2), kind="pdf") == [1, 2]
    assert numbers(amount_min=Decimal("202")) == [20]
    assert numbers(amount_max=Decimal("10.10")) == [1]
    assert numbers(limit=3) == [1, 2, 3]
    assert numbers(limit=3, after=3) == [4, 5, 6]


def test_too_many_files_at_once_are_refused(archive: Archive, tenant: str) -> None:
    with pytest.raises(InvalidInput):
        archive.put_many(tenant, [entry(1)] * (BATCH_MAX + 1))
