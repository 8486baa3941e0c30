"""The encoding of a request's body (`Content-Encoding`: gzip, zstd or none), undone within a limit of bytes.

A few bytes may unfold to gigabytes, and one that was cut off must not pass for whole: both are found here.
"""

from __future__ import annotations

import zlib

import zstandard

from billing.errors import Malformed, TooLarge, UnsupportedMediaType

BODY_BYTES_MAX = 64 * 1024 * 1024  # after decompression


def decompress(body: bytes, encoding: str | None, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """Undo `Content-Encoding` (gzip, zstd, identity), never making more than `bytes_max` bytes of it."""
    name = (encoding or "identity").strip().lower()
    if name in ("", "identity"):
        return body
    try:
        if name in ("gzip", "x-gzip"):
            return _gunzip(body, bytes_max)
        if name == "zstd":
            return _unzstd(body, bytes_max)
    except (zlib.error, zstandard.ZstdError, EOFError) as error:
        raise Malformed(f"the body is not valid {name}: {error}") from error
    raise UnsupportedMediaType(f"Content-Encoding {name!r} is not taken; use gzip, zstd or none")


def _gunzip(body: bytes, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    rest = body
    while rest:  # a gzip file may have several members
        member = zlib.decompressobj(wbits=31)
        part = member.decompress(rest, bytes_max - size + 1)
        size += len(part)
        if size > bytes_max:
            raise _too_large(bytes_max)
        if not member.eof:
            raise Malformed("the body is not valid gzip: it ends in the middle")
        parts.append(part)
        rest = member.unused_data
        if not part and rest and len(parts) > 1000:
            raise Malformed("the body has too many empty gzip members")
    return b"".join(parts)


# A frame behind the body: only where the body's own last frame is whole does its text come out at the end. The reader
# itself says nothing of a frame that is cut off. Its checksum keeps the text from being the last bytes of the frame.
_END = b"cloudbilling: the end of the body"
_END_FRAME = zstandard.ZstdCompressor(write_checksum=True).compress(_END)


def _unzstd(body: bytes, bytes_max: int) -> bytes:
    with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
        body + _END_FRAME, read_across_frames=True
    ) as reader:
        plain = reader.read(bytes_max + len(_END) + 1)
    if len(plain) > bytes_max + len(_END):
        raise _too_large(bytes_max)
    if not plain.endswith(_END):
        raise Malformed("the body is not valid zstd: it ends in the middle")
    return plain[: -len(_END)]


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"the body is larger than {bytes_max:,} bytes; send several requests", limit=bytes_max)
