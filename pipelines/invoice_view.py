"""What an invoice layout prints: every figure, date and word of one language as text, in the order of the page.

A layout formats and never computes; so this module turns an `Invoice` into texts and leaves places to the layout.
Words come from the layout's `texts/<language>.json`, signs of numbers and names of months from Babel.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Protocol, cast

from babel import Locale
from babel.dates import format_date
from babel.numbers import get_currency_precision

from billing.einvoice.checks import like_iban
from billing.einvoice.model import (
    Address,
    AllowanceCharge,
    Invoice,
    InvoiceLine,
    LineGroup,
    Party,
    Payment,
    Period,
    RecordRow,
    UsageRecord,
    plain,
)
from billing.einvoice.parties import Seller
from billing.einvoice.ubl import CREDIT_NOTE_TYPES
from billing.errors import FieldError, InvalidInput
from pipelines.column_widths import widths_of_lines, widths_of_taxes
from pipelines.epc_code import epc_svg, epc_text

LAYOUTS = Path(__file__).parent / "layouts"
PADDED_MAX = 4  # decimals that are aligned under each other; longer ones stand out on purpose
WORD_MAX = 24  # characters without a place to break; longer words get one every so many, or they leave their column
WORD_STEP = 8
WINDOW_LINES, INFORMATION_LINES = 6, 9  # what DIN 5008 form B leaves room for at the usual sizes
LONG = 400  # characters of one cell: from here on it may leave its page, so it may break
CLOSING_LONG = 1_500  # the same for taxes, totals, payment and notes together
RECORD_ROWS, RECORD_LONG = 30, 3_000  # a record with more rows or characters than these may break
LOGO_CHARACTERS_MAX = 200_000
ATTACHED_BYTES_MAX = 5_000_000  # of one document; each octet is a number on its way into the page
_LONG_WORD = re.compile(rf"\S{{{WORD_MAX + 1},}}")
_ZERO_WIDTH_SPACE = "\u200b"
_DEBITS = frozenset({"49", "59"})  # BT-81
_COLLECTED = _DEBITS | {"48", "54", "55"}


@cache
def texts_of(layout: str, language: str) -> dict[str, Any]:
    """The layout's words of a language; `InvalidInput` names the languages that there are."""
    folder = LAYOUTS / layout / "texts"
    path = folder / f"{language}.json"
    if not re.fullmatch(r"[a-z]{2}", language) or not path.is_file():
        known = ", ".join(sorted(one.stem for one in folder.glob("*.json")))
        detail = f"layout {layout} has no texts in {language!r}; it has {known}"
        raise InvalidInput(detail, errors=[FieldError("/language", detail)])
    return json.loads(path.read_text("utf-8"))


@lru_cache(maxsize=20_000)
def _date(value: date, pattern: str, locale: str) -> str:
    return format_date(value, pattern, locale=locale)


@lru_cache(maxsize=1_000)
def _country(code: str | None, locale: str) -> str:
    return Locale.parse(locale).territories.get(code, code) if code else ""


@cache
def signs_of(locale: str) -> tuple[str, str]:
    symbols = Locale.parse(locale).number_symbols["latn"]
    return symbols["decimal"], symbols["group"]


@lru_cache(maxsize=1_000)
def decimals_of(currency: str) -> int:
    return get_currency_precision(currency)


