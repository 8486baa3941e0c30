"""QR codes of bytes in one mask, fast: a code is a sum, without carry, of what each of its bytes stands for.

Owns the placing of bytes and their error correction (ISO/IEC 18004, level M, versions 1 to 13). What is the same in all
codes of a version comes from segno, once; the tests compare whole codes with segno's. Half a millisecond became 0.1.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import segno

# Version: bytes of error correction a block, then how many blocks of how many bytes of data (table 9, level M).
_BLOCKS: dict[int, tuple[int, tuple[tuple[int, int], ...]]] = {
    1: (10, ((1, 16),)),
    2: (16, ((1, 28),)),
    3: (26, ((1, 44),)),
    4: (18, ((2, 32),)),
    5: (24, ((2, 43),)),
    6: (16, ((4, 27),)),
    7: (18, ((4, 31),)),
    8: (22, ((2, 38), (2, 39))),
    9: (22, ((3, 36), (2, 37))),
    10: (26, ((4, 43), (1, 44))),
    11: (30, ((1, 50), (4, 51))),
    12: (22, ((6, 36), (2, 37))),
    13: (22, ((8, 37), (1, 38))),
}
_ALIGNED = {
    2: (6, 18), 3: (6, 22), 4: (6, 26), 5: (6, 30), 6: (6, 34), 7: (6, 22, 38), 8: (6, 24, 42), 9: (6, 26, 46),
    10: (6, 28, 50), 11: (6, 30, 54), 12: (6, 32, 58), 13: (6, 34, 62),
}  # fmt: skip
BYTES_MAX = 331


class _Version(NamedTuple):
    size: int
    correction: int
    blocks: tuple[int, ...]  # bytes of data in each
    blank: int  # the code whose bytes are all 0, row by row, the upper left module first
    modules: tuple[tuple[int, ...], ...]  # of each byte in the order of the code, the first bit first
    sums: dict[int, int]  # what a byte at a place adds: 256 * place + byte


def rows_of(content: bytes, mask: int) -> list[str]:
    """The rows of a code, a letter a module: 1 is dark. `ValueError` for more than 331 bytes."""
    version = _version(_number_for(len(content)), mask)
    bits = version.blank
    sums, modules = version.sums, version.modules
    for place, byte in enumerate(_interleaved(_filled(content, version), version)):
        if byte:
            key = place << 8 | byte
            added = sums.get(key)
            if added is None:
                added = sums[key] = sum(modules[place][bit] for bit in range(8) if byte >> (7 - bit) & 1)
            bits ^= added
    text = f"{bits:0{version.size**2}b}"
    return [text[at : at + version.size] for at in range(0, len(text), version.size)]


def _number_for(length: int) -> int:
    for number, (_, blocks) in _BLOCKS.items():
        if length + (2 if number < 10 else 3) <= sum(count * size for count, size in blocks):
            return number
    raise ValueError(f"a code holds at most {BYTES_MAX} bytes, not {length}")


def _filled(content: bytes, version: _Version) -> bytes:
    """Mode, length, content and end, then what fills the rest: a zero, as segno has it, and two bytes in turns."""
    long = version.size >= 57  # version 10
    head = 4 << (16 if long else 8) | len(content)
    bits = (head << (8 * len(content)) | int.from_bytes(content, "big")) << 4
    data = bits.to_bytes(len(content) + (3 if long else 2), "big")
    lacking = sum(version.blocks) - len(data)
    return data + (b"\0" + b"\xec\x11" * (lacking // 2 + 1))[:lacking]


def _interleaved(data: bytes, version: _Version) -> bytes:
    """A byte of each block in turns, those of data before those of correction."""
    blocks: list[bytes] = []
    at = 0
    for size in version.blocks:
        blocks.append(data[at : at + size])
        at += size
    corrections = [_correction(block, version.correction) for block in blocks]
    found = bytearray()
    for place in range(max(version.blocks)):
        found += bytes(block[place] for block in blocks if place < len(block))
    for place in range(version.correction):
        found += bytes(one[place] for one in corrections)
    return bytes(found)


def _correction(block: bytes, length: int) -> bytes:
    """Remainder of the block, as a polynomial over GF(256), by the generator of this length."""
    table, shift, kept = _multiples(length), 8 * (length - 1), (1 << 8 * length) - 1
    rest = 0
    for byte in block:
        rest = (rest << 8 & kept) ^ table[(rest >> shift) ^ byte]
    return rest.to_bytes(length, "big")


@cache
def _powers() -> tuple[list[int], list[int]]:
    powers, logarithms, value = [0] * 255, [0] * 256, 1
    for exponent in range(255):
        powers[exponent], logarithms[value] = value, exponent
        value <<= 1
        if value > 255:
            value ^= 0x11D
    return powers, logarithms


def _times(one: int, other: int) -> int:
    powers, logarithms = _powers()
    return powers[(logarithms[one] + logarithms[other]) % 255] if one and other else 0


@cache
def _multiples(length: int) -> list[int]:
    """The generator of this length without its first coefficient, times each byte, as numbers of so many bytes."""
    generator = [1]
    for exponent in range(length):
        root = _powers()[0][exponent]
        scaled = [0, *(_times(one, root) for one in generator)]
        generator = [one ^ other for one, other in zip([*generator, 0], scaled, strict=True)]
    return [int.from_bytes(bytes(_times(one, byte) for one in generator[1:]), "big") for byte in range(256)]


@cache
def _version(number: int, mask: int) -> _Version:
    correction, groups = _BLOCKS[number]
    blocks = tuple(size for count, size in groups for _ in range(count))
    size = 17 + 4 * number
    free = _free(number, size)
    pattern = segno.make_qr(b"0", error="m", version=number, mask=mask, boost_error=False, mode="byte").matrix
    modules = [1 << (size * size - 1 - (y * size + x)) for x, y in free]
    total = sum(blocks) + correction * len(blocks)
    by_byte = tuple(tuple(modules[8 * at : 8 * at + 8]) for at in range(total))
    drawn = int("".join("1" if dark else "0" for row in pattern for dark in row), 2)
    made = _Version(size, correction, blocks, 0, by_byte, {})
    known = _interleaved(_filled(b"0", made), made)
    shown = sum(by_byte[at][bit] for at, byte in enumerate(known) for bit in range(8) if byte >> (7 - bit) & 1)
    return made._replace(blank=drawn ^ shown)


def _free(number: int, size: int) -> list[tuple[int, int]]:
    """Modules that hold bits, in their order: two columns at a time from the right, up and down in turns."""
    taken = {(6, at) for at in range(size)} | {(at, 6) for at in range(size)}
    for left, top, width, height in ((0, 0, 9, 9), (size - 8, 0, 8, 9), (0, size - 8, 9, 8)):
        taken |= {(x, y) for x in range(left, left + width) for y in range(top, top + height)}
    places = _ALIGNED.get(number, ())
    for x0 in places:
        for y0 in places:
            if (x0, y0) not in ((6, 6), (6, places[-1]), (places[-1], 6)):
                taken |= {(x, y) for x in range(x0 - 2, x0 + 3) for y in range(y0 - 2, y0 + 3)}
    if number >= 7:
        taken |= {(x, y) for x in range(6) for y in range(size - 11, size - 8)}
        taken |= {(y, x) for x in range(6) for y in range(size - 11, size - 8)}
    found: list[tuple[int, int]] = []
    upwards = True
    for right in (*range(size - 1, 6, -2), 5, 3, 1):
        for y in range(size - 1, -1, -1) if upwards else range(size):
            found += [(x, y) for x in (right, right - 1) if (x, y) not in taken]
        upwards = not upwards
    return found
