"""How long archived files are kept, and what holds them longer.

The time runs from the end of the document's year (Germany: 8 years for invoices, 10 for what else belongs to the
books). A tenant's rule may lengthen what is kept already, never shorten it. A hold keeps files beyond any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID, uuid4

from billing.errors import Conflict, FieldError, InvalidInput, NotFound
from storage.archive import rights
from storage.archive.entries import DELETION, Archived, Entry
from storage.sql.database import Connection

INVOICE_YEARS = 8  # German fiscal code, section 147(3): invoices and other vouchers since 2025
OTHER_YEARS = 10  # books and what explains them
YEARS_MAX = 100
OTHER = "other"  # the rule of types without one of their own
LETTER_YEARS = 6  # section 147(1) no. 2 and 3, (3): commercial letters, sent and received
YEARS_OF: Mapping[str, int] = {
    "invoice": INVOICE_YEARS,
    "credit_note": INVOICE_YEARS,
    "account_statement": LETTER_YEARS,
    "reminder": LETTER_YEARS,
    OTHER: OTHER_YEARS,
}
# What explains or belongs to an invoice is kept as long as that, whatever a tenant says of it alone.
ACCOMPANYING = ("usage_record", "delivery_note", "credit_statement")
_FOR_EVER = date(9999, 12, 31)
TYPE_LENGTH_MAX = 64
REASON_LENGTH_MAX = 1_000


def years_of(connection: Connection, tenant_id: str) -> dict[str, int]:
    """Years by type of document: the tenant's own rules over the usual ones."""
    rows = connection.execute(
        "SELECT document_type, years FROM archive_retention WHERE tenant_id = %s", (tenant_id,)
    ).fetchall()
    years = {**YEARS_OF, **{str(row["document_type"]): int(row["years"]) for row in rows}}
    return years | {kind: max(years["invoice"], years.get(kind, 0)) for kind in ACCOMPANYING}


def until(entry: Entry | Archived, years: Mapping[str, int]) -> date:
    """The last day on which it must be kept, by these rules. Records of deletions stay for ever."""
    if entry.kind == DELETION:
        return _FOR_EVER
    kept = entry.document_date.year + years.get(entry.document_type, years[OTHER])
    return date(min(kept, _FOR_EVER.year), 12, 31)


def kept_until(found: Archived, years: Mapping[str, int]) -> date:
    """The same of something archived: a rule made later lengthens its time and never shortens it."""
    return max(found.retained_until, until(found, years))


def set_years(
    connection: Connection, tenant_id: str, document_type: str, years: int, *, actor: str, now: datetime
) -> None:
    """Keep documents of a type for so many years; shorter than what a rule said before counts for new files only."""
    if not document_type or len(document_type) > TYPE_LENGTH_MAX:
        detail = "a type of document is needed, such as invoice"
        raise InvalidInput(detail, errors=[FieldError("/document_type", detail)])
    if not 0 <= years <= YEARS_MAX:
        detail = f"a number of years from 0 to {YEARS_MAX} is needed"
        raise InvalidInput(detail, errors=[FieldError("/years", detail)])
    connection.execute(
        "INSERT INTO archive_retention (tenant_id, document_type, years, changed_at, changed_by)"
        " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (tenant_id, document_type) DO UPDATE"
        " SET years = EXCLUDED.years, changed_at = EXCLUDED.changed_at, changed_by = EXCLUDED.changed_by",
        (tenant_id, document_type, years, now, actor),
    )


@dataclass(frozen=True)
class Hold:
    """What must not be deleted until it is released: everything, of one customer, or one document."""

    id: str
    customer: str | None
    document_id: str | None
    reason: str
    placed_at: datetime
    placed_by: str
    released_at: datetime | None
    released_by: str | None
    release_reason: str | None

    def holds(self, found: Archived) -> bool:
        return (
            self.released_at is None
            and self.customer in (None, found.customer)
            and self.document_id in (None, found.document_id)
        )


def place_hold(
    connection: Connection,
    tenant_id: str,
    *,
    reason: str,
    actor: str,
    now: datetime,
    customer: str | None = None,
    document_id: str | None = None,
) -> Hold:
    _check_reason(reason)
    hold = Hold(str(uuid4()), customer, document_id, reason, now, actor, None, None, None)
    connection.execute(
        "INSERT INTO archive_holds (tenant_id, id, customer, document_id, reason, placed_at, placed_by)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)",
        (tenant_id, hold.id, customer, document_id, reason, now, actor),
    )
    _note(connection, tenant_id, hold, "hold", reason, actor, now)
    return hold


def release_hold(
    connection: Connection, tenant_id: str, hold_id: str, *, reason: str, actor: str, now: datetime
) -> Hold:
    """Let go of what a hold kept; raises NotFound, and Conflict for one that is released already."""
    _check_reason(reason)
    found = next((each for each in holds(connection) if each.id == hold_id), None)
    if found is None:
        raise NotFound(f"there is no hold {hold_id}")
    done = connection.execute(
        "UPDATE archive_holds SET released_at = %s, released_by = %s, release_reason = %s"
        " WHERE id = %s AND released_at IS NULL",
        (now, actor, reason, UUID(hold_id)),
    )
    if not done.rowcount:
        raise Conflict(f"hold {hold_id} was released before")
    _note(connection, tenant_id, found, "release", reason, actor, now)
    return next(each for each in holds(connection) if each.id == hold_id)


def holds(connection: Connection) -> list[Hold]:
    """All holds of the tenant, the newest first."""
    rows = connection.execute(
        "SELECT id, customer, document_id, reason, placed_at, placed_by, released_at, released_by, release_reason"
        " FROM archive_holds ORDER BY placed_at DESC, id"
    ).fetchall()
    return [Hold(**_hold(row)) for row in rows]


def _note(
    connection: Connection, tenant_id: str, hold: Hold, action: str, reason: str, actor: str, now: datetime
) -> None:
    detail = f"{hold.customer or hold.document_id or 'everything'}: {reason}"
    rights.record(
        connection, tenant_id, at=now, actor=actor, action=action, document_id=hold.document_id, detail=detail
    )


def _hold(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "id": str(row["id"])}


def _check_reason(reason: str) -> None:
    if not reason.strip() or len(reason) > REASON_LENGTH_MAX:
        detail = f"a reason of 1 to {REASON_LENGTH_MAX:,} characters is needed"
        raise InvalidInput(detail, errors=[FieldError("/reason", detail)])
