"""From the bytes of a request to usage events as columns: NDJSON, JSON, CloudEvents 1.0, Arrow IPC.

Owns what makes an event acceptable at the door (docs/usage-log.md): an event that is refused here is not stored and its
id stays free; everything else is stored, typed by a meter only when rating. A bad event never costs the good ones.

Lines that are written alike are read as such (`billing/like_lines.py`). Other bodies are parsed by one Polars call,
which cannot be trusted with everything (it drops unknown keys, turns numbers into floats of 17 digits, fails as a whole
for one broken line): so columns and bytes are counted against each other afterwards, and where they do not agree, the
body is read again line by line, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from billing import column_lines, exact_lines, like_lines, usage_arrow
from billing.body_encoding import BODY_BYTES_MAX
from billing.door_rules import finish
from billing.errors import Malformed, UnsupportedMediaType
from billing.parsed_usage import CLOUD, EVENTS_MAX, NDJSON, NO_REJECTS, Few, ParsedUsage, Raw

SMALL_BYTES = 16_384  # below, setting up a columnar parse costs more than reading line by line

NDJSON_TYPES = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"})
JSON_TYPE = "application/json"
CLOUD_EVENT_TYPE = "application/cloudevents+json"
CLOUD_BATCH_TYPE = "application/cloudevents-batch+json"
ARROW_TYPES = frozenset({"application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file"})
CONTENT_TYPES = (*sorted(NDJSON_TYPES), JSON_TYPE, CLOUD_EVENT_TYPE, CLOUD_BATCH_TYPE, *sorted(ARROW_TYPES))


def parse(
    body: bytes,
    content_type: str,
    headers: Mapping[str, str] | None = None,
    *,
    events_max: int = EVENTS_MAX,
    bytes_max: int = BODY_BYTES_MAX,
) -> ParsedUsage:
    """Read a request body (already decompressed) into events and rejects.

    `headers` (lower-case names) matter for CloudEvents in binary mode only. Raises UnsupportedMediaType, Malformed
    (nothing in the body can be read) or TooLarge; an event that is wrong by itself is a row of `rejects`.
    """
    kind = content_type.partition(";")[0].strip().lower()
    binary = {name[3:]: value for name, value in (headers or {}).items() if name.startswith("ce-")}
    if binary:
        return finish(exact_lines.read_binary(body, kind, binary), cloud=True)
    if kind in ARROW_TYPES:
        table = usage_arrow.read(body, events_max=events_max, bytes_max=bytes_max)
        return finish(Raw(table, pl.int_range(1, table.height + 1, dtype=pl.UInt32, eager=True), [], table.height))
    if kind in NDJSON_TYPES:
        raw = _lines(body, body, events_max, cloud=False)
    elif kind == JSON_TYPE:
        raw = _array_or_object(body, events_max, cloud=False)
    elif kind == CLOUD_EVENT_TYPE:
        raw = _array_or_object(body, 1, cloud=True, what="object")
    elif kind == CLOUD_BATCH_TYPE:
        raw = _array_or_object(body, events_max, cloud=True, what="array")
    else:
        raise UnsupportedMediaType(
            f"Content-Type {kind or '(none)'!r} is not taken here; use one of {', '.join(CONTENT_TYPES)}"
        )
    return finish(raw, cloud=kind in (CLOUD_EVENT_TYPE, CLOUD_BATCH_TYPE))


# --- which way a body is read


def _lines(body: bytes, original: bytes, events_max: int, *, cloud: bool) -> Raw | Few:
    """`body` as NDJSON (perhaps made from the JSON array `original`)."""
    if len(body) >= SMALL_BYTES:
        like = None if cloud or body.count(b"\n") > events_max else like_lines.read(body)
        if like is not None and like.events.height <= events_max:
            positions = pl.int_range(1, like.events.height + 1, dtype=pl.UInt32, eager=True)
            return Raw(like.events, positions, [], like.events.height, like.is_plain)
        table = column_lines.read(body, CLOUD if cloud else NDJSON, events_max, cloud=cloud)
        if table is not None:
            positions = pl.int_range(1, table.height + 1, dtype=pl.UInt32, eager=True)
            return Raw(table, positions, [], table.height)
    if original is not body:
        return exact_lines.read_array(original, events_max, cloud=cloud)
    return exact_lines.read_lines(body, events_max, cloud=cloud)


def _array_or_object(body: bytes, events_max: int, *, cloud: bool, what: str = "either") -> Raw | Few:
    text = body.strip()
    if not text:
        raise Malformed("the body is empty; at least one event is needed")
    if text[:1] == b"{" and what != "array":
        return exact_lines.read_parts([text], events_max, cloud=cloud)
    if text[:1] == b"[" and what != "object":
        if len(text) < SMALL_BYTES or text[-1:] != b"]":
            return exact_lines.read_array(text, events_max, cloud=cloud)
        # Cut between objects. Where this cuts inside of a value, a line is no JSON and the exact way takes over.
        cut = text[1:-1].replace(b"\n", b" ").replace(b'},{"', b'}\n{"').replace(b'}, {"', b'}\n{"').strip()
        return _lines(cut, text, events_max, cloud=cloud)
    raise Malformed(f"the body is no JSON {'array or object' if what == 'either' else what} of usage events")


# --- several requests read as one


@dataclass(frozen=True)
class Lines:
    """Bodies that can be read as one: NDJSON, or one JSON object without line ends."""

    body: bytes
    count: int  # of lines


def as_lines(body: bytes, content_type: str, events_max: int = EVENTS_MAX) -> Lines | None:
    """A body as lines to be read together with others'; None for one that must be read by itself."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind in NDJSON_TYPES:
        text = body.rstrip(b"\n")
    elif kind == JSON_TYPE:
        text = body.strip()
        if text[:1] != b"{" or b"\n" in text:
            return None
    else:
        return None
    count = text.count(b"\n") + 1
    return Lines(text, count) if text and count <= events_max else None


