"""The whole look at computed chunks before anything is final: compared, rails applied, who is parked and why.

Owns the order of the looks, for a bill run and for its preview alike. They only read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from billing.master import MasterData
from pipelines.chunk_results import unpack_heads
from pipelines.run_checks import check
from pipelines.run_issuable import not_issuable
from pipelines.run_issuers import without_issuer
from storage.sql import billing_settings, tenants
from storage.sql.database import Connection


@dataclass(frozen=True)
class Look:
    """`checks` for people, `held` whom a rail keeps back, `parked` all who cannot be billed, each with the reason."""

    checks: dict[str, Any]
    held: list[dict[str, str]]
    parked: list[dict[str, str]]


def look_at(
    connection: Connection,
    tenant_id: str,
    master: MasterData,
    findings: Sequence[Mapping[str, Any]],
    totals: Mapping[str, Mapping[str, str]],
    parked: Sequence[Mapping[str, str]],
    results: Callable[[], Iterable[bytes]],
) -> Look:
    """Look at chunks that were computed: `results` gives theirs in order, as often as it is asked; `parked` are those
    that the chunks left out, `totals` their sums, `findings` what the plan found."""
    tenant = tenants.by_id(connection, tenant_id)
    settings = billing_settings.of(connection, tenant.kind)
    checked = check(connection, settings, master, findings, totals, map(unpack_heads, results()))
    documented = (unpack_heads(data)[0]["customer"].to_list() for data in results())
    found = [dict(one) for one in parked]
    found += without_issuer(connection, master, lambda: documented)
    gone = {one["customer"] for one in found}
    refused = not_issuable(connection, tenant_id, master, results())
    found += [one for one in refused if one["customer"] not in gone]
    return Look(checked.checks, checked.held, found)
