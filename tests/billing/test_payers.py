"""A parent that pays: whose document a line goes on, with whose tax, and what stays with the customer himself."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lives import METER, NO_TAX, TAX, documents, flat, life, plan, run, subscribe, usage, used
from test_bill_properties import as_the_platform_bills, check_sums, day, days, lives, with_runs

from billing.bill import BilledDocument, bill
from billing.credit_notes import CreditLine, credit_note, mirror
from billing.documents import Document, Line
from billing.errors import InvalidInput
from billing.master import PAYERS_MAX, MasterData
from billing.periods import parse_moment
from billing.scenario import check_scenario, documents_of
from billing.usage import EVENT_SCHEMA
from billing.wallets import wallets_of
from pipelines.bill_run_chunk import billable, chunk_sizes

ZERO = Decimal(0)


def customer(code: str, at: str | None = None, **more: Any) -> dict[str, Any]:
    form = {"code": code, **more}
    return form if at is None else {"at": at, "customer": form}


PARENT, CHILD, OTHER = customer("p"), customer("c", payer="p"), customer("d", payer="p")


def shown(document: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(line["customer"], line["charge"], line["amount"]) for line in document["lines"]]


def test_lines_of_children_go_on_the_payers_document_by_customer() -> None:
    steps = [
        subscribe(day(0), "a", customer="d"),
        subscribe(day(0), "b", customer="p"),
        subscribe(day(0), "z", customer="c"),
        {"at": day(0), "ad_hoc": {"customer": "c", "code": "repair", "amount": "5", "tax": "none"}},
        run(day(0)),
    ]
    (made,) = documents_of(life([plan(flat("10"))], steps, customers=[PARENT, CHILD, OTHER]))
    assert made.document.customer == "p"
    assert [(one.customer, one.subscription, one.charge) for one in made.document.lines] == [
        ("c", "", "repair"),
        ("c", "z", "base"),
        ("d", "a", "base"),
        ("", "b", "base"),
    ]
    assert [(one.code, one.name) for one in made.document.members] == [("c", "c"), ("d", "d")]


def test_a_payers_payer_pays_for_all() -> None:
    customers = [customer("top"), customer("p", payer="top"), customer("c", payer="p")]
    steps = [subscribe(day(0), "s", customer="c"), subscribe(day(0), "t", customer="p"), run(day(0))]
    (made,) = documents(life([plan(flat("10"))], steps, customers=customers))
    assert made["customer"] == "top"
    assert [line["customer"] for line in made["lines"]] == ["c", "p"]


def test_one_document_per_payer_and_currency() -> None:
    plans = [plan(flat("10")), {**plan(flat("20"), code="q"), "currency": "USD"}]
    steps = [
        subscribe(day(0), "s", customer="c"),
        subscribe(day(0), "t", customer="c", plan="q"),
        subscribe(day(0), "u", customer="d", plan="q"),
        run(day(0)),
    ]
    made = documents(life(plans, steps, customers=[PARENT, CHILD, OTHER]))
    assert [(one["customer"], one["currency"], one["net"]) for one in made] == [
        ("p", "EUR", "10.00"),
        ("p", "USD", "40.00"),
    ]


def test_the_payer_of_the_day_of_the_run_gets_the_document_and_its_treatment_counts() -> None:
    """January is used under the parent and billed when the child pays for itself: 20 % of its own tax."""
    abroad = customer("p", tax_treatment="reverse_charge")
    plans = [plan({**flat("10", timing="arrears"), "tax": "vat"})]
    steps = [subscribe(day(0)), run(day(31)), customer("c", day(40), payer=None), run(day(59))]
    first, second = documents(life(plans, steps, customers=[abroad, CHILD]))
    assert (first["customer"], first["taxes"][0]["category"], first["gross"]) == ("p", "AE", "10.00")
    assert (second["customer"], second["taxes"][0]["category"], second["gross"]) == ("c", "S", "12.00")


def test_what_corrects_a_line_goes_to_whoever_got_that_line() -> None:
    """Paid by p, then by d: what late usage and a cancellation change of p's document goes to p, the rest to d."""
    steps = [
        subscribe(day(0)),
        used(day(5), (day(4), "3")),
        run(day(31)),
        customer("c", day(35), payer="d"),
        used(day(36), (day(20), "2")),  # late, for January
        used(day(36), (day(35), "7")),
        {"at": day(40), "cancel": {"subscription": "s", "when": "now"}},
        run(day(40)),
    ]
    plans = [plan(flat("28"), usage())]
    made = documents(life(plans, steps, customers=[PARENT, customer("d"), CHILD]))
    assert [(one["customer"], one["type"]) for one in made] == [
        ("p", "invoice"),
        ("d", "invoice"),
        ("p", "credit_note"),
    ]
    # 19 of 28 days of February were paid by p and are not used: 19.00 back, less 2.00 of late usage in January.
    assert [(line["customer"], line["charge"], line["amount"]) for line in made[2]["lines"]] == [
        ("c", "base", "19.00"),
        ("c", "n", "-2.00"),
    ]
    assert [line["corrects"]["document"] for line in made[2]["lines"]] == ["1", "1"]
    assert shown(made[1]) == [("c", "n", "7.00")]


