"""How many bytes rows take in a segment, known before it is written, and where to cut what is too much for one."""

from __future__ import annotations

import polars as pl

SEGMENT_BYTES_MAX = 8 * 1024 * 1024  # of a group's rows; one fsync or one PUT of it ends well within a store's time-out
DECISION_BYTES_MAX = SEGMENT_BYTES_MAX // 2  # of what is sent to be decided at once: its rows say some of it twice
ROW_BYTES = 64  # beside its texts: instant, partition, kind, lengths, its share of the head


def bytes_of(rows: pl.DataFrame) -> int:
    """What they take at most, that is if nothing in them can be compressed; usual events take a fifth to a tenth.

    Polars adds lengths that it knows: it costs microseconds, also for rows cut out of a larger frame.
    """
    return int(rows.estimated_size()) + ROW_BYTES * rows.height


def pieces(rows: pl.DataFrame, rows_max: int, bytes_max: int) -> list[tuple[int, int, int]]:
    """(first row, rows, bytes) of consecutive pieces; one row that is larger is a piece by itself.

    What is too large is halved: that asks for sizes of whole pieces only, never for those of single rows.
    """
    found: list[tuple[int, int, int]] = []
    start = 0
    while start < rows.height:
        count = min(rows_max, rows.height - start)
        size = bytes_of(rows.slice(start, count))
        while size > bytes_max and count > 1:
            count = (count + 1) // 2
            size = bytes_of(rows.slice(start, count))
        found.append((start, count, size))
        start += count
    return found
