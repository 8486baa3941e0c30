"""Wallets by hand: which credit is used first, what is held, what expires, and the same replayed from documents."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from billing.documents import Allowance, Document, Member
from billing.errors import Conflict
from billing.master import MasterData, TopUp
from billing.settle import BilledDocument
from billing.wallets import Wallets, first_of, wallets_of

EUR = "EUR"


def day(number: int) -> datetime:
    return datetime(2026, 1, number, tzinfo=UTC)


def top_up(number: int, kind: Any, amount: str, at: int = 1, expires: int | None = None, customer: str = "c") -> TopUp:
    return TopUp(number, day(at), customer, EUR, kind, Decimal(amount), None if expires is None else day(expires))


def wallet(*top_ups: TopUp, now: int = 2) -> Wallets:
    made = Wallets(day(now))
    for one in top_ups:
        made.add(one)
    return made


def left(wallets: Wallets) -> dict[int, tuple[str, str, str]]:
    """What is left, held and committed of each top-up."""
    return {number: (str(pot.left), str(pot.held), str(pot.committed)) for number, pot in wallets.pots.items()}


ALL_KINDS = (
    top_up(1, "purchased", "10"),
    top_up(2, "promotional", "10"),
    top_up(3, "promotional", "10", expires=20),
    top_up(4, "purchased", "10", expires=9),
    top_up(5, "promotional", "10", at=2, expires=20),
)


def test_promotional_credit_goes_first_then_what_expires_first_then_the_oldest() -> None:
    wallets = wallet(*reversed(ALL_KINDS))
    assert wallets.of == {("c", EUR): [3, 5, 2, 4, 1]}
    assert wallets.free_parts("c", EUR, Decimal("35")) == [
        (3, Decimal(10)), (5, Decimal(10)), (2, Decimal(10)), (4, Decimal(5)),
    ]  # fmt: skip
    wallets.add(ALL_KINDS[0])  # a top-up counts once
    assert wallets.available("c", EUR) == 50
    assert wallets.available("c", EUR, "promotional") == 30
    assert (wallets.available("c", "USD"), wallets.available("d", EUR)) == (0, 0)
    assert (wallets.exists("c", EUR), wallets.exists("c", "USD")) == (True, False)


@pytest.mark.parametrize(("now", "free"), [(8, 50), (9, 40), (19, 40), (20, 20)])
def test_credit_is_gone_on_the_day_it_expires(now: int, free: int) -> None:
    wallets = wallet(*ALL_KINDS, now=now)
    assert wallets.available("c", EUR) == wallets.balance("c", EUR) == free


def test_a_document_takes_of_one_kind_and_only_what_is_there() -> None:
    wallets = wallet(*ALL_KINDS)
    assert wallets.take("c", EUR, "promotional", Decimal("12.50"), "1") == Decimal("12.50")
    assert left(wallets)[3] == ("0", "0", "0")
    assert left(wallets)[5] == ("7.50", "0", "0")
    assert wallets.take("c", EUR, "purchased", Decimal(100), "1") == 20
    assert wallets.take("c", EUR, "purchased", Decimal(1), "2") == 0
    assert wallets.take("nobody", EUR, "purchased", Decimal(1), "2") == 0
    assert wallets.used["1"] == [(3, Decimal(10)), (5, Decimal("2.50")), (4, Decimal(10)), (1, Decimal(10))]
    wallets.name("1", "RE-1")
    wallets.name("unknown", "RE-2")
    wallets.give_back("1")  # has another name by now
    assert wallets.available("c", EUR) == Decimal("17.50")
    wallets.give_back("RE-1")
    wallets.give_back("RE-1")  # once
    assert wallets.available("c", EUR) == 50


def test_a_reservation_holds_credit_that_is_still_in_the_balance() -> None:
    wallets = wallet(*ALL_KINDS)
    hold = wallets.reserve("r", "c", EUR, None, Decimal("32"), Decimal("27"), day(5))
    assert hold.parts == [(3, Decimal(10)), (5, Decimal(10)), (2, Decimal(10)), (4, Decimal(2))]
    assert (hold.open, hold.state, hold.granted, hold.expires) == (True, "open", Decimal(32), day(5))
    assert (wallets.available("c", EUR), wallets.balance("c", EUR), wallets.reserved("c", EUR)) == (18, 50, 32)
    assert (wallets.held_net("c", EUR), wallets.held_net("c", "USD")) == (27, 0)
    wallets.at(day(4))
    assert hold.open
    wallets.at(day(5))
    assert (hold.state, hold.parts, wallets.available("c", EUR)) == ("expired", [], 50)
    assert (wallets.held_net("c", EUR), wallets.reserved("c", EUR)) == (0, 0)
    wallets.at(day(3))
    assert wallets.now == day(5)  # the clock does not go back


def test_a_reservation_may_ask_for_so_much_of_each_kind() -> None:
    wallets = wallet(*ALL_KINDS)
    hold = wallets.reserve(
        "r", "c", EUR, {"promotional": Decimal(4), "purchased": Decimal(7)}, Decimal(10), Decimal(10)
    )
    assert hold.parts == [(3, Decimal(4)), (4, Decimal(6))]  # no more than was granted in all
    assert wallet().reserve("r", "c", EUR, None, Decimal(10), Decimal(10)).parts == []  # limited by a budget alone


def test_a_commit_spends_at_most_what_was_granted_and_waits_for_the_next_invoice() -> None:
    wallets = wallet(*ALL_KINDS)
    wallets.reserve("r", "c", EUR, None, Decimal(32), Decimal(32))
    assert wallets.commit("r", Decimal(11)) == 11
    assert left(wallets) == {1: ("10", "0", "0"), 2: ("10", "0", "0"), 3: ("0", "0", "10"), 4: ("10", "0", "0"),
                             5: ("9", "0", "1")}  # fmt: skip
    assert (wallets.balance("c", EUR), wallets.held_net("c", EUR)) == (39, 0)
    assert wallets.commit("r", Decimal(30)) == 0  # committed is committed
    wallets.at(day(25))  # 3, 4 and 5 have expired, but what was committed of them pays the invoice
    assert wallets.take("c", EUR, "promotional", Decimal(15), "1") == 15
    assert wallets.used["1"] == [(3, Decimal(10)), (5, Decimal(1)), (2, Decimal(4))]
    wallets.reserve("s", "c", EUR, None, Decimal(5), Decimal(5))
    assert wallets.commit("s", Decimal(50)) == 5
    wallets.reserve("t", "c", EUR, None, Decimal(5), Decimal(5))
    wallets.release("t")
    wallets.release("unknown")
    with pytest.raises(Conflict) as refused:
        wallets.commit("t", Decimal(1))
    assert refused.value.detail == "Reservation 't' was released: nothing of it can be committed."
    assert refused.value.context == {"id": "t"}
    wallets.release("s")  # what was committed stays so
    assert wallets.holds["s"].state == "committed"


def test_a_commit_after_its_reservation_expired_needs_credit_that_is_free() -> None:
    wallets = wallet(top_up(1, "purchased", "10"))
    wallets.reserve("r", "c", EUR, None, Decimal(8), Decimal(8), day(3))
    wallets.at(day(3))
    wallets.reserve("s", "c", EUR, None, Decimal(5), Decimal(5))
    with pytest.raises(Conflict) as refused:
        wallets.commit("r", Decimal(9))
    assert refused.value.detail == "Reservation 'r' has expired, and of 8 only 5 EUR is free."
    assert refused.value.context == {"id": "r"}
    assert wallets.commit("r", Decimal(5)) == 5
    assert wallets.holds["r"].state == "committed"
    assert left(wallets) == {1: ("5", "5", "5")}
    assert wallet().late_parts("r", "c", EUR, Decimal(5)) == []  # no wallet: nothing of it is to be paid by one


@pytest.mark.parametrize(
    ("amount", "parts"), [("0", []), ("3", [(1, "3")]), ("5", [(1, "5")]), ("6", [(1, "5"), (3, "1")]),
                          ("99", [(1, "5"), (3, "7")])],
)  # fmt: skip
def test_an_amount_is_made_of_the_first_parts_and_the_last_is_cut(amount: str, parts: list[tuple[int, str]]) -> None:
    given = [(1, Decimal(5)), (2, Decimal(0)), (3, Decimal(7))]
    assert first_of(given, Decimal(amount)) == [(number, Decimal(part)) for number, part in parts]


def test_a_top_up_of_which_something_is_gone_or_held() -> None:
    wallets = Wallets(day(2))
    wallets.add(top_up(1, "purchased", "10"), gone=Decimal(4), held=Decimal(3), committed=Decimal(1))
    assert left(wallets) == {1: ("6", "3", "1")}
    assert (wallets.available("c", EUR), wallets.balance("c", EUR)) == (3, 6)


# -- The same, replayed ------------------------------------------------------------------------------------------------


def billed(number: str, at: int | None, *, promotional: str = "0", prepaid: str = "0", **more: Any) -> BilledDocument:
    used = (Allowance("promotional", Decimal(promotional), "S", Decimal(0)),
            Allowance("discount", Decimal(99), "S", Decimal(0)))  # fmt: skip
    usual: dict[str, Any] = {"customer": "c", "type": "invoice", "currency": EUR, "date": date(2026, 1, 1), "lines": (),
                             "allowances": used, "taxes": (), "net": Decimal(1), "tax": Decimal(0), "gross": Decimal(1),
                             "due": Decimal(0), "prepaid": Decimal(prepaid)}  # fmt: skip
    return BilledDocument(number, Document(**{**usual, **more}), made_at=None if at is None else day(at))


def master(*steps: tuple[int, str, str, str, int | None]) -> MasterData:
    start = MasterData.start({"currency": EUR, "timezone": "UTC", "country": "DE"})
    everyone = [{"at": "2026-01-01", "customer": {"code": code}} for code in ("c", "d", "parent")]
    made = start.apply_all(everyone)
    for at, customer, kind, amount, expires in steps:
        form = {"customer": customer, "kind": kind, "amount": amount}
        if expires is not None:
            form["expires"] = day(expires).date().isoformat()
        made = made.apply({"at": day(at).date().isoformat(), "top_up": form})
    return made


def amounts(wallets: Wallets) -> dict[str, list[str]]:
    return {customer: [str(wallets.pots[number].left) for number in numbers]
            for (customer, _), numbers in wallets.of.items()}  # fmt: skip


CREDIT = master((2, "c", "purchased", "100", None), (3, "c", "promotional", "50", 20),
                (10, "c", "promotional", "50", None), (2, "d", "purchased", "30", None))  # fmt: skip


@pytest.mark.parametrize(
    ("documents", "now", "of_c"),
    [
        ([], 31, ["50", "50", "100"]),
        ([billed("1", 5, promotional="60", prepaid="10")], 31, ["0", "50", "90"]),  # the credit of day 10 came later
        ([billed("1", 10, promotional="60", prepaid="10")], 31, ["0", "40", "90"]),
        ([billed("1", 20, promotional="60")], 31, ["50", "0", "100"]),  # expired that day: what is free is 50
        ([billed("1", 5, promotional="20"), billed("2", 12, promotional="40")], 31, ["0", "40", "100"]),
        ([billed("1", None, prepaid="7")], 31, ["50", "50", "93"]),  # made now
    ],
)
def test_wallets_are_what_top_ups_and_documents_leave(
    documents: list[BilledDocument], now: int, of_c: list[str]
) -> None:
    wallets = wallets_of(CREDIT, ["c", "d"], documents, day(now))
    assert amounts(wallets) == {"c": of_c, "d": ["30"]}
    assert wallets.now == day(now)


def test_only_the_wallets_that_are_asked_for_are_replayed() -> None:
    assert amounts(wallets_of(CREDIT, ["d"], [], day(31))) == {"d": ["30"]}


def test_a_credit_note_of_a_whole_invoice_gives_its_credit_back_and_one_by_lines_does_not() -> None:
    invoice = billed("1", 5, promotional="20", prepaid="10")

    def after(**note: Any) -> dict[str, list[str]]:
        whole = billed("2", 6, type="credit_note", refers_to="1", promotional="20", prepaid="10", **note)
        return amounts(wallets_of(CREDIT, ["c"], [invoice, whole], day(31)))

    assert after() == {"c": ["50", "50", "100"]}
    used = {"c": ["30", "50", "90"]}
    for part in ({"net": Decimal(2)}, {"gross": Decimal(2)}, {"prepaid": Decimal(0)}, {"lines": (None,)},
                 {"refers_to": None}, {"refers_to": "7"}):  # fmt: skip
        note = {"type": "credit_note", "refers_to": "1", "promotional": "20", "prepaid": "10"}
        if "prepaid" in part:
            note["prepaid"], part = "0", {}
        found = wallets_of(CREDIT, ["c"], [invoice, billed("2", 6, **{**note, **part})], day(31))
        assert amounts(found) == used


def test_a_payer_s_document_uses_the_credit_of_each_customer_for_his_own_part() -> None:
    family = master((2, "c", "purchased", "100", None), (2, "c", "promotional", "10", None),
                    (2, "parent", "purchased", "100", None), (2, "parent", "promotional", "10", None))  # fmt: skip
    allowances = (Allowance("promotional", Decimal(4), "S", Decimal(0), source="c"),
                  Allowance("promotional", Decimal(2), "S", Decimal(0), gross=Decimal(3)))  # fmt: skip
    document = billed("1", 5, customer="parent", prepaid="25", allowances=allowances,
                      members=(Member("c", "C", Decimal(20)),))  # fmt: skip
    assert amounts(wallets_of(family, ["c", "parent"], [document], day(31))) == {
        "c": ["6", "80"],
        "parent": ["7", "95"],
    }
