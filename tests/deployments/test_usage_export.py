"""Exports over HTTP: whole, of one state of the log, resumable; and charges valid as FOCUS."""

from __future__ import annotations

import csv
import gzip
import io
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
import pytest

from cluster.cli.usage_export import fetch
from cluster.client import Client
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.sealing import seal
from tests.focus_validator import read, violations

pytestmark = pytest.mark.postgres


def lines(first: int, count: int, *, day: int = 5, customer: str = "acme") -> str:
    return "".join(
        f'{{"source":"a","id":"e{number:04}","type":"storage.write","customer":"{customer}",'
        f'"time":"2026-01-{day:02}T10:{number % 60:02}:00Z","data":{{"gb":"{number}.50"}}}}\n'
        for number in range(first, first + count)
    )


@pytest.fixture(scope="module")
def tenant(api: Any) -> Any:
    """A tenant with 130 events of January, the half of them sealed; some share their time, one is amended."""
    made = api.tenant()
    made.catalog()
    assert made.usage(lines(0, 70)).json()["accepted"] == 70
    store = api.services.store
    seal(store, UsageLogReader(store).now())
    assert made.usage(lines(70, 50, day=6) + lines(500, 10, day=31, customer="=cmd()")).status_code == 200
    amend = {"amendments": [{"source": "a", "id": "e0003", "data": {"gb": "1000"}}], "reason": "read twice"}
    assert made.post("/v1/usage/amendments", amend).status_code == 200
    return made


def pages(tenant: Any, query: str) -> list[Any]:
    found, cursor = [], ""
    for _ in range(500):
        answer = tenant.get(f"/v1/usage/export?{query}{cursor}")
        assert answer.status_code == 200, answer.text
        found.append(answer)
        if "Next-Cursor" not in answer.headers:
            return found
        cursor = f"&cursor={answer.headers['Next-Cursor']}"
    raise AssertionError("an export has an end")


@pytest.mark.parametrize("limit", [1, 7, 60, 130, 500_000])
def test_pages_together_are_the_usage_as_it_counts_in_the_order_of_time(tenant: Any, limit: int) -> None:
    got = pages(tenant, f"format=parquet&from=2026-01-01&to=2026-01-31&limit={limit}")
    frames = [pl.read_parquet(io.BytesIO(page.content)) for page in got]
    assert all(frame.height == limit for frame in frames[:-1])
    whole = pl.concat(frames)
    assert whole.height == 130
    assert whole.select("time", "source", "id").equals(
        whole.select("time", "source", "id").sort("time", "source", "id")
    )
    assert whole["id"].n_unique() == 130
    amended = whole.row(by_predicate=pl.col("id") == "e0003", named=True)
    assert (amended["data"], amended["amended"]) == ('{"gb":"1000"}', True)
    assert whole["amended"].sum() == 1
    assert whole.filter(pl.col("id") == "e0010")["data"][0] == '{"gb":"10.50"}', "digit for digit as it was sent"


def test_a_customer_and_a_part_of_the_time_are_what_was_asked_for(tenant: Any) -> None:
    (page,) = pages(tenant, "format=parquet&from=2026-01-06&to=2026-01-06&customer=acme")
    assert pl.read_parquet(io.BytesIO(page.content)).height == 50
    (page,) = pages(tenant, "format=parquet&from=2026-01-05T10:10:00Z&to=2026-01-05T10:12:00Z")
    assert sorted(pl.read_parquet(io.BytesIO(page.content))["id"]) == ["e0010", "e0011"]
    (page,) = pages(tenant, "format=parquet&from=2026-02-01&to=2026-02-03")
    assert pl.read_parquet(io.BytesIO(page.content)).height == 0


def test_later_usage_is_not_in_an_export_that_has_begun(api: Any) -> None:
    tenant = api.tenant()
    tenant.catalog()
    tenant.usage(lines(0, 20))
    first = tenant.get("/v1/usage/export?format=parquet&from=2026-01-01&to=2026-01-31&limit=5")
    tenant.usage(lines(20, 20))
    store = api.services.store
    seal(store, UsageLogReader(store).now())
    cursor = first.headers["Next-Cursor"]
    again = [
        tenant.get(f"/v1/usage/export?format=parquet&from=2026-01-01&to=2026-01-31&limit=500&cursor={cursor}").content
        for _ in range(2)
    ]
    assert again[0] == again[1], "a part that was lost is fetched again"
    rest = pl.read_parquet(io.BytesIO(again[0]))
    assert rest["id"].to_list() == [f"e{number:04}" for number in range(5, 20)]


