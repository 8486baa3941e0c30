"""An amount credited of a whole invoice: spread over tax rates and lines to the cent, and never beyond what is left."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tax_inclusive import DAY, PERCENTS, ZERO, line

from billing.assemble import AmountDiscount, assemble
from billing.credit_notes import CreditLine, credit_note
from billing.credit_spread import CreditRest, rest_of
from billing.documents import Document, Line
from billing.errors import Conflict, InvalidInput
from billing.settle import BilledDocument
from billing.tax.inclusive import tax_within


def invoice_of(lines: Sequence[Line], discounts: Sequence[AmountDiscount] = ()) -> BilledDocument:
    return BilledDocument("1", assemble("c", "EUR", DAY, lines, discounts))


def net(amount: int, percent: str) -> Line:
    return line(Decimal(amount), percent, inclusive=False)


def note_or_refusal(billed: BilledDocument, notes: Sequence[Document], amount: Decimal) -> Document | str:
    try:
        return credit_note(billed, DAY, notes, amount=amount)
    except InvalidInput as error:
        return error.detail


def check_note(note: Document) -> None:
    assert note.net == sum((one.amount for one in note.lines), ZERO) - sum((a.amount for a in note.allowances), ZERO)
    assert note.tax == sum((one.amount for one in note.taxes), ZERO)
    assert sum((one.base for one in note.taxes), ZERO) == note.net
    assert note.gross == note.due == note.net + note.tax
    assert all(one.amount >= 0 for one in note.allowances)
    assert all(one.amount or one.gross for one in note.lines)


def check_rest(before: CreditRest, after: CreditRest) -> None:
    """Nothing is more than it was, nor beyond nothing."""
    for number, left in after.lines.items():
        assert min(ZERO, before.lines[number]) <= left <= max(ZERO, before.lines[number])
    for pool, one in after.pools.items():
        assert 0 <= one.allowances <= before.pools[pool].allowances
        assert min(ZERO, before.pools[pool].tax) <= one.tax <= max(ZERO, before.pools[pool].tax)


def test_an_amount_takes_of_each_rate_and_line_in_proportion() -> None:
    """119.00 + 53.50 + 21.40: of 96.95, half of it, each gives a half."""
    billed = invoice_of([net(100, "19"), net(50, "7"), net(20, "7")])
    note = credit_note(billed, DAY, amount=Decimal("96.95"))
    assert (note.type, note.refers_to, note.gross, note.net, note.tax) == (
        "credit_note", "1", Decimal("96.95"), Decimal("85.00"), Decimal("11.95"),
    )  # fmt: skip
    assert [(one.amount, one.corrects and one.corrects.line) for one in note.lines] == [
        (Decimal("50.00"), 1), (Decimal("25.00"), 2), (Decimal("10.00"), 3),
    ]  # fmt: skip
    assert [(str(one.percent), str(one.base), str(one.amount)) for one in note.taxes] == [
        ("7", "35.00", "2.45"), ("19", "50.00", "9.50"),
    ]  # fmt: skip


def test_equal_shares_that_do_not_divide_give_the_odd_cent_to_the_first() -> None:
    billed = invoice_of([net(10, "0") for _ in range(3)])
    first = credit_note(billed, DAY, amount=Decimal(10))
    assert [str(one.amount) for one in first.lines] == ["3.34", "3.33", "3.33"]
    assert first == credit_note(billed, DAY, amount=Decimal(10))


def test_the_odd_cent_goes_to_the_largest_remainder() -> None:
    """60.00 + 40.00: of 33.34 their shares are 20.004 and 13.336."""
    note = credit_note(invoice_of([net(60, "0"), net(40, "0")]), DAY, amount=Decimal("33.34"))
    assert [str(one.amount) for one in note.lines] == ["20.00", "13.34"]


def test_no_tax_is_left_without_a_line_that_carries_it() -> None:
    """0.05 and 0.01 tax: within 0.02 and 0.03 there would be no tax, and then 0.01 of it without a line."""
    billed = invoice_of([line(Decimal("0.05"), "19", inclusive=False)])
    notes: list[Document] = []
    for amount in ("0.02", "0.03", "0.01"):
        notes.append(credit_note(billed, DAY, notes, amount=Decimal(amount)))
    assert [(str(one.net), str(one.tax)) for one in notes] == [("0.02", "0.00"), ("0.02", "0.01"), ("0.01", "0.00")]


def test_what_cannot_be_divided_goes_with_all_that_is_left() -> None:
    """0.01 and 0.01 tax on it: a part would be a base without its tax, or the other way round."""
    billed = invoice_of([line(Decimal("0.01"), "100", inclusive=False)])
    with pytest.raises(InvalidInput, match=r"or all 0\.02"):
        credit_note(billed, DAY, amount=Decimal("0.01"))
    assert credit_note(billed, DAY, amount=Decimal("0.02")).tax == Decimal("0.01")


def test_a_credit_beside_its_line_is_taken_back_in_part_too() -> None:
    """30.00 - 10.00: of 10.00, half of it, 15.00 and -5.00."""
    billed = invoice_of([net(30, "0"), net(-10, "0")])
    note = credit_note(billed, DAY, amount=Decimal(10))
    assert [str(one.amount) for one in note.lines] == ["15.00", "-5.00"]


def test_more_than_is_left_and_parts_of_a_cent_are_refused_with_what_is_left() -> None:
    billed = invoice_of([net(100, "19")])
    first = credit_note(billed, DAY, amount=Decimal("19.00"))
    for amount in ("100.01", "0", "-1", "0.005"):
        with pytest.raises(InvalidInput) as refused:
            credit_note(billed, DAY, [first], amount=Decimal(amount))
        (one,) = refused.value.errors
        assert one.pointer == "/amount"
        assert "at most 100.00" in one.detail
    last = credit_note(billed, DAY, [first], amount=Decimal("100.00"))
    assert first.gross + last.gross == billed.document.gross
    with pytest.raises(Conflict):
        credit_note(billed, DAY, [first, last], amount=Decimal("0.01"))
    with pytest.raises(InvalidInput) as both:
        credit_note(billed, DAY, lines=[CreditLine(1)], amount=Decimal(1))
    assert both.value.errors[0].pointer == "/amount"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-800, 5_000), PERCENTS, st.booleans()), min_size=1, max_size=5),
    st.lists(st.integers(1, 3_000), max_size=2),
    st.data(),
)
def test_amounts_and_lines_in_any_order_give_back_exactly_the_invoice(
    drawn: list[tuple[int, str, bool]], discounts: list[int], data: st.DataObject
) -> None:
    """Each note has the amount asked for to the cent, takes of no line, allowance or tax more than is left, and the
    last one makes net, tax and gross whole."""
    lines = [line(Decimal(one).scaleb(-2), percent, inclusive=inside) for one, percent, inside in drawn]
    billed = invoice_of(lines, [AmountDiscount(f"s/{n}", Decimal(one).scaleb(-2)) for n, one in enumerate(discounts)])
    invoice = billed.document
    if invoice.type != "invoice":
        return
    notes: list[Document] = []
    for _ in range(6):
        rest = rest_of(invoice, notes)
        open_ = [number for number, left in rest.lines.items() if left]
        if rest.gross <= 0 or not open_:
            break
        if data.draw(st.integers(0, 3)):
            amount = Decimal(data.draw(st.integers(1, int(rest.gross * 100)))).scaleb(-2)
            if isinstance(made := note_or_refusal(billed, notes, amount), str):
                # Sums of both signs, or single cents that do not divide: all that is left goes.
                assert " or all " in made
                amount = rest.gross
                made = credit_note(billed, DAY, notes, amount=amount)
            notes.append(made)
            assert notes[-1].gross == amount
            check_rest(rest, rest_of(invoice, notes))
        else:
            notes.append(credit_note(billed, DAY, notes, [CreditLine(data.draw(st.sampled_from(open_)))]))
        check_note(notes[-1])
    rest = rest_of(invoice, notes)
    wanted = [CreditLine(number) for number, left in rest.lines.items() if left]
    if wanted:
        notes.append(credit_note(billed, DAY, notes, wanted))
    if notes:
        for name in ("net", "tax", "gross"):
            assert sum((getattr(note, name) for note in notes), ZERO) == getattr(invoice, name)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 20_000), PERCENTS, st.data())
def test_the_tax_is_the_one_within_the_amount(cents: int, percent: str, data: st.DataObject) -> None:
    billed = invoice_of([line(Decimal(cents).scaleb(-2), percent, inclusive=False)])
    gross = billed.document.gross
    amount = Decimal(data.draw(st.integers(1, int(gross * 100)))).scaleb(-2)
    if amount < gross and (billed.document.net > Decimal("0.01") or not billed.document.tax):
        note = credit_note(billed, DAY, amount=amount)
        assert abs(note.tax - tax_within(amount, Decimal(percent), "EUR")) <= Decimal("0.01")
