"""What moved a customer's wallet credit in one currency, day by day: paid in, granted, used, given back, expired.

Owns the history only. Whether credit was there to be used is the home lane's (`billing/accounts.py`), in which order
`billing/wallets.py`. The sum of all moves up to now is what is left, what is reserved, and what commits have taken for
invoices to come: credit leaves the history with the document that it pays, as in the ledger. Amounts in major units.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal

from billing.accompanying import CreditEntry
from billing.accounts import Account, Entry
from billing.documents import Document
from billing.master import TopUp
from billing.money import exact_sum
from billing.periods import local_date
from billing.wallets import used_by

ZERO = Decimal(0)


@dataclass(frozen=True)
class CreditDocument:
    """An invoice or credit note as far as it concerns credit. `gives_back`: its invoice's credit went back whole."""

    number: str
    made_at: datetime
    document: Document
    gives_back: bool = False


@dataclass(frozen=True)
class Expired:
    """Credit of a top-up that was gone at a moment; below zero: a run with an earlier clock used some of it still."""

    at: datetime
    top_up: int
    amount: Decimal


@dataclass(frozen=True)
class _Move:
    at: datetime
    entry: CreditEntry


def history(
    customer: str,
    currency: str,
    top_ups: Iterable[TopUp],
    documents: Iterable[CreditDocument],
    expired: Iterable[Expired],
    timezone: str,
    now: datetime,
) -> list[CreditEntry]:
    """Everything up to now, in order. Days are local; documents count on their own day, as their postings do."""
    own = {one.number: one for one in top_ups if one.customer == customer and one.currency == currency}
    moves = [_topped_up(one, timezone) for one in own.values() if one.at <= now]
    moves += [move for one in documents if one.document.currency == currency for move in _of_document(one, customer)]
    moves += [
        _Move(one.at, CreditEntry(local_date(one.at, timezone), "expired", -one.amount, text=own[one.top_up].kind))
        for one in expired
        if one.top_up in own
    ]
    return [move.entry for move in sorted(moves, key=lambda move: (move.entry.booked_on, move.at))]


def within(entries: Sequence[CreditEntry], first: date, last: date) -> tuple[Decimal, list[CreditEntry]]:
    """What was there before a day, and what moved from then to another one, both inside."""
    before = exact_sum([one.amount for one in entries if one.booked_on < first])
    return before, [one for one in entries if first <= one.booked_on <= last]


def _topped_up(one: TopUp, timezone: str) -> _Move:
    ends = None if one.expires is None else local_date(one.expires, timezone)
    return _Move(one.at, CreditEntry(local_date(one.at, timezone), one.kind, one.amount, expires_on=ends))


def _of_document(one: CreditDocument, customer: str) -> Iterator[_Move]:
    document = one.document
    used = exact_sum(used_by(document, customer))
    day, about = document.date, document.refers_to
    if document.type == "invoice":
        if used:
            yield _Move(one.made_at, CreditEntry(day, "invoice", -used, one.number))
        return
    if used and one.gives_back:
        yield _Move(one.made_at, CreditEntry(day, "returned", used, one.number, about))
    if document.due and document.customer == customer:
        # What a credit note credits beside that is set off at once: it lowers what is owed (receivables).
        yield _Move(one.made_at, CreditEntry(day, "credit_note", document.due, one.number, about))
        yield _Move(one.made_at, CreditEntry(day, "set_off", -document.due, one.number))


# -- Expiry ------------------------------------------------------------------------------------------------------------


def expired_of(top_ups: Iterable[TopUp], rows: Iterable[tuple[datetime, str, Entry]], now: datetime) -> list[Expired]:
    """What was left of top-ups when they expired, and what came free of them later, by the rows of the home lane.

    `rows` (moment, id, verdict) are all of the customer's, in their order. What a reservation holds expires only when
    it is over and has not used it; what a commit took for an invoice does not; what comes back later is gone at once.
    """
    clock = _Clock({one.number: one for one in top_ups if one.expires is not None and one.expires <= now})
    for at, id, entry in rows:
        clock.move_on(at)
        clock.account.apply(id, entry, at)
        clock.look(at)
    clock.move_on(now)
    return clock.found


class _Clock:
    """An account that is led through time, with an eye on what has expired."""

    def __init__(self, top_ups: Mapping[int, TopUp]) -> None:
        self.account = Account()
        self.found: list[Expired] = []
        self._top_ups = top_ups
        self._ends = sorted((one.expires, number) for number, one in top_ups.items() if one.expires is not None)
        self._place = 0
        self._told: dict[int, Decimal] = {}  # of top-ups that have expired: how much of it was told

    def move_on(self, to: datetime) -> None:
        while self._place < len(self._ends) and self._ends[self._place][0] <= to:
            end, number = self._ends[self._place]
            self._place += 1
            self._close(end)
            self._told[number] = ZERO
            self.look(end)
        self._close(to)

    def look(self, at: datetime) -> None:
        for number, told in self._told.items():
            pot = self.account.pots.get(number)
            left = self._top_ups[number].amount - (ZERO if pot is None else pot.gone + pot.held)
            if left != told:
                self._tell(at, number, left - told)

    def _close(self, to: datetime) -> None:
        """Reservations end by themselves, each at its own moment."""
        for id in self.account.at(to):
            one = self.account.reservations[id]
            assert one.closed_at is not None, f"reservation {id} has ended"
            for number, part in one.verdict.parts:
                if number in self._told:
                    self._tell(one.closed_at, number, part)

    def _tell(self, at: datetime, number: int, amount: Decimal) -> None:
        self.found.append(Expired(at, number, amount))
        self._told[number] += amount