def test_csv_has_its_header_once_and_no_cell_is_a_formula(tenant: Any) -> None:
    got = pages(tenant, "format=csv&from=2026-01-01&to=2026-01-31&limit=100")
    text = "".join(page.text for page in got)
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) == 130
    assert {row["customer"] for row in rows} == {"acme", "'=cmd()"}
    assert rows[0]["time"] == "2026-01-05T10:00:00.000000Z"
    assert text.count("\r\n") == 131
    (raw,) = pages(tenant, f"format=csv&from=2026-01-31&to=2026-01-31&raw=true&gzip=true&customer={quote('=cmd()')}")
    assert raw.headers["content-type"] == "application/gzip"
    assert "'=cmd()" not in gzip.decompress(raw.content).decode()


@pytest.mark.parametrize(
    "query",
    [
        "format=xml&from=2026-01-01&to=2026-01-02",
        "format=csv&from=2026-01-03&to=2026-01-02T00:00:00Z",
        "format=csv&from=yesterday&to=2026-01-02",
        "format=focus&from=2026-01-01T00:00:00Z&to=2026-01-02",
        "format=csv&from=2026-01-01&to=2026-01-02&cursor=abc",
        "format=csv&from=2026-01-01&to=2026-01-02&cursor=eyJvZiI6ImNoYXJnZXMifQ==",
        "format=csv&from=2026-01-01&to=2026-01-02&cursor=eyJvZiI6ImV2ZW50cyIsImFmdGVyIjpbXX0=",
        "format=csv&from=2026-01-01&to=2026-01-02&limit=0",
    ],
)
def test_what_cannot_be_exported_is_said(tenant: Any, query: str) -> None:
    answer = tenant.get(f"/v1/usage/export?{query}")
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")


def test_charges_need_the_right_to_see_bills(tenant: Any) -> None:
    key = tenant.key_with("usage:read")
    assert tenant.get("/v1/usage/export?format=csv&from=2026-01-01&to=2026-01-02", key=key).status_code == 200
    assert tenant.get("/v1/usage/export?format=focus&from=2026-01-01&to=2026-01-02", key=key).status_code == 403


def test_billed_and_open_charges_are_valid_focus_and_add_up(api: Any) -> None:
    tenant = api.tenant()
    tenant.catalog()
    now = datetime.now(UTC)
    current = "".join(
        f'{{"source":"a","id":"now{number}","type":"storage.write","customer":"acme",'
        f'"time":"{(now - timedelta(seconds=number)).isoformat()}","data":{{"gb":"{number}.25"}}}}\n'
        for number in range(3)
    )
    assert tenant.usage(lines(0, 30) + current).json()["accepted"] == 33
    run = tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"})
    assert run.status_code == 202, run.text
    today = now.date()
    got = pages(tenant, f"format=focus&from=2026-01-01&to={today + timedelta(days=1)}")
    rows = read("".join(one.text for one in got))
    assert got[0].headers["Focus-Version"] == "1.2"
    assert violations(rows) == []
    assert {row["BillingAccountName"] for row in rows} == {"ACME GmbH"}
    (invoice,) = tenant.get("/v1/invoices").json()["items"]
    billed = [row for row in rows if row["InvoiceId"] is not None]
    assert {row["InvoiceId"] for row in billed} == {invoice["number"]}
    assert sum(Decimal(row["BilledCost"] or 0) for row in billed) == Decimal(invoice["due"])
    open_ = [row for row in rows if row["InvoiceId"] is None]
    assert sum(Decimal(row["BilledCost"] or 0) for row in open_) == Decimal("0.38")
    (past,) = pages(tenant, "format=focus&from=2027-01-01&to=2027-01-31&customer=acme")
    assert read(past.text) == [], "nothing was issued then, and today is not asked for"
    assert tenant.get("/v1/usage/export?format=focus&from=2026-01-01&to=2026-01-31&customer=no").status_code == 404


def test_the_command_goes_on_after_a_break_and_writes_one_file(tenant: Any, api: Any, tmp_path: Path) -> None:
    class Breaking(Client):
        left = 2

        def get_part(self, path: str, **parameters: Any) -> tuple[bytes, str | None]:
            if Breaking.left == 0:
                raise OSError("the line is cut")
            Breaking.left -= 1
            return super().get_part(path, **parameters, limit=40)

    asked: dict[str, str | None] = {"format": "parquet", "from": "2026-01-01", "to": "2026-01-31", "customer": None}
    client = Breaking("http://test", tenant.key, http=api.http)
    for format in ("parquet", "csv"):
        out = tmp_path / f"usage.{format}"
        Breaking.left = 2
        with pytest.raises(OSError, match="cut"):
            fetch(client, asked | {"format": format}, out)
        assert not out.exists(), "half an export is no export"
        with (tmp_path / f"usage.{format}.part").open("ab") as part:
            part.write(b"half a part that a crash left behind")
        Breaking.left = 100
        fetched = fetch(client, asked | {"format": format}, out)
        assert fetched["pages"] == 4
        frame = pl.read_parquet(out) if format == "parquet" else pl.read_csv(out)
        assert frame.height == 130
        assert frame["id"].n_unique() == 130
    assert sorted(one.name for one in tmp_path.iterdir()) == ["usage.csv", "usage.parquet"]