def test_a_document_made_again_has_the_lines_of_all_its_customers() -> None:
    """Late usage of one child: the parent's invoice is taken back whole and made again, although the payer changed."""
    steps = [
        subscribe(day(0), "s", customer="c"),
        subscribe(day(0), "t", customer="d"),
        used(day(5), (day(4), "3"), customer="c"),
        used(day(5), (day(4), "9"), customer="d"),
        run(day(31)),
        customer("c", day(33), payer=None),
        used(day(35), (day(20), "2"), customer="c"),
        run(day(36)),
    ]
    plans = [plan({**usage(), "tax": "vat"}, minimum="6")]
    abroad = customer("p", tax_treatment="reverse_charge")
    form = life(plans, steps, customers=[abroad, CHILD, OTHER], tenant={"late_usage": "reissue"})
    old, note, new = documents(form)
    assert shown(old) == [("c", "n", "3.00"), ("c", "minimum", "3.00"), ("d", "n", "9.00")]
    assert (note["type"], note["refers_to"], shown(note)) == ("credit_note", "1", shown(old))
    assert (new["customer"], new["refers_to"]) == ("p", "1")
    assert shown(new) == [("c", "n", "5.00"), ("c", "minimum", "1.00"), ("d", "n", "9.00")]
    assert [tax["category"] for tax in new["taxes"]] == ["AE"]  # the payer's treatment, not the child's


def test_the_first_usage_of_a_billed_period_makes_the_invoice_of_the_payer_of_that_run_again() -> None:
    """January had no usage of c, so no line tells where it was billed: the run's document of its payer of that day."""
    steps = [
        subscribe(day(0), "s", customer="c"),
        subscribe(day(0), "t", customer="d"),
        run(day(31)),
        customer("c", day(33), payer=None),
        used(day(35), (day(20), "2"), customer="c"),
        run(day(36)),
    ]
    plans = [plan(flat("10", timing="arrears"), usage(), minimum="11")]
    form = life(plans, steps, customers=[PARENT, CHILD, OTHER], tenant={"late_usage": "reissue"})
    old, note, new = documents(form)
    both = [("c", "base", "10.00"), ("c", "minimum", "1.00"), ("d", "base", "10.00"), ("d", "minimum", "1.00")]
    assert shown(old) == shown(note) == both
    assert (new["customer"], new["refers_to"]) == ("p", "1")
    assert shown(new) == [("c", "base", "10.00"), ("c", "n", "2.00"), *both[2:]]


def test_a_part_of_a_family_is_billed_by_what_its_payers_documents_say() -> None:
    """A preview of one child: the payer's document with that child's lines only, and what was billed there counts."""
    steps = [
        subscribe(day(0), "s", customer="c"),
        subscribe(day(0), "t", customer="d"),
        run(day(0)),
        {"at": day(20), "cancel": {"subscription": "s", "when": "now"}},
    ]
    form = life([plan(flat("31"))], steps, customers=[PARENT, CHILD, OTHER])
    billed = documents_of(form)
    master = MasterData.start(form["tenant"]).apply_all(
        [
            *({"tax_code": one} for one in form["tax_codes"]),
            *({"meter": one} for one in form["meters"]),
            *({"publish": {"plan": one}} for one in form["plans"]),
            *({"customer": one} for one in form["customers"]),
            *form["timeline"],
        ]
    )
    now = parse_moment(day(31), "Europe/Berlin")
    events = pl.DataFrame(schema=EVENT_SCHEMA)
    made = bill(master, ["c"], up_to=now, now=now, billed=billed, events=events).documents
    assert [(one.customer, one.type, one.net) for one in made] == [("p", "credit_note", Decimal("11.00"))]
    assert [(line.customer, line.corrects.document) for line in made[0].lines if line.corrects] == [("c", "1")]


