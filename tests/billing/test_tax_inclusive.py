"""Prices that contain the tax: what was agreed adds up, the tax is taken out once, and every sum of EN 16931 holds."""

from __future__ import annotations

import copy
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lives import documents, flat, life, plan, run, subscribe, usage, used
from oracle import tax as oracle
from test_bill_properties import day, days, lives, with_runs

from billing.assemble import AmountDiscount, assemble
from billing.bill import BilledDocument
from billing.catalog_forms import parse_plan, to_form
from billing.credit_notes import CreditLine, credit_note, mirror
from billing.documents import Document, Line
from billing.errors import InvalidInput
from billing.money import minor_digits
from billing.scenario import documents_of
from billing.tax.inclusive import net_within, spread_net, tax_within

ZERO = Decimal(0)
DAY = date(2026, 1, 31)
START, END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
PERCENTS = st.sampled_from(["19", "7", "20", "5.5", "8.1", "25", "0"])


class Purse:
    """Credit of a fixed amount, for documents alone."""

    def __init__(self, promotional: Decimal, purchased: Decimal = ZERO) -> None:
        self.left = {"promotional": promotional, "purchased": purchased}

    def take(self, customer: str, currency: str, kind: Any, asked: Decimal, document: str) -> Decimal:
        taken = min(asked, self.left[kind])
        self.left[kind] -= taken
        return taken

    def give_back(self, number: str) -> None:
        raise AssertionError("nothing is given back here")


def line(amount: Decimal, percent: str = "19", *, inclusive: bool = True, allowance: Decimal = ZERO) -> Line:
    category: Any = "S" if Decimal(percent) else "Z"
    one = Line("s", "c", START, END, Decimal(1), amount, category, Decimal(percent), "recurring", allowance)
    if not inclusive:
        return one
    return Line(
        "s", "c", START, END, Decimal(1), amount, category, Decimal(percent), "recurring", allowance,
        gross=amount, gross_allowance=allowance,
    )  # fmt: skip


def check_document(document: Document) -> None:
    """The arithmetic of EN 16931, and that tax is where a percentage of the base puts it, but for two cents."""
    unit = Decimal(1).scaleb(-minor_digits(document.currency))
    lines = sum((one.amount for one in document.lines), ZERO)  # BT-106, BR-CO-10
    allowances = sum((one.amount for one in document.allowances), ZERO)  # BT-107, BR-CO-11
    assert document.net == lines - allowances  # BT-109, BR-CO-13
    assert document.tax == sum((one.amount for one in document.taxes), ZERO)  # BT-110, BR-CO-14
    assert document.gross == document.net + document.tax  # BT-112, BR-CO-15
    assert document.due == document.gross - document.prepaid  # BT-115, BR-CO-16
    assert len({(one.category, one.percent) for one in document.taxes}) == len(document.taxes)  # BR-S-08
    for one in document.taxes:
        group = (one.category, one.percent)
        base = sum(a.amount for a in document.lines if (a.tax_category, a.tax_percent) == group)
        base -= sum(a.amount for a in document.allowances if (a.tax_category, a.tax_percent) == group)
        assert one.base == base
        assert abs(one.amount - one.base * one.percent / 100) <= 2 * unit  # BR-CO-17 allows one whole unit
    for one in document.lines:
        if one.gross is not None:
            assert abs(Fraction(one.amount) - Fraction(one.gross) * 100 / (100 + Fraction(one.tax_percent))) < unit
    for one in document.allowances:
        assert one.amount >= 0


def test_three_times_nine_ninety_nine_comes_out() -> None:
    """29.97 with 19 %: tax 4.79, net 25.18. Without the tax inside the price, 9.99 can never come out."""
    document = assemble("c", "EUR", DAY, [line(Decimal("9.99"))] * 3)
    assert [(one.gross, one.amount) for one in document.lines] == [
        (Decimal("9.99"), Decimal("8.40")),  # 8.3950 each: the cent that is left goes to the first of equals
        (Decimal("9.99"), Decimal("8.39")),
        (Decimal("9.99"), Decimal("8.39")),
    ]
    assert (document.net, document.tax, document.gross) == (Decimal("25.18"), Decimal("4.79"), Decimal("29.97"))


