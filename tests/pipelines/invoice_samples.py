"""Finalised documents of every kind that the tests render, validate and keep golden texts of.

Amounts are worked out by hand where they are stated; `document` only adds up lines, so that a sample stays readable.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any
from zoneinfo import ZoneInfo

from billing.documents import Allowance, Corrects, Document, DocumentType, Line, TaxTotal
from pipelines.documents import FinalDocument, Issuer

BERLIN = ZoneInfo("Europe/Berlin")
TENANT = "6f0f5a4e-0d8e-4a76-9d1e-5f6f7e1b2c3d"
LOGO = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><rect width="9" height="9" rx="1.2" fill="#1a4f9c"/>'
    '<path fill="#fff" d="M3.6 2.2h3.6v.8H3.6zM2 4.2h5.2v.8H2zM1.2 6.2h4.4v.8H1.2z"/></svg>'
)
ENTITY: dict[str, Any] = {
    "name": "Nordwind Cloud GmbH",
    "vat_id": "DE 318 204 776",
    "tax_number": "60/123/45678",
    "legal_id": "HRB 40417",
    "court": "Amtsgericht Bremen",
    "directors": "Dr. Inken Thomsen, Jonas Falk",
    "address": {"street": "Am Kornspeicher 4", "post_code": "28217", "city": "Bremen"},
    "contact": {"name": "Lasse Brandt", "phone": "+49 421 5550 142", "email": "rechnung@nordwind.example"},
    "bank": {"name": "Weserbank Bremen", "iban": "DE02 1203 0000 0000 2020 51", "bic": "BYLADEM1001"},
    "logo": LOGO,
}
CUSTOMER: dict[str, Any] = {
    "code": "K-10482",
    "name": "Hafenkontor Logistik GmbH",
    "country": "DE",
    "vat_id": "DE 241 880 935",
    "address": {"street": "Versmannkai 18", "post_code": "20457", "city": "Hamburg"},
    "contact": {"name": "Wiebke Sörensen"},
    "order_reference": "4500118273",
}
ISSUER = Issuer(TENANT, "Europe/Berlin", "DE", ENTITY)
# Who sends and who receives in Peppol: both with an address there, the buyer with a reference.
PEPPOL_ISSUER = Issuer(TENANT, "Europe/Berlin", "DE", {**ENTITY, "endpoint": {"id": "DE318204776", "scheme": "9930"}})
PEPPOL_CUSTOMER = {
    **CUSTOMER,
    "endpoint": {"id": "4000001000005", "scheme": "0088"},
    "leitweg_id": "04011000-1234512345-06",
    "einvoice": "peppol",
}


def at(text: str, zone: ZoneInfo = BERLIN) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone).astimezone(UTC)


OCTOBER = (at("2026-10-01"), at("2026-11-01"))
NOVEMBER = (at("2026-11-01"), at("2026-12-01"))


def line(amount: str, **given: Any) -> Line:
    """A line of October with 19 % unless something else is given."""
    start, end = given.pop("period", OCTOBER)
    usual: dict[str, Any] = {
        "subscription": "S-20418",
        "charge": "compute",
        "quantity": Decimal(given.pop("quantity", "1")),
        "tax_category": "S",
        "tax_percent": Decimal(given.pop("percent", "19")),
        "plan": "Compute Scale",
        "plan_version": 7,
        "name": "Compute",
        "tax_code": "standard",
    }
    for key in ("allowance", "unit_price"):
        if given.get(key) is not None:
            given[key] = Decimal(given[key])
    return Line(start=start, end=end, amount=Decimal(amount), **{**usual, **given})


def document(
    lines: Sequence[Line],
    *,
    type: DocumentType = "invoice",
    currency: str = "EUR",
    allowances: Sequence[Allowance] = (),
    prepaid: str = "0",
    refers_to: str | None = None,
    minor: str = "0.01",
) -> Document:
    bases: dict[tuple[Any, Decimal], Decimal] = defaultdict(Decimal)
    for one in lines:
        bases[one.tax_category, one.tax_percent] += one.amount
    for one in allowances:
        bases[one.tax_category, one.tax_percent] -= one.amount
    taxes = tuple(
        TaxTotal(category, percent, base, (base * percent / 100).quantize(Decimal(minor), ROUND_HALF_UP))
        for (category, percent), base in sorted(bases.items())
    )
    net, tax = sum((one.base for one in taxes), Decimal(0)), sum((one.amount for one in taxes), Decimal(0))
    return Document(
        customer="K-10482",
        type=type,
        currency=currency,
        date=date(2026, 11, 1),
        lines=tuple(lines),
        allowances=tuple(allowances),
        taxes=taxes,
        net=net,
        tax=tax,
        gross=net + tax,
        due=net + tax - Decimal(prepaid),
        prepaid=Decimal(prepaid),
        refers_to=refers_to,
    )


def final(made: Document, number: str, customer: Mapping[str, Any] | None = None, **given: Any) -> FinalDocument:
    return FinalDocument(
        document_id=given.pop("document_id", f"document-{number}"),
        number=number,
        document=made,
        customer={**CUSTOMER, **(customer or {})},
        due_on=date(2026, 12, 1),
        **given,
    )


TIERS = {
    "exact": "1430.7795",
    "dimensions": [
        {"values": {"region": "eu-north-1", "type": "c4.large"}, "quantity": "21604"},
        {"values": {"region": "eu-north-1", "type": "c4.xlarge"}, "quantity": "14902.5"},
        {"values": {"region": "eu-central-1", "type": "c4.large"}, "quantity": "11710.75"},
    ],
    "tiers": [
        {"up_to": "10000", "quantity": "10000", "unit": "0.038", "flat": "0", "amount": "380"},
        {"up_to": "40000", "quantity": "30000", "unit": "0.029", "flat": "0", "amount": "870"},
        {"up_to": "100000", "quantity": "8217.25", "unit": "0.022", "flat": "0", "amount": "180.7795"},
    ],
}


def mock_up() -> Document:
    """The invoice of the design's mock-up, to the cent: 3,316.83 net, 3,930.27 gross."""
    small = {"subscription": "S-33107", "plan": "Compute Start", "plan_version": 3}
    return document(
        [
            line(
                "29.00",
                charge="base",
                name="Grundpreis Plattform",
                kind="recurring",
                unit="month",
                unit_price="29",
                period=NOVEMBER,
            ),
            line("1359.24", quantity="48217.25", unit="vCPU h", allowance="71.54", explanation=TIERS),
            line(
                "1085.57",
                charge="disk",
                name="Blockspeicher SSD",
                quantity="12406.5",
                unit="GiB-Monat",
                unit_price="0.0875",
            ),
            line(
                "264.80",
                charge="traffic",
                name="Internetverkehr",
                quantity="18240",
                unit="GB",
                explanation={"included": "5000"},
            ),
            line(
                "318.86", charge="db", name="Managed PostgreSQL", quantity="1490", unit="Knoten-h", unit_price="0.214"
            ),
            line(
                "10.34",
                quantity="412.5",
                unit="vCPU h",
                correction=True,
                corrects=Corrects("RE-2026-355204", 2),
                period=(at("2026-09-01"), at("2026-10-01")),
                explanation={
                    "late": True,
                    "rated": {"quantity": "40232.5", "amount": "1255.12"},
                    "billed": {"document": "RE-2026-355204", "quantity": "39820", "amount": "1244.78"},
                },
            ),
            line(
                "5.74",
                charge="base",
                name="Grundpreis Plattform",
                kind="recurring",
                unit="month",
                unit_price="8.90",
                period=(at("2026-10-12"), at("2026-11-01")),
                explanation={"proration": {"active": 20, "full": 31, "by": "day"}},
                **small,
            ),
            line(
                "8.90",
                charge="base",
                name="Grundpreis Plattform",
                kind="recurring",
                unit="month",
                unit_price="8.90",
                period=NOVEMBER,
                **small,
            ),
            line(
                "94.78",
                quantity="2311.75",
                unit="vCPU h",
                unit_price="0.041",
                period=(at("2026-10-12"), at("2026-11-01")),
                **small,
            ),
            line(
                "139.60",
                charge="book",
                name="Betriebshandbuch, gedruckt",
                kind="one_off",
                unit="Stück",
                quantity="4",
                unit_price="34.90",
                percent="7",
                period=(at("2026-10-20"), at("2026-10-20")),
                subscription="B-1",
                plan="Handbuch",
                plan_version=1,
            ),
        ]
    )


