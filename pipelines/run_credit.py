"""Wallet credit in bill runs: read what there is, compute, hold exactly what was used; settle or free it afterwards.

Owns the order between two stores. The lane holds credit before a chunk's result is stored, under (run, customer), and
answers the same for ever; the transaction that makes documents final writes what became of it (`wallet_moves`), and
`bring_moves` tells the lanes, as often as needed. So a crash anywhere neither uses credit twice nor loses it.
Tenants without wallets pay nothing for this. What is held, and of which top-ups, is decided in the lane.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Protocol

from billing.accounts import Use
from billing.bill import BillResult, Parked
from billing.documents import Document
from billing.errors import BillingError, Conflict
from billing.master import MasterData, TopUp
from billing.run_credit import CreditOfRun, CreditState, Move, RunAnswer, RunCredit, RunHold
from billing.wallets import Wallets
from storage.master_chain import MasterChain
from storage.sql import bill_runs, wallet_moves
from storage.sql.database import Database

TRIES = 8  # of a customer whose wallet changes between reading and holding
LOG = logging.getLogger("cloudbilling.wallets")
MOVES = 1_000  # brought at a time
CUSTOMERS = 500  # of a run that is given up, told at a time
ZERO = Decimal(0)


class WalletDesk(Protocol):
    """The way to the home lanes of customers (actors/accounts_desk.py)."""

    def run_credit(self, tenant_id: str, asked: RunCredit) -> Mapping[str, CreditState]: ...

    def run_hold(self, tenant_id: str, asked: RunHold) -> Mapping[str, RunAnswer]: ...

    def run_move(self, tenant_id: str, moves: Sequence[Move]) -> int:
        """Write what became of documents; repeats are harmless. Raises Unavailable while a lane is away."""
        ...


class DeskAddress(Protocol):
    """A small value that travels to other processes and opens the way to the lanes there."""

    def open(self) -> WalletDesk: ...


@dataclass(frozen=True)
class Facts:
    """What a run's credit rests on."""

    tenant_id: str
    run_id: str
    as_of: datetime
    master_number: int
    master: MasterData


@dataclass(frozen=True)
class Billed:
    """A bill with its credit: `holders` names the documents (by key) for which each customer's credit is held.

    None are named of a customer whose hold only takes invoices back: their credit returns when it is settled.
    """

    result: BillResult
    holders: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


Bill = Callable[[Sequence[str], CreditOfRun], BillResult]


def bill_with_credit(
    desk: WalletDesk, facts: Facts, customers: Sequence[str], with_wallet: Sequence[str], bill: Bill
) -> Billed:
    """Bill customers and hold the credit that their documents use, under (run, customer).

    Who was answered before, by whatever process, is billed with the recorded answers. A wallet that changed between
    reading and holding is read again, and only its owner's family billed again; one that never stands still parks it.
    """
    credit = _read(desk, facts, with_wallet)
    recorded = dict(credit.recorded)
    result = bill(customers, credit)
    refused = _hold(desk, facts, credit, result, recorded)
    if not refused:
        return Billed(result, _holders(result, recorded))
    for _ in range(TRIES):
        again = _families(facts.master, refused)
        credit = _read(desk, facts, [one for one in with_wallet if one in again])
        refused = _hold(desk, facts, credit, bill(sorted(again), credit), recorded)
        if not refused:
            break
    # Once more, all of it by what is recorded now: exactly what a repeat or a verification computes.
    parked = _families(facts.master, refused)
    result = bill([one for one in customers if one not in parked], CreditOfRun({}, recorded))
    words = "the wallet changes faster than it can be billed: the next run tries again"
    late = tuple(Parked(one, words, Conflict.code) for one in sorted(parked) if one in set(customers))
    result = replace(result, parked=(*result.parked, *late))
    return Billed(result, _holders(result, recorded))


def read_credit(
    desk: WalletDesk, facts: Facts, with_wallet: Sequence[str], replayed: Wallets | None = None
) -> CreditOfRun:
    """For who only looks (verification, explanation, preview): recorded answers of the run, else what is free now.

    A run that is derived again gives `replayed`, for documents that were made without the lanes.
    """
    return _read(desk, facts, with_wallet, replayed, exact=False)