@pytest.mark.parametrize(
    ("currency", "gross", "percent", "tax"),
    [
        ("EUR", "29.97", "19", "4.79"),
        ("EUR", "-29.97", "19", "-4.79"),
        ("EUR", "0.01", "19", "0.00"),
        ("EUR", "100.00", "0", "0.00"),
        ("JPY", "980", "10", "89"),  # 89.0909
        ("JPY", "165", "10", "15"),
        ("KWD", "1.005", "5", "0.048"),  # 0.047857
        ("EUR", "10.70", "7", "0.70"),
        ("EUR", "0.03", "100", "0.02"),  # 0.015: half away from zero
    ],
)
def test_the_tax_within_a_gross_is_rounded_once(currency: str, gross: str, percent: str, tax: str) -> None:
    assert str(tax_within(Decimal(gross), Decimal(percent), currency)) == tax
    assert net_within(Decimal(gross), Decimal(percent), currency) == Decimal(gross) - Decimal(tax)


def test_a_credit_beside_its_new_line_gets_the_nearest_net() -> None:
    """-14.99 and 24.97: exact nets -12.5966 and 20.9832, together 8.3866 -> 8.39 (9.98 less 1.59)."""
    net = net_within(Decimal("9.98"), Decimal(19), "EUR")
    assert net == Decimal("8.39")
    assert spread_net(net, [Decimal("-14.99"), Decimal("24.97")], Decimal(19), "EUR") == [
        Decimal("-12.59"),
        Decimal("20.98"),
    ]


def test_prices_with_and_without_tax_share_one_row_of_the_tax_table() -> None:
    """9.99 with 19 % (tax 1.60, net 8.39) and 10.00 without (tax 1.90): one row with 18.39 and 3.50."""
    document = assemble("c", "EUR", DAY, [line(Decimal("9.99")), line(Decimal("10.00"), inclusive=False)])
    assert [(one.base, one.amount) for one in document.taxes] == [(Decimal("18.39"), Decimal("3.50"))]
    assert document.gross == Decimal("21.89")
    assert [one.gross for one in document.lines] == [Decimal("9.99"), None]


def test_an_amount_off_takes_that_much_off_what_was_agreed() -> None:
    """5.00 off 29.97 is 24.97: tax 3.99 (3.9868), net 20.98; the lines' net is 25.18, so the allowance is 4.20 net."""
    document = assemble("c", "EUR", DAY, [line(Decimal("29.97"))], [AmountDiscount("s/1", Decimal("5.00"))])
    assert [(one.gross, one.amount) for one in document.allowances] == [(Decimal("5.00"), Decimal("4.20"))]
    assert (document.net, document.tax, document.gross) == (Decimal("20.98"), Decimal("3.99"), Decimal("24.97"))


def test_credit_pays_prices_as_they_are_stated() -> None:
    purse = Purse(Decimal("10"), Decimal("15"))
    document = assemble("c", "EUR", DAY, [line(Decimal("29.97"))], (), purse, "k")
    assert (document.gross, document.prepaid, document.due) == (Decimal("19.97"), Decimal("15"), Decimal("4.97"))
    assert purse.left == {"promotional": ZERO, "purchased": ZERO}


def test_a_percent_off_is_taken_of_the_price_with_tax() -> None:
    """10 % of 9.99 is 1.00: 8.99, tax 1.44 (1.4354), net 7.55; the discount is 0.84 net of its 0.16 tax."""
    plans = [{**plan({**flat("9.99"), "tax": "vat"}), "tax_behavior": "inclusive"}]
    form = life(plans, [subscribe("2026-01-01", discounts=[{"percent": "10"}]), run("2026-01-01")])
    form["tax_codes"][0] = {"code": "vat", "percents": [{"from": "2000-01-01", "percent": "19"}]}
    (made,) = documents_of(form)
    (one,) = made.document.lines
    assert (one.gross, one.gross_allowance) == (Decimal("8.99"), Decimal("1.00"))
    assert (one.amount, one.allowance) == (Decimal("7.55"), Decimal("0.84"))
    assert documents(form)[0]["lines"][0]["allowance"] == "1.00"


