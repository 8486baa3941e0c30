"""The archive: documents as they were issued, written once, found again, and proven unchanged.

Owns the register in SQL (a chain of hashes per tenant) and the writing of bytes to the object store. What is archived
is never changed; it ends only by `storage/archive/deletion.py`, with a record.

A put writes the bytes first and the entry after. Killed in between it leaves an object without entry, which the next
put of the same files takes over (same bytes, same key); `verify` names it until then, `sweep` takes it away.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from psycopg.types.json import Jsonb

from billing.errors import Conflict, InvalidInput, NotFound, Unavailable
from storage.archive import retention, rights
from storage.archive.entries import COLUMNS, DELETION, GENESIS, Archived, Entry, archived, next_entry, row_of
from storage.archive.packs import Packed, Place, alone_key, is_whole, pack
from storage.archive.proof import Proof, locks_wanted, prove
from storage.archive.rights import Reader
from storage.archive.roots import Roots, newest_root, note_root
from storage.archive.vault import PlainVault, Vault
from storage.object_store import ObjectStore
from storage.sql.database import Connection, Database

BATCH_MAX = 2_000  # entries of one transaction
PAGE_MAX = 500
_HYPHEN = re.compile(r"(?<=\w)-(?=\w)")
WRITERS = 4  # objects of one batch that are made durable at the same time: the disk merges their syncs
TEXT_MAX = 200_000  # characters of a file that it is found by; PostgreSQL takes 1 MB of words


_INSERT_ENTRIES = (
    f"INSERT INTO archive_entries (tenant_id, position, {', '.join(COLUMNS)}, previous, chain) SELECT * FROM unnest("  # noqa: S608 - constants
    "%s::uuid[], %s::bigint[], %s::text[], %s::text[], %s::int[], %s::text[], %s::text[], %s::text[], %s::date[],"
    " %s::numeric[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::bytea[], %s::timestamptz[], %s::date[],"
    " %s::smallint[], %s::bytea[], %s::bytea[])"
)
_INSERT_TEXTS = (
    "INSERT INTO archive_texts (tenant_id, position, words) SELECT tenant, position,"
    " to_tsvector('simple', said) || array_to_tsvector(ARRAY[archive_mark(tenant)])"
    " FROM unnest(%s::uuid[], %s::bigint[], %s::text[]) AS given (tenant, position, said)"
)
_INSERT_PLACES = (
    "INSERT INTO archive_places (tenant_id, sha256, object_key, start, length)"
    " SELECT * FROM unnest(%s::uuid[], %s::bytea[], %s::text[], %s::bigint[], %s::bigint[]) ON CONFLICT DO NOTHING"
)


def _now() -> datetime:
    return datetime.now(UTC)


class Archive:
    """One per process; all state is in the database and the object store."""

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        *,
        clock: Callable[[], datetime] = _now,
        roots: Roots | None = None,
        vault: Vault | None = None,
    ) -> None:
        self.database = database
        self.store = store
        self.vault = vault or PlainVault(store)
        self.clock = clock
        self.roots = roots
        self._closed: dict[str, date] = {}  # the day on which a tenant's chain was last signed by this process

    # -- Writing -------------------------------------------------------------------------------------------------------

    def put(self, tenant_id: str, entry: Entry) -> Archived:
        """Keep one file; again with the same bytes answers the first time's entry, with others it is refused."""
        return self.put_many(tenant_id, [entry])[0]

    def put_many(self, tenant_id: str, entries: Sequence[Entry]) -> list[Archived]:
        """Keep several files: bytes first (in packs), then all entries in one transaction, in the order given."""
        if len(entries) > BATCH_MAX:
            raise InvalidInput(f"{len(entries)} files at once, {BATCH_MAX} are the limit")
        for entry in entries:
            if entry.kind == DELETION:
                raise InvalidInput(f"{DELETION} is the archive's own kind")
        self.close_day(tenant_id)
        hashes = [hashlib.sha256(entry.data).digest() for entry in entries]
        with self.database.tenant(tenant_id) as connection:
            known = _known(connection, tenant_id, entries)
            placed = _placed(connection, list(set(hashes)))
            years = retention.years_of(connection, tenant_id)
        fresh: dict[date, dict[bytes, tuple[bytes, str, bytes]]] = {}  # by the day until which they are kept
        untils = _latest(zip(hashes, (retention.until(entry, years) for entry in entries), strict=True))
        newest = _newest(known)
        for entry, digest in zip(entries, hashes, strict=True):
            found = known.get((entry.document_id, entry.kind, entry.version))
            if found is not None:
                _check_same(found, entry, digest)
                continue
            _check_version(entry, newest)
            if digest not in placed:
                name = entry.file_name or f"{entry.number}.{entry.kind}"
                fresh.setdefault(untils[digest], {})[digest] = (digest, name, entry.data)
            elif self._at(placed[digest]) != entry.data:
                raise _damaged(placed[digest].object_key)
            elif self.vault.locks:  # another document's bytes, which may have to stay longer for this one
                self.vault.keep(placed[digest].object_key, untils[digest])
        objects = [one for until, files in fresh.items() for one in pack(tenant_id, list(files.values()), until)]
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(self._store_object, objects))
        with self.database.tenant(tenant_id) as connection:
            return self.register(connection, tenant_id, list(zip(entries, hashes, strict=True)), objects)

    def _store_object(self, one: Packed) -> None:
        if self.vault.create(one.key, one.data, one.until):
            return
        if self.store.get(one.key) != one.data:  # a key is the hash of its bytes: other bytes are damage
            raise _damaged(one.key)
        self.vault.keep(one.key, one.until)
        self.store.settle(one.key)  # written by somebody who may not have seen it made durable

    def register(
        self,
        connection: Connection,
        tenant_id: str,
        entries: Sequence[tuple[Entry, bytes]],
        objects: Sequence[Packed] = (),
    ) -> list[Archived]:
        """Chain entries whose bytes are stored, in this transaction; what is there already answers as it is."""
        position, chain = lock_head(connection, tenant_id)
        for one in objects:
            # Under the lock that `sweep` takes too: an orphan that was taken over may just have been swept away.
            if not self.store.exists(one.key):
                self._store_object(one)
        known = _known(connection, tenant_id, [entry for entry, _ in entries])
        years = retention.years_of(connection, tenant_id)
        now = self.clock().astimezone(UTC)
        rows: list[tuple[Any, ...]] = []
        texts: list[tuple[Any, ...]] = []
        answers: list[Archived] = []
        newest = _newest(known)
        for entry, digest in entries:
            identity = (entry.document_id, entry.kind, entry.version)
            found = known.get(identity)
            if found is None:
                _check_version(entry, newest)
                position += 1
                found = next_entry(
                    entry,
                    digest,
                    position=position,
                    previous=chain,
                    now=now,
                    retained_until=retention.until(entry, years),
                    tenant_id=tenant_id,
                )
                chain = bytes.fromhex(found.chain)
                known[identity] = found
                rows.append(row_of(found, tenant_id))
                texts.append((tenant_id, position, _words(entry)))
            else:
                _check_same(found, entry, digest)
            answers.append(found)
        if rows:
            _insert(connection, _INSERT_ENTRIES, rows)
            _insert(connection, _INSERT_TEXTS, texts)
            places = [
                (tenant_id, digest, place.object_key, place.start, place.length)
                for one in objects
                for digest, place in one.places.items()
            ]
            if places:
                _insert(connection, _INSERT_PLACES, places)
            connection.execute(
                "UPDATE archive_heads SET position = %s, chain = %s WHERE tenant_id = %s", (position, chain, tenant_id)
            )
        return answers

    def close_day(self, tenant_id: str) -> None:
        """Sign the chain as it stands before the first entry of a new day, if anything was added since the root before;
        nothing to do on the same day again."""
        if self.roots is None:
            return
        today = self.clock().astimezone(UTC).date()
        if self._closed.get(tenant_id) == today:
            return
        with self.database.tenant(tenant_id) as connection:
            position, chain = head(connection, tenant_id)
            known = newest_root(connection, tenant_id)
        if position and (known is None or (known.day < today and known.position < position)):
            newest = self.roots.sign(tenant_id, today, position, chain, self.clock(), known)
            with self.database.tenant(tenant_id) as connection:
                note_root(connection, tenant_id, newest)
        self._closed[tenant_id] = today

    # -- Reading -------------------------------------------------------------------------------------------------------

    def get(self, tenant_id: str, document_id: str, kind: str = "pdf", version: int | None = None) -> bytes:
        """The bytes as they were archived (of the newest version); damaged ones are never handed out."""
        with self.database.tenant(tenant_id) as connection:
            found, place = _find(connection, tenant_id, document_id, kind, version)
        return self._bytes(tenant_id, found, place)

    def read(
        self, tenant_id: str, reader: Reader, document_id: str, kind: str = "pdf", version: int | None = None
    ) -> tuple[Archived, bytes]:
        """What `get` gives, for somebody: only what he may see, and put down in the access record."""
        with self.database.tenant(tenant_id) as connection:
            found, place = _find(connection, tenant_id, document_id, kind, version)
            if not reader.sees(found):
                raise NotFound(f"no {kind} of {document_id} is archived")
            rights.record(
                connection,
                tenant_id,
                at=self.clock(),
                actor=reader.actor,
                action="read",
                document_id=document_id,
                detail=f"{kind}, version {found.version}",
            )
        return found, self._bytes(tenant_id, found, place)

    def _bytes(self, tenant_id: str, found: Archived, place: Place) -> bytes:
        data = self._at(place)
        if data is None:  # its pack was written anew meanwhile, without a file that was deleted
            with self.database.tenant(tenant_id) as connection:
                _, place = _find(connection, tenant_id, found.document_id, found.kind, found.version)
            data = self._at(place)
        if data is None:
            raise Unavailable(
                f"the archived {found.kind} of {found.number} is missing in the object store: verify the archive"
            )
        if hashlib.sha256(data).hexdigest() != found.sha256:
            raise Conflict(f"the archived {found.kind} of {found.number} was changed: verify the archive")
        return data

    def _at(self, place: Place) -> bytes | None:
        return self.store.get_range(place.object_key, place.start, place.length)

    def entries(self, tenant_id: str, document_ids: Sequence[str]) -> list[Archived]:
        """What is archived of these documents (all versions), in the order of the archive."""
        with self.database.tenant(tenant_id) as connection:
            rows = connection.execute(
                "SELECT * FROM archive_entries WHERE tenant_id = %s AND document_id = ANY(%s) ORDER BY position",
                (tenant_id, list(document_ids)),
            )
            return [archived(row) for row in rows]

    def search(
        self,
        tenant_id: str,
        *,
        reader: Reader | None = None,
        customer: str | None = None,
        number: str | None = None,
        kind: str | None = None,
        document_type: str | None = None,
        since: date | None = None,
        until: date | None = None,
        amount_min: Decimal | None = None,
        amount_max: Decimal | None = None,
        text: str | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> list[Archived]:
        """Entries that fit all that is given, by position; `number` finds beginnings, `text` words of the document
        (as a web search: "an exact phrase", or, -not), `after` is the last position seen. Deleted ones are not found.
        """
        asked = {
            "customer": customer,
            "number": number,
            "kind": kind,
            "document_type": document_type,
            "since": since.isoformat() if since is not None else None,
            "until": until.isoformat() if until is not None else None,
            "amount_min": format(amount_min, "f") if amount_min is not None else None,
            "amount_max": format(amount_max, "f") if amount_max is not None else None,
            "words": _plain_words(text) if text is not None else None,
        }
        seen = None if reader is None else Jsonb([sight.as_json() for sight in reader.sights])
        hidden = frozenset[str]() if reader is None else reader.hidden
        most = min(limit, PAGE_MAX + 1)
        found: list[Archived] = []
        with self.database.tenant(tenant_id) as connection:
            while len(found) < most:
                rows = connection.execute(
                    "SELECT * FROM archive_find(%s, %s, %s, %s)", (Jsonb(asked), seen, after, most)
                ).fetchall()
                page = [archived(row) for row in rows]
                found += [one for one in page if one.document_id not in hidden]
                if len(page) < most or not hidden:
                    break
                after = page[-1].position
            del found[most:]
            if reader is not None and (text or customer or number):
                rights.record(
                    connection,
                    tenant_id,
                    at=self.clock(),
                    actor=reader.actor,
                    action="search",
                    detail=", ".join(f"{name}={value}" for name, value in
                                     (("customer", customer), ("number", number), ("text", text)) if value),
                )  # fmt: skip
        return found

    def newest(self, tenant_id: str, customer: str, document_types: Sequence[str], limit: int) -> list[Archived]:
        """The last files of a customer's documents of these types, the newest first; deleted ones are not there."""
        with self.database.tenant(tenant_id) as connection:
            rows = connection.execute(
                "SELECT * FROM archive_entries WHERE customer = %s AND document_type = ANY(%s) AND deleted_by IS NULL"
                " ORDER BY position DESC LIMIT %s",
                (customer, list(document_types), limit),
            )
            return [archived(row) for row in rows]

    # -- Proof ---------------------------------------------------------------------------------------------------------

    def verify(self, tenant_id: str, *, known_head: str | None = None) -> Proof:
        """Read every byte again and follow the chain from its beginning; name each thing that is not as archived.

        `known_head` is the head of an earlier proof: if the chain no longer passes through it, entries were taken off.
        Signed roots are looked at as well, where the archive has them.
        """
        if self.roots is not None:
            self.close_day(tenant_id)
        return prove(self.database, self.store, tenant_id, known_head=known_head, roots=self.roots, vault=self.vault)

    def restore(self, tenant_id: str) -> list[str]:
        """Bring back what `verify` misses or finds changed and the store still has, hidden or covered; their keys."""
        wrong = {each.key for each in self.verify(tenant_id).findings if each.kind in ("missing", "changed")}
        back = [
            key for key in sorted(wrong) if key and self.vault.restore(key, lambda data, key=key: is_whole(key, data))
        ]
        if back:
            self.lengthen_locks(tenant_id)
        return back

    def lengthen_locks(self, tenant_id: str) -> None:
        """After a longer rule: lock each object of the store as long as the files in it must be kept."""
        if self.vault.locks:
            for key, until in locks_wanted(self.database, tenant_id).items():
                self.vault.keep(key, until)


def head(connection: Connection, tenant_id: str) -> tuple[int, bytes]:
    """The last position of the chain and its link."""
    row = connection.execute("SELECT position, chain FROM archive_heads WHERE tenant_id = %s", (tenant_id,)).fetchone()
    return (int(row["position"]), bytes(row["chain"])) if row else (0, GENESIS)


def lock_head(connection: Connection, tenant_id: str) -> tuple[int, bytes]:
    """The same, for whoever adds to the chain or takes objects away: one at a time."""
    connection.execute(
        "INSERT INTO archive_heads (tenant_id, position, chain) VALUES (%s, 0, %s) ON CONFLICT DO NOTHING",
        (tenant_id, GENESIS),
    )
    row = connection.execute(
        "SELECT position, chain FROM archive_heads WHERE tenant_id = %s FOR UPDATE", (tenant_id,)
    ).fetchone()
    assert row is not None, "the chain's head was just made"
    return int(row["position"]), bytes(row["chain"])


def _known(connection: Connection, tenant_id: str, entries: Sequence[Entry]) -> dict[tuple[str, str, int], Archived]:
    ids = list({entry.document_id for entry in entries})
    rows = connection.execute(
        "SELECT * FROM archive_entries WHERE tenant_id = %s AND document_id = ANY(%s)", (tenant_id, ids)
    )
    return {(row["document_id"], row["kind"], row["version"]): archived(row) for row in rows}


def _placed(connection: Connection, hashes: list[bytes]) -> dict[bytes, Place]:
    rows = connection.execute(
        "SELECT sha256, object_key, start, length FROM archive_places WHERE sha256 = ANY(%s)", (hashes,)
    )
    return {bytes(row["sha256"]): Place(row["object_key"], int(row["start"]), int(row["length"])) for row in rows}


def _latest(untils: Iterable[tuple[bytes, date]]) -> dict[bytes, date]:
    """The latest day of each file: the same bytes may belong to documents of several years."""
    found: dict[bytes, date] = {}
    for digest, until in untils:
        found[digest] = max(until, found.get(digest, until))
    return found


def _damaged(key: str) -> Conflict:
    return Conflict(f"the archive's object {key} is damaged: verify the archive before anything is added")


def _find(
    connection: Connection, tenant_id: str, document_id: str, kind: str, version: int | None
) -> tuple[Archived, Place]:
    row = connection.execute(
        "SELECT entry.*, place.object_key, place.start, place.length FROM archive_entries AS entry"
        " LEFT JOIN archive_places AS place USING (tenant_id, sha256)"
        " WHERE entry.tenant_id = %s AND document_id = %s AND kind = %s AND (%s::int IS NULL OR version = %s)"
        " ORDER BY version DESC LIMIT 1",
        (tenant_id, document_id, kind, version, version),
    ).fetchone()
    if row is None:
        raise NotFound(f"no {kind} of {document_id} is archived")
    found = archived(row)
    return found, place_of(row, found, tenant_id)


def place_of(row: dict[str, Any], found: Archived, tenant_id: str) -> Place:
    """Where the bytes lie; files from before there were packs lie alone under their hash."""
    if row["object_key"] is None:
        return Place(alone_key(tenant_id, found.sha256), 0, found.byte_count)
    return Place(row["object_key"], int(row["start"]), int(row["length"]))


def _check_same(found: Archived, entry: Entry, digest: bytes) -> None:
    if found.sha256 != digest.hex():
        raise Conflict(
            f"{entry.kind} of {found.number} is archived with other bytes; nothing in the archive changes",
            number=found.number,
        )


def _newest(known: Iterable[tuple[str, str, int]]) -> dict[tuple[str, str], int]:
    """The newest version of each file of each document."""
    found: dict[tuple[str, str], int] = {}
    for document_id, kind, version in known:
        found[document_id, kind] = max(version, found.get((document_id, kind), 0))
    return found


def _check_version(entry: Entry, newest: dict[tuple[str, str], int]) -> None:
    """Versions follow each other; the entry's is the newest from now on."""
    before = newest.get((entry.document_id, entry.kind), 0)
    if entry.version not in (before + 1, before):  # the same twice in one batch is compared when it is chained
        raise Conflict(f"the next version of {entry.kind} of {entry.document_id} is {before + 1}, not {entry.version}")
    newest[entry.document_id, entry.kind] = entry.version


def _words(entry: Entry) -> str:
    said = (entry.number, entry.customer, entry.document_type, entry.file_name, format(entry.amount, "f"))
    text = " ".join((*said, entry.text))[:TEXT_MAX]
    return _plain_words(text.replace("\x00", " "))


def _plain_words(text: str) -> str:
    """Words as they are compared: without hyphens inside (the parser makes signs of them: RE-2026 is RE and -2026), in
    small letters (a database of locale C knows only those of ASCII)."""
    return _HYPHEN.sub(" ", text).lower()


def _insert(connection: Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """One statement for all rows: their columns travel as arrays."""
    connection.execute(statement, [list(column) for column in zip(*rows, strict=True)])
