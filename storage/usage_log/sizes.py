"""How many bytes rows take in a segment, known before it is written, and where to cut what is too much for one."""

from __future__ import annotations

import polars as pl

ROW_BYTES = 64  # beside its texts: instant, partition, kind, lengths, its share of the head


def bytes_of(rows: pl.DataFrame) -> int:
    """What they take at most, that is if nothing in them can be compressed; usual events take a fifth to a tenth.

    Polars adds lengths that it knows: it costs microseconds, also for rows cut out of a larger frame.
    """
    return int(rows.estimated_size()) + ROW_BYTES * rows.height
