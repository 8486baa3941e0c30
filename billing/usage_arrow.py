"""Usage events as Arrow IPC (stream or file): reads a table of event columns, after looking at what it would cost.

A record batch may be compressed or dictionary-encoded: a few bytes that unfold to gigabytes. The sizes are in the
message headers, so they are added up before anything is unfolded.
"""

# pyarrow ships no types: in strict mode every use of it would be an error.
# pyright: basic

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, cast

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from billing.errors import FieldError, InvalidInput, Malformed, TooLarge
from billing.usage import EVENT_SCHEMA, INSTANT

_MAGIC = b"ARROW1"
_RECORD_BATCH, _DICTIONARY_BATCH = 3, 2
_NEEDED = ("source", "id", "type", "customer", "time")
_MESSAGES_MAX = 10_000


def read(body: bytes, *, events_max: int, bytes_max: int) -> pl.DataFrame:
    """All rows of the body: text columns as String, `time` as String or INSTANT, `data` as JSON text."""
    buffer = pa.py_buffer(body)
    is_file = body[: len(_MAGIC)] == _MAGIC
    try:
        _weigh(_blocks(body, buffer) if is_file else _messages(buffer), events_max, bytes_max)
        with pa.ipc.open_file(buffer) if is_file else pa.ipc.open_stream(buffer) as reader:
            _check_columns(reader.schema)
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, EOFError, ValueError, struct.error, IndexError) as error:
        raise Malformed(f"the body is no valid Arrow IPC: {str(error)[:200]}") from error
    columns: dict[str, pl.Series] = {}
    for name in EVENT_SCHEMA:
        if name in table.column_names:
            columns[name] = _column(name, table.column(name), bytes_max)
        else:
            columns[name] = pl.Series(name, [None], dtype=pl.String).new_from_index(0, table.num_rows)
    return pl.DataFrame(columns)


def _check_columns(schema: Any) -> None:
    errors = [FieldError(f"/{name}", "unknown column") for name in schema.names if name not in EVENT_SCHEMA]
    errors += [FieldError(f"/{name}", "column is missing") for name in _NEEDED if name not in schema.names]
    if len(set(schema.names)) != len(schema.names):
        errors.append(FieldError("", "two columns have the same name"))
    for field in schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        if field.name == "time" and pa.types.is_timestamp(kind):
            if kind.tz is None:
                errors.append(FieldError("/time", "a timestamp column needs a time zone"))
        elif not text and not pa.types.is_null(kind) and field.name in EVENT_SCHEMA:
            wanted = "text or a timestamp with a time zone" if field.name == "time" else "text"
            if field.name == "data":
                wanted = "the JSON text of an object"
            errors.append(FieldError(f"/{field.name}", f"the column must hold {wanted}, not {field.type}"))
    if errors:
        raise InvalidInput(f"{errors[0].pointer}: {errors[0].detail}", errors=errors)


def _column(name: str, column: Any, bytes_max: int) -> pl.Series:
    kind = column.type
    if pa.types.is_dictionary(kind):
        size = sum(_unfolded_bytes(chunk) for chunk in column.chunks)
        if size > bytes_max:
            raise TooLarge(f"column {name} unfolds to more than {bytes_max:,} bytes", limit=bytes_max)
        column = column.cast(kind.value_type)
        kind = column.type
    series = cast("pl.Series", pl.from_arrow(column)).alias(name)
    return series.cast(INSTANT) if pa.types.is_timestamp(kind) else series.cast(pl.String)


def _unfolded_bytes(chunk: Any) -> int:
    if pa.types.is_timestamp(chunk.type.value_type):
        return 8 * len(chunk)
    if len(chunk) == 0 or len(chunk.dictionary) == 0:
        return 0
    lengths = pc.call_function("binary_length", [chunk.dictionary.cast(pa.large_string())])
    return int(pc.call_function("sum", [lengths.take(chunk.indices)]).as_py() or 0)


def _messages(buffer: Any) -> Iterator[tuple[bytes, Any]]:
    """(header, body) of each message of a stream."""
    messages = pa.ipc.MessageReader.open_stream(buffer)
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            return
        yield message.metadata.to_pybytes(), message.body


