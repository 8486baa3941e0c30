"""What a bill run will come to, before it computes anything: customers due, documents, sums and how long it takes.

Owns the estimate. Who is due is counted by contract (`billing/customers_due.py`), what they come to is reckoned from
the last runs: so many documents for a customer due, so much for a document, so many seconds for each. It costs no look
at usage; a preview (`run_preview.py`) computes it all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

from billing.customers_due import customers_due
from billing.master import MasterData
from billing.money import round_amount
from pipelines.bill_run_chunk import billable
from pipelines.preview import next_due
from storage.sql import bill_runs
from storage.sql.database import Connection

LAST_RUNS = 3  # that the estimate is reckoned from
LOOKED_AHEAD = 2_000  # customers who are asked when something of theirs is due next
STAGES = ("planned", "approved", "finalised")  # of which the seconds must be known; reading only large runs have


def estimate(connection: Connection, master: MasterData, up_to: datetime) -> dict[str, Any]:
    """Of a run up to then. `documents` and `totals` are None while no run has made documents, `seconds` while none was
    timed; `runs` are the numbers of those that it is reckoned from."""
    customers = billable(master)
    due = customers_due(master, customers, up_to)
    last = bill_runs.last_with_sums(connection, LAST_RUNS)
    documents = _documents(due.count, last)
    return {
        "customers": len(customers),
        "customers_due": due.count,
        "exact": due.exact,
        "documents": documents,
        "totals": _totals(documents, last),
        "seconds": _seconds(len(customers), documents, last),
        "runs": [run["number"] for run in last],
    }


def _documents(due: int, last: Sequence[Mapping[str, Any]]) -> int | None:
    if not due:
        return 0
    before = sum(_due_then(run) for run in last)
    if not before:
        return None
    return _whole(Fraction(due * sum(run["documents"] for run in last), before))


def _due_then(run: Mapping[str, Any]) -> int:
    """Of a run that was planned without an estimate all its customers are taken: there are no fewer."""
    return run["estimate"]["customers_due"] if run["estimate"] else run["customers"]


def _totals(documents: int | None, last: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]] | None:
    if documents is None:
        return None
    made = sum(run["documents"] for run in last)
    sums: dict[str, dict[str, Fraction]] = {}
    for run in last if documents else ():
        for currency, amounts in run["sums"].items():
            one = sums.setdefault(currency, {})
            for name, amount in amounts.items():
                one[name] = one.get(name, Fraction(0)) + Fraction(Decimal(amount))
    return {
        currency: {
            name: format(round_amount(amount * documents / made, currency), "f") for name, amount in amounts.items()
        }
        for currency, amounts in sorted(sums.items())
    }


def _seconds(customers: int, documents: int | None, last: Sequence[Mapping[str, Any]]) -> float | None:
    """Each stage at the speed that it had in the last runs, without what they waited for their approval."""
    timed = [run for run in last if all(stage in run["stage_seconds"] for stage in STAGES)]
    if not timed or documents is None:
        return None
    seconds = Fraction(0)
    for stage in ("reading", *STAGES):
        took, made = Fraction(0), 0
        for run in timed:
            one = run["stage_seconds"].get(stage)
            if one is not None:
                took += Fraction(one["seconds"])
                made += max((run["documents"] if stage == "finalised" else run["customers"]) - one["from"], 0)
        if made:
            seconds += took * (documents if stage == "finalised" else customers) / made
    return round(float(seconds), 1)


def _whole(number: Fraction) -> int:
    return int(number + Fraction(1, 2))


def next_due_at(master: MasterData, after: datetime) -> datetime | None:
    """When something is due next, for somebody who finds nothing due: of the first LOOKED_AHEAD customers."""
    found: list[datetime] = []
    for customer in billable(master)[:LOOKED_AHEAD]:
        when = next_due(master, customer, after)
        if when > after:
            found.append(when)
    return min(found, default=None)
