"""Documents with every kind of line, and what becomes of each in EN 16931: golden forms, to be read beside this."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from billing.documents import Allowance, Corrects, Document, Line, Member, TaxTotal
from billing.einvoice.checks import check
from billing.einvoice.from_document import ATTRIBUTES_MAX, Issue, invoice_of
from billing.einvoice.model import Address, Contact, Identifier, Invoice, Note, Party, Transfer, plain
from billing.einvoice.parties import Seller, buyer_of, profile_of, seller_of
from billing.einvoice.units import unit_code
from billing.einvoice.words import WORDS, day, figure, words
from billing.errors import FieldError, InvalidInput

GOLDEN = Path(__file__).parents[2] / "golden" / "einvoice"
SELLER = Party("Nordwind Cloud GmbH", Address("DE"), vat_id="DE318204776", legal_id=Identifier("HRB 1"))
BUYER = Party("Hafenkontor GmbH", Address("DE", city="Hamburg"), ids=(Identifier("acme"),), vat_id="DE241880935")
BERLIN = ZoneInfo("Europe/Berlin")
OCTOBER = {
    "start": datetime(2026, 10, 1, tzinfo=BERLIN).astimezone(UTC),
    "end": datetime(2026, 11, 1, tzinfo=BERLIN).astimezone(UTC),
}


def line(charge: str, amount: str, quantity: str, **given: Any) -> Line:
    for key in ("allowance", "unit_price", "gross", "gross_allowance"):
        if key in given:
            given[key] = Decimal(given[key])
    usual: dict[str, Any] = {"subscription": "s1", "plan": "scale", "plan_version": 3, "tax_category": "S",
                             "tax_percent": Decimal(19), **OCTOBER}  # fmt: skip
    return Line(charge=charge, amount=Decimal(amount), quantity=Decimal(quantity), **{**usual, **given})


LINES = (
    line("base", "29.00", "1", name="Grundpreis", unit="month", unit_price="29", kind="recurring"),
    line("seats", "20.00", "3", unit="seat", unit_price="10", explanation={
        "proration": {"by": "day", "active": "20", "full": "30", "fraction": "2/3"}}),
    line("burst", "5.00", "2", unit="h", explanation={"proration": {"by": "second", "active": "7", "full": "9"}}),
    line("storage", "90.00", "1100", unit="GB", allowance="10.00", explanation={
        "exact": "100", "included": "100", "tiers": [
            {"up_to": "1000", "quantity": "900", "unit": "0.1", "amount": "90"},
            {"up_to": None, "quantity": "100", "unit": "0.05", "flat": "5", "amount": "10"}]}),
    line("requests", "0.90", "1234567", unit="request", explanation={"exact": "0.9", "included": "1234000"}),
    line("traffic", "4.00", "7", unit="TB", when={"region": "eu", "path": ""}, explanation={
        "package": {"size": "5", "count": "2", "amount": "2"},
        "dimensions": [{"values": {"region": "eu", "class": "cold"}, "quantity": "7", "amount": "4"}]}),
    line("storage", "-1.50", "-10", unit="GB", correction=True, corrects=Corrects("RE-9", 4), allowance="-0.50",
         explanation={"late": True, "rated": {"quantity": "90", "amount": "8"},
                      "billed": {"document": "RE-9", "quantity": "100", "amount": "10"}}),
    line("minimum", "12.60", "0", kind="minimum", plan_version=4),
)  # fmt: skip


def usual(**given: Any) -> Document:
    allowances = (Allowance("promotional", Decimal("10.00"), "S", Decimal(19)),
                  Allowance("discount", Decimal("50.00"), "S", Decimal(19)))  # fmt: skip
    form: dict[str, Any] = {
        "customer": "acme", "type": "invoice", "currency": "EUR", "date": date(2026, 11, 1), "lines": LINES,
        "allowances": allowances, "taxes": (TaxTotal("S", Decimal(19), Decimal("100.00"), Decimal("19.00")),),
        "net": Decimal("100.00"), "tax": Decimal("19.00"), "gross": Decimal("119.00"), "due": Decimal("114.00"),
        "prepaid": Decimal("5.00"), **given,
    }  # fmt: skip
    return Document(**form)


def issue(**given: Any) -> Issue:
    return Issue(**{"number": "RE-1", "seller": SELLER, "buyer": BUYER, "timezone": "Europe/Berlin",
                    "due_on": date(2026, 12, 1), **given})  # fmt: skip


def family() -> Invoice:
    """Two customers' lines on the document of who pays, at prices that contain the tax (3 x 9.99 = 29.97)."""
    lines = (
        line("seat", "25.18", "3", unit_price="9.99", gross="29.97", explanation={"exact": "29.97"}),
        line("seat", "7.56", "1", unit_price="9.99", gross="8.99", allowance="0.84", gross_allowance="1.00",
             customer="child"),
        line("extra", "8.40", "1", customer="child"),
    )  # fmt: skip
    credit = Allowance("promotional", Decimal("1.00"), "S", Decimal(19), gross=Decimal("1.19"))
    made = usual(lines=lines, allowances=(credit,), members=(Member("child", "Tochter AG"),), net=Decimal("40.14"),
                 tax=Decimal("7.63"), gross=Decimal("47.77"), due=Decimal("47.77"), prepaid=Decimal(0),
                 taxes=(TaxTotal("S", Decimal(19), Decimal("40.14"), Decimal("7.63")),))  # fmt: skip
    return invoice_of(made, issue(language="en", due_on=None))