@pytest.mark.parametrize("treatment", ["reverse_charge", "intra_community", "export", "exempt", "outside_scope"])
def test_the_price_as_agreed_stands_where_no_tax_is_charged(treatment: str) -> None:
    plans = [{**plan({**flat("9.99"), "tax": "vat"}), "tax_behavior": "inclusive"}]
    customers = [{"code": "c", "name": "C", "country": "FR", "tax_treatment": treatment}]
    (made,) = documents(life(plans, [subscribe("2026-01-01"), run("2026-01-01")], customers=customers))
    assert (made["net"], made["tax"], made["gross"]) == ("9.99", "0.00", "9.99")


def test_a_new_rate_changes_the_tax_and_not_the_price() -> None:
    plans = [{**plan({**flat("9.99", timing="arrears"), "tax": "vat"}), "tax_behavior": "inclusive"}]
    form = life(plans, [subscribe("2026-01-01"), run("2026-02-01"), run("2026-03-01")])
    percents = [{"from": "2000-01-01", "percent": "19"}, {"from": "2026-02-15", "percent": "16"}]
    form["tax_codes"][0] = {"code": "vat", "percents": percents}
    made = documents(form)
    assert [(one["gross"], one["tax"]) for one in made] == [("9.99", "1.60"), ("9.99", "1.38")]


def test_an_agreed_minimum_is_meant_with_tax_where_the_prices_are() -> None:
    """119.00 a month: 10 used at 3.57 are 35.70 with 19 %, 83.30 to the minimum. Five more, late, take 17.85 of it."""
    charges = [{**usage("3.57"), "tax": "vat"}]
    plans = [{**plan(*charges, minimum="119.00"), "tax_behavior": "inclusive"}]
    steps = [
        subscribe("2026-01-01"),
        used("2026-01-20", ("2026-01-19", "10")),
        run("2026-02-01"),
        used("2026-02-02", ("2026-01-20", "5")),
        run("2026-02-03"),
    ]
    form = life(plans, steps)
    form["tax_codes"][0] = {"code": "vat", "percents": [{"from": "2000-01-01", "percent": "19"}]}
    first, second = documents(form)
    assert [(one["charge"], one["gross"]) for one in first["lines"]] == [("n", "35.70"), ("minimum", "83.30")]
    assert (first["gross"], first["tax"], first["net"]) == ("119.00", "19.00", "100.00")
    assert [(one["charge"], one["gross"]) for one in second["lines"]] == [("n", "17.85"), ("minimum", "-17.85")]
    assert second["gross"] == "0.00"


def test_goodwill_for_a_subscription_is_in_the_terms_of_its_plan_unless_it_says_otherwise() -> None:
    plans = [{**plan({**flat("9.99"), "tax": "vat"}), "tax_behavior": "inclusive"}]
    entry = {"customer": "c", "subscription": "s", "code": "sorry", "amount": "-1.00", "tax": "vat"}

    def made(**more: str) -> dict[str, Any]:
        steps = [subscribe("2026-01-01"), {"at": "2026-01-01", "ad_hoc": {**entry, **more}}, run("2026-01-01")]
        return documents(life(plans, steps))[0]

    assert made()["gross"] == "8.99"
    assert made(tax_behavior="exclusive")["gross"] == "8.79"  # 9.99 (tax 1.67) - 1.00 - 0.20
    with pytest.raises(InvalidInput) as caught:
        made(tax_behavior="gross")
    assert [error.pointer for error in caught.value.errors] == ["/timeline/1/ad_hoc/tax_behavior"]


def test_a_plan_says_whether_its_prices_contain_the_tax_and_says_it_again() -> None:
    form = {**plan(flat("1"), minimum={"amount": "5", "tax": "vat"}), "tax_behavior": "inclusive"}
    made = parse_plan(form)
    assert made.inclusive
    assert to_form(made)["tax_behavior"] == "inclusive"
    assert parse_plan(to_form(made)) == made
    assert "tax_behavior" not in to_form(parse_plan(plan(flat("1"))))
    with pytest.raises(InvalidInput) as caught:
        parse_plan({**form, "tax_behavior": "both"}, "/plans/0")
    assert [error.pointer for error in caught.value.errors] == ["/plans/0/tax_behavior"]
    assert "must be one of exclusive, inclusive" in caught.value.errors[0].detail


