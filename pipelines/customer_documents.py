"""Accompanying documents of a customer from the platform's own figures: usage as billed, receivables, what is overdue,
credit.

Owns which figures they are made of. They are archived under their own type and number; made again from other figures
they become the next version. Payments are no data of the platform yet: who makes a statement or a reminder names them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

import polars as pl

from billing.accompanying import (
    ROWS_MAX,
    Accompanying,
    CreditAccount,
    DeliveryLine,
    Kind,
    OverdueItem,
    Reminder,
    ReminderCharge,
    Statement,
    StatementEntry,
    UsageRow,
    closing_of,
)
from billing.credit_history import within
from billing.documents import Line
from billing.einvoice.model import Payment, Period, Preceding
from billing.einvoice.parties import Seller, buyer_of, seller_of
from billing.errors import Conflict, FieldError, InvalidInput
from billing.explain import piece_of_line
from billing.money import NUMBER, exact_sum
from billing.periods import local_date
from pipelines.accompanying import (
    FORMATS,
    archive_document,
    content_of,
    document_id,
    newest_version,
    render_document,
)
from pipelines.customer_credit import credit_of, currencies_of
from pipelines.documents import BUILT_IN, NotIssuable
from pipelines.explain import BilledLines, EventsOfLine, LineExplainer
from pipelines.layout_blocks import layout_of
from storage.archive import Archive, Archived
from storage.master_chain import MasterChain
from storage.object_store import ObjectStore
from storage.sql import credit_documents, layouts, receivables, tenants
from storage.sql.database import Database
from storage.usage_log.reader import UsageLogReader

TRANSFER = "58"  # BT-81: a SEPA transfer
PREFIXES: Mapping[Kind, str] = {
    "usage_record": "VN",
    "account_statement": "KA",
    "reminder": "MA",
    "delivery_note": "LS",
    "credit_statement": "GA",
}
DAYS_MAX = 400  # of one document
CODE_MAX = 40  # characters of a customer's code in a number
_ENDS_IN_A_DAY = re.compile(r"-\d{8}$")
ADDITIVE = ("sum", "count")  # meters whose days add up to their period


@dataclass(frozen=True)
class Made:
    """A document and its archived files, the PDF among them."""

    document: Accompanying
    files: tuple[Archived, ...]


@dataclass(frozen=True)
class _Sides:
    """Both sides of a letter, as the platform knows them today."""

    seller: Seller
    document: Accompanying  # with everything that all types have
    language: str
    timezone: str

    def in_currency(self, currency: str, usual: str) -> _Sides:
        """Balances of several currencies are documents of their own: the number names one that is not the tenant's."""
        if currency == usual:
            return self
        number = f"{self.document.number}-{currency}"
        return replace(self, document=replace(self.document, number=number, currency=currency))


