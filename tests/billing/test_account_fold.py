"""An account is the fold of its rows: what reservations hold, commits spend, runs use, and what comes back."""

import copy
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from billing.accounts import Account, Committed, Freed, Held, Released, Reserved, Restored, Settled, Use
from billing.errors import Conflict, Unavailable
from billing.master import TopUp
from billing.run_credit import (
    Ask,
    CreditOfRun,
    CreditState,
    Move,
    RunCredit,
    entry_of,
    hold_for_run,
    recorded_uses,
    state_for_run,
    until_step,
)

T = datetime(2026, 5, 10, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def amount(text: str) -> Decimal:
    return Decimal(text)


def top_up(number: int, text: str, kind: str = "purchased", *, at: datetime = T, **more: Any) -> TopUp:
    form = {"currency": "EUR", "expires": None} | more
    return TopUp(number, at - timedelta(days=1), "acme", form["currency"], kind, amount(text), form["expires"])  # type: ignore[arg-type]


def reserved(granted: str, *parts: tuple[int, str], **more: Any) -> Reserved:
    taken = tuple((number, amount(part)) for number, part in parts)
    return Reserved(1, "EUR", amount(granted), amount(granted), taken, amount=amount(granted), **more)


def state(account: Account, *top_ups: TopUp, now: datetime = T) -> tuple[str, str, str]:
    wallets = account.wallets("acme", top_ups, now)
    committed = sum((pot.committed for pot in wallets.pots.values()), Decimal(0))
    found = (wallets.balance("acme", "EUR"), wallets.reserved("acme", "EUR"), committed)
    return str(found[0]), str(found[1]), str(found[2])


def test_reserve_commit_release_move_amounts_between_pots_and_nothing_else() -> None:
    account, pots = Account(), (top_up(1, "3.00", "promotional"), top_up(2, "10.00"))
    assert account.is_empty()
    assert account.apply("r1", reserved("5.00", (1, "3.00"), (2, "2.00")), T) == []
    assert not account.is_empty()
    assert state(account, *pots) == ("13.00", "5.00", "0")
    assert account.nets == {"EUR": amount("5.00")}
    assert account.apply("r2", reserved("4.00", (2, "4.00")), T) == []
    assert account.apply("r1", Committed(1, amount("3.50"), ((1, amount("3.00")), (2, amount("0.50")))), T) == ["r1"]
    assert state(account, *pots) == ("9.50", "4.00", "3.50")
    assert account.apply("r2", Released(1), T + MINUTE) == ["r2"]
    assert state(account, *pots) == ("9.50", "0.00", "3.50")
    assert account.nets == {"EUR": amount("0.00")}
    one, two = account.reservations["r1"], account.reservations["r2"]
    assert (one.state, one.spent, one.at, one.closed_at) == ("committed", amount("3.50"), T, T)
    assert (two.state, two.spent, two.at, two.closed_at) == ("released", 0, T, T + MINUTE)
    with pytest.raises(AssertionError, match="r2 is released"):
        account.apply("r2", Released(1), T)
    with pytest.raises(AssertionError, match="reservation r1 is recorded twice"):
        account.apply("r1", reserved("1.00"), T)


def test_a_reservation_ends_at_its_moment_and_not_before() -> None:
    account, pot = Account(), top_up(1, "10.00")
    account.apply("r2", reserved("2.00", (1, "2.00"), expires=T + 2 * MINUTE), T)
    account.apply("r1", reserved("3.00", (1, "3.00"), expires=T + MINUTE), T)
    account.apply("r3", reserved("4.00", (1, "4.00")), T)
    assert account.expiring == [(T + MINUTE, "r1"), (T + 2 * MINUTE, "r2")]
    just_before = T + MINUTE - timedelta(microseconds=1)
    assert state(account, pot, now=just_before) == ("10.00", "9.00", "0")
    assert not account.is_expired("r1", just_before)
    # Who only looks sees it gone, and changes nothing.
    before = copy.deepcopy(account)
    assert state(account, pot, now=T + MINUTE) == ("10.00", "6.00", "0")
    assert account.wallets("acme", [pot], T + MINUTE).held_net("acme", "EUR") == amount("6.00")
    assert account.is_expired("r1", T + MINUTE)
    assert not account.is_expired("r3", T + MINUTE)
    assert account == before
    assert account.at(just_before) == []
    assert account.at(T + MINUTE) == ["r1"]
    assert account.at(T + MINUTE) == []
    assert account.reservations["r1"].state == "expired"
    assert account.reservations["r1"].closed_at == T + MINUTE
    assert account.is_expired("r1", T)
    # The next row, whatever it is, closes what is over, before it counts itself.
    assert account.apply("r3", Released(1), T + 5 * MINUTE) == ["r2", "r3"]
    assert state(account, pot, now=T + 5 * MINUTE) == ("10.00", "0.00", "0")
    assert account.nets["EUR"] == 0


def test_a_late_commit_takes_parts_that_were_not_held() -> None:
    account, pots = Account(), (top_up(1, "5.00"), top_up(2, "5.00"))
    account.apply("r1", reserved("5.00", (1, "5.00"), expires=T + MINUTE), T)
    account.apply("r1", Committed(1, amount("2.00"), ((2, amount("2.00")),), late=True), T + MINUTE)
    assert state(account, *pots, now=T + MINUTE) == ("8.00", "0.00", "2.00")
    assert account.reservations["r1"].state == "committed"
    assert not account.is_expired("r1", T + MINUTE)


def test_a_scratch_shows_what_was_decided_in_it_and_the_account_does_not() -> None:
    account = Account()
    account.apply("r1", reserved("2.00", (1, "2.00"), expires=T + MINUTE), T)
    before = copy.deepcopy(account)
    scratch = account.scratch()
    scratch.apply("r2", reserved("3.00", (1, "3.00"), expires=T + MINUTE), T)
    scratch.apply("r1", Released(1), T)
    assert scratch.reservations["r1"].state == "released"
    assert state(scratch, top_up(1, "9.00")) == ("9.00", "3.00", "0")
    assert account == before
    assert state(account, top_up(1, "9.00")) == ("9.00", "2.00", "0")


def test_a_closed_reservation_can_be_forgotten_and_an_open_one_not() -> None:
    account = Account()
    account.apply("r1", reserved("2.00", (1, "2.00"), expires=T + MINUTE), T)
    account.apply("r2", reserved("1.00", (1, "1.00"), expires=T + MINUTE), T)
    with pytest.raises(AssertionError):
        account.forget("r1")
    account.apply("r1", Released(1), T)
    account.forget("r1")
    assert list(account.reservations) == ["r2"]
    assert account.expiring == [(T + MINUTE, "r2")]
    assert account.at(T + MINUTE) == ["r2"]


def test_credit_counts_from_its_own_time_and_only_in_its_currency() -> None:
    account = Account()
    account.apply("r1", reserved("1.00", (1, "1.00")), T)
    pots = [top_up(1, "5.00"), top_up(2, "7.00", currency="USD"), top_up(3, "9.00", at=T + 3 * timedelta(days=1))]
    wallets = account.wallets("acme", pots, T)
    assert set(wallets.pots) == {1, 2}
    assert wallets.now == T
    assert (wallets.available("acme", "EUR"), wallets.available("acme", "USD")) == (amount("4.00"), amount("7.00"))
    later = account.wallets("acme", pots, T, as_of=T + 2 * timedelta(days=1))
    assert (set(later.pots), later.now) == ({1, 2, 3}, T + 2 * timedelta(days=1))
    assert wallets.used == {}


# -- bill runs ---------------------------------------------------------------------------------------------------------


def ask(document: str, kind: str, asked: str, taken: str) -> Ask:
    return Ask(document, "EUR", kind, amount(asked), amount(taken))  # type: ignore[arg-type]


def hold(account: Account, pots: list[TopUp], *asks: Ask, run: str = "run", as_of: datetime = T) -> Held | None:
    return hold_for_run(account, "acme", pots, asks, master=7, run=run, as_of=as_of, now=T)


def test_a_run_holds_exactly_what_its_documents_use_committed_credit_first() -> None:
    account = Account()
    pots = [top_up(1, "3.00", "promotional"), top_up(2, "10.00"), top_up(3, "1.00")]
    account.apply("r1", reserved("4.00", (2, "4.00")), T)
    account.apply("r1", Committed(1, amount("2.50"), ((2, amount("2.50")),)), T)
    account.apply("r2", reserved("6.00", (2, "6.00")), T)
    asks = [ask("d", "promotional", "9.00", "3.00"), ask("d", "purchased", "7.14", "5.00")]
    held = hold(account, pots, *asks)
    assert held is not None
    assert held.moves == (
        (1, amount("3.00"), amount("0")),
        (2, amount("1.50"), amount("2.50")),
        (3, amount("1.00"), amount("0")),
    )
    parts = ((1, amount("3.00")), (2, amount("2.50")), (2, amount("1.50")), (3, amount("1.00")))
    assert held.uses == {"d": Use("EUR", amount("3.00"), amount("5.00"), parts)}
    assert (held.master, held.run, held.as_of, held.restores) == (7, "run", T, ())
    account.apply("", held, T)
    assert state(account, *pots) == ("6.00", "6.00", "0.00")
    with pytest.raises(AssertionError, match="run run has asked before"):
        account.apply("", held, T)
    account.apply("", Settled("run", {"d": "RE-1"}), T)
    assert state(account, *pots) == ("6.00", "6.00", "0.00")
    assert account.documents == {"RE-1": parts}
    account.apply("", Restored("RE-1", parts), T)
    assert state(account, *pots) == ("14.00", "6.00", "0.00")
    assert account.documents == {}
    account.apply("", Restored("RE-1", parts), T)  # what is not there any more gives nothing back
    assert state(account, *pots) == ("14.00", "6.00", "0.00")


@pytest.mark.parametrize(
    "asks",
    [
        [ask("d", "promotional", "9.00", "3.01")],
        [ask("d", "purchased", "9.00", "8.99")],
        [ask("d", "promotional", "3.00", "3.00"), ask("d", "purchased", "9.00", "9.01")],
        [Ask(restores="RE-0")],
    ],
)
def test_one_answer_that_would_differ_refuses_the_whole_hold(asks: list[Ask]) -> None:
    account, pots = Account(), [top_up(1, "3.00", "promotional"), top_up(2, "10.00")]
    assert hold(account, pots, *asks) is None
    assert account.is_empty()


def test_a_run_that_is_given_up_gives_everything_back_once() -> None:
    account, pots = Account(), [top_up(1, "10.00")]
    account.apply("r1", reserved("4.00", (1, "4.00")), T)
    account.apply("r1", Committed(1, amount("4.00"), ((1, amount("4.00")),)), T)
    held = hold(account, pots, ask("d", "purchased", "7.00", "7.00"))
    assert held is not None
    account.apply("", held, T)
    assert state(account, *pots) == ("3.00", "0.00", "0.00")
    for _ in range(2):
        account.apply("", Freed("run"), T)
        assert state(account, *pots) == ("6.00", "0.00", "4.00")
    with pytest.raises(Conflict, match="Bill run run was given up: it may hold no credit"):
        recorded_uses(account, "run")
    account.apply("", Freed("never asked"), T)
    with pytest.raises(Conflict):
        recorded_uses(account, "never asked")
    with pytest.raises(AssertionError, match="run run is freed"):
        account.apply("", Settled("run", {"d": "RE-1"}), T)


def test_an_invoice_made_again_uses_what_the_old_one_gives_back_and_the_rest_waits_for_the_numbers() -> None:
    account, pots = Account(), [top_up(1, "10.00"), top_up(2, "10.00")]
    first = hold(account, pots, ask("old", "purchased", "15.00", "15.00"), run="first")
    assert first is not None
    account.apply("", first, T)
    account.apply("", Settled("first", {"old": "RE-1"}), T)
    again = hold(account, pots, Ask(restores="RE-1"), ask("new", "purchased", "4.00", "4.00"))
    assert again is not None
    assert (again.restores, again.moves) == (("RE-1",), ((1, amount("-6.00"), 0), (2, amount("-5.00"), 0)))
    account.apply("", again, T)
    assert state(account, *pots) == ("5.00", "0", "0")  # nobody else may use it before the new invoice is final
    free = copy.deepcopy(account)
    free.apply("", Freed("run"), T)
    assert state(free, *pots) == ("5.00", "0", "0")
    assert free.documents == account.documents
    with pytest.raises(Conflict, match="Bill run run takes RE-1 back: wait for it"):
        entry_of(account, Move("restore", "GS-1", "acme", invoice="RE-1"))
    account.apply("", Settled("run", {"new": "RE-2", "other": "RE-3"}), T)
    assert state(account, *pots) == ("16.00", "0", "0")
    assert account.documents == {"RE-2": ((1, amount("4.00")),)}


def test_a_settled_run_must_name_every_document_that_used_credit() -> None:
    account, pots = Account(), [top_up(1, "10.00")]
    held = hold(account, pots, ask("a", "purchased", "1.00", "1.00"), ask("b", "purchased", "0.00", "0.00"))
    assert held is not None
    account.apply("", held, T)
    for documents in ({}, {"a": "RE-1"}):
        with pytest.raises(Conflict, match="Bill run run of 'acme' has documents without a number"):
            entry_of(account, Move("settle", "run", "acme", documents))
        with pytest.raises(AssertionError, match="has no number"):
            account.apply("", Settled("run", documents), T)
    account.apply("", Settled("run", {"a": "RE-1", "b": "RE-2"}), T)
    assert account.documents == {"RE-1": ((1, amount("1.00")),)}  # what used nothing gives nothing back
    with pytest.raises(AssertionError, match="run run is settled"):
        account.apply("", Freed("run"), T)


def test_moves_are_recorded_once_and_only_where_there_is_something_to_move() -> None:
    account, pots = Account(), [top_up(1, "10.00")]
    settle, free = Move("settle", "run", "acme", {"d": "RE-1"}), Move("free", "run", "acme")
    with pytest.raises(Unavailable, match="Bill run run of 'acme' is not known here: ask again"):
        entry_of(account, settle)
    held = hold(account, pots, ask("d", "purchased", "1.00", "1.00"))
    assert held is not None
    assert entry_of(account, Move("free", "other", "acme")) == Freed("other")
    account.apply("", held, T)
    assert entry_of(account, settle) == Settled("run", {"d": "RE-1"})
    assert entry_of(account, free) == Freed("run")
    freed = copy.deepcopy(account)
    freed.apply("", Freed("run"), T)
    assert entry_of(freed, free) is None
    with pytest.raises(Conflict, match="Bill run run of 'acme' was given up and cannot be settled"):
        entry_of(freed, settle)
    account.apply("", Settled("run", {"d": "RE-1"}), T)
    assert entry_of(account, settle) is None
    with pytest.raises(Conflict, match="Bill run run of 'acme' is settled and cannot be given up"):
        entry_of(account, free)
    restore = Move("restore", "GS-1", "acme", invoice="RE-1")
    assert entry_of(account, restore) == Restored("RE-1", ((1, amount("1.00")),))
    assert entry_of(account, Move("restore", "GS-1", "acme", invoice="RE-9")) is None


def test_a_run_uses_what_had_not_expired_at_its_own_clock_and_leaves_what_is_reserved_now() -> None:
    account = Account()
    pots = [top_up(1, "5.00", expires=T), top_up(2, "9.00")]
    account.apply("r1", reserved("4.00", (2, "4.00"), expires=T + MINUTE), T)
    assert hold(account, pots, ask("d", "purchased", "20.00", "5.00")) is not None
    earlier = hold(account, pots, ask("d", "purchased", "20.00", "10.00"), as_of=T - MINUTE)
    assert earlier is not None
    # A driver's clock that is ahead of the lane's ends no reservation.
    assert hold(account, pots, ask("d", "purchased", "20.00", "9.00"), as_of=T + 2 * MINUTE) is None
    assert hold(account, pots, ask("d", "purchased", "20.00", "5.00"), as_of=T + 2 * MINUTE) is not None


def test_a_run_reads_and_asks_what_the_lane_answers_to_the_cent() -> None:
    """The state that travels gives the run the same wallets as the lane has."""
    account = Account()
    pots = [top_up(1, "3.00", "promotional"), top_up(2, "10.00"), top_up(9, "50.00")]
    account.apply("r1", reserved("2.00", (2, "2.00")), T)
    account.documents["RE-0"] = ((2, amount("1.00")),)
    account.pots[2].gone += amount("1.00")
    asked = RunCredit("run", ["acme"], T, steps=8)
    read = state_for_run(account, "acme", pots, asked, T)
    assert msgspec.json.decode(msgspec.json.encode(read), type=CreditState) == read
    assert [number for number, *_ in read.pots] == [1, 2]  # the third came after the run was planned
    credit = CreditOfRun({"acme": read.wallets(pots, T)}, {})
    credit.give_back("RE-0")
    credit.give_back("RE-7")  # not this customer's
    assert credit.take("acme", "EUR", "promotional", amount("9.00"), "d") == amount("3.00")
    assert credit.take("acme", "EUR", "purchased", amount("9.00"), "d") == amount("8.00")
    assert credit.take("other", "EUR", "purchased", amount("9.00"), "d") == 0
    assert credit.asked == {
        "acme": [
            Ask(restores="RE-0"),
            ask("d", "promotional", "9.00", "3.00"),
            ask("d", "purchased", "9.00", "8.00"),
        ]
    }
    held = hold(account, until_step(pots, 8), *credit.asked["acme"])
    assert held is not None
    account.apply("", held, T)
    assert state_for_run(account, "acme", pots, asked, T) == CreditState(held.uses)
    assert recorded_uses(account, "other run") is None


def test_recorded_answers_are_given_again_and_never_more_than_is_asked() -> None:
    uses = {"acme": {"d": Use("EUR", amount("3.00"), amount("8.00"), ())}}
    credit = CreditOfRun({}, uses)
    assert credit.take("acme", "EUR", "promotional", amount("3.00"), "d") == amount("3.00")
    assert credit.take("acme", "EUR", "purchased", amount("9.00"), "d") == amount("8.00")
    assert credit.take("acme", "EUR", "purchased", amount("9.00"), "e") == 0
    with pytest.raises(Conflict, match=r"8.00 EUR of credit is held for d, which needs 7.99"):
        credit.take("acme", "EUR", "purchased", amount("7.99"), "d")
    assert CreditOfRun({}, uses, exact=False).take("acme", "EUR", "purchased", amount("7.99"), "d") == amount("7.99")
    assert credit.asked == {}
    assert credit.recorded == uses


def test_replaying_any_history_gives_the_same_account_and_no_pot_is_ever_overdrawn() -> None:
    """Random lives, decided as a lane decides: never below zero, and the fold of the rows is the state."""
    for seed in range(60):
        chance = random.Random(seed)
        account, rows, now = Account(), list[tuple[str, Any, datetime]](), T
        pots = [top_up(1, "9.00", "promotional"), top_up(2, "20.00"), top_up(3, "15.00", expires=T + 20 * MINUTE)]
        for step in range(40):
            now += chance.randrange(3) * MINUTE
            entry = _some_entry(chance, account, pots, step, now)
            if entry is not None:
                rows.append((entry[0], entry[1], now))
                account.apply(*rows[-1])
            for pot in account.wallets("acme", pots, now).pots.values():
                assert min(pot.left, pot.held, pot.committed, pot.left - pot.held) >= 0, f"seed {seed}, step {step}"
        again = Account()
        for row in rows:
            again.apply(*row)
        assert again == account, f"seed {seed}"


def _some_entry(
    chance: random.Random, account: Account, pots: list[TopUp], step: int, now: datetime
) -> tuple[str, Any] | None:
    wallets = account.wallets("acme", pots, now)
    what = chance.random()
    open_ = [id for id, one in account.reservations.items() if one.state == "open" and not account.is_expired(id, now)]
    if what < 0.4 or not open_:
        parts = tuple(wallets.free_parts("acme", "EUR", amount(f"{chance.randrange(1, 900) / 100:.2f}")))
        granted = sum((part for _, part in parts), Decimal(0))
        expires = now + chance.randrange(1, 9) * MINUTE if chance.random() < 0.5 else None
        return f"r{step}", Reserved(1, "EUR", granted, granted, parts, expires=expires)
    if what < 0.6:
        id = chance.choice(open_)
        verdict = account.reservations[id].verdict
        number, part = verdict.parts[0] if verdict.parts else (1, Decimal(0))
        return id, Committed(1, part, ((number, part),) if part else ())
    if what < 0.75:
        return chance.choice(open_), Released(1)
    held = [run for run, one in account.runs.items() if one.state == "held"]
    if held:
        run = held[0]
        if chance.random() < 0.5:
            return "", Freed(run)
        return "", Settled(run, {"d": f"RE-{run}"})
    if account.documents and chance.random() < 0.5:
        invoice, parts = next(iter(account.documents.items()))
        return "", Restored(invoice, parts)
    asked = amount(f"{chance.randrange(1, 2500) / 100:.2f}")
    asks: list[Ask] = []
    probe = account.wallets("acme", pots, now, documents=True)
    if account.documents:
        invoice = next(iter(account.documents))
        probe.give_back(invoice)
        asks.append(Ask(restores=invoice))
    asks.append(Ask("d", "EUR", "purchased", asked, probe.take("acme", "EUR", "purchased", asked, "d")))
    made = hold_for_run(account, "acme", pots, asks, master=1, run=f"run{step}", as_of=now, now=now)
    assert made is not None
    return "", made