def _blocks(body: bytes, buffer: Any) -> Iterator[tuple[bytes, Any]]:
    """(header, body) of each block that a file's footer names (File.fbs): these, and no others, are read."""
    if len(body) < 18 or body[-6:] != _MAGIC:
        raise ValueError("the end of the file is missing")
    footer_at = len(body) - 10 - struct.unpack_from("<i", body, len(body) - 10)[0]
    if not 0 <= footer_at < len(body):
        raise ValueError("its footer has an impossible length")
    footer = _Table(body, footer_at + _u32(body, footer_at))
    for slot in (2, 3):  # dictionaries, record batches
        for offset, header_length, body_length in footer.structs(slot, "<qi4xq"):
            if min(offset, header_length, body_length) < 0 or offset + header_length + body_length > len(body):
                raise ValueError("a block lies outside of the file")
            start = offset + (8 if body[offset : offset + 4] == b"\xff\xff\xff\xff" else 4)
            yield body[start : offset + header_length], buffer.slice(offset + header_length, body_length)


def _weigh(messages: Iterator[tuple[bytes, Any]], events_max: int, bytes_max: int) -> None:
    """Add up rows and unfolded bytes of all messages from their headers alone."""
    rows = size = 0
    for number, (header, body) in enumerate(messages):
        batch_rows, batch_bytes, is_data = _cost(header, body)
        rows += batch_rows if is_data else 0
        size += batch_bytes
        if rows > events_max:
            raise TooLarge(f"more than {events_max:,} events in one request; send several", limit=events_max)
        if size > bytes_max or not 0 <= batch_rows <= bytes_max:
            raise TooLarge(f"the body unfolds to more than {bytes_max:,} bytes", limit=bytes_max)
        if number >= _MESSAGES_MAX:
            raise TooLarge(f"more than {_MESSAGES_MAX:,} record batches in one request", limit=_MESSAGES_MAX)


def _cost(header: bytes, body: Any) -> tuple[int, int, bool]:
    """(rows, unfolded bytes, is a record batch) of one IPC message, from its flatbuffer header (Message.fbs)."""
    message = _Table(header, _u32(header, 0))
    kind = message.byte(1)
    batch = message.table(2)
    if kind == _DICTIONARY_BATCH and batch is not None:
        batch = batch.table(1)
    elif kind != _RECORD_BATCH:
        return 0, 0, False
    if batch is None:
        return 0, 0, False
    rows = batch.long(0)
    if batch.table(3) is None:  # not compressed
        return rows, body.size if body is not None else 0, kind == _RECORD_BATCH
    size = 0
    for offset, length in batch.structs(2, "<qq"):
        if length >= 8 and body is not None:
            (unfolded,) = struct.unpack_from("<q", body.slice(offset, 8).to_pybytes())
            size += length if unfolded < 0 else unfolded
    return rows, size, kind == _RECORD_BATCH


class _Table:
    """A flatbuffer table: fields by their slot, read from its vtable."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at
        self._vtable = at - struct.unpack_from("<i", data, at)[0]
        self._slots = (struct.unpack_from("<H", data, self._vtable)[0] - 4) // 2

    def _field(self, slot: int) -> int:
        if slot >= self._slots:
            return 0
        offset: int = struct.unpack_from("<H", self._data, self._vtable + 4 + 2 * slot)[0]
        return self._at + offset if offset else 0

    def byte(self, slot: int) -> int:
        at = self._field(slot)
        return self._data[at] if at else 0

    def long(self, slot: int) -> int:
        at = self._field(slot)
        return int(struct.unpack_from("<q", self._data, at)[0]) if at else 0

    def table(self, slot: int) -> _Table | None:
        at = self._field(slot)
        return _Table(self._data, at + _u32(self._data, at)) if at else None

    def structs(self, slot: int, layout: str) -> list[tuple[int, ...]]:
        """A vector of structs; never more than fit into the data."""
        at = self._field(slot)
        if not at:
            return []
        start, width = at + _u32(self._data, at), struct.calcsize(layout)
        count = min(_u32(self._data, start), (len(self._data) - start) // width, _MESSAGES_MAX + 1)
        return [struct.unpack_from(layout, self._data, start + 4 + width * number) for number in range(count)]


def _u32(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])
