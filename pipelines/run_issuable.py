"""Customers of a computed run whose documents could not be issued: parked before they get a number, with the reason.

Owns that look only: the rules are those that files are made by (`documents.issuable`), asked for one document of each
shape (`document_shapes.py`). Who is parked is billed by the next run once his data are right.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from billing.document_columns import DocumentColumns
from billing.document_json import document_from, unpacked
from billing.einvoice.parties import Seller, seller_of
from billing.master import MasterData
from pipelines.chunk_results import Result, shapes_in, unpack
from pipelines.document_faults import Refused, tried
from pipelines.document_shapes import keys_of
from pipelines.documents import FinalDocument, Issuer, NotIssuable, issuable, issuer_of, render_pdf, shared_gate
from pipelines.printable import unprintable
from pipelines.run_finalising import buyer_of
from storage.sql import invoices, tenants
from storage.sql.database import Connection

CODE = NotIssuable.code
SHAPES_MAX = 2_000  # of a run: some 10 s. Documents of further ones are checked when their files are made
EACH_MAX = 1_000  # documents of refused shapes that are looked at one by one; beyond that their shape's verdict holds
NUMBER = "1"  # which one it gets plays no part


def not_issuable(
    connection: Connection, tenant_id: str, master: MasterData, results: Iterable[bytes]
) -> list[dict[str, str]]:
    """Customers to park as {customer, code, reason}, with those who share documents with them.

    `results` are the run's chunks as they were computed, in their order.
    """
    look = _Look(tenant_id, tenants.by_id(connection, tenant_id), master, _entities(connection))
    found: dict[str, str] = {}
    for data in results:
        for customer, reason in look.refused(data):
            found.setdefault(customer, reason)
    for customer, reason in list(found.items()):
        for member in master.family(customer):
            found.setdefault(member, f"shares documents with customer {customer!r}: {reason}")
    return [{"customer": customer, "code": CODE, "reason": found[customer]} for customer in sorted(found)]


def _entities(connection: Connection) -> dict[str, dict[str, Any]]:
    """By the code that a customer names; empty for the one of who names none."""
    rows = tenants.legal_entities(connection)
    found = {row["code"]: row for row in rows}
    default = next((row for row in rows if row["is_default"]), None)
    return found if default is None else {**found, "": default}


@dataclass
class _Look:
    tenant_id: str
    tenant: tenants.Tenant
    master: MasterData
    entities: dict[str, dict[str, Any]]
    _verdicts: dict[str, Refused | None] = field(default_factory=dict[str, "Refused | None"])
    _each: int = 0

    def refused(self, data: bytes) -> list[tuple[str, str]]:
        """(customer, reason) of a chunk's documents that could not be issued."""
        shapes = shapes_in(data)
        new = {key: place for key, place in shapes.items() if key not in self._verdicts}
        whole: Result | None = unpack(data) if new else None
        for key, place in new.items():
            assert whole is not None, "it was read for new shapes"
            if len(self._verdicts) < SHAPES_MAX:
                self._verdicts[key] = self._verdict(whole.columns, place)
        if not any(self._verdicts.get(key) for key in shapes):
            return []
        columns = (whole or unpack(data)).columns
        found: list[tuple[str, str]] = []
        for place, key in enumerate(keys_of(columns, self.master)):
            verdict = self._verdicts.get(key)
            if verdict is None:
                continue
            if self._each < EACH_MAX:  # that one of a shape is wrong may be its own
                self._each += 1
                verdict = self._verdict(columns, place)
            if verdict is not None:
                found.append((columns.documents["customer"][place], verdict.reason))
        return found

    def _verdict(self, columns: DocumentColumns, place: int) -> Refused | None:
        row = columns.documents.row(place, named=True)
        customer = self.master.customers[row["customer"]]
        entity = self.entities.get(str(customer.form.get("legal_entity") or ""))
        if entity is None:
            return None  # `run_issuers.py` says so
        buyer = buyer_of(customer)
        document = document_from(unpacked(row["body"]))
        due_on = invoices.due_on(row["issued_on"], row["type"], buyer)
        final = FinalDocument(row["key"], NUMBER, document, buyer, due_on)
        issuer = issuer_of(self.tenant_id, self.tenant.timezone, self.tenant.country, entity)
        seller = seller_of(issuer.entity, issuer.country)
        made = tried(partial(_tried_out, final, issuer, seller), "a document of a bill run")
        return made if isinstance(made, Refused) else None


def _tried_out(final: FinalDocument, issuer: Issuer, seller: Seller) -> None:
    """Raises what keeps a document from being issued; it is drawn only if it has characters that no font has."""
    invoice, _ = issuable(final, issuer, seller, shared_gate())
    if unprintable(json.dumps(invoice.to_json(), ensure_ascii=False)):
        render_pdf(invoice, language=str(final.customer.get("language") or "de"), seller=seller)
