"""What takes a document back, and the invoice that is issued again with the credit that is left."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from decimal import Decimal

from lives import flat, life, plan, run, subscribe, usage, used
from test_bill_properties import check_sums, day

from billing.assemble import AmountDiscount
from billing.credit_notes import CreditLine, credit_note, mirror
from billing.documents import Corrects
from billing.scenario import documents_of
from billing.settle import BilledDocument
from billing.taking_back import against, credit_used, issued_again, with_credit

TODAY = date(2026, 6, 1)


def made_again_below_nothing() -> list[BilledDocument]:
    """An invoice, the credit note that cancels it, and what takes its place: a credit note, too."""
    steps = [
        subscribe(day(0)),
        used(day(5), (day(5), "3")),
        run(day(31)),
        used(day(33), (day(6), "-40")),
        run(day(34)),
    ]
    return documents_of(life([plan(flat("10", timing="arrears"), usage())], steps, tenant={"late_usage": "reissue"}))


def test_only_a_credit_note_of_a_documents_own_lines_takes_it_back() -> None:
    invoice, note, again = (one.document for one in made_again_below_nothing())
    assert [one.type for one in (invoice, note, again)] == ["invoice", "credit_note", "credit_note"]
    assert (note.refers_to, again.refers_to) == ("1", "1")
    assert [one.takes_back for one in (invoice, note, again)] == [False, True, False]
    billed = BilledDocument("1", invoice)
    assert credit_note(billed, TODAY, lines=[CreditLine(1)]).takes_back
    # It may have lines that correct others: what is left of the invoice does not go by them.
    odd = replace(again, lines=tuple(replace(line, corrects=Corrects("0", 7)) for line in again.lines))
    assert against(billed, TODAY, [note, odd]) is None
    assert against(billed, TODAY, [odd]) == mirror(billed, TODAY)


def test_a_document_and_what_takes_it_back_come_to_nothing() -> None:
    for billed in made_again_below_nothing():
        opposite = against(billed, TODAY, [])
        assert opposite is not None
        assert opposite.type != billed.document.type
        assert (opposite.refers_to, opposite.gross, opposite.taxes) == (
            billed.number, billed.document.gross, billed.document.taxes,
        )  # fmt: skip


def test_an_invoice_issued_again_with_less_credit_asks_for_the_more_money_and_nothing_else_changes() -> None:
    customers = [{"code": "p"}, {"code": "c", "payer": "p"}]
    steps = [
        {"at": day(0), "top_up": {"customer": "c", "amount": "3", "kind": "promotional"}},
        {"at": day(0), "top_up": {"customer": "c", "amount": "4", "kind": "purchased"}},
        {"at": day(0), "top_up": {"customer": "p", "amount": "5", "kind": "purchased"}},
        subscribe(day(0), "s", customer="c", discounts=[{"amount": "2"}], order_reference="1"),
        subscribe(day(0), "t", customer="p", order_reference="1"),
        run(day(0)),
    ]
    taxed = {**flat("10"), "tax": "vat"}
    (billed,) = documents_of(life([plan(taxed)], steps, customers=customers, tenant={"document_per": "order"}))
    document = billed.document
    used_ = credit_used(document)
    assert list(used_.items()) == [
        (("c", "promotional"), Decimal("3.00")), (("c", "purchased"), Decimal("4.00")),
        (("p", "purchased"), Decimal("5.00")),
    ]  # fmt: skip
    again = issued_again(document, "2", TODAY)
    assert again == replace(document, date=TODAY, refers_to="2")
    discounts = [AmountDiscount("s/1", Decimal(2))]
    assert with_credit(again, used_, discounts) is again
    less = with_credit(again, {("c", "promotional"): Decimal(1), ("p", "purchased"): Decimal("5.00")}, discounts)
    check_sums(less)
    assert (less.lines, less.group, less.refers_to) == (again.lines, again.group, "2")
    assert credit_used(less) == {("c", "promotional"): Decimal(1), ("p", "purchased"): Decimal("5.00")}
    assert [(one.code, one.name) for one in less.members] == [(one.code, one.name) for one in again.members]
    # 2.00 more before tax, and 4.00 of the child's own that are not there.
    assert less.due - again.due == Decimal("2.40") + 4
