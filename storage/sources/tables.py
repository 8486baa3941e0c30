"""Tables out of files (CSV, JSON lines, Parquet), every cell as the text that was written, in batches of rows.

Text, because a number that passes through a float is no longer the number that was sent. What a column means is
the mapping's business (`pipelines/usage_mapping.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from billing.errors import FieldError, InvalidInput, NotFound

BATCH_ROWS = 50_000
FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def read_table(path: Path, *, missing: Sequence[str] = (), batch_rows: int = BATCH_ROWS) -> Iterator[pl.DataFrame]:
    """Yield the rows of a file as frames of at most `batch_rows`, all columns String, `missing` texts as null.

    Errors: NotFound without the file, InvalidInput for an unknown ending, for a file that cannot be read as its
    ending says, or for a number column of a Parquet file that is a float (its digits are already lost).
    """
    if not path.is_file():
        raise NotFound(f"there is no file {path}", path=str(path))
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise InvalidInput(f"{path.name}: the ending must be one of {', '.join(sorted(FORMATS))}")
    try:
        frame = _read(path, kind)
    except pl.exceptions.PolarsError as error:
        raise InvalidInput(f"{path.name} cannot be read as {kind}: {error}") from error
    gone = list(missing)
    text = pl.all().cast(pl.String)
    frame = frame.select(pl.when(text.is_in(gone)).then(None).otherwise(text).name.keep() if gone else text)
    yield from frame.iter_slices(batch_rows)


def _read(path: Path, kind: str) -> pl.DataFrame:
    if kind in ("csv", "tsv"):
        return pl.read_csv(
            path, infer_schema=False, separator="," if kind == "csv" else "\t", truncate_ragged_lines=False
        )
    if kind == "jsonl":
        names = list(pl.read_ndjson(path, n_rows=1000, infer_schema_length=1000).columns)
        return pl.read_ndjson(path, schema=dict.fromkeys(names, pl.String()))
    frame = pl.read_parquet(path)
    floats = [name for name, dtype in frame.schema.items() if dtype.is_float()]
    if floats:
        raise InvalidInput(
            f"{path.name}: binary fractions cannot carry exact amounts; write decimals or text",
            errors=[FieldError(f"/{name}", "is a float column") for name in floats],
        )
    return frame