# Properties


@st.composite
def stated_lines(draw: st.DrawFn) -> tuple[str, list[Line]]:
    currency = draw(st.sampled_from(["EUR", "JPY", "KWD"]))
    units = st.integers(-2_000, 20_000)
    digits = minor_digits(currency)
    return currency, [
        line(Decimal(draw(units)).scaleb(-digits), draw(PERCENTS), inclusive=draw(st.booleans()))
        for _ in range(draw(st.integers(1, 6)))
    ]


@settings(max_examples=150, deadline=None)
@given(stated_lines(), st.lists(st.integers(1, 9_000), max_size=2), st.integers(0, 5_000))
def test_any_document_agrees_with_the_oracle(made: tuple[str, list[Line]], discounts: list[int], credit: int) -> None:
    currency, lines = made
    digits = minor_digits(currency)

    def units(amount: Decimal) -> int:
        found = amount.scaleb(digits)
        assert found == int(found)
        return int(found)

    off = [AmountDiscount(f"s/{n}", Decimal(one).scaleb(-digits)) for n, one in enumerate(discounts, start=1)]
    purse = Purse(Decimal(credit).scaleb(-digits))
    document = assemble("c", currency, DAY, lines, off, purse, "k")
    check_document(document)
    sign = -1 if document.type == "credit_note" else 1
    shown = [
        ((one.tax_category, Fraction(one.tax_percent)), one.gross is not None, sign * units(one.stated))
        for one in lines
    ]
    taken = [*discounts, credit] if sign == 1 else []
    expected = oracle.table(shown, taken)
    assert {
        (one.category, Fraction(one.percent)): (units(one.base), units(one.amount)) for one in document.taxes
    } == expected
    for group in expected:
        grosses = [one for one in document.lines if one.gross is not None and _group(one) == group]
        whole = [units(one.stated) for one in grosses]
        net = sum(whole) - oracle.tax_inside(sum(whole), group[1])
        assert [units(one.amount) for one in grosses] == oracle.net_of_lines(net, whole, group[1])
    if all(one.gross is not None for one in lines):
        agreed = sum((one.stated for one in document.lines), ZERO)
        assert document.gross == agreed - sum((one.stated for one in document.allowances), ZERO)


def _group(one: Line) -> tuple[str, Fraction]:
    return one.tax_category, Fraction(one.tax_percent)


