"""Usage events as NDJSON whose lines are written alike, read in columns without parsing each: names in the same order.

A program writes all its lines with one format, and only the values differ. So the first line says where the others must
have what (braces, names, colons), and every line is held against that, byte for byte; a line that differs is held
against another one of its kind, and where that does not end soon nothing is read here and the usual parser takes over.
What is read is exact: texts and `data` come out letter by letter. Rules for values are not looked at
(`billing/usage_formats.py`).

All work is on arrays with a place a line, a dozen bytes at a time; five times as fast as a JSON parser.
"""

# pyarrow ships no types: in strict mode every use of it would be an error.
# pyright: basic

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from billing.usage import DATA_BYTES_MAX, EVENT_SCHEMA, RESERVED_SOURCE, TEXT_LENGTH_MAX

Places = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

TEMPLATES_MAX = 8  # kinds of lines in one body
NEST_SHARE_MAX = 4  # one line in so many may have `data` that is not flat: those are read one by one
LAST_LINE_MIN = 96  # bytes: windows of the lines before it may reach into it
VALUE_WORDS_MAX = 64  # words of 8 bytes; a longer value is for the usual parser

_TEXTS = tuple(name for name in EVENT_SCHEMA if name != "data")
_MEMBER = rb'"(?P<name>source|id|type|customer|subscription|time)" *: *"'
_FIRST = re.compile(rb"\{ *" + _MEMBER)
_NEXT = re.compile(rb'" *, *' + _MEMBER)
_DATA = re.compile(rb'" *, *"data" *: *(?=\{)')
_TAIL = re.compile(rb" *\}\Z")
_VALUE = r'(?:"[^"]*"|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null)'
_PROPERTY = rf'"[^"]*" *: *{_VALUE}'
# Nothing of a body that is read here has a backslash or a control character.
_FLAT = rf"^\{{ *(?:{_PROPERTY}(?: *, *{_PROPERTY})*)? *\}}$"

_ONES, _HIGHS, _QUOTES, _ZEROS = (np.uint64(0x0101010101010101 * byte) for byte in (0x01, 0x80, 0x22, 0x30))
_INLINE = 12  # bytes of a text that lie in its view; a longer one lies in a buffer
_INLINE_MASKS = np.array(
    [[max(0, (1 << 8 * min(4, max(0, length - 4 * word))) - 1) for word in range(3)] for length in range(_INLINE + 1)],
    np.uint32,
)


@dataclass(frozen=True)
class _Template:
    """What stands before each value of a line, before `data`, and behind it."""

    names: tuple[str, ...]
    pieces: tuple[bytes, ...]  # one more than names
    tail: bytes
    lengths: tuple[int, ...]  # of the values of the line that it was taken from: probably those of others, too


@dataclass
class _Fields:
    """Where the values lie in the body; a name that a line lacks has the length -1."""

    starts: dict[str, Places] = field(default_factory=dict[str, Places])
    lengths: dict[str, Places] = field(default_factory=dict[str, Places])

    @classmethod
    def of(cls, rows: int) -> _Fields:
        names = (*_TEXTS, "data")
        return cls({name: np.zeros(rows, np.int64) for name in names}, {name: np.full(rows, -1) for name in names})


@dataclass(frozen=True)
class LikeLines:
    """`events` has the columns of EVENT_SCHEMA; `time` is text if not all are written alike. `is_plain`: no rule for
    values can be broken: nothing is missing, empty, long or nested, no source is ours, all times are instants."""

    events: pl.DataFrame
    is_plain: bool


def read(body: bytes) -> LikeLines | None:
    """The events, or None for a body that must be read by a parser. The body may end with a line end."""
    if b"\\" in body or not _is_text(body):
        return None
    octets = np.frombuffer(body, np.uint8)
    ends = np.flatnonzero(octets == 10)
    if int(np.count_nonzero(octets < 32)) != len(ends):
        return None
    size = len(body)
    if body.endswith(b"\n"):
        size -= 1
    else:
        ends = np.append(ends, size)
    starts = np.empty(len(ends), np.int64)
    starts[0], starts[1:] = 0, ends[:-1] + 1
    if len(ends) < 2 or size - int(starts[-1]) < LAST_LINE_MIN:
        return None
    fields = _places(body, starts, ends)
    if fields is None:
        return None
    columns = {
        name: _texts(body, fields.starts[name], fields.lengths[name], packed=name == "data") for name in EVENT_SCHEMA
    }
    nested = _nested(columns["data"])
    if nested is None:
        return None
    times = _instants(body, fields.starts["time"], fields.lengths["time"])
    if times is not None:
        columns["time"] = times
    # A table as a whole: column by column the way from Arrow costs ten times as much.
    events = cast("pl.DataFrame", pl.from_arrow(pa.table(columns)))
    return LikeLines(events, times is not None and nested == 0 and _are_plain(body, fields))


