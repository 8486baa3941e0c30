"""Lists: sorted, filtered, cut into pages by a cursor, exported as they are shown.

Owns the cursor and the export. What a row holds is the page's business; rows that come from SQL are cut there, rows
of the master data (in memory) here.
"""

import base64
import binascii
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Generic, TypeVar

from fastapi.responses import Response, StreamingResponse

from billing.errors import InvalidInput

Row = TypeVar("Row")
LIMIT = 25  # rows of one page of a list
EXPORT_ROWS_MAX = 200_000  # of one export; the API has the rest, page by page


@dataclass(frozen=True)
class Sort:
    """A column and a direction, as the URL has it: `sort=-issued`."""

    key: str
    descending: bool

    @classmethod
    def of(cls, text: str | None, keys: Sequence[str], default: str) -> "Sort":
        chosen = text or default
        key = chosen.removeprefix("-")
        return cls(key, chosen.startswith("-")) if key in keys else cls.of(None, keys, default)


@dataclass(frozen=True)
class Rows(Generic[Row]):
    items: Sequence[Row]
    total: int  # that fit the filter
    total_all: int  # without filter: zero means that the page is empty for good
    next: str | None = None  # the cursor of the next page
    first: bool = True
    limit: int = LIMIT


def cursor(*values: object) -> str:
    """A place in a list, opaque to the reader."""
    text = json.dumps([str(value) for value in values], separators=(",", ":"), ensure_ascii=False)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def cursor_values(text: str, count: int) -> list[str]:
    try:
        values = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (binascii.Error, ValueError) as error:
        raise InvalidInput("the cursor `after` is not one of ours") from error
    if not isinstance(values, list) or len(values) != count or not all(isinstance(value, str) for value in values):
        raise InvalidInput("the cursor `after` is not one of ours")
    return values


def cursor_number(text: str) -> int:
    (value,) = cursor_values(text, 1)
    if not value.isdecimal() or len(value) > 18:
        raise InvalidInput("the cursor `after` is not one of ours")
    return int(value)


def window(
    found: Iterable[Row],
    *,
    sort: Sort,
    key: Callable[[Row], Any],
    code: Callable[[Row], str],
    after: str | None,
    total_all: int,
    limit: int = LIMIT,
) -> Rows[Row]:
    """One page of rows that are in memory. The cursor names the last row shown, so rows that come or go in between
    move nothing but themselves."""
    ordered = sorted(found, key=lambda row: (key(row), code(row)), reverse=sort.descending)
    start = 0
    if after:
        (last,) = cursor_values(after, 1)
        start = next((place + 1 for place, row in enumerate(ordered) if code(row) == last), 0)
    items = ordered[start : start + limit]
    more = start + limit < len(ordered)
    return Rows(items, len(ordered), total_all, cursor(code(items[-1])) if more else None, start == 0, limit)


def plain(value: Any) -> Any:
    """A value as CSV and JSON carry it: exact numbers as text, times in RFC 3339."""
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    return value


def csv_text(value: Any) -> str:
    """A cell that no spreadsheet takes for a formula: texts of others that begin like one get an apostrophe."""
    if value is None:
        return ""
    text = str(plain(value))
    if isinstance(value, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + text
    return text


def export(form: str, name: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Response:
    """What the list shows, all pages of it."""
    if form == "json":
        body = json.dumps([{column: plain(row[column]) for column in columns} for row in rows], ensure_ascii=False)
        return Response(
            body, media_type="application/json", headers={"Content-Disposition": f'attachment; filename="{name}.json"'}
        )
    if form != "csv":
        raise InvalidInput("`format` is csv or json")
    return StreamingResponse(
        _lines(columns, rows),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}.csv"'},
    )


def _lines(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(columns)
    for place, row in enumerate(rows):
        writer.writerow([csv_text(row[column]) for column in columns])
        if place % 500 == 499:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()
