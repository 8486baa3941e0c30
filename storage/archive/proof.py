"""The proof that an archive is whole: every byte is read again and the chain followed from its beginning.

What was deleted after its time is vouched for by the record of its deletion, which is an entry of the chain itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date

from storage.archive import retention
from storage.archive.entries import DELETION, GENESIS, Archived, Finding, archived, chain_findings
from storage.archive.packs import Place, alone_key, is_whole
from storage.archive.roots import Roots, newest_root
from storage.archive.vault import Vault
from storage.object_store import ObjectStore
from storage.sql.database import Database

FINDINGS_MAX = 1_000
PAGE = 500


@dataclass(frozen=True)
class Proof:
    """What `verify` looked at and found. `head` names the whole archive: keep it elsewhere and compare it later."""

    entries: int
    bytes: int
    head: str
    findings: tuple[Finding, ...]
    deleted: int = 0
    roots: int = 0  # signed roots that agree with the chain

    @property
    def intact(self) -> bool:
        return not self.findings


@dataclass
class _Walk:
    """What was seen so far, in the order of the chain."""

    tenant_id: str
    known_head: str | None
    entries: int = 0
    bytes: int = 0
    chain: bytes = GENESIS
    passed: bool = False
    findings: list[Finding] = field(default_factory=list[Finding])
    listed: set[str] = field(default_factory=set[str])
    # Deleted entries wait for the record that names them; positions of signed roots wait for their entry.
    deleted: dict[int, Archived] = field(default_factory=dict[int, Archived])
    confirmed: int = 0


def prove(
    database: Database,
    store: ObjectStore,
    tenant_id: str,
    *,
    known_head: str | None = None,
    roots: Roots | None = None,
    vault: Vault | None = None,
) -> Proof:
    """See `Archive.verify`. Memory: one page of the register and one object at a time."""
    # Listed before the register is read: bytes are put before their entry, so what is archived meanwhile is either not
    # listed here or registered by then (a put just now, without its entry, shows once and never again).
    present = list(store.list(f"archive/{tenant_id}/"))
    with database.tenant(tenant_id) as connection:
        newest = newest_root(
            connection, tenant_id
        )  # before the roots are listed: one that is signed now is none too many
    signed = roots.all(tenant_id) if roots is not None else []
    expected = {root.position: root for root in signed}
    walk = _Walk(tenant_id, known_head, passed=known_head in (None, GENESIS.hex()))
    last = _LastObject(store)
    for found, place in _all(database, tenant_id):
        walk.entries += 1
        walk.findings += chain_findings(found, tenant_id, walk.entries, walk.chain)
        walk.chain = bytes.fromhex(found.chain)
        walk.passed = walk.passed or found.chain == known_head
        root = expected.get(found.position)
        if root is not None and root.chain != found.chain:
            walk.findings.append(
                Finding("root", f"the signed root of {root.day} has another chain here", root.key, found.position)
            )
        if found.deleted_by is None:
            _check_bytes(walk, last, found, place)
        else:
            walk.deleted[found.position] = found
    if vault is not None and vault.locks:
        walk.findings += _unlocked(vault, locks_wanted(database, tenant_id))
    walk.findings += _unconfirmed(walk)
    walk.findings += _head_findings(database, walk)
    walk.findings += [Finding("added", "nothing in the register names this object", key) for key in present
                      if key not in walk.listed]  # fmt: skip
    if roots is not None:
        walk.findings += roots.findings(signed, walk.entries, newest)
    findings = tuple(walk.findings[:FINDINGS_MAX])
    return Proof(walk.entries, walk.bytes, walk.chain.hex(), findings, walk.confirmed, len(signed))


def locks_wanted(database: Database, tenant_id: str) -> dict[str, date]:
    """The objects of a tenant, and until when what is in them must be kept by today's rules."""
    with database.tenant(tenant_id) as connection:
        years = retention.years_of(connection, tenant_id)
    found: dict[str, date] = {}
    for entry, place in _all(database, tenant_id):
        if entry.deleted_by is None:
            until = retention.kept_until(entry, years)
            found[place.object_key] = max(until, found.get(place.object_key, until))
    return found


