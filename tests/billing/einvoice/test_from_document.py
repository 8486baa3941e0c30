"""How a document's amounts, quantities and periods are said in EN 16931, and that nothing of it is computed anew."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.documents import Allowance, Corrects, Document, DocumentType, Line, TaxTotal
from billing.einvoice.checks import check, valid_iban
from billing.einvoice.cii import to_cii
from billing.einvoice.from_document import Issue, invoice_of
from billing.einvoice.model import Address, Identifier, Invoice, Party, Period, Preceding, plain
from billing.einvoice.parties import buyer_of, profile_of, seller_of
from billing.einvoice.units import unit_code
from billing.einvoice.words import WORDS
from billing.errors import InvalidInput

SELLER = Party("Seller GmbH", Address("DE"), vat_id="DE318204776", legal_id=Identifier("HRB 1"))
BUYER = Party("Buyer GmbH", Address("DE"), ids=(Identifier("acme"),), vat_id="DE241880935")
BERLIN = ZoneInfo("Europe/Berlin")


def at(*parts: int, zone: ZoneInfo = BERLIN) -> datetime:
    return datetime(*parts, tzinfo=zone).astimezone(UTC)  # type: ignore[arg-type, misc]


def line(amount: str = "10.00", quantity: str = "1", **given: Any) -> Line:
    usual: dict[str, Any] = {
        "subscription": "s1", "charge": "compute", "start": at(2026, 10, 1), "end": at(2026, 11, 1),
        "quantity": Decimal(quantity), "amount": Decimal(amount), "tax_category": "S", "tax_percent": Decimal(19),
    }  # fmt: skip
    return Line(**{**usual, **given})


def document(*lines: Line, type: DocumentType = "invoice", currency: str = "EUR", **given: Any) -> Document:
    net = sum((one.amount for one in lines), Decimal(0))
    tax = (net * Decimal("0.19")).quantize(Decimal("0.01"), "ROUND_HALF_UP")
    usual: dict[str, Any] = {
        "allowances": (), "taxes": (TaxTotal("S", Decimal(19), net, tax),), "net": net, "tax": tax,
        "gross": net + tax, "due": net + tax,
    }  # fmt: skip
    return Document("acme", type, currency, date(2026, 11, 1), tuple(lines), **{**usual, **given})


def invoice(*lines: Line, **given: Any) -> Invoice:
    return invoice_of(
        document(*lines, **given), Issue("RE-1", SELLER, BUYER, "Europe/Berlin", due_on=date(2026, 12, 1))
    )


def product(made: Invoice) -> Decimal:
    """Quantity x price / base quantity of the first line, as whoever reads the XML computes it."""
    first = made.lines[0]
    return first.quantity * first.price / (first.base_quantity or 1)


@pytest.mark.parametrize(
    ("amount", "quantity", "unit_price", "expected"),
    [
        ("10.00", "4", "2.50", ("4", "2.5", None)),  # the true unit price where it gives the amount
        ("0.12", "9999999", "0.000000012345", ("9999999", "0.000000012345", None)),
        ("1043.21", "1234567", None, ("1234567", "1043.21", "1234567")),  # tiers: the base quantity trick
        ("-27.42", "-5", "5.484", ("-5", "5.484", None)),
        ("-70.00", "1", None, ("-1", "70", "1")),  # a price is never negative: the quantity is
        ("-10.00", "5", "-2", ("-5", "2", None)),
        ("5.00", "0", None, ("1", "5", None)),  # a minimum without quantity
        ("-5.00", "0", None, ("-1", "5", None)),
        ("0.00", "0", None, ("0", "0", None)),
        ("0.00", "500", None, ("500", "0", "500")),  # all of it included
        ("29", "1", "28.60", ("1", "29", "1")),  # a price that does not give the amount is not the price
    ],
)
def test_quantity_and_price_give_the_amount(
    amount: str, quantity: str, unit_price: str | None, expected: tuple[str, str, str | None]
) -> None:
    price = None if unit_price is None else Decimal(unit_price)
    first = invoice(line(amount, quantity, unit_price=price)).lines[0]
    base = None if first.base_quantity is None else plain(first.base_quantity)
    assert (plain(first.quantity), plain(first.price), base) == expected


@given(
    amount=st.decimals(min_value=-10_000_000, max_value=10_000_000, places=2),
    quantity=st.decimals(min_value=-10_000_000, max_value=10_000_000, places=12),
    allowance=st.decimals(min_value=0, max_value=1_000, places=2),
    unit_price=st.none() | st.decimals(min_value=-1_000, max_value=1_000, places=12),
)
def test_whatever_made_an_amount_the_line_adds_up_to_the_cent(
    amount: Decimal, quantity: Decimal, allowance: Decimal, unit_price: Decimal | None
) -> None:
    made = invoice(line(str(amount), str(quantity), allowance=allowance.copy_sign(amount), unit_price=unit_price))
    assert check(made) == []
    assert made.lines[0].price >= 0
    assert made.lines[0].net == amount


@pytest.mark.parametrize(
    ("start", "end", "zone", "expected"),
    [
        (at(2026, 10, 1), at(2026, 11, 1), "Europe/Berlin", (date(2026, 10, 1), date(2026, 10, 31))),  # 745 hours
        (at(2026, 12, 1), at(2027, 1, 1), "Europe/Berlin", (date(2026, 12, 1), date(2026, 12, 31))),
        (at(2026, 10, 20), at(2026, 10, 20), "Europe/Berlin", (date(2026, 10, 20), date(2026, 10, 20))),
        (at(2026, 10, 1), at(2026, 10, 12, 15, 30), "Europe/Berlin", (date(2026, 10, 1), date(2026, 10, 12))),
        (at(2026, 10, 1), at(2026, 11, 1), "America/New_York", (date(2026, 9, 30), date(2026, 10, 31))),
    ],
)
def test_a_half_open_period_becomes_first_and_last_day_in_the_tenant_s_zone(
    start: datetime, end: datetime, zone: str, expected: tuple[date, date]
) -> None:
    issue = Issue("RE-1", SELLER, BUYER, zone)
    assert invoice_of(document(line(start=start, end=end)), issue).lines[0].period == Period(*expected)


def test_the_document_s_period_covers_all_lines() -> None:
    made = invoice(line(), line(start=at(2026, 11, 1), end=at(2026, 12, 1)))
    assert made.period == Period(date(2026, 10, 1), date(2026, 11, 30))
    assert made.delivery is not None
    assert made.delivery.delivered_on == date(2026, 11, 30)


def test_a_discount_is_an_allowance_and_one_taken_back_a_charge() -> None:
    first, second = invoice(
        line("90.00", allowance=Decimal("10.00")), line("-9.00", "-1", allowance=Decimal("-1.00"))
    ).lines
    assert [one.amount for one in first.allowances] == [Decimal("10.00")]
    assert (second.allowances, [one.amount for one in second.charges]) == ((), [Decimal("1.00")])


def test_a_credit_note_names_what_it_credits_with_the_date_and_asks_for_no_payment() -> None:
    credited = document(line(corrects=Corrects("RE-7", 2)), line(corrects=Corrects("RE-8", 1)), type="credit_note",
                        refers_to="RE-7")  # fmt: skip
    made = invoice_of(credited, Issue("GS-1", SELLER, BUYER, "Europe/Berlin", issued_on_of={"RE-7": date(2026, 10, 1)}))
    assert made.type_code == "381"
    assert made.preceding == (Preceding("RE-7", date(2026, 10, 1)), Preceding("RE-8"))
    assert made.payment is None
    assert made.due_on is None
    assert check(made) == []


def test_outside_the_scope_no_vat_id_and_no_rate_are_named() -> None:
    made = invoice(line(tax_category="O", tax_percent=Decimal(0)),
                   taxes=(TaxTotal("O", Decimal(0), Decimal("10.00"), Decimal(0)),), tax=Decimal(0),
                   gross=Decimal("10.00"), due=Decimal("10.00"))  # fmt: skip
    assert (made.seller.vat_id, made.buyer.vat_id, made.lines[0].tax.percent) == (None, None, None)
    assert made.taxes[0].reason == "Nicht im Inland steuerbare Leistung"
    assert check(made) == []


def test_reverse_charge_says_the_words_of_the_law() -> None:
    for language, expected in (("de", "Steuerschuldnerschaft des Leistungsempfängers"), ("en", "Reverse charge")):
        assert WORDS[language].tax_reasons["AE"].startswith(expected)


def test_allowances_of_the_document_keep_their_tax_group() -> None:
    allowance = Allowance("promotional", Decimal("2.00"), "S", Decimal(19))
    made = invoice(line("12.00"), allowances=(allowance,), net=Decimal("10.00"), tax=Decimal("1.90"),
                   taxes=(TaxTotal("S", Decimal(19), Decimal("10.00"), Decimal("1.90")),), gross=Decimal("11.90"),
                   due=Decimal("6.90"), prepaid=Decimal("5.00"))  # fmt: skip
    assert check(made) == []
    assert made.totals.prepaid == Decimal("5.00")
    assert [(one.amount, one.tax_category) for one in made.allowances] == [(Decimal("2.00"), "S")]


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("GB", ("E34", None)), ("MB", ("4L", None)), ("Month", ("MON", None)), ("", ("C62", None)), ("h", ("HUR", None)),
     ("token", ("C62", "token")), ("GB-month", ("C62", "GB-month"))],
)  # fmt: skip
def test_a_unit_gets_its_code_or_keeps_its_name(unit: str, expected: tuple[str, str | None]) -> None:
    assert unit_code(unit) == expected


def test_an_explanation_with_an_endless_fraction_is_cut_and_not_lost() -> None:
    made = invoice(
        line(
            "0.33",
            explanation={"exact": "1/3", "tiers": [{"up_to": None, "quantity": "1", "unit": "1/3", "amount": "1/3"}]},
        )
    )
    assert made.records[0].exact == Decimal("0.333333333333")
    assert made.lines[0].attributes[0].value == "1 x 0.333333333333 = 0.333333333333"


def test_neighbouring_lines_of_a_subscription_are_one_group_with_its_sum() -> None:
    made = invoice(line("1.00"), line("2.00"), line("4.00", subscription="s2"), line("8.00"))
    assert [(one.subscription, one.lines, one.net) for one in made.groups] == [
        ("s1", ("1", "2"), Decimal("3.00")), ("s2", ("3",), Decimal("4.00")), ("s1", ("4",), Decimal("8.00")),
    ]  # fmt: skip


# -- Checks ------------------------------------------------------------------------------------------------------------


def rules(made: Invoice) -> list[str]:
    return [one.rule for one in check(made)]


def test_what_no_official_rule_notices_is_noticed() -> None:
    from dataclasses import replace

    good = invoice(line())
    assert rules(good) == []
    assert rules(replace(good, due_on=date(2026, 10, 1))) == ["CB-01"]
    assert "CB-02" in rules(replace(good, lines=(good.lines[0], good.lines[0])))
    assert rules(replace(good, lines=(replace(good.lines[0], unit="GB"),))) == ["CB-06"]
    tax = replace(good.taxes[0], amount=good.taxes[0].amount + Decimal("0.01"))
    assert "BR-CO-17" in rules(replace(good, taxes=(tax,)))
    assert rules(replace(good, lines=(replace(good.lines[0], price=Decimal("9.99")),))) == ["PEPPOL-EN16931-R120"]
    assert rules(replace(good, buyer=replace(BUYER, address=Address("Germany")))) == ["BR-11"]
    assert rules(replace(good, totals=replace(good.totals, due=Decimal(0)))) == ["BR-CO-16"]
    assert rules(replace(good, seller=Party("S", Address("DE"), tax_number="1/2"))) == ["BR-CO-26"]


@pytest.mark.parametrize(
    ("iban", "valid"), [("DE02120300000000202051", True), ("DE03120300000000202051", False), ("DE02", False)]
)
def test_an_iban_is_known_by_its_check_digits(iban: str, valid: bool) -> None:
    assert valid_iban(iban) is valid


# -- JSON and XML ------------------------------------------------------------------------------------------------------


def test_every_bad_field_is_named_by_a_pointer() -> None:
    form = invoice(line()).to_json()
    form["colour"] = "blue"
    form["issued_on"] = "yesterday"
    form["lines"][0]["quantity"] = 1.5
    form["lines"][0]["tax"]["category"] = "AA"
    form["seller"]["name"] = " "
    form["buyer"]["address"] = {}
    del form["number"]
    with pytest.raises(InvalidInput) as refused:
        Invoice.from_json(form)
    assert {one.pointer for one in refused.value.errors} == {
        "/colour", "/issued_on", "/lines/0/quantity", "/lines/0/tax/category", "/seller/name",
        "/number",
    }  # fmt: skip


@pytest.mark.parametrize("form", [None, [], "x", 5])
def test_what_is_no_object_is_refused(form: object) -> None:
    with pytest.raises(InvalidInput):
        Invoice.from_json(form)


def test_marks_of_xml_in_a_name_are_escaped_and_control_characters_refused() -> None:
    hostile = Party("<script>&\"' DROP TABLE x;--", Address("DE"), ids=(Identifier("a"),))
    xml = to_cii(invoice_of(document(line()), Issue("RE-1", SELLER, hostile, "Europe/Berlin"))).decode()
    assert "<ram:Name>&lt;script&gt;&amp;\"' DROP TABLE x;--</ram:Name>" in xml
    nul = Party("a\x00b", Address("DE"))
    with pytest.raises(InvalidInput, match="control character"):
        to_cii(invoice_of(document(line()), Issue("RE-1", SELLER, nul, "Europe/Berlin")))


def test_three_decimals_cannot_be_said_in_the_xml() -> None:
    made = invoice(line("1.234"), currency="KWD")
    with pytest.raises(InvalidInput, match="two decimals"):
        to_cii(made)


# -- Parties -----------------------------------------------------------------------------------------------------------


def test_forms_of_customer_and_legal_entity_become_parties() -> None:
    seller = seller_of({"name": "S GmbH", "vat_id": "DE 318 204 776", "directors": ["A", "B"], "court": "Bremen",
                        "bank": {"name": "Bank", "iban": "DE02 1203 0000 0000 2020 51", "bic": ""}}, "DE")  # fmt: skip
    assert seller.party.vat_id == "DE318204776"
    assert seller.accounts[0].iban == "DE02120300000000202051"
    assert seller.accounts[0].bic is None
    assert (seller.directors, seller.party.legal_info) == ("A, B", "A, B, Bremen")
    buyer = buyer_of({"code": "acme", "country": "AT", "address": {"city": "Wien"}}, "DE")
    assert (buyer.name, buyer.address.country, buyer.ids[0].id) == ("acme", "AT", "acme")


def test_an_e_invoice_is_made_where_data_allow_it_unless_the_customer_says_otherwise() -> None:
    placed = Party("B", Address("DE", city="Bremen"))
    assert profile_of({}, SELLER, placed, 2)
    assert not profile_of({}, SELLER, placed, 3)
    assert not profile_of({}, SELLER, BUYER, 2)
    assert not profile_of({}, Party("S", Address("DE")), placed, 2)
    assert not profile_of({"einvoice": "none"}, SELLER, placed, 2)
    assert profile_of({"einvoice": "factur-x"}, SELLER, BUYER, 3)


@pytest.mark.parametrize(
    ("count", "end"), [(2, "; Stufe 2: 10 x 0,5 + 1 = 6"), (25, "; Stufe 20: 10 x 0,5 + 1 = 6; ...")]
)
def test_tiers_are_said_as_text_and_as_attributes_beside_an_exact_amount(count: int, end: str) -> None:
    """BT-154 and BG-32: quantity x price / base quantity is the amount, whatever tiers made it."""
    tier = {"up_to": None, "quantity": "10", "unit": "0.5", "flat": "1", "amount": "6"}
    made = invoice(line(str(6 * count), str(10 * count), explanation={"tiers": [tier] * count}))
    assert product(made) == Decimal(6 * count)
    first = made.lines[0]
    assert first.description is not None
    assert first.description.startswith("Stufe 1: 10 x 0,5 + 1 = 6; ")
    assert first.description.endswith(end)
    assert [one.name for one in first.attributes] == [f"Stufe {number}" for number in range(1, count + 1)]
    assert invoice(line()).lines[0].description is None