def credit_note() -> Invoice:
    lines = (line("base", "-29.00", "-1", corrects=Corrects("RE-1", 1), unit_price="29"),
             line("storage", "-9.00", "-100", corrects=Corrects("RE-1", 4), allowance="-1.00"))  # fmt: skip
    totals = {"net": Decimal("-38.00"), "tax": Decimal("-7.22"), "gross": Decimal("-45.22"), "due": Decimal("-45.22")}
    made = usual(type="credit_note", lines=lines, allowances=(), prepaid=Decimal(0), refers_to="RE-1", **totals,
                 taxes=(TaxTotal("S", Decimal(19), totals["net"], totals["tax"]),))  # fmt: skip
    account = (Transfer("DE02120300000000202051"),)
    return invoice_of(made, issue(number="GS-1", language="en", accounts=account, issued_on_of={
        "RE-1": date(2026, 10, 1)}))  # fmt: skip


RICH = {
    "rich-de": lambda: invoice_of(usual(), issue(
        accounts=(Transfer("DE02120300000000202051", "Nordwind", "BYLADEM1001"),), order="PO-1", contract="C-2",
        buyer_reference="04011000-12345-03", notes=(Note("Vielen Dank"),),
        issued_on_of={"RE-9": date(2026, 10, 1)})),
    "rich-en": lambda: invoice_of(usual(), issue(language="en")),
    "family-en": family,
    "credit-note-en": credit_note,
}  # fmt: skip


@pytest.mark.parametrize("name", RICH)
def test_a_rich_document_in_the_terms_of_the_standard_is_the_golden_one(name: str) -> None:
    made = RICH[name]()
    assert check(made) == []
    path = GOLDEN / f"{name}.json"
    text = json.dumps(made.to_json(), ensure_ascii=False, indent=1) + "\n"
    if os.environ.get("CLOUDBILLING_REWRITE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


# -- Header ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "terms"),
    [
        ({"due": Decimal("0.01")}, "Zahlbar bis 01.12.2026 ohne Abzug."),
        ({"due": Decimal(0)}, "Es ist nichts zu zahlen."),
        ({"due": Decimal("-0.01")}, "Es ist nichts zu zahlen."),
        ({"type": "credit_note"}, "Der Betrag wird gutgeschrieben."),
    ],
)
def test_what_is_to_be_paid_is_said_in_words(given: dict[str, Any], terms: str) -> None:
    assert invoice_of(usual(**given), issue()).payment_terms == terms


