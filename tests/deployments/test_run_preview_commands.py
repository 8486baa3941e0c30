"""`cloudbilling bill-run plan` and `preview`: what they print, write and end with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from cluster.cli import context
from cluster.cli.app import app
from cluster.client import Client
from tests.deployments.conftest import Api, Tenant

pytestmark = pytest.mark.postgres
EVENT = (
    '{"source":"s","id":"a","type":"storage.write","customer":"acme","time":"2026-01-05T10:00:00Z","data":{"gb":"12"}}'
)


@pytest.fixture
def tenant(api: Api, monkeypatch: pytest.MonkeyPatch) -> Tenant:
    """A tenant with usage of 1.20 EUR in January 2026; the command line talks to the application in this process."""
    made = api.tenant()
    made.catalog()
    assert made.usage(EVENT).status_code == 200

    @contextmanager
    def client(*_: Any) -> Iterator[Client]:
        yield Client("", made.key, http=api.http)

    monkeypatch.setattr(context, "tenant_client", client)
    return made


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bill-run", *arguments])


def answered(*arguments: str) -> dict[str, Any]:
    """The JSON, behind the lines that the application in this process logs."""
    text = call(*arguments).stdout
    return json.loads(text[text.index("{\n") :])


def test_a_plan_says_who_is_due_and_what_to_do_when_nobody_is(tenant: Tenant) -> None:
    first = call("plan", "--up-to", "2026-02-01")
    assert first.exit_code == 0, first.output
    assert "1 of 1 customers are due" in first.stdout
    assert "no run has made documents yet: what they come to says a preview" in first.stdout
    assert call("preview", "--up-to", "2026-02-01").exit_code == 0
    assert "EUR: net 1.20, gross 1.43" in call("plan", "--up-to", "2026-02-01").stdout
    assert tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}).status_code == 202
    nothing = call("plan", "--up-to", "2026-02-01")
    assert nothing.exit_code == 1
    assert "nothing is due that is not billed yet: the next is due at 2026-02-28T23:00:00Z" in nothing.stdout
    found = answered("plan", "--up-to", "2026-03-01", "--json")
    assert (found["estimate"]["customers_due"], found["estimate"]["totals"]["EUR"]["net"]) == (1, "1.20")
    assert "about EUR: net 1.20, gross 1.43" in call("plan", "--up-to", "2026-03-01").stdout


def test_a_preview_prints_its_checks_and_writes_its_lines(tenant: Tenant, tmp_path: Path) -> None:
    done = call("preview", "--up-to", "2026-02-01", "--out", str(tmp_path / "lines.parquet"))
    assert done.exit_code == 0, done.output
    assert "nothing is changed" in done.stdout
    assert "EUR: net 1.20, tax 0.23, gross 1.43" in done.stdout
    assert pl.read_parquet(tmp_path / "lines.parquet")["amount"].to_list() == ["1.20"]
    known = tenant.get("/v1/bill-run-previews").json()["items"][0]["id"]
    again = answered("preview", "--id", known, "--out", str(tmp_path / "lines.csv"), "--json")
    assert again["id"] == known
    assert (tmp_path / "lines.csv").read_text().splitlines()[1].startswith("acme,1,invoice,EUR,1,s1,basic")
    assert len(tenant.get("/v1/bill-run-previews").json()["items"]) == 1
    assert tenant.get("/v1/bill-runs").json()["items"] == []


def test_a_preview_that_would_hold_somebody_back_ends_with_one(tenant: Tenant) -> None:
    rails = {"guard_rails": {"on": True, "limits": {"EUR": "1"}}}
    assert tenant.put("/v1/billing-settings", rails).status_code == 200
    held = call("preview", "--up-to", "2026-02-01")
    assert held.exit_code == 1
    assert "would be held back: acme: 1.43 EUR is over the limit of 1.00" in held.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--up-to", "2026-01-01", "plan", "--up-to", "2026-02-01"], "--up-to stands before plan"),
        (["--json", "preview", "--up-to", "2026-02-01"], "--json stands before preview"),
        (["preview"], "give one of --up-to, --id"),
        (["preview", "--up-to", "2026-02-01", "--out", "lines.pdf"], "ends with .csv or .parquet"),
        ([], "give one of --up-to, --resume"),
    ],
)
def test_a_wrong_call_is_told(arguments: list[str], words: str) -> None:
    done = call(*arguments)
    assert (done.exit_code, words in done.output) == (2, True), done.output