def parse_together(parts: Sequence[Lines]) -> list[ParsedUsage]:
    """What `parse` makes of each, by one reading of all."""
    together = read_together(parts)
    return [together.part(place) for place in range(len(parts))]


class Together:
    """Several requests that were read as one; what is whose is cut out only where somebody asks for it."""

    def __init__(self, whole: ParsedUsage, lines: Sequence[int]) -> None:
        self.whole = whole
        self._firsts = [0, *np.cumsum(lines).tolist()]  # lines before each part
        ends = self._firsts[1:]
        self._events = _ends(whole.positions, ends)
        self._rejects = _ends(whole.rejects["position"], ends) if whole.rejects.height else [0] * (len(ends) + 1)

    def __len__(self) -> int:
        return len(self._firsts) - 1

    def events_of(self, place: int) -> slice:
        """Which rows of the whole's events are a part's."""
        return slice(self._events[place], self._events[place + 1])

    def total_of(self, place: int) -> int:
        """Events and rejects of a part."""
        events, rejects = self._events, self._rejects
        return events[place + 1] - events[place] + rejects[place + 1] - rejects[place]

    def part(self, place: int) -> ParsedUsage:
        """What a part would have been if it had come alone."""
        if len(self) == 1:
            return self.whole
        rows, first, whole = self.events_of(place), self._firsts[place], self.whole
        start, end = self._rejects[place], self._rejects[place + 1]
        rejects = NO_REJECTS
        if start < end:
            rejects = whole.rejects.slice(start, end - start).with_columns(pl.col("position") - first)
        positions = whole.positions.slice(rows.start, rows.stop - rows.start) - first
        events = whole.events.slice(rows.start, rows.stop - rows.start)
        return ParsedUsage(events, positions, rejects, events.height + rejects.height)


def read_together(parts: Sequence[Lines]) -> Together:
    """Read all as one: starting columns up costs as much as a thousand rows of them.

    A line is an event, a reject or blank, whatever stands around it; so each part gets what its own lines became.
    """
    joined = parts[0].body if len(parts) == 1 else b"\n".join([part.body for part in parts])
    lines = [part.count for part in parts]
    return Together(finish(_lines(joined, joined, sum(lines), cloud=False)), lines)


def _ends(positions: pl.Series, ends: Sequence[int]) -> list[int]:
    """How many of the positions (in order) lie at or below each end; before them a 0."""
    return [0, *np.searchsorted(positions.to_numpy(), ends, side="right").tolist()]
