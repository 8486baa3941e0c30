"""Usage out of the platform, page by page: events as Parquet or CSV, charges as FOCUS.

Owns what a page is: whole, of bounded size, and followed by the next one. A cursor holds the cut and the place, so
pages that are fetched in an hour from now go on with the same state of the log, and one that was lost on the way is
fetched again. Memory holds one page and one frame of the log.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

import polars as pl

from billing.focus import COLUMNS, DECIMALS, Account, Row, csv_line, document_rows, harmless, line_row
from billing.master import MasterData
from billing.periods import midnight
from pipelines.usage_queries import UsageQueries
from storage.sql import billed_documents
from storage.sql.database import Database
from storage.usage_log.counting import scan_counting
from storage.usage_log.reader import Cut, UsageLogReader
from storage.usage_log.segment import instant_of, microseconds_of

ROWS_DEFAULT, ROWS_MAX = 50_000, 500_000
DOCUMENTS, CUSTOMERS = 200, 50  # on a page of FOCUS
FIRST_WINDOW = timedelta(hours=6)
WINDOW_MIN, WINDOW_MAX = timedelta(seconds=1), timedelta(days=366)
EVENT_COLUMNS = (
    "source", "id", "type", "customer", "subscription", "time", "data", "received_at", "amended",
)  # fmt: skip
_ORDER = ("time", "source", "id", "customer")
_TEXTS = ("source", "id", "type", "customer", "subscription", "data")


@dataclass(frozen=True)
class Events:
    """Which events: of a half-open time, of some customer keys or of all, as they count at a cut."""

    tenant_id: str
    cut: Cut
    start: datetime
    end: datetime
    keys: Sequence[str] | None = None


@dataclass(frozen=True)
class Place:
    """Where a page ended: the last event's order (time in microseconds), and how much time is looked at at once."""

    after: tuple[int, str, str, str] | None = None
    window_us: int = FIRST_WINDOW // timedelta(microseconds=1)


