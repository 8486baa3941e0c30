"""The archive: documents as they were issued, written once, found again, and proven unchanged.

Owns content-addressed objects (`archive/<tenant>/<hash>`) and their register in SQL, a chain of hashes per tenant.
An entry's chain hash covers the hash of its bytes, what the register says of it and the entry before: no byte, no
number and no order can change unseen. It never changes or deletes anything; retention and holds build on that.

A put writes the bytes first and the entry after. Killed in between it leaves an object without entry, which the next
put of the same document takes over (same bytes, same key); `verify` names such objects until then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Literal

from billing.errors import Conflict, InvalidInput, NotFound, Unavailable
from storage.object_store import ObjectStore
from storage.sql.database import Connection, Database

GENESIS = bytes(32)  # what the first entry of a tenant follows
BATCH_MAX = 2_000  # entries of one transaction
PAGE_MAX = 500
WRITERS = 4  # objects of one batch that are made durable at the same time: the disk merges their syncs
FINDINGS_MAX = 1_000
_COLUMNS = (
    "document_id", "kind", "number", "document_type", "customer", "document_date", "amount", "currency", "mime",
    "file_name", "byte_count", "sha256", "archived_at",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A file to keep. (`document_id`, `kind`) is its identity: the same again is the same, other bytes are refused."""

    document_id: str
    kind: str  # pdf, xml
    number: str
    document_type: str
    customer: str
    document_date: date
    amount: Decimal  # gross
    currency: str
    data: bytes = field(repr=False)
    mime: str = "application/pdf"
    file_name: str = ""


@dataclass(frozen=True)
class Archived:
    """What the register knows of an archived file."""

    position: int
    document_id: str
    kind: str
    number: str
    document_type: str
    customer: str
    document_date: date
    amount: Decimal
    currency: str
    mime: str
    file_name: str
    byte_count: int
    sha256: str  # hexadecimal, as are the chain's
    previous: str
    chain: str
    archived_at: datetime