def _read(
    desk: WalletDesk, facts: Facts, customers: Sequence[str], replayed: Wallets | None = None, *, exact: bool = True
) -> CreditOfRun:
    states: Mapping[str, CreditState] = {}
    if customers:
        number = max(facts.master_number, 0)
        asked = RunCredit(
            facts.run_id, list(customers), facts.as_of, facts.master.step_count, number, only_looks=not exact
        )
        states = desk.run_credit(facts.tenant_id, asked)
    top_ups = _top_ups(facts.master, states)
    wallets = {
        customer: replayed or state.wallets(top_ups.get(customer, ()), facts.as_of)
        for customer, state in states.items()
        if state.recorded is None
    }
    recorded = {one: state.recorded for one, state in states.items() if state.recorded is not None}
    return CreditOfRun(wallets, recorded, exact=exact)


def _hold(
    desk: WalletDesk, facts: Facts, credit: CreditOfRun, result: BillResult, recorded: dict[str, Mapping[str, Use]]
) -> set[str]:
    """Hold what was asked for documents that exist; adds to `recorded`. Who was refused."""
    parked = {one.customer for one in result.parked}
    asks = {customer: asks for customer, asks in credit.asked.items() if customer not in parked}
    if not asks:
        return set()
    hold = RunHold(facts.run_id, asks, facts.as_of, facts.master.step_count, facts.master_number)
    answers = desk.run_hold(facts.tenant_id, hold)
    recorded.update({customer: answer.uses for customer, answer in answers.items() if answer.held})
    return {customer for customer, answer in answers.items() if not answer.held}


def _holders(result: BillResult, recorded: Mapping[str, Mapping[str, Use]]) -> dict[str, tuple[str, ...]]:
    made = set(result.keys)
    parked = {one.customer for one in result.parked}
    for customer, uses in recorded.items():
        assert customer in parked or uses.keys() <= made, f"{customer} holds credit for documents that are not made"
    return {customer: tuple(sorted(uses.keys() & made)) for customer, uses in recorded.items()}


def _families(master: MasterData, customers: Iterable[str]) -> set[str]:
    return {member for customer in customers for member in master.family(customer)}


def _top_ups(master: MasterData, customers: Collection[str]) -> dict[str, list[TopUp]]:
    found: dict[str, list[TopUp]] = {}
    for top_up in master.top_ups:
        if top_up.customer in customers:
            found.setdefault(top_up.customer, []).append(top_up)
    return found


# -- What became of it -------------------------------------------------------------------------------------------------


def settling(
    run_id: str, holders: Mapping[str, Sequence[str]], numbers: Mapping[str, str], parked: Collection[str]
) -> list[wallet_moves.WalletMove]:
    """The moves of a chunk whose documents got their numbers (by key). Only who is parked has none: that is freed.

    A hold that uses no credit is settled too: it may take an invoice back, whose credit returns by that alone.
    `parked` are those with a wallet, also without a hold here: a process whose result was not taken may have made one.
    """
    moves: list[wallet_moves.WalletMove] = []
    for customer in sorted(holders.keys() | set(parked)):
        if customer in parked:
            moves.append(wallet_moves.WalletMove("free", customer, run_id))
        else:
            documents = {key: numbers[key] for key in holders[customer]}
            moves.append(wallet_moves.WalletMove("settle", customer, run_id, {"documents": documents}))
    return moves


def restoring(note: str, invoice: Document, number: str) -> list[wallet_moves.WalletMove]:
    """The moves of a credit note that takes an invoice back whole: the credit that it used goes back."""
    used = invoice.prepaid > 0 or any(one.kind == "promotional" for one in invoice.allowances)
    owners = (invoice.customer, *(member.code for member in invoice.members)) if used else ()
    return [wallet_moves.WalletMove("restore", one, note, {"invoice": number}) for one in owners]


