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