def test_discounts_and_minimum_stay_with_the_subscription() -> None:
    """Each child's 4.00 off counts once for each; the minimum of one child is not reached by the other's lines."""
    steps = [
        subscribe(day(0), "s", customer="c", discounts=[{"amount": "4"}]),
        subscribe(day(0), "t", customer="d", discounts=[{"amount": "4"}, {"percent": "50"}]),
        run(day(31)),
        run(day(59)),
    ]
    plans = [plan(flat("10", timing="arrears"), minimum="12")]
    first, second = documents(life(plans, steps, customers=[PARENT, CHILD, OTHER]))
    assert shown(first) == [
        ("c", "base", "10.00"),
        ("c", "minimum", "2.00"),
        ("d", "base", "5.00"),
        ("d", "minimum", "7.00"),
    ]
    assert [one["amount"] for one in first["allowances"]] == ["4.00", "4.00"]
    assert (first["net"], second["net"]) == ("16.00", "24.00")


def wallet(code: str, amount: str, kind: str) -> dict[str, Any]:
    return {"at": day(0), "top_up": {"customer": code, "amount": amount, "kind": kind}}


def credited_life() -> dict[str, Any]:
    """A document of 60.00 and 20 %: lines of c for 10, of d for 20, of p for 30; every one of them has credit."""
    steps = [
        wallet("c", "25", "promotional"),
        wallet("d", "100", "purchased"),
        wallet("p", "10", "promotional"),
        wallet("p", "30", "purchased"),
        subscribe(day(0), "s", customer="c", quantities={"base": "1"}),
        subscribe(day(0), "t", customer="d", quantities={"base": "2"}),
        subscribe(day(0), "u", customer="p", quantities={"base": "3"}),
        run(day(0)),
    ]
    return life([plan({**flat("10"), "tax": "vat"})], steps, customers=[PARENT, CHILD, OTHER])


def test_a_childs_credit_pays_his_own_lines_and_the_payers_what_is_left() -> None:
    """c's promotional credit pays its 10.00 and no more; p's 10.00 any line: 40.00 net, 48.00 with tax.

    Of the gross d owes its share: 20 of the 20 + 20 that are left of the lines, 24.00; p's purchased credit pays 24.00.
    """
    form = credited_life()
    (made,) = documents_of(form)
    document = made.document
    assert [(one.source, one.amount) for one in document.allowances] == [
        ("c", Decimal("10.00")),
        ("", Decimal("10.00")),
    ]
    assert (document.gross, document.prepaid, document.due) == (Decimal("48.00"), Decimal("48.00"), ZERO)
    assert [(one.code, one.prepaid) for one in document.members] == [("c", ZERO), ("d", Decimal("24.00"))]
    balances = {"c": "15", "d": "76", "p": "6"}
    form["expect"] = {"wallets": [{"customer": code, "balance": balance} for code, balance in balances.items()]}
    assert check_scenario(form) == []


def test_wallets_replayed_from_documents_know_whose_credit_was_used() -> None:
    form = credited_life()
    made = documents_of(form)
    master = MasterData.start(form["tenant"]).apply_all(
        [
            *({"tax_code": one} for one in form["tax_codes"]),
            *({"meter": one} for one in form["meters"]),
            *({"publish": {"plan": one}} for one in form["plans"]),
            *({"customer": one} for one in form["customers"]),
            *form["timeline"][:-1],
        ]
    )
    now = parse_moment(day(1), "Europe/Berlin")
    wallets = wallets_of(master, ["c", "d", "p"], made, now)
    assert [str(wallets.balance(code, "EUR")) for code in "cdp"] == ["15.00", "76.00", "6.00"]
    back = [*made, BilledDocument("2", mirror(made[0], now.date()), 0, now)]
    wallets = wallets_of(master, ["c", "d", "p"], back, now)
    assert [str(wallets.balance(code, "EUR")) for code in "cdp"] == ["25.00", "100.00", "40.00"]


def test_credit_notes_by_lines_name_whose_lines_they_take_back() -> None:
    (made,) = documents_of(credited_life())
    note = credit_note(made, made.document.date, (), [CreditLine(2)])
    assert note.customer == "p"
    assert [one.customer for one in note.lines] == ["d"]
    assert [(one.code, one.prepaid) for one in note.members] == [("d", ZERO)]