class CustomerDocuments:
    """Makes and archives the documents of customers. Keeps nothing between calls."""

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        chain: MasterChain,
        archive: Archive,
    ) -> None:
        self._database = database
        self._store = store
        self._chain = chain
        self._archive = archive
        self._explainer = LineExplainer(database, store, chain)

    def usage_record(self, tenant_id: str, customer: str, first: date, last: date, today: date) -> Made:
        """What was billed of usage in service periods that lie within these local days, by meter, day, subscription.

        Quantities are those of the invoice lines: a line is split into days only where they add up to it exactly
        (meters that sum or count); maxima, levels, tiers with an included quantity and corrections are one row.
        """
        sides = self._sides(tenant_id, customer, "usage_record", first, last, today)
        rows: list[UsageRow] = []
        refers: dict[str, Preceding] = {}
        for billed, place, line in self._lines(tenant_id, customer, first, last, sides.timezone):
            number = billed.row["number"]
            refers[number] = Preceding(number, billed.row["issued_on"])
            found = piece_of_line(billed.master, line)
            kind = "" if found is None else billed.master.meters[found[0].charge.meter].aggregation
            events = self._explainer.events_of(tenant_id, billed, line) if kind in ADDITIVE else None
            rows += usage_rows(line, f"{number} / {place}", kind, events, sides.timezone)
            if len(rows) > ROWS_MAX:
                raise _too_many("usage record", ROWS_MAX)
        rows.sort(key=lambda row: (row.subscription or "", row.meter, row.day or date.min))
        return self._made(tenant_id, customer, sides, usage=tuple(rows), refers_to=tuple(refers.values()))

    def delivery_note(self, tenant_id: str, customer: str, first: date, last: date, today: date) -> Made:
        """The same quantities without days: one line for each line of an invoice."""
        sides = self._sides(tenant_id, customer, "delivery_note", first, last, today)
        lines: list[DeliveryLine] = []
        refers: dict[str, Preceding] = {}
        for billed, _, line in self._lines(tenant_id, customer, first, last, sides.timezone):
            number, days = billed.row["number"], _days(line, sides.timezone)
            refers[number] = Preceding(number, billed.row["issued_on"])
            lines.append(
                DeliveryLine(
                    name=line.name or line.charge,
                    quantity=line.quantity,
                    unit=line.unit or None,
                    note=_when(line),
                    subscription=line.subscription or None,
                    period=Period(days.start, days.end),
                )
            )
            if len(lines) > ROWS_MAX:
                raise _too_many("delivery note", ROWS_MAX)
        return self._made(tenant_id, customer, sides, lines=tuple(lines), refers_to=tuple(refers.values()))

    def account_statement(
        self,
        tenant_id: str,
        customer: str,
        first: date,
        last: date,
        today: date,
        *,
        currency: str | None = None,
        payments: Sequence[StatementEntry] = (),
    ) -> Made:
        """Receivables by the ledger: what was open before `first`, each document of the period, and `payments`.

        A payment before the period is part of the opening balance, one after it is left out.
        """
        sides = self._sides(tenant_id, customer, "account_statement", first, last, today)
        with self._database.tenant(tenant_id) as connection:
            usual = tenants.by_id(connection, tenant_id).currency
            currency = _currency(currency, receivables.currencies(connection, customer), usual)
            sides = sides.in_currency(currency, usual)
            opening = receivables.owed_before(connection, customer, currency, first)
            rows = receivables.moved(connection, customer, currency, first, last)
        if len(rows) + len(payments) > receivables.DOCUMENTS_MAX:
            raise _too_many("account statement", receivables.DOCUMENTS_MAX)
        opening = exact_sum([opening, *(one.amount for one in payments if one.booked_on < first)])
        entries = [
            StatementEntry(
                row["issued_on"], row["type"], row["owed"], row["number"], row["refers_to"] or None, row["due_on"]
            )
            for row in rows
        ]
        entries += [one for one in payments if first <= one.booked_on <= last]
        entries.sort(key=lambda one: (one.booked_on, one.kind == "payment"))
        statement = Statement(opening, tuple(entries))
        statement = replace(statement, closing=closing_of(statement))
        return self._made(tenant_id, customer, sides, statement=statement, currency=currency)

    def reminder(
        self,
        tenant_id: str,
        customer: str,
        level: Literal[1, 2, 3],
        due_on: date,
        today: date,
        *,
        currency: str | None = None,
        charges: Sequence[ReminderCharge] = (),
        paid: Mapping[str, Decimal] | None = None,
        previous_on: date | None = None,
    ) -> Made:
        """What is due before `today` and not credited, less what `paid` says by number of invoice.

        Raises Conflict where nothing is left.
        """
        sides = self._sides(tenant_id, customer, "reminder", None, None, today)
        with self._database.tenant(tenant_id) as connection:
            usual = tenants.by_id(connection, tenant_id).currency
            currency = _currency(currency, receivables.currencies(connection, customer), usual)
            sides = sides.in_currency(currency, usual)
            rows = receivables.overdue(connection, customer, currency, today)
        if len(rows) > receivables.DOCUMENTS_MAX:
            raise _too_many("reminder", receivables.DOCUMENTS_MAX)
        paid = dict(paid or {})
        items: list[OverdueItem] = []
        for row in rows:
            left = row["open"] - paid.pop(row["number"], Decimal(0))
            if left < 0:
                raise _wrong("/paid", f"more than {row['open']} is open of {row['number']}")
            if left:
                items.append(OverdueItem(row["number"], row["issued_on"], row["due_on"], row["owed"], left))
        if paid:
            raise _wrong("/paid", f"not overdue: {', '.join(sorted(paid))}")
        if not items:
            raise Conflict(f"nothing of customer {customer!r} is overdue in {currency}", customer=customer)
        asked = Reminder(level, due_on, tuple(items), tuple(charges), previous_on)
        accounts = sides.seller.accounts
        number = sides.document.number
        payment = Payment(TRANSFER, reference=number, transfer=accounts) if accounts else None
        return self._made(tenant_id, customer, sides, reminder=asked, currency=currency, payment=payment)

    def credit_statement(
        self,
        tenant_id: str,
        customer: str,
        first: date,
        last: date,
        now: datetime,
        *,
        currency: str | None = None,
    ) -> Made:
        """The credit that a customer holds: what was there before `first`, what moved until `last`, what is there then.

        Paid in, granted, used by invoices, given back, expired; credit notes and that they are set off. What is
        reserved or committed is still held. Nothing later than `now` is said.
        """
        _, master = self._chain.newest(tenant_id)
        sides = self._sides(
            tenant_id, customer, "credit_statement", first, last, local_date(now, master.tenant.timezone)
        )
        with self._database.tenant(tenant_id) as connection:
            usual = tenants.by_id(connection, tenant_id).currency
            there = {*receivables.currencies(connection, customer), *currencies_of(master, customer)}
        currency = _currency(currency, sorted(there), usual)
        sides = sides.in_currency(currency, usual)
        log = UsageLogReader(self._store)
        moved = credit_of(self._database, log, master, tenant_id, customer, currency, sides.timezone, now)
        if moved is None:
            raise _too_many("credit statement", credit_documents.DOCUMENTS_MAX)
        opening, entries = within(moved, first, last)
        if len(entries) > ROWS_MAX:
            raise _too_many("credit statement", ROWS_MAX)
        credit = CreditAccount(opening, tuple(entries))
        credit = replace(credit, closing=closing_of(credit))
        return self._made(tenant_id, customer, sides, credit=credit, currency=currency)

    # -- What all of them have -----------------------------------------------------------------------------------------

    def _sides(
        self, tenant_id: str, customer: str, kind: Kind, first: date | None, last: date | None, today: date
    ) -> _Sides:
        _, master = self._chain.newest(tenant_id)
        known = master.customer(customer)
        if first is not None and last is not None and not timedelta(0) <= last - first <= timedelta(days=DAYS_MAX):
            raise _wrong("/to", f"from 1 to {DAYS_MAX} days, the last not before the first")
        with self._database.tenant(tenant_id) as connection:
            tenant = tenants.by_id(connection, tenant_id)
            entity = tenants.legal_entity(connection, str(known.form.get("legal_entity") or "") or None)
        country = entity["country"] or tenant.country or ""
        seller = seller_of(entity["form"], country)
        period = Period(first, last) if first is not None else None
        document = Accompanying(
            type=kind,
            number=number_of(kind, customer, first or today, last or today),
            issued_on=today,
            seller=seller.party,
            buyer=buyer_of({"code": known.code, "name": known.name, "country": known.country, **known.form}, country),
            period=period,
            timezone=tenant.timezone,
        )
        return _Sides(seller, document, str(known.form.get("language") or "de"), tenant.timezone)

    def _made(self, tenant_id: str, customer: str, sides: _Sides, **parts: Any) -> Made:
        document = replace(sides.document, **parts)
        document.check()
        own = document_id(tenant_id, document.type, document.number)
        archived = newest_version(self._archive, tenant_id, own)
        content = content_of(document, sides.seller, sides.language)
        # Before the page is drawn: after a crash the same document is drawn with the same version of the layout.
        with self._database.tenant(tenant_id) as connection:
            used = layouts.note(connection, tenant_id, own, document.type, content, archived)
        layout = BUILT_IN if used.form is None else layout_of(used.form, document.type)
        try:
            files = render_document(
                document, FORMATS, sides.language, layout=layout, seller=sides.seller, owner=tenant_id
            )
        except NotIssuable:
            with self._database.tenant(tenant_id) as connection:
                layouts.free(connection, tenant_id, own, archived)
            raise
        return Made(document, tuple(archive_document(self._archive, tenant_id, document, files, customer)))

    def _lines(
        self, tenant_id: str, customer: str, first: date, last: date, timezone: str
    ) -> Iterator[tuple[BilledLines, int, Line]]:
        """Usage lines of invoices whose service period lies within these days, with their places from 1."""
        with self._database.tenant(tenant_id) as connection:
            numbers = receivables.billed_between(connection, customer, first, last)
        if len(numbers) > receivables.DOCUMENTS_MAX:
            raise _too_many("document", receivables.DOCUMENTS_MAX)
        for number in numbers:
            billed = self._explainer.billed(tenant_id, number)
            for place, line in enumerate(billed.row["document"].lines, start=1):
                days = _days(line, timezone)
                if line.kind == "usage" and first <= days.start and days.end <= last:
                    yield billed, place, line


