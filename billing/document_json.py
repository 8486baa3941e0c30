"""Documents as JSON: whole and exact, decimals as strings, instants with offset. Reading gives the same value again.

Stored they are packed (zstd): a tenth of the bytes, and nobody has to read them to move them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import msgspec
import zstandard

from billing.documents import Document, Line

_ENCODER = msgspec.json.Encoder(decimal_format="string")
_LEVEL = 1
_JSON_MAX = 1 << 28  # bytes of one document
_NO_GROUP = b',"group":null}'
_DECODER = msgspec.json.Decoder(Document)


def document_json(document: Document) -> bytes:
    text = _ENCODER.encode(document)
    if document.group is None:  # left out: the bytes are those of before there were groups, and those of columns
        if not text.endswith(_NO_GROUP):  # fields are written as they were read, and JSON of SQL has its own order
            text = _ENCODER.encode(replace(document))
        assert text.endswith(_NO_GROUP)
        return text[: -len(_NO_GROUP)] + b"}"
    return text


def document_from(form: Mapping[str, Any] | bytes) -> Document:
    """Of the JSON text, or of what a JSON reader made of it."""
    if isinstance(form, bytes):
        return _DECODER.decode(form)
    return msgspec.convert(form, Document)


def line_form(line: Line) -> dict[str, Any]:
    """A line as the plain values that its JSON is made of, in the same order."""
    return cast("dict[str, Any]", msgspec.to_builtins(line))


def packed(texts: Sequence[bytes]) -> list[bytes]:
    """Documents as JSON, each packed alone. The same text gives the same bytes."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    return [compressor.compress(text) for text in texts]


def unpacked(body: bytes) -> bytes:
    """The JSON of one packed document."""
    return zstandard.ZstdDecompressor().decompress(body, max_output_size=_JSON_MAX)
