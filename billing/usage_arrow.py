"""Usage events as Arrow IPC (stream or file): reads a table of event columns, after looking at what it would cost.

A record batch may be compressed or dictionary-encoded: a few bytes that unfold to gigabytes. The sizes are in the
message headers, so they are added up before anything is unfolded.
"""

from __future__ import annotations

import struct
from typing import Any, cast

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from billing.errors import FieldError, InvalidInput, Malformed, TooLarge
from billing.usage import EVENT_SCHEMA, INSTANT

_FILE_MAGIC = b"ARROW1\x00\x00"
_RECORD_BATCH, _DICTIONARY_BATCH = 3, 2
_NEEDED = ("source", "id", "type", "customer", "time")
_MESSAGES_MAX = 10_000


def read(body: bytes, *, events_max: int, bytes_max: int) -> pl.DataFrame:
    """All rows of the body: text columns as String, `time` as String or INSTANT, `data` as JSON text."""
    # A file is the same stream between two magic words and a footer; read as a stream, no footer is believed.
    stream = pa.py_buffer(body)
    if body[: len(_FILE_MAGIC)] == _FILE_MAGIC:
        footer = struct.unpack_from("<i", body, len(body) - 10)[0] if len(body) > 18 and body[-6:] == b"ARROW1" else -1
        if not 0 <= footer <= len(body) - 18:
            raise Malformed("the body is no valid Arrow IPC file: its end is missing")
        stream = stream.slice(len(_FILE_MAGIC), len(body) - 10 - footer - len(_FILE_MAGIC))
    _weigh(stream, events_max, bytes_max)
    try:
        with pa.ipc.open_stream(stream) as reader:
            schema = reader.schema
            _check_columns(schema)
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
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
    if len(chunk) == 0 or len(chunk.dictionary) == 0:
        return 0
    lengths = pc.fill_null(pc.binary_length(chunk.dictionary), 0)
    return int(pc.sum(lengths.take(pc.fill_null(chunk.indices, 0))).as_py() or 0)


def _weigh(stream: Any, events_max: int, bytes_max: int) -> None:
    """Add up rows and unfolded bytes of all messages from their headers alone."""
    rows = size = 0
    try:
        messages = pa.ipc.MessageReader.open_stream(stream)
        for _ in range(_MESSAGES_MAX):
            try:
                message = messages.read_next_message()
            except StopIteration:
                return
            batch_rows, batch_bytes, is_data = _cost(message.metadata.to_pybytes(), message.body)
            rows += batch_rows if is_data else 0
            size += batch_bytes
            if rows > events_max:
                raise TooLarge(f"more than {events_max:,} events in one request; send several", limit=events_max)
            if size > bytes_max or batch_rows > 100 * events_max:
                raise TooLarge(f"the body unfolds to more than {bytes_max:,} bytes", limit=bytes_max)
    except (pa.ArrowException, OSError, EOFError, struct.error, IndexError) as error:
        raise Malformed(f"the body is no valid Arrow IPC: {str(error)[:200]}") from error
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
    for offset, length in batch.buffers(2):
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

    def buffers(self, slot: int) -> list[tuple[int, int]]:
        at = self._field(slot)
        if not at:
            return []
        start = at + _u32(self._data, at)
        count = min(_u32(self._data, start), 1_000)
        return [struct.unpack_from("<qq", self._data, start + 4 + 16 * number) for number in range(count)]


def _u32(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])
