"""The examples of docs/usage-files.md run, and its table of columns is the truth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from actors.rating_shard import RatingShard
from billing.typed_columns import Reads
from storage.object_store import LocalObjectStore
from storage.usage_log.genesis import open_log
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.sealed_files import write_sealed
from storage.usage_log.sealing import seal
from tests.usage_log_support import TENANT, make_events, send

PAGE = (Path(__file__).parents[3] / "docs" / "usage-files.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two sealed files: one with typed columns, one of a time when no meter was known."""
    store = LocalObjectStore(tmp_path_factory.mktemp("store"))
    open_log(store, lanes=1)
    shard = RatingShard(0, store)
    shard.start()
    patch, write = pytest.MonkeyPatch(), write_sealed
    for first, reads in ((0, {}), (100, {TENANT: Reads({"storage": frozenset({"gb"})}, {})})):
        send(shard, make_events(100, first))
        patch.setattr("storage.usage_log.sealing.write_sealed", lambda to, rows, _, reads=reads: write(to, rows, reads))
        manifest = seal(store, UsageLogReader(store).now())
    patch.undo()
    shard.stop()
    return [str(store.local_path(file.key)) for file in manifest.files]


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def test_the_columns_of_a_file_are_those_of_the_page(sealed: list[str]) -> None:
    named: set[str] = set()
    table = PAGE[PAGE.index("| column | type | what |") : PAGE.index("**Typed columns**")]
    for row in table.splitlines()[2:]:
        if row.startswith("|"):
            named.update(re.findall(r"`([^`]+)`", row.split("|")[1]))
    for path in sealed:
        there = {re.sub(r":.*", ":<property>", name) for name in pl.read_parquet_schema(path)}
        assert there <= named
    assert named - {"text:<property>"} <= {
        re.sub(r":.*", ":<property>", name) for name in pl.read_parquet_schema(sealed[1])
    }


def test_the_sql_of_the_page_sums_what_was_sent(sealed: list[str]) -> None:
    (sql,) = blocks("sql")
    found = duckdb.connect().execute(sql.replace("SEALED", "?"), [sealed]).fetchall()
    gb = pl.concat([make_events(100, 0), make_events(100, 100)]).with_columns(
        gb=pl.col("data").str.json_path_match("$.gb").cast(pl.Decimal(18, 6))
    )
    expected = gb.group_by("customer", "type").agg(pl.len(), pl.col("gb").sum()).sort("customer", "type")
    assert [(row[0], row[1], row[2], row[3]) for row in found] == expected.rows()


def test_the_python_of_the_page_runs(sealed: list[str]) -> None:
    days, arrow = blocks("python")
    names: dict[str, Any] = {"SEALED": sealed}
    exec(days, names)
    assert names["days"]["events"].sum() == 200
    names = {"SEALED": sealed}
    exec(arrow, names)
    assert names["events"].num_rows == 4
