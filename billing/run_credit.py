"""Credit of bill runs: what the documents of a run use of their customers' wallets, before and after they are final.

Owns the exchange between a run and the home lanes of its customers: the run computes its documents from the state of
the wallets, noting every question and its answer; the lane answers the same questions again, and if one answer differs
nothing is held and the run reads again. What was held once is answered for ever, so a chunk that is computed again, or
verified years later, gets the same documents. Source: docs/rules.md, Wallets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Literal

import msgspec

from billing.accounts import Account, Freed, Held, Part, Restored, Settled, Use
from billing.errors import Conflict, Unavailable
from billing.master import TopUp
from billing.wallets import Wallets

ZERO = Decimal(0)
Kind = Literal["promotional", "purchased"]


class Ask(msgspec.Struct, frozen=True, omit_defaults=True):
    """One question of a run's document, in order: credit of a kind, or (`restores`) a whole invoice taken back."""

    document: str = ""
    currency: str = ""
    kind: Kind = "promotional"
    asked: Decimal = ZERO
    taken: Decimal = ZERO
    restores: str = ""


class CreditOfRun:
    """Where `bill` takes credit from, customer by customer: asked of wallets, and noted for the lane to answer again.

    Who was answered by the lane before (`recorded`) gets the same answers, whatever the wallets hold by now.
    """

    def __init__(
        self, wallets: Mapping[str, Wallets], recorded: Mapping[str, Mapping[str, Use]], *, exact: bool = True
    ) -> None:
        self._wallets = wallets
        self._exact = exact  # a recorded answer that does not fit raises; else as much of it as is asked
        self.recorded = recorded
        self.asked: dict[str, list[Ask]] = {}

    def take(self, customer: str, currency: str, kind: Kind, asked: Decimal, document: str) -> Decimal:
        if customer in self.recorded:
            use = self.recorded[customer].get(document)
            if use is None:
                return ZERO
            taken = use.promotional if kind == "promotional" else use.purchased
            if taken > asked and self._exact:
                raise Conflict(f"{taken} {currency} of credit is held for {document}, which needs {asked}")
            return min(taken, asked)
        if customer not in self._wallets:
            return ZERO
        taken = self._wallets[customer].take(customer, currency, kind, asked, document)
        self.asked.setdefault(customer, []).append(Ask(document, currency, kind, asked, taken))
        return taken

    def give_back(self, number: str) -> None:
        for customer, wallets in self._wallets.items():
            if number in wallets.used:
                wallets.give_back(number)
                self.asked.setdefault(customer, []).append(Ask(restores=number))


def hold_for_run(
    account: Account,
    customer: str,
    top_ups: Sequence[TopUp],
    asks: Sequence[Ask],
    *,
    master: int,
    run: str,
    as_of: datetime,
    now: datetime,
) -> Held | None:
    """What a run's documents use, if every question still has the answer it was computed with; None if one has not."""
    wallets = account.wallets(customer, top_ups, now, as_of=as_of, documents=True)
    before = {number: (pot.left, pot.committed) for number, pot in wallets.pots.items()}
    restores: list[str] = []
    uses: dict[str, Use] = {}
    for ask in asks:
        if ask.restores:
            if ask.restores not in wallets.used:
                return None
            wallets.give_back(ask.restores)
            restores.append(ask.restores)
            continue
        taken = wallets.take(customer, ask.currency, ask.kind, ask.asked, ask.document)
        if taken != ask.taken:
            return None
        use = uses.get(ask.document, Use(ask.currency, ZERO, ZERO, ()))
        promotional, purchased = (taken, ZERO) if ask.kind == "promotional" else (ZERO, taken)
        parts = tuple(wallets.used[ask.document])
        uses[ask.document] = Use(ask.currency, use.promotional + promotional, use.purchased + purchased, parts)
    moves = tuple(
        (number, left - pot.left, committed - pot.committed)
        for number, pot in wallets.pots.items()
        for left, committed in (before[number],)
        if (left, committed) != (pot.left, pot.committed)
    )
    return Held(master, run, as_of, uses, tuple(restores), moves)


# What travels


class RunCredit(msgspec.Struct, frozen=True):
    """What does a run start from? Top-ups of later steps than `steps` are not the run's.

    `only_looks`: nothing will be held, so who was parked (his claim is given up) may be asked for as well.
    """

    run: str
    customers: list[str]
    as_of: datetime
    steps: int
    master: int = 0
    only_looks: bool = False


