"""Every business term of EN 16931: read from JSON, written to JSON and XML, left out; and every word of a refusal."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from maximal import EVERYTHING, OUTSIDE, changed

from billing.einvoice import model
from billing.einvoice.cii import to_cii
from billing.einvoice.model import Identifier, Invoice, Transfer, plain, read
from billing.einvoice.terms import with_term
from billing.errors import FieldError, InvalidInput

GOLDEN = Path(__file__).parents[2] / "golden" / "einvoice"
FORMS = {"everything": EVERYTHING, "outside": OUTSIDE}


def xml_of(form: dict[str, Any]) -> list[str]:
    """The XML, an element a line."""
    return to_cii(Invoice.from_json(form)).decode().replace("><", ">\n<").splitlines()


def set_fields(value: object) -> Iterator[tuple[str, str]]:
    """Class and name of each field below a value that is not empty."""
    if isinstance(value, tuple):
        for one in value:
            yield from set_fields(one)
    elif is_dataclass(value):
        for field in fields(value):
            inner = getattr(value, field.name)
            if inner not in (None, (), ""):
                yield type(value).__name__, field.name
                yield from set_fields(inner)


def test_the_two_invoices_have_every_term_that_the_model_knows() -> None:
    have = {one for form in FORMS.values() for one in set_fields(Invoice.from_json(form))}
    kinds = [kind for kind in vars(model).values() if isinstance(kind, type) and kind.__module__ == model.__name__]
    assert len(kinds) > 20
    assert {(kind.__name__, field.name) for kind in kinds for field in fields(kind)} == have


@pytest.mark.parametrize("name", FORMS)
def test_the_json_form_is_what_was_read(name: str) -> None:
    made = Invoice.from_json(FORMS[name])
    standard = {"profile": model.EN_16931}  # what is not said is the profile of the standard
    assert made.to_json() == {**standard, **FORMS[name]}
    assert Invoice.from_json(made.to_json()) == made


@pytest.mark.parametrize("name", FORMS)
def test_the_xml_of_every_term_is_the_golden_one(name: str) -> None:
    """`tests/pipelines/test_golden_invoices.py` holds the official rules against the same files."""
    path = GOLDEN / f"{name}.xml"
    text = "\n".join(xml_of(FORMS[name])) + "\n"
    if os.environ.get("CLOUDBILLING_REWRITE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def terms(form: object, pointer: str = "") -> Iterator[str]:
    """Pointers to everything in a form that can be left out: keys and entries of lists."""
    if isinstance(form, dict):
        entries: list[tuple[str, object]] = list(form.items())
    elif isinstance(form, list):
        entries = [(str(number), one) for number, one in enumerate(form)]
    else:
        return
    for key, value in entries:
        yield f"{pointer}/{key}"
        yield from terms(value, f"{pointer}/{key}")


def without_attributes(lines: list[str]) -> list[str]:
    return [re.sub(' [a-zA-Z]+="[^"]*"', "", line) for line in lines]


@pytest.mark.parametrize("name", FORMS)
def test_a_term_that_is_left_out_takes_its_elements_away_and_no_other(name: str) -> None:
    form = FORMS[name]
    whole = xml_of(form)
    needed: dict[str, tuple[FieldError, ...]] = {}
    for pointer in terms(form):
        try:
            made = xml_of(changed(form, {pointer: ...}))
        except InvalidInput as refused:
            if not refused.errors[0].detail.startswith(("there is no line", "each line")):  # of headings and records
                needed[pointer] = refused.errors
            continue
        if not re.search("scheme|attachments/./name|taxes/./percent|payment/transfer$", pointer):
            rest = iter(without_attributes(whole))
            assert all(line in rest for line in without_attributes(made)), pointer  # the others, in the same order
        assert not any(re.fullmatch(r"<ram:(\w+)[^>]*></ram:\1>", line) for line in made), pointer
    assert needed == {pointer: (FieldError(pointer, with_term("is needed", pointer)),) for pointer in needed}
    assert {"/number", "/seller/address", "/lines/0/tax/category"} <= set(needed)


# -- Rules of single elements ------------------------------------------------------------------------------------------


def element(name: str, lines: list[str]) -> list[str]:
    """What stands in the elements of a name."""
    return [found[1] for line in lines if (found := re.match(rf"<ram:{name}[^>]*>(.+)</ram:", line))]


def test_ids_without_a_scheme_come_first_as_the_schema_wants() -> None:
    ids = [{"id": "1", "scheme": "0088"}, {"id": "2"}, {"id": "3", "scheme": "0060"}]
    lines = [line for line in xml_of(changed(EVERYTHING, {"/buyer/ids": ids})) if "ID" in line]
    at = lines.index("<ram:ID>2</ram:ID>")
    wanted = ['<ram:GlobalID schemeID="0088">1</ram:GlobalID>', '<ram:GlobalID schemeID="0060">3</ram:GlobalID>']
    assert lines[at + 1 : at + 3] == wanted


def test_an_article_number_is_a_gtin_where_no_scheme_is_named() -> None:
    lines = [line for line in xml_of(EVERYTHING) if "4012345678901" in line]
    assert lines == [
        '<ram:GlobalID schemeID="0160">04012345678901</ram:GlobalID>',
        '<ram:GlobalID schemeID="0160">4012345678901</ram:GlobalID>',
    ]


@pytest.mark.parametrize(("ubl", "cii"), [("3", "5"), ("35", "29"), ("432", "72"), ("72", "72")])
def test_the_code_of_the_tax_point_is_said_in_the_codes_of_cii(ubl: str, cii: str) -> None:
    """BT-8: UNTDID 2005 in the standard, 2475 in CII; a code that is one of CII already stays."""
    assert element("DueDateTypeCode", xml_of(changed(OUTSIDE, {"/tax_point_code": ubl}))) == [cii]


def test_an_attachment_without_a_name_has_that_of_its_reference_and_is_bytes() -> None:
    lines = xml_of(changed(EVERYTHING, {"/attachments/1/mime": ..., "/attachments/1/ref": 'a "b"'}))
    wanted = '<ram:AttachmentBinaryObject mimeCode="application/octet-stream" filename="a &quot;b&quot;">'
    assert [line for line in lines if line.startswith(wanted)] == [f"{wanted}iVBORw0K</ram:AttachmentBinaryObject>"]


def test_accounts_to_pay_to_stand_beside_card_and_debit() -> None:
    """BG-16: one element an account, as the schema wants it; what is paid otherwise stands once, in the first."""
    transfer = [{"iban": "DE02120300000000202051"}, {"iban": "0532013000"}, {"iban": "DE80 0000 0000 1234 5678 90"}]
    lines = xml_of(changed(OUTSIDE, {"/payment/transfer": transfer}))
    # One whose check digits are wrong was meant as an IBAN all the same (CB-04 says so).
    assert element("IBANID", lines) == ["NO9386011117947", "DE02120300000000202051", "DE80 0000 0000 1234 5678 90"]
    assert element("ProprietaryID", lines) == ["0532013000"]
    assert element("DirectDebitMandateID", lines) == ["M-2026-1"]
    assert element("CreditorReferenceID", lines) == ["DE98ZZZ09999999999"]


@pytest.mark.parametrize("part", ["mandate", "creditor_id", "iban"])
def test_of_a_debit_each_part_stands_alone(part: str) -> None:
    """BG-19: none of the three is mandatory in the standard."""
    debit = {part: OUTSIDE["payment"]["debit"][part]}
    text = "".join(xml_of(changed(OUTSIDE, {"/payment/debit": debit})))
    assert [name for name in OUTSIDE["payment"]["debit"].values() if name in text] == [debit[part]]


@pytest.mark.parametrize("end", ["start", "end"])
def test_a_period_may_have_one_end(end: str) -> None:
    period = {end: "2026-10-01"}
    lines = xml_of(changed(EVERYTHING, {"/period": period, "/lines/0/period": period}))
    other = {"start": "EndDateTime", "end": "StartDateTime"}[end]
    assert not any(f"<ram:{other}>" in line for line in lines)


def test_outside_the_scope_a_rate_stands_only_in_the_tax_table() -> None:
    """BR-O-05 to BR-O-07 forbid it on lines and allowances; XRechnung (BR-DE-14) wants it in the table."""
    lines = xml_of(changed(OUTSIDE, {"/lines/0/tax/percent": "19"}))
    assert element("RateApplicablePercent", lines) == ["0"]


@pytest.mark.parametrize(
    ("amount", "said"), [("3", "3.00"), ("3.1", "3.10"), ("-3.10", "-3.10"), ("-0", "0.00"), ("3.100", "3.10")]
)
def test_an_amount_has_two_decimals_and_zero_no_sign(amount: str, said: str) -> None:
    assert element("DuePayableAmount", xml_of(changed(EVERYTHING, {"/totals/due": amount}))) == [said]


def test_an_amount_that_the_standard_cannot_say_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidInput) as refused:
        xml_of(changed(EVERYTHING, {"/totals/due": "3.141"}))
    words = "DuePayableAmount 3.141 has more than two decimals, which EN 16931 cannot express (BR-DEC)"
    assert refused.value.detail == words
    assert refused.value.errors == (FieldError("", words),)


def test_text_that_no_xml_can_carry_is_refused_with_the_text() -> None:
    nul = replace(Invoice.from_json(OUTSIDE), number="a\x00b")
    with pytest.raises(InvalidInput) as refused:
        to_cii(nul)
    words = "'a\\x00b' has a control character that no XML can carry"
    assert refused.value.detail == words
    assert refused.value.errors == (FieldError("", words),)


# -- Reading -----------------------------------------------------------------------------------------------------------

BAD: list[tuple[str, object, str]] = [
    ("/colour", "blue", "is not a known key"),
    ("/a~1b~0c", "x", "is not a known key"),
    ("/number", "", "is empty; leave it out instead"),
    ("/number", " \n", "is empty; leave it out instead"),
    ("/number", "\x0b1", "has a control character that no XML can carry"),
    ("/number", 7, "must be text"),
    ("/issued_on", "yesterday", "'yesterday' is not a date (YYYY-MM-DD)"),
    ("/issued_on", 20261101, "must be text"),
    ("/seller", "Nordwind", "must be an object"),
    ("/notes", {}, "must be a list"),
    ("/notes", [{"text": "a"}] * 100_001, "has more than 100000 entries"),
    ("/taxes/0/category", "AA", "must be one of S, Z, E, AE, K, G, O, L, M, B"),
    ("/records/0/rows/0/kind", "row", "must be one of dimension, tier, included, beyond, package, rated, billed"),
    ("/totals/net", "ten", "'ten' is not a decimal number"),
    ("/totals/net", "NaN", "'NaN' is not a decimal number"),
    ("/totals/net", "-Infinity", "'-Infinity' is not a decimal number"),
    ("/totals/net", 1.5, "must be text (a decimal)"),
    ("/totals/net", True, "must be text (a decimal)"),
    ("/attachments/0/bytes", "x", "is not base64"),
    ("/attachments/0/bytes", "YQ==\n!", "is not base64"),
    ("/groups/0/plan_version", "7", "has the wrong type"),
    ("/groups/0/plan_version", True, "must be text"),
]


@pytest.mark.parametrize(("pointer", "value", "words"), BAD, ids=[f"{case[0]} {case[2]}"[:60] for case in BAD])
def test_a_bad_field_is_named_with_its_place_and_the_reason(pointer: str, value: object, words: str) -> None:
    form = changed(EVERYTHING, {pointer.replace("a~1b~0c", "~"): value})
    if "~" in form:
        form["a/b~c"] = form.pop("~")  # a key is written into a pointer as RFC 6901 says
    with pytest.raises(InvalidInput) as refused:
        Invoice.from_json(form)
    told = with_term(words, pointer)
    assert refused.value.errors == (FieldError(pointer, told),)
    assert refused.value.detail == f"The invoice data are not valid: {pointer}: {told}"


def test_a_form_that_is_no_object_is_wrong_as_a_whole() -> None:
    with pytest.raises(InvalidInput) as refused:
        Invoice.from_json([])
    assert refused.value.errors == (FieldError("", "must be an object"),)
    assert refused.value.detail == "The invoice data are not valid: /: must be an object"


def test_a_part_is_read_with_pointers_of_where_it_stands() -> None:
    assert read(Transfer, {"iban": "DE1"}) == Transfer("DE1")
    with pytest.raises(InvalidInput) as refused:
        read(Transfer, {"iban": 1, "bic": 2}, "/bank")
    assert [error.pointer for error in refused.value.errors] == ["/bank/iban", "/bank/bic"]
    assert model.write(Identifier("a")) == {"id": "a"}


def test_an_error_list_ends_at_a_hundred() -> None:
    with pytest.raises(InvalidInput) as refused:
        Invoice.from_json(changed(EVERYTHING, {"/attachments": [{"ref": 1}] * 500, "/number": 1}))
    assert len(refused.value.errors) == 100
    assert refused.value.errors[0] == FieldError("/number", "must be text (BT-1)")
    assert refused.value.errors[99] == FieldError("/attachments/98/ref", "must be text (BT-122)")


def test_whole_numbers_are_taken_as_decimals_and_nothing_is_rounded() -> None:
    made = Invoice.from_json(
        changed(EVERYTHING, {"/totals/net": 50, "/lines/0/price": "9.500000000000000000000000001"})
    )
    assert made.totals.net == Decimal(50)
    assert made.to_json()["lines"][0]["price"] == "9.500000000000000000000000001"


@pytest.mark.parametrize(
    ("value", "text"),
    [("10", "10"), ("1E+3", "1000"), ("1.50", "1.5"), ("100.00", "100"), ("-0.00", "0"), ("0.000", "0"), ("-1.0", "-1"),
     ("12345678901234567890.123456789012", "12345678901234567890.123456789012"), ("1E-12", "0.000000000001")],
)  # fmt: skip
def test_a_decimal_is_written_plainly_without_exponent_or_idle_zeros(value: str, text: str) -> None:
    assert plain(Decimal(value)) == text
