"""What the page of an accompanying document prints, as texts in the order of the page.

A layout formats and never computes: tables, sums and balances are made here from the exact values, words come from the
layout's `texts/<language>.json` over those of the invoice, signs of numbers and names of months from Babel.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from functools import cache
from typing import Any, assert_never

from billing.accompanying import (
    Accompanying,
    CreditAccount,
    CreditEntry,
    DeliveryLine,
    Reminder,
    Statement,
    StatementEntry,
    UsageRow,
    closing_of,
    credited_by,
    demanded_by,
    usage_sums,
)
from billing.einvoice.model import Period
from billing.einvoice.parties import Seller
from billing.money import exact_sum
from pipelines.accompanying_csv import csv_of
from pipelines.column_widths import INSET, MM, SIZE, width_of
from pipelines.invoice_view import (
    LONG,
    Speech,
    account_row,
    breakable,
    decimals_of,
    emphasised,
    padded,
    sheet_of,
    shortened,
    signs_of,
    texts_of,
)
from pipelines.layout_blocks import Blocks
from pipelines.layout_view import dressed

LAYOUT = "accompanying"
WHOLE_ROWS = 12  # a table with more of them may go on on the next page
ZERO = Decimal(0)
_SIGN = re.compile(r"([.,’\u202f])(?=\d)")


@cache
def speech_of(language: str) -> Speech:
    """The words of a language: the invoice's and the layout's own. `InvalidInput` names the languages there are."""
    return Speech({**texts_of("invoice", language), **texts_of(LAYOUT, language)})


@dataclass(frozen=True)
class _Column:
    key: str  # what a layout chooses it by (`layout_blocks.py`); empty: it is always there
    name: str
    right: bool = False
    width: int | None = None  # millimetres; None: what is left


@dataclass(frozen=True)
class _Sum:
    """A row below a table: its name over `span` columns, then the cells that are left."""

    name: str
    span: int
    cells: Sequence[Figure]


@dataclass
class _Page:
    """What is different between the types; the rest of the page is the same for all."""

    title: str
    intro: str
    information: list[tuple[str, str | None, bool]]
    tables: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    empty: str = ""
    totals: list[list[str]] = field(default_factory=list[list[str]])
    due: list[str] = field(default_factory=list[str])
    sentence: list[list[Any]] = field(default_factory=list[list[Any]])
    account: list[list[str]] = field(default_factory=list[list[str]])
    notes: list[str] = field(default_factory=list[str])


def page_of(document: Accompanying, seller: Seller, blocks: Blocks, language: str) -> dict[str, Any]:
    """The data that the layout draws. Same input, same data. `seller` is the letterhead; names are the document's."""
    speech = speech_of(language)
    texts = speech.texts
    page = _page(document, speech)
    title = f"{page.title} {document.number}"
    rows = [(name, value, strong) for name, value, strong in page.information if value]
    sheet, aside = sheet_of(document, seller, rows, speech)
    notes = [*page.notes, *document.notes, *aside]
    data = {
        **sheet,
        "page_kind": LAYOUT,
        "lang": language,
        "region": texts["region"],
        "title": title,
        "author": document.seller.name,
        "date": [document.issued_on.year, document.issued_on.month, document.issued_on.day],
        "running": f"{shortened(title)}   {speech.date_long(document.issued_on)}",
        "intro": [texts["greeting"], page.intro],
        "tables": [_chosen(one, blocks.columns) for one in page.tables],
        "empty": "" if page.tables else page.empty,
        "totals": page.totals,
        "due": page.due,
        "payment": {"sentence": page.sentence, "rows": page.account},
        "notes": [breakable(note) for note in notes],
        "long": sum(map(len, notes)) > LONG,
        "attachments": _attachments(document, language),
        "page": texts["page"],
        "of": texts["of"],
    }
    return dressed(data, blocks, language)


