"""Profiles of EN 16931: XRechnung 3.0 and Peppol BIS Billing 3.0, by what they demand beyond the standard.

Owns the identifiers (BT-24, BT-23) and the exact checks of each profile, with the official rules' own ids. They are
the rules that are fatal there; what both share with the standard is `checks.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal
from typing import Literal

from billing.einvoice.checks import Slack, Violation
from billing.einvoice.model import EN_16931, Address, AllowanceCharge, Invoice, Payment

Profile = Literal["en16931", "xrechnung", "peppol"]
XRECHNUNG = f"{EN_16931}#compliant#urn:xeinkauf.de:kosit:xrechnung_3.0"
PEPPOL = f"{EN_16931}#compliant#urn:fdc:peppol.eu:2017:poacc:billing:3.0"
PROCESS = "urn:fdc:peppol.eu:2017:poacc:billing:01:1.0"  # BT-23
PROFILES: dict[Profile, str] = {"en16931": EN_16931, "xrechnung": XRECHNUNG, "peppol": PEPPOL}
CENTS_OFF = Decimal("0.02")  # what R120 and R040 let pass
TAX_OFF = Decimal("0.99")  # what BR-CO-17 lets pass
_SKONTO = re.compile(r"#SKONTO#TAGE=\d{1,3}#PROZENT=\d{1,2}\.\d{2}#(BASISBETRAG=-?\d+\.\d{2}#)?")
_LEITWEG = re.compile(r"\d{2,12}(-[A-Z0-9]{1,30})?-\d{2}")


def in_profile(invoice: Invoice, profile: Profile) -> Invoice:
    """The same invoice under another profile; the two that need a process get the usual one where none is named."""
    if profile == "en16931":
        return replace(invoice, profile=EN_16931)
    process = PROCESS if profile == "peppol" else invoice.process or PROCESS
    return replace(invoice, profile=PROFILES[profile], process=process)


def profile_violations(invoice: Invoice) -> list[Violation]:
    """What the invoice's own profile (BT-24) demands and it lacks; nothing for the plain standard."""
    if invoice.profile.startswith(XRECHNUNG):
        return [*_shared(invoice), *_german(invoice, "BR-DE")]
    if invoice.profile.startswith(PEPPOL):
        return [*_shared(invoice), *_peppol(invoice)]
    return []


def slack_of(invoice: Invoice) -> Slack:
    """What the official rules of the invoice's profile take: that a line is quantity x price asks Peppol alone."""
    return Slack(CENTS_OFF if invoice.profile.startswith(PEPPOL) else None, TAX_OFF, ours=False)


def valid_leitweg_id(text: str) -> bool:
    """Its form and check digits: mod 97 over all of it without hyphens, letters as 10 to 35, is 1."""
    if not _LEITWEG.fullmatch(text):
        return False
    return int("".join(str(int(one, 36)) for one in text.replace("-", ""))) % 97 == 1


def _is_german(invoice: Invoice) -> bool:
    return invoice.seller.address.country == "DE" and invoice.buyer.address.country == "DE"


def _shared(invoice: Invoice) -> Iterator[Violation]:
    """Rules that KoSIT took over from Peppol."""
    if not invoice.process:
        yield Violation("PEPPOL-EN16931-R001", "the business process (BT-23) is needed", "/process")
    for name, party, rule in (("buyer", invoice.buyer, "R010"), ("seller", invoice.seller, "R020")):
        if party.endpoint is None:
            detail = f"the {name}'s electronic address (BT-{49 if name == 'buyer' else 34}) is needed"
            yield Violation(f"PEPPOL-EN16931-{rule}", detail, f"/{name}/endpoint")
        elif not party.endpoint.scheme:
            yield Violation("BR-62" if name == "seller" else "BR-63", "it needs a scheme", f"/{name}/endpoint/scheme")
    for name, ones in (("allowances", invoice.allowances), ("charges", invoice.charges)):
        yield from _percents(ones, f"/{name}")
    whole = invoice.period
    for index, line in enumerate(invoice.lines):
        yield from _percents(line.allowances, f"/lines/{index}/allowances")
        yield from _percents(line.charges, f"/lines/{index}/charges")
        if whole is None or line.period is None:
            continue
        if whole.start and line.period.start and line.period.start < whole.start:
            detail = f"line {line.id} begins before the invoice's period"
            yield Violation("PEPPOL-EN16931-R110", detail, f"/lines/{index}/period/start")
        if whole.end and line.period.end and line.period.end > whole.end:
            detail = f"line {line.id} ends after the invoice's period"
            yield Violation("PEPPOL-EN16931-R111", detail, f"/lines/{index}/period/end")


def _percents(ones: tuple[AllowanceCharge, ...], pointer: str) -> Iterator[Violation]:
    for place, one in enumerate(ones):
        if one.percent is not None and one.base is None:
            detail = "a percentage needs the amount that it is of"
            yield Violation("PEPPOL-EN16931-R041", detail, f"{pointer}/{place}/base")
        elif one.base is not None and one.percent is None:
            detail = "a base amount needs the percentage"
            yield Violation("PEPPOL-EN16931-R042", detail, f"{pointer}/{place}/percent")
        elif one.base is not None and one.percent is not None:
            amount = (one.base * one.percent / 100).quantize(Decimal("0.01"), ROUND_HALF_UP)
            if abs(amount - one.amount) > CENTS_OFF:
                detail = f"{one.percent} % of {one.base} is {amount}, not {one.amount}"
                yield Violation("PEPPOL-EN16931-R040", detail, f"{pointer}/{place}/amount")