@dataclass(frozen=True)
class _Days:
    start: date
    end: date


def _days(line: Line, timezone: str) -> _Days:
    """First and last local day of a line."""
    return _Days(local_date(line.start, timezone), local_date(line.end - timedelta(microseconds=1), timezone))


def usage_rows(line: Line, place: str, aggregation: str, events: EventsOfLine | None, timezone: str) -> list[UsageRow]:
    """A row a day where days add up to the line exactly, else one for all of it."""
    whole = UsageRow(
        meter=line.name or line.charge,
        quantity=line.quantity,
        unit=line.unit or None,
        subscription=line.subscription or None,
        note=_when(line),
        billed_with=place,
    )
    if events is None or line.correction or aggregation not in ADDITIVE:
        return [whole]
    day = pl.col("time").dt.convert_time_zone(timezone).dt.date()
    inside = events.rows.filter(~pl.col("carried"))
    counted = pl.len().cast(NUMBER) if aggregation == "count" else pl.col("value").sum()
    days = inside.group_by(day.alias("day")).agg(counted.alias("quantity")).sort("day")
    rows = [replace(whole, day=one, quantity=Decimal(quantity)) for one, quantity in days.iter_rows()]
    return rows if rows and exact_sum([row.quantity for row in rows]) == line.quantity else [whole]