def _are_plain(body: bytes, fields: _Fields) -> bool:
    for name in ("source", "id", "type", "customer"):
        if int(fields.lengths[name].min()) <= 0 or int(fields.lengths[name].max()) > TEXT_LENGTH_MAX:
            return False
    subscriptions = fields.lengths["subscription"]
    if 0 in subscriptions or int(subscriptions.max()) > TEXT_LENGTH_MAX:
        return False
    if int(fields.lengths["data"].max()) > DATA_BYTES_MAX:
        return False
    reserved = RESERVED_SOURCE.encode()
    if int(fields.lengths["source"].max()) < len(reserved):
        return True
    return not bool(_stands(body, fields.starts["source"], reserved).any())


def _is_text(body: bytes) -> bool:
    if body.isascii():
        return True
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- where the values are


def _places(body: bytes, starts: Places, ends: Places) -> _Fields | None:
    """Where each line has its values, or None if lines of too many kinds are there or one of none."""
    rows = len(starts)
    fields = _Fields.of(rows)
    # The last line is read by itself: so no window of another one reaches beyond the end of the body.
    if not _last_line(fields, body, int(starts[-1]), int(ends[-1])):
        return None
    waiting: Places | None = None  # None: all but the last
    for _ in range(TEMPLATES_MAX):
        first = 0 if waiting is None else int(waiting[0])
        template = _template(body[int(starts[first]) : int(ends[first])])
        if template is None:
            return None
        chosen = slice(0, rows - 1) if waiting is None else waiting
        fits, places, lengths = _hold_against(template, body, starts[chosen], ends[chosen], int(starts[-1]))
        whole = bool(fits.all())
        into = chosen if whole else (np.flatnonzero(fits) if waiting is None else waiting[fits])
        for name, at, length in zip((*template.names, "data"), places, lengths, strict=True):
            fields.starts[name][into] = at if whole else at[fits]
            fields.lengths[name][into] = length if whole else length[fits]
        if whole:
            return fields
        if not fits[0]:
            return None
        waiting = np.flatnonzero(~fits) if waiting is None else waiting[~fits]
    return None


def _template(line: bytes) -> _Template | None:
    found = _members(line)
    if found is None:
        return None
    names = tuple(name for name, _, _ in found[:-1])
    pieces = tuple(line[before:at] for before, at in zip([0, *(end for _, _, end in found[:-1])],
                                                         [at for _, at, _ in found], strict=True))  # fmt: skip
    lengths = tuple(end - at for _, at, end in found[:-1])
    return _Template(names, pieces, line[found[-1][2] :], lengths)


def _members(line: bytes) -> list[tuple[str, int, int]] | None:
    """(name, start, end) of each value of a line, `data` last; None if it is written otherwise."""
    found: list[tuple[str, int, int]] = []
    match = _FIRST.match(line)
    while match is not None:
        start = match.end()
        end = line.find(b'"', start)
        if end < 0:
            return None
        found.append((match["name"].decode(), start, end))
        data = _DATA.match(line, end)
        if data is not None:
            tail = _TAIL.search(line)
            if tail is None or tail.start() <= data.end() or len({name for name, _, _ in found}) != len(found):
                return None
            found.append(("data", data.end(), tail.start()))
            return found
        match = _NEXT.match(line, end)
    return None


def _last_line(fields: _Fields, body: bytes, start: int, end: int) -> bool:
    found = _members(body[start:end])
    for name, at, stop in found or ():
        fields.starts[name][-1], fields.lengths[name][-1] = start + at, stop - at
    return found is not None


def _hold_against(
    template: _Template, body: bytes, starts: Places, ends: Places, limit: int
) -> tuple[Mask, list[Places], list[Places]]:
    """Which lines are written like the template, and where their values are; `limit`: where the last line begins.

    A place that ran out of its line is kept below the limit: such a line does not fit in the end.
    """
    fits = np.ones(len(starts), np.bool_)
    places: list[Places] = []
    lengths: list[Places] = []
    at = starts
    for piece, usual in zip(template.pieces[:-1], template.lengths, strict=True):
        fits &= _stands(body, at, piece)
        at = at + len(piece)
        places.append(at)
        length = _lengths(body, at, usual)
        lengths.append(length)
        at = np.minimum(at + length, limit)
    fits &= _stands(body, at, template.pieces[-1])
    at = at + len(template.pieces[-1])
    length = ends - len(template.tail) - at
    fits &= _stands(body, ends - len(template.tail), template.tail)
    fits &= length > 0
    return fits, [*places, at], [*lengths, length]