@dataclass(frozen=True)
class Speech:
    """One language of one layout: its words, and how it writes figures and dates."""

    texts: dict[str, Any]

    @property
    def locale(self) -> str:
        return self.texts["locale"]

    def number(self, value: Decimal, decimals_min: int = 0) -> str:
        """48.217,25 or 48,217.25; all digits that there are, a real minus sign, no exponent."""
        text = plain(abs(value))
        whole, _, part = text.partition(".")
        point, group = signs_of(self.locale)
        digits = f"{int(whole):,}".replace(",", group)
        part = part.ljust(decimals_min, "0")
        sign = "−" if value < 0 else ""
        return f"{sign}{digits}{point}{part}" if part else f"{sign}{digits}"

    def money(self, value: Decimal, currency: str) -> str:
        return self.number(value, decimals_of(currency))

    def date(self, value: date) -> str:
        return _date(value, self.texts["date"], self.locale)

    def date_long(self, value: date) -> str:
        return _date(value, self.texts["date_long"], self.locale)

    def period(self, period: Period) -> str:
        """01.–31.10.2026: what both ends share is said once; an open end is left open."""
        start, end = period.start, period.end
        if start is None or end is None:
            return f"{self.date(start) if start else ''}{self.texts['dash']}{self.date(end) if end else ''}"
        if start == end:
            return self.date(start)
        first = self.texts["date"]
        if start.year == end.year:
            first = self.texts["day"] if start.month == end.month else self.texts["day_month"]
        return _date(start, first, self.locale) + self.texts["dash"] + self.date(end)


def breakable(text: str) -> str:
    """The text with places to break inside words that no column could hold."""

    def opened(word: re.Match[str]) -> str:
        letters = word.group()
        return _ZERO_WIDTH_SPACE.join(letters[at : at + WORD_STEP] for at in range(0, len(letters), WORD_STEP))

    return _LONG_WORD.sub(opened, text)


def padded(texts: Sequence[str], point: str) -> list[list[str]]:
    """Each text with the digits that it lacks, printed invisibly, so that point stands under point."""
    lengths = [len(text.partition(point)[2]) for text in texts]
    width = min(max(lengths, default=0), PADDED_MAX)
    rows: list[list[str]] = []
    for text, length in zip(texts, lengths, strict=True):
        lacking = "0" * max(width - length, 0) if text[-1:].isdigit() else ""
        rows.append([text, (point if lacking and length == 0 else "") + lacking])
    return rows


def view(invoice: Invoice, seller: Seller, layout: str, language: str, *, from_credit: bool = False) -> dict[str, Any]:
    """The page as data. `seller` is the letterhead; names and ids are the invoice's own. `from_credit`: the platform
    made it, so what is prepaid came out of the customer's credit; else nobody here knows who took it."""
    speech = Speech(texts_of(layout, language))
    texts = speech.texts
    kind = _kind(invoice.type_code)
    title = f"{texts['titles'][kind]} {invoice.number}"
    numbers = {record.line: str(index) for index, record in enumerate(invoice.records, start=1)}
    window, information, aside = _fitted(_window(invoice, speech), _information(invoice, speech, kind))
    columns, groups = _columns(invoice, texts), _groups(invoice, speech, numbers)
    taxes, totals = _taxes(invoice, speech), _totals(invoice, speech, from_credit)
    payment = _payment(invoice, speech, kind)
    notes = [*_notes(invoice, speech), *aside]
    return {
        "lang": language,
        "region": texts["region"],
        "title": title,
        "author": invoice.seller.name,
        "date": [invoice.issued_on.year, invoice.issued_on.month, invoice.issued_on.day],
        "running": f"{shortened(title)}   {speech.date_long(invoice.issued_on)}",
        "letterhead": _letterhead(invoice, seller, speech),
        "window": [breakable(line) for line in window],
        "information": [[name, breakable(value), strong] for name, value, strong in information],
        "tall": _is_tall(window, information),
        "intro": [texts["greeting"], " ".join(_intro(invoice, texts, kind))],
        "columns": columns,
        "widths": widths_of_lines(columns, groups),
        "with_gross": _with_gross(invoice),
        "groups": groups,
        "taxes": taxes,
        "totals": totals,
        "due": _due(invoice, speech, kind),
        "payment": payment,
        "notes": [breakable(note) for note in notes],
        "long": _length([notes, taxes, totals, payment["sentence"], payment["rows"]]) > CLOSING_LONG,
        "records": _records(invoice, speech, numbers),
        "attachments": _attachments(invoice),
        "page": texts["page"],
        "of": texts["of"],
    }


def _length(texts: Any) -> int:
    """All characters of texts in lists."""
    if isinstance(texts, str):
        return len(texts)
    if isinstance(texts, Mapping):
        texts = texts.values()
    elif not isinstance(texts, Sequence):
        return 0
    return sum(_length(one) for one in cast(Iterable[Any], texts))