def _unlocked(vault: Vault, wanted: Mapping[str, date]) -> Iterable[Finding]:
    for key, until in wanted.items():
        if not vault.is_locked(key, until):
            yield Finding(
                "lock", f"the store does not lock it until {until}: set its rule again, or lock it there", key
            )


class _LastObject:
    """The object read last: files of one pack follow each other, so that each pack is read once."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._key = ""
        self._data: bytes | None = None

    def get(self, key: str) -> bytes | None:
        if key != self._key:
            self._key, self._data = key, self._store.get(key)
        return self._data


def _check_bytes(walk: _Walk, last: _LastObject, found: Archived, place: Place) -> None:
    key = place.object_key
    whole = last.get(key)
    if whole is None:
        walk.listed.add(key)
        walk.findings.append(Finding("missing", "the bytes are gone", key, found.position, found.number))
        return
    data = whole[place.start : place.start + place.length] if key.endswith(".tar") else whole
    before = len(walk.findings)
    if hashlib.sha256(data).hexdigest() != found.sha256:
        detail = "the bytes are others than archived"
        if len(data) != found.byte_count:
            detail += f" ({len(data)} instead of {found.byte_count} bytes)"
        walk.findings.append(Finding("changed", detail, key, found.position, found.number))
    elif found.kind == DELETION:
        _confirm(walk, found, data)
    whole_pack = not key.endswith(".tar") or key in walk.listed or is_whole(key, whole)
    if not whole_pack and len(walk.findings) == before:  # none of its files so far: what is around them
        walk.findings.append(Finding("changed", "the pack is not what its name says", key))
    walk.listed.add(key)
    walk.bytes += len(data)


def _confirm(walk: _Walk, record: Archived, data: bytes) -> None:
    """A record of deletion speaks for the entries that it names with their links."""
    for said in json.loads(data)["entries"]:
        found = walk.deleted.get(int(said["position"]))
        if found is None:
            walk.findings.append(
                Finding("register", "a record says that this was deleted, and it is there", "", int(said["position"]))
            )
        elif found.deleted_by == record.position and (found.chain, found.sha256) == (said["chain"], said["sha256"]):
            del walk.deleted[found.position]
            walk.confirmed += 1


def _unconfirmed(walk: _Walk) -> Iterable[Finding]:
    for position in walk.deleted:
        yield Finding("register", "was emptied without a record of its deletion", "", position)


def _head_findings(database: Database, walk: _Walk) -> Iterable[Finding]:
    with database.tenant(walk.tenant_id) as connection:
        head = connection.execute(
            "SELECT position, chain FROM archive_heads WHERE tenant_id = %s", (walk.tenant_id,)
        ).fetchone()
    position, end = (int(head["position"]), bytes(head["chain"])) if head else (0, GENESIS)
    if position < walk.entries:
        return  # entries were added while the chain was read
    if position != walk.entries or end != walk.chain:
        yield Finding("chain", f"the chain ends at entry {walk.entries}, its head says {position}")
    if not walk.passed:
        yield Finding("chain", "the chain no longer passes through the head that is known from before")


def _all(database: Database, tenant_id: str) -> Iterator[tuple[Archived, Place]]:
    """All entries by position with their places, in pages: a million documents fit into no memory."""
    after = 0
    while True:
        with database.tenant(tenant_id) as connection:
            rows = connection.execute(
                "SELECT entry.*, place.object_key, place.start, place.length FROM archive_entries AS entry"
                " LEFT JOIN archive_places AS place USING (tenant_id, sha256)"
                " WHERE entry.tenant_id = %s AND position > %s ORDER BY position LIMIT %s",
                (tenant_id, after, PAGE),
            ).fetchall()
        for row in rows:
            found = archived(row)
            if row["object_key"] is None:
                yield found, Place(alone_key(tenant_id, found.sha256), 0, found.byte_count)
            else:
                yield found, Place(row["object_key"], int(row["start"]), int(row["length"]))
        if len(rows) < PAGE:
            return
        after = int(rows[-1]["position"])