def _windows(body: bytes, at: Places, width: int) -> npt.NDArray[np.uint8]:
    """The `width` bytes at each place, one row each."""
    kind = f"V{width}"
    sliding = np.ndarray((len(body) - width + 1,), kind, body, 0, (1,))
    return sliding[at].view(np.uint8).reshape(len(at), width)


def _beginnings(body: bytes, at: Places) -> npt.NDArray[np.uint8]:
    """The first 12 bytes from each place on; behind the end of the body are zeros. Only the last line comes near it."""
    furthest = len(body) - _INLINE
    if int(at[-1]) <= furthest:
        return _windows(body, at, _INLINE)
    windows = _windows(body, np.minimum(at, furthest), _INLINE)
    windows[-1] = np.frombuffer(body[int(at[-1]) :].ljust(_INLINE, b"\0"), np.uint8)
    return windows


def _words(body: bytes, at: Places, count: int = 1) -> Words:
    """The 8 bytes at each place as a number, or `count` numbers a row."""
    return _windows(body, at, 8 * count).view("<u8").reshape(len(at), count)


def _stands(body: bytes, at: Places, piece: bytes) -> Mask:
    """Where the piece stands at the place."""
    count = (len(piece) + 7) // 8
    words = _words(body, at, count)
    found: Mask | None = None
    for place in range(count):
        part = piece[8 * place : 8 * place + 8]
        wanted = np.uint64(int.from_bytes(part, "little"))
        word = words[:, place]
        same = (word if len(part) == 8 else word & np.uint64((1 << 8 * len(part)) - 1)) == wanted
        found = same if found is None else found & same
    assert found is not None, "a piece is never empty"
    return found


def _lengths(body: bytes, at: Places, usual: int) -> Places:
    """How many bytes lie before the next quotation mark, of each place; 0 words too far: as if it stood there."""
    if usual + 1 < LAST_LINE_MIN:
        marks = _windows(body, at, usual + 1) == 34
        if int(np.count_nonzero(marks)) == len(at) and bool(marks[:, -1].all()):
            return np.full(len(at), usual)
    lengths = np.zeros(len(at), np.int64)
    open_: Places | None = None
    place = at
    for _ in range(VALUE_WORDS_MAX):
        met = _words(body, place)[:, 0] ^ _QUOTES
        met = (met - _ONES) & ~met & _HIGHS
        before = np.bitwise_count((met & (~met + np.uint64(1))) - np.uint64(1)).astype(np.int64) >> 3  # 8 if none
        if open_ is None:
            lengths = before
            open_ = np.flatnonzero(before == 8)
        else:
            lengths[open_] += before
            open_ = open_[before == 8]
        if not len(open_):
            break
        place = at[open_] + lengths[open_]
        inside = place < len(body) - LAST_LINE_MIN
        open_, place = open_[inside], place[inside]
        if not len(open_):
            break
    return lengths


# --- texts, times, objects


def _texts(body: bytes, starts: Places, lengths: Places, *, packed: bool = False) -> Any:
    """Texts by their places in the body as an Arrow array; null where the length is -1. Short ones lie in their views,
    long ones packed in a buffer of their own (else each column would carry the whole body along)."""
    rows = len(starts)
    shortest, longest = int(lengths.min()), int(lengths.max())
    if longest < 0:
        return pa.nulls(rows, pa.string_view())
    views = np.empty((rows, 4), np.uint32)
    views[:, 0] = lengths if shortest >= 0 else np.maximum(lengths, 0)
    if shortest <= _INLINE:
        bounded = np.clip(lengths, 0, _INLINE) if shortest < 0 or longest > _INLINE else lengths
        views[:, 1:] = _beginnings(body, starts).view("<u4").reshape(rows, 3) & _INLINE_MASKS[bounded]
    if longest > _INLINE:
        long = slice(None) if shortest > _INLINE else np.flatnonzero(lengths > _INLINE)
        views[long, 1] = _windows(body, starts[long], 4).view("<u4")[:, 0]
        views[long, 2] = 0
        views[long, 3] = starts[long]
    valid = None if shortest >= 0 else pa.py_buffer(np.packbits(lengths >= 0, bitorder="little"))
    buffers = [valid, pa.py_buffer(views), *([pa.py_buffer(body)] if longest > _INLINE else [])]
    texts = pa.Array.from_buffers(pa.string_view(), rows, buffers)
    return texts.cast(pa.large_string()) if longest > _INLINE or packed else texts


def _nested(data: Any) -> int | None:
    """How many of the texts are JSON objects that are not flat; None if one is no object. A flat object is known by its
    looks, another one by a decoder."""
    flat = pc.call_function("match_substring_regex", [data], options=pc.MatchSubstringOptions(_FLAT))
    if flat.true_count == len(data):
        return 0
    nested = data.filter(pc.call_function("invert", [flat])).to_pylist()
    if len(nested) * NEST_SHARE_MAX > len(data):
        return None
    try:
        for text in nested:
            if not text.startswith("{"):
                return None
            msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    return len(nested)


