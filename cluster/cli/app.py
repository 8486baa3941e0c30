"""All commands and their options; each imports what it needs when it runs."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import typer

from cluster.cli import context
from cluster.cli.context import AsJson, Key, Tenant, Url

app = typer.Typer(
    name="cloudbilling",
    help="Usage to cash: start the platform, send usage, run bills, fetch and prove invoices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
demo = typer.Typer(no_args_is_help=True, help="Load example data into tenants of their own.", rich_markup_mode=None)
keys = typer.Typer(no_args_is_help=True, help="API keys.", rich_markup_mode=None)
tenants = typer.Typer(no_args_is_help=True, help="Tenants: who runs the billing.", rich_markup_mode=None)
invoices = typer.Typer(no_args_is_help=True, help="Invoices and credit notes.", rich_markup_mode=None)
invoice = typer.Typer(no_args_is_help=True, help="Any invoice: JSON to files and back.", rich_markup_mode=None)
archive = typer.Typer(no_args_is_help=True, help="The archive: find, fetch, keep, delete.", rich_markup_mode=None)
customer = typer.Typer(no_args_is_help=True, help="What is kept about a customer.", rich_markup_mode=None)
verify = typer.Typer(no_args_is_help=True, help="Prove what is stored.", rich_markup_mode=None)
usage_app = typer.Typer(help="What a customer has used, and what it costs so far; backfills.", rich_markup_mode=None)
webhooks = typer.Typer(
    no_args_is_help=True, help="Who is told of alerts, and what became of it.", rich_markup_mode=None
)
alerts = typer.Typer(no_args_is_help=True, help="Thresholds that budgets crossed.", rich_markup_mode=None)
lanes = typer.Typer(
    no_args_is_help=True, help="Lanes of the usage log: load, partitions, moves.", rich_markup_mode=None
)
for name, group in (
    ("webhooks", webhooks),
    ("alerts", alerts),
    ("demo", demo),
    ("keys", keys),
    ("tenants", tenants),
    ("invoices", invoices),
    ("invoice", invoice),
    ("archive", archive),
    ("verify", verify),
    ("customer", customer),
    ("usage", usage_app),
    ("lanes", lanes),
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


@app.command(name="bill-run")
def bill_run(
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
    """Run the bills of a tenant, from plan to archived documents."""
    from cluster.cli import billing

    wanted = {"up_to": up_to, "resume": resume, "cancel": cancel, "approve": approve, "pause": pause,
              "release": release, "reverse": reverse}  # fmt: skip
    body = {"approve": not check_only, "early": early}
    if document_date:
        body["document_date"] = document_date
    billing.bill_run(wanted, body, customer, tenant, key, url, as_json)


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


# -- Groups ------------------------------------------------------------------------------------------------------------


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


@invoices.command("list")
def invoices_list(
    customer: str = typer.Option(None, help="Only of this customer."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Invoices and credit notes, newest first."""
    from cluster.cli import billing

    billing.list_invoices(customer, tenant, key, url, as_json)


