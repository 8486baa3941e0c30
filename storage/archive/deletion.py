"""How archived files go: after their time, with a record that stays.

A deletion is an entry of the chain: who, when, under which rule, and the hashes of what was there. In the same
transaction the register forgets the names; then the bytes go. Killed in between, `sweep` finishes it: the objects that
are to go are named in SQL first. Packs are written anew without the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import psycopg

from billing.errors import Conflict, InvalidInput, NotFound
from storage.archive import retention, rights
from storage.archive.entries import DELETION, Archived, Entry, archived
from storage.archive.packs import alone_key, file_names, pack
from storage.archive.register import Archive, lock_head
from storage.sql.database import Connection

ORPHAN_AGE = timedelta(days=1)  # no put takes that long between its bytes and its entry
DOCUMENTS_MAX = 1_000  # of one deletion


@dataclass(frozen=True)
class Kept:
    """A document that may not go yet, and why."""

    document_id: str
    number: str
    reason: str


def delete(
    archive: Archive, tenant_id: str, document_ids: Sequence[str], *, actor: str, reason: str
) -> tuple[Archived, int]:
    """Delete documents with all their files and versions; the record of it, and how many files went.

    All or none: raises Conflict, naming every document that must be kept and until when; NotFound for unknown ones.
    """
    if not 1 <= len(document_ids) <= DOCUMENTS_MAX:
        raise InvalidInput(f"1 to {DOCUMENTS_MAX} documents at once")
    now = archive.clock().astimezone(UTC)
    wanted = archive.entries(tenant_id, document_ids)
    unknown = sorted(set(document_ids) - {each.document_id for each in wanted})
    if unknown:
        raise NotFound(f"nothing is archived for {unknown[0]}")
    with archive.database.tenant(tenant_id) as connection:
        years = retention.years_of(connection, tenant_id)
        _refuse(kept_of(connection, tenant_id, wanted, now.date()))  # before anything is written
    record = _record(wanted, years, now, actor, reason)
    digest = hashlib.sha256(record.data).digest()
    archive.close_day(tenant_id)
    (alone,) = pack(tenant_id, [(digest, record.file_name, record.data)], retention.until(record, years))
    archive.vault.create(alone.key, alone.data, alone.until)
    try:
        with archive.database.tenant(tenant_id) as connection:
            lock_head(connection, tenant_id)
            _refuse(kept_of(connection, tenant_id, wanted, now.date()))
            (made,) = archive.register(connection, tenant_id, [(record, digest)], [alone])
            for each in wanted:
                connection.execute("SELECT archive_forget(%s, %s, %s)", (each.position, made.position, now.date()))
                connection.execute("DELETE FROM archive_texts WHERE position = %s", (each.position,))
            _drop(connection, tenant_id, wanted, now)
            rights.record(connection, tenant_id, at=now, actor=actor, action="delete", document_id=made.document_id,
                          detail=f"{len(document_ids)} documents, {len(wanted)} files: {reason}")  # fmt: skip
    except psycopg.errors.IntegrityConstraintViolation as error:
        raise Conflict(f"the register keeps it: {error.diag.message_primary}") from error
    sweep(archive, tenant_id)
    return made, len(wanted)


def kept_of(connection: Connection, tenant_id: str, wanted: Sequence[Archived], today: date) -> list[Kept]:
    """Which of these must be kept, and why."""
    years = retention.years_of(connection, tenant_id)
    holds = retention.holds(connection)
    found: list[Kept] = []
    for each in wanted:
        held = next((hold for hold in holds if hold.holds(each)), None)
        until = retention.kept_until(each, years)
        if held is not None:
            reason = f"held since {held.placed_at.date()} by {held.placed_by}: {held.reason}"
        elif until >= today:
            reason = f"to be kept until {until}"
        else:
            continue
        found.append(Kept(each.document_id, each.number, reason))
    return found


def expired(connection: Connection, tenant_id: str, today: date, *, limit: int = 100) -> list[Archived]:
    """Files whose time is over and that nobody holds, the oldest first: what may be deleted."""
    rows = connection.execute(
        "SELECT * FROM archive_entries WHERE tenant_id = %s AND deleted_by IS NULL AND retained_until < %s"
        " AND kind <> %s ORDER BY position LIMIT %s",
        (tenant_id, today, DELETION, limit),
    ).fetchall()
    found = [archived(row) for row in rows]
    kept = {each.document_id for each in kept_of(connection, tenant_id, found, today)}
    return [each for each in found if each.document_id not in kept]


def sweep(archive: Archive, tenant_id: str) -> int:
    """Take away bytes that no entry names: what was deleted now, what a cut-off put left after a day. How many objects.

    May be called at any time and by several at once: the lock of the chain's head keeps puts away meanwhile.
    """
    now = archive.clock().astimezone(UTC)
    present = list(archive.store.list(f"archive/{tenant_id}/"))
    with archive.database.tenant(tenant_id) as connection:
        for key in _unnamed(connection, tenant_id, present):
            connection.execute(
                "INSERT INTO archive_dropped (tenant_id, object_key, since) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                (tenant_id, key, now),
            )
        rows = connection.execute("SELECT object_key FROM archive_dropped WHERE since <= %s", (now - ORPHAN_AGE,))
        due = [str(row["object_key"]) for row in rows]
    gone = 0
    for key in due:
        gone += _take_away(archive, tenant_id, key)
    return gone


def _record(wanted: Sequence[Archived], years: dict[str, int], now: datetime, actor: str, reason: str) -> Entry:
    """The record: nothing in it but positions, hashes and the rule says what was deleted."""
    if not reason.strip():
        raise InvalidInput("a deletion needs a reason")
    said: dict[str, Any] = {
        "format": 1,
        "deleted_at": now.isoformat(),
        "deleted_by": actor,
        "reason": reason,
        "entries": [
            {
                "position": each.position,
                "document_type": each.document_type,
                "document_date": each.document_date.isoformat(),
                "sha256": each.sha256,
                "chain": each.chain,
                "rule": f"{years.get(each.document_type, years[retention.OTHER])} years from the end of the year",
                "kept_until": retention.kept_until(each, years).isoformat(),
            }
            for each in wanted
        ],
    }
    name = f"deletion {uuid4()}"
    return Entry(
        document_id=name,
        kind=DELETION,
        number="",
        document_type=DELETION,
        customer="",
        document_date=now.date(),
        amount=Decimal(0),
        currency="",
        data=json.dumps(said, ensure_ascii=False, indent=1).encode(),
        mime="application/json",
        file_name=f"{name}.json",
    )


def _refuse(kept: Sequence[Kept]) -> None:
    if kept:
        first = kept[0]
        more = f" (and {len(kept) - 1} more)" if len(kept) > 1 else ""
        text = f"{first.number or first.document_id} is {first.reason}{more}"
        raise Conflict(text, kept=[vars(each) for each in kept[:100]])


def _drop(connection: Connection, tenant_id: str, wanted: Sequence[Archived], now: datetime) -> None:
    """Name the objects that hold bytes of what was deleted; they go now, whatever their age."""
    for each in wanted:
        row = connection.execute(
            "SELECT object_key FROM archive_places WHERE sha256 = %s", (bytes.fromhex(each.sha256),)
        ).fetchone()
        still = connection.execute(
            "SELECT 1 FROM archive_entries WHERE sha256 = %s AND deleted_by IS NULL", (bytes.fromhex(each.sha256),)
        ).fetchone()
        if still is not None:
            continue  # another document has the same bytes
        key = str(row["object_key"]) if row is not None else alone_key(tenant_id, each.sha256)
        connection.execute("DELETE FROM archive_places WHERE sha256 = %s", (bytes.fromhex(each.sha256),))
        connection.execute(
            "INSERT INTO archive_dropped (tenant_id, object_key, since) VALUES (%s, %s, %s)"
            " ON CONFLICT (tenant_id, object_key) DO NOTHING",
            (tenant_id, key, now - ORPHAN_AGE),
        )


def _unnamed(connection: Connection, tenant_id: str, present: Sequence[str]) -> list[str]:
    rows = connection.execute(
        "SELECT key FROM unnest(%(keys)s::text[]) AS key"
        " WHERE NOT EXISTS (SELECT 1 FROM archive_places WHERE tenant_id = %(tenant)s AND object_key = key)"
        " AND NOT EXISTS (SELECT 1 FROM archive_entries WHERE tenant_id = %(tenant)s AND deleted_by IS NULL"
        "  AND key = 'archive/' || %(tenant)s || '/' || left(encode(sha256, 'hex'), 2)"
        "  || '/' || encode(sha256, 'hex'))",
        {"keys": list(present), "tenant": tenant_id},
    )
    return [str(row["key"]) for row in rows]


def _take_away(archive: Archive, tenant_id: str, key: str) -> int:
    """One object that is to go. A pack with files that stay is written anew without the others first."""
    with archive.database.tenant(tenant_id) as connection:
        lock_head(connection, tenant_id)
        rows = connection.execute(
            "SELECT sha256, object_key, start, length FROM archive_places WHERE object_key = %s ORDER BY start", (key,)
        ).fetchall()
        if rows:
            data = archive.store.get(key)
            if data is None:
                raise Conflict(f"the archive's object {key} is missing: verify the archive")
            names = file_names(data) if key.endswith(".tar") else {}
            if set(names) == {bytes(row["sha256"]) for row in rows}:
                connection.execute("DELETE FROM archive_dropped WHERE object_key = %s", (key,))
                return 0  # a put took it over
            files = [(bytes(row["sha256"]), names.get(bytes(row["sha256"]), "file"), _slice(data, row)) for row in rows]
            for one in pack(tenant_id, files, _kept_until(connection, tenant_id, [digest for digest, _, _ in files])):
                if not archive.vault.create(one.key, one.data, one.until) and archive.store.get(one.key) != one.data:
                    raise Conflict(f"the archive's object {one.key} is damaged: verify the archive")
                for digest, place in one.places.items():
                    connection.execute(
                        "UPDATE archive_places SET object_key = %s, start = %s, length = %s WHERE sha256 = %s",
                        (place.object_key, place.start, place.length, digest),
                    )
    # Readers that found the old place a moment ago look again; nothing names the object any more.
    with archive.database.tenant(tenant_id) as connection:
        lock_head(connection, tenant_id)
        if _unnamed(connection, tenant_id, [key]) and not archive.vault.take_away(key):
            return 0  # locked in the store for longer than its rule: a later sweep takes it
        connection.execute("DELETE FROM archive_dropped WHERE object_key = %s", (key,))
    return 1


def _kept_until(connection: Connection, tenant_id: str, hashes: Sequence[bytes]) -> date:
    """The last day on which one of these files must be kept."""
    years = retention.years_of(connection, tenant_id)
    rows = connection.execute(
        "SELECT * FROM archive_entries WHERE sha256 = ANY(%s) AND deleted_by IS NULL", (list(hashes),)
    )
    return max(retention.kept_until(archived(row), years) for row in rows)


def _slice(data: bytes, row: dict[str, Any]) -> bytes:
    found = data[int(row["start"]) : int(row["start"]) + int(row["length"])]
    if hashlib.sha256(found).digest() != bytes(row["sha256"]):
        raise Conflict(f"the archive's object {row['object_key']} is damaged: verify the archive")
    return found