def test_without_a_due_date_the_day_of_the_document_is_named_in_its_language() -> None:
    words = [invoice_of(usual(), issue(due_on=None, language=one)).payment_terms for one in ("de", "en")]
    assert words == ["Zahlbar bis 01.11.2026 ohne Abzug.", "Payable by 1 November 2026 without deduction."]


@pytest.mark.parametrize(("currency", "code"), [("EUR", "58"), ("CHF", "30")])
def test_a_transfer_in_euro_is_one_of_sepa(currency: str, code: str) -> None:
    payment = invoice_of(usual(currency=currency), issue(accounts=(Transfer("DE1"),))).payment
    assert payment is not None
    assert (payment.code, payment.reference, payment.transfer) == (code, "RE-1", (Transfer("DE1"),))


CATEGORIES = {
    "S": (None, None),
    "AE": ("Steuerschuldnerschaft des Leistungsempfängers", "VATEX-EU-AE"),
    "K": ("Steuerfreie innergemeinschaftliche Lieferung", "VATEX-EU-IC"),
    "G": ("Steuerfreie Ausfuhrlieferung", "VATEX-EU-G"),
    "O": ("Nicht im Inland steuerbare Leistung", "VATEX-EU-O"),
    "E": ("Steuerfreie Leistung", None),
    "Z": (None, None),
}


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category_of_tax_says_why_and_where_the_standard_wants_more(category: Any) -> None:
    percent = Decimal(19) if category == "S" else Decimal(0)
    allowance = Allowance("discount", Decimal("1.00"), category, percent)
    made = invoice_of(
        usual(lines=tuple(replace(one, tax_category=category, tax_percent=percent) for one in LINES[:2]),
              allowances=(allowance,), taxes=(TaxTotal(category, percent, Decimal(48), Decimal(0)),)), issue(),
    )  # fmt: skip
    shown = None if category == "O" else percent  # BR-O-05: no rate at all
    assert (made.taxes[0].reason, made.taxes[0].reason_code) == CATEGORIES[category]
    assert (made.taxes[0].percent, made.lines[0].tax.percent, made.allowances[0].tax_percent) == (shown, shown, shown)
    assert (made.seller.vat_id is None, made.buyer.vat_id is None) == (category == "O", category == "O")
    assert made.delivery is not None
    assert made.delivery.address == (BUYER.address if category == "K" else None)  # BR-IC-12
    own = invoice_of(usual(taxes=(TaxTotal(category, percent, Decimal(48), Decimal(0)),)),
                     issue(tax_reasons={category: "Kleinunternehmer"}))  # fmt: skip
    assert own.taxes[0].reason == "Kleinunternehmer"


def test_a_document_without_lines_has_no_period_and_no_day_of_delivery() -> None:
    made = invoice_of(usual(lines=()), issue())
    assert (made.period, made.delivery, made.groups, made.records) == (None, None, (), ())
    assert made.totals.lines == 0


def test_goodwill_alone_says_that_it_corrects_no_single_invoice() -> None:
    made = invoice_of(usual(type="credit_note"), issue(notes=(Note("Danke"),)))
    assert [one.text for one in made.notes] == ["Danke"]  # it names RE-9, which a line of it corrects
    made = invoice_of(usual(type="credit_note", lines=LINES[:1]), issue(notes=(Note("Danke"),)))
    assert [one.text for one in made.notes] == ["Danke", "Nachlass ohne Bezug auf eine einzelne Rechnung."]


def test_a_language_without_words_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidInput) as refused:
        words("fr")
    detail = "there are no words for the language 'fr'; known are de, en"
    assert (refused.value.detail, refused.value.errors) == (detail, (FieldError("/language", detail),))


# -- Lines -------------------------------------------------------------------------------------------------------------


