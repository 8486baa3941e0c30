"""From a billed document to an invoice in EN 16931 terms: quantities, prices, periods, references, reasons.

Owns how an exact amount is expressed so that quantity x price / base quantity gives it again to the cent. It computes
no money of its own: every amount is the document's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any, cast
from zoneinfo import ZoneInfo

from billing.documents import Allowance, Document, Line, TaxCategory
from billing.einvoice.model import (
    AllowanceCharge,
    Attribute,
    Debit,
    Delivery,
    Identifier,
    Invoice,
    InvoiceLine,
    LineGroup,
    LineTax,
    Note,
    Party,
    Payment,
    Period,
    Preceding,
    RecordRow,
    Tax,
    Totals,
    Transfer,
    UsageRecord,
    plain,
)
from billing.einvoice.units import ONE, unit_code
from billing.einvoice.words import VATEX, Words, day, figure, words

INVOICE, CREDIT_NOTE = "380", "381"
SEPA_TRANSFER, TRANSFER, SEPA_DEBIT = "58", "30", "59"
DISCOUNT_CODE = "95"  # BT-98 and BT-140
TIERS_SAID_MAX = 20  # in words; all of them are attributes
ATTRIBUTES_MAX = 200  # of one line: tiers beyond that stay in the usage record only
_LAST = timedelta(microseconds=1)  # periods are half-open, the standard's are inclusive


@dataclass(frozen=True)
class Issue:
    """What a document needs beside its amounts to become an invoice. Number and date are given, never chosen here."""

    number: str
    seller: Party
    buyer: Party
    timezone: str
    language: str = "de"
    due_on: date | None = None
    accounts: tuple[Transfer, ...] = ()
    debit: Debit | None = None  # how it is collected, in place of a transfer to the accounts
    order: str | None = None
    contract: str | None = None
    buyer_reference: str | None = None
    cost_centre: str | None = None
    notes: tuple[Note, ...] = ()
    issued_on_of: Mapping[str, date] = field(default_factory=dict[str, date])  # of invoices that are referred to
    tax_reasons: Mapping[TaxCategory, str] = field(default_factory=dict[TaxCategory, str])  # in place of the usual


def invoice_of(document: Document, issue: Issue) -> Invoice:
    """The document in terms of EN 16931; whether the standard allows what it says is up to `checks.py`."""
    spoken = words(issue.language)
    zone = ZoneInfo(issue.timezone)
    categories = {tax.category for tax in document.taxes} | {line.tax_category for line in document.lines}
    outside = categories == {"O"}  # beside others O cannot be said in an e-invoice: `checks.py` refuses it (BR-O-11)
    names = _names(document, issue.buyer.name)
    lines = tuple(_line(line, str(number), spoken, zone, names) for number, line in enumerate(document.lines, start=1))
    period = _whole_period([line.period for line in lines if line.period])
    credit = document.type == "credit_note"
    preceding = _preceding(document, issue)
    return Invoice(
        number=issue.number,
        issued_on=document.date,
        type_code=CREDIT_NOTE if credit else INVOICE,
        currency=document.currency,
        seller=_without_vat_id(issue.seller) if outside else issue.seller,
        buyer=_without_vat_id(issue.buyer) if outside else issue.buyer,
        totals=_totals(document),
        taxes=tuple(_tax(document, index, issue, spoken) for index in range(len(document.taxes))),
        lines=lines,
        due_on=None if credit else issue.due_on,
        buyer_reference=issue.buyer_reference,
        order=issue.order,
        contract=issue.contract,
        buyer_accounting_reference=issue.cost_centre,
        payment_terms=_terms(document, issue, spoken),
        # Goodwill alone: it corrects no invoice, and says so instead of naming one (§ 31 (5) UStDV is for corrections).
        notes=(*issue.notes, Note(spoken.unrelated)) if credit and not preceding else issue.notes,
        preceding=preceding,
        delivery=_delivery(period, issue.buyer, "K" in categories),
        period=period,
        payment=_payment(document, issue),
        allowances=tuple(_allowance(one, spoken) for one in document.allowances),
        groups=_groups(document, names),
        records=tuple(_records(document)),
        timezone=issue.timezone,
    )


# -- Header ------------------------------------------------------------------------------------------------------------


def _without_vat_id(party: Party) -> Party:
    """BR-O-02: where nothing is taxable here, the document names no VAT id; tax number and register number stay."""
    return replace(party, vat_id=None)


def _whole_period(periods: Sequence[Period]) -> Period | None:
    if not periods:
        return None
    starts = [one.start for one in periods if one.start is not None]
    ends = [one.end for one in periods if one.end is not None]
    return Period(min(starts, default=None), max(ends, default=None))


def _delivery(period: Period | None, buyer: Party, goods_within_the_union: bool) -> Delivery | None:
    """BT-72: a continuing service is performed when its period ends, as the tax point says. BR-IC-12: country for K."""
    if period is None:
        return None
    return Delivery(delivered_on=period.end, address=buyer.address if goods_within_the_union else None)


def _terms(document: Document, issue: Issue, spoken: Words) -> str:
    if document.type == "credit_note":
        return spoken.credited
    if document.due <= 0:
        return spoken.nothing_due
    text = spoken.due if issue.debit is None else spoken.collected
    return text.format(day=day(issue.due_on or document.date, spoken))


def _payment(document: Document, issue: Issue) -> Payment | None:
    if document.type == "credit_note":
        return None
    if issue.debit is not None:  # 59 has data of a debit and none of a transfer (BR-DE-25)
        return Payment(code=SEPA_DEBIT, reference=issue.number, debit=issue.debit)
    if not issue.accounts:
        return None
    code = SEPA_TRANSFER if document.currency == "EUR" else TRANSFER
    return Payment(code=code, reference=issue.number, transfer=issue.accounts)


def _preceding(document: Document, issue: Issue) -> tuple[Preceding, ...]:
    """BG-3: § 31 (5) UStDV wants number and date of what is corrected; the rules of EN 16931 do not notice."""
    numbers = [document.refers_to] if document.refers_to else []
    numbers += [line.corrects.document for line in document.lines if line.corrects]
    return tuple(Preceding(number, issue.issued_on_of.get(number)) for number in dict.fromkeys(numbers))


def _tax(document: Document, index: int, issue: Issue, spoken: Words) -> Tax:
    total = document.taxes[index]
    return Tax(
        base=total.base,
        amount=total.amount,
        category=total.category,
        percent=None if total.category == "O" else total.percent,
        reason=issue.tax_reasons.get(total.category) or spoken.tax_reasons.get(total.category),
        reason_code=VATEX.get(total.category),
    )


def _totals(document: Document) -> Totals:
    lines = sum((line.amount for line in document.lines), Decimal(0))
    allowances = sum((one.amount for one in document.allowances), Decimal(0))
    return Totals(
        lines=lines,
        net=document.net,
        gross=document.gross,
        due=document.due,
        tax=document.tax,
        allowances=allowances if document.allowances else None,
        prepaid=document.prepaid if document.prepaid else None,
    )


def _allowance(one: Allowance, spoken: Words) -> AllowanceCharge:
    return AllowanceCharge(
        amount=one.amount,
        reason=spoken.discount if one.kind == "discount" else spoken.promotional,
        reason_code=DISCOUNT_CODE,
        tax_category=one.tax_category,
        tax_percent=None if one.tax_category == "O" else one.tax_percent,
        gross=one.gross,
    )


def _names(document: Document, own: str) -> dict[str, str]:
    """Names by `Line.customer`, of a document that has lines of several customers; else none."""
    if not document.members:
        return {}
    return {"": own, **{member.code: member.name for member in document.members}}


# -- Lines -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Priced:
    quantity: Decimal
    price: Decimal
    base_quantity: Decimal | None = None
    unit: str | None = None  # another one than the line's


def _priced(line: Line) -> _Priced:
    """Quantity and price that give the line's amount before discount exactly; the price is never negative (BR-27).

    The true unit price where it does give the amount: it reads better. Else the base quantity: price = |amount| for
    |quantity| units, so that quantity x price / base quantity is the amount, whatever tiers or minimum made it.
    """
    gross = line.amount + line.allowance
    quantity, unit_price = line.quantity, line.unit_price
    if quantity == 0 and gross != 0:  # a minimum or fee that no quantity explains
        return _Priced(Decimal(1).copy_sign(gross), abs(gross), unit=ONE)
    if unit_price is not None:
        flipped = -1 if unit_price < 0 else 1  # a negative price becomes a negative quantity
        exact = (quantity * flipped) * abs(unit_price)
        if exact.quantize(_step(gross), ROUND_HALF_UP) == gross:
            return _Priced(quantity * flipped, abs(unit_price))
    if quantity == 0:
        return _Priced(quantity, Decimal(0))
    return _Priced(abs(quantity).copy_sign(gross if gross != 0 else quantity), abs(gross), abs(quantity))


def _step(amount: Decimal) -> Decimal:
    """To what quantity x price is rounded: cents, or less where the currency has more decimals (KWD)."""
    return Decimal((0, (1,), min(cast(int, amount.as_tuple().exponent), -2)))


def _line(line: Line, number: str, spoken: Words, zone: ZoneInfo, names: Mapping[str, str]) -> InvoiceLine:
    code, unit_name = unit_code(line.unit)
    priced = _priced(line)
    if priced.unit is not None:
        code, unit_name = priced.unit, None
    name = spoken.minimum if line.kind == "minimum" else line.name or line.charge
    return InvoiceLine(
        id=number,
        quantity=priced.quantity,
        unit=code,
        net=line.amount,
        price=priced.price,
        tax=LineTax(line.tax_category, None if line.tax_category == "O" else line.tax_percent),
        name=spoken.correction.format(name=name) if line.correction else name,
        note=_note(line, spoken),
        object=Identifier(line.subscription) if line.subscription else None,
        accounting_reference=line.cost_centre or None,
        period=_period(line.start, line.end, zone),
        allowances=_discounts(line, spoken, back=False),
        charges=_discounts(line, spoken, back=True),
        base_quantity=priced.base_quantity,
        description=_tiers(line, spoken),
        seller_sku=line.charge or None,
        attributes=tuple(_attributes(line, unit_name, spoken, names))[:ATTRIBUTES_MAX],
        gross=line.gross,
        price_with_tax=_price_with_tax(line),
    )


def _price_with_tax(line: Line) -> Decimal | None:
    """The agreed unit price, where it contains the tax and explains the gross: the net price is one that nobody set."""
    if line.gross is None or line.unit_price is None or line.unit_price < 0:
        return None
    before = line.gross + line.stated_allowance
    return (
        line.unit_price if (line.quantity * line.unit_price).quantize(_step(before), ROUND_HALF_UP) == before else None
    )


def _period(start: datetime, end: datetime, zone: ZoneInfo) -> Period:
    """First and last day in the tenant's zone: a month that ends at midnight ends on the day before."""
    first = start.astimezone(zone).date()
    return Period(first, max(first, (end - _LAST).astimezone(zone).date()))


