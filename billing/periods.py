"""Time as contracts see it: local midnights, period grids, cuts, and the share of a period that counts.

Owns how dates become instants in the tenant's time zone and where periods begin and end. Which charge falls due in
which period is `billing/contracts.py`. Instants are aware datetimes in UTC; periods are half-open `[start, end)`.
Source: docs/rules.md, Periods and Proration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from functools import lru_cache
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

Interval = Literal["day", "week", "month", "quarter", "year"]
Anchor = Literal["calendar", "anniversary"]
Proration = Literal["none", "day", "second"]

MONTHS: dict[str, int] = {"month": 1, "quarter": 3, "year": 12}
DAYS: dict[str, int] = {"day": 1, "week": 7}
# Contracts run from here to there; a wider range would leave what `datetime` can hold when a time zone is added.
YEAR_MIN, YEAR_MAX = 1900, 9998


_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[Tt ]|$)")


class TimeInvalid(ValueError):
    """A text that is no date and no time with an offset; the caller knows its place and makes an InvalidInput."""


@lru_cache(maxsize=256)
def zone(name: str) -> ZoneInfo:
    """The time zone of that IANA name; raises TimeInvalid where there is none."""
    if name.startswith(("posix/", "right/")) or name in ("localtime", "posixrules", "Factory"):
        raise TimeInvalid(f"{name!r} is no IANA time zone")  # with leap seconds, or another on each machine
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError, IsADirectoryError) as error:
        raise TimeInvalid(f"{name!r} is no IANA time zone") from error


def instant(local: datetime, timezone: str) -> datetime:
    """The instant of a local wall time.

    A time that does not exist moves forward by the gap, one that exists twice is the first: both are what `fold=0`
    means, which takes the offset before the transition.
    """
    return local.replace(tzinfo=zone(timezone), fold=0).astimezone(UTC)


@lru_cache(maxsize=65_536)
def midnight(day: date, timezone: str) -> datetime:
    """The first instant of a local day."""
    return instant(datetime(day.year, day.month, day.day), timezone)


@lru_cache(maxsize=65_536)
def local_date(moment: datetime, timezone: str) -> date:
    return moment.astimezone(zone(timezone)).date()


def parse_moment(text: object, timezone: str) -> datetime:
    """A date (its local midnight) or an RFC 3339 time with offset, as an instant. Raises TimeInvalid."""
    if not isinstance(text, str):
        raise TimeInvalid("a date or a time with an offset is needed, as text")
    return _moment(text, timezone)


@lru_cache(maxsize=4_096)  # steps of master data say the same few times again and again; what is refused is not kept
def _moment(text: str, timezone: str) -> datetime:
    if not _DATE.match(text):  # Python also reads 20260131 and 2026-W05-6
        raise TimeInvalid(f"{text[:40]!r} is neither a date (2026-01-31) nor a time (2026-01-31T10:00:00+01:00)")
    try:
        if len(text) == 10:
            day = date.fromisoformat(text)
            _check_year(day.year)
            return midnight(day, timezone)
        moment = datetime.fromisoformat(text)
    except TimeInvalid:
        raise
    except ValueError as error:
        raise TimeInvalid(f"{text!r} is neither a date (2026-01-31) nor a time (2026-01-31T10:00:00+01:00)") from error
    if moment.tzinfo is None:
        raise TimeInvalid(f"{text!r} has no offset: add Z or +01:00")
    _check_year(moment.year)
    return moment.astimezone(UTC)


def _check_year(year: int) -> None:
    if not YEAR_MIN <= year <= YEAR_MAX:
        raise TimeInvalid(f"the year must be between {YEAR_MIN} and {YEAR_MAX}")


def show_moment(moment: datetime, timezone: str) -> str:
    """As a date when it is a local midnight, else as a time with the local offset."""
    local = moment.astimezone(zone(timezone))
    if midnight(local.date(), timezone) == moment:
        return local.date().isoformat()
    return local.isoformat()


@lru_cache(maxsize=65_536)
def days_before(moment: datetime, timezone: str) -> int:
    """How many local midnights lie before the moment (counted from year 1): differences count days."""
    day = local_date(moment, timezone)
    return day.toordinal() + (1 if moment > midnight(day, timezone) else 0)


def days_between(start: datetime, end: datetime, timezone: str) -> int:
    """The days of `[start, end)`: a day counts if its midnight lies in it, whatever its length."""
    return days_before(end, timezone) - days_before(start, timezone)


def add_months(local: datetime, months: int) -> datetime:
    """Months later on the same day; the 31st becomes the last day of a shorter month."""
    index = local.year * 12 + local.month - 1 + months
    year, month = index // 12, index % 12 + 1
    if not YEAR_MIN - 1 <= year <= YEAR_MAX + 1:
        raise TimeInvalid(f"the year must be between {YEAR_MIN} and {YEAR_MAX}")
    return local.replace(year=year, month=month, day=min(local.day, _days_of_month(year, month)))


def _days_of_month(year: int, month: int) -> int:
    following = date(year + month // 12, month % 12 + 1, 1)
    return (following - timedelta(days=1)).day


@dataclass(frozen=True, slots=True)
class Period:
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Grid:
    """Where the periods of a contract begin. `origin` is a local wall time; only `anniversary` looks at it."""

    interval: Interval
    anchor: Anchor
    timezone: str
    origin: datetime | None = None  # naive, local
    _known: dict[datetime, Period] = field(default_factory=dict[datetime, Period], compare=False, repr=False)

    def at(self, moment: datetime) -> Period:
        """The period that contains the moment (the one that begins there, on a boundary)."""
        found = self._known.get(moment)
        if found is None:
            found = self._known[moment] = _period_at(self, moment)
        return found

    def following(self, period: Period) -> Period:
        return self.at(period.end)


def grid(interval: Interval, anchor: Anchor, timezone: str, start: datetime) -> Grid:
    if anchor == "calendar":
        return _calendar(interval, timezone)
    return Grid(interval, anchor, timezone, start.astimezone(zone(timezone)).replace(tzinfo=None, fold=0))


@lru_cache(maxsize=1_024)
def _calendar(interval: Interval, timezone: str) -> Grid:
    """One value for all contracts: it remembers its periods."""
    return Grid(interval, "calendar", timezone)


def _period_at(grid: Grid, moment: datetime) -> Period:
    if grid.anchor == "calendar":
        first = _calendar_start(local_date(moment, grid.timezone), grid.interval)
        return Period(midnight(first, grid.timezone), midnight(_calendar_next(first, grid.interval), grid.timezone))
    assert grid.origin is not None, "an anniversary has an origin"
    number = _anniversary_guess(grid, moment)
    start = _anniversary_start(grid, number)
    for _ in range(8):  # the guess is off by one or two at the edges (short months, clock changes)
        end = _anniversary_start(grid, number + 1)
        if moment < start:
            number -= 1
            start = _anniversary_start(grid, number)
        elif moment >= end:
            number, start = number + 1, end
        else:
            return Period(start, end)
    raise AssertionError(f"no period of {grid} contains {moment}")


def _calendar_start(day: date, interval: Interval) -> date:
    match interval:
        case "day":
            return day
        case "week":
            return day - timedelta(days=day.weekday())
        case "month":
            return day.replace(day=1)
        case "quarter":
            return date(day.year, (day.month - 1) // 3 * 3 + 1, 1)
        case "year":
            return date(day.year, 1, 1)


def _calendar_next(first: date, interval: Interval) -> date:
    if interval in DAYS:
        return first + timedelta(days=DAYS[interval])
    index = first.year * 12 + first.month - 1 + MONTHS[interval]
    return date(index // 12, index % 12 + 1, 1)


def _anniversary_guess(grid: Grid, moment: datetime) -> int:
    assert grid.origin is not None
    local = moment.astimezone(zone(grid.timezone)).replace(tzinfo=None)
    if grid.interval in DAYS:
        return (local - grid.origin).days // DAYS[grid.interval]
    months = (local.year - grid.origin.year) * 12 + local.month - grid.origin.month
    return months // MONTHS[grid.interval]


def _anniversary_start(grid: Grid, number: int) -> datetime:
    """Steps are added to the start, never to the period before: 31 January, 28 February, 31 March."""
    assert grid.origin is not None
    if grid.interval in DAYS:
        local = grid.origin + timedelta(days=number * DAYS[grid.interval])
    else:
        local = add_months(grid.origin, number * MONTHS[grid.interval])
    return instant(local, grid.timezone)


@lru_cache(maxsize=65_536)
def share(proration: Proration, start: datetime, end: datetime, period: Period, timezone: str) -> Fraction:
    """The share of a full period that `[start, end)` is: by days, by real seconds, or always all of it."""
    if proration == "none" or (start == period.start and end == period.end):
        return Fraction(1)
    if proration == "day":
        return Fraction(days_between(start, end, timezone), days_between(period.start, period.end, timezone))
    return Fraction(_microseconds(end - start), _microseconds(period.end - period.start))


def proration_parts(
    proration: Proration, start: datetime, end: datetime, period: Period, timezone: str
) -> tuple[int, int]:
    """Active and full days (or seconds) for people to read."""
    if proration == "second":
        return _microseconds(end - start) // 1_000_000, _microseconds(period.end - period.start) // 1_000_000
    return days_between(start, end, timezone), days_between(period.start, period.end, timezone)


def _microseconds(length: timedelta) -> int:
    return (length.days * 86_400 + length.seconds) * 1_000_000 + length.microseconds