# What is refused


@pytest.mark.parametrize(
    ("steps", "detail"),
    [
        ([customer("a", day(0), payer="a")], "a -> a is a circle"),
        ([customer("a", day(0), payer="b"), customer("b", day(1), payer="a")], "b -> a -> b is a circle"),
        (
            [customer("a", day(0), payer="b"), customer("b", day(1), payer="c"), customer("c", day(2), payer="a")],
            "c -> a -> b -> c is a circle",
        ),
        ([customer("a", day(0), payer="nobody")], "there is no customer 'nobody'"),
        (
            [customer("a", day(5), payer="b"), customer("a", day(2), payer="c")],
            "has a later payer already; payers come in order of time",
        ),
        (  # b is paid for only later, but from then on it would be a circle
            [customer("b", day(9), payer="a"), customer("a", day(0), payer="b")],
            "a -> b -> a is a circle",
        ),
    ],
    ids=str,
)
def test_a_payer_that_cannot_be_is_refused_with_place_and_reason(steps: list[dict[str, Any]], detail: str) -> None:
    master = MasterData.start({}).apply_all([customer(code, day(0)) for code in "abc"])
    with pytest.raises(InvalidInput) as caught:
        master.apply_all(steps)
    (error,) = caught.value.errors
    assert error.pointer == f"/{len(steps) - 1}/customer/payer"
    assert detail in error.detail


def test_a_circle_that_has_ended_is_none() -> None:
    steps = [customer("a", day(0), payer="b"), customer("a", day(5), payer=None), customer("b", day(6), payer="a")]
    master = MasterData.start({}).apply_all([*(customer(code, day(0)) for code in "ab"), *steps])
    moments = [parse_moment(day(number), "UTC") for number in (1, 5, 7)]
    assert [(master.payer_at("a", one), master.payer_at("b", one)) for one in moments] == [
        ("b", "b"),
        ("a", "b"),
        ("a", "a"),
    ]
    assert master.family("a") == master.family("b") == ("a", "b")


@pytest.mark.parametrize("downwards", [True, False])
def test_rows_of_payers_have_a_limit_from_wherever_they_grow(downwards: bool) -> None:
    steps = [customer(f"c{number:02}") for number in range(PAYERS_MAX + 2)]
    links = [{"customer": {"code": f"c{n:02}", "payer": f"c{n + 1:02}"}} for n in range(PAYERS_MAX + 1)]
    ordered = links if downwards else links[::-1]
    master = MasterData.start({}).apply_all([*({"customer": one} for one in steps), *ordered[:-1]])
    first, last = ("c00", f"c{PAYERS_MAX:02}") if downwards else ("c01", f"c{PAYERS_MAX + 1:02}")
    assert master.payer_at(first, datetime(2026, 1, 1, tzinfo=UTC)) == last
    with pytest.raises(InvalidInput, match=f"at most {PAYERS_MAX} customers"):
        master.apply(ordered[-1])


# Properties


def with_children(form: dict[str, Any], *, paid: bool) -> dict[str, Any]:
    """The same life of two customers, c and d, with a parent who pays for both (or for none)."""
    changed = copy.deepcopy(form)
    payer = {"payer": "p"} if paid else {}
    changed["customers"] = [customer("p"), customer("c", **payer), customer("d", **payer)]
    steps = changed["timeline"]
    for step in list(steps):
        twin = copy.deepcopy(step)
        (kind,) = (key for key in twin if key != "at")
        if kind == "bill_run":
            continue
        if kind == "usage":
            for event in twin["usage"]:
                event.update(customer="d", id=f"d/{event['id']}")
        elif kind == "subscribe":
            twin["subscribe"].update(customer="d", code="t")
        else:
            twin[kind]["subscription"] = "t"
        steps.insert(next(place for place, one in enumerate(steps) if one is step) + 1, twin)
    return changed


def signed(documents: Sequence[BilledDocument]) -> Counter[tuple[Any, ...]]:
    found: Counter[tuple[Any, ...]] = Counter()
    for billed in documents:
        sign = -1 if billed.document.type == "credit_note" else 1
        for one in billed.document.lines:
            found[_content(billed.document, one, sign)] += 1
    return found


