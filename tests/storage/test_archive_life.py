"""The life of archived files: packs, versions, retention, holds, deletion with proof, signed roots, rights, words."""

from __future__ import annotations

import hashlib
import io
import random
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest
from test_archive import as_owner, entry, kinds, object_path

from billing.errors import Conflict, InvalidInput, NotFound, Unavailable
from pipelines.daily_roots import DailyRoots
from storage.archive import Archive, Archived, Entry
from storage.archive import retention as rules
from storage.archive.deletion import ORPHAN_AGE, delete, expired, sweep
from storage.archive.packs import pack
from storage.archive.rights import Reader, accesses, reader_of, set_right
from storage.archive.roots import Roots, SigningKey
from storage.object_store import LocalObjectStore, StoreUnavailable
from storage.sql.database import Database

pytestmark = pytest.mark.postgres
NOW = datetime(2026, 11, 1, 7, 15, tzinfo=UTC)
LATER = datetime(2035, 1, 1, 7, 15, tzinfo=UTC)  # eight years after the end of 2026


class Clock:
    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def roots(store: LocalObjectStore, tmp_path: Path) -> Roots:
    return Roots(store, SigningKey.of_file(tmp_path / "signing.key"))


@pytest.fixture
def archive(database: Database, store: LocalObjectStore, clock: Clock, roots: Roots) -> Archive:
    return Archive(database, store, clock=clock, roots=roots)


def dated(number: int, year: int, customer: str = "acme") -> Entry:
    return replace(entry(number, customer=customer), document_date=date(year, 5, 1))


def packs(store: LocalObjectStore, tenant: str) -> list[str]:
    return [key for key in store.list(f"archive/{tenant}/") if key.endswith(".tar")]


# -- Packs -------------------------------------------------------------------------------------------------------------


def test_many_files_are_one_object_that_any_tar_program_opens(
    archive: Archive, store: LocalObjectStore, tenant: str
) -> None:
    archive.put_many(tenant, [entry(number) for number in range(1, 21)])
    (key,) = packs(store, tenant)
    assert list(store.list(f"archive/{tenant}/")) == [key]
    path = store.local_path(key)
    listed = subprocess.run(["tar", "-xOf", str(path), "--wildcards", "*/RE-2026-000007.pdf"],
                            capture_output=True, check=True)  # fmt: skip
    assert listed.stdout == b"pdf of 7"
    assert [archive.get(tenant, f"d{number}") for number in (1, 20)] == [b"pdf of 1", b"pdf of 20"]
    proof = archive.verify(tenant)
    assert (proof.entries, proof.findings) == (20, ())


def test_packs_are_bounded_deterministic_and_their_ranges_right() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    draw = random.Random(seed)
    files = [(bytes([n]) * 32, f"{'x' * draw.randrange(1, 150)}/{n}", draw.randbytes(draw.randrange(3_000)))
             for n in range(50)]  # fmt: skip
    first, second = list(pack("t", files, LATER.date())), list(pack("t", files, LATER.date()))
    assert [(one.key, one.data) for one in first] == [(one.key, one.data) for one in second]
    for digest, _, data in files:
        (place,) = [one.places[digest] for one in first if digest in one.places]
        held = next(one.data for one in first if one.key == place.object_key)
        assert held[place.start : place.start + place.length] == data
    large = [(bytes([n]) * 32, "f", b"x" * 6_000_000) for n in range(5)]
    assert [len(one.places) for one in pack("t", large, LATER.date())] == [2, 2, 1]