def _when(line: Line) -> str | None:
    said = [f"{name}: {value}" for name, value in (line.when or {}).items()]
    return ", ".join(said) or None


def number_of(kind: Kind, customer: str, first: date, last: date) -> str:
    """Speaks of type, customer and days: the same document has the same number, another customer's never."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "-", customer)[:CODE_MAX]
    # Two codes may look the same without their signs, and one that ends in a day like another's with that first day.
    if safe != customer or _ENDS_IN_A_DAY.search(safe):
        safe = f"{safe}~{hashlib.sha256(customer.encode()).hexdigest()[:8]}"
    month = (
        first.day == 1 and (last + timedelta(days=1)).day == 1 and (first.year, first.month) == (last.year, last.month)
    )
    days = f"{first:%Y-%m}" if month else f"{first:%Y%m%d}" if first == last else f"{first:%Y%m%d}-{last:%Y%m%d}"
    return f"{PREFIXES[kind]}-{safe}-{days}"


def _currency(asked: str | None, there: Sequence[str], usual: str) -> str:
    """The one that is asked for, else the only one that there is, else the tenant's."""
    if asked is not None:
        return asked
    if len(there) > 1:
        raise _wrong("/currency", f"there are documents in {', '.join(there)}: name one of them")
    return there[0] if there else usual


def _wrong(pointer: str, detail: str) -> InvalidInput:
    return InvalidInput(f"{pointer}: {detail}", errors=[FieldError(pointer, detail)])


def _too_many(what: str, most: int) -> InvalidInput:
    return _wrong("/to", f"the {what} has more than {most:,} rows: ask for fewer days")
