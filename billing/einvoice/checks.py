"""Exact checks of an invoice before it is issued: what must add up to the cent, and what no official rule notices.

The official rules accept tax that is off by less than 1.00, two lines with one id, a due date before the issue date.
These checks do not; they run for every document, while the official rules run once per shape (`pipelines/`).
Each violation carries the id of the rule of EN 16931 where there is one, else a `CB-` id of our own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, localcontext

from billing.documents import TaxCategory
from billing.einvoice.model import AllowanceCharge, Identifier, Invoice, InvoiceLine, Period

CENT = Decimal("0.01")
DIGITS = 60  # of the exact products below: 14 + 12 places times 14 + 12, and room
VIOLATIONS_MAX = 50
_COUNTRY = re.compile(r"[A-Z]{2}")
_CURRENCY = re.compile(r"[A-Z]{3}")
_NO_TAX: frozenset[TaxCategory] = frozenset({"Z", "E", "AE", "K", "G", "O"})
_NEEDS_REASON: frozenset[TaxCategory] = frozenset({"E", "AE", "K", "G", "O"})


@dataclass(frozen=True)
class Violation:
    """A broken rule: its id, what is wrong in words, where (JSON pointer into the invoice)."""

    rule: str
    detail: str
    pointer: str = ""


@dataclass(frozen=True)
class Slack:
    """How far from their exact values amounts may lie, and whether the checks of our own (CB-*) count.

    What we bill is exact. What others made is taken as far as the official rules take it (`profiles.slack_of`).
    """

    line: Decimal | None = Decimal(0)  # None: whatever the line says
    tax: Decimal = Decimal(0)
    ours: bool = True


EXACT = Slack()


def check(invoice: Invoice, *, e_invoice: bool = True, minor_digits: int = 2, slack: Slack = EXACT) -> list[Violation]:
    """All violations, at most `VIOLATIONS_MAX`; an empty list means that the invoice may be issued.

    `minor_digits` are the currency's. A document that is no e-invoice (`e_invoice` false) must add up all the same,
    but needs no ids, addresses and two decimals.
    """
    found: list[Violation] = []
    with localcontext() as context:
        context.prec = DIGITS
        for violation in _all(invoice, e_invoice, minor_digits, slack):
            if not slack.ours and violation.rule.startswith("CB-"):
                continue
            found.append(violation)
            if len(found) == VIOLATIONS_MAX:
                break
    return found


def _all(invoice: Invoice, e_invoice: bool, minor_digits: int, slack: Slack) -> Iterator[Violation]:
    if e_invoice:
        yield from _header(invoice)
        yield from _parties(invoice)
        yield from _decimals(invoice)
    for name, times in Counter(line.id for line in invoice.lines).items():
        if times > 1:
            yield Violation("CB-02", f"{times} lines have the id {name}", "/lines")
    step = Decimal(1).scaleb(-max(minor_digits, 2))
    for index, line in enumerate(invoice.lines):
        yield from _line(line, f"/lines/{index}", step, slack.line)
    yield from _totals(invoice)
    yield from _taxes(invoice, e_invoice, Decimal(1).scaleb(-minor_digits), slack.tax)


def _header(invoice: Invoice) -> Iterator[Violation]:
    if not invoice.number.strip():
        yield Violation("BR-02", "an invoice needs a number", "/number")
    if not invoice.lines:
        yield Violation("BR-16", "an invoice needs a line", "/lines")
    if not _CURRENCY.fullmatch(invoice.currency):
        yield Violation("BR-05", f"{invoice.currency!r} is not a currency code", "/currency")
    if invoice.due_on is not None and invoice.due_on < invoice.issued_on:
        yield Violation("CB-01", f"due on {invoice.due_on}, before it is issued on {invoice.issued_on}", "/due_on")
    yield from _period(invoice.period, "BR-29", "BR-CO-19", "/period")
    if invoice.type_code == "381" and not (invoice.preceding or invoice.notes):
        detail = (
            "a credit note names the invoice that it credits (§ 31 (5) UStDV), or says in a note that there is none"
        )
        yield Violation("CB-03", detail, "/preceding")
    if invoice.payment:
        for index, one in enumerate(invoice.payment.transfer):
            if one.iban[:2].isalpha() and not valid_iban(one.iban):
                yield Violation("CB-04", f"{one.iban} is not an IBAN: its check digits are wrong",
                                f"/payment/transfer/{index}/iban")  # fmt: skip


def _period(period: Period | None, order: str, either: str, pointer: str) -> Iterator[Violation]:
    if period is None:
        return
    if period.start is None and period.end is None:
        yield Violation(either, "a period has a first day, a last day or both", pointer)
    elif period.start is not None and period.end is not None and period.end < period.start:
        yield Violation(order, "the period ends before it begins", pointer)


def like_iban(iban: str) -> bool:
    """Whether it has the form of an IBAN (ISO 13616), whatever its check digits say."""
    return re.fullmatch(r"[A-Z]{2}\d{2}[A-Z0-9]{8,30}", iban.replace(" ", "").upper()) is not None


def valid_iban(iban: str) -> bool:
    """ISO 13616: mod 97 over the digits, the first four characters last."""
    if not like_iban(iban):
        return False
    text = iban.replace(" ", "").upper()
    return int("".join(str(int(one, 36)) for one in text[4:] + text[:4])) % 97 == 1


def _parties(invoice: Invoice) -> Iterator[Violation]:
    seller, buyer = invoice.seller, invoice.buyer
    for name, party in (("seller", seller), ("buyer", buyer)):
        if not _COUNTRY.fullmatch(party.address.country or ""):
            rule = "BR-09" if name == "seller" else "BR-11"
            yield Violation(rule, f"the {name}'s address needs a country code", f"/{name}/address/country")
    if not (seller.vat_id or seller.legal_id or seller.ids):
        yield Violation("BR-CO-26", "the seller needs a VAT id, a register number or another id", "/seller")
    categories = {tax.category for tax in invoice.taxes}
    taxed = seller.vat_id or seller.tax_number or invoice.tax_representative
    rules: dict[TaxCategory, str] = {"S": "BR-S-02", "Z": "BR-Z-02", "E": "BR-E-02", "AE": "BR-AE-02"}
    for category, rule in rules.items():
        if category in categories and not taxed:
            yield Violation(rule, f"category {category} needs the seller's VAT id or tax number", "/seller")
    if "AE" in categories and not (buyer.vat_id or buyer.legal_id):
        yield Violation("BR-AE-02", "reverse charge needs the buyer's VAT id or register number", "/buyer/vat_id")
    if categories & {"K", "G"} and not (seller.vat_id or invoice.tax_representative):
        yield Violation("BR-IC-02" if "K" in categories else "BR-G-02", "needs the seller's VAT id", "/seller/vat_id")
    if "K" in categories:
        if not buyer.vat_id:
            yield Violation("BR-IC-02", "an intra-Community supply needs the buyer's VAT id", "/buyer/vat_id")
        if not (invoice.delivery and invoice.delivery.address):
            yield Violation("BR-IC-12", "an intra-Community supply needs the country of delivery", "/delivery/address")
    if "O" in categories and (seller.vat_id or buyer.vat_id):
        yield Violation("BR-O-02", "outside the scope of VAT no VAT id may be named", "/seller/vat_id")
    if "O" in categories and len(categories) > 1:
        yield Violation("BR-O-11", "lines outside the scope of VAT stand alone: split the invoice", "/taxes")


def _decimals(invoice: Invoice) -> Iterator[Violation]:
    totals = invoice.totals
    amounts: list[tuple[str, Decimal | None]] = [
        ("/totals/lines", totals.lines), ("/totals/allowances", totals.allowances),
        ("/totals/charges", totals.charges), ("/totals/net", totals.net), ("/totals/tax", totals.tax),
        ("/totals/gross", totals.gross), ("/totals/prepaid", totals.prepaid), ("/totals/rounding", totals.rounding),
        ("/totals/due", totals.due),
    ]  # fmt: skip
    for index, tax in enumerate(invoice.taxes):
        amounts += [(f"/taxes/{index}/base", tax.base), (f"/taxes/{index}/amount", tax.amount)]
    for index, line in enumerate(invoice.lines):
        amounts.append((f"/lines/{index}/net", line.net))
        pointer = f"/lines/{index}/allowances"
        amounts += [(f"{pointer}/{place}/amount", one.amount) for place, one in enumerate(line.allowances)]
    for pointer, amount in amounts:
        if amount is not None and amount != amount.quantize(CENT):
            yield Violation("BR-DEC-09", f"{amount} has more than two decimals, which EN 16931 cannot say", pointer)


def _sum(ones: Iterable[AllowanceCharge]) -> Decimal:
    return sum((one.amount for one in ones), Decimal(0))


def _line(line: InvoiceLine, pointer: str, step: Decimal, off: Decimal | None) -> Iterator[Violation]:
    if line.price < 0:
        yield Violation("BR-27", f"the price {line.price} is negative", f"{pointer}/price")
    base = Decimal(1) if line.base_quantity is None else line.base_quantity
    if base <= 0:
        yield Violation("PEPPOL-EN16931-R121", "the base quantity is above zero", f"{pointer}/base_quantity")
        return
    exact = line.quantity * line.price / base - _sum(line.allowances) + _sum(line.charges)
    if off is not None and abs(exact.quantize(step, ROUND_HALF_UP) - line.net) > off:
        detail = f"quantity x price gives {exact:.6f}, the line says {line.net}"
        yield Violation("PEPPOL-EN16931-R120", detail, f"{pointer}/net")
    for one in (*line.allowances, *line.charges):
        if one.amount < 0:
            yield Violation("CB-05", "an allowance or charge is never negative", f"{pointer}/allowances")
        if not (one.reason or one.reason_code):
            yield Violation("BR-42", "an allowance needs a reason", f"{pointer}/allowances")
    yield from _period(line.period, "BR-30", "BR-CO-20", f"{pointer}/period")
    if not line.name.strip():
        yield Violation("BR-25", "a line needs a name", f"{pointer}/name")
    if line.unit in {"GB", "KB", "MB", "TB"}:
        yield Violation("CB-06", f"unit {line.unit} is no amount of data in Recommendation 20", f"{pointer}/unit")
    outside = line.tax.category == "O"
    if outside == (line.tax.percent is not None):
        yield Violation("BR-O-05", "a line has a VAT rate exactly if it is not of category O", f"{pointer}/tax")
    yield from _identifier(line.object, f"{pointer}/object")


def _identifier(identifier: Identifier | None, pointer: str) -> Iterator[Violation]:
    if identifier is not None and not identifier.id.strip():
        yield Violation("CB-07", "an id is never empty", pointer)


def _totals(invoice: Invoice) -> Iterator[Violation]:
    totals = invoice.totals
    tax = totals.tax or Decimal(0)
    expected = [
        ("BR-CO-10", "lines", sum((line.net for line in invoice.lines), Decimal(0)), totals.lines),
        ("BR-CO-11", "allowances", _sum(invoice.allowances), totals.allowances or Decimal(0)),
        ("BR-CO-12", "charges", _sum(invoice.charges), totals.charges or Decimal(0)),
        (
            "BR-CO-13",
            "net",
            totals.lines - (totals.allowances or 0) + (totals.charges or 0),
            totals.net,
        ),
        ("BR-CO-14", "tax", sum((one.amount for one in invoice.taxes), Decimal(0)), tax),
        ("BR-CO-15", "gross", totals.net + tax, totals.gross),
        ("BR-CO-16", "due", totals.gross - (totals.prepaid or 0) + (totals.rounding or 0), totals.due),
    ]
    for rule, name, is_so, said in expected:
        if is_so != said:
            yield Violation(rule, f"total {name} is {is_so}, the invoice says {said}", f"/totals/{name}")


def _taxes(invoice: Invoice, e_invoice: bool, step: Decimal, off: Decimal) -> Iterator[Violation]:
    if not invoice.taxes and (e_invoice or invoice.lines or invoice.allowances or invoice.charges):
        yield Violation("BR-CO-18", "an invoice needs a VAT breakdown", "/taxes")
    bases: dict[tuple[TaxCategory, Decimal], Decimal] = {}
    for line in invoice.lines:
        key = (line.tax.category, line.tax.percent or Decimal(0))
        bases[key] = bases.get(key, Decimal(0)) + line.net
    for sign, ones in ((-1, invoice.allowances), (1, invoice.charges)):
        for one in ones:
            if one.tax_category is None:
                yield Violation("BR-32", "an allowance of the whole document needs a VAT category", "/allowances")
                continue
            key = (one.tax_category, one.tax_percent or Decimal(0))
            bases[key] = bases.get(key, Decimal(0)) + sign * one.amount
    stated = Counter((tax.category, tax.percent or Decimal(0)) for tax in invoice.taxes)
    for category, percent in bases.keys() - stated.keys():
        yield Violation("BR-S-08", f"the VAT breakdown lacks {category} {percent} %", "/taxes")
    within = _within(invoice)
    for index, tax in enumerate(invoice.taxes):
        pointer = f"/taxes/{index}"
        key = (tax.category, tax.percent or Decimal(0))
        if stated[key] > 1:
            yield Violation("BR-S-08", f"two groups of {tax.category} {tax.percent} %", pointer)
        base = bases.get(key, Decimal(0))
        if base != tax.base:
            yield Violation("BR-S-08", f"the group's sum is {base}, the breakdown says {tax.base}", f"{pointer}/base")
        gross, net = within.get(key, (Decimal(0), Decimal(0)))
        # Of prices that contain the tax: taken out of their gross, once. It may be a cent beside percent x base, which
        # BR-CO-17 allows; that is what makes 3 x 9.99 come out as 29.97.
        inside = (gross * key[1] / (100 + key[1])).quantize(step, ROUND_HALF_UP)
        amount = ((tax.base - net) * key[1] / 100).quantize(step, ROUND_HALF_UP) + inside
        if abs(amount - tax.amount) > max(_tolerance(invoice), off):
            detail = f"{key[1]} % of {tax.base} is {amount}, the breakdown says {tax.amount}"
            yield Violation("BR-CO-17", detail, f"{pointer}/amount")
        if tax.category in _NO_TAX and tax.amount != 0:
            yield Violation("BR-AE-09", f"category {tax.category} carries no tax (§ 14c UStG)", f"{pointer}/amount")
        if tax.category in _NEEDS_REASON and not (tax.reason or tax.reason_code):
            yield Violation(f"BR-{tax.category}-10", "needs the reason why no tax is charged", f"{pointer}/reason")


def _within(invoice: Invoice) -> dict[tuple[TaxCategory, Decimal], tuple[Decimal, Decimal]]:
    """Gross and net of what is stated with tax, by group: lines less allowances."""
    found: dict[tuple[TaxCategory, Decimal], tuple[Decimal, Decimal]] = {}

    def add(category: TaxCategory, percent: Decimal | None, gross: Decimal, net: Decimal) -> None:
        key = (category, percent or Decimal(0))
        before = found.get(key, (Decimal(0), Decimal(0)))
        found[key] = (before[0] + gross, before[1] + net)

    for line in invoice.lines:
        if line.gross is not None:
            add(line.tax.category, line.tax.percent, line.gross, line.net)
    for one in invoice.allowances:
        if one.gross is not None and one.tax_category is not None:
            add(one.tax_category, one.tax_percent, -one.gross, -one.amount)
    return found


def _tolerance(invoice: Invoice) -> Decimal:
    """Zero but for credit notes: part credits of one invoice give its tax back exactly, the last one with the rest.

    68.33 twice at 20 % of an invoice with 27.33 tax is 13.67 and then 13.66 (docs/rules.md, Credit notes).
    """
    return CENT * 100 if invoice.type_code == "381" else Decimal(0)
