"""`cloudbilling archive` and `cloudbilling verify`."""

from __future__ import annotations

from pathlib import Path

import typer

from cluster.cli.context import AsJson, Key, Tenant, Url

archive = typer.Typer(no_args_is_help=True, help="The archive: find, fetch, keep, delete.", rich_markup_mode=None)
verify = typer.Typer(no_args_is_help=True, help="Prove what is stored.", rich_markup_mode=None)


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


@archive.command("restore")
def archive_restore(tenant: str = Tenant, key: str = Key, url: str = Url, as_json: bool = AsJson) -> None:
    """Bring back objects that were hidden or overwritten in a bucket with Object Lock."""
    from cluster.cli import archive as work

    work.restore(work.Access(tenant, key, url, as_json))


def _verify(what: str, tenant: str, key: str, url: str, as_json: bool) -> None:
    from cluster.cli import billing

    billing.verify(what, tenant, key, url, as_json)


@verify.command("archive")
def verify_archive(tenant: str = Tenant, key: str = Key, url: str = Url, as_json: bool = AsJson) -> None:
    """Every archived byte, and the chain of hashes."""
    _verify("archive", tenant, key, url, as_json)


@verify.command("usage")
def verify_usage(tenant: str = Tenant, key: str = Key, url: str = Url, as_json: bool = AsJson) -> None:
    """Everything stored is rated, suspended or voided, and is as it was written, by re-reading the log."""
    _verify("usage", tenant, key, url, as_json)


@verify.command("invoices")
def verify_invoices(
    run: str = typer.Option(None, help="The id of one bill run; without it all that stand."),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Every document of the bill runs, derived again from the log to the cent; numbers without a gap; sums."""
    from cluster.cli import billing

    billing.verify("invoices", tenant, key, url, as_json, run)