def _discounts(line: Line, spoken: Words, *, back: bool) -> tuple[AllowanceCharge, ...]:
    """BG-27, or BG-28 where a line takes back an allowance: neither may be negative."""
    if line.allowance == 0 or (line.allowance < 0) != back:
        return ()
    reason = spoken.line_discount_back if back else spoken.line_discount
    gross = None if line.gross_allowance is None else abs(line.gross_allowance)
    return (AllowanceCharge(abs(line.allowance), reason, None if back else DISCOUNT_CODE, gross=gross),)


def _decimal(value: object) -> Decimal | None:
    """A number of an explanation; one without end (`1/3`) is cut to twelve decimals, as quantities are."""
    if value is None or value == "":
        return None
    numerator, _, denominator = str(value).partition("/")
    if not denominator:
        return Decimal(numerator)
    with localcontext() as context:
        context.prec = 60
        return (Decimal(numerator) / Decimal(denominator)).quantize(Decimal("1e-12"), ROUND_HALF_UP)


def _text(value: object) -> str | None:
    """The same as plain text, or None where there is none."""
    number = _decimal(value)
    return None if number is None else plain(number)


def _entries(line: Line, key: str) -> list[Mapping[str, Any]]:
    found = line.explanation.get(key)
    return [cast(Mapping[str, Any], one) for one in cast(list[object], found)] if isinstance(found, list) else []


