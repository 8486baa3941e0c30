"""`cloudbilling customer`: what is kept about one."""

from __future__ import annotations

import typer

from cluster.cli.context import AsJson, Key, Tenant, Url

customer = typer.Typer(no_args_is_help=True, help="What is kept about a customer.", rich_markup_mode=None)


@customer.command("access-report")
def customer_access_report(
    code: str = typer.Argument(help="Code of the customer."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Every store with what it keeps about a customer, and what becomes of it on erasure."""
    from cluster.cli import customer as work

    work.access_report(code, tenant, key, url, as_json)


@customer.command("erase")
def customer_erase(
    code: str = typer.Argument(help="Code of the customer."),
    rule: str = typer.Option(..., "--rule", help="The law or wish; kept with the proof, so nothing about the person."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would go and what would stay."),
    yes: bool = typer.Option(False, "--yes", help="Do not ask again. It cannot be undone."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Forget a customer in every store; documents stay until the law lets them go (docs/forgetting.md)."""
    from cluster.cli import customer as work

    work.erase(code, rule, dry_run, yes, work.Access(tenant, key, url, as_json))


@customer.command("erasures")
def customer_erasures(
    erasure: str = typer.Argument(None, help="Id of one erasure; all without it."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """How far erasures are, and what proves them."""
    from cluster.cli import customer as work

    work.erasures(erasure, work.Access(tenant, key, url, as_json))
