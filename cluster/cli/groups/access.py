"""`cloudbilling keys` and `cloudbilling tenants`."""

from __future__ import annotations

import typer

from cluster.cli.context import AsJson, Key, Tenant

keys = typer.Typer(no_args_is_help=True, help="API keys.", rich_markup_mode=None)
tenants = typer.Typer(no_args_is_help=True, help="Tenants: who runs the billing.", rich_markup_mode=None)


@keys.command("create")
def keys_create(
    scopes: str = typer.Option(..., help="What the key may do: usage:write,usage:read ... or all."),
    name: str = typer.Option("made with the command line", help="What it is for."),
    tenant: str = typer.Option(..., "--tenant", envvar="CLOUDBILLING_TENANT", help="Code of the tenant."),
    requests_per_s: int = typer.Option(None, help="Requests a second that it may send; default: the platform's limit."),
    events_per_s: int = typer.Option(None, help="Events a second that it may send; default: the platform's limit."),
    as_json: bool = AsJson,
) -> None:
    """Make an API key. It is shown once."""
    from cluster.cli import access

    limits = {"requests_per_s": requests_per_s, "events_per_s": events_per_s}
    access.create_key(tenant, name, scopes, {name: one for name, one in limits.items() if one is not None}, as_json)


@keys.command("limit")
def keys_limit(
    id: str = typer.Argument(help="Id of the key, from `keys list`."),
    requests_per_s: int = typer.Option(None, help="Requests a second; not said: the platform's limit."),
    events_per_s: int = typer.Option(None, help="Events a second; not said: the platform's limit."),
    tenant: str = Tenant,
    key: str = Key,
    as_json: bool = AsJson,
) -> None:
    """Change how much a key may ask; it holds within five seconds."""
    from cluster.cli import access

    limits = {"requests_per_s": requests_per_s, "events_per_s": events_per_s}
    access.limit_key(id, {name: one for name, one in limits.items() if one is not None}, tenant, key, as_json)


@keys.command("list")
def keys_list(tenant: str = Tenant, key: str = Key, as_json: bool = AsJson) -> None:
    """The keys of a tenant, without their secrets."""
    from cluster.cli import access

    access.list_keys(tenant, key, as_json)


@tenants.command("create")
def tenants_create(
    code: str,
    name: str = typer.Option(None, help="Name; default: the code."),
    currency: str = typer.Option("EUR"),
    timezone: str = typer.Option("Europe/Berlin"),
    country: str = typer.Option("DE"),
    kind: str = typer.Option("live", help="live, or test (with a clock of its own)."),
    as_json: bool = AsJson,
) -> None:
    """Make a tenant and its first key. The key is shown once."""
    from cluster.cli import access

    form = {
        "code": code,
        "name": name or code,
        "currency": currency,
        "timezone": timezone,
        "country": country,
        "kind": kind,
    }
    access.create_tenant(form, as_json)


@tenants.command("list")
def tenants_list(as_json: bool = AsJson) -> None:
    """All tenants of the platform."""
    from cluster.cli import access

    access.list_tenants(as_json)


@tenants.command("settings")
def tenants_settings(
    late_usage: str = typer.Option(None, "--late-usage", help="For billed periods: delta, reissue or reject."),
    future_limit: str = typer.Option(None, "--future-limit", help="How far ahead an event may be: 30m, 1h, 1d."),
    unique_within_customer: str = typer.Option(
        None, "--unique-within-customer", help='Sources whose ids are unique for a customer only: a,b ("": none).'
    ),
    tenant: str = Tenant,
    key: str = Key,
    as_json: bool = AsJson,
) -> None:
    """What a tenant that lives may change of itself; with options it is set, from now on."""
    from cluster.cli import access

    said = {"late_usage": late_usage, "future_limit": future_limit}
    change: dict[str, object] = {name: text for name, text in said.items() if text is not None}
    if unique_within_customer is not None:
        change["unique_within_customer"] = [one.strip() for one in unique_within_customer.split(",") if one.strip()]
    access.tenant_settings(change, tenant, key, as_json)


@tenants.command("close")
def tenants_close(code: str, as_json: bool = AsJson) -> None:
    """Nothing changes in the tenant any more; what is there may be read and exported. `reopen` takes it back."""
    from cluster.cli import tenant_ends

    tenant_ends.close(code, as_json)


@tenants.command("reopen")
def tenants_reopen(code: str, as_json: bool = AsJson) -> None:
    """Take back a closing, and an erasure that has not begun."""
    from cluster.cli import tenant_ends

    tenant_ends.reopen(code, as_json)


@tenants.command("erase")
def tenants_erase(
    code: str,
    rule: str = typer.Option(..., "--rule", help="Why: the law, the contract; kept with the proof."),
    after_days: int = typer.Option(
        30, "--after-days", help="So long it can be taken back (a live tenant: 1 at least)."
    ),
    as_json: bool = AsJson,
) -> None:
    """Erase a closed tenant in every store, after some days; documents stay until the law lets them go."""
    from cluster.cli import tenant_ends

    tenant_ends.erase(code, rule, after_days, as_json)


@tenants.command("end")
def tenants_end(code: str, as_json: bool = AsJson) -> None:
    """How a tenant stands: open, closed, to be erased when, how far that is."""
    from cluster.cli import tenant_ends

    tenant_ends.end(code, as_json)


@tenants.command("export")
def tenants_export(
    code: str,
    out: str = typer.Option(..., "--out", help="A folder that does not exist yet."),
    as_json: bool = AsJson,
) -> None:
    """Everything of a tenant as files: tables as JSON lines, usage as Parquet, documents (docs/forgetting.md)."""
    from cluster.cli import tenant_ends

    tenant_ends.export(code, out, as_json)
