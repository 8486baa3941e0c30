"""Every exact check of an invoice: what breaks it, the rule's id, the words and the place. One change, one finding."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from maximal import EVERYTHING, OUTSIDE, changed

from billing.einvoice.checks import VIOLATIONS_MAX, Violation, check, valid_iban
from billing.einvoice.model import Address, Identifier, Invoice

# The usual invoice: one line of 100.00 at 19 %, seller and buyer in Germany. Nothing in it that no check looks at.
USUAL: dict[str, Any] = {
    "number": "RE-1",
    "issued_on": "2026-11-01",
    "type_code": "380",
    "currency": "EUR",
    "seller": {"name": "S", "address": {"country": "DE"}, "vat_id": "DE318204776"},
    "buyer": {"name": "B", "address": {"country": "DE"}},
    "totals": {"lines": "100", "net": "100", "tax": "19", "gross": "119", "due": "119"},
    "taxes": [{"base": "100", "amount": "19", "category": "S", "percent": "19"}],
    "lines": [{"id": "1", "quantity": "10", "unit": "HUR", "net": "100", "price": "10", "name": "Work",
               "tax": {"category": "S", "percent": "19"}}],
}  # fmt: skip
LINE = USUAL["lines"][0]


def untaxed(category: str, **more: Any) -> dict[str, Any]:
    """The usual invoice without tax, for the reason of a category; fine but for what that category needs."""
    percent = {} if category == "O" else {"percent": "0"}
    tax = {"base": "100", "amount": "0", "category": category, **percent, "reason": "why"}
    changes = {
        "/taxes": [tax], "/lines/0/tax": {"category": category, **percent}, "/totals/tax": "0",
        "/totals/gross": "100", "/totals/due": "100",
    }  # fmt: skip
    return changed(USUAL, {**changes, **more})


BUYER_VAT = {"/buyer/vat_id": "ATU12345678"}
DELIVERED = {"/delivery": {"address": {"country": "AT"}}}
NO_VAT: dict[str, Any] = {"/seller/vat_id": ..., "/seller/legal_id": {"id": "HRB 1"}}
TWO = {"id": "2", "quantity": "1", "unit": "C62", "net": "0", "price": "0", "name": "Extra"}


def found(form: dict[str, Any], **how: Any) -> list[tuple[str, str, str]]:
    return [(one.rule, one.detail, one.pointer) for one in check(Invoice.from_json(form), **how)]


@pytest.mark.parametrize(
    "form",
    [
        EVERYTHING,
        OUTSIDE,
        USUAL,
        untaxed("Z", **{"/taxes/0/reason": ...}),  # zero-rated needs no reason
        untaxed("E"),
        untaxed("AE", **BUYER_VAT),
        untaxed("AE", **{"/buyer/legal_id": {"id": "FN 1"}}),
        untaxed("AE", **{**BUYER_VAT, "/seller/vat_id": ..., "/seller/ids": [{"id": "1"}], "/seller/tax_number": "6"}),
        untaxed("K", **BUYER_VAT, **DELIVERED),
        untaxed("G"),
        untaxed("O", **NO_VAT),
        untaxed("E", **{"/taxes/0/reason": ..., "/taxes/0/reason_code": "VATEX-EU-132"}),
        changed(USUAL, {"/due_on": "2026-11-01", "/period": {"start": "2026-10-31", "end": "2026-10-31"},
                        "/lines/0/period": {"start": "2026-10-31", "end": "2026-10-31"}}),
        changed(USUAL, {"/type_code": "381", "/preceding": [{"number": "RE-0"}]}),
        changed(USUAL, {"/type_code": "381", "/notes": [{"text": "Goodwill"}]}),
        changed(USUAL, {"/payment": {"code": "30", "transfer": [{"iban": "12345 account at home"}]}}),
        changed(USUAL, {"/seller/vat_id": ..., "/seller/tax_number": "60/1", "/seller/ids": [{"id": "1"}]}),
        changed(USUAL, {"/lines/0/quantity": "10.0004", "/lines/0/allowances": [{"amount": "0", "reason_code": "95"}]}),
    ],
    ids=lambda form: f"{form['type_code']} {form['taxes'][0]['category']}",
)  # fmt: skip
def test_a_right_invoice_has_no_finding(form: dict[str, Any]) -> None:
    assert found(form) == []


def usual(*findings: tuple[str, str, str], **more: Any) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    return changed(USUAL, more), list(findings)


BROKEN: list[tuple[dict[str, Any], list[tuple[str, str, str]]]] = [
    # header
    usual(("BR-05", "'eur' is not a currency code", "/currency"), **{"/currency": "eur"}),
    usual(("CB-01", "due on 2026-10-31, before it is issued on 2026-11-01", "/due_on"), **{"/due_on": "2026-10-31"}),
    usual(("BR-29", "the period ends before it begins", "/period"),
          **{"/period": {"start": "2026-10-02", "end": "2026-10-01"}}),
    usual(("CB-02", "2 lines have the id 1", "/lines"),
          **{"/lines": [LINE, {**TWO, "id": "1", "tax": LINE["tax"]}]}),
    usual(("CB-03", "a credit note names the invoice that it credits (§ 31 (5) UStDV), or says in a note that there is"
                    " none", "/preceding"), **{"/type_code": "381"}),
    usual(("CB-04", "DE03120300000000202051 is not an IBAN: its check digits are wrong", "/payment/transfer/1/iban"),
          **{"/payment": {"code": "58", "transfer": [{"iban": "DE02120300000000202051"},
                                                     {"iban": "DE03120300000000202051"}]}}),
    # parties
    usual(("BR-09", "the seller's address needs a country code", "/seller/address/country"),
          **{"/seller/address/country": "Germany"}),
    usual(("BR-11", "the buyer's address needs a country code", "/buyer/address/country"),
          **{"/buyer/address/country": "de"}),
    usual(("BR-CO-26", "the seller needs a VAT id, a register number or another id", "/seller"),
          **{"/seller/vat_id": ..., "/seller/tax_number": "60/1"}),
    *((untaxed(category, **NO_VAT, **more), [(f"BR-{category}-02",
       f"category {category} needs the seller's VAT id or tax number", "/seller")])
      for category, more in (("Z", {}), ("E", {}), ("AE", BUYER_VAT))),
    (changed(USUAL, NO_VAT), [("BR-S-02", "category S needs the seller's VAT id or tax number", "/seller")]),
    (untaxed("AE"), [("BR-AE-02", "reverse charge needs the buyer's VAT id or register number", "/buyer/vat_id")]),
    (untaxed("G", **NO_VAT), [("BR-G-02", "needs the seller's VAT id", "/seller/vat_id")]),
    (untaxed("K", **NO_VAT, **BUYER_VAT, **DELIVERED), [("BR-IC-02", "needs the seller's VAT id", "/seller/vat_id")]),
    (untaxed("K", **DELIVERED),
     [("BR-IC-02", "an intra-Community supply needs the buyer's VAT id", "/buyer/vat_id")]),
    (untaxed("K", **BUYER_VAT),
     [("BR-IC-12", "an intra-Community supply needs the country of delivery", "/delivery/address")]),
    (untaxed("K", **BUYER_VAT, **{"/delivery": {"delivered_on": "2026-10-31"}}),
     [("BR-IC-12", "an intra-Community supply needs the country of delivery", "/delivery/address")]),
    (untaxed("O"), [("BR-O-02", "outside the scope of VAT no VAT id may be named", "/seller/vat_id")]),
    (untaxed("O", **NO_VAT, **BUYER_VAT),
     [("BR-O-02", "outside the scope of VAT no VAT id may be named", "/seller/vat_id")]),
    (untaxed("O", **NO_VAT, **{"/lines": [{**LINE, "tax": {"category": "O"}}, {**TWO, "tax": {"category": "Z"}}],
                               "/seller/tax_number": "60/1",
                               "/taxes": [{"base": "100", "amount": "0", "category": "O", "reason": "why"},
                                          {"base": "0", "amount": "0", "category": "Z"}]}),
     [("BR-O-11", "lines outside the scope of VAT stand alone: split the invoice", "/taxes"),
      ("BR-O-05", "a line has a VAT rate exactly if it is not of category O", "/lines/1/tax")]),
    # lines
    usual(("BR-27", "the price -10 is negative", "/lines/0/price"),
          **{"/lines/0/price": "-10", "/lines/0/quantity": "-10"}),
    usual(("PEPPOL-EN16931-R121", "the base quantity is above zero", "/lines/0/base_quantity"),
          **{"/lines/0/base_quantity": "0"}),
    usual(("PEPPOL-EN16931-R121", "the base quantity is above zero", "/lines/0/base_quantity"),
          **{"/lines/0/base_quantity": "-1"}),
    usual(("PEPPOL-EN16931-R120", "quantity x price gives 100.005000, the line says 100", "/lines/0/net"),
          **{"/lines/0/quantity": "10.0005"}),
    usual(("PEPPOL-EN16931-R120", "quantity x price gives 101.000000, the line says 100", "/lines/0/net"),
          **{"/lines/0/charges": [{"amount": "1", "reason": "late"}]}),
    usual(("CB-05", "an allowance or charge is never negative", "/lines/0/allowances"),
          **{"/lines/0/allowances": [{"amount": "-1", "reason": "x"}], "/lines/0/quantity": "9.9"}),
    usual(("CB-05", "an allowance or charge is never negative", "/lines/0/allowances"),
          **{"/lines/0/charges": [{"amount": "-1", "reason": "x"}], "/lines/0/quantity": "10.1"}),
    usual(("BR-42", "an allowance needs a reason", "/lines/0/allowances"),
          **{"/lines/0/charges": [{"amount": "1"}], "/lines/0/quantity": "9.9"}),
    usual(("BR-30", "the period ends before it begins", "/lines/0/period"),
          **{"/lines/0/period": {"start": "2026-10-02", "end": "2026-10-01"}}),
    *(usual(("CB-06", f"unit {unit} is no amount of data in Recommendation 20", "/lines/0/unit"),
            **{"/lines/0/unit": unit}) for unit in ("KB", "MB", "GB", "TB")),
    usual(("BR-O-05", "a line has a VAT rate exactly if it is not of category O", "/lines/0/tax"),
          ("BR-S-08", "the VAT breakdown lacks S 0 %", "/taxes"),
          ("BR-S-08", "the group's sum is 0, the breakdown says 100", "/taxes/0/base"),
          **{"/lines/0/tax": {"category": "S"}}),
    # totals: each is summed anew
    usual(("BR-CO-10", "total lines is 100, the invoice says 101", "/totals/lines"),
          ("BR-CO-13", "total net is 101, the invoice says 100", "/totals/net"), **{"/totals/lines": "101"}),
    usual(("BR-CO-11", "total allowances is 0, the invoice says 1", "/totals/allowances"),
          ("BR-CO-13", "total net is 99, the invoice says 100", "/totals/net"), **{"/totals/allowances": "1"}),
    usual(("BR-CO-12", "total charges is 0, the invoice says 1", "/totals/charges"),
          ("BR-CO-13", "total net is 101, the invoice says 100", "/totals/net"), **{"/totals/charges": "1"}),
    usual(("BR-CO-14", "total tax is 19, the invoice says 18", "/totals/tax"),
          ("BR-CO-15", "total gross is 118, the invoice says 119", "/totals/gross"), **{"/totals/tax": "18"}),
    usual(("BR-CO-14", "total tax is 19, the invoice says 0", "/totals/tax"),
          ("BR-CO-15", "total gross is 100, the invoice says 119", "/totals/gross"), **{"/totals/tax": ...}),
    usual(("BR-CO-16", "total due is 119, the invoice says 118", "/totals/due"), **{"/totals/due": "118"}),
    usual(("BR-CO-16", "total due is 118, the invoice says 119", "/totals/due"), **{"/totals/prepaid": "1"}),
    usual(("BR-CO-16", "total due is 119.01, the invoice says 119", "/totals/due"), **{"/totals/rounding": "0.01"}),
    # tax
    (untaxed("Z", **{"/taxes": []}),
     [("BR-CO-18", "an invoice needs a VAT breakdown", "/taxes"),
      ("BR-S-08", "the VAT breakdown lacks Z 0 %", "/taxes")]),
    (changed(EVERYTHING, {"/charges/0/tax_category": ...}),
     [("BR-32", "an allowance of the whole document needs a VAT category", "/allowances"),
      ("BR-S-08", "the group's sum is 15, the breakdown says 20", "/taxes/0/base")]),
    usual(("BR-S-08", "the VAT breakdown lacks S 7 %", "/taxes"),
          **{"/lines": [LINE, {**TWO, "tax": {"category": "S", "percent": "7"}}]}),
    usual(("BR-S-08", "two groups of S 19 %", "/taxes/0"),
          ("BR-S-08", "two groups of S 19 %", "/taxes/1"),
          ("BR-S-08", "the group's sum is 100, the breakdown says 0", "/taxes/1/base"),
          **{"/taxes": [*USUAL["taxes"], {**USUAL["taxes"][0], "base": "0", "amount": "0"}]}),
    usual(("BR-CO-14", "total tax is 19.01, the invoice says 19", "/totals/tax"),
          ("BR-CO-17", "19 % of 100 is 19.00, the breakdown says 19.01", "/taxes/0/amount"),
          **{"/taxes/0/amount": "19.01"}),
    *((untaxed(category, **more, **{"/taxes/0/amount": "0.01", "/totals/tax": "0.01", "/totals/gross": "100.01",
                                    "/totals/due": "100.01"}),
       [("BR-CO-17", "0 % of 100 is 0.00, the breakdown says 0.01", "/taxes/0/amount"),
        ("BR-AE-09", f"category {category} carries no tax (§ 14c UStG)", "/taxes/0/amount")])
      for category, more in (("Z", {}), ("E", {}), ("AE", BUYER_VAT), ("K", {**BUYER_VAT, **DELIVERED}), ("G", {}),
                             ("O", NO_VAT))),
    *((untaxed(category, **more, **{"/taxes/0/reason": ...}),
       [(f"BR-{category}-10", "needs the reason why no tax is charged", "/taxes/0/reason")])
      for category, more in (("E", {}), ("AE", BUYER_VAT), ("K", {**BUYER_VAT, **DELIVERED}), ("G", {}),
                             ("O", NO_VAT))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "findings"), BROKEN, ids=[f"{number} {case[1][0][0]}" for number, case in enumerate(BROKEN)]
)
def test_what_is_broken_is_found_with_its_rule_the_words_and_the_place(
    form: dict[str, Any], findings: list[tuple[str, str, str]]
) -> None:
    assert found(form) == findings


def test_what_cannot_be_read_from_json_is_found_in_a_value_too() -> None:
    good = Invoice.from_json(USUAL)
    line = good.lines[0]
    assert check(replace(good, number="  ")) == [Violation("BR-02", "an invoice needs a number", "/number")]
    assert check(replace(good, lines=(replace(line, name=" "),))) == [
        Violation("BR-25", "a line needs a name", "/lines/0/name")
    ]
    assert check(replace(good, lines=(replace(line, object=Identifier(" ")),))) == [
        Violation("CB-07", "an id is never empty", "/lines/0/object")
    ]
    empty = replace(good, lines=(), taxes=(), totals=replace(good.totals, lines=Decimal(0), net=Decimal(0),
                    tax=Decimal(0), gross=Decimal(0), due=Decimal(0)))  # fmt: skip
    assert check(empty) == [
        Violation("BR-16", "an invoice needs a line", "/lines"),
        Violation("BR-CO-18", "an invoice needs a VAT breakdown", "/taxes"),
    ]
    assert check(empty, e_invoice=False) == []
    assert [one.rule for one in check(replace(good, taxes=()), e_invoice=False)][:1] == ["BR-CO-14"]


AMOUNTS = [
    "/totals/lines", "/totals/allowances", "/totals/charges", "/totals/net", "/totals/tax", "/totals/gross",
    "/totals/prepaid", "/totals/rounding", "/totals/due", "/taxes/1/base", "/taxes/1/amount", "/lines/0/net",
    "/lines/0/allowances/0/amount",
]  # fmt: skip


@pytest.mark.parametrize("pointer", AMOUNTS)
def test_an_amount_of_an_e_invoice_has_two_decimals_at_most(pointer: str) -> None:
    finding = ("BR-DEC-09", "12.345 has more than two decimals, which EN 16931 cannot say", pointer)
    form = changed(EVERYTHING, {pointer: "12.345"})
    assert finding in found(form)
    assert finding not in found(form, e_invoice=False)


def test_a_currency_with_three_decimals_adds_up_on_paper_but_is_no_e_invoice() -> None:
    dinar = changed(USUAL, {"/lines/0/net": "100.005", "/lines/0/quantity": "10.0005", "/totals/lines": "100.005",
                            "/totals/net": "100.005", "/taxes/0/base": "100.005", "/taxes/0/amount": "19.001",
                            "/totals/tax": "19.001", "/totals/gross": "119.006", "/totals/due": "119.006",
                            "/currency": "KWD"})  # fmt: skip
    assert found(dinar, e_invoice=False, minor_digits=3) == []
    assert {rule for rule, _, _ in found(dinar, minor_digits=3)} == {"BR-DEC-09"}
    rounded_to_cents = [finding[2] for finding in found(dinar, e_invoice=False, minor_digits=2)]
    assert rounded_to_cents == ["/lines/0/net", "/taxes/0/amount"]


def test_a_currency_without_decimals_has_whole_taxes_but_prices_keep_cents() -> None:
    yen = changed(USUAL, {"/lines/0/net": "33.33", "/lines/0/quantity": "3.333", "/totals/lines": "33.33",
                          "/totals/net": "33.33", "/taxes/0/base": "33.33", "/taxes/0/amount": "6", "/totals/tax": "6",
                          "/totals/gross": "39.33", "/totals/due": "39.33", "/currency": "JPY"})  # fmt: skip
    assert found(yen, minor_digits=0) == []
    assert [rule for rule, _, _ in found(yen)] == ["BR-CO-17"]


def test_paper_needs_no_ids_and_addresses_but_must_add_up() -> None:
    bare = replace(Invoice.from_json(changed(USUAL, NO_VAT)), number="", buyer=replace(
        Invoice.from_json(USUAL).buyer, address=Address("")))  # fmt: skip
    assert check(bare, e_invoice=False) == []
    wrong = replace(bare, totals=replace(bare.totals, due=Decimal(1)))
    assert [one.rule for one in check(wrong, e_invoice=False)] == ["BR-CO-16"]


@pytest.mark.parametrize(("off", "fine"), [("0.00", True), ("0.01", True), ("1.00", True), ("1.01", False)])
def test_a_credit_note_may_give_back_tax_that_is_a_little_off(off: str, fine: bool) -> None:
    """Part credits round alone; the last one takes the rest. Up to 1.00, what BR-CO-17 allows; an invoice: nothing."""
    tax = Decimal(19) + Decimal(off)
    changes = {"/taxes/0/amount": str(tax), "/totals/tax": str(tax), "/totals/gross": str(tax + 100),
               "/totals/due": str(tax + 100)}  # fmt: skip
    credit = changed(USUAL, {**changes, "/type_code": "381", "/preceding": [{"number": "RE-0"}]})
    assert (found(credit) == []) is fine
    assert (found(changed(USUAL, changes)) == []) is (off == "0.00")


def test_prices_that_contain_the_tax_have_it_taken_out_of_their_sum() -> None:
    """3 x 9.99 with 19 % inside: tax round(29.97 x 19 / 119) = 4.79, net 25.18. 25.18 x 19 % alone would be 4.78."""
    inside = changed(USUAL, {
        "/lines/0/quantity": "3", "/lines/0/price": "25.18", "/lines/0/base_quantity": "3", "/lines/0/net": "25.18",
        "/lines/0/gross": "29.97", "/totals/lines": "25.18", "/totals/net": "25.18", "/taxes/0/base": "25.18",
        "/taxes/0/amount": "4.79", "/totals/tax": "4.79", "/totals/gross": "29.97", "/totals/due": "29.97",
    })  # fmt: skip
    assert found(inside) == []
    finding = ("BR-CO-17", "19 % of 25.18 is 4.78, the breakdown says 4.79", "/taxes/0/amount")
    assert found(changed(inside, {"/lines/0/gross": ...})) == [finding]
    # an allowance with tax inside takes its gross from the gross: 29.97 - 9.99 = 19.98, tax 3.19, net 16.79
    allowance = {"amount": "8.39", "gross": "9.99", "reason": "x", "tax_category": "S", "tax_percent": "19"}
    less = changed(inside, {
        "/allowances": [allowance], "/totals/allowances": "8.39", "/totals/net": "16.79", "/taxes/0/base": "16.79",
        "/taxes/0/amount": "3.19", "/totals/tax": "3.19", "/totals/gross": "19.98", "/totals/due": "19.98",
    })  # fmt: skip
    assert found(less) == []
    # taken off without its tax, 8.39 x 19 % = 1.59 would go from the whole 4.79
    finding = ("BR-CO-17", "19 % of 16.79 is 3.20, the breakdown says 3.19", "/taxes/0/amount")
    assert found(changed(less, {"/allowances/0/gross": ...})) == [finding]
    # an exempt group beside it is its own
    assert found(changed(EVERYTHING, {"/lines/1/gross": "30"})) == []


def test_no_more_findings_than_anyone_reads() -> None:
    lines = [{**LINE, "id": str(number), "unit": "GB", "net": "0"} for number in range(100)]
    assert len(found(changed(USUAL, {"/lines": lines}))) == VIOLATIONS_MAX == 50


@pytest.mark.parametrize(
    ("iban", "valid"),
    [
        ("DE02120300000000202051", True),
        ("DE02 1203 0000 0000 2020 51", True),
        ("de02120300000000202051", True),
        ("GB82WEST12345698765432", True),
        ("NO9386011117947", True),  # the shortest there is
        ("MT84MALT011000012345MTLCAST001S", True),
        ("DE03120300000000202051", False),
        ("DE02120300000000202015", False),
        ("XDE02120300000000202051", False),
        ("DE02", False),
        ("", False),
    ],
)
def test_an_iban_is_known_by_its_form_and_check_digits(iban: str, valid: bool) -> None:
    assert valid_iban(iban) is valid