def bring_moves(
    database: Database, desk: WalletDesk, chain: MasterChain, tenant_id: str, clock: Callable[[], datetime]
) -> int:
    """Tell the lanes what waits, in order, until nothing does; how many moves. Two at once do no harm.

    A move that a lane refuses (something does not fit) holds up what comes after it for the same customer, nothing
    else: it is noted with the lane's words (`GET /v1/wallet-moves`) and tried again by whoever brings moves next.
    """
    count = 0
    refused: dict[str, str] = {}  # by customer, or the run that is given up whole
    stuck: set[int] = set()
    while True:
        with database.tenant(tenant_id) as connection:
            moves = wallet_moves.waiting(connection, MOVES + len(stuck))
        moves = [one for one in moves if one.id not in stuck]
        if not moves:
            break
        for together in _until_a_run(moves):
            if together[0].kind == "free_run":
                brought = _try_run(database, desk, chain, tenant_id, together[0], refused)
            else:
                waiting = [one for one in together if one.customer not in refused]
                brought = _try_moves(desk, tenant_id, waiting, refused)
            done = {one.id for one in brought}
            left = [one for one in together if one.id not in done]
            stuck |= {one.id for one in left}
            with database.tenant(tenant_id) as connection:
                wallet_moves.done(connection, sorted(done), clock())
                for one in left:
                    why = refused[_subject(one)]
                    LOG.error("a wallet move of tenant %s was refused and waits: %s", tenant_id, why)
                    wallet_moves.refuse(connection, one.id, why, clock())
            count += len(done)
    return count


def _try_moves(
    desk: WalletDesk, tenant_id: str, moves: Sequence[wallet_moves.WalletMove], refused: dict[str, str]
) -> list[wallet_moves.WalletMove]:
    """All at once; if that is refused, customer by customer. Those that were brought."""
    if not moves:
        return []
    try:
        desk.run_move(tenant_id, [_move(one) for one in moves])
        return list(moves)
    except BillingError as error:
        if error.retryable:  # nobody refused it: the lane is away
            raise
    brought: list[wallet_moves.WalletMove] = []
    for one in moves:
        if one.customer in refused:
            continue
        try:
            desk.run_move(tenant_id, [_move(one)])
            brought.append(one)
        except BillingError as error:
            if error.retryable:
                raise
            refused[one.customer] = error.detail
    return brought


def _try_run(
    database: Database,
    desk: WalletDesk,
    chain: MasterChain,
    tenant_id: str,
    move: wallet_moves.WalletMove,
    refused: dict[str, str],
) -> list[wallet_moves.WalletMove]:
    try:
        _free_run(database, desk, chain, tenant_id, move.subject)
        return [move]
    except BillingError as error:
        if error.retryable:
            raise
        refused[_subject(move)] = error.detail
        return []


def _subject(move: wallet_moves.WalletMove) -> str:
    return f"run {move.subject}" if move.kind == "free_run" else move.customer


def _until_a_run(moves: Sequence[wallet_moves.WalletMove]) -> list[list[wallet_moves.WalletMove]]:
    """Moves in their order; one that gives up a whole run stands alone."""
    groups: list[list[wallet_moves.WalletMove]] = []
    for move in moves:
        if move.kind == "free_run" or not groups or groups[-1][0].kind == "free_run":
            groups.append([move])
        else:
            groups[-1].append(move)
    return groups


def _move(one: wallet_moves.WalletMove) -> Move:
    match one.kind:
        case "settle":
            return Move("settle", one.subject, one.customer, dict(one.body["documents"]))
        case "free":
            return Move("free", one.subject, one.customer)
        case _:
            return Move("restore", one.subject, one.customer, invoice=one.body["invoice"])


def _free_run(database: Database, desk: WalletDesk, chain: MasterChain, tenant_id: str, run_id: str) -> None:
    """Every customer that the run may have held credit of; who has not asked yet is refused from now on."""
    with database.tenant(tenant_id) as connection:
        number = bill_runs.get(connection, run_id)["master_number"]
    customers = sorted(chain.at(tenant_id, number).wallet_customers)
    for start in range(0, len(customers), CUSTOMERS):
        desk.run_move(tenant_id, [Move("free", run_id, one) for one in customers[start : start + CUSTOMERS]])