FindingKind = Literal["changed", "missing", "added", "register", "chain"]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was archived: which, and what."""

    kind: FindingKind
    detail: str
    key: str = ""
    position: int | None = None
    number: str | None = None


@dataclass(frozen=True)
class Proof:
    """What `verify` looked at and found. `head` names the whole archive: keep it elsewhere and compare it later."""

    entries: int
    bytes: int
    head: str
    findings: tuple[Finding, ...]

    @property
    def intact(self) -> bool:
        return not self.findings


def _now() -> datetime:
    return datetime.now(UTC)


class Archive:
    """One per process; all state is in the database and the object store."""

    def __init__(self, database: Database, store: ObjectStore, *, clock: Callable[[], datetime] = _now) -> None:
        self._database = database
        self._store = store
        self._clock = clock

    # -- Writing -------------------------------------------------------------------------------------------------------

    def put(self, tenant_id: str, entry: Entry) -> Archived:
        """Keep one file; again with the same bytes answers the first time's entry, with others it is refused."""
        return self.put_many(tenant_id, [entry])[0]

    def put_many(self, tenant_id: str, entries: Sequence[Entry]) -> list[Archived]:
        """Keep several files: bytes first, then all entries in one transaction, in the order given."""
        if len(entries) > BATCH_MAX:
            raise InvalidInput(f"{len(entries)} files at once, {BATCH_MAX} are the limit")
        hashes = [hashlib.sha256(entry.data).digest() for entry in entries]
        wanted = [(entry, digest, _key(tenant_id, digest.hex())) for entry, digest in zip(entries, hashes, strict=True)]
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(lambda one: self._store_bytes(one[2], one[0].data), wanted))
        with self._database.tenant(tenant_id) as connection:
            return self._register(connection, tenant_id, [(entry, digest) for entry, digest, _ in wanted])

    def _store_bytes(self, key: str, data: bytes) -> None:
        if self._store.create(key, data):
            return
        if self._store.get(key) != data:  # a key is the hash of its bytes: other bytes are damage
            raise Conflict(f"the archive's object {key} is damaged: verify the archive before anything is added")
        self._store.settle(key)  # written by somebody who may not have seen it made durable

    def _register(
        self, connection: Connection, tenant_id: str, entries: Sequence[tuple[Entry, bytes]]
    ) -> list[Archived]:
        connection.execute(
            "INSERT INTO archive_heads (tenant_id, position, chain) VALUES (%s, 0, %s) ON CONFLICT DO NOTHING",
            (tenant_id, GENESIS),
        )
        head = connection.execute(
            "SELECT position, chain FROM archive_heads WHERE tenant_id = %s FOR UPDATE", (tenant_id,)
        ).fetchone()
        assert head is not None, "the chain's head was just made"
        position, chain = int(head["position"]), bytes(head["chain"])
        ids = list({entry.document_id for entry, _ in entries})
        known = {
            (row["document_id"], row["kind"]): _archived(row)
            for row in connection.execute(
                "SELECT * FROM archive_entries WHERE tenant_id = %s AND document_id = ANY(%s)", (tenant_id, ids)
            )
        }
        now = self._clock().astimezone(UTC)
        rows: list[tuple[Any, ...]] = []
        answers: list[Archived] = []
        for entry, digest in entries:
            found = known.get((entry.document_id, entry.kind))
            if found is None:
                position += 1
                found = _next(entry, digest, position, chain, now, tenant_id)
                chain = bytes.fromhex(found.chain)
                known[entry.document_id, entry.kind] = found
                rows.append(_row(found, tenant_id))
            elif found.sha256 != digest.hex():
                raise Conflict(
                    f"{entry.kind} of {found.number} is archived with other bytes; nothing in the archive changes",
                    number=found.number,
                )
            answers.append(found)
        if rows:
            names = ("tenant_id", "position", *_COLUMNS, "previous", "chain")
            with connection.cursor() as cursor:
                cursor.executemany(
                    f"INSERT INTO archive_entries ({', '.join(names)}) VALUES ({', '.join(['%s'] * len(names))})",  # noqa: S608 - names are constants
                    rows,
                )
            connection.execute(
                "UPDATE archive_heads SET position = %s, chain = %s WHERE tenant_id = %s", (position, chain, tenant_id)
            )
        return answers

    def delete(self, tenant_id: str, document_id: str) -> None:
        """Always refused: what is archived stays for its legal time."""
        found = self.entries(tenant_id, [document_id])
        if not found:
            raise NotFound(f"nothing is archived for {document_id}")
        raise Conflict(f"{found[0].number} is archived and cannot be deleted", number=found[0].number)

    # -- Reading -------------------------------------------------------------------------------------------------------

    def get(self, tenant_id: str, document_id: str, kind: str = "pdf") -> bytes:
        """The bytes as they were archived; damaged ones are never handed out."""
        with self._database.tenant(tenant_id) as connection:
            row = connection.execute(
                "SELECT * FROM archive_entries WHERE tenant_id = %s AND document_id = %s AND kind = %s",
                (tenant_id, document_id, kind),
            ).fetchone()
        if row is None:
            raise NotFound(f"no {kind} of {document_id} is archived")
        found = _archived(row)
        data = self._store.get(_key(tenant_id, found.sha256))
        if data is None:
            raise Unavailable(
                f"the archived {kind} of {found.number} is missing in the object store: verify the archive"
            )
        if hashlib.sha256(data).hexdigest() != found.sha256:
            raise Conflict(f"the archived {kind} of {found.number} was changed: verify the archive")
        return data

    def entries(self, tenant_id: str, document_ids: Sequence[str]) -> list[Archived]:
        """What is archived of these documents, in the order of the archive."""
        with self._database.tenant(tenant_id) as connection:
            rows = connection.execute(
                "SELECT * FROM archive_entries WHERE tenant_id = %s AND document_id = ANY(%s) ORDER BY position",
                (tenant_id, list(document_ids)),
            )
            return [_archived(row) for row in rows]

    def search(
        self,
        tenant_id: str,
        *,
        customer: str | None = None,
        number: str | None = None,
        kind: str | None = None,
        since: date | None = None,
        until: date | None = None,
        amount_min: Decimal | None = None,
        amount_max: Decimal | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> list[Archived]:
        """Entries that fit all that is given, by position; `number` finds beginnings, `after` is the last position."""
        conditions = ["tenant_id = %(tenant)s", "position > %(after)s"]
        given: dict[str, Any] = {"tenant": tenant_id, "after": after, "limit": min(limit, PAGE_MAX)}
        for name, value, condition in (
            ("customer", customer, "customer = %(customer)s"),
            ("number", number, "starts_with(number, %(number)s)"),
            ("kind", kind, "kind = %(kind)s"),
            ("since", since, "document_date >= %(since)s"),
            ("until", until, "document_date <= %(until)s"),
            ("amount_min", amount_min, "amount >= %(amount_min)s"),
            ("amount_max", amount_max, "amount <= %(amount_max)s"),
        ):
            if value is not None:
                conditions.append(condition)
                given[name] = value
        where = " AND ".join(conditions)
        query = f"SELECT * FROM archive_entries WHERE {where} ORDER BY position LIMIT %(limit)s"  # noqa: S608 - constants
        with self._database.tenant(tenant_id) as connection:
            return [_archived(row) for row in connection.execute(query, given)]

    # -- Proof ---------------------------------------------------------------------------------------------------------

    def verify(self, tenant_id: str, *, known_head: str | None = None) -> Proof:
        """Read every byte again and follow the chain from its beginning; name each thing that is not as archived.

        `known_head` is the head of an earlier proof: if the chain no longer passes through it, entries were taken off.
        """
        findings: list[Finding] = []
        listed: set[str] = set()
        entries = total = 0
        chain, passed = GENESIS, known_head in (None, GENESIS.hex())
        # Listed before the register is read: bytes are put before their entry, so what is archived meanwhile is
        # either not listed here or registered by then (a put just now, without its entry, shows once and never again).
        present = list(self._store.list(f"archive/{tenant_id}/"))
        for found in self._all(tenant_id):
            entries += 1
            findings += _chain_findings(found, tenant_id, entries, chain)
            chain = bytes.fromhex(found.chain)
            passed = passed or found.chain == known_head
            key = _key(tenant_id, found.sha256)
            listed.add(key)
            data = self._store.get(key)
            if data is None:
                findings.append(Finding("missing", "the bytes are gone", key, found.position, found.number))
            elif hashlib.sha256(data).hexdigest() != found.sha256:
                detail = f"the bytes are others than archived ({len(data)} instead of {found.byte_count} bytes)"
                if len(data) == found.byte_count:
                    detail = "the bytes are others than archived"
                findings.append(Finding("changed", detail, key, found.position, found.number))
            total += len(data or b"")
        findings += self._head_findings(tenant_id, entries, chain, passed)
        for key in present:
            if key not in listed:
                findings.append(Finding("added", "nothing in the register names this object", key))
        return Proof(entries, total, chain.hex(), tuple(findings[:FINDINGS_MAX]))

    def _head_findings(self, tenant_id: str, entries: int, chain: bytes, passed: bool) -> Iterable[Finding]:
        with self._database.tenant(tenant_id) as connection:
            head = connection.execute(
                "SELECT position, chain FROM archive_heads WHERE tenant_id = %s", (tenant_id,)
            ).fetchone()
        position, end = (int(head["position"]), bytes(head["chain"])) if head else (0, GENESIS)
        if position < entries:
            return  # entries were added while the chain was read
        if position != entries or end != chain:
            yield Finding("chain", f"the chain ends at entry {entries}, its head says {position}")
        if not passed:
            yield Finding("chain", "the chain no longer passes through the head that is known from before")

    def _all(self, tenant_id: str) -> Iterator[Archived]:
        """All entries by position, in pages: an archive of a million documents fits into no memory."""
        after = 0
        while page := self.search(tenant_id, after=after, limit=PAGE_MAX):
            yield from page
            after = page[-1].position


def _key(tenant_id: str, digest: str) -> str:
    return f"archive/{tenant_id}/{digest[:2]}/{digest}"


def _link(found: Archived, tenant_id: str, previous: bytes) -> bytes:
    """The chain hash of an entry: over the hash before and all that the register says, in one canonical form."""
    said = [
        1, previous.hex(), tenant_id, found.position, found.document_id, found.kind, found.number, found.document_type,
        found.customer, found.document_date.isoformat(), format(found.amount, "f"), found.currency, found.mime,
        found.file_name, found.byte_count, found.sha256, found.archived_at.astimezone(UTC).isoformat(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()).digest()


def _next(entry: Entry, digest: bytes, position: int, previous: bytes, now: datetime, tenant_id: str) -> Archived:
    draft = Archived(
        position=position,
        document_id=entry.document_id,
        kind=entry.kind,
        number=entry.number,
        document_type=entry.document_type,
        customer=entry.customer,
        document_date=entry.document_date,
        amount=entry.amount,
        currency=entry.currency,
        mime=entry.mime,
        file_name=entry.file_name or f"{entry.number}.{entry.kind}",
        byte_count=len(entry.data),
        sha256=digest.hex(),
        previous=previous.hex(),
        chain="",
        archived_at=now,
    )
    return _with_chain(draft, _link(draft, tenant_id, previous))


def _with_chain(draft: Archived, chain: bytes) -> Archived:
    return Archived(**{**vars(draft), "chain": chain.hex()})


def _row(found: Archived, tenant_id: str) -> tuple[Any, ...]:
    values = {**vars(found), "sha256": bytes.fromhex(found.sha256)}
    return (
        tenant_id,
        found.position,
        *(values[name] for name in _COLUMNS),
        bytes.fromhex(found.previous),
        bytes.fromhex(found.chain),
    )


def _archived(row: dict[str, Any]) -> Archived:
    said = {name: row[name] for name in _COLUMNS if name != "sha256"}
    hashes = {name: bytes(row[name]).hex() for name in ("sha256", "previous", "chain")}
    return Archived(position=int(row["position"]), **said, **hashes)


def _chain_findings(found: Archived, tenant_id: str, expected: int, chain: bytes) -> Iterable[Finding]:
    if found.position != expected:
        yield Finding("chain", f"entry {expected} is missing before this one", "", found.position, found.number)
    elif found.previous != chain.hex():
        yield Finding("chain", "does not follow the entry before it", "", found.position, found.number)
    if _link(found, tenant_id, bytes.fromhex(found.previous)).hex() != found.chain:
        yield Finding("register", "what the register says was changed", "", found.position, found.number)
