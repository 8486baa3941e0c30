"""Two invoices in JSON that together have every business term that the model knows, with sums that are right.

What stands beside a term is its number in EN 16931; what has none is for people and never stands in the XML.
"""

from __future__ import annotations

import copy
from typing import Any

# One supply at 19 % with allowances and charges of every kind, one exempt; paid by transfer to two accounts.
EVERYTHING: dict[str, Any] = {
    "number": "RE-2026-0042",  # BT-1
    "issued_on": "2026-11-01",  # BT-2
    "type_code": "384",  # BT-3: corrected invoice
    "currency": "EUR",  # BT-5
    "tax_currency": "CHF",  # BT-6
    "tax_point_on": "2026-10-31",  # BT-7
    "due_on": "2026-12-01",  # BT-9
    "buyer_reference": "04011000-12345-03",  # BT-10
    "project": "PRJ-7",  # BT-11
    "contract": "CT-2025-9",  # BT-12
    "order": "PO-4711",  # BT-13
    "sales_order": "SO-815",  # BT-14
    "receiving_advice": "REC-3",  # BT-15
    "despatch_advice": "DES-5",  # BT-16
    "tender": "TED-2026-77",  # BT-17
    "invoiced_object": {"id": "meter 0815", "scheme": "AAB"},  # BT-18
    "buyer_accounting_reference": "4930-17",  # BT-19
    "payment_terms": "Zahlbar bis 01.12.2026 ohne Abzug.",  # BT-20
    "notes": [{"text": "Vielen Dank & gute Fahrt", "code": "AAI"}, {"text": "Zweiter Satz"}],  # BT-22, BT-21
    "process": "urn:fdc:peppol.eu:2017:poacc:billing:01:1.0",  # BT-23
    "profile": "urn:cen.eu:en16931:2017",  # BT-24
    "preceding": [{"number": "RE-2026-0040", "issued_on": "2026-10-01"}, {"number": "RE-2026-0041"}],  # BT-25, BT-26
    "seller": {
        "name": "Nordwind Cloud GmbH",  # BT-27
        "trading_name": "Nordwind",  # BT-28
        "ids": [{"id": "4000001000005", "scheme": "0088"}, {"id": "L-77"}],  # BT-29
        "legal_id": {"id": "HRB 40417", "scheme": "0002"},  # BT-30
        "vat_id": "DE318204776",  # BT-31
        "tax_number": "60/123/45678",  # BT-32
        "legal_info": "Dr. Inken Thomsen, Amtsgericht Bremen",  # BT-33
        "endpoint": {"id": "rechnung@nordwind.example", "scheme": "EM"},  # BT-34
        "address": {
            "street": "Am Kornspeicher 4",  # BT-35
            "line_two": "Haus B",  # BT-36
            "line_three": "Hof links",  # BT-162
            "city": "Bremen",  # BT-37
            "post_code": "28217",  # BT-38
            "subdivision": "HB",  # BT-39
            "country": "DE",  # BT-40
        },
        "contact": {
            "name": "Lasse Brandt",  # BT-41
            "phone": "+49 421 5550 142",  # BT-42
            "email": "lasse@nordwind.example",  # BT-43
        },
    },
    "buyer": {
        "name": 'Hafenkontor "Süd" <Logistik> & Söhne',  # BT-44
        "trading_name": "Hafenkontor",  # BT-45
        "ids": [{"id": "K-10482"}],  # BT-46
        "legal_id": {"id": "HRB 90210", "scheme": "0002"},  # BT-47
        "vat_id": "DE241880935",  # BT-48
        "endpoint": {"id": "9930:de241880935", "scheme": "9930"},  # BT-49
        "address": {
            "street": "Versmannkai 18",  # BT-50
            "line_two": "Speicher 3",  # BT-51
            "line_three": "Tor 9",  # BT-163
            "city": "Hamburg",  # BT-52
            "post_code": "20457",  # BT-53
            "subdivision": "HH",  # BT-54
            "country": "DE",  # BT-55
        },
        "contact": {
            "name": "Wiebke Sörensen",  # BT-56
            "phone": "+49 40 555 0",  # BT-57
            "email": "wiebke@hafenkontor.example",  # BT-58
        },
    },
    "payee": {
        "name": "Factoring AG",  # BT-59
        "id": {"id": "4000001000012", "scheme": "0088"},  # BT-60
        "legal_id": {"id": "HRB 5", "scheme": "0002"},  # BT-61
    },
    "tax_representative": {
        "name": "Steuerhaus KG",  # BT-62
        "vat_id": "DE123456789",  # BT-63
        "address": {
            "street": "Domshof 1",  # BT-64
            "line_two": "Etage 2",  # BT-65
            "line_three": "Büro 3",  # BT-164
            "city": "Bremen",  # BT-66
            "post_code": "28195",  # BT-67
            "subdivision": "HB",  # BT-68
            "country": "DE",  # BT-69
        },
    },
    "delivery": {
        "name": "Lager Nord",  # BT-70
        "location": {"id": "4000001000029", "scheme": "0088"},  # BT-71
        "delivered_on": "2026-10-31",  # BT-72
        "address": {
            "street": "Kaistr. 1",  # BT-75
            "line_two": "Rampe 2",  # BT-76
            "line_three": "Tor 4",  # BT-165
            "city": "Kiel",  # BT-77
            "post_code": "24103",  # BT-78
            "subdivision": "SH",  # BT-79
            "country": "DE",  # BT-80
        },
    },
    "period": {"start": "2026-10-01", "end": "2026-10-31"},  # BT-73, BT-74
    "payment": {
        "code": "58",  # BT-81
        "text": "SEPA-Überweisung",  # BT-82
        "reference": "RE-2026-0042 K-10482",  # BT-83
        "transfer": [
            {
                "iban": "DE02120300000000202051",  # BT-84
                "name": "Nordwind Cloud GmbH",  # BT-85
                "bic": "BYLADEM1001",  # BT-86
            },
            {"iban": "DE89370400440532013000"},
        ],
    },
    "allowances": [
        {
            "amount": "3",  # BT-92
            "base": "30",  # BT-93
            "percent": "10",  # BT-94
            "tax_category": "S",  # BT-95
            "tax_percent": "19",  # BT-96
            "reason": "Treue",  # BT-97
            "reason_code": "95",  # BT-98
            "gross": "3.57",
        }
    ],
    "charges": [
        {
            "amount": "5",  # BT-99
            "base": "50",  # BT-100
            "percent": "10",  # BT-101
            "tax_category": "S",  # BT-102
            "tax_percent": "19",  # BT-103
            "reason": "Eilzuschlag",  # BT-104
            "reason_code": "FC",  # BT-105
        }
    ],
    "totals": {
        "lines": "48",  # BT-106
        "allowances": "3",  # BT-107
        "charges": "5",  # BT-108
        "net": "50",  # BT-109
        "tax": "3.8",  # BT-110
        "tax_in_tax_currency": "3.55",  # BT-111
        "gross": "53.8",  # BT-112
        "prepaid": "13.8",  # BT-113
        "rounding": "0.05",  # BT-114
        "due": "40.05",  # BT-115
    },
    "taxes": [
        {"base": "20", "amount": "3.8", "category": "S", "percent": "19"},  # BT-116 to BT-119
        {
            "base": "30",
            "amount": "0",
            "category": "E",
            "percent": "0",
            "reason": "Steuerfrei nach § 4 UStG",  # BT-120
            "reason_code": "VATEX-EU-132",  # BT-121
        },
    ],
    "attachments": [
        {
            "ref": "verbrauch",  # BT-122
            "text": "Einzelnachweis",  # BT-123
            "uri": "https://nordwind.example/verbrauch.csv",  # BT-124
            "bytes": "YTtiCjE7Mgo=",  # BT-125
            "mime": "text/csv",
            "name": "verbrauch.csv",
        },
        {"ref": "bild", "bytes": "iVBORw0K", "mime": "image/png"},
    ],
    "lines": [
        {
            "id": "1",  # BT-126
            "note": "anteilig",  # BT-127
            "object": {"id": "S-20418", "scheme": "AAB"},  # BT-128
            "quantity": "4",  # BT-129
            "unit": "E34",  # BT-130
            "net": "18",  # BT-131
            "order_line": "10",  # BT-132
            "accounting_reference": "4930",  # BT-133
            "period": {"start": "2026-10-01", "end": "2026-10-15"},  # BT-134, BT-135
            "allowances": [
                {
                    "amount": "2",  # BT-136
                    "base": "20",  # BT-137
                    "percent": "10",  # BT-138
                    "reason": "Mengenrabatt",  # BT-139
                    "reason_code": "95",  # BT-140
                }
            ],
            "charges": [
                {
                    "amount": "1",  # BT-141
                    "base": "100",  # BT-142
                    "percent": "1",  # BT-143
                    "reason": "Kleinmenge",  # BT-144
                    "reason_code": "ZZZ",  # BT-145
                }
            ],
            "price": "9.5",  # BT-146
            "discount": "0.5",  # BT-147
            "gross_price": "10",  # BT-148
            "base_quantity": "2",  # BT-149
            "tax": {"category": "S", "percent": "19"},  # BT-151, BT-152
            "name": "Speicher",  # BT-153
            "description": "je GB und Monat",  # BT-154
            "seller_sku": "storage",  # BT-155
            "buyer_sku": "H-77",  # BT-156
            "gtin": {"id": "04012345678901", "scheme": "0160"},  # BT-157
            "classes": [{"code": "81112006", "list": "TST", "version": "26.08"}],  # BT-158
            "origin": "DE",  # BT-159
            "attributes": [
                {"name": "Region", "value": "eu-north"},  # BT-160, BT-161
                {"name": "Stufe 1", "value": "4 x 4.75 = 19"},
            ],
            "gross": "21.42",
            "price_with_tax": "11.305",
        },
        {
            "id": "2",
            "quantity": "3",
            "unit": "HUR",
            "net": "30",
            "price": "10",
            "tax": {"category": "E", "percent": "0"},
            "name": "Schulung",
            "gtin": {"id": "4012345678901"},
        },
    ],
    "groups": [
        {
            "lines": ["1", "2"],
            "subscription": "S-20418",
            "plan": "scale",
            "plan_version": 7,
            "name": "Scale",
            "net": "48",
            "gross": "51.42",
            "customer": "Hafenkontor",
        }
    ],
    "records": [
        {
            "line": "1",
            "exact": "17.9999",
            "rows": [
                {
                    "kind": "tier",
                    "label": "1",
                    "value": "eu",
                    "up_to": "10",
                    "quantity": "4",
                    "price": "4.75",
                    "amount": "19",
                }
            ],
        }
    ],
    "timezone": "Europe/Berlin",
}

