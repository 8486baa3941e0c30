"""The one engine: what bill run, preview, simulation and `scenario` call to make documents, and nothing else.

`bill` = due -> rate -> settle -> assemble, for any number of customers at once. It neither reads nor stores anything
and knows no clock: everything it rests on is an argument, so the same input gives the same documents for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal

import polars as pl

from billing.assemble import AmountDiscount, Credit, CreditKind, NoCredit, assemble
from billing.contracts import Contract, Piece, Subscription
from billing.cost_centres import with_cost_centres, with_cost_centres_again
from billing.credit_notes import mirror
from billing.document_groups import grouped
from billing.documents import Document, Line, Member
from billing.due import Due, Use, due, first_unbilled_use, merged
from billing.errors import BillingError
from billing.live_state import LiveState
from billing.master import MasterData
from billing.money import exact_sums
from billing.periods import local_date
from billing.rate_uses import metered, metered_live, rate_uses, rate_uses_live
from billing.settle import BilledDocument, Reissue, Settled, Shared, settle, sort_drafts

__all__ = [
    "BillResult",
    "BilledDocument",
    "Credit",
    "CreditKind",
    "NoCredit",
    "Parked",
    "bill",
    "discounts_again",
    "events_needed_from",
]

INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True)
class Parked:
    """A customer who could not be billed: nothing of him is in the result, the next run tries again."""

    customer: str
    reason: str
    code: str


@dataclass(frozen=True)
class AmountOff:
    amount: Decimal
    times: int


@dataclass(frozen=True)
class BillResult:
    """Documents by customer and currency: those made again, then the new ones by group (`document_groups.py`).

    `keys[i]` names `documents[i]` to the credit used.
    """

    documents: tuple[Document, ...]
    keys: tuple[str, ...]
    parked: tuple[Parked, ...]


@exact_sums()
def bill(
    master: MasterData,
    customers: Sequence[str],
    *,
    up_to: datetime,
    now: datetime,
    billed: Sequence[BilledDocument],
    events: pl.DataFrame | LiveState,
    events_from: datetime | None = None,
    credit: Credit | None = None,
    document_date: date | None = None,
) -> BillResult:
    """Everything due at or before `up_to` and not yet billed, as documents without numbers.

    - `customers`: those of a family (`master.family`) are billed together; of a part of it only that part's lines
      are on the payer's documents.
    - `now` is the clock: it decides who pays for whom, and its local day is the documents' date (unless
      `document_date` is given).
    - `billed`: earlier documents of these customers, in the order made: at least those with a line that ends after
      `events_from`, and all of a customer for whom `master.needs_all_documents` holds.
    - `events`: rateable events of these customers (EVENT_SCHEMA; more columns do no harm), complete from `events_from`
      on (None: from the beginning; ask `events_needed_from`), for levels also the last one before it. Suspended and
      voided rows are left out. Or what shards have folded of them, if there is no level among their meters (a level
      costs until a moment, and a cell has only a day).
    - What was billed is known by the marks of finalised runs in `master.runs` (step `bill_run`).
    Raises nothing for one customer's sake: who cannot be billed is in `parked`.
    """
    day = document_date or local_date(now, master.tenant.timezone)
    known = metered_live(master, events) if isinstance(events, LiveState) else metered(master, events)
    wanted = known | {
        (line.subscription, line.charge) for one in billed for line in one.document.lines if line.kind == "usage"
    }
    parked: list[Parked] = []
    accounts: list[_Account] = []
    for customers_ in _together(master, customers):
        found: list[Due] = []
        try:
            found.extend(due(master, customer, up_to, events_from, wanted) for customer in customers_)
        except BillingError as error:
            parked.extend(Parked(customer, error.detail, error.code) for customer in customers_)
            continue
        payers = {one: master.payer_at(one, now) for one in customers_} if customers_[0] in master.families else {}
        accounts.append(_Account(customers_, merged(found), payers))
    before = _billed_by_account(accounts, billed)
    uses: list[Use] = []
    first: list[int] = []
    for account in accounts:
        first.append(len(uses))
        uses.extend(account.due.uses)
    if isinstance(events, LiveState):
        rated = rate_uses_live(master, uses, events, known)
    else:
        rated = rate_uses(master, uses, events, known)
    shared = Shared(master)
    found_: list[tuple[str, Document]] = []
    for place, account in enumerate(accounts):
        earlier = before.get(place, ())
        try:
            settled = settle(shared, account.due, rated, first[place], earlier, account.payers)
            made = _documents(master, settled, earlier, day, credit, now)
        except BillingError as error:
            parked.extend(Parked(customer, error.detail, error.code) for customer in account.customers)
            continue
        found_.extend(made)
    if master.families:
        found_.sort(key=lambda made: made[1].customer)  # stable: a customer's own documents stay in their order
    return BillResult(tuple(document for _, document in found_), tuple(key for key, _ in found_), tuple(parked))


@dataclass(frozen=True, slots=True)
class _Account:
    """Customers who are billed together: one, or those of a family. `payers`: who gets the documents of whom."""

    customers: tuple[str, ...]
    due: Due
    payers: Mapping[str, str]


def _together(master: MasterData, customers: Sequence[str]) -> list[tuple[str, ...]]:
    """The customers, those of a family together, each in order of their codes."""
    asked = set(customers)
    if not master.families:
        return [(customer,) for customer in sorted(asked)]
    found: dict[str, tuple[str, ...]] = {}
    for customer in sorted(asked):
        family = master.family(customer)
        if family[0] not in found:
            found[family[0]] = tuple(member for member in family if member in asked)
    return list(found.values())


def _billed_by_account(
    accounts: Sequence[_Account], billed: Sequence[BilledDocument]
) -> dict[int, list[BilledDocument]]:
    """The earlier documents of each account, in their order: those that its customers got or have lines on."""
    account_of = {customer: place for place, account in enumerate(accounts) for customer in account.customers}
    found: dict[int, list[BilledDocument]] = {}
    for one in billed:
        codes = (one.document.customer, *(member.code for member in one.document.members))
        place = next((account_of[code] for code in codes if code in account_of), None)
        if place is not None:
            found.setdefault(place, []).append(one)
    return found


def _documents(
    master: MasterData,
    settled: Settled,
    earlier: Sequence[BilledDocument],
    day: date,
    credit: Credit | None,
    now: datetime,
) -> list[tuple[str, Document]]:
    made: list[tuple[str, Document]] = []
    again = [(one.billed.document.customer, one.billed.document.currency) for one in settled.reissues]
    places: dict[str, int] = {}  # how many documents a customer has so far
    for customer, currency in sorted({*settled.lines, *again}):
        place = places.get(customer, 0)
        for reissue, owner in zip(settled.reissues, again, strict=True):
            if owner == (customer, currency):
                made.extend(_made_again(master, reissue, day, credit, place, now))
                place += 2
        drafts = settled.lines.get((customer, currency))
        for group, own in grouped(master, customer, drafts, earlier, now) if drafts else ():
            lines = with_cost_centres(master.subscriptions, [draft.line for draft in own], earlier, now)
            key = f"{customer}/{currency}/{place}"
            place += 1
            discounts = _discounts(master, lines, earlier)
            document = replace(assemble(customer, currency, day, lines, discounts, credit, key), group=group)
            made.append((key, with_members(master, document)))
        places[customer] = place
    return made


def with_members(master: MasterData, document: Document) -> Document:
    """The document with the names of the customers whose lines it has beside its own customer's."""
    codes = sorted({line.customer for line in document.lines if line.customer})
    if not codes:
        return document
    prepaid = {member.code: member.prepaid for member in document.members}
    members = (Member(code, master.customers[code].name, prepaid.get(code, Decimal(0))) for code in codes)
    return replace(document, members=tuple(members))