def _content(document: Document, one: Line, sign: int) -> tuple[Any, ...]:
    whose = one.customer or document.customer
    return whose, one.subscription, one.charge, one.start, one.end, sign * one.quantity, sign * one.amount


@settings(max_examples=25, deadline=None)
@given(lives(), st.lists(days, min_size=1, max_size=4))
def test_the_payers_documents_have_the_lines_of_the_childrens_own(
    made: tuple[dict[str, Any], list[dict[str, Any]]], runs: list[int]
) -> None:
    form = with_runs(made[0], [*runs, 90])
    own, paid = documents_of(with_children(form, paid=False)), documents_of(with_children(form, paid=True))
    assert {billed.document.customer for billed in own} <= {"c", "d"}
    assert {billed.document.customer for billed in paid} <= {"p"}
    assert signed(own) == signed(paid)
    for billed in paid:
        check_sums(billed.document)
        order = [line.customer for line in billed.document.lines]
        assert order == sorted(order)


@settings(max_examples=12, deadline=None)
@given(lives(), st.lists(days, min_size=1, max_size=3), st.sampled_from(["delta", "reissue"]), st.data())
def test_what_the_engine_says_it_needs_is_enough_for_families_too(
    made: tuple[dict[str, Any], list[dict[str, Any]]], runs: list[int], late_usage: str, data: st.DataObject
) -> None:
    form = with_children(with_runs(made[0], [*runs, 90]), paid=data.draw(st.booleans()))
    form["tenant"]["late_usage"] = late_usage
    for place in sorted(data.draw(st.lists(st.integers(0, len(form["timeline"]) - 1), max_size=2)), reverse=True):
        payer = data.draw(st.sampled_from(["p", "d", None]))
        form["timeline"].insert(place + 1, customer("c", form["timeline"][place]["at"], payer=payer))
    assert as_the_platform_bills(form) == [b.document for b in documents_of(form)]


def test_master_data_of_a_child_has_its_family_and_one_wallet_asks_for_all_documents_of_it() -> None:
    steps = [customer(code, day(0)) for code in "abcd"]
    steps += [customer("a", day(0), payer="b"), customer("b", day(0), payer="c")]
    master = MasterData.start({}).apply_all([*steps, wallet("a", "5", "purchased")])
    part = MasterData.from_bytes(master.subset(["a"]).to_bytes())
    assert part.payer_at("a", parse_moment(day(1), "UTC")) == "c"
    assert sorted(part.customers) == ["a", "b", "c"]
    assert [master.needs_all_documents(code) for code in "cbad"] == [True, True, True, False]


def test_chunks_never_part_a_family_and_give_the_same_documents() -> None:
    steps: list[dict[str, Any]] = [{"tax_code": TAX}, {"tax_code": NO_TAX}, {"meter": METER}]
    steps.append({"publish": {"plan": plan(flat("9.99"))}})
    steps += [customer(f"c{number:02}", day(0)) for number in range(20)]
    for child, payer in ((0, 15), (7, 15), (19, 3), (11, 12)):
        steps.append(customer(f"c{child:02}", day(0), payer=f"c{payer:02}"))
    steps += [subscribe(day(0), f"s{n:02}", customer=f"c{n:02}") for n in range(20) if n != 15]
    master = MasterData.start({"currency": "EUR", "timezone": "Europe/Berlin"}).apply_all(steps)
    order = billable(master)
    assert sorted(order) == sorted(master.customers)  # c15 has no contract, and gets the documents of c00 and c07
    up_to = parse_moment(day(0), "Europe/Berlin")

    def made(part: MasterData, chosen: list[str]) -> list[Document]:
        events = pl.DataFrame(schema=EVENT_SCHEMA)
        return list(bill(part, chosen, up_to=up_to, now=up_to, billed=[], events=events).documents)

    whole = made(master, list(master.customers))
    assert len(whole) == 20 - 4
    for most in (1, 2, 3, 7, 100):
        sizes = chunk_sizes(master, most)
        assert sum(sizes) == len(order)
        assert max(sizes) <= max(most, 3)
        pieces: list[Document] = []
        first = 0
        for size in sizes:
            chunk = order[first : first + size]
            first += size
            assert all(set(master.family(code)) <= set(chunk) for code in chunk)
            pieces += made(MasterData.from_bytes(master.subset(chunk).to_bytes()), chunk)
        assert sorted(pieces, key=lambda one: one.customer) == whole