class RunHold(msgspec.Struct, frozen=True):
    """Hold what the documents of these customers use."""

    run: str
    asks: dict[str, list[Ask]]  # by customer
    as_of: datetime
    steps: int
    master: int = 0


class CreditState(msgspec.Struct, frozen=True):
    """Either `recorded` (by document) or pots (number, left, held, committed) and what earlier documents used."""

    recorded: Mapping[str, Use] | None
    pots: list[tuple[int, Decimal, Decimal, Decimal]] = []
    documents: dict[str, tuple[Part, ...]] = {}

    def wallets(self, top_ups: Iterable[TopUp], as_of: datetime) -> Wallets:
        """The wallets as the lane sees them, of the run's own top-ups."""
        wallets = Wallets(as_of)
        by_number = {top_up.number: top_up for top_up in top_ups}
        for number, left, held, committed in self.pots:
            top_up = by_number[number]
            wallets.add(top_up, gone=top_up.amount - left, held=held, committed=committed)
        wallets.used = {number: list(parts) for number, parts in self.documents.items()}
        return wallets


class RunAnswer(msgspec.Struct, frozen=True):
    """`uses` are what is recorded; not held: an answer would differ now, read again."""

    held: bool
    uses: dict[str, Use] = {}


class Move(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of a run's documents (`id`: the run), or of an invoice taken back whole (`id`: the credit note)."""

    kind: Literal["settle", "free", "restore"]
    id: str
    customer: str
    documents: dict[str, str] = {}  # settle: key -> number
    invoice: str = ""  # restore


# What the lane answers


def state_for_run(
    account: Account, customer: str, top_ups: Sequence[TopUp], asked: RunCredit, now: datetime
) -> CreditState:
    """The answers recorded for a run, or the state of the wallets. Conflict for who would hold for a run given up."""
    run = account.runs.get(asked.run)
    given_up = run is not None and run.state == "freed"
    recorded = None if given_up and asked.only_looks else recorded_uses(account, asked.run)
    if recorded is not None:
        return CreditState(recorded)
    wallets = account.wallets(customer, until_step(top_ups, asked.steps), now, as_of=asked.as_of)
    pots = [(number, pot.left, pot.held, pot.committed) for number, pot in wallets.pots.items()]
    return CreditState(None, pots, dict(account.documents))


def recorded_uses(account: Account, run: str) -> Mapping[str, Use] | None:
    """What a run was answered; None if it has not asked."""
    state = account.runs.get(run)
    if state is None:
        return None
    if state.state == "freed" or state.held is None:
        raise Conflict(f"Bill run {run} was given up: it may hold no credit.", run=run)
    return state.held.uses


def until_step(top_ups: Iterable[TopUp], steps: int) -> list[TopUp]:
    return [top_up for top_up in top_ups if top_up.number <= steps]


def entry_of(account: Account, move: Move) -> Settled | Freed | Restored | None:
    """What to record for a move, None where it is recorded already or there is nothing to move.

    Raises Unavailable for a run to settle that is unknown.
    """
    run = account.runs.get(move.id)
    match move.kind:
        case "settle":
            if run is None:  # only what was held is settled, so this lane has not seen all rows
                raise Unavailable(f"Bill run {move.id} of {move.customer!r} is not known here: ask again.")
            if run.state == "settled":
                return None
            if run.state == "freed" or run.held is None:
                raise Conflict(f"Bill run {move.id} of {move.customer!r} was given up and cannot be settled.")
            if not run.held.uses.keys() <= move.documents.keys():
                raise Conflict(f"Bill run {move.id} of {move.customer!r} has documents without a number.")
            return Settled(move.id, move.documents)
        case "free":
            if run is not None and run.state == "settled":
                raise Conflict(f"Bill run {move.id} of {move.customer!r} is settled and cannot be given up.")
            return None if run is not None and run.state == "freed" else Freed(move.id)
        case "restore":
            for name, one in account.runs.items():
                if one.state == "held" and one.held is not None and move.invoice in one.held.restores:
                    raise Conflict(f"Bill run {name} takes {move.invoice} back: wait for it.")
            parts = account.documents.get(move.invoice)
            return None if parts is None else Restored(move.invoice, parts)
