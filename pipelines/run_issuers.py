"""Customers of a computed run in whose name nobody can sell: parked before anything is final, with the reason.

Owns that look only. Legal entities are rows of SQL and no master data, so nothing says that the one that a customer
names exists; a run finds it out when it gives numbers, and by then it is approved and cannot go back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from billing.master import MasterData
from storage.sql import tenants
from storage.sql.database import Connection

CODE = "unknown_legal_entity"


def without_issuer(
    connection: Connection, master: MasterData, documented: Callable[[], Iterable[Collection[str]]]
) -> list[dict[str, str]]:
    """Customers to park as {customer, code, reason}, with those who share documents with them.

    `documented` gives the customers with documents, in parts; it is asked only if somebody names an unknown entity.
    """
    known = tenants.legal_entity_codes(connection)
    reasons = {
        code: reason
        for code, customer in master.customers.items()
        if (reason := _reason(str(customer.form.get("legal_entity") or ""), known))
    }
    found: dict[str, str] = {}
    if reasons:
        for part in documented():
            for customer in sorted(reasons.keys() & set(part)):
                for member in master.family(customer):
                    shared = f"shares documents with customer {customer!r}: {reasons[customer]}"
                    found.setdefault(member, shared)
                found[customer] = reasons[customer]
    return [{"customer": customer, "code": CODE, "reason": found[customer]} for customer in sorted(found)]


def _reason(named: str, known: Collection[str]) -> str | None:
    """`known` has the empty name where the tenant has an entity for whoever names none."""
    if named in known:
        return None
    if not named:
        return "the tenant has no legal entity of its own: enter one, the next run bills him"
    return f"there is no legal entity {named!r}: enter it, or let him name another; the next run bills him"
