"""Mappings turn the columns of a file into usage events; nothing of a number is lost on the way."""

import json
from pathlib import Path

import polars as pl
import pytest
import yaml

from billing.errors import InvalidInput, NotFound
from billing.usage import EVENT_SCHEMA
from pipelines.usage_mapping import UsageMapping
from storage.sources.tables import read_table

FOCUS = Path(__file__).parents[2] / "examples" / "focus"
EVENT = {
    "source": {"text": "file"},
    "id": {"column": "id"},
    "type": {"text": "call"},
    "customer": {"column": ["account", "payer"]},
    "time": {"column": "at"},
    "data": {"minutes": {"column": "minutes"}, "note": {"column": "note"}},
}


def table(**columns: list[str | None]) -> pl.DataFrame:
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String()))


def calls(**changed: list[str | None]) -> pl.DataFrame:
    columns = {
        "id": ["1"],
        "account": ["a"],
        "payer": ["p"],
        "at": ["2026-01-01 10:00:00"],
        "minutes": ["1"],
        "note": ["n"],
    }
    return table(**{**columns, **changed})


def test_the_real_file_becomes_one_event_a_row_with_every_digit_as_it_was_written() -> None:
    mapping = UsageMapping.parse(yaml.safe_load((FOCUS / "mapping.yaml").read_text()))
    rows = pl.concat(read_table(FOCUS / "focus_usage.csv", missing=mapping.missing))
    events = mapping.events(rows)
    assert events.schema == EVENT_SCHEMA
    assert events.height == rows.height == 582
    assert events.drop("subscription").null_count().sum_horizontal().item() == 0
    for data, quantity, cost in zip(events["data"], rows["PricingQuantity"], rows["ListCost"], strict=True):
        assert json.loads(data)["quantity"] == quantity
        assert json.loads(data)["list_cost"] == cost
    assert events.filter(pl.col("type") == "focus.value")["id"].to_list() == ["2555992"]  # the credit without a price


def test_a_property_without_a_value_is_left_out_and_odd_characters_are_escaped() -> None:
    rows = calls(note=['say "hi"\\ \n {x} \u00e4\U0001f600'], minutes=[None])
    event = UsageMapping.parse({"event": EVENT}).events(rows).row(0, named=True)
    assert json.loads(event["data"]) == {"note": 'say "hi"\\ \n {x} \u00e4\U0001f600'}
    assert UsageMapping.parse({"event": EVENT}).events(calls(note=[None], minutes=[None]))["data"].to_list() == ["{}"]


def test_the_first_column_that_has_a_value_counts() -> None:
    events = UsageMapping.parse({"event": EVENT}).events(calls(account=[None]))
    assert events["customer"].to_list() == ["p"]


@pytest.mark.parametrize(
    ("zone", "text", "utc"),
    [
        ("UTC", "2024-09-30 22:00:00", "2024-09-30T22:00:00+00:00"),
        ("Europe/Berlin", "2026-07-01 00:00:00", "2026-06-30T22:00:00+00:00"),
        ("Europe/Berlin", "2026-07-01T00:00:00Z", "2026-07-01T00:00:00+00:00"),
        ("Europe/Berlin", "2026-07-01T00:00:00+05:30", "2026-06-30T18:30:00+00:00"),
        ("Europe/Berlin", "2026-10-25 02:30:00", "2026-10-25T00:30:00+00:00"),  # exists twice: the first
    ],
)
def test_a_time_is_local_to_the_zone_unless_it_carries_an_offset(zone: str, text: str, utc: str) -> None:
    events = UsageMapping.parse({"zone": zone, "event": EVENT}).events(calls(at=[text]))
    assert events["time"][0].isoformat() == utc


def test_a_time_that_cannot_be_read_is_null_so_that_ingest_rejects_that_event_alone() -> None:
    times = ["yesterday", "2026-13-01", ""]
    rows = calls(id=["1", "2", "3"], at=times, account=["a"] * 3, payer=["p"] * 3, minutes=["1"] * 3, note=["n"] * 3)
    assert UsageMapping.parse({"event": EVENT}).events(rows)["time"].to_list() == [None] * 3


def test_every_bad_place_of_a_mapping_is_named() -> None:
    form = {"event": {**EVENT, "id": {"colum": "id"}, "price": {"text": "x"}}, "colour": 1}
    with pytest.raises(InvalidInput) as caught:
        UsageMapping.parse(form)
    assert {error.pointer for error in caught.value.errors} == {"/event/id", "/event/price", "/colour"}


def test_a_file_without_a_needed_column_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="payer"):
        UsageMapping.parse({"event": EVENT}).events(calls().drop("payer"))


def test_files_are_read_as_text_whatever_their_kind(tmp_path: Path) -> None:
    csv, jsonl = tmp_path / "a.csv", tmp_path / "a.jsonl"
    csv.write_text('id,amount\n007,0.10000000000000000001\n8,"1,5"\n9,NULL\n')
    jsonl.write_text('{"id": "007", "amount": "0.10000000000000000001"}\n{"id": "8", "amount": "1,5"}\n')
    assert pl.concat(read_table(csv, missing=["NULL"])).rows() == [
        ("007", "0.10000000000000000001"),
        ("8", "1,5"),
        ("9", None),
    ]
    assert pl.concat(read_table(jsonl)).rows()[0] == ("007", "0.10000000000000000001")
    with pytest.raises(NotFound):
        list(read_table(tmp_path / "none.csv"))
    (tmp_path / "a.xlsx").write_bytes(b"")
    with pytest.raises(InvalidInput, match="ending"):
        list(read_table(tmp_path / "a.xlsx"))
    pl.DataFrame({"amount": [0.1]}).write_parquet(tmp_path / "f.parquet")
    with pytest.raises(InvalidInput, match="exact"):
        list(read_table(tmp_path / "f.parquet"))