def _peppol(invoice: Invoice) -> Iterator[Violation]:
    german = _is_german(invoice)
    if not (invoice.buyer_reference or invoice.order):
        detail = "a buyer reference (BT-10) or an order (BT-13) is needed"
        yield Violation("PEPPOL-EN16931-R003", detail, "/buyer_reference")
    if invoice.process and not re.fullmatch(r"urn:fdc:peppol.eu:2017:poacc:billing:\d{2}:1.0", invoice.process):
        yield Violation("PEPPOL-EN16931-R007", f"{invoice.process} is no process of Peppol", "/process")
    if len(invoice.notes) > 1 and not german:
        yield Violation("PEPPOL-EN16931-R002", "there is room for one note only", "/notes")
    for name, party in (("seller", invoice.seller), ("buyer", invoice.buyer)):
        if party.endpoint and party.endpoint.scheme == "EM":
            detail = "an e-mail address (EM) is no address in Peppol: use 9930, 0204, 0088 or the like"
            yield Violation("PEPPOL-EN16931-CL008", detail, f"/{name}/endpoint/scheme")
    if invoice.type_code == "389":
        yield Violation("PEPPOL-EN16931-P0100", "self-billing has a profile of its own in Peppol", "/type_code")
    if invoice.type_code in ("326", "384") and not german:
        detail = f"type {invoice.type_code} is for two German parties only: use 381 and 380"
        yield Violation("PEPPOL-EN16931-P0112", detail, "/type_code")
    if german:
        yield from _german(invoice, "DE-R")


def _german(invoice: Invoice, prefix: str) -> Iterator[Violation]:
    """BR-DE-*; the same rules have the ids DE-R-* in Peppol, with three digits."""

    def rule(number: int) -> str:
        return f"{prefix}-{number}" if prefix == "BR-DE" else f"{prefix}-{number:03}"

    if invoice.payment is None:
        yield Violation(rule(1), "how to pay (BG-16) is needed", "/payment")
    contact = invoice.seller.contact
    if contact is None:
        yield Violation(rule(2), "the seller's contact (BG-6) is needed", "/seller/contact")
    else:
        said = ((5, contact.name, "name"), (6, contact.phone, "phone"), (7, contact.email, "email"))
        for number, value, name in said:
            if not value:
                yield Violation(rule(number), f"the seller's contact needs: {name}", f"/seller/contact/{name}")
    yield from _town(invoice.seller.address, rule(3), rule(4), "/seller/address")
    yield from _town(invoice.buyer.address, rule(8), rule(9), "/buyer/address")
    if invoice.delivery and invoice.delivery.address:
        yield from _town(invoice.delivery.address, rule(10), rule(11), "/delivery/address")
    if not invoice.buyer_reference:
        detail = "the buyer reference (BT-10) is needed, of an authority its Leitweg-ID"
        yield Violation(rule(15), detail, "/buyer_reference")
    if any(tax.category != "O" for tax in invoice.taxes):
        seller = invoice.seller
        if not (seller.vat_id or seller.tax_number or invoice.tax_representative):
            yield Violation(rule(16), "the seller's VAT id or tax number is needed", "/seller/vat_id")
    if invoice.payment:
        yield from _means(invoice.payment, rule)
    yield from _skonto(invoice.payment_terms, rule(18))
    names = Counter((one.name or one.ref).lower() for one in invoice.attachments if one.bytes is not None)
    for name, times in names.items():
        if times > 1:
            yield Violation(rule(22), f"{times} attachments are named {name}", "/attachments")


def _town(address: Address, city: str, post_code: str, pointer: str) -> Iterator[Violation]:
    if not address.city:
        yield Violation(city, "the city is needed", f"{pointer}/city")
    if not address.post_code:
        yield Violation(post_code, "the post code is needed", f"{pointer}/post_code")


def _means(payment: Payment, rule: object) -> Iterator[Violation]:
    assert callable(rule)
    groups = {"transfer": bool(payment.transfer), "card": payment.card is not None, "debit": payment.debit is not None}
    wanted = {"30": "transfer", "58": "transfer", "48": "card", "54": "card", "55": "card", "59": "debit"}
    needed = wanted.get(payment.code)
    number = {"transfer": 23, "card": 24, "debit": 25}
    if needed is not None:
        if not groups[needed]:
            detail = f"payment by {payment.code} needs the data of the {needed}"
            yield Violation(f"{rule(number[needed])}-a", detail, f"/payment/{needed}")
        for other, there in groups.items():
            if there and other != needed:
                detail = f"payment by {payment.code} has no data of a {other}"
                yield Violation(f"{rule(number[needed])}-b", detail, f"/payment/{other}")
    if payment.debit is not None:
        if not payment.debit.creditor_id:
            yield Violation(str(rule(30)), "a debit needs the creditor identifier", "/payment/debit/creditor_id")
        if not payment.debit.iban:
            yield Violation(str(rule(31)), "a debit needs the account to be debited", "/payment/debit/iban")


def _skonto(terms: str | None, rule: str) -> Iterator[Violation]:
    lines = (terms or "").split("\n")
    for place, line in enumerate(lines):
        if line.startswith("#") and (not _SKONTO.fullmatch(line.rstrip("\r")) or place + 1 == len(lines)):
            detail = "a discount for early payment reads #SKONTO#TAGE=14#PROZENT=2.00# and ends with a line break"
            yield Violation(rule, detail, "/payment_terms")
