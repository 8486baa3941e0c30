"""What the archive keeps of a file: the entry that is put, the line of the register, and the hash that chains it.

A link covers the hash of the bytes, everything that the register says and the link before. `link_format` says how: 1 is
the first form, 2 has the version and the day until which the file is kept as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Literal

GENESIS = bytes(32)  # what the first entry of a tenant follows
DELETION = "deletion"  # kind of the records that say what was deleted
LINK_FORMAT = 2
COLUMNS = (
    "document_id", "kind", "version", "number", "document_type", "customer", "document_date", "amount", "currency",
    "mime", "file_name", "byte_count", "sha256", "archived_at", "retained_until", "link_format",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A file to keep. (`document_id`, `kind`, `version`) is its identity: the same again is the same, other bytes are
    refused; a corrected file is a version of its own, the earlier one stays."""

    document_id: str
    kind: str  # pdf, xml, csv ...: the name of this file among those of the document
    number: str
    document_type: str
    customer: str
    document_date: date
    amount: Decimal  # gross
    currency: str
    data: bytes = field(repr=False)
    mime: str = "application/pdf"
    file_name: str = ""
    version: int = 1
    text: str = field(default="", repr=False)  # the words it is found by


@dataclass(frozen=True)
class Archived:
    """What the register knows of an archived file."""

    position: int
    document_id: str
    kind: str
    version: int
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
    archived_at: datetime
    retained_until: date
    link_format: int
    previous: str
    chain: str
    deleted_by: int | None = None  # position of the record of its deletion; the file and its names are gone


FindingKind = Literal["changed", "missing", "added", "register", "chain", "root", "lock"]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was archived: which, and what."""

    kind: FindingKind
    detail: str
    key: str = ""
    position: int | None = None
    number: str | None = None


def link(found: Archived, tenant_id: str, previous: bytes) -> bytes:
    """The chain hash of an entry: over the hash before and all that the register says, in one canonical form."""
    said: list[Any] = [
        found.link_format, previous.hex(), tenant_id, found.position, found.document_id, found.kind, found.number,
        found.document_type, found.customer, found.document_date.isoformat(), format(found.amount, "f"),
        found.currency, found.mime, found.file_name, found.byte_count, found.sha256,
        found.archived_at.astimezone(UTC).isoformat(),
    ]  # fmt: skip
    if found.link_format >= 2:
        said += [found.version, found.retained_until.isoformat()]
    return hashlib.sha256(json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()).digest()


def next_entry(
    entry: Entry,
    digest: bytes,
    *,
    position: int,
    previous: bytes,
    now: datetime,
    retained_until: date,
    tenant_id: str,
) -> Archived:
    """The register's line for an entry that follows the link `previous`."""
    draft = Archived(
        position=position,
        document_id=entry.document_id,
        kind=entry.kind,
        version=entry.version,
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
        archived_at=now,
        retained_until=retained_until,
        link_format=LINK_FORMAT,
        previous=previous.hex(),
        chain="",
    )
    return Archived(**{**vars(draft), "chain": link(draft, tenant_id, previous).hex()})


def row_of(found: Archived, tenant_id: str) -> tuple[Any, ...]:
    """The values of a new line of the register: tenant, position, COLUMNS, previous, chain."""
    values = {**vars(found), "sha256": bytes.fromhex(found.sha256)}
    return (
        tenant_id,
        found.position,
        *(values[name] for name in COLUMNS),
        bytes.fromhex(found.previous),
        bytes.fromhex(found.chain),
    )


def archived(row: dict[str, Any]) -> Archived:
    said = {name: row[name] for name in COLUMNS if name != "sha256"}
    hashes = {name: bytes(row[name]).hex() for name in ("sha256", "previous", "chain")}
    return Archived(position=int(row["position"]), deleted_by=row["deleted_by"], **said, **hashes)


def chain_findings(found: Archived, tenant_id: str, expected: int, chain: bytes) -> Iterable[Finding]:
    """What is wrong with a line of the register, given its place and the link before it."""
    if found.position != expected:
        yield Finding("chain", f"entry {expected} is missing before this one", "", found.position, found.number)
    elif found.previous != chain.hex():
        yield Finding("chain", "does not follow the entry before it", "", found.position, found.number)
    # Of a deleted file the names are gone; its link is vouched for by the record of its deletion.
    if found.deleted_by is None and link(found, tenant_id, bytes.fromhex(found.previous)).hex() != found.chain:
        yield Finding("register", "what the register says was changed", "", found.position, found.number)