def shortened(text: str) -> str:
    return text if len(text) <= LONG else text[: LONG // 2] + "…"


def _fitted(
    window: Sequence[str], information: Sequence[tuple[str, str, bool]]
) -> tuple[list[str], list[tuple[str, str, bool]], list[str]]:
    """Window and information block stand at fixed places: what they cannot hold is said in full below, as notes."""
    aside = [line for line in window if len(line) > LONG]
    aside += [f"{name}: {value}" for name, value, _ in information if len(value) > LONG]
    shown = [(name, shortened(value), strong) for name, value, strong in information]
    return [shortened(line) for line in window], shown, aside


def _kind(type_code: str) -> str:
    """Which words a document gets: each of the usual types has its own, the rest are invoices or credit notes."""
    if type_code in ("380", "381", "384", "326", "386", "389"):
        return type_code
    return "381" if type_code in CREDIT_NOTE_TYPES else "380"


# -- Letterhead, window, information block -----------------------------------------------------------------------------


def _town(address: Address) -> str:
    return " ".join(part for part in (address.post_code, address.city) if part)


def _logo(svg: str | None) -> str | None:
    """The logo as it is drawn: SVG text of a bounded size. Files named inside it are refused by Typst."""
    if svg is not None and not (svg.lstrip().startswith(("<svg", "<?xml")) and len(svg) <= LOGO_CHARACTERS_MAX):
        detail = f"the logo must be SVG text of at most {LOGO_CHARACTERS_MAX} characters"
        raise InvalidInput(detail, errors=[FieldError("/legal_entity/logo", detail)])
    return svg


class Addressed(Protocol):
    """What letterhead and window are made of: an invoice, or a document that accompanies one."""

    @property
    def seller(self) -> Party: ...
    @property
    def buyer(self) -> Party: ...
    @property
    def payment(self) -> Payment | None: ...


def sheet_of(
    document: Addressed, letterhead: Seller, rows: Sequence[tuple[str, str, bool]], speech: Speech
) -> tuple[dict[str, Any], list[str]]:
    """The parts of a page that stand at fixed places, with `rows` as its information block, and what had no room."""
    window, information, aside = _fitted(_window(document, speech), rows)
    return {
        "letterhead": _letterhead(document, letterhead, speech),
        "window": [breakable(line) for line in window],
        "information": [[name, breakable(value), strong] for name, value, strong in information],
        "tall": _is_tall(window, information),
    }, aside


def _letterhead(invoice: Addressed, letterhead: Seller, speech: Speech) -> dict[str, Any]:
    seller, texts = invoice.seller, speech.texts
    address, contact = seller.address, seller.contact
    place = [part for part in (address.street, _town(address)) if part]
    account = invoice.payment.transfer[0] if invoice.payment and invoice.payment.transfer else None
    account = account or (letterhead.accounts[0] if letterhead.accounts else None)
    own = [*place, _country(address.country, speech.locale)]
    legal = [
        *([texts["directors"], letterhead.directors] if letterhead.directors else []),
        *([letterhead.court] if letterhead.court else []),
        *([seller.legal_id.id] if seller.legal_id else []),
        *([f"{texts['tax_number']} {seller.tax_number}"] if seller.tax_number else []),
    ]
    bank = [
        *([f"{texts['bank']} {letterhead.bank_name}"] if letterhead.bank_name else []),
        *([" ".join(account_row(account.iban, texts))] if account else []),
        *([f"BIC {account.bic}"] if account and account.bic else []),
        *([f"{texts['vat_id']} {seller.vat_id}"] if seller.vat_id else []),
    ]
    reach = [part for part in (contact.email, contact.phone) if part] if contact else []
    first, _, rest = seller.name.partition(" ")
    return {
        "name": breakable(seller.name),
        "sender": " · ".join([seller.name, *place]),
        "logo": _logo(letterhead.logo),
        "foot": "",  # below the columns of the footer: a layout's own words
        "logo_alt": texts["logo_alt"].format(name=seller.name),
        "wordmark": [breakable(first), breakable(rest)],
        "columns": [[breakable(line) for line in column] for column in (own, legal, bank)],
        "reach": reach,
    }


def account_row(number: str, texts: dict[str, Any]) -> list[str]:
    """An account's name and text: an IBAN in groups of four; what is none is the bank's own number, as it stands."""
    if not like_iban(number):
        return [texts["account"], number]
    compact = number.replace(" ", "")
    return ["IBAN", " ".join(compact[at : at + 4] for at in range(0, len(compact), 4))]


def _window(invoice: Addressed, speech: Speech) -> list[str]:
    """Name and address as they are written on an envelope; the country only where it is another than the seller's."""
    buyer, address = invoice.buyer, invoice.buyer.address
    contact = buyer.contact.name if buyer.contact else None
    country = None
    if address.country != invoice.seller.address.country:
        country = _country(address.country, speech.locale).upper()
    parts = (
        buyer.name,
        buyer.trading_name,
        contact,
        address.street,
        address.line_two,
        address.line_three,
        _town(address),
        address.subdivision,
        country,
    )
    return [part for part in parts if part]


def _information(invoice: Invoice, speech: Speech, kind: str) -> list[tuple[str, str, bool]]:
    texts, buyer = speech.texts, invoice.buyer
    contact = invoice.seller.contact
    period = invoice.period
    rows: list[tuple[str, str | None, bool]] = [
        (texts["number"][kind], invoice.number, True),
        (texts["issued_on"][kind], speech.date(invoice.issued_on), False),
        (texts["refers_to"], ", ".join(one.number for one in invoice.preceding) if kind != "380" else None, False),
        (texts["period"], speech.period(period) if period else None, False),
        (texts["customer_number"], buyer.ids[0].id if buyer.ids else None, False),
        (texts["order"], invoice.order, False),
        (texts["contract"], invoice.contract, False),
        (texts["buyer_reference"], invoice.buyer_reference, False),
        (texts["cost_centre"], invoice.buyer_accounting_reference, False),
        (texts["vat_id_yours"], buyer.vat_id, False),
        (texts["contact"], contact.name if contact else None, False),
        (texts["phone"], contact.phone if contact else None, False),
        (texts["due_on"], speech.date(invoice.due_on) if invoice.due_on and invoice.totals.due > 0 else None, True),
    ]
    return [(name, value, strong) for name, value, strong in rows if value]


def _is_tall(window: Sequence[str], information: Sequence[tuple[str, str, bool]]) -> bool:
    """Whether address or information block may need more than their usual place: then the layout has to measure."""
    if len(window) > WINDOW_LINES or len(information) > INFORMATION_LINES:
        return True
    plain_letters = all(line.isascii() or line.encode("latin-1", "ignore").decode("latin-1") == line for line in window)
    longest = max((len(value) for _, value, _ in information), default=0)
    return not plain_letters or longest > 19 or any(len(line) > 38 for line in window)


def _intro(invoice: Invoice, texts: dict[str, Any], kind: str) -> list[str]:
    return [texts["intro"][kind], *([texts["intro_records"]] if invoice.records else [])]


# -- Lines -------------------------------------------------------------------------------------------------------------


def _columns(invoice: Invoice, texts: dict[str, Any]) -> list[str]:
    names = dict(texts["columns"])
    for key in ("price", "amount", "gross"):
        names[key] += f" {invoice.currency}"
    shown = ["position", "description", "period", "quantity", "unit", "price", "amount"]
    return [names[key] for key in (*shown, *(("gross",) if _with_gross(invoice) else ()))]


def _with_gross(invoice: Invoice) -> bool:
    """Whether a column says what lines cost with tax: where a price was agreed with it."""
    return any(line.gross is not None for line in invoice.lines)


def _groups(invoice: Invoice, speech: Speech, numbers: dict[str, str]) -> list[dict[str, Any]]:
    lines = {line.id: line for line in invoice.lines}
    tiered = {one.line for one in invoice.records if any(row.kind == "tier" for row in one.rows)}
    point = signs_of(speech.locale)[0]
    quantities = padded([speech.number(line.quantity) for line in invoice.lines], point)
    prices = padded([_price(line, speech, invoice.currency, line.id in tiered) for line in invoice.lines], point)
    figures = {line.id: (quantities[at], prices[at]) for at, line in enumerate(invoice.lines)}
    groups = invoice.groups or (LineGroup(tuple(lines)),)
    shown: list[dict[str, Any]] = []
    for at, group in enumerate(groups):
        of_customer = [one for one in groups if group.customer and one.customer == group.customer]
        last = at + 1 == len(groups) or groups[at + 1].customer != group.customer
        sums = _sums(group, of_customer if last else [], len(groups), invoice, speech)
        shown.append(_group(group, invoice, speech, lines, figures, numbers, len(groups), sums))
    return shown


def _sums(
    group: LineGroup, of_customer: Sequence[LineGroup], count: int, invoice: Invoice, speech: Speech
) -> list[list[str]]:
    """The sums below a group: its own, and behind the last group of a customer that customer's."""
    texts = speech.texts
    rows: list[list[str]] = []

    def add(label: str, ones: Sequence[LineGroup]) -> None:
        net = sum((one.net or Decimal(0) for one in ones), Decimal(0))
        gross = [one.gross for one in ones if one.gross is not None]
        shown = speech.money(sum(gross, Decimal(0)), invoice.currency) if len(gross) == len(ones) else ""
        rows.append([breakable(label), speech.money(net, invoice.currency), shown])

    if group.net is not None and count > 1 and len(of_customer) != 1:
        name = _heading(group, texts)
        add(texts["subtotal"].format(name=name) if name else texts["subtotal_plain"], [group])
    if of_customer:
        add(texts["subtotal"].format(name=group.customer), of_customer)
    return rows


def _heading(group: LineGroup, texts: dict[str, Any]) -> str:
    by_subscription = texts["subscription"].format(subscription=group.subscription) if group.subscription else ""
    return group.name or group.plan or by_subscription


def _group(
    group: LineGroup,
    invoice: Invoice,
    speech: Speech,
    lines: dict[str, InvoiceLine],
    figures: dict[str, tuple[list[str], list[str]]],
    numbers: dict[str, str],
    count: int,
    sums: list[list[str]],
) -> dict[str, Any]:
    texts = speech.texts
    name = group.name or group.plan
    notes = [
        texts["subscription"].format(subscription=group.subscription) if group.subscription and name else "",
        texts["plan_version"].format(version=group.plan_version) if group.plan and group.plan_version else "",
    ]
    name = _heading(group, texts) or (texts["other"] if count > 1 else "")
    name = breakable(f"{group.customer}: {name}" if group.customer else name)
    note = breakable(", ".join(note for note in notes if note))
    long = len(name) + len(note) > LONG
    items = [_item(lines[one], invoice, speech, figures[one], numbers.get(one)) for one in group.lines]
    if long and items:
        items[-1]["long"] = True  # the sums below it say the group's name, too
    return {
        "name": name,
        "note": note,
        "long": long,
        "lines": items,
        "sums": sums,
    }


def _item(
    line: InvoiceLine, invoice: Invoice, speech: Speech, figures: tuple[list[str], list[str]], record: str | None
) -> dict[str, Any]:
    texts = speech.texts
    left_out = ("tier ", "stufe ", *(("customer", "kunde") if any(group.customer for group in invoice.groups) else ()))
    shown = [one for one in line.attributes if not one.name.lower().startswith(left_out)]
    unit = next((one.value for one in shown if one.name in ("unit", "Einheit")), None)
    notes = [one.value for one in shown if one.name not in ("unit", "Einheit")]
    notes += [line.note] if line.note else []
    notes += [line.description] if line.description and not record else []  # of tiers: the record has them in full
    notes += [texts["price_with_tax"]] if line.price_with_tax is not None else []
    notes += [texts["see_record"].format(number=record)] if record else []
    before = line.net + sum((one.amount for one in line.allowances), Decimal(0))
    before -= sum((one.amount for one in line.charges), Decimal(0))
    signed = [(one, -one.amount) for one in line.allowances] + [(one, one.amount) for one in line.charges]
    name, note = breakable(line.name), breakable(", ".join(notes))
    below = [_below(one, amount, invoice.currency, speech) for one, amount in signed]
    return {
        "position": line.id,
        "name": name,
        "note": note,
        "long": len(name) + len(note) + _length(below) > LONG,
        "period": speech.period(line.period) if line.period else "",
        "quantity": figures[0],
        "unit": breakable(texts["units"].get(line.unit, line.unit) if unit is None else unit),
        "price": figures[1],
        "amount": speech.money(before, invoice.currency),
        "gross": "" if line.gross is None else speech.money(line.gross + _gross_of(line), invoice.currency),
        "below": below,
    }


def _gross_of(line: InvoiceLine) -> Decimal:
    """What the discounts of a line take off its gross."""
    taken = sum((one.gross or Decimal(0) for one in line.allowances), Decimal(0))
    return taken - sum((one.gross or Decimal(0) for one in line.charges), Decimal(0))


def _below(one: AllowanceCharge, amount: Decimal, currency: str, speech: Speech) -> list[str]:
    gross = "" if one.gross is None else speech.money(one.gross.copy_sign(amount), currency)
    return [breakable(one.reason or ""), speech.money(amount, currency), gross]


def _price(line: InvoiceLine, speech: Speech, currency: str, tiered: bool) -> str:
    """The unit price as agreed, or a word where the amount is made of more than one of them."""
    if line.price_with_tax is not None:
        return speech.number(line.price_with_tax, decimals_of(currency))
    if line.base_quantity is None or line.base_quantity == 1:
        return speech.number(line.price, decimals_of(currency))
    return speech.texts["tiered" if tiered else "in_all"]


# -- Taxes, totals, payment --------------------------------------------------------------------------------------------


def _taxes(invoice: Invoice, speech: Speech) -> dict[str, Any]:
    texts, currency = speech.texts, invoice.currency
    rows: list[list[str]] = []
    for tax in invoice.taxes:
        rate = texts["tax_rates"][tax.category].format(percent=speech.number(tax.percent or Decimal(0)))
        rows.append([rate, speech.money(tax.base, currency), speech.money(tax.amount, currency)])
    head = [texts["tax_head"], f"{texts['tax_base']} {currency}", f"{texts['tax_amount']} {currency}"]
    return {"head": head, "rows": rows, "widths": widths_of_taxes(head, rows)}


def _totals(invoice: Invoice, speech: Speech, from_credit: bool) -> list[list[str]]:
    texts, totals, currency = speech.texts, invoice.totals, invoice.currency
    rows: list[tuple[str, Decimal]] = []
    if invoice.allowances or invoice.charges:
        rows.append((texts["lines"], totals.lines))
        rows += [(one.reason or "", -one.amount) for one in invoice.allowances]
        rows += [(one.reason or "", one.amount) for one in invoice.charges]
    rows += [(texts["net"], totals.net), (texts["tax"], totals.tax or Decimal(0))]
    if totals.prepaid or totals.rounding:
        rows.append((texts["gross"], totals.gross))
        # Beside an earlier invoice it was paid to that one.
        prepaid = texts["prepaid"] if from_credit and not invoice.preceding else texts["prepaid_before"]
        rows += [(prepaid, -totals.prepaid)] if totals.prepaid else []
        rows += [(texts["rounding"], totals.rounding)] if totals.rounding else []
    return [[breakable(name), speech.money(amount, currency)] for name, amount in rows]


def _due(invoice: Invoice, speech: Speech, kind: str) -> list[str]:
    texts, due = speech.texts, invoice.totals.due
    label = texts["due"]
    if kind == "381":
        label = texts["in_favour"]
    elif invoice.due_on and due > 0:
        label = texts["due_by"].format(day=speech.date(invoice.due_on))
    return [label, f"{speech.money(due, invoice.currency)} {invoice.currency}"]


def _payment(invoice: Invoice, speech: Speech, kind: str) -> dict[str, Any]:
    texts, due = speech.texts, invoice.totals.due
    if kind == "381" or due <= 0:
        return {"sentence": [[texts["credited" if kind == "381" else "nothing_due"], False]], "rows": [], "qr": None}
    amount = f"{speech.money(due, invoice.currency)} {invoice.currency}"
    if invoice.due_on:
        sentence = emphasised(texts["pay"], amount=amount, day=speech.date_long(invoice.due_on))
    else:
        sentence = emphasised(texts["pay_now"], amount=amount)
    if invoice.payment is not None and (invoice.payment.debit is not None or invoice.payment.code in _COLLECTED):
        return _collected(invoice, invoice.payment, speech, amount)
    accounts = invoice.payment.transfer if invoice.payment else ()
    if not accounts or invoice.payment is None:
        return {"sentence": sentence, "rows": [], "qr": None}
    account = accounts[0]
    payee = account.name or (invoice.payee.name if invoice.payee else invoice.seller.name)
    reference = invoice.payment.reference or invoice.number
    rows = [[texts["payee"], breakable(payee)], account_row(account.iban, texts)]
    rows += [["BIC", account.bic]] if account.bic else []
    rows.append([texts["reference"], breakable(reference)])
    code = epc_text(invoice)
    qr = None if code is None else epc_svg(code)
    alt = texts["qr_alt"].format(amount=amount, payee=payee)
    return {"sentence": sentence, "rows": rows, "qr": qr, "qr_alt": alt, "qr_hint": texts["qr_hint"]}


def _collected(invoice: Invoice, payment: Payment, speech: Speech, amount: str) -> dict[str, Any]:
    """What is taken by debit or card asks for no transfer: amount, day, mandate and creditor announce it."""
    texts, debit = speech.texts, payment.debit
    key = "debit" if debit is not None or payment.code in _DEBITS else "card"
    if invoice.due_on:
        sentence = emphasised(texts[f"{key}_on"], amount=amount, day=speech.date_long(invoice.due_on))
    else:
        sentence = emphasised(texts[key], amount=amount)
    rows: list[list[str]] = []
    if debit is not None:
        said = ((texts["mandate"], debit.mandate), (texts["creditor"], debit.creditor_id))
        rows = [[name, breakable(value)] for name, value in said if value]
        rows += [["IBAN", _masked(debit.iban)]] if debit.iban else []
    elif payment.card is not None:
        rows = [[texts["card_number"], "… " + payment.card.pan_last[-4:]]]
    return {"sentence": sentence, "rows": rows, "qr": None}


def _masked(iban: str) -> str:
    """Enough to know one's own account by: DE12 … 9890."""
    return f"{iban[:4]} … {iban[-4:]}"


def emphasised(sentence: str, **values: str) -> list[list[Any]]:
    """The sentence in parts, each with whether it is emphasised: the values are."""
    parts = re.split(r"\{(\w+)\}", sentence)
    return [[values[part] if at % 2 else part, at % 2 == 1] for at, part in enumerate(parts) if part]


def _notes(invoice: Invoice, speech: Speech) -> list[str]:
    texts = speech.texts
    notes = [texts["tax_note"].format(reason=tax.reason) for tax in invoice.taxes if tax.reason]
    for one in invoice.preceding:
        if one.issued_on is None:
            notes.append(texts["refers_to_undated"].format(number=one.number))
        else:
            notes.append(texts["refers_to_note"].format(number=one.number, day=speech.date(one.issued_on)))
    return [*dict.fromkeys(notes), *(note.text for note in invoice.notes)]


def _attachments(invoice: Invoice) -> list[dict[str, Any]]:
    """BG-24 as files inside the PDF. Two of one name cannot lie in it: the later one is named by its place, too."""
    found: list[dict[str, Any]] = []
    names: set[str] = set()
    size = 0
    for place, one in enumerate(invoice.attachments):
        if one.bytes is None:
            continue
        size += len(one.bytes)
        if size > ATTACHED_BYTES_MAX:
            detail = f"the attachments have more than {ATTACHED_BYTES_MAX:,} bytes in all"
            raise InvalidInput(detail, errors=[FieldError(f"/attachments/{place}/bytes", detail)])
        name = one.name or one.ref
        if name.lower() in names or name.lower() in ("factur-x.xml", "xrechnung.xml"):
            name = f"{place + 1}-{name}"
        names.add(name.lower())
        mime = one.mime or "application/octet-stream"
        content: str | list[int] = list(one.bytes)
        if mime.startswith("text/"):
            with suppress(UnicodeDecodeError):
                content = one.bytes.decode()
        found.append({"name": name, "mime": mime, "text": one.text or name, "content": content})
    return found


# -- Usage record ------------------------------------------------------------------------------------------------------


def _records(invoice: Invoice, speech: Speech, numbers: dict[str, str]) -> dict[str, Any] | None:
    if not invoice.records:
        return None
    texts = speech.texts
    lines = {line.id: line for line in invoice.lines}
    names = texts["record_columns"]
    columns = [names["label"], names["value"], names["quantity"]]
    columns += [f"{names[key]} {invoice.currency}" for key in ("price", "amount")]
    return {
        "title": texts["records"],
        "intro": texts["records_intro"].format(timezone=invoice.timezone or "UTC"),
        "columns": columns,
        "tables": [
            _record(one, lines[one.line], speech, invoice.currency, numbers[one.line]) for one in invoice.records
        ],
    }


def _record(record: UsageRecord, line: InvoiceLine, speech: Speech, currency: str, number: str) -> dict[str, Any]:
    texts = speech.texts
    gross = line.net + sum((one.amount for one in line.allowances), Decimal(0))
    gross -= sum((one.amount for one in line.charges), Decimal(0))
    if line.gross is not None:  # what the price gives is with tax
        gross = line.gross + _gross_of(line)
    rows = [_row(row, speech, currency) for row in record.rows]
    exact = record.exact
    rounded = texts["rounded"].format(amount=speech.number(exact)) if exact is not None and exact != gross else ""
    correction = any(row.kind in ("rated", "billed") for row in record.rows)
    one_price = speech.number(line.price, decimals_of(currency)) if line.base_quantity is None else ""
    rows.append(
        [
            texts["difference"] if correction else texts["sum"],
            rounded,
            speech.number(line.quantity),
            "" if correction else one_price,
            speech.money(gross, currency),
        ]
    )
    point = signs_of(speech.locale)[0]
    columns = [padded([row[at] for row in rows], point) for at in (2, 3, 4)]
    cells = [
        [breakable(row[0]), breakable(row[1]), columns[0][at], columns[1][at], columns[2][at]]
        for at, row in enumerate(rows)
    ]
    title = breakable(texts["record_title"].format(number=number, name=line.name, position=line.id))
    return {
        "title": title,
        "long_title": len(title) > LONG,
        "long": len(cells) > RECORD_ROWS + 1 or _length(cells) > RECORD_LONG,
        "period": speech.period(line.period) if line.period else "",
        "rows": cells[:-1],
        "sum": cells[-1],
    }


def _row(row: RecordRow, speech: Speech, currency: str) -> list[str]:
    texts = speech.texts
    label, value = row.label, row.value
    if row.kind == "tier":
        label = texts["rows"]["tier"].format(label=row.label)
        value = texts["above"] if row.up_to is None else texts["up_to"].format(quantity=speech.number(row.up_to))
    elif row.kind == "package":
        label = texts["rows"]["package"]
        value = texts["package_of"].format(quantity=speech.number(Decimal(row.value))) if row.value else ""
    elif row.kind == "billed":
        label = texts["rows"]["billed"].format(label=row.label) if row.label else texts["rows"]["billed_plain"]
    elif row.kind != "dimension":
        label = texts["rows"][row.kind]
    places = decimals_of(currency)
    quantity, price, amount = (
        "" if one is None else speech.number(one, least)
        for one, least in ((row.quantity, 0), (row.price, places), (row.amount, places))
    )
    return [label, value, quantity, price, amount]
