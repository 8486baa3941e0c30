"""Reading JSON forms: every field by name, every mistake with its JSON pointer, unknown keys refused.

Owns nothing of the domain. A `Form` collects mistakes instead of raising at the first; `Mistakes.check()` raises them
all at once as one InvalidInput. Numbers come as text (or whole JSON numbers), never as floats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

from billing.errors import FieldError, InvalidInput
from billing.money import PLACES_MAX, parse_number
from billing.periods import TimeInvalid, parse_moment

NO_MOMENT = datetime(1, 1, 1, tzinfo=UTC)  # stands where a time is missing or wrong
CODE_LENGTH_MAX = 256
TEXT_LENGTH_MAX = 4_000
MISTAKES_MAX = 100  # of one input; more help nobody
INTEGER_DIGITS = 14  # 14 + 12 + 12 = 38 digits of quantity x price


class Mistakes:
    """What is wrong with one input, place by place."""

    def __init__(self) -> None:
        self.errors: list[FieldError] = []

    def add(self, pointer: str, detail: str) -> None:
        if len(self.errors) < MISTAKES_MAX:
            self.errors.append(FieldError(pointer, detail))

    def take(self, error: InvalidInput) -> None:
        for one in error.errors:
            self.add(one.pointer, one.detail)
        if not error.errors:
            self.add("", error.detail)

    def check(self) -> None:
        if self.errors:
            first = self.errors[0]
            more = f" (and {len(self.errors) - 1} more)" if len(self.errors) > 1 else ""
            raise InvalidInput(f"{first.pointer or 'input'}: {first.detail}{more}", errors=self.errors)


def escape(key: str) -> str:
    """A key as a part of a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


class Form:
    """One JSON object. Ask for its fields, then call `done()`: what was not asked for is an unknown key."""

    fields: Mapping[str, Any]

    def __init__(self, value: object, pointer: str, mistakes: Mistakes) -> None:
        self.pointer = pointer
        self.mistakes = mistakes
        if isinstance(value, Mapping):
            self.fields: Mapping[str, Any] = cast("Mapping[str, Any]", value)
        else:
            self.fields = cast("Mapping[str, Any]", {})
            mistakes.add(pointer, "an object is needed")
        self._left = {str(key) for key in self.fields}

    def at(self, key: str) -> str:
        return f"{self.pointer}/{escape(key)}"

    def wrong(self, key: str, detail: str) -> None:
        self.mistakes.add(self.at(key), detail)

    def raw(self, key: str) -> Any:
        self._left.discard(key)
        return self.fields.get(key)

    def done(self) -> None:
        for key in sorted(self._left):
            self.wrong(key, f"unknown key {key!r}")

    def rest(self, allowed: frozenset[str]) -> dict[str, Any]:
        """Keys that are kept as they are, for others to read."""
        kept = {key: self.fields[key] for key in self.fields if key in allowed and key in self._left}
        self._left -= allowed
        return kept

    def text(self, key: str, default: str | None = None, length_max: int = TEXT_LENGTH_MAX) -> str:
        value = self.raw(key)
        if value is None:
            if default is None:
                self.wrong(key, "is missing")
            return default or ""
        if not isinstance(value, str) or (not value and default is None):
            self.wrong(key, "a text is needed")
            return default or ""
        if len(value) > length_max:
            self.wrong(key, f"is longer than {length_max} characters")
        return value

    def code(self, key: str = "code", default: str | None = None) -> str:
        value = self.text(key, default, CODE_LENGTH_MAX)
        if not value.isprintable():
            self.wrong(key, "must hold printable characters only")
        elif key == "code" and value != value.strip():
            self.wrong(key, "must not begin or end with a space")
        return value

    def choice(self, key: str, options: Sequence[str], default: str | None = None) -> str:
        value = self.text(key, default)
        if value and value not in options:
            self.wrong(key, f"must be one of {', '.join(options)}, not {value!r}")
            return default if default is not None else options[0]
        return value or (options[0] if default is None else default)

    def truth(self, key: str, default: bool) -> bool:
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.wrong(key, "true or false is needed")
            return default
        return value

    def decimal(
        self, key: str, *, required: bool = True, least: Decimal | None = None, above: Decimal | None = None
    ) -> Decimal | None:
        value = self.raw(key)
        if value is None:
            if required:
                self.wrong(key, "is missing")
            return None
        number = decimal_of(value)
        if number is None:
            limits = f"at most {INTEGER_DIGITS} digits before and {PLACES_MAX} after the point"
            self.wrong(key, f"{_shown(value)} is no decimal number of {limits}, as text")
        elif least is not None and number < least:
            self.wrong(key, f"must be at least {least}")
        elif above is not None and number <= above:
            self.wrong(key, f"must be above {above}")
        return number

    def count(self, key: str, default: int, least: int = 1, most: int = 1_000_000) -> int:
        number = self.decimal(key, required=False)
        if number is None:
            return default
        if number != number.to_integral_value() or not least <= number <= most:
            self.wrong(key, f"must be a whole number from {least} to {most}")
            return default
        return int(number)

    def moment(self, key: str, timezone: str, default: datetime | None = None, *, required: bool = True) -> datetime:
        value = self.raw(key)
        if value is None and (default is not None or not required):
            return default or NO_MOMENT
        try:
            return parse_moment(value, timezone)
        except TimeInvalid as error:
            self.wrong(key, str(error) if value is not None else "is missing")
            return default or NO_MOMENT

    def items(self, key: str, most: int = 100_000) -> Iterator[tuple[str, Any]]:
        """The entries of a list with their pointers; a missing list is empty."""
        value = self.raw(key)
        if value is None:
            return
        if not isinstance(value, list):
            self.wrong(key, "a list is needed")
            return
        entries = cast("list[Any]", value)
        if len(entries) > most:
            self.wrong(key, f"has more than {most} entries")
            return
        for place, entry in enumerate(entries):
            yield f"{self.at(key)}/{place}", entry

    def texts(self, key: str) -> tuple[str, ...]:
        found: list[str] = []
        for pointer, entry in self.items(key):
            if isinstance(entry, str):
                found.append(entry)
            else:
                self.mistakes.add(pointer, "a text is needed")
        return tuple(found)

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.raw(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.wrong(key, "an object is needed")
            return {}
        return cast("Mapping[str, Any]", value)


def _shown(value: object) -> str:
    """What was sent, for people: Python refuses to print integers above 4,300 digits."""
    return "a huge integer" if isinstance(value, int) and value.bit_length() > 200 else repr(str(value)[:40])


def decimal_of(value: object) -> Decimal | None:
    """An exact number of at most 14 integer digits and 12 places, or None."""
    return parse_number(value, integer_digits=INTEGER_DIGITS)
