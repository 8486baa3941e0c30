"""`cloudbilling demo`: example data."""

from __future__ import annotations

from pathlib import Path

import typer

from cluster.cli.context import AsJson

demo = typer.Typer(no_args_is_help=True, help="Load example data into tenants of their own.", rich_markup_mode=None)


@demo.command("focus")
def demo_focus(
    file: Path = typer.Option(None, help="A FOCUS 1.0 CSV; default: the example."),
    by: str = typer.Option("consumption", help="consumption or value."),
    as_json: bool = AsJson,
) -> None:
    """Bill a file of real cloud usage and reconcile it with what the provider states."""
    from cluster.cli import data

    data.demo_focus(file, by, as_json)


@demo.command("generated")
def demo_generated(as_json: bool = AsJson) -> None:
    """Fill a tenant with a generated year: 40 customers, four plans, twelve bill runs."""
    from cluster.cli import data

    data.demo_generated(as_json)