@pytest.mark.parametrize("place", ["content", "name"])
def test_a_changed_byte_anywhere_in_a_pack_is_found(
    place: str, archive: Archive, store: LocalObjectStore, tenant: str
) -> None:
    archive.put_many(tenant, [entry(1), entry(2), entry(3)])
    (key,) = packs(store, tenant)
    path = store.local_path(key)
    assert path is not None
    data = bytearray(path.read_bytes())
    at = data.index(b"pdf of 2") if place == "content" else data.index(b"RE-2026-000002")
    data[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    proof = archive.verify(tenant)
    if place == "content":
        assert ("changed", 2) in kinds(proof)
        with pytest.raises(Conflict, match="was changed"):
            archive.get(tenant, "d2")
    else:
        assert [(one.kind, one.key) for one in proof.findings] == [("changed", key)]
    assert archive.get(tenant, "d1") == b"pdf of 1"


def test_a_chunk_that_was_cut_off_and_is_made_again_is_kept_once(
    archive: Archive, store: LocalObjectStore, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> list[Archived]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(archive, "register", killed)
        with pytest.raises(KeyboardInterrupt):
            archive.put_many(tenant, [entry(1), entry(2)])
    assert len(packs(store, tenant)) == 1
    archive.put_many(tenant, [entry(1), entry(2)])
    assert len(packs(store, tenant)) == 1
    assert archive.verify(tenant).intact


# -- Versions ----------------------------------------------------------------------------------------------------------


def test_a_corrected_file_is_a_version_and_the_earlier_one_stays(archive: Archive, tenant: str) -> None:
    archive.put(tenant, entry(1))
    archive.put(tenant, replace(entry(1, b"second"), version=2))
    assert archive.get(tenant, "d1") == b"second"
    assert archive.get(tenant, "d1", version=1) == b"pdf of 1"
    with pytest.raises(Conflict, match="the next version of pdf of d1 is 3, not 5"):
        archive.put(tenant, replace(entry(1, b"fifth"), version=5))
    with pytest.raises(Conflict, match="other bytes"):
        archive.put(tenant, replace(entry(1, b"other"), version=2))
    assert archive.verify(tenant).intact


# -- Retention, holds, deletion ----------------------------------------------------------------------------------------


def test_after_its_time_a_document_goes_with_its_names_and_bytes_and_the_proof_stays(
    archive: Archive, store: LocalObjectStore, clock: Clock, tenant: str, database: Database
) -> None:
    secret = replace(dated(2, 2026, "Marker & Söhne"), data=b"MARKERBYTES", text="MARKERTEXT", number="MARKERNUMBER")
    archive.put_many(tenant, [dated(1, 2026), secret, dated(3, 2026)])
    archive.put(tenant, dated(4, 2027))
    clock.now = LATER
    with database.tenant(tenant) as connection:
        assert [one.document_id for one in expired(connection, tenant, LATER.date())] == ["d1", "d2", "d3"]
    record, files = delete(archive, tenant, ["d2"], actor="user ann", reason="time is over")
    assert files == 1
    with pytest.raises(NotFound):
        archive.get(tenant, "d2")
    assert archive.get(tenant, "d1") == b"pdf of 1"  # was in the same pack
    proof = archive.verify(tenant)
    assert (proof.entries, proof.deleted, proof.findings) == (5, 1, ())
    said = archive.get(tenant, record.document_id, "deletion").decode()
    assert '"rule": "8 years from the end of the year"' in said
    assert "MARKER" not in said
    left = b"".join(store.get(key) or b"" for key in store.list(""))
    with database.tenant(tenant) as connection:
        for table in ("archive_entries", "archive_texts", "archive_places", "archive_access"):
            rows = connection.execute(f"SELECT * FROM {table}").fetchall()
            left += repr(rows).encode()
    assert b"MARKER" not in left
    assert b"marker" not in left
    with pytest.raises(Conflict, match="RE-2026-000004 is to be kept until 2035-12-31"):
        delete(archive, tenant, ["d3", "d4"], actor="user ann", reason="time is over")
    assert archive.get(tenant, "d3") == b"pdf of 3"  # all or none


def test_the_database_itself_keeps_what_must_be_kept(archive: Archive, database: Database, tenant: str) -> None:
    archive.put(tenant, dated(1, 2026))
    archive.put(tenant, dated(2, 2010))
    record, _ = delete(archive, tenant, ["d2"], actor="user ann", reason="time is over")
    with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="must be kept"):
        with database.tenant(tenant) as connection:
            connection.execute("SELECT archive_forget(1, %s, %s)", (record.position, NOW.date()))
    assert archive.verify(tenant).intact


def test_a_hold_keeps_what_is_over_its_time_until_it_is_released(
    archive: Archive, database: Database, tenant: str
) -> None:
    archive.put_many(tenant, [dated(1, 2010), dated(2, 2010, "other"), dated(3, 2010, "other")])
    with database.tenant(tenant) as connection:
        hold = rules.place_hold(connection, tenant, reason="lawsuit", actor="user ann", now=NOW, customer="other")
        one = rules.place_hold(connection, tenant, reason="audit", actor="user ann", now=NOW, document_id="d1")
        assert expired(connection, tenant, NOW.date()) == []
    for document in ("d1", "d2"):
        with pytest.raises(Conflict, match="held since 2026-11-01 by user ann"):
            delete(archive, tenant, [document], actor="user bob", reason="time is over")
    with database.tenant(tenant) as connection:
        rules.release_hold(connection, tenant, hold.id, reason="settled", actor="user bob", now=NOW)
        with pytest.raises(Conflict, match="released before"):
            rules.release_hold(connection, tenant, hold.id, reason="again", actor="user bob", now=NOW)
    assert delete(archive, tenant, ["d2", "d3"], actor="user bob", reason="time is over")[1] == 2
    assert one.released_at is None
    assert archive.verify(tenant).intact


def test_a_rule_lengthens_what_is_kept_already_and_never_shortens_it(
    archive: Archive, database: Database, clock: Clock, tenant: str
) -> None:
    archive.put(tenant, dated(1, 2026))
    with database.tenant(tenant) as connection:
        rules.set_years(connection, tenant, "invoice", 2, actor="user ann", now=NOW)
    archive.put(tenant, dated(2, 2026))
    clock.now = datetime(2029, 1, 1, tzinfo=UTC)
    with pytest.raises(Conflict, match="until 2034-12-31"):
        delete(archive, tenant, ["d1"], actor="user ann", reason="time is over")
    delete(archive, tenant, ["d2"], actor="user ann", reason="time is over")
    with database.tenant(tenant) as connection:
        rules.set_years(connection, tenant, "invoice", 30, actor="user ann", now=NOW)
    clock.now = datetime(2040, 1, 1, tzinfo=UTC)
    with pytest.raises(Conflict, match="until 2056-12-31"):
        delete(archive, tenant, ["d1"], actor="user ann", reason="time is over")
    with pytest.raises(InvalidInput), database.tenant(tenant) as connection:
        rules.set_years(connection, tenant, "invoice", 101, actor="user ann", now=NOW)


def test_names_emptied_without_a_record_are_found(archive: Archive, server: str, tenant: str) -> None:
    archive.put_many(tenant, [dated(1, 2010), dated(2, 2010)])
    record, _ = delete(archive, tenant, ["d1"], actor="user ann", reason="time is over")
    as_owner(server, "UPDATE archive_entries SET deleted_by = %s, number = '' WHERE tenant_id = %s AND position = 2",
             record.position, tenant)  # fmt: skip
    assert ("register", 2) in kinds(archive.verify(tenant))


@pytest.mark.parametrize("step", ["before the new pack", "after the new pack", "before the old one goes"])
def test_a_deletion_killed_anywhere_is_finished_by_the_next_sweep(
    step: str, archive: Archive, store: LocalObjectStore, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.put_many(tenant, [dated(number, 2010) for number in (1, 2, 3)])
    create, remove, seen = store.create, store.delete, [0]

    def dies(*given: bytes) -> bool:
        seen[0] += 1
        if seen[0] == 1:  # the record of the deletion
            return create(*given)  # type: ignore[arg-type]
        if step == "after the new pack":
            create(*given)  # type: ignore[arg-type]
        if step != "before the old one goes":
            raise KeyboardInterrupt
        return create(*given)  # type: ignore[arg-type]

    def dies_too(key: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "create", dies)
        patch.setattr(store, "delete", dies_too)
        with pytest.raises(KeyboardInterrupt):
            delete(archive, tenant, ["d2"], actor="user ann", reason="time is over")
    assert store.delete == remove
    with pytest.raises(NotFound):
        archive.get(tenant, "d2")
    assert archive.get(tenant, "d3") == b"pdf of 3"
    sweep(archive, tenant)
    assert b"pdf of 2" not in b"".join(store.get(key) or b"" for key in store.list(""))
    assert archive.verify(tenant).intact


def test_the_leftover_of_a_put_goes_after_a_day_and_never_under_a_put_that_takes_it_over(
    archive: Archive, store: LocalObjectStore, clock: Clock, tenant: str
) -> None:
    archive.put(tenant, entry(1))
    (lost,) = pack(tenant, [(b"1" * 32, "a", b"a"), (b"2" * 32, "b", b"b")], LATER.date())
    store.create(lost.key, lost.data)
    assert sweep(archive, tenant) == 0
    clock.now += ORPHAN_AGE + timedelta(minutes=1)
    assert sweep(archive, tenant) == 1
    assert not store.exists(lost.key)
    # Swept between the bytes and the entry of a put that found the object there.
    (mine,) = pack(tenant, [(b"1" * 32, "a", b"a"), (b"2" * 32, "b", b"b")], LATER.date())
    with archive.database.tenant(tenant) as connection:
        archive.register(connection, tenant, [], [mine])
    assert store.exists(mine.key)


def test_two_deletions_of_one_pack_at_once_lose_nothing(archive: Archive, tenant: str) -> None:
    archive.put_many(tenant, [dated(number, 2010) for number in range(1, 11)])
    errors: list[BaseException] = []

    def work(numbers: list[int]) -> None:
        try:
            for number in numbers:
                delete(archive, tenant, [f"d{number}"], actor="user ann", reason="time is over")
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(part,)) for part in ([1, 3, 5], [2, 4, 6])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert [archive.get(tenant, f"d{number}") for number in range(7, 11)] == [
        f"pdf of {number}".encode() for number in range(7, 11)
    ]
    proof = archive.verify(tenant)
    assert (proof.deleted, proof.findings) == (6, ())


# -- Signed roots ------------------------------------------------------------------------------------------------------


def rewritten(server: str, tenant: str, roots: Roots | None, database: Database, store: LocalObjectStore) -> None:
    """Somebody who owns the database makes the register anew, links and all, without the second file."""
    copy = Archive(database, store, clock=Clock())
    as_owner(server, "DELETE FROM archive_entries WHERE tenant_id = %s", tenant)
    as_owner(server, "DELETE FROM archive_heads WHERE tenant_id = %s", tenant)
    as_owner(server, "DELETE FROM archive_places WHERE tenant_id = %s", tenant)
    copy.put(tenant, replace(entry(1), amount=Decimal(1)))


def test_a_register_made_anew_is_found_by_its_signed_root(
    archive: Archive, clock: Clock, server: str, database: Database, store: LocalObjectStore, tenant: str, roots: Roots
) -> None:
    archive.put(tenant, entry(1))
    clock.now += timedelta(days=1)
    archive.put(tenant, entry(2))  # signs the day before
    clock.now += timedelta(days=3)
    assert archive.verify(tenant).roots == 2
    rewritten(server, tenant, roots, database, store)
    object_path(store, tenant, entry_hash(entry(2))).unlink()
    assert Archive(database, store).verify(tenant).intact  # the register alone does not tell
    found = archive.verify(tenant).findings
    assert {one.kind for one in found} == {"root"}
    assert any("has another chain here" in one.detail for one in found)


def entry_hash(one: Entry) -> str:
    return hashlib.sha256(one.data).hexdigest()


@pytest.mark.parametrize("what", ["changed", "other key", "removed"])
def test_a_root_that_was_tampered_with_is_found(
    what: str, archive: Archive, clock: Clock, store: LocalObjectStore, tenant: str, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        archive.put(tenant, entry(number))
        clock.now += timedelta(days=1)
    key = next(iter(store.list(f"archive-roots/{tenant}/")))
    data = store.get(key)
    assert data is not None
    if what == "changed":
        store.put(key, data.replace(b'\\"position\\":1', b'\\"position\\":2'))
    elif what == "removed":
        store.delete(key)
    else:
        store.delete(key)
        forger = Roots(store, SigningKey.of_file(tmp_path / "other.key"))
        forger.sign(tenant, date.fromisoformat(key[-15:-5]), 1, bytes(32), NOW)
    assert {one.kind for one in archive.verify(tenant).findings} == {"root"}


class Authority:
    """Of time stamps: away at first."""

    away = True

    def stamp(self, data: bytes) -> bytes:
        if self.away:
            raise Unavailable("the authority is away")
        return b"stamp of " + hashlib.sha256(data).digest()

    def stamped_at(self, data: bytes, response: bytes) -> datetime:
        return NOW


class PartlyAway(LocalObjectStore):
    """It answers nothing about the roots of one tenant."""

    tenant = ""

    def list(self, prefix: str) -> Iterator[str]:
        if self.tenant and self.tenant in prefix:
            raise StoreUnavailable("the store is away")
        return super().list(prefix)


def test_days_are_signed_and_stamped_by_rounds_although_nobody_comes(
    clock: Clock, database: Database, tmp_path: Path, tenant: str, other_tenant: str
) -> None:
    store, authority = PartlyAway(tmp_path / "objects"), Authority()
    roots = Roots(store, SigningKey.of_file(tmp_path / "signing.key"), timestamper=authority)
    archive = Archive(database, store, clock=clock, roots=roots)
    days = DailyRoots(database, archive)
    assert DailyRoots(database, Archive(database, store)).round() == 0
    for each in (tenant, other_tenant):
        archive.put_many(each, [entry(number) for number in (1, 2, 3)])  # as a monthly run does
    days.round()
    assert roots.all(tenant) == []
    store.tenant = other_tenant
    clock.now += timedelta(days=1)
    days.round()
    store.tenant = ""
    (root,) = roots.all(tenant)
    assert (root.day, root.position, root.stamp) == (clock.now.date().isoformat(), 3, None)
    assert roots.all(other_tenant) == []
    authority.away = False
    days.round()
    assert len(roots.all(other_tenant)) == 1
    assert all(one.stamp for each in (tenant, other_tenant) for one in roots.all(each))
    clock.now += timedelta(days=1)
    days.round()
    assert len(roots.all(tenant)) == 1  # nothing was added: the root before says the same
    archive.put(tenant, entry(4))
    clock.now += timedelta(days=1)
    days.round()
    assert [one.position for one in roots.all(tenant)] == [3, 4]
    assert archive.verify(tenant).intact


def test_a_tenant_that_is_being_erased_gets_no_new_root(
    server: str, archive: Archive, clock: Clock, database: Database, roots: Roots, tenant: str
) -> None:
    archive.put(tenant, entry(1))
    as_owner(server, "UPDATE tenants SET closed_at = now(), erasing_since = now() WHERE id = %s", tenant)
    clock.now += timedelta(days=1)
    DailyRoots(database, archive).round()
    assert roots.all(tenant) == []


@pytest.mark.parametrize("gone", ["newest", "all"])
def test_roots_that_are_taken_out_of_the_store_are_missed_for_ever(
    gone: str, archive: Archive, clock: Clock, store: LocalObjectStore, tenant: str
) -> None:
    for number in (1, 2, 3):
        archive.put(tenant, entry(number))
        clock.now += timedelta(days=1)
    assert archive.verify(tenant).findings == ()
    keys = list(store.list(f"archive-roots/{tenant}/"))
    assert len(keys) == 3
    for key in keys if gone == "all" else keys[-1:]:
        store.delete(key)
    (found,) = archive.verify(tenant).findings
    assert (found.kind, found.position) == ("root", 3)
    assert keys[-1][-15:-5] in found.detail
    restarted = Archive(archive.database, store, clock=clock, roots=archive.roots)
    assert restarted.verify(tenant).findings == (found,)  # on the same day it is not signed again
    archive.put(tenant, entry(4))
    clock.now += timedelta(days=1)
    (later,) = archive.verify(tenant).findings  # the next root names the one that is gone
    assert "does not follow the one before it" in later.detail


def test_a_root_that_was_replaced_by_another_is_found(
    archive: Archive, clock: Clock, store: LocalObjectStore, tenant: str, roots: Roots
) -> None:
    archive.put(tenant, entry(1))
    clock.now += timedelta(days=1)
    archive.put(tenant, entry(2))
    (key,) = store.list(f"archive-roots/{tenant}/")
    store.delete(key)
    with archive.database.tenant(tenant) as connection:
        chain = connection.execute("SELECT chain FROM archive_entries WHERE position = 1").fetchone()
    assert chain is not None
    roots.sign(tenant, clock.now.date(), 1, bytes(chain["chain"]), clock.now + timedelta(hours=1))
    (found,) = archive.verify(tenant).findings
    assert "is another one than was signed" in found.detail


def test_a_root_whose_signer_died_before_the_register_knew_it_is_followed(
    archive: Archive, clock: Clock, store: LocalObjectStore, tenant: str, roots: Roots
) -> None:
    archive.put(tenant, entry(1))
    clock.now += timedelta(days=1)
    archive.put(tenant, entry(2))
    clock.now += timedelta(days=1)
    with archive.database.tenant(tenant) as connection:
        head = connection.execute("SELECT chain FROM archive_heads").fetchone()
    assert head is not None
    roots.sign(tenant, clock.now.date(), 2, bytes(head["chain"]), clock.now)  # and dead
    clock.now += timedelta(days=1)
    archive.put(tenant, entry(3))
    clock.now += timedelta(days=1)
    proof = archive.verify(tenant)
    assert (proof.findings, proof.roots) == ((), 4)


def test_the_signing_key_is_made_once_and_read_by_nobody_else(tmp_path: Path) -> None:
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.append(SigningKey.of_file(tmp_path / "k").public)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(made) == 8
    assert len(set(made)) == 1
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600


# -- Rights, access record, words --------------------------------------------------------------------------------------


def test_who_is_limited_sees_and_reads_only_that_and_every_reading_is_on_record(
    archive: Archive, database: Database, tenant: str
) -> None:
    archive.put_many(tenant, [entry(1, customer="a"), entry(2, customer="b"), entry(3, customer="c")])
    with database.tenant(tenant) as connection:
        set_right(connection, tenant, "role viewer", ["a"], None, actor="user ann", now=NOW)
        set_right(connection, tenant, "user bob", ["b"], ["invoice"], actor="user ann", now=NOW)
        bob = reader_of(connection, "user bob", "viewer")
        eve = reader_of(connection, "user eve", "viewer")
        ann = reader_of(connection, "user ann", "admin")
    assert [one.customer for one in archive.search(tenant, reader=bob)] == ["a", "b"]
    assert [one.customer for one in archive.search(tenant, reader=eve)] == ["a"]
    assert [one.customer for one in archive.search(tenant, reader=ann)] == ["a", "b", "c"]
    assert archive.read(tenant, bob, "d2")[1] == b"pdf of 2"
    with pytest.raises(NotFound):
        archive.read(tenant, eve, "d2")
    archive.search(tenant, reader=eve, number="RE")
    with database.tenant(tenant) as connection:
        assert [(one["actor"], one["action"], one["document_id"]) for one in accesses(connection)] == [
            ("user eve", "search", None), ("user bob", "read", "d2"),
        ]  # fmt: skip
        set_right(connection, tenant, "role viewer", None, None, actor="user ann", now=NOW)
        assert reader_of(connection, "user eve", "viewer") == Reader("user eve")
        with pytest.raises(InvalidInput):
            set_right(connection, tenant, "everybody", ["a"], None, actor="user ann", now=NOW)
    with pytest.raises(psycopg.errors.InsufficientPrivilege), database.tenant(tenant) as connection:
        connection.execute("DELETE FROM archive_access")


def test_a_document_is_found_by_its_words(archive: Archive, tenant: str) -> None:
    archive.put_many(tenant, [
        replace(entry(1), text="Object storage in Frankfurt, 150 GB"),
        replace(entry(2), text="Backup für Müller\x00 in Köln"),
    ])  # fmt: skip

    def found(text: str) -> list[str]:
        return [one.document_id for one in archive.search(tenant, text=text)]

    assert found("storage") == ["d1"]
    assert found("MÜLLER köln") == ["d2"]
    assert found('"150 GB"') == ["d1"]
    assert found("in -backup") == ["d1"]
    assert found("RE-2026-000002") == ["d2"]
    assert found("'; DROP TABLE archive_texts; --") == []


def test_tar_is_read_without_the_register(archive: Archive, store: LocalObjectStore, tenant: str) -> None:
    """The last resort: PostgreSQL is lost, the object store is there."""
    archive.put_many(tenant, [entry(1), entry(1, kind="xml")])
    data = store.get(packs(store, tenant)[0])
    assert data is not None
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert sorted(name.split("/")[1] for name in tar.getnames()) == ["RE-2026-000001.pdf", "RE-2026-000001.xml"]