def test_a_price_of_all_steps_keeps_so_many_attributes_and_the_rest_in_its_record() -> None:
    tiers = [{"up_to": str(n), "quantity": "1", "unit": "1", "amount": "1"} for n in range(ATTRIBUTES_MAX + 5)]
    made = invoice_of(usual(lines=(line("a", "205.00", "205", explanation={"tiers": tiers}),)), issue())
    assert len(made.lines[0].attributes) == ATTRIBUTES_MAX == 200
    assert len(made.records[0].rows) == 205


@pytest.mark.parametrize(
    ("quantity", "included", "rows"),
    [
        ("150", "100", [("included", "100"), ("beyond", "50")]),
        ("100", "100", [("included", "100")]),
        ("40", "100", [("included", "40")]),
        ("-5", "100", [("included", "0")]),
        ("40", "0", []),
    ],
)
def test_a_record_says_what_was_included_and_what_went_beyond(
    quantity: str, included: str, rows: list[tuple[str, str]]
) -> None:
    made = invoice_of(usual(lines=(line("a", "5.00", quantity, explanation={"included": included, "exact": "5"}),)),
                      issue())  # fmt: skip
    shown = [
        (row.kind, plain(row.quantity)) for record in made.records for row in record.rows if row.quantity is not None
    ]
    assert shown == rows
    note = None if included == "0" else f"{included} frei"
    assert made.lines[0].note == note


def test_a_price_with_tax_is_shown_only_where_it_explains_the_amount() -> None:
    def shown(**given: Any) -> Decimal | None:
        return invoice_of(usual(lines=(line("a", "25.18", "3", **given),)), issue()).lines[0].price_with_tax

    assert shown(unit_price="9.99", gross="29.97") == Decimal("9.99")
    assert shown(unit_price="9.99", gross="26.97", gross_allowance="3.00", allowance="2.52") == Decimal("9.99")
    assert shown(unit_price="9.99", gross="29.98") is None
    assert shown(unit_price="-9.99", gross="-29.97") is None
    assert shown(gross="29.97") is None
    assert shown(unit_price="9.99") is None
    assert shown(unit_price="0", gross="0.00") == 0


# -- Words, figures, units ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "german", "english"),
    [
        ("5000", "5.000", "5,000"),
        ("1234567.5", "1.234.567,5", "1,234,567.5"),
        ("-5000.250", "-5.000,25", "-5,000.25"),
        ("0.000000000001", "0,000000000001", "0.000000000001"),
        ("0", "0", "0"),
    ],
)
def test_a_figure_inside_a_sentence_is_written_as_its_language_does(value: str, german: str, english: str) -> None:
    assert (figure(Decimal(value), WORDS["de"]), figure(Decimal(value), WORDS["en"])) == (german, english)


@pytest.mark.parametrize(("month", "english"), list(enumerate(WORDS["en"].months, start=1)))
def test_a_day_inside_a_sentence_is_written_as_its_language_does(month: int, english: str) -> None:
    assert day(date(2026, month, 9), WORDS["de"]) == f"09.{month:02}.2026"
    assert day(date(2026, month, 9), WORDS["en"]) == f"9 {date(2000, month, 1):%B} 2026" == f"9 {english} 2026"


def test_a_unit_is_known_whatever_its_case_and_blanks() -> None:
    assert unit_code(" KWh ") == ("KWH", None)
    assert unit_code(" My Thing ") == ("C62", "My Thing")


# -- Parties -----------------------------------------------------------------------------------------------------------

ENTITY: dict[str, Any] = {
    "name": "Nordwind Cloud GmbH",
    "vat_id": "DE 318 204 776",
    "tax_number": "60/123/45678",
    "legal_id": " HRB 40417 ",
    "court": "Amtsgericht Bremen",
    "directors": ["Dr. Inken Thomsen", "Jonas Falk"],
    "address": {"street": "Am Kornspeicher 4", "line_two": "Haus B", "line_three": "Hof", "post_code": "28217",
                "city": "Bremen", "subdivision": "HB"},
    "contact": {"name": "Lasse Brandt", "phone": "+49 421 5550 142", "email": "rechnung@nordwind.example"},
    "bank": {"name": "Weserbank", "iban": "DE02 1203 0000 0000 2020 51", "bic": "BYLA DE M1001"},
    "logo": "<svg/>",
}  # fmt: skip