def _page(document: Accompanying, speech: Speech) -> _Page:
    match document.type:
        case "usage_record":
            return _usage(document, speech)
        case "account_statement":
            assert document.statement is not None, "checked where it was read"
            return _statement(document, document.statement, speech)
        case "reminder":
            assert document.reminder is not None, "checked where it was read"
            return _reminder(document, document.reminder, speech)
        case "delivery_note":
            return _delivery(document, speech)
        case "credit_statement":
            return _credits(document, speech)
        case _ as never:
            assert_never(never)


def _start(document: Accompanying, speech: Speech) -> _Page:
    texts = speech.texts
    kind = document.type
    return _Page(
        "" if kind == "reminder" else texts["titles"][kind],
        "" if kind == "reminder" else texts["intros"][kind],
        [
            (texts["document_number"], document.number, True),
            (texts["issued_on_plain"], speech.date(document.issued_on), False),
            (texts["period_plain"], speech.period(document.period) if document.period else None, False),
            (texts["customer_number"], document.buyer.ids[0].id if document.buyer.ids else None, False),
            (texts["for_invoice"], ", ".join(one.number for one in document.refers_to), False),
            (texts["timezone"], document.timezone if kind == "usage_record" else None, False),
        ],
        notes=[texts["no_tax_document"][kind]] if kind in texts["no_tax_document"] else [],
    )


