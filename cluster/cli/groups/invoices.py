"""`cloudbilling invoices` of the platform, and `cloudbilling invoice` for any invoice."""

from __future__ import annotations

from pathlib import Path

import typer

from cluster.cli.context import AsJson, Key, Tenant, Url

invoices = typer.Typer(no_args_is_help=True, help="Invoices and credit notes.", rich_markup_mode=None)
invoice = typer.Typer(no_args_is_help=True, help="Any invoice: JSON to files and back.", rich_markup_mode=None)


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


@invoices.command("files")
def invoices_files(
    number: str,
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Make the files of a document that could not be made, with layout and data as they are now."""
    from cluster.cli import billing

    billing.make_files(number, tenant, key, url, as_json)


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


@invoice.command("issue")
def invoice_issue(
    file: Path = typer.Argument(..., help="An invoice as JSON, without a number (docs/invoice-factory.md)."),
    language: str = typer.Option("de", help="Of the page: de or en."),
    renumber: bool = typer.Option(
        False, "--renumber", help="Leave out the number that the file has, also as reference of the payment."
    ),
    idempotency_key: str = typer.Option(
        None, help="Any text: called again with the same one and the same file, nothing is issued twice."
    ),
    tenant: str = Tenant,
    key: str = Key,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Check an invoice, give it the next number of its series, archive it; what is wrong uses no number."""
    from cluster.cli import invoice_factory as work

    work.issue(file, language, renumber, idempotency_key, work.Access(tenant, key, url), as_json)


@invoice.command("read")
def invoice_read(
    file: Path = typer.Argument(..., help="ZUGFeRD or Factur-X (PDF), XRechnung, CII, UBL, Peppol (XML)."),
    as_json: bool = AsJson,
) -> None:
    """Turn an incoming e-invoice into JSON; needs no platform."""
    from cluster.cli import invoice_factory

    invoice_factory.read(file, as_json)