def _entry(line: Line, key: str) -> Mapping[str, Any]:
    found = line.explanation.get(key)
    return cast(Mapping[str, Any], found) if isinstance(found, Mapping) else {}


def _note(line: Line, spoken: Words) -> str | None:
    notes: list[str] = []
    proration = _entry(line, "proration")
    if proration:
        words_of = spoken.proration_second if proration.get("by") == "second" else spoken.proration_day
        notes.append(words_of.format(active=proration.get("active", ""), full=proration.get("full", "")))
    included = _text(line.explanation.get("included"))
    if included is not None and included != "0":
        notes.append(spoken.included.format(quantity=figure(Decimal(included), spoken)))
    if line.correction and line.explanation.get("late"):
        notes.append(spoken.late)
    return ", ".join(notes) or None


def _tiers(line: Line, spoken: Words) -> str | None:
    """BT-154: the tiers of a line in words, because many programs that show an invoice leave attributes out."""
    said: list[str] = []
    tiers = _entries(line, "tiers")
    for number, tier in enumerate(tiers[:TIERS_SAID_MAX], start=1):
        quantity, unit, flat, amount = (
            figure(_decimal(tier.get(key)) or Decimal(0), spoken) for key in ("quantity", "unit", "flat", "amount")
        )
        extra = "" if flat == "0" else f" + {flat}"
        said.append(f"{spoken.tier.format(number=number)}: {quantity} x {unit}{extra} = {amount}")
    return "; ".join([*said, *(["..."] if len(tiers) > TIERS_SAID_MAX else [])]) or None


