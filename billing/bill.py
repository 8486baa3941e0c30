"""The one engine: what bill run, preview, simulation and `scenario` call to make documents, and nothing else.

`bill` = due -> rate -> settle -> assemble, for any number of customers at once. It neither reads nor stores anything
and knows no clock: everything it rests on is an argument, so the same input gives the same documents for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal

import polars as pl

from billing.assemble import AmountDiscount, Credit, CreditKind, NoCredit, assemble
from billing.contracts import Contract
from billing.credit_notes import mirror
from billing.documents import Document, Line
from billing.due import Due, Use, due, first_unbilled_use
from billing.errors import BillingError
from billing.master import MasterData
from billing.periods import local_date
from billing.rate_uses import metered, rate_uses
from billing.settle import BilledDocument, Draft, Reissue, Settled, Shared, settle

__all__ = ["BillResult", "BilledDocument", "Credit", "CreditKind", "NoCredit", "Parked", "bill", "events_needed_from"]

INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True)
class Parked:
    """A customer who could not be billed: nothing of him is in the result, the next run tries again."""

    customer: str
    reason: str
    code: str


@dataclass(frozen=True)
class BillResult:
    """Documents by customer, then currency, then the order made. `keys[i]` names `documents[i]` to the credit used."""

    documents: tuple[Document, ...]
    keys: tuple[str, ...]
    parked: tuple[Parked, ...]


def bill(
    master: MasterData,
    customers: Sequence[str],
    *,
    up_to: datetime,
    now: datetime,
    billed: Sequence[BilledDocument],
    events: pl.DataFrame,
    events_from: datetime | None = None,
    credit: Credit | None = None,
    document_date: date | None = None,
) -> BillResult:
    """Everything due at or before `up_to` and not yet billed, as documents without numbers.

    - `now` is the clock: its local day is the documents' date (unless `document_date` is given).
    - `billed`: earlier documents of these customers, in the order made: at least those with a line that ends after
      `events_from`, and all of a customer for whom `master.needs_all_documents` holds.
    - `events`: rateable events of these customers (EVENT_SCHEMA; more columns do no harm), complete from `events_from`
      on (None: from the beginning; ask `events_needed_from`), for levels also the last one before it. Suspended and
      voided rows are left out.
    - What was billed is known by the marks of finalised runs in `master.runs` (step `bill_run`).
    Raises nothing for one customer's sake: who cannot be billed is in `parked`.
    """
    day = document_date or local_date(now, master.tenant.timezone)
    before: dict[str, list[BilledDocument]] = {}
    for one in billed:
        before.setdefault(one.document.customer, []).append(one)
    known = metered(master, events)
    wanted = known | {
        (line.subscription, line.charge) for one in billed for line in one.document.lines if line.kind == "usage"
    }
    dues: list[Due] = []
    parked: list[Parked] = []
    for customer in sorted(set(customers)):
        try:
            dues.append(due(master, customer, up_to, events_from, wanted))
        except BillingError as error:
            parked.append(Parked(customer, error.detail, error.code))
    uses: list[Use] = []
    first: list[int] = []
    for one in dues:
        first.append(len(uses))
        uses.extend(one.uses)
    rated = rate_uses(master, uses, events, known)
    shared = Shared(master)
    documents: list[Document] = []
    keys: list[str] = []
    for place, one in enumerate(dues):
        earlier = before.get(one.customer, ())
        try:
            settled = settle(shared, one, rated, first[place], earlier)
            made = _documents(master, one.customer, settled, earlier, day, credit)
        except BillingError as error:
            parked.append(Parked(one.customer, error.detail, error.code))
            continue
        for key, document in made:
            keys.append(key)
            documents.append(document)
    return BillResult(tuple(documents), tuple(keys), tuple(parked))


def _documents(
    master: MasterData,
    customer: str,
    settled: Settled,
    earlier: Sequence[BilledDocument],
    day: date,
    credit: Credit | None,
) -> list[tuple[str, Document]]:
    made: list[tuple[str, Document]] = []
    currencies = sorted({*settled.lines, *(one.billed.document.currency for one in settled.reissues)})
    for currency in currencies:
        for reissue in settled.reissues:
            if reissue.billed.document.currency == currency:
                made.extend(_made_again(master, customer, reissue, day, credit, len(made)))
        drafts = settled.lines.get(currency)
        if drafts:
            lines = [draft.line for draft in drafts]
            key = f"{customer}/{currency}/{len(made)}"
            discounts = _discounts(master, lines, earlier)
            made.append((key, assemble(customer, currency, day, lines, discounts, credit, key)))
    return made


def _made_again(
    master: MasterData, customer: str, reissue: Reissue, day: date, credit: Credit | None, place: int
) -> list[tuple[str, Document]]:
    """The whole credit note of an invoice, then the invoice again: the same amount discounts, then wallet credit."""
    old = reissue.billed.document
    number = reissue.billed.number
    if credit is not None:
        credit.give_back(number)
    lines = [draft.line for draft in sorted(reissue.lines, key=_key_of)]
    sources = dict.fromkeys(a.source for a in old.allowances if a.kind == "discount")
    discounts = [AmountDiscount(source, _discount_amount(master, source)) for source in sources]
    key = f"{customer}/{old.currency}/{place + 1}"
    new = assemble(customer, old.currency, day, lines, discounts, credit, key, refers_to=number)
    return [(f"{customer}/{old.currency}/{place}", mirror(reissue.billed, day)), (key, new)]


def _key_of(draft: Draft) -> tuple[str, int, datetime, int, int, int]:
    return draft.key


def _discount_amount(master: MasterData, source: str) -> Decimal:
    code, _, place = source.rpartition("/")
    amount = master.subscriptions[code].discounts[int(place) - 1].amount
    assert amount is not None, f"{source} is no amount discount"
    return amount


def _discounts(master: MasterData, lines: Sequence[Line], earlier: Sequence[BilledDocument]) -> list[AmountDiscount]:
    """Amount discounts of the subscriptions on the document that still have uses left."""
    found: list[AmountDiscount] = []
    for code in dict.fromkeys(line.subscription for line in lines):
        subscription = master.subscriptions.get(code)
        if subscription is None:
            continue
        for place, discount in enumerate(subscription.discounts, start=1):
            if discount.amount is None:
                continue
            source = f"{code}/{place}"
            used = sum(
                1
                for one in earlier
                if one.document.type == "invoice"
                and one.document.refers_to is None
                and any(a.source == source for a in one.document.allowances)
            )
            if used < discount.times:
                found.append(AmountDiscount(source, discount.amount))
    return found


def events_needed_from(
    master: MasterData, customers: Sequence[str], up_to: datetime, late_since: datetime | None = None
) -> datetime:
    """From which time on `bill` needs the events (and the documents with a line that ends later) of these customers.

    `late_since` is the time of their oldest event that no finalised run has seen (None: there is none): all periods
    from the one on that it lies in are rated again. Levels (`time_weighted_sum`) need all events before, too.
    """
    needed = up_to
    for customer in customers:
        found = due(master, customer, up_to, up_to, frozenset[tuple[str, str]]())
        starts = [use.piece.start for use in found.uses if use.billed is None]
        starts += [start for one in found.contracts for start in first_unbilled_use(master, one, up_to)]
        # An instant earlier: a one-off line of the same start counts for the minimum, and ends when it begins.
        starts += [part.start - INSTANT for part in found.parts if part.billed is None]
        for one in found.contracts:
            starts += _unseen_changes(master, one)
            if late_since is not None:
                starts += _late_periods(one, late_since)
        needed = min((needed, *starts))
    return needed


def _unseen_changes(master: MasterData, one: Contract) -> list[datetime]:
    """Times of changes that a finalised run has not seen: they may take back a line that ends later."""
    customer = one.subscription.customer
    seen = [mark.steps for mark in master.runs if customer not in mark.parked]
    return [step.at for step in one.subscription.steps if step.number > max(seen, default=0)]


def _late_periods(one: Contract, late_since: datetime) -> list[datetime]:
    """Where the periods begin in which usage from that time on counts."""
    return [
        max(span.start, span.segment.grid.at(max(late_since, span.start)).start)
        for span in (one.spans if one.changed else one.usage_span())
        if span.charge.kind == "usage" and span.start < span.end and late_since < span.end
    ]