def events_page(reader: UsageLogReader, asked: Events, place: Place, rows: int) -> tuple[pl.DataFrame, Place | None]:
    """The next events in the order of time, source, id and customer key; and where to go on, if there are more."""
    assert 0 < rows <= ROWS_MAX
    kept: list[pl.DataFrame] = []
    have = 0
    window = timedelta(microseconds=place.window_us)
    after = place.after
    start = asked.start if after is None else max(asked.start, instant_of(after[0]))
    while start < asked.end:
        end = min(asked.end, start + window)
        found, seen = _smallest(reader, asked, start, end, after, rows - have + 1)
        if have + found.height > rows:
            kept.append(found.head(rows - have))
            if seen > 4 * rows:
                window = max(WINDOW_MIN, window / 2)
            last = pl.concat(kept).row(-1, named=True)
            order = (microseconds_of(last["time"]), last["source"], last["id"], last["customer"])
            return pl.concat(kept), Place(order, window // timedelta(microseconds=1))
        kept.append(found)
        have += found.height
        if seen * 4 <= rows:  # so a page takes few looks, however thin the usage and however small the page
            window = min(WINDOW_MAX, window * 2)
        start = end
    return (pl.concat(kept) if kept else _no_events()), None


def _smallest(
    reader: UsageLogReader,
    asked: Events,
    start: datetime,
    end: datetime,
    after: tuple[int, str, str, str] | None,
    rows: int,
) -> tuple[pl.DataFrame, int]:
    """The first `rows` events of a time, and how many there were. Holds those and one frame, however many there are."""
    kept, seen = _no_events(), 0
    for frame in scan_counting(reader, asked.tenant_id, asked.cut, customers=asked.keys, start=start, end=end):
        is_amended = "first_lane" in frame.columns
        if is_amended:  # in its place: received when it was sent
            frame = frame.with_columns(received_at=pl.col("first_received_at"))
        amended = is_amended and "backfill" not in frame.columns
        frame = frame.with_columns(amended=pl.lit(amended)).select(EVENT_COLUMNS)
        if after is not None:
            frame = frame.filter(_is_behind(after))
        seen += frame.height
        kept = pl.concat([kept, frame]).sort(_ORDER).head(rows)
    return kept, seen


def _is_behind(after: tuple[int, str, str, str]) -> pl.Expr:
    behind, equal = pl.lit(False), pl.lit(True)
    values = (instant_of(after[0]), *after[1:])
    for name, value in zip(_ORDER, values, strict=True):
        given = pl.lit(value, pl.Datetime("us", "UTC")) if name == "time" else pl.lit(value)
        behind = behind | (equal & (pl.col(name) > given))
        equal = equal & (pl.col(name) == given)
    return behind


def _no_events() -> pl.DataFrame:
    instant = pl.Datetime("us", "UTC")
    types: dict[str, Any] = dict.fromkeys(EVENT_COLUMNS, pl.String)
    return pl.DataFrame(schema=types | {"time": instant, "received_at": instant, "amended": pl.Boolean})


def events_parquet(events: pl.DataFrame) -> bytes:
    """A Parquet file of its own: pages are put together by any reader of several files."""
    out = io.BytesIO()
    events.write_parquet(out, compression="zstd", row_group_size=131_072, statistics=True)
    return out.getvalue()


def events_csv(events: pl.DataFrame, *, header: bool, raw: bool) -> bytes:
    """RFC 4180. Unless `raw`, a text that a spreadsheet would run as a formula gets an apostrophe before it."""
    shown = events.with_columns(
        pl.col("time", "received_at").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"),
        pl.col("amended").cast(pl.String),
    )
    if not raw:
        safe = (
            pl.when(pl.col(name).str.contains(r"^[=+\-@\t\r]"))
            .then(pl.concat_str(pl.lit("'"), pl.col(name)))
            .otherwise(pl.col(name))
            .alias(name)
            for name in _TEXTS
        )
        shown = shown.with_columns(safe)
    return shown.write_csv(include_header=header, line_terminator="\r\n").encode()


# -- FOCUS -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Charges:
    """Which charges: of documents issued on these local days (inclusive), of one billing account or of all, and what
    the open periods would bill if they ended now."""

    tenant_id: str
    master_number: int
    master: MasterData
    now: datetime
    since: date
    until: date
    customer: str | None = None
    open_periods: bool = True


@dataclass(frozen=True)
class ChargePlace:
    """Where a page ended: behind which document, or behind which customer's open periods."""

    part: str = "billed"
    after: str | None = None


@dataclass(frozen=True)
class ChargePage:
    rows: list[Row] = field(default_factory=list[Row])
    following: ChargePlace | None = None


def charges_page(database: Database, queries: UsageQueries, asked: Charges, place: ChargePlace) -> ChargePage:
    """The next charges. A document's rows are never on two pages, so each page adds up by itself."""
    issuer = _issuer(asked.master)
    if place.part == "billed":
        with database.tenant(asked.tenant_id) as connection:
            found = billed_documents.page(
                connection,
                after=place.after,
                limit=DOCUMENTS,
                since=asked.since,
                until=asked.until,
                customer=asked.customer,
            )
        rows = [row for one in found for row in document_rows(one["document"], _account(one, asked, issuer))]
        if len(found) == DOCUMENTS:
            return ChargePage(rows, ChargePlace("billed", str(found[-1]["id"])))
        return ChargePage(rows, ChargePlace("open") if _has_open(asked) else None)
    customers = _customers(asked)
    behind = [code for code in customers if place.after is None or code > place.after][: CUSTOMERS + 1]
    rows = [row for code in behind[:CUSTOMERS] for row in _open_rows(queries, asked, code, issuer)]
    return ChargePage(rows, ChargePlace("open", behind[CUSTOMERS - 1]) if len(behind) > CUSTOMERS else None)


def charges_csv(rows: Sequence[Row], *, header: bool, raw: bool) -> Iterator[bytes]:
    """CSV of FOCUS. Unless `raw`, texts that a spreadsheet would run as a formula get an apostrophe before them."""
    if header:
        yield csv_line(COLUMNS).encode()
    for row in rows:
        yield csv_line([row[name] if raw or name in _EXACT else harmless(row[name]) for name in COLUMNS]).encode()


_EXACT = DECIMALS | {"BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd"}


def _open_rows(queries: UsageQueries, asked: Charges, customer: str, issuer: str) -> Iterator[Row]:
    """What the customer's open periods would bill if they ended now; usage in them is at the live price."""
    so_far = queries.so_far(asked.tenant_id, asked.master_number, asked.master, customer, asked.now)
    name = asked.master.customers[customer].name
    for line, currency in zip(so_far.lines, so_far.currencies, strict=True):
        account = Account(customer, name, issuer, currency, line.start, line.end, None)
        yield line_row(line, account, is_correction=line.correction)


def _has_open(asked: Charges) -> bool:
    """Open periods belong to today: asked for other days alone, there are none."""
    zone = asked.master.tenant.timezone
    today = midnight(asked.since, zone) <= asked.now < midnight(asked.until + timedelta(days=1), zone)
    return asked.open_periods and today


def _customers(asked: Charges) -> list[str]:
    if asked.customer is not None:
        return [asked.customer]
    return sorted(code for code, subscriptions in asked.master.subscriptions_of.items() if subscriptions)


def _account(found: dict[str, Any], asked: Charges, issuer: str) -> Account:
    day = midnight(found["issued_on"], asked.master.tenant.timezone)
    return Account(
        found["customer"],
        found["customer_name"],
        issuer,
        found["currency"],
        found["period_start"] or day,
        found["period_end"] or day + timedelta(days=1),
        found["number"],
    )


def _issuer(master: MasterData) -> str:
    entity = master.tenant.form.get("legal_entity") or {}
    return str(entity.get("name") or master.tenant.form.get("name") or master.tenant.form.get("code") or "Provider")
