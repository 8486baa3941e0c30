"""`cloudbilling document`: usage records, statements, reminders and notes that accompany invoices."""

from __future__ import annotations

from pathlib import Path

import typer

from cluster.cli.context import AsJson

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