_TIME = re.compile(
    rb"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.(?P<fraction>[0-9]{1,8}))?"
    rb"(?P<offset>Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_YEARS = (1900, 9999)  # the last one not whole, so it is left to the rules
_EPOCH = date(1970, 1, 1)
_MONTHS = [date(year, month, 1) for year in range(_YEARS[0], _YEARS[1]) for month in range(1, 13)]
_MONTH_STARTS = np.array([(month - _EPOCH).days for month in (*_MONTHS, date(_YEARS[1], 1, 1))], np.int64)


def _instants(body: bytes, starts: Places, lengths: Places) -> Any:
    """RFC 3339 texts as instants, if all have the same length and offset and none is unusual; None: ask the rules."""
    usual = int(lengths[0])
    first = _TIME.fullmatch(body[int(starts[0]) : int(starts[0]) + usual]) if usual >= 0 else None
    if first is None or not bool((lengths == usual).all()):
        return None
    fits = np.ones(len(starts), np.bool_)
    dates = _digits(_words(body, starts)[:, 0], "0000-00-", fits)
    hours = _digits(_words(body, starts + 8)[:, 0], "00T00:00", fits)
    seconds = _digits(_words(body, starts + 12)[:, 0], "0:00:00" + chr(body[int(starts[0]) + 19]), fits)
    if first["fraction"] is not None:
        digits = min(len(first["fraction"]), 6)
        kept = np.uint64((1 << 8 * digits) - 1)
        parts = _checked((_words(body, starts + 20)[:, 0] ^ _ZEROS) & kept, fits)
        rest = _windows(body, starts + 26, 2)[:, : len(first["fraction"]) - 6] if len(first["fraction"]) > 6 else None
        if rest is not None:
            fits &= ((rest >= 48) & (rest <= 57)).all(axis=1)
        fractions = _eight_digits(parts) // 100
    else:
        fractions = np.zeros(len(starts), np.int64)
    fits &= _stands(body, starts + first.start("offset"), first["offset"])
    year = _byte(dates, 0) * 100 + _byte(dates, 2)
    month, day = _byte(dates, 5), _byte(hours, 0)
    hour, minute, second = _byte(hours, 3), _byte(hours, 6), _byte(seconds, 5)
    fits &= (year >= _YEARS[0]) & (year < _YEARS[1]) & (month >= 1) & (month <= 12) & (day >= 1)
    fits &= (hour <= 23) & (minute <= 59) & (second <= 59)
    if not fits.all():
        return None
    place = (year - _YEARS[0]) * 12 + month - 1
    days = _MONTH_STARTS[place] + day - 1
    if not bool((days < _MONTH_STARTS[place + 1]).all()):
        return None
    moments = (((days * 24 + hour) * 60 + minute) * 60 + second - _offset_s(first["offset"])) * 1_000_000 + fractions
    return pa.Array.from_buffers(pa.timestamp("us", "UTC"), len(moments), [None, pa.py_buffer(moments)])


def _digits(words: Words, form: str, fits: Mask) -> Words:
    """Two digits from each place of a word on, where it is written like the form (0: any digit); the rest is noise."""
    met = words ^ np.uint64(int.from_bytes(form.encode(), "little"))
    signs = int.from_bytes(bytes(0 if sign == "0" else 255 for sign in form), "little")
    fits &= (met & np.uint64(signs)) == 0
    met = _checked(met, fits)
    return met * np.uint64(10) + (met >> np.uint64(8))


def _checked(met: Words, fits: Mask) -> Words:
    """Bytes of 0 to 9 only; a line with others does not fit (it is zeros from here on, so nothing carries over)."""
    wrong = (((met & ~_HIGHS) + np.uint64(0x7676767676767676)) | met) & _HIGHS
    fits &= wrong == 0
    return np.where(wrong == 0, met, np.uint64(0))


def _byte(words: Words, place: int) -> Places:
    return ((words >> np.uint64(8 * place)) & np.uint64(255)).astype(np.int64)


def _eight_digits(met: Words) -> Places:
    """The number that eight digits make, the first in the lowest byte."""
    pairs = (met * np.uint64(10) + (met >> np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)
    fours = (pairs * np.uint64(100) + (pairs >> np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
    return ((fours & np.uint64(0xFFFFFFFF)) * np.uint64(10_000) + (fours >> np.uint64(32))).astype(np.int64)


def _offset_s(offset: bytes) -> int:
    if offset == b"Z":
        return 0
    seconds = int(offset[1:3]) * 3600 + int(offset[4:6]) * 60
    return -seconds if offset[:1] == b"-" else seconds