def _made_again(
    master: MasterData, reissue: Reissue, day: date, credit: Credit | None, place: int, now: datetime
) -> list[tuple[str, Document]]:
    """The whole credit note of an invoice, then the invoice again: the same amount discounts, then wallet credit."""
    old = reissue.billed.document
    customer, number = old.customer, reissue.billed.number
    if credit is not None:
        credit.give_back(number)
    sort_drafts(reissue.lines, customer)
    lines = with_cost_centres_again(master.subscriptions, [draft.line for draft in reissue.lines], old, now)
    discounts = discounts_again(master, old)
    key = f"{customer}/{old.currency}/{place + 1}"
    new = assemble(customer, old.currency, day, lines, discounts, credit, key, refers_to=number)
    new = replace(new, group=old.group)
    note = (f"{customer}/{old.currency}/{place}", mirror(reissue.billed, day))
    return [note, (key, with_members(master, new))]


def discounts_again(master: MasterData, old: Document) -> list[AmountDiscount]:
    """The amount discounts of a document that is made again: those that it had, whatever uses are left."""
    sources = dict.fromkeys(a.source for a in old.allowances if a.kind == "discount")
    return [AmountDiscount(source, _discount_amount(master, source)) for source in sources]


def _discount_amount(master: MasterData, source: str) -> Decimal:
    code, _, _ = source.rpartition("/")
    amount = dict(_amount_discounts(master.subscriptions[code])).get(source)
    assert amount is not None, f"{source} is no amount discount"
    return amount.amount


def _amount_discounts(subscription: Subscription, add_on: str | None = None) -> Iterator[tuple[str, AmountOff]]:
    """Amount discounts with their names: `subscription/1`, of an add-on `subscription/17.1` by the step that made it.

    `add_on` chooses those of one contract (empty: of the subscription itself); None takes all.
    """
    owners = [("", "", subscription.discounts)]
    owners += [(one.code, f"{one.number}.", one.discounts) for one in subscription.add_ons]
    for code, prefix, discounts in owners:
        if add_on not in (None, code):
            continue
        for place, discount in enumerate(discounts, start=1):
            if discount.amount is not None:
                yield f"{subscription.code}/{prefix}{place}", AmountOff(discount.amount, discount.times)


def _discounts(master: MasterData, lines: Sequence[Line], earlier: Sequence[BilledDocument]) -> list[AmountDiscount]:
    """Amount discounts of the contracts on the document that still have uses left."""
    found: list[AmountDiscount] = []
    for code, add_on in dict.fromkeys(line.contract for line in lines):
        subscription = master.subscriptions.get(code)
        if subscription is None:
            continue
        for source, discount in _amount_discounts(subscription, add_on):
            used = sum(
                1
                for one in earlier
                if one.document.type == "invoice"
                and one.document.refers_to is None
                and any(a.kind == "discount" and a.source == source for a in one.document.allowances)
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
        starts += [start - INSTANT for _, piece in found.fees for start in _part_of_fee(piece)]
        for one in found.contracts:
            starts += _unseen_changes(master, one)
            if late_since is not None:
                starts += _late_periods(one, late_since)
        needed = min((needed, *starts))
    return needed


def _part_of_fee(piece: Piece) -> Iterator[datetime]:
    """Where the part of the plan's minimum begins that a fee counts for (nothing without a minimum): it may have been
    billed long before the fee is due, as when a phase ended in the middle of a month."""
    segment = piece.span.segment
    if segment.plan.minimum is not None:
        yield max(segment.start, segment.grid.at(piece.start).start)


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
