"""SEPA direct debit of documents: the mandate of a customer, the creditor identifier of a seller, and when both count.

Owns what they look like (EPC rules) and what of them stands on an invoice (BG-19). Collecting the money is not here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, cast

from billing.einvoice.checks import valid_iban
from billing.einvoice.model import Debit
from billing.forms import Form

REFERENCE = re.compile(r"[A-Za-z0-9+?/\-:().,' ]{1,35}")  # AT-01: at most 35 of the SEPA letters


def valid_creditor_id(text: str) -> bool:
    """EPC262-08: country, check digits, business code, national part; mod 97 without the business code is 1."""
    if not re.fullmatch(r"[A-Z]{2}[0-9]{2}[A-Z0-9]{3}[A-Z0-9]{1,28}", text):
        return False
    counted = text[7:] + text[:4]
    return int("".join(str(int(one, 36)) for one in counted)) % 97 == 1


def check_creditor_id(form: Form) -> None:
    """`creditor_id` of a legal entity's form (BT-90); null takes it away."""
    if form.fields.get("creditor_id") is None:
        return
    found = form.text("creditor_id", length_max=60).replace(" ", "")
    if found and not valid_creditor_id(found):
        form.wrong("creditor_id", f"{found[:40]!r} is no SEPA creditor identifier: its form or check digits are wrong")


@dataclass(frozen=True)
class Mandate:
    """The right to debit: its reference (BT-89), the account (BT-91), and the day it was signed."""

    reference: str
    iban: str
    signed_on: date


def mandate_of(form: Form, key: str = "mandate") -> Mandate | None:
    """`mandate: {reference, iban, signed_on}` of a customer's form; null (or nothing) means that he pays himself."""
    if form.fields.get(key) is None:
        return None
    one = Form(form.raw(key), form.at(key), form.mistakes)
    reference, iban, day = one.text("reference"), one.text("iban", length_max=60), one.text("signed_on")
    one.done()
    if reference and (not REFERENCE.fullmatch(reference) or reference != reference.strip()):
        one.wrong("reference", "must be 1 to 35 letters, digits, spaces or + ? / - : ( ) . , '")
    if iban and not valid_iban(iban):
        one.wrong("iban", "is no IBAN: its form or its check digits are wrong")
    signed_on = _day(day)
    if day and signed_on is None:
        one.wrong("signed_on", "must be a day like 2026-01-31")
    return Mandate(reference, iban.replace(" ", "").upper(), signed_on) if signed_on else None


def debit_of(
    customer: Mapping[str, Any], creditor_id: str | None, currency: str, due: Decimal, day: date
) -> Debit | None:
    """What an invoice of that day says of its debit; None where it is paid by transfer.

    A debit is in EUR, of an amount above 0, under a mandate that was signed by then, to a seller who may collect.
    """
    given: object = customer.get("mandate")
    if not isinstance(given, Mapping) or creditor_id is None or currency != "EUR" or due <= 0:
        return None
    form = cast("Mapping[str, str]", given)
    signed_on = _day(form["signed_on"])
    if signed_on is None or signed_on > day:
        return None
    return Debit(form["reference"], creditor_id, form["iban"].replace(" ", "").upper())


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text) if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text) else None
    except ValueError:
        return None