# Outside the scope of tax: no VAT ids and no rates; paid by card, and by a debit.
OUTSIDE: dict[str, Any] = {
    "number": "RE-2026-0043",
    "issued_on": "2026-11-01",
    "type_code": "380",
    "currency": "EUR",
    "tax_point_code": "3",  # BT-8: the date of the invoice, in the codes of UBL
    "seller": {"name": "Nordwind Cloud GmbH", "address": {"country": "DE"}, "legal_id": {"id": "HRB 40417"}},
    "buyer": {"name": "Fjord AS", "address": {"country": "NO"}},
    "delivery": {"location": {"id": "Hamar 7"}},
    "payment": {
        "code": "59",
        "card": {"pan_last": "4242", "holder": "Kari Nordmann"},  # BT-87, BT-88
        "debit": {
            "mandate": "M-2026-1",  # BT-89
            "creditor_id": "DE98ZZZ09999999999",  # BT-90
            "iban": "NO9386011117947",  # BT-91
        },
    },
    "allowances": [{"amount": "1", "reason": "Guthaben", "tax_category": "O", "tax_percent": "0"}],
    "totals": {"lines": "10", "allowances": "1", "net": "9", "tax": "0", "gross": "9", "due": "9"},
    "taxes": [{"base": "9", "amount": "0", "category": "O", "reason": "Nicht im Inland steuerbare Leistung",
               "reason_code": "VATEX-EU-O"}],
    "lines": [
        {
            "id": "1",
            "quantity": "1",
            "unit": "C62",
            "net": "10",
            "price": "10",
            "tax": {"category": "O"},
            "name": "Zugang",
        }
    ],
}  # fmt: skip


def changed(form: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The form with other values at JSON pointers; `...` takes one away."""
    made = copy.deepcopy(form)
    for pointer, value in changes.items():
        *way, last = pointer.removeprefix("/").split("/")
        place: Any = made
        for key in way:
            place = place[int(key)] if isinstance(place, list) else place[key]
        if isinstance(place, list):
            last = int(last)  # type: ignore[assignment]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return made