def _table(
    title: str,
    columns: Sequence[_Column],
    rows: Sequence[Sequence[Figure]],
    sums: Sequence[_Sum] = (),
    *,
    note: str = "",
) -> dict[str, Any]:
    widths = [one.width if one.right else None for one in columns]
    rows = [[_fitting(cell, width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    longest = max((len(cell) for row in rows for cell in row if isinstance(cell, str)), default=0)
    return {
        "title": breakable(title),
        "note": breakable(note),
        "columns": [{"key": one.key, "name": one.name, "right": one.right, "width": one.width} for one in columns],
        "rows": rows,
        "sums": [
            {
                "name": one.name,
                "span": one.span,
                "cells": [_fitting(cell, width) for cell, width in zip(one.cells, widths[one.span :], strict=False)],
            }
            for one in sums
        ],
        "long": len(rows) > WHOLE_ROWS or longest > LONG or len(title) + len(note) > LONG,
    }


def _chosen(table: dict[str, Any], columns: Sequence[str] | None) -> dict[str, Any]:
    """The same table with the columns only that a layout shows; sums keep their figures under those of their rows."""
    if columns is None:
        return table
    keep = [at for at, one in enumerate(table["columns"]) if not one["key"] or one["key"] in columns]
    shown = [dict(table["columns"][at]) for at in keep]
    if all(one["width"] is not None for one in shown):
        shown[0]["width"] = None  # some column fills the sheet
    sums = [
        {
            "name": row["name"],
            "span": sum(at < row["span"] for at in keep),
            "cells": [cell for at, cell in enumerate(row["cells"], start=row["span"]) if at in keep],
        }
        for row in table["sums"]
    ]
    return {**table, "columns": shown, "rows": [[row[at] for at in keep] for row in table["rows"]], "sums": sums}


Figure = str | list[str]  # with the digits that it lacks, to be printed invisibly


def _fitting(figure: Figure, width: int | None) -> Figure:
    """A figure that is wider than its column breaks behind a point or comma: else it lies over its neighbour's text."""
    if width is None or width_of("".join(figure)) * SIZE <= (width - INSET) * MM:
        return figure
    return _SIGN.sub("\\1\u200b", figure if isinstance(figure, str) else figure[0])


def _quantities(values: Sequence[Decimal], speech: Speech) -> list[Figure]:
    """Quantities with point under point."""
    pairs = padded([speech.number(value) for value in values], signs_of(speech.locale)[0])
    return [pair if pair[1] else pair[0] for pair in pairs]


# -- Usage record ------------------------------------------------------------------------------------------------------


def _usage(document: Accompanying, speech: Speech) -> _Page:
    texts, head = speech.texts, speech.texts["head"]
    page = _start(document, speech)
    page.empty = texts["no_usage"]
    groups: dict[tuple[str, str, str], list[UsageRow]] = {}
    for row in document.usage:
        groups.setdefault((row.subscription or "", row.meter, row.unit or ""), []).append(row)
    for (subscription, meter, unit), rows in groups.items():
        noted, billed = any(row.note for row in rows), any(row.billed_with for row in rows)
        columns = [_Column("day", head["day"], width=None if not noted and not billed else 32)]
        columns += [_Column("note", head["note"])] if noted else []
        columns += [_Column("billed_with", head["billed_with"], width=52 if noted else None)] if billed else []
        columns.append(_Column("quantity", f"{head['quantity']} {unit}".rstrip(), right=True, width=42))
        total = exact_sum([row.quantity for row in rows])
        figures = _quantities([*(row.quantity for row in rows), total], speech)
        cells: list[list[Figure]] = []
        for row, figure in zip(rows, figures, strict=False):
            cell: list[Figure] = [speech.date(row.day) if row.day else texts["whole_period"]]
            cell += [breakable(row.note or "")] if noted else []
            cell += [breakable(row.billed_with or "")] if billed else []
            cells.append([*cell, figure])
        note = texts["in_subscription"].format(subscription=subscription) if subscription else ""
        sums = [_Sum(texts["sum_of"], len(columns) - 1, [figures[-1]])]
        page.tables.append(_table(meter, columns, cells, sums, note=note))
    sums_of = usage_sums(document.usage)
    if len(groups) > 1:
        columns = [
            _Column("", texts["meter"]), _Column("", head["unit"], width=30), _Column("", head["quantity"], True, 42),
        ]  # fmt: skip
        figures = _quantities(list(sums_of.values()), speech)
        rows_of: list[list[Figure]] = [
            [breakable(meter), breakable(unit), figure] for (meter, unit), figure in zip(sums_of, figures, strict=True)
        ]
        page.tables.append(_table(texts["sums_of_meters"], columns, rows_of))
    return page


# -- Account statement -------------------------------------------------------------------------------------------------


def _statement(document: Accompanying, statement: Statement, speech: Speech) -> _Page:
    texts, currency = speech.texts, document.currency or ""
    page = _start(document, speech)
    page.empty = texts["no_entries"]
    rows = [(entry, _entry_words(entry, texts), entry.due_on) for entry in statement.entries]
    _running(page, document, statement.opening, rows, "due_on", texts["statement_sums"], speech)
    period = document.period or Period()
    closing = closing_of(statement)
    label = texts["in_favour_of_you" if closing < 0 else "closing"]
    day = speech.date(period.end) if period.end else ""
    page.due = [label.format(day=day), f"{speech.money(closing, currency)} {currency}"]
    return page


def _running(
    page: _Page,
    document: Accompanying,
    opening: Decimal,
    rows: Sequence[tuple[StatementEntry | CreditEntry, str, date | None]],
    day_column: str,
    sums: dict[str, str],
    speech: Speech,
) -> None:
    """Entries with the balance after each, then the balance before them and their sums by kind."""
    texts, head, currency = speech.texts, speech.texts["head"], document.currency or ""
    balance = opening
    cells: list[list[str]] = []
    for entry, words, day in rows:
        balance = exact_sum([balance, entry.amount])
        amounts = [speech.money(entry.amount, currency), speech.money(balance, currency)]
        cells.append([speech.date(entry.booked_on), breakable(words), speech.date(day) if day else "", *amounts])
    if cells:
        columns = [
            _Column("booked_on", head["booked_on"], width=23), _Column("document", head["document"]),
            _Column(day_column, head[day_column], width=23),
            _Column("amount", f"{head['amount']} {currency}", True, 30),
            _Column("balance", f"{head['balance']} {currency}", True, 30),
        ]  # fmt: skip
        page.tables.append(_table("", columns, cells))
    start = document.period.start if document.period else None
    before = texts["opening"].format(day=speech.date(start) if start else "")
    page.totals.append([before, speech.money(opening, currency)])
    for kind, name in sums.items():
        of_kind = [entry.amount for entry, _, _ in rows if entry.kind == kind]
        if of_kind:
            page.totals.append([name, speech.money(exact_sum(of_kind), currency)])


def _entry_words(entry: StatementEntry, texts: dict[str, Any]) -> str:
    named = f"{texts['entry_kinds'][entry.kind]} {entry.number or ''}".strip()
    return f"{named}, {entry.text}" if entry.text else named


# -- Reminder ----------------------------------------------------------------------------------------------------------


def _reminder(document: Accompanying, reminder: Reminder, speech: Speech) -> _Page:
    texts, head, currency = speech.texts, speech.texts["head"], document.currency or ""
    page = _start(document, speech)
    level = str(reminder.level)
    page.title, page.intro = texts["reminder_titles"][level], texts["reminder_intros"][level]
    page.information += [
        (texts["level"], level, False),
        (texts["previous_on"], speech.date(reminder.previous_on) if reminder.previous_on else None, False),
        (texts["pay_by"], speech.date(reminder.due_on), True),
    ]
    columns = [
        _Column("number", head["number"]), _Column("issued_on", head["issued_on"], width=24),
        _Column("due_on", head["due_on"], width=24), _Column("invoiced", f"{head['invoiced']} {currency}", True, 36),
        _Column("open", f"{head['open']} {currency}", True, 30),
    ]  # fmt: skip
    rows = [
        [
            breakable(item.number), speech.date(item.issued_on), speech.date(item.due_on),
            speech.money(item.amount, currency), speech.money(item.open, currency),
        ]
        for item in reminder.items
    ]  # fmt: skip
    opened = speech.money(exact_sum([item.open for item in reminder.items]), currency)
    page.tables.append(_table("", columns, rows))
    page.totals.append([texts["open_items"], opened])
    for one in reminder.charges:
        parts = [one.text or texts["charge_kinds"][one.kind]]
        parts += [texts["charge_rate"].format(percent=speech.number(one.percent))] if one.percent is not None else []
        parts += [speech.period(one.period)] if one.period else []
        page.totals.append([breakable(", ".join(parts)), speech.money(one.amount, currency)])
    amount = f"{speech.money(demanded_by(reminder), currency)} {currency}"
    page.due = [texts["demanded"].format(day=speech.date(reminder.due_on)), amount]
    page.sentence = emphasised(texts["demand"], amount=amount, day=speech.date_long(reminder.due_on))
    payment = document.payment
    if payment is not None and payment.transfer:
        account = payment.transfer[0]
        page.account = [[texts["payee"], breakable(account.name or document.seller.name)]]
        page.account.append(account_row(account.iban, texts))
        page.account += [["BIC", account.bic]] if account.bic else []
        page.account.append([texts["reference"], breakable(payment.reference or document.number)])
    page.notes = [texts["crossed"]]
    return page


# -- Delivery note and credit statement --------------------------------------------------------------------------------


def _delivery(document: Accompanying, speech: Speech) -> _Page:
    texts, head = speech.texts, speech.texts["head"]
    page = _start(document, speech)
    page.empty = texts["no_lines"]
    for subscription, lines in _by_subscription(document.lines):
        columns = [
            _Column("description", head["description"]), _Column("period", head["period"], width=42),
            _Column("quantity", head["quantity"], True, 32), _Column("unit", head["unit"], width=24),
        ]  # fmt: skip
        figures = _figures(lines, speech)
        rows = [
            [breakable(_line_words(line)), _line_period(line, speech), figure, breakable(_unit(line, texts))]
            for line, figure in zip(lines, figures, strict=True)
        ]
        title = texts["in_subscription"].format(subscription=subscription) if subscription else ""
        page.tables.append(_table(title, columns, rows))
    return page


def _credits(document: Accompanying, speech: Speech) -> _Page:
    texts, head, currency = speech.texts, speech.texts["head"], document.currency or ""
    page = _start(document, speech)
    page.empty = texts["no_lines" if document.credit is None else "no_entries"]
    groups = _by_subscription(document.lines)
    total = speech.money(credited_by(document.lines), currency)
    for place, (subscription, lines) in enumerate(groups, start=1):
        columns = [
            _Column("description", head["description"]), _Column("period", head["period"], width=36),
            _Column("quantity", head["quantity"], True, 25), _Column("unit", head["unit"], width=18),
            _Column("price", f"{head['price']} {currency}", True, 23),
            _Column("amount", f"{head['amount']} {currency}", True, 25),
        ]  # fmt: skip
        rows = [
            [
                breakable(_line_words(line)), _line_period(line, speech), figure, breakable(_unit(line, texts)),
                speech.number(line.price, decimals_of(currency)) if line.price is not None else "",
                speech.money(line.amount or ZERO, currency),
            ]
            for line, figure in zip(lines, _figures(lines, speech), strict=True)
        ]  # fmt: skip
        title = texts["in_subscription"].format(subscription=subscription) if subscription else ""
        sums = [_Sum(texts["sum_of"], 5, [speech.money(credited_by(lines), currency)])] if len(groups) > 1 else []
        if document.credit is not None and place == len(groups):  # below the page stands what is held
            sums.append(_Sum(texts["credited_sum"], 5, [total]))
        page.tables.append(_table(title, columns, rows, sums))
    if document.credit is not None:
        _credit_account(page, document, document.credit, speech)
        return page
    page.due = [texts["credited_sum"], f"{total} {currency}"]
    return page


def _credit_account(page: _Page, document: Accompanying, credit: CreditAccount, speech: Speech) -> None:
    """The credit that is held, entry by entry; what was credited by lines stands before it."""
    texts, currency = speech.texts, document.currency or ""
    page.title, page.intro = texts["credit_title"], texts["credit_intro"]
    rows = [(entry, _credit_words(entry, texts), entry.expires_on) for entry in credit.entries]
    _running(page, document, credit.opening, rows, "expires_on", texts["credit_sums"], speech)
    period = document.period or Period()
    label = texts["credit_closing"].format(day=speech.date(period.end) if period.end else "")
    page.due = [label, f"{speech.money(closing_of(credit), currency)} {currency}"]


def _credit_words(entry: CreditEntry, texts: dict[str, Any]) -> str:
    """What moved it; `text` is the invoice of a credit note, the kind of credit that expired, or whatever was said."""
    said = texts["credit_entries"][entry.kind].format(number=entry.number or "")
    about = texts["credit_of"].get(entry.text, entry.text) if entry.kind == "expired" else entry.text
    if about and entry.kind in ("credit_note", "returned"):
        about = texts["credit_about"].format(number=about)
    return ", ".join(one for one in (" ".join(said.split()), about) if one)


def _by_subscription(lines: Sequence[DeliveryLine]) -> list[tuple[str, list[DeliveryLine]]]:
    groups: dict[str, list[DeliveryLine]] = {}
    for line in lines:
        groups.setdefault(line.subscription or "", []).append(line)
    return list(groups.items())


def _figures(lines: Sequence[DeliveryLine], speech: Speech) -> list[Figure]:
    figures = iter(_quantities([line.quantity for line in lines if line.quantity is not None], speech))
    return [next(figures) if line.quantity is not None else "" for line in lines]


def _line_words(line: DeliveryLine) -> str:
    return f"{line.name}, {line.note}" if line.note else line.name


def _line_period(line: DeliveryLine, speech: Speech) -> str:
    return speech.period(line.period) if line.period else ""


def _unit(line: DeliveryLine, texts: dict[str, Any]) -> str:
    """The unit's name in the language where it is a code of Recommendation 20, else as it is written."""
    return texts["units"].get(line.unit or "", line.unit or "")


def _attachments(document: Accompanying, language: str) -> list[dict[str, Any]]:
    """Records and statements of accounts lie in their own PDF as CSV, for a customer's own sums."""
    if document.type not in ("usage_record", "account_statement") and document.credit is None:
        return []
    text = speech_of(language).texts["csv"]
    return [{"name": f"{document.type}.csv", "mime": "text/csv", "text": text, "content": csv_of(document).decode()}]
