"""`cloudbilling webhooks` and `cloudbilling alerts`."""

from __future__ import annotations

import typer

from cluster.cli.context import AsJson, Key, Tenant

webhooks = typer.Typer(
    no_args_is_help=True, help="Who is told of which events, and what became of it.", rich_markup_mode=None
)
alerts = typer.Typer(no_args_is_help=True, help="Thresholds that budgets crossed.", rich_markup_mode=None)


@webhooks.command("list")
def webhooks_list(tenant: str = Tenant, key: str = Key, as_json: bool = AsJson) -> None:
    """The endpoints of a tenant."""
    from cluster.cli import webhooks as commands

    commands.show(tenant, key, as_json)


@webhooks.command("create")
def webhooks_create(
    address: str = typer.Argument(help="https url that is told."),
    description: str = typer.Option("", help="What it is for."),
    event: list[str] = typer.Option(None, help="A type of event, several times; none: all but each document's."),
    tenant: str = Tenant,
    key: str = Key,
    as_json: bool = AsJson,
) -> None:
    """Let an endpoint be told of events. Its signing secret is shown once."""
    from cluster.cli import webhooks as commands

    commands.create(address, description, event or [], tenant, key, as_json)


@webhooks.command("types")
def webhooks_types(tenant: str = Tenant, key: str = Key, as_json: bool = AsJson) -> None:
    """Types of events that an endpoint may be told of."""
    from cluster.cli import webhooks as commands

    commands.types(tenant, key, as_json)


@webhooks.command("test")
def webhooks_test(endpoint: str, tenant: str = Tenant, key: str = Key, as_json: bool = AsJson) -> None:
    """Send an endpoint a message that means nothing."""
    from cluster.cli import webhooks as commands

    commands.test(endpoint, tenant, key, as_json)


@webhooks.command("delete")
def webhooks_delete(endpoint: str, tenant: str = Tenant, key: str = Key, as_json: bool = AsJson) -> None:
    """Tell an endpoint nothing any more."""
    from cluster.cli import webhooks as commands

    commands.delete(endpoint, tenant, key, as_json)


@webhooks.command("deliveries")
def webhooks_deliveries(
    state: str = typer.Option(None, help="waiting, delivered or dead."),
    tenant: str = Tenant,
    key: str = Key,
    as_json: bool = AsJson,
) -> None:
    """What became of messages, the newest 100."""
    from cluster.cli import webhooks as commands

    commands.deliveries(state, tenant, key, as_json)


@webhooks.command("replay")
def webhooks_replay(
    ids: list[int] = typer.Argument(None, help="Ids of dead deliveries; none: all of them."),
    tenant: str = Tenant,
    key: str = Key,
    as_json: bool = AsJson,
) -> None:
    """Send dead messages again, under their own ids."""
    from cluster.cli import webhooks as commands

    commands.replay(ids or [], tenant, key, as_json)


@alerts.command("list")
def alerts_list(
    only_open: bool = typer.Option(False, "--open", help="Only those that nobody has acknowledged."),
    tenant: str = Tenant,
    key: str = Key,
    as_json: bool = AsJson,
) -> None:
    """Thresholds that budgets crossed, in the order of the log."""
    from cluster.cli import webhooks as commands

    commands.alerts(only_open, tenant, key, as_json)


@alerts.command("acknowledge")
def alerts_acknowledge(
    alert: str,
    note: str = typer.Option("", help="What was done about it."),
    tenant: str = Tenant,
    key: str = Key,
    as_json: bool = AsJson,
) -> None:
    """Say that somebody has seen an alert."""
    from cluster.cli import webhooks as commands

    commands.acknowledge(alert, note, tenant, key, as_json)
