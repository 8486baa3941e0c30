"""Who reads what in the archive: rights per role, user or key, and the record of every access.

A right limits whoever it names to some customers or types of documents; who is named by none sees all that the scope of
the key or session allows. Several rights for one caller (his role's and his own) add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from billing.errors import FieldError, InvalidInput
from storage.archive.entries import Archived
from storage.sql.database import Connection

LISTED_MAX = 10_000  # customers of one right
PAGE_MAX = 500


@dataclass(frozen=True)
class Sight:
    """What a reader may see; None is everything."""

    customers: frozenset[str] | None = None
    document_types: frozenset[str] | None = None

    def shows(self, found: Archived) -> bool:
        return (self.customers is None or found.customer in self.customers) and (
            self.document_types is None or found.document_type in self.document_types
        )

    def as_json(self) -> dict[str, list[str] | None]:
        """As the database's own search takes it."""
        return {
            "customers": None if self.customers is None else sorted(self.customers),
            "types": None if self.document_types is None else sorted(self.document_types),
        }


EVERYTHING = (Sight(),)


@dataclass(frozen=True)
class Reader:
    """Who reads, for the record ("user ann@example.org"), and what of: any of the sights suffices."""

    actor: str
    sights: tuple[Sight, ...] = EVERYTHING
    hidden: frozenset[str] = frozenset()  # documents of customers who were erased: kept for the law, not for work

    def sees(self, found: Archived) -> bool:
        return found.document_id not in self.hidden and any(sight.shows(found) for sight in self.sights)


def reader_of(connection: Connection, actor: str, role: str | None, *, keeper: bool = False) -> Reader:
    """The reader for a caller, by the rights that name him or his role. A `keeper` of the archive also sees documents
    that are only kept because the law demands it: those of customers who were erased."""
    subjects = [actor, *([f"role {role}"] if role else [])]
    rows = connection.execute(
        "SELECT customers, document_types FROM archive_rights WHERE subject = ANY(%s)", (subjects,)
    ).fetchall()
    sights = tuple(
        Sight(
            frozenset(row["customers"]) if row["customers"] is not None else None,
            frozenset(row["document_types"]) if row["document_types"] is not None else None,
        )
        for row in rows
    )
    return Reader(actor, sights or EVERYTHING, frozenset() if keeper else _only_kept(connection))


def _only_kept(connection: Connection) -> frozenset[str]:
    """Documents of customers who were erased; not those of others who paid for them."""
    rows = connection.execute(
        "SELECT one->>'document_id' AS id FROM erasures, jsonb_array_elements(documents) AS one"
        " WHERE NOT (one->>'shared')::boolean"
    ).fetchall()
    return frozenset(str(row["id"]) for row in rows)


def set_right(
    connection: Connection,
    tenant_id: str,
    subject: str,
    customers: Sequence[str] | None,
    document_types: Sequence[str] | None,
    *,
    actor: str,
    now: datetime,
) -> None:
    """Limit a role, user or key; a right without limits is taken away."""
    kind, _, name = subject.partition(" ")
    if kind not in ("role", "user", "key") or not name.strip():
        detail = "a subject is `role NAME`, `user EMAIL` or `key PREFIX`"
        raise InvalidInput(detail, errors=[FieldError("/subject", detail)])
    if customers is None and document_types is None:
        connection.execute("DELETE FROM archive_rights WHERE subject = %s", (subject,))
        return
    connection.execute(
        "INSERT INTO archive_rights (tenant_id, subject, customers, document_types, changed_at, changed_by)"
        " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (tenant_id, subject) DO UPDATE SET"
        " customers = EXCLUDED.customers, document_types = EXCLUDED.document_types,"
        " changed_at = EXCLUDED.changed_at, changed_by = EXCLUDED.changed_by",
        (
            tenant_id,
            subject,
            list(customers) if customers is not None else None,
            list(document_types) if document_types is not None else None,
            now,
            actor,
        ),
    )


def rights(connection: Connection) -> list[dict[str, Any]]:
    return connection.execute(
        "SELECT subject, customers, document_types, changed_at, changed_by FROM archive_rights ORDER BY subject"
    ).fetchall()


def record(
    connection: Connection,
    tenant_id: str,
    *,
    at: datetime,
    actor: str,
    action: str,
    document_id: str | None = None,
    detail: str = "",
) -> None:
    """One line of the access record; it is never changed."""
    connection.execute(
        "INSERT INTO archive_access (tenant_id, at, actor, action, document_id, detail)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        (tenant_id, at, actor, action, document_id, detail[:1_000]),
    )


def accesses(
    connection: Connection, *, document_id: str | None = None, after: int | None = None, limit: int = 100
) -> list[dict[str, Any]]:
    """The record, newest first; `after` is the id of the last line seen."""
    return connection.execute(
        "SELECT id, at, actor, action, document_id, detail FROM archive_access"
        " WHERE (%(document)s::text IS NULL OR document_id = %(document)s)"
        " AND (%(after)s::bigint IS NULL OR id < %(after)s) ORDER BY id DESC LIMIT %(limit)s",
        {"document": document_id, "after": after, "limit": min(limit, PAGE_MAX + 1)},
    ).fetchall()