def many_lines(count: int) -> Document:
    return document(
        [
            line(
                f"{place}.10",
                charge=f"c{place}",
                name=f"Dienst {place}",
                quantity=str(place),
                unit="h",
                subscription=f"S-{place // 15}",
                explanation={"exact": f"{place}.10"},
            )
            for place in range(1, count + 1)
        ]
    )


def _outside(**given: Any) -> dict[str, Any]:
    return {"tax_category": "O", "percent": "0", **given}


SAMPLES: dict[str, Callable[[], FinalDocument]] = {
    "invoice": lambda: final(mock_up(), "RE-2026-402817", issued_on_of={"RE-2026-355204": date(2026, 10, 1)}),
    "invoice-en": lambda: final(
        mock_up(), "RE-2026-402818", {"language": "en"}, issued_on_of={"RE-2026-355204": date(2026, 10, 1)}
    ),
    "credit-note": lambda: final(
        document(
            [
                line("100.00", quantity="50", unit="h", unit_price="2", corrects=Corrects("RE-2026-400001", 1)),
                line("-10.00", quantity="-5", unit="h", unit_price="2", corrects=Corrects("RE-2026-400001", 2)),
            ],
            type="credit_note",
            refers_to="RE-2026-400001",
        ),
        "GS-2026-000017",
        issued_on_of={"RE-2026-400001": date(2026, 10, 1)},
    ),
    "reverse-charge": lambda: final(
        document([line("250.00", quantity="1000", unit="h", unit_price="0.25", tax_category="AE", percent="0")]),
        "RE-2026-402819",
        {
            "code": "K-9",
            "name": "Brasserie du Port SARL",
            "country": "FR",
            "vat_id": "FR40303265045",
            "language": "en",
            "address": {"street": "12 Quai des Belges", "post_code": "13001", "city": "Marseille"},
        },
    ),
    "outside-scope": lambda: final(
        document([line("99.00", unit="month", unit_price="99", **_outside())]),
        "RE-2026-402820",
        {
            "code": "K-10",
            "name": "Fjord Data AS",
            "country": "NO",
            "vat_id": None,
            "language": "en",
            "address": {"street": "Strandkaien 2", "post_code": "5013", "city": "Bergen"},
        },
    ),
    "intra-community": lambda: final(
        document([line("40.00", quantity="4", unit="Stück", unit_price="10", tax_category="K", percent="0")]),
        "RE-2026-402821",
        {
            "code": "K-11",
            "name": "Bakker BV",
            "country": "NL",
            "vat_id": "NL004495445B01",
            "address": {"street": "Damrak 1", "post_code": "1012 LG", "city": "Amsterdam"},
        },
    ),
    "exempt": lambda: final(document([line("12.00", tax_category="E", percent="0")]), "RE-2026-402822"),
    "export": lambda: final(
        document([line("75.00", quantity="3", unit="Stück", unit_price="25", tax_category="G", percent="0")]),
        "RE-2026-402823",
        {
            "code": "K-12",
            "name": "Alpenhof AG",
            "country": "CH",
            "vat_id": None,
            "address": {"street": "Bahnhofstrasse 1", "post_code": "8001", "city": "Zürich"},
        },
    ),
    "tier-of-seven-digits": lambda: final(
        document(
            [
                line(
                    "1043.21",
                    quantity="1234567",
                    unit="request",
                    explanation={
                        "exact": "1043.2098",
                        "tiers": [
                            {"up_to": "1000000", "quantity": "1000000", "unit": "0.001", "amount": "1000"},
                            {
                                "up_to": None,
                                "quantity": "234567",
                                "unit": "0.0001842",
                                "flat": "0",
                                "amount": "43.2072414",
                            },
                        ],
                    },
                )
            ]
        ),
        "RE-2026-402824",
    ),
    "negative-lines": lambda: final(
        document(
            [
                line("80.00", quantity="8", unit="h", unit_price="10"),
                line(
                    "-27.42",
                    quantity="-5",
                    unit="h",
                    allowance="-3.05",
                    correction=True,
                    corrects=Corrects("RE-2026-400001", 1),
                ),
                line("-70.00", quantity="1", unit="h", correction=True, corrects=Corrects("RE-2026-400001", 3)),
                line("30.00", quantity="0", kind="minimum", name="minimum"),
            ]
        ),
        "RE-2026-402825",
        issued_on_of={"RE-2026-400001": date(2026, 10, 1)},
    ),
    "zero": lambda: final(
        document([line("0.00", quantity="0", kind="recurring", unit="month", unit_price="0")]), "RE-2026-402826"
    ),
    "price-of-twelve-decimals": lambda: final(
        document(
            [
                line("0.12", quantity="9999999.999999999999", unit="token", unit_price="0.000000012345"),
                line("1.00", quantity="3", unit="GB", unit_price="0.333333333333"),
                line("7.00", quantity="29.333333333333", unit="h"),
            ]
        ),
        "RE-2026-402827",
    ),
    "hundred-lines": lambda: final(many_lines(100), "RE-2026-402828"),
    "allowances-and-prepaid": lambda: final(
        document(
            [line("100.00", quantity="10", unit="h", unit_price="10"), line("10.00", percent="7", name="Buch")],
            allowances=[
                Allowance("discount", Decimal("9.09"), "S", Decimal(19)),
                Allowance("discount", Decimal("0.91"), "S", Decimal(7)),
                Allowance("promotional", Decimal("5.00"), "S", Decimal(19)),
            ],
            prepaid="50.00",
        ),
        "RE-2026-402829",
    ),
    "yen": lambda: final(
        document([line("1043", quantity="3333", unit="request", unit_price="0.313")], currency="JPY", minor="1"),
        "RE-2026-402830",
    ),
    "names-of-the-world": lambda: final(
        document([line("10.00", name="Rechenzeit 東京 🚀", quantity="10", unit="h", unit_price="1")]),
        "RE-2026-402831",
        {"name": "شركة البرمجيات العربية & 上海科技有限公司 <Rocket 🚀 GmbH>"},
    ),
    "name-of-200-characters": lambda: final(
        document(
            [line("10.00", name="Leistung " * 12 + "mit einem langen Namen", quantity="10", unit="h", unit_price="1")]
        ),
        "RE-2026-402832",
        {
            "name": "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft " * 2 + "x" * 36,
            "order_reference": "B" * 60,
        },
    ),
}
PDF_ONLY: dict[str, Callable[[], FinalDocument]] = {
    "dinar": lambda: final(
        document([line("12.345", quantity="5", unit="h", unit_price="2.469")], currency="KWD", minor="0.001"),
        "RE-2026-402840",
    ),
    "without-address": lambda: final(
        document([line("5.00", unit="h", unit_price="5")]),
        "RE-2026-402841",
        {"address": {}, "vat_id": None, "contact": {}},
    ),
}