@invoices.command("show")
def invoices_show(
    number: str,
    pdf: Path = typer.Option(None, help="Write the archived PDF to this file."),
    xml: Path = typer.Option(None, help="Write the archived XML to this file."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """One document with its lines; or its archived files."""
    from cluster.cli import billing

    billing.show_invoice(number, pdf, xml, tenant, key, url, as_json)


# -- The Invoice Factory: any invoice, no platform ---------------------------------------------------------------------


@invoice.command("render")
@invoices.command("render", hidden=True)
def invoice_render(
    file: Path = typer.Argument(..., help="An invoice as JSON (docs/invoice-factory.md)."),
    out: Path = typer.Option(Path("."), help="Folder for the files."),
    formats: str = typer.Option(
        "zugferd,cii",
        "--format",
        help="With commas: zugferd, zugferd-xrechnung, xrechnung, xrechnung-ubl, cii, ubl, peppol, pdf, html.",
    ),
    language: str = typer.Option("de", help="Of the page: de or en."),
    strict: bool = typer.Option(False, "--strict", help="Refuse what is only a warning, too."),
    record: bool = typer.Option(False, "--usage-record", help="Put the usage record of the lines inside, as CSV."),
    as_json: bool = AsJson,
) -> None:
    """Make the files of an invoice in JSON, checked by the official rules; needs no platform."""
    from cluster.cli import invoice_factory

    invoice_factory.render(file, out, formats, language, strict, record, as_json)


@invoice.command("read")
def invoice_read(
    file: Path = typer.Argument(..., help="ZUGFeRD or Factur-X (PDF), XRechnung, CII, UBL, Peppol (XML)."),
    as_json: bool = AsJson,
) -> None:
    """Turn an incoming e-invoice into JSON; needs no platform."""
    from cluster.cli import invoice_factory

    invoice_factory.read(file, as_json)


@archive.command("search")
def archive_search(
    text: str = typer.Argument(None, help='Words of the document; "a phrase", or, -not.'),
    customer: str = typer.Option(None, help="Only of this customer."),
    number: str = typer.Option(None, help="Beginning of the number."),
    since: str = typer.Option(None, help="Dated on or after."),
    until: str = typer.Option(None, help="Dated on or before."),
    limit: int = typer.Option(50, min=1, max=1_000, help="At most so many files."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Find files."""
    from cluster.cli import archive as work

    given = {"text": text, "customer": customer, "number": number, "since": since, "until": until}
    work.search(given, limit, work.Access(tenant, key, url, as_json))


@archive.command("get")
def archive_get(
    document_id: str,
    kind: str = typer.Option("pdf", help="Which file of the document."),
    version: int = typer.Option(None, help="The newest if none is given."),
    out: Path = typer.Option(None, help="File to write."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Fetch a file as it was archived."""
    from cluster.cli import archive as work

    work.get(document_id, kind, version, out, work.Access(tenant, key, url, as_json))


@archive.command("put")
def archive_put(
    file: Path,
    date: str = typer.Option(..., help="Date of the document (2026-05-04)."),
    document_id: str = typer.Option(None, help="The document's identity; default: the name of the file."),
    kind: str = typer.Option(None, help="Which file of the document; default: the ending of the file."),
    type: str = typer.Option("other", help="Type of the document: contract, receipt ..."),
    number: str = typer.Option(None, help="Its number."),
    customer: str = typer.Option(None, help="Code of the customer it belongs to."),
    amount: str = typer.Option(None, help="Gross amount."),
    currency: str = typer.Option(None, help="Currency of the amount."),
    version: int = typer.Option(None, help="One more than the newest; nothing is overwritten."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Put a file into the archive."""
    from cluster.cli import archive as work

    given = {"date": date, "document_id": document_id, "kind": kind, "type": type, "number": number,
             "customer": customer, "amount": amount, "currency": currency, "version": version}  # fmt: skip
    work.put(file, given, work.Access(tenant, key, url, as_json))


@archive.command("hold")
def archive_hold(
    reason: str = typer.Option(..., help="Why it must be kept."),
    customer: str = typer.Option(None, help="Everything of this customer."),
    document: str = typer.Option(None, help="This document only."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Hold documents beyond their time: of a customer, one document, or everything."""
    from cluster.cli import archive as work

    work.hold(reason, customer, document, work.Access(tenant, key, url, as_json))


@archive.command("holds")
def archive_holds(tenant: str = Tenant, key: str = Key, url: str = Url, as_json: bool = AsJson) -> None:
    """All holds, the newest first."""
    from cluster.cli import archive as work

    work.holds(work.Access(tenant, key, url, as_json))


@archive.command("release")
def archive_release(
    hold_id: str,
    reason: str = typer.Option(..., help="Why it may go."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Release a hold."""
    from cluster.cli import archive as work

    work.release(hold_id, reason, work.Access(tenant, key, url, as_json))


@archive.command("delete")
def archive_delete(
    documents: list[str] = typer.Argument(None, help="Ids of documents."),
    expired: bool = typer.Option(False, "--expired", help="All whose time is over (500 files a call)."),
    reason: str = typer.Option(..., help="Why, for the record."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Delete documents whose time is over; a record stays in the chain."""
    from cluster.cli import archive as work

    work.delete(list(documents or ()), reason, expired, work.Access(tenant, key, url, as_json))


@archive.command("roots")
def archive_roots(
    out: Path = typer.Option(None, help="Write the signed roots to this folder: keep it elsewhere."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """The signed roots, which prove later that nobody wrote the register anew."""
    from cluster.cli import archive as work

    work.roots(out, work.Access(tenant, key, url, as_json))


def _verify(what: str, tenant: str, key: str, url: str, as_json: bool) -> None:
    from cluster.cli import billing

    billing.verify(what, tenant, key, url, as_json)


@archive.command("restore")
def archive_restore(tenant: str = Tenant, key: str = Key, url: str = Url, as_json: bool = AsJson) -> None:
    """Bring back objects that were hidden or overwritten in a bucket with Object Lock."""
    from cluster.cli import archive as work

    work.restore(work.Access(tenant, key, url, as_json))


@verify.command("archive")
def verify_archive(tenant: str = Tenant, key: str = Key, url: str = Url, as_json: bool = AsJson) -> None:
    """Every archived byte, and the chain of hashes."""
    _verify("archive", tenant, key, url, as_json)


@verify.command("usage")
def verify_usage(tenant: str = Tenant, key: str = Key, url: str = Url, as_json: bool = AsJson) -> None:
    """Everything stored is rated, suspended or voided, by re-reading the log."""
    _verify("usage", tenant, key, url, as_json)


@verify.command("invoices")
def verify_invoices(tenant: str = Tenant, key: str = Key, url: str = Url, as_json: bool = AsJson) -> None:
    """Numbers without a gap, and sums that add up."""
    _verify("invoices", tenant, key, url, as_json)


@app.command()
def formats(
    retired: str = typer.Option(None, "--retired", help="A reader that runs no more, as the list names it."),
    as_json: bool = AsJson,
) -> None:
    """Which forms of files the usage log may get, and who still has to be updated for newer ones."""
    from cluster.cli import formats as work

    work.show(retired, as_json)


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

    moment = day(before, "--before")
    work.forget(work.Wish(tenant_id, tuple(customer_key), moment, rule, by), dry_run, snapshots, as_json)


def day(text: str | None, option: str) -> Any:
    """A date of the command line; a wrong call in words otherwise."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).date()
    except ValueError:
        context.fail(f"{option}: {text!r} is no date like 2026-12-01", context.WRONG_CALL)


@webhooks.command("list")
def webhooks_list(tenant: str = Tenant, key: str = Key, as_json: bool = AsJson) -> None:
    """The endpoints of a tenant."""
    from cluster.cli import webhooks as commands

    commands.show(tenant, key, as_json)


@webhooks.command("create")
def webhooks_create(
    address: str = typer.Argument(help="https url that is told."),
    description: str = typer.Option("", help="What it is for."),
    tenant: str = Tenant,
    key: str = Key,
    as_json: bool = AsJson,
) -> None:
    """Let an endpoint be told of alerts. Its signing secret is shown once."""
    from cluster.cli import webhooks as commands

    commands.create(address, description, tenant, key, as_json)


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


# -- Lanes of the usage log --------------------------------------------------------------------------------------------

DryRun = typer.Option(False, "--dry-run", help="Say what would move; move nothing.")


@lanes.command("list")
def lanes_list(url: str = Url, as_json: bool = AsJson) -> None:
    """Each lane with its partitions and what waits in front of it."""
    from cluster.cli import lanes as commands

    commands.show(url, as_json)


@lanes.command("plan")
def lanes_plan(url: str = Url, as_json: bool = AsJson) -> None:
    """What scaling by load would do now, and why; nothing is done."""
    from cluster.cli import lanes as commands

    commands.plan(url, as_json)


@lanes.command("move")
def lanes_move(
    partition: int = typer.Argument(help="0 to 255."),
    lane: int = typer.Argument(help="The lane it goes to."),
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Move one partition to a lane."""
    from cluster.cli import lanes as commands

    commands.move(partition, lane, url, as_json)


@lanes.command("spread")
def lanes_spread(
    chosen: list[int] = typer.Argument(help="Exactly these lanes have partitions then, evenly."),
    dry_run: bool = DryRun,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Share all partitions among these lanes."""
    from cluster.cli import lanes as commands

    commands.spread(chosen, dry_run, url, as_json)


@lanes.command("drain")
@lanes.command("remove", hidden=True)
def lanes_drain(
    lane: int = typer.Argument(help="The lane that is emptied; it stays, without partitions."),
    dry_run: bool = DryRun,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Let the other lanes share what one has: before its machine leaves."""
    from cluster.cli import lanes as commands

    commands.drain(lane, dry_run, url, as_json)


@lanes.command("add")
def lanes_add(dry_run: bool = DryRun, url: str = Url, as_json: bool = AsJson) -> None:
    """One lane more: one that was emptied, or the next there is not yet."""
    from cluster.cli import lanes as commands

    commands.add(dry_run, url, as_json)
