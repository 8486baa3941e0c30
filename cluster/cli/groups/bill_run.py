"""`cloudbilling bill-run`: a run of a tenant's bills, and before it what it would come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from cluster.cli import context
from cluster.cli.context import AsJson, Key, Tenant, Url

bill_run = typer.Typer(
    invoke_without_command=True,
    help="Run the bills of a tenant, from plan to archived documents; `plan` and `preview` look before.",
    rich_markup_mode=None,
)
UP_TO_HELP = "Everything due at or before this date."


@bill_run.callback()
def run(
    call: typer.Context,
    up_to: str = typer.Option(None, help="Bill everything due at or before this date."),
    document_date: str = typer.Option(None, help="Date on the documents (test tenants only)."),
    resume: str = typer.Option(None, help="Go on with this run (its id)."),
    cancel: str = typer.Option(None, help="Give up this run (its id), before it is approved."),
    approve: str = typer.Option(None, help="Approve what this run (its id) has computed, and make it final."),
    pause: str = typer.Option(None, help="Pause this run (its id); --resume lets it go on."),
    release: str = typer.Option(None, help="In this run (its id) let through whom --customer names."),
    customer: list[str] = typer.Option([], help="A customer whom a guard rail holds back (with --release)."),
    reverse: str = typer.Option(
        None, help="Take this run (its id) back: credit notes for all of it, then it can run again."
    ),
    check_only: bool = typer.Option(False, "--check-only", help="Compute and stop before anything becomes final."),
    early: bool = typer.Option(False, "--early", help="Do not wait for the collection window to end."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Run the bills of a tenant, from plan to archived documents; `plan` and `preview` look before."""
    from cluster.cli import billing

    if call.invoked_subcommand is not None:
        given = [name for name in call.params if _was_given(call, name)]
        if given:  # silently left out, it would be looked at another tenant than meant
            option = "--" + given[0].removeprefix("as_").replace("_", "-")
            word = call.invoked_subcommand
            context.fail(f"{option} stands before {word}", context.WRONG_CALL, f"cloudbilling bill-run {word} {option}")
        return
    wanted: dict[str, str | None] = {
        "up_to": up_to,
        "resume": resume,
        "cancel": cancel,
        "approve": approve,
        "pause": pause,
        "release": release,
        "reverse": reverse,
    }
    body: dict[str, Any] = {"approve": not check_only, "early": early}
    if document_date:
        body["document_date"] = document_date
    billing.bill_run(wanted, body, customer, tenant, key, url, as_json)


def _was_given(call: typer.Context, name: str) -> bool:
    source = call.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


@bill_run.command("plan")
def plan(
    up_to: str = typer.Option(..., help=UP_TO_HELP),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Who is due, and what documents, sums and time to expect; begins nothing. Exit 1 if nothing is due."""
    from cluster.cli import run_previews

    run_previews.plan(up_to, tenant, key, url, as_json)


@bill_run.command("preview")
def preview(
    up_to: str = typer.Option(None, help=f"{UP_TO_HELP} It may lie ahead."),
    known: str = typer.Option(None, "--id", help="Look at this preview (its id) in place of a new one."),
    document_date: str = typer.Option(None, help="Date on the documents (test tenants only)."),
    out: Path = typer.Option(None, help="Write all lines to this file: .csv or .parquet."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Compute and check a whole bill run, and change nothing. Exit 1 if somebody would be parked or held back."""
    from cluster.cli import run_previews

    if (up_to is None) == (known is None):
        context.fail("give one of --up-to, --id", context.WRONG_CALL)
    wanted = {"up_to": up_to, "document_date": document_date, "id": known}
    run_previews.preview(wanted, out, run_previews.Access(tenant, key, url, as_json))