def with_tax_inside(form: dict[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(form)
    for one in changed["plans"]:
        one["tax_behavior"] = "inclusive"
    return changed


def one_rate(form: dict[str, Any]) -> dict[str, Any]:
    """All charges under one tax code: then a document's sign does not depend on where the tax is."""
    changed = copy.deepcopy(form)
    for one in changed["plans"]:
        for charge in one["charges"]:
            charge["tax"] = "vat"
    return changed


@settings(max_examples=25, deadline=None)
@given(lives(), st.lists(days, min_size=1, max_size=4), st.sampled_from(["delta", "reissue"]))
def test_a_life_with_tax_inside_states_what_the_same_life_without_it_states(
    made: tuple[dict[str, Any], list[dict[str, Any]]], runs: list[int], late_usage: str
) -> None:
    """Proration, changes, discounts, minimum, late usage: the gross of every line is the other life's net."""
    form = one_rate(with_runs(made[0], [*runs, 90]))
    form["tenant"]["late_usage"] = late_usage
    without, inside = documents_of(form), documents_of(with_tax_inside(form))
    assert len(without) == len(inside)
    for one, other in zip(without, inside, strict=True):
        check_document(other.document)
        assert (one.document.type, one.document.net) == (other.document.type, other.document.gross)
        assert [(a.charge, a.quantity, a.stated, a.stated_allowance, a.corrects) for a in one.document.lines] == [
            (a.charge, a.quantity, a.stated, a.stated_allowance, a.corrects) for a in other.document.lines
        ]
        assert [(a.source, a.stated) for a in one.document.allowances] == [
            (a.source, a.stated) for a in other.document.allowances
        ]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5_000), PERCENTS, st.booleans()), min_size=1, max_size=5),
    st.lists(st.integers(1, 3_000), max_size=2),
    st.data(),
)
def test_credit_notes_by_lines_give_back_exactly_the_invoice(
    drawn: list[tuple[int, str, bool]], discounts: list[int], data: st.DataObject
) -> None:
    """In any order and in any parts, each with sums that hold; the last one makes net, tax and gross whole."""
    lines = [line(Decimal(one).scaleb(-2), percent, inclusive=inside) for one, percent, inside in drawn]
    off = [AmountDiscount(f"s/{n}", Decimal(one).scaleb(-2)) for n, one in enumerate(discounts, start=1)]
    invoice = assemble("c", "EUR", DAY, lines, off)
    billed = BilledDocument("1", invoice)
    notes: list[Document] = []
    left = {number: one.stated for number, one in enumerate(invoice.lines, start=1)}
    for _ in range(12):
        open_ = [number for number, amount in left.items() if amount]
        if not open_:
            break
        wanted: list[CreditLine] = []
        for number in data.draw(st.lists(st.sampled_from(open_), min_size=1, max_size=3, unique=True)):
            part = data.draw(st.integers(1, int(left[number] * 100)))
            amount = Decimal(part).scaleb(-2) if data.draw(st.booleans()) else None
            wanted.append(CreditLine(number, amount))
            left[number] -= amount if amount is not None else left[number]
        notes.append(credit_note(billed, DAY, notes, wanted))
    rest = [CreditLine(number) for number, amount in left.items() if amount]
    if rest:
        notes.append(credit_note(billed, DAY, notes, rest))
    for note in notes:
        assert note.net == sum((one.amount for one in note.lines), ZERO) - sum(
            (a.amount for a in note.allowances), ZERO
        )
        assert note.tax == sum((one.amount for one in note.taxes), ZERO)
        assert sum((one.base for one in note.taxes), ZERO) == note.net
        assert all(one.amount >= 0 for one in note.allowances)
    for name in ("net", "tax", "gross"):
        assert sum((getattr(note, name) for note in notes), ZERO) == getattr(invoice, name)
    whole = mirror(billed, DAY)
    assert (whole.net, whole.tax, whole.gross) == (invoice.net, invoice.tax, invoice.gross)


def test_cents_that_capped_tax_leaves_over_never_make_a_negative_allowance() -> None:
    """0.36 + 0.20 at 100 % less 0.06, credited cent by cent: the tax that is left caps a part's tax before the end."""
    invoice = assemble("c", "EUR", DAY, [line(Decimal("0.36"), "100"), line(Decimal("0.20"), "100")],
                       [AmountDiscount("s/1", Decimal("0.06"))])  # fmt: skip
    billed = BilledDocument("1", invoice)
    notes: list[Document] = []
    for number, amount in ((2, "0.19"), (1, "0.19"), (1, "0.01"), (2, "0.01"), (1, "0.13"), (1, "0.03")):
        notes.append(credit_note(billed, DAY, notes, [CreditLine(number, Decimal(amount))]))
        assert all(one.amount >= 0 for one in notes[-1].allowances)
        taken = sum((one.amount for one in notes[-1].allowances), ZERO)
        assert notes[-1].net == sum((one.amount for one in notes[-1].lines), ZERO) - taken
    for name in ("net", "tax", "gross"):
        assert sum((getattr(note, name) for note in notes), ZERO) == getattr(invoice, name)


def test_a_change_to_a_plan_without_tax_inside_credits_what_was_agreed() -> None:
    """The old plan is credited with its tax, the new one billed without: 15 of 31 days of 31.00, then 15.00 and tax."""
    plans = [
        {**plan({**flat("31.00"), "tax": "vat"}), "tax_behavior": "inclusive"},
        plan({**flat("31.00"), "tax": "vat"}, code="q"),
    ]
    change = {"at": day(16), "change": {"subscription": "s", "plan": "q", "when": "now"}}
    _, second = documents(life(plans, [subscribe(day(0)), run(day(0)), change, run(day(16))]))
    assert [(one["plan"], one["gross"], one["amount"]) for one in second["lines"]] == [
        ("p", "-15.00", "-12.50"),
        ("q", None, "15.00"),
    ]
    assert second["taxes"] == [{"category": "S", "percent": "20", "base": "2.50", "amount": "0.50"}]
