"""Numbers, dates and periods as a person reads them, in English and German.

Owns the look only: nothing is computed or rounded here but the number of shown decimals of a currency that stores
fewer. Amounts are Decimals, a minus is U+2212, a missing value an en dash; periods are shown inclusive.
"""

import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from zoneinfo import ZoneInfo

from markupsafe import Markup, escape

from billing.money import minor_digits
from deployments.front.texts import Texts

MISSING = "–"
MINUS = "\u2212"
SEPARATORS = {"en": (",", "."), "de": (".", ",")}


@lru_cache(maxsize=64)
def _digits(currency: str) -> int:
    return minor_digits(currency)


class Formats:
    """One language, one time zone: the tenant's."""

    def __init__(self, texts: Texts, timezone: str) -> None:
        self._texts = texts
        self.timezone = timezone
        self._zone = ZoneInfo(timezone)
        self._group, self._point = SEPARATORS[texts.language]

    # -- numbers ---------------------------------------------------------------------------------------------------
    def number(self, value: Decimal | int | None, least: int = 0, most: int | None = None) -> str:
        """With at least `least` decimals; trailing zeros beyond them are left out; more than `most` are cut off."""
        if value is None:
            return MISSING
        whole, _, places = format(abs(Decimal(value)), "f").partition(".")
        places = places.rstrip("0").ljust(least, "0")
        if most is not None and len(places) > most:
            places = places[:most].rstrip("0").ljust(least, "0") + "…"
        grouped = f"{int(whole):,}".replace(",", self._group)
        sign = MINUS if value < 0 else ""
        return f"{sign}{grouped}{self._point}{places}" if places else f"{sign}{grouped}"

    def exact(self, text: str) -> str:
        """What somebody typed as a number in his way of writing it, with a decimal point and without groups. What is
        no such number comes back as it was: who reads it says what is wrong."""
        plain = text.strip().replace(" ", "").replace("\u00a0", "").replace("'", "").replace(MINUS, "-")
        group, point = re.escape(self._group), re.escape(self._point)
        if not re.fullmatch(rf"-?([0-9]+|[0-9]{{1,3}}({group}[0-9]{{3}})+)({point}[0-9]+)?", plain):
            return plain
        return plain.replace(self._group, "").replace(self._point, ".")

    def amount(self, value: Decimal | None, currency: str) -> str:
        return self.number(value, _digits(currency))

    def money(self, value: Decimal | None, currency: str) -> str:
        """With the currency behind it, for running text."""
        return MISSING if value is None else f"{self.amount(value, currency)}\u00a0{currency}"

    def signed(self, value: Decimal | int | None, least: int = 0, most: int | None = None) -> str:
        if value is None:
            return MISSING
        return ("+" if value > 0 else "") + self.number(value, least, most)

    def change(self, now: Decimal | int, before: Decimal | int) -> str:
        """The change in percent with one decimal; a dash where there is nothing to compare with."""
        if not before:
            return MISSING
        percent = (Decimal(now) - Decimal(before)) * 100 / abs(Decimal(before))
        return self.signed(percent.quantize(Decimal("0.1")), 1)

    def pad(self, value: Decimal | int | None, places: int, least: int = 0) -> Markup:
        """A number followed by invisible digits, so that decimal points stand below each other in a column."""
        text = self.number(value, least)
        if value is None:
            return escape(text)
        shown = len(text.partition(self._point)[2])
        missing = places - shown
        if missing <= 0:
            return escape(text)
        filler = ("" if shown else self._point) + "0" * missing
        return Markup('{}<i class="pad" aria-hidden="true">{}</i>').format(text, filler)

    @staticmethod
    def places(values: Iterable[Decimal | int | None], least: int = 0) -> int:
        """The most decimals that any of the values shows."""
        most = least
        for value in values:
            if value is not None:
                places = format(Decimal(value), "f").partition(".")[2].rstrip("0")
                most = max(most, len(places))
        return most

    def size(self, count: int) -> str:
        """Bytes for people."""
        for unit, limit in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
            if count >= limit:
                return f"{self.number((Decimal(count) / limit).quantize(Decimal('0.1')))} {unit}"
        return f"{self.number(count)} B"

    # -- dates -----------------------------------------------------------------------------------------------------
    def local(self, moment: datetime) -> datetime:
        return moment.astimezone(self._zone)

    def day(self, day: date | None) -> str:
        if day is None:
            return MISSING
        if self._texts.language == "de":
            return f"{day.day:02}.{day.month:02}.{day.year}"
        return f"{day.day} {self._month(day)} {day.year}"

    def day_short(self, day: date) -> str:
        return f"{day.day}. {self._month(day)}" if self._texts.language == "de" else f"{day.day} {self._month(day)}"

    def month(self, day: date) -> str:
        """ "November 2026" """
        return f"{self._texts(f'month.{day.month}')} {day.year}"

    def month_short(self, day: date) -> str:
        return self._month(day)

    def moment(self, moment: datetime | None) -> Markup:
        """Local time with the UTC one to hover over."""
        if moment is None:
            return escape(MISSING)
        utc = moment.astimezone(UTC)
        return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(
            utc.strftime("%Y-%m-%dT%H:%M:%SZ"), utc.strftime("%Y-%m-%d %H:%M:%S"), self.moment_text(moment)
        )

    def moment_text(self, moment: datetime) -> str:
        local = self.local(moment)
        return f"{self.day(local.date())}, {local:%H:%M}"

    def clock(self, moment: datetime) -> str:
        return f"{self.local(moment):%H:%M:%S}"

    def duration(self, seconds: Decimal | int) -> str:
        if seconds >= 120:
            return f"{self.number(int(seconds) // 60)} min {int(seconds) % 60} s"
        return f"{self.number(Decimal(seconds).quantize(Decimal('0.1')))} s"

    def period(self, start: datetime, end: datetime) -> str:
        """A half-open period, shown inclusive: days where it begins and ends at midnight, else moments."""
        first, last = self.local(start), self.local(end)
        if any((first.hour, first.minute, first.second, last.hour, last.minute, last.second)):
            if start == end:
                return self.moment_text(start)
            return f"{self.moment_text(start)} – {self.moment_text(end)}"
        return self.days(first.date(), max(first.date(), last.date() - timedelta(days=1)))

    def days(self, first: date, last: date) -> str:
        """From the first to the last day, both included."""
        if first == last:
            return self.day(first)
        german = self._texts.language == "de"
        if (first.year, first.month) == (last.year, last.month):
            if german:
                return f"{first.day:02}.–{self.day(last)}"
            return f"{first.day}–{self.day(last)}"
        if first.year == last.year:
            return (
                f"{first.day:02}.{first.month:02}.–{self.day(last)}"
                if german
                else (f"{first.day} {self._month(first)} – {self.day(last)}")
            )
        return f"{self.day(first)} – {self.day(last)}"

    def _month(self, day: date) -> str:
        return self._texts(f"month.short.{day.month}")
