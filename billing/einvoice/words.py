"""Words that stand in an invoice's data (not on its layout): reasons, notes and terms, by language.

`MONTHS` and `day` are here because a term of payment is a sentence inside the XML; everything that only the paper
shows is text data of the layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from billing.documents import TaxCategory
from billing.einvoice.model import plain
from billing.errors import FieldError, InvalidInput


@dataclass(frozen=True)
class Words:
    """One language. `{name}`, `{day}` and the like are filled in."""

    tax_reasons: dict[TaxCategory, str]  # BT-120
    correction: str
    minimum: str
    late: str
    proration_day: str
    proration_second: str
    included: str
    line_discount: str
    line_discount_back: str
    discount: str
    promotional: str
    due: str
    collected: str
    nothing_due: str
    credited: str
    unrelated: str
    unit: str
    customer: str
    tier: str
    usage_record: str  # BT-123
    months: tuple[str, ...]
    point: str
    group: str


WORDS: dict[str, Words] = {
    "de": Words(
        tax_reasons={
            # § 14a (5) UStG wants exactly these words
            "AE": "Steuerschuldnerschaft des Leistungsempfängers",
            "K": "Steuerfreie innergemeinschaftliche Lieferung",
            "G": "Steuerfreie Ausfuhrlieferung",
            "O": "Nicht im Inland steuerbare Leistung",
            "E": "Steuerfreie Leistung",
        },
        correction="Korrektur {name}",
        minimum="Mindestumsatz",
        late="nachgemeldet",
        proration_day="{active} von {full} Tagen",
        proration_second="anteilig nach Sekunden",
        included="{quantity} frei",
        line_discount="Nachlass",
        line_discount_back="Rücknahme eines Nachlasses",
        discount="Nachlass",
        promotional="Guthaben",
        due="Zahlbar bis {day} ohne Abzug.",
        collected="Wird am {day} per SEPA-Lastschrift eingezogen.",
        nothing_due="Es ist nichts zu zahlen.",
        credited="Der Betrag wird gutgeschrieben.",
        unrelated="Nachlass ohne Bezug auf eine einzelne Rechnung.",
        unit="Einheit",
        customer="Kunde",
        tier="Stufe {number}",
        usage_record="Verbrauchsnachweis",
        months=(),
        point=",",
        group=".",
    ),
    "en": Words(
        tax_reasons={
            "AE": "Reverse charge: the customer is liable for the tax",
            "K": "Exempt intra-Community supply",
            "G": "Exempt export",
            "O": "Not subject to VAT here: place of supply abroad",
            "E": "Exempt supply",
        },
        correction="Correction, {name}",
        minimum="Minimum",
        late="received late",
        proration_day="{active} of {full} days",
        proration_second="prorated by the second",
        included="{quantity} included",
        line_discount="Discount",
        line_discount_back="Discount taken back",
        discount="Discount",
        promotional="Credit",
        due="Payable by {day} without deduction.",
        collected="Will be collected by SEPA direct debit on {day}.",
        nothing_due="There is nothing to pay.",
        credited="The amount will be credited.",
        unrelated="Reduction that refers to no single invoice.",
        unit="unit",
        customer="customer",
        tier="tier {number}",
        usage_record="Usage record",
        months=(
            "January",
            "February",
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
        ),
        point=".",
        group=",",
    ),
}
VATEX: dict[TaxCategory, str] = {  # BT-121; none for E: which exemption it is, only the tax code knows
    "AE": "VATEX-EU-AE",
    "K": "VATEX-EU-IC",
    "G": "VATEX-EU-G",
    "O": "VATEX-EU-O",
}


LANGUAGES = tuple(WORDS)


def words(language: str) -> Words:
    found = WORDS.get(language)
    if found is None:
        detail = f"there are no words for the language {language!r}; known are {', '.join(WORDS)}"
        raise InvalidInput(detail, errors=[FieldError("/language", detail)])
    return found


def day(value: date, spoken: Words) -> str:
    """A date inside a sentence: 01.12.2026, or 1 December 2026."""
    return f"{value.day} {spoken.months[value.month - 1]} {value.year}" if spoken.months else f"{value:%d.%m.%Y}"


def figure(value: Decimal, spoken: Words) -> str:
    """A quantity inside a sentence: 5.000 or 5,000."""
    whole, _, part = plain(abs(value)).partition(".")
    digits = f"{int(whole):,}".replace(",", spoken.group)
    return ("-" if value < 0 else "") + digits + (spoken.point + part if part else "")
