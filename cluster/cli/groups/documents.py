"""`cloudbilling document`: usage records, statements, reminders and notes that accompany invoices."""

from __future__ import annotations

from pathlib import Path

import typer

from cluster.cli.context import AsJson, Key, Tenant, Url

document = typer.Typer(
    no_args_is_help=True,
    help="Documents that accompany invoices: records, statements, reminders.",
    rich_markup_mode=None,
)


@document.callback()
def group() -> None:
    """Documents that accompany invoices: records, statements, reminders."""


@document.command("render")
def document_render(
    file: Path = typer.Argument(..., help="An accompanying document as JSON (docs/accompanying-documents.md)."),
    out: Path = typer.Option(Path("."), help="Folder for the files."),
    formats: str = typer.Option("pdf,csv", "--format", help="With commas: pdf, csv."),
    language: str = typer.Option("de", help="Of the page: de or en."),
    as_json: bool = AsJson,
) -> None:
    """Make the files of a usage record, statement, reminder or note in JSON; needs no platform."""
    from cluster.cli import documents

    documents.render(file, out, formats, language, as_json)


@document.command("make")
def document_make(
    kind: str = typer.Argument(..., help="usage_record, account_statement, credit_statement, delivery_note, reminder."),
    customer: str = typer.Argument(..., help="The customer's code."),
    first: str = typer.Option(None, "--from", help="First day, such as 2026-01-01; not of a reminder."),
    last: str = typer.Option(None, "--to", help="Last day, inside."),
    currency: str = typer.Option(None, help="Where the customer has several."),
    level: int = typer.Option(None, help="Of a reminder: 1, 2 or 3."),
    due_on: str = typer.Option(None, help="Of a reminder: the new day to pay by."),
    out: Path = typer.Option(None, help="Write the archived files to this folder, too."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Make and archive a document of a customer from the platform's own figures."""
    from cluster.cli import documents

    form = {"type": kind, "from": first, "to": last, "currency": currency, "level": level, "due_on": due_on}
    documents.make(form, customer, out, tenant, key, url, as_json)
