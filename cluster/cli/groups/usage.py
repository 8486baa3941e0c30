"""`cloudbilling usage`: what was used, exports, backfills."""

from __future__ import annotations

from pathlib import Path

import typer

from cluster.cli import context
from cluster.cli.context import AsJson, Key, Tenant, Url

usage_app = typer.Typer(help="What a customer has used, and what it costs so far; backfills.", rich_markup_mode=None)


@usage_app.callback(invoke_without_command=True)
def usage(
    call: typer.Context,
    customer: str = typer.Option(None, help="Code of the customer."),
    since: str = typer.Option(None, help="By day, from this day on (2026-11-01); default: the running periods."),
    until: str = typer.Option(None, help="By day, to this day, included."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """What a customer has used, and what it costs so far."""
    if call.invoked_subcommand is not None:
        return
    from cluster.cli import data

    if not customer:
        context.fail("whose usage?", context.WRONG_CALL, "give --customer CODE")
    data.usage(customer, since, until, tenant, key, url, as_json)


@usage_app.command("top")
def usage_top(
    meter: str = typer.Argument(..., help="Code of the meter."),
    by: str = typer.Option("customer", help="customer, subscription, day, or dimension:NAME of the meter's prices."),
    since: str = typer.Option(None, "--from", help="From this day on (2026-11-01); default: the last 30 days."),
    until: str = typer.Option(None, "--to", help="To this day, included."),
    limit: int = typer.Option(10, min=1, max=1_000, help="So many."),
    lowest: bool = typer.Option(False, "--lowest", help="The lowest quantities first."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Who or what used most of a meter."""
    from cluster.cli import data

    asked = {"meter": meter, "by": by, "limit": str(limit), "order": "lowest" if lowest else "highest"}
    data.top(asked, since, until, tenant, key, url, as_json)


@usage_app.command("export")
def usage_export(
    since: str = typer.Option(..., "--from", help="From this day on (2026-11-01)."),
    until: str = typer.Option(..., "--to", help="To this day, included."),
    format: str = typer.Option("parquet", help="parquet or csv: the events; focus: what they cost, as FOCUS 1.2."),
    customer: str = typer.Option(None, help="Only this customer."),
    out: Path = typer.Option(..., help="File to write. After a break the same call goes on where it stopped."),
    raw: bool = typer.Option(False, "--raw", help="CSV with texts as they are, also those a spreadsheet would run."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Usage events as Parquet or CSV, or charges as FOCUS, in one file."""
    from cluster.cli import usage_export as command

    command.export(format, since, until, customer, out, raw, tenant, key, url, as_json)


@usage_app.command("backfill")
def usage_backfill(
    file: Path = typer.Argument(..., exists=True, dir_okay=False, help="Lines of events, or a table with --mapping."),
    mapping: Path = typer.Option(None, help="YAML that says which columns become an event (docs/importing.md)."),
    name: str = typer.Option(None, help="Name of the backfill; default: of the file and its content."),
    note: str = typer.Option("", help="What it is for; stays readable."),
    commit: bool = typer.Option(False, "--commit", help="Let all of it count when everything is sent."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Send a file of usage that counts at once or not at all. The same call again goes on where it stopped."""
    from cluster.cli import backfills

    backfills.send(file, mapping, name, note, commit, tenant, key, url, as_json)


@usage_app.command("backfills")
def usage_backfills(
    name: str = typer.Argument(None, help="One of them; default: all."),
    commit: bool = typer.Option(False, "--commit", help="Let its events count, all at once."),
    revert: bool = typer.Option(False, "--revert", help="Let its events count no more, for good."),
    reason: str = typer.Option(None, help="Why it is reverted."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Backfills and their states; commit one, or revert it."""
    from cluster.cli import backfills

    backfills.backfills(name, commit, revert, reason, tenant, key, url, as_json)
