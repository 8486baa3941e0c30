"""What XRechnung and Peppol demand beyond the standard: each rule is broken once and found by its official id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from maximal import changed

from billing.einvoice.model import Invoice
from billing.einvoice.profiles import PEPPOL, XRECHNUNG, Profile, in_profile, profile_violations, valid_leitweg_id

EXAMPLE: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "examples" / "invoices" / "invoice.json").read_text(encoding="utf-8")
)
FRENCH = {"/buyer/address/country": "FR"}
PART = {"amount": "2", "reason": "Rabatt", "tax_category": "S", "tax_percent": "19"}


def rules(profile: Profile, changes: dict[str, Any]) -> list[tuple[str, str]]:
    invoice = in_profile(Invoice.from_json(changed(EXAMPLE, changes)), profile)
    return [(one.rule, one.pointer) for one in profile_violations(invoice)]


def test_the_example_may_be_issued_under_either_profile() -> None:
    assert rules("xrechnung", {}) == rules("peppol", {}) == []
    assert in_profile(Invoice.from_json(EXAMPLE), "xrechnung").profile == XRECHNUNG
    assert in_profile(Invoice.from_json(EXAMPLE), "peppol").profile == PEPPOL


def test_the_plain_standard_demands_nothing_of_them() -> None:
    assert rules("en16931", {"/seller/contact": ..., "/buyer_reference": ..., "/payment": ...}) == []


BOTH = [  # XRechnung's id, Peppol's id between two Germans, what is broken, where it is said
    ("BR-DE-1", "DE-R-001", {"/payment": ...}, "/payment"),
    ("BR-DE-2", "DE-R-002", {"/seller/contact": ...}, "/seller/contact"),
    ("BR-DE-5", "DE-R-005", {"/seller/contact/name": ...}, "/seller/contact/name"),
    ("BR-DE-6", "DE-R-006", {"/seller/contact/phone": ...}, "/seller/contact/phone"),
    ("BR-DE-7", "DE-R-007", {"/seller/contact/email": ...}, "/seller/contact/email"),
    ("BR-DE-3", "DE-R-003", {"/seller/address/city": ...}, "/seller/address/city"),
    ("BR-DE-4", "DE-R-004", {"/seller/address/post_code": ...}, "/seller/address/post_code"),
    ("BR-DE-8", "DE-R-008", {"/buyer/address/city": ...}, "/buyer/address/city"),
    ("BR-DE-9", "DE-R-009", {"/buyer/address/post_code": ...}, "/buyer/address/post_code"),
    ("BR-DE-10", "DE-R-010", {"/delivery/address": {"country": "DE", "post_code": "1"}}, "/delivery/address/city"),
    ("BR-DE-11", "DE-R-011", {"/delivery/address": {"country": "DE", "city": "x"}}, "/delivery/address/post_code"),
    ("BR-DE-15", "DE-R-015", {"/buyer_reference": ...}, "/buyer_reference"),
    ("BR-DE-16", "DE-R-016", {"/seller/vat_id": ...}, "/seller/vat_id"),
    ("BR-DE-18", "DE-R-018", {"/payment_terms": "#SKONTO#TAGE=14#PROZENT=2#\n"}, "/payment_terms"),
    ("BR-DE-18", "DE-R-018", {"/payment_terms": "#SKONTO#TAGE=14#PROZENT=2.00#"}, "/payment_terms"),
    ("BR-DE-23-a", "DE-R-023-a", {"/payment/transfer": []}, "/payment/transfer"),
    ("BR-DE-23-b", "DE-R-023-b", {"/payment/card": {"pan_last": "4242"}}, "/payment/card"),
    ("PEPPOL-EN16931-R010", "PEPPOL-EN16931-R010", {"/buyer/endpoint": ...}, "/buyer/endpoint"),
    ("PEPPOL-EN16931-R020", "PEPPOL-EN16931-R020", {"/seller/endpoint": ...}, "/seller/endpoint"),
    ("BR-62", "BR-62", {"/seller/endpoint/scheme": ...}, "/seller/endpoint/scheme"),
    ("PEPPOL-EN16931-R110", "PEPPOL-EN16931-R110", {"/lines/0/period": {"start": "2026-09-30", "end": "2026-10-31"}},
     "/lines/0/period/start"),
    ("PEPPOL-EN16931-R111", "PEPPOL-EN16931-R111", {"/lines/0/period": {"start": "2026-10-01", "end": "2026-11-01"}},
     "/lines/0/period/end"),
    ("PEPPOL-EN16931-R041", "PEPPOL-EN16931-R041", {"/allowances": [{**PART, "percent": "2"}]}, "/allowances/0/base"),
    ("PEPPOL-EN16931-R042", "PEPPOL-EN16931-R042", {"/charges": [{**PART, "base": "9"}]}, "/charges/0/percent"),
    ("PEPPOL-EN16931-R040", "PEPPOL-EN16931-R040", {"/allowances": [{**PART, "base": "90", "percent": "2"}]},
     "/allowances/0/amount"),
]  # fmt: skip


@pytest.mark.parametrize(("german", "peppol", "changes", "pointer"), BOTH, ids=lambda one: str(one)[:40])
def test_what_breaks_a_rule_is_named_with_its_id_and_place(
    german: str, peppol: str, changes: dict[str, Any], pointer: str
) -> None:
    assert (german, pointer) in rules("xrechnung", changes)
    assert (peppol, pointer) in rules("peppol", changes)


@pytest.mark.parametrize(
    ("rule", "changes", "pointer"),
    [
        ("PEPPOL-EN16931-R003", {**FRENCH, "/buyer_reference": ..., "/order": ...}, "/buyer_reference"),
        ("PEPPOL-EN16931-R002", {**FRENCH, "/notes": [{"text": "a"}, {"text": "b"}]}, "/notes"),
        ("PEPPOL-EN16931-P0112", {**FRENCH, "/type_code": "384"}, "/type_code"),
        ("PEPPOL-EN16931-P0100", {"/type_code": "389"}, "/type_code"),
        ("PEPPOL-EN16931-CL008", {"/buyer/endpoint/scheme": "EM"}, "/buyer/endpoint/scheme"),
    ],
)
def test_peppol_has_rules_of_its_own(rule: str, changes: dict[str, Any], pointer: str) -> None:
    assert (rule, pointer) in rules("peppol", changes)
    assert (rule, pointer) not in rules("xrechnung", changes)


def test_the_german_rules_hold_in_peppol_between_two_germans_only() -> None:
    assert rules("peppol", {**FRENCH, "/seller/contact": ..., "/buyer_reference": ...}) == []


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("04011000-12345-03", True),
        ("04011000-12345-04", False),
        ("04", False),
        ("", False),
    ],
)
def test_a_leitweg_id_has_two_check_digits(text: str, valid: bool) -> None:
    assert valid_leitweg_id(text) is valid
