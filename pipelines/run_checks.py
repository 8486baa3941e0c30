"""The look at a computed run before anybody approves it: compared with what was billed before, rails applied.

Owns where the comparison comes from (results in the object store, invoices in SQL); the judgement is
`billing/guard_rails.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import polars as pl

from billing.guard_rails import HIGHEST, LAST_SCHEMA, Held, difference, held_by, outliers, stops
from billing.guard_rails import OUTLIERS as OUTLIERS_MAX
from billing.master import MasterData
from billing.run_breakdown import Breakdown, added, by_country
from billing.run_settings import RunSettings
from storage.sql import bill_runs, invoices
from storage.sql.database import Connection


@dataclass(frozen=True)
class Checked:
    """What was found: `checks` for people, `held` the customers that are kept back, `stops` why the run waits."""

    checks: dict[str, Any]
    held: list[dict[str, str]]
    stops: list[str]


def check(
    connection: Connection,
    settings: RunSettings,
    master: MasterData,
    findings: Sequence[Mapping[str, Any]],
    totals: Mapping[str, Mapping[str, str]],
    chunks: Iterable[tuple[pl.DataFrame, Breakdown]],
) -> Checked:
    """Look at every chunk's documents (DOCUMENTS_SCHEMA; nobody looks at bodies) and their sums by plan and tax.

    A customer of a family is held with all of it, as its lines are one matter.
    """
    rails = settings.guard_rails
    last_run = bill_runs.last_finalised(connection)
    before = bill_runs.totals(connection, str(last_run["id"])) if last_run else {}
    differences = difference(totals, before)
    known_countries = invoices.countries(connection)
    voided = _voided(findings, master)
    held: dict[str, Held] = {}
    far: list[dict[str, str]] = []
    sums: list[Breakdown] = []
    for documents, breakdown in chunks:
        sums.append(breakdown)
        customers = documents["customer"].unique().to_list()
        if not customers:
            continue
        last = _last(connection, customers)
        countries = {customer: master.customers[customer].country for customer in customers}
        sums.append(by_country(documents, countries))
        for one in held_by(rails, documents, last, countries, known_countries, voided):
            for member in master.family(one.customer):
                held.setdefault(member, Held(member, one.code, one.reason))
        far += outliers(documents, last)
    far.sort(key=lambda one: abs(Decimal(one["gross"]) - Decimal(one["highest_of_last"])), reverse=True)
    waits = stops(rails, differences, totals.keys()) if last_run else []
    checks = {
        "last_run": None if last_run is None else last_run["number"],
        "difference": differences,
        "outliers": far[:OUTLIERS_MAX],
        "stops": waits,
        **added(sums),
    }
    return Checked(checks, [vars(held[customer]) for customer in sorted(held)], waits)


def _last(connection: Connection, customers: Sequence[str]) -> pl.DataFrame:
    rows = [
        (customer, currency, min(highest, HIGHEST), max(min(highest_sum, HIGHEST), -HIGHEST))
        for customer, currency, highest, highest_sum in invoices.highest_of_last(connection, customers)
    ]
    return pl.DataFrame(rows, schema=LAST_SCHEMA, orient="row")


def _voided(findings: Sequence[Mapping[str, Any]], master: MasterData) -> set[str]:
    """Customers of events that the plan voided because their id came under two customers."""
    keys = {str(one["customer"]) for found in findings if found["code"] == "id_reused" for one in found["listed"]}
    return {master.key_owners[key] for key in keys if key in master.key_owners}
