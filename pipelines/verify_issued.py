"""Proves what no bill run made and nobody here computed: invoices that were issued from outside, and all numbers.

Owns the comparison of such a document with the JSON that it came as; no usage is behind it. Documents of bill runs are
`verify_invoices.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any
from uuid import UUID

from billing.documents import Document
from billing.einvoice.issued import document_of, numbered
from billing.errors import InvalidInput
from pipelines.verify_invoices import FINDINGS_MAX, Finding, own_faults, readable
from storage.sql import invoices, issued_invoices, tenants
from storage.sql.database import Database

TOGETHER = 200  # documents that are read at a time, without their forms


@dataclass(frozen=True)
class NumbersProof:
    """Every series, those with a gap, and what was found of `outside` documents. Of `erased` the JSON is gone, with a
    customer who was forgotten: only their own sums were looked at."""

    series: tuple[dict[str, Any], ...]
    gaps: tuple[dict[str, Any], ...]
    outside: int
    erased: int
    findings: tuple[Finding, ...]

    @property
    def proven(self) -> bool:
        return not self.gaps and not self.findings


def verify_numbers(database: Database, tenant_id: str) -> NumbersProof:
    """At most FINDINGS_MAX findings; what comes behind is not read then."""
    with database.tenant(tenant_id) as connection:
        timezone = tenants.by_id(connection, tenant_id).timezone
        series = tuple(invoices.number_series(connection))
        gaps = tuple(invoices.number_gaps(connection))
    count, erased, findings = 0, 0, list[Finding]()
    after: UUID | None = None
    while len(findings) < FINDINGS_MAX:
        with database.tenant(tenant_id) as connection:
            rows = invoices.issued(connection, after, TOGETHER)
        if not rows:
            break
        after = rows[-1]["id"]
        count += len(rows)
        for row in rows:
            with database.tenant(tenant_id) as connection:  # one at a time: it may hold attachments of some megabytes
                form, _ = issued_invoices.sized_form(connection, row["id"])
            erased += not form
            findings += own_faults(row) or _differences(row, form, timezone)
    return NumbersProof(series, gaps, count, erased, tuple(findings[:FINDINGS_MAX]))


def _differences(row: Mapping[str, Any], form: Mapping[str, Any], timezone: str) -> list[Finding]:
    if not form:
        return []
    number, customer = row["number"], row["customer"]
    document = readable(row)
    assert document is not None, "one that cannot be read is a fault of its own"
    try:
        invoice = numbered(form, number)
    except InvalidInput as error:
        return [Finding(number, customer, f"the JSON that it came as cannot be read: {error.detail}")]
    came = document_of(invoice, document.customer, timezone, document.refers_to)
    names = [one.name for one in fields(Document) if getattr(came, one.name) != getattr(document, one.name)]
    return [Finding(number, customer, f"differs from the JSON that it came as in: {', '.join(names)}")] if names else []
