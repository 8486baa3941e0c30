"""When credit expires: what reservations hold, commits took and documents gave back; and days in the history."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from billing.accounts import Account, Committed, Entry, Freed, Released, Reserved, Restored, Settled
from billing.credit_history import CreditDocument, Expired, expired_of, history, within
from billing.documents import Allowance, Document, Member
from billing.master import TopUp
from billing.run_credit import Ask, hold_for_run
from billing.wallets import first_of

NOW = datetime(2026, 3, 1, tzinfo=UTC)
END = datetime(2026, 2, 1, tzinfo=UTC)


def day(number: float) -> datetime:
    """Days from the end of the credit."""
    return END + timedelta(days=number)


def top_up(number: int, amount: str, expires: datetime | None = END, kind: str = "purchased") -> TopUp:
    return TopUp(number, day(-30), "c", "EUR", kind, Decimal(amount), expires)  # type: ignore[arg-type]


def reserved(parts: str, expires: datetime | None = None) -> Reserved:
    return Reserved(1, "EUR", Decimal(parts), Decimal(parts), ((1, Decimal(parts)),), expires=expires)


def told(rows: list[tuple[datetime, str, Entry]], *top_ups: TopUp) -> list[tuple[datetime, str]]:
    found = expired_of(top_ups or [top_up(1, "10")], rows, NOW)
    return [(one.at, str(one.amount)) for one in found]


def test_what_nobody_used_expires_at_its_moment() -> None:
    assert told([]) == [(END, "10")]
    assert told([], top_up(1, "10", None)) == []
    assert told([], top_up(1, "10", NOW + timedelta(seconds=1))) == []
    assert told([], top_up(1, "10", NOW)) == [(NOW, "10")]


def test_what_is_reserved_expires_when_the_reservation_has_not_used_it() -> None:
    held = (day(-1), "r", reserved("4"))
    assert told([held]) == [(END, "6")]
    assert told([held, (day(2), "r", Released(1))]) == [(END, "6"), (day(2), "4")]
    used = Committed(1, Decimal(1), ((1, Decimal(1)),))
    assert told([held, (day(2), "r", used)]) == [(END, "6"), (day(2), "3")]


def test_a_reservation_that_ends_by_itself_frees_at_its_own_moment() -> None:
    rows = [(day(-1), "r", reserved("4", day(3))), (day(-1), "s", reserved("2", day(1)))]
    assert told(rows) == [(END, "4"), (day(1), "2"), (day(3), "4")]
    early = (day(-2), "r", reserved("4", day(-1)))
    assert told([early]) == [(END, "10")]  # over before the credit is: nothing is left of it
    # The same when a later row comes first: nothing waits for the next row.
    assert told([*rows, (day(9), "t", Freed("run"))]) == told(rows)


def test_what_an_invoice_used_and_a_credit_note_gives_back_is_gone_at_once() -> None:
    account = Account()
    hold = hold_for_run(
        account, "c", [top_up(1, "10")], [Ask("k", "EUR", "purchased", Decimal(7), Decimal(7))],
        master=1, run="run", as_of=day(-2), now=day(-2),
    )  # fmt: skip
    assert hold is not None
    rows: list[tuple[datetime, str, Entry]] = [(day(-2), "h", hold), (day(-2), "s", Settled("run", {"k": "RE-1"}))]
    assert told(rows) == [(END, "3")]
    assert told([*rows, (day(5), "b", Restored("RE-1", hold.uses["k"].parts))]) == [(END, "3"), (day(5), "7")]
    assert told([rows[0], (day(5), "f", Freed("run"))]) == [(END, "3"), (day(5), "7")]


def test_the_history_has_local_days_and_its_parts_join() -> None:
    late = datetime(2026, 1, 31, 23, 30, tzinfo=UTC)  # the first of February in Berlin
    ends = [Expired(late, 1, Decimal(4))]
    found = history(
        "c", "EUR", [top_up(1, "10", late), top_up(2, "1", kind="promotional")], [], ends, "Europe/Berlin", NOW
    )
    assert [(one.booked_on, one.kind, one.amount) for one in found] == [
        (date(2026, 1, 2), "purchased", Decimal(10)),
        (date(2026, 1, 2), "promotional", Decimal(1)),
        (date(2026, 2, 1), "expired", Decimal(-4)),
    ]
    assert found[0].expires_on == date(2026, 2, 1)
    assert within(found, date(2026, 1, 1), date(2026, 1, 31)) == (Decimal(0), found[:2])
    assert within(found, date(2026, 2, 1), date(2026, 2, 1)) == (Decimal(11), found[2:])
    assert history("c", "USD", [top_up(1, "10")], [], [], "Europe/Berlin", NOW) == []


def test_who_pays_and_his_members_have_each_their_own_part_of_a_document() -> None:
    def taken(amount: str, source: str) -> Allowance:
        return Allowance("promotional", Decimal(amount), "S", Decimal(19), source)

    invoice = Document(
        customer="payer", type="invoice", currency="EUR", date=date(2026, 2, 3), lines=(), taxes=(),
        allowances=(taken("1", ""), taken("2", "child"), replace(taken("9", "s/1"), kind="discount")),
        net=Decimal(90), tax=Decimal(10), gross=Decimal(100), prepaid=Decimal(30), due=Decimal(70),
        members=(Member("child", "Child", Decimal(12)),),
    )  # fmt: skip
    note = replace(invoice, type="credit_note", date=date(2026, 2, 9), refers_to="RE-1")
    documents = [CreditDocument("RE-1", day(2), invoice), CreditDocument("GS-1", day(8), note, gives_back=True)]

    def moved(customer: str, documents: list[CreditDocument]) -> list[tuple[str, Decimal, str | None]]:
        found = history(customer, "EUR", [], documents, [], "UTC", NOW)
        return [(one.kind, one.amount, one.text) for one in found]

    assert moved("payer", documents) == [
        ("invoice", Decimal(-19), None),
        ("returned", Decimal(19), "RE-1"),
        ("credit_note", Decimal(70), "RE-1"),
        ("set_off", Decimal(-70), None),
    ]
    assert moved("child", documents) == [("invoice", Decimal(-14), None), ("returned", Decimal(14), "RE-1")]
    part = replace(documents[1], gives_back=False)  # over lines: nothing goes back
    assert moved("child", [documents[0], part]) == [("invoice", Decimal(-14), None)]
    assert moved("nobody", documents) == []


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "commit", "release", "run", "restore"]), st.integers(0, 40), st.integers(1, 9)
    ),
    max_size=25,
)


@given(steps=STEPS)
def test_what_expired_and_what_is_left_is_what_the_account_says(steps: list[tuple[str, int, int]]) -> None:
    """Whatever was decided when: the rows, read once by the account and once for the history, give one sum."""
    top_ups = [top_up(1, "10"), top_up(2, "20", day(4), "promotional"), top_up(3, "15", None)]
    account, rows, at = Account(), list[tuple[datetime, str, Entry]](), day(-10)
    invoices: dict[str, tuple[tuple[int, Decimal], ...]] = {}

    def write(id: str, entry: Entry) -> None:
        account.apply(id, entry, at)
        rows.append((at, id, entry))

    for place, (what, hours, size) in enumerate(steps):
        at += timedelta(hours=hours)
        amount, wallets = Decimal(size), account.wallets("c", top_ups, at)
        account.at(at)
        waiting = [id for id, one in account.reservations.items() if one.state == "open"]
        if what == "reserve":
            hold = wallets.reserve("x", "c", "EUR", None, min(amount, wallets.available("c", "EUR")), Decimal(0))
            ends = at + timedelta(hours=size * 12) if size % 2 else None
            write(f"r{place}", Reserved(1, "EUR", hold.granted, Decimal(0), tuple(hold.parts), expires=ends))
        elif what == "commit" and waiting:
            parts = first_of(account.reservations[waiting[0]].verdict.parts, amount)
            write(waiting[0], Committed(1, amount, tuple(parts)))
        elif what == "release" and waiting:
            write(waiting[0], Released(1))
        elif what == "run":
            taken = wallets.take("c", "EUR", "promotional", amount, "k")
            ask = Ask("k", "EUR", "promotional", amount, taken)
            run = f"run{place}"
            held = hold_for_run(account, "c", top_ups, [ask], master=1, run=run, as_of=at, now=at)
            assert held is not None
            write(run, held)
            write(run, Settled(run, {"k": run}))
            invoices[run] = held.uses["k"].parts
        elif what == "restore" and invoices:
            number, parts = invoices.popitem()
            if parts:
                write(number, Restored(number, parts))
    now = at + timedelta(days=1)
    expired = sum((one.amount for one in expired_of(top_ups, rows, now)), Decimal(0))
    pots = account.wallets("c", top_ups, now).pots.values()
    gone = [pot.left - pot.held for pot in pots if pot.top_up.expires is not None and pot.top_up.expires <= now]
    assert expired == sum(gone, Decimal(0))