def _attributes(line: Line, unit_name: str | None, spoken: Words, names: Mapping[str, str]) -> list[Attribute]:
    found = [Attribute(name, value) for name, value in (line.when or {}).items() if name and value]
    if unit_name:
        found.append(Attribute(spoken.unit, unit_name))
    if names:
        found.append(Attribute(spoken.customer, names[line.customer]))
    for number, tier in enumerate(_entries(line, "tiers"), start=1):
        parts = f"{_text(tier.get('quantity')) or '0'} x {_text(tier.get('unit')) or '0'}"
        flat = _text(tier.get("flat"))
        if flat is not None and flat != "0":
            parts += f" + {flat}"
        found.append(Attribute(spoken.tier.format(number=number), f"{parts} = {_text(tier.get('amount')) or '0'}"))
    return found


def _groups(document: Document, names: Mapping[str, str]) -> tuple[LineGroup, ...]:
    """Neighbouring lines of one customer, subscription and plan version, with their sum."""
    groups: list[LineGroup] = []
    keys: list[tuple[object, ...]] = []
    for number, line in enumerate(document.lines, start=1):
        key = (line.customer, line.subscription, line.plan, line.plan_version)
        if not keys or keys[-1] != key:
            keys.append(key)
            customer = names.get(line.customer, "")
            begun = LineGroup((), line.subscription, line.plan, line.plan_version, line.plan, Decimal(0))
            groups.append(replace(begun, customer=customer, gross=None if line.gross is None else Decimal(0)))
        last = groups[-1]
        gross = None if line.gross is None or last.gross is None else last.gross + line.gross
        net = (last.net or Decimal(0)) + line.amount
        groups[-1] = replace(last, lines=(*last.lines, str(number)), net=net, gross=gross)
    return tuple(groups)


def _records(document: Document) -> list[UsageRecord]:
    """A record for each line that a customer can check by more than quantity and price."""
    found = ((str(number), line, _rows(line)) for number, line in enumerate(document.lines, start=1))
    return [
        UsageRecord(number, tuple(rows), _decimal(line.explanation.get("exact")))
        for number, line, rows in found
        if rows
    ]


def _rows(line: Line) -> list[RecordRow]:
    rows: list[RecordRow] = []
    for entry in _entries(line, "dimensions"):
        values = cast(Mapping[str, object], entry.get("values") or {})
        rows.append(
            RecordRow(
                "dimension",
                ", ".join(values),
                ", ".join(str(value) for value in values.values()),
                quantity=_decimal(entry.get("quantity")),
                amount=_decimal(entry.get("amount")),
            )
        )
    included = _decimal(line.explanation.get("included"))
    if included:
        rows.append(RecordRow("included", quantity=min(included, max(line.quantity, Decimal(0)))))
        if line.quantity > included and not _entries(line, "tiers"):
            exact = _decimal(line.explanation.get("exact"))
            rows.append(RecordRow("beyond", quantity=line.quantity - included, amount=exact))
    rows += [_tier_row(number, tier) for number, tier in enumerate(_entries(line, "tiers"), start=1)]
    package = _entry(line, "package")
    if package:
        rows.append(
            RecordRow(
                "package",
                value=_text(package.get("size")) or "",
                quantity=_decimal(package.get("count")),
                price=_decimal(package.get("amount")),
            )
        )
    for kind in ("rated", "billed"):
        entry = _entry(line, kind)
        if entry:
            sign = -1 if kind == "billed" else 1
            quantity, amount = _decimal(entry.get("quantity")), _decimal(entry.get("amount"))
            rows.append(
                RecordRow(
                    kind,
                    str(entry.get("document") or ""),
                    quantity=None if quantity is None else quantity * sign,
                    amount=None if amount is None else amount * sign,
                )
            )
    return rows


def _tier_row(number: int, tier: Mapping[str, Any]) -> RecordRow:
    return RecordRow(
        "tier",
        str(number),
        up_to=_decimal(tier.get("up_to")),
        quantity=_decimal(tier.get("quantity")),
        price=_decimal(tier.get("unit")),
        amount=_decimal(tier.get("amount")),
    )