def test_a_legal_entity_becomes_a_seller_with_all_that_its_letterhead_shows() -> None:
    address = Address("AT", "Am Kornspeicher 4", "Haus B", "Hof", "Bremen", "28217", "HB")
    contact = Contact("Lasse Brandt", "+49 421 5550 142", "rechnung@nordwind.example")
    directors = "Dr. Inken Thomsen, Jonas Falk"
    party = Party("Nordwind Cloud GmbH", address, legal_id=Identifier("HRB 40417"), vat_id="DE318204776",
                  legal_info=f"{directors}, Amtsgericht Bremen", tax_number="60/123/45678", contact=contact,
                  )  # fmt: skip
    account = Transfer("DE02120300000000202051", "Nordwind Cloud GmbH", "BYLADEM1001")
    assert seller_of(ENTITY, "AT") == Seller(party, (account,), "Weserbank", directors, "Amtsgericht Bremen", "<svg/>")


def test_what_a_form_does_not_say_is_not_said() -> None:
    assert seller_of({"name": "S"}, "DE") == Seller(Party("S", Address("DE")))
    assert buyer_of({"code": "c"}, "DE") == Party("c", Address("DE"), ids=(Identifier("c"),))
    blank = {"code": "c", "name": " ", "vat_id": "", "legal_id": None, "contact": {"name": " "}, "address": None}
    assert buyer_of(blank, "DE") == Party("c", Address("DE"), ids=(Identifier("c"),))
    assert seller_of({"name": "S", "court": "AG"}, "DE").party.legal_info == "AG"


def test_a_customer_becomes_a_buyer_by_his_code() -> None:
    form = {"code": "K-1", "name": "Fjord AS", "country": "NO", "legal_id": "77", "vat_id": "NO 1 MVA",
            "tax_number": "5", "address": {"city": "Hamar"}, "contact": {"phone": "1"}}  # fmt: skip
    assert buyer_of(form, "DE") == Party(
        "Fjord AS", Address("NO", city="Hamar"), ids=(Identifier("K-1"),), legal_id=Identifier("77"), vat_id="NO1MVA",
        tax_number="5", contact=Contact(phone="1"),
    )  # fmt: skip
    inner = {**form, "address": {"city": "Hamar", "country": "SE"}, "contact": {"email": "a@b.example"}}
    assert buyer_of(inner, "DE").address.country == "SE"
    assert buyer_of(inner, "DE").contact == Contact(email="a@b.example")


@pytest.mark.parametrize(
    ("seller", "buyer", "digits", "wanted"),
    [
        (Party("S", Address("DE"), vat_id="1"), Address("DE", city="B"), 2, True),
        (Party("S", Address("DE"), legal_id=Identifier("1")), Address("DE", street="B"), 0, True),
        (Party("S", Address("DE"), ids=(Identifier("1"),)), Address("DE", city="B"), 2, True),
        (Party("S", Address("DE"), tax_number="1"), Address("DE", city="B"), 2, False),
        (Party("S", Address("DE"), vat_id="1"), Address("DE", city="B"), 3, False),
        (Party("S", Address("DE"), vat_id="1"), Address("DE"), 2, False),
        (Party("S", Address("DE"), vat_id="1"), Address("", city="B"), 2, False),
        (Party("S", Address(""), vat_id="1"), Address("DE", city="B"), 2, False),
    ],
)
def test_an_e_invoice_needs_an_identified_seller_and_two_addresses(
    seller: Party, buyer: Address, digits: int, wanted: bool
) -> None:
    assert (profile_of({}, seller, Party("B", buyer), digits) == "en16931") is wanted
    assert profile_of({"einvoice": "none"}, seller, Party("B", buyer), digits) is None
    assert profile_of({"einvoice": "factur-x"}, seller, Party("B", buyer), digits) == "en16931"
