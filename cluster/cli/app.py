"""The root of all commands, and those of one word; each imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path

import typer

from cluster.cli import context
from cluster.cli.context import AsJson, Key, Tenant, Url
from cluster.cli.groups import access, alerts, archive, bill_run, customer, demo, documents, invoices, lanes, usage

app = typer.Typer(
    name="cloudbilling",
    help="Usage to cash: start the platform, send usage, run bills, fetch and prove invoices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for name, group in (
    ("webhooks", alerts.webhooks),
    ("alerts", alerts.alerts),
    ("demo", demo.demo),
    ("bill-run", bill_run.bill_run),
    ("keys", access.keys),
    ("tenants", access.tenants),
    ("invoices", invoices.invoices),
    ("invoice", invoices.invoice),
    ("document", documents.document),
    ("archive", archive.archive),
    ("verify", archive.verify),
    ("customer", customer.customer),
    ("usage", usage.usage_app),
    ("lanes", lanes.lanes),
):
    app.add_typer(group, name=name)


def run() -> None:
    app()


# -- The platform ------------------------------------------------------------------------------------------------------


@app.command()
def up(
    load_demo: bool = typer.Option(False, "--demo", help="Load the demo tenants at the first start."),
    detach: bool = typer.Option(False, "--detach", help="Start in the background and return when it answers."),
) -> None:
    """Start the platform; Ctrl-C stops all of it."""
    from cluster.cli import lifecycle

    lifecycle.up(load_demo, detach)


@app.command()
def down(as_json: bool = AsJson) -> None:
    """Stop the platform of this data folder, whoever started it."""
    from cluster.cli import lifecycle

    lifecycle.down(as_json)


@app.command()
def status(as_json: bool = AsJson) -> None:
    """Is it running, is it ready, what does it do?"""
    from cluster.cli import lifecycle

    lifecycle.status(as_json)


@app.command()
def doctor(as_json: bool = AsJson) -> None:
    """Say what is missing on this machine and how to get it."""
    from cluster.cli import lifecycle

    lifecycle.doctor(as_json)


# -- Data in and out ---------------------------------------------------------------------------------------------------


@app.command(name="import")
def import_(
    file: Path = typer.Argument(..., help="CSV, TSV, JSON lines or Parquet."),
    mapping: Path = typer.Option(..., help="YAML that says which columns become an event (docs/importing.md)."),
    business: Path = typer.Option(None, help="YAML that says where the rows carry their price list."),
    derive: Path = typer.Option(None, help="Write the catalog that the rows give to this folder; send nothing."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Send the rows of a file as usage events."""
    from cluster.cli import data

    data.import_(file, mapping, business, derive, tenant, key, url, as_json)


@app.command()
def export(
    what: str = typer.Argument(..., help="invoices, customers, subscriptions, plans or meters."),
    out: Path = typer.Option(None, help="File to write; default: the terminal."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = typer.Option(False, "--json", help="One JSON array in place of JSON lines."),
) -> None:
    """All records of a kind as JSON lines."""
    from cluster.cli import data

    data.export(what, out, tenant, key, url, as_json)


@app.command(name="credit-note")
def credit_note(
    invoice: str = typer.Argument(..., help="Number of the invoice."),
    line: list[str] = typer.Option(
        [], help="A line: its number, or `3=5.00` for a part of it; without an amount all that is left. Repeatable."
    ),
    amount: str = typer.Option(None, help="An amount with tax, spread over the whole invoice."),
    reason: str = typer.Option(..., help="Why; kept with the credit note."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only show what would be written."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Credit an invoice: whole, by lines or by an amount; never more than was billed. A credit note is final."""
    from cluster.cli import credit_notes

    wish = {"document": invoice, "reason": reason, **credit_notes.wanted(line, amount)}
    credit_notes.write(wish, dry_run, tenant, key, url, as_json)


@app.command(name="billing-settings")
def billing_settings(
    file: Path = typer.Argument(None, help="JSON to set; without it the settings are shown."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Guard rails, four eyes, collection window and schedule of a tenant's bill runs, and when the next one is due."""
    from cluster.cli import billing

    billing.settings(file, tenant, key, url, as_json)


@app.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
def scenario(arguments: list[str] = typer.Argument(None)) -> None:
    """Run customer lives on a test clock, here or on a platform, and compare their documents to the cent."""
    from cluster.scenario_command import main  # `cloudbilling scenario` goes there directly; this is for the help

    raise typer.Exit(main(arguments or []))


@app.command()
def formats(
    retired: str = typer.Option(None, "--retired", help="A reader that runs no more, as the list names it."),
    as_json: bool = AsJson,
) -> None:
    """Which forms of files the usage log may get, and who still has to be updated for newer ones."""
    from cluster.cli import formats as work

    work.show(retired, as_json)


@app.command()
def retention(
    usage: str = typer.Option(None, "--usage-months", help="Usage, months after its invoice; `never` to keep it."),
    notifications: str = typer.Option(None, "--notifications-months", help="Webhook messages that wait for nothing."),
    record: str = typer.Option(None, "--record-months", help="The record of what people did."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """How long a tenant keeps what no law makes it keep; with options it is set (docs/forgetting.md)."""
    from cluster.cli import customer as work

    given = {"usage": usage, "notifications": notifications, "record": record}
    work.retention(given, work.Access(tenant, key, url, as_json))


@app.command()
def compact(as_json: bool = AsJson) -> None:
    """Write the tables of PostgreSQL anew, so that no file of it holds rows that were erased. Blocks each meanwhile."""
    from cluster.cli import customer as work

    work.compact(as_json)


@app.command()
def forget(
    tenant_id: str = typer.Option(..., "--tenant", help="Id of the tenant (`cloudbilling tenants list --json`)."),
    customer_key: list[str] = typer.Option([], "--customer-key", help="Everything that names it goes. Repeatable."),
    before: str = typer.Option(None, "--before", help="Only usage before this day (UTC); without keys of all."),
    rule: str = typer.Option(..., "--rule", help="The law or wish; kept with the proof, so nothing about the person."),
    by: str = typer.Option(..., "--by", help="Who does it; kept in the trail."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only count the rows."),
    snapshots: bool = typer.Option(False, "--snapshots", help="Drop all snapshots also where no row was found."),
    as_json: bool = AsJson,
) -> None:
    """Erase usage from the log and leave what proves the sums (docs/forgetting.md)."""
    from cluster.cli import forget as work

    moment = context.day(before, "--before")
    work.forget(work.Wish(tenant_id, tuple(customer_key), moment, rule, by), dry_run, snapshots, as_json)
