"""`cloudbilling invoice render` and `invoice read`: JSON to files and the way back; no platform needed. `invoice issue`
sends one to the platform, which gives it a number."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from cluster.cli import context

FILE_BYTES_MAX = 100_000_000


@dataclass(frozen=True)
class Access:
    """Which platform, which tenant, with which key."""

    tenant: str | None
    key: str | None
    url: str | None


def render(file: Path, out: Path, formats: str, language: str, strict: bool, record: bool, as_json: bool) -> None:
    """Each format as a file `STEM.FORMAT.ENDING`, checked before; nothing is written if one of them is refused."""
    with context.problems():
        from billing.einvoice.model import Invoice
        from pipelines.invoice_files import formats_of, render_files

        form = form_of(file)
        invoice = Invoice.from_json(form)
        files = render_files(invoice, formats_of(formats), language, strict=strict, usage_record=record)
    context.write_files(out, [(f"{file.stem}.{one.name}", one.data) for one in files])
    written = [
        {
            "format": one.format,
            "file": str(out / f"{file.stem}.{one.name}"),
            "bytes": len(one.data),
            "warnings": [f"{each.rule}: {each.detail} ({each.pointer})" for each in one.warnings],
        }
        for one in files
    ]
    context.show({"written": written}, as_json, _print_written)


def form_of(file: Path) -> Any:
    """The JSON with every figure as text: no float ever touches an amount."""
    try:
        if file.stat().st_size > FILE_BYTES_MAX:
            context.fail(f"{file} has more than {FILE_BYTES_MAX:,} bytes", context.WRONG_CALL)
        form = json.loads(file.read_text("utf-8"), parse_float=str)
    except (OSError, ValueError, RecursionError) as error:
        context.fail(f"{file}: {error}", context.WRONG_CALL)
        raise
    # What `invoice read --json` wrote may be read again as it is.
    return form["invoice"] if isinstance(form, dict) and set(form) == {"invoice"} else form


def read(file: Path, as_json: bool) -> None:
    """The invoice as JSON on stdout; for people what it is, from whom and how much."""
    with context.problems():
        from pipelines.read_invoice import read_invoice

        try:
            if file.stat().st_size > FILE_BYTES_MAX:
                context.fail(f"{file} has more than {FILE_BYTES_MAX:,} bytes", context.WRONG_CALL)
            data = file.read_bytes()
        except OSError as error:
            context.fail(str(error), context.WRONG_CALL)
            raise
        form = read_invoice(data).to_json()
    context.show(form, as_json, _print_invoice)


def issue(
    file: Path, language: str, renumber: bool, idempotency_key: str | None, access: Access, as_json: bool
) -> None:
    """Exit 0 if the invoice has its number and its files are archived. With the same key it is the same document."""
    from cluster.client import path_part

    form = form_of(file)
    if renumber and isinstance(form, dict):
        form = {name: value for name, value in form.items() if name != "number"}
        if isinstance(payment := form.get("payment"), dict):  # the old number is no reference of the new invoice
            form["payment"] = {name: value for name, value in payment.items() if name != "reference"}
    scopes = ["billing:read", "billing:write"]
    with context.problems(), context.tenant_client(access.tenant, access.key, scopes, access.url) as client:
        made = client.post("/v1/invoices", form, idempotency_key=idempotency_key, language=language)
        invoice = client.get(f"/v1/invoices/{path_part(made['number'])}")
    context.show(invoice, as_json, _print_issued)
    if invoice["file"] != "archived":
        raise typer.Exit(context.NO)


def _print_issued(invoice: dict[str, Any]) -> None:
    reason = f": {invoice['file_reason']}" if invoice["file_reason"] else ""
    print(f"{invoice['number']}  {invoice['gross']} {invoice['currency']}  {invoice['file']}{reason}")  # noqa: T201


def _print_written(result: dict[str, Any]) -> None:
    for one in result["written"]:
        print(f"{one['file']}  {one['bytes']:,} bytes")  # noqa: T201
    for text in dict.fromkeys(text for one in result["written"] for text in one["warnings"]):
        print(f"warning: {text}", file=sys.stderr)  # noqa: T201


def _print_invoice(form: dict[str, Any]) -> None:
    print(f"{form['number']}  type {form['type_code']}  {form['issued_on']}  {form.get('profile', '')}")  # noqa: T201
    print(f"from {form['seller']['name']} to {form['buyer']['name']}")  # noqa: T201
    rows = [
        (line["id"], line["name"], line["quantity"], line["unit"], line["price"], line["net"]) for line in form["lines"]
    ]
    context.table(("line", "name", "quantity", "unit", "price", "net"), rows, right=("quantity", "price", "net"))
    for name in ("net", "tax", "gross", "prepaid", "due"):
        if name in form["totals"]:
            print(f"  {name:8} {form['totals'][name]:>14} {form['currency']}")  # noqa: T201
    print("all of it: --json")  # noqa: T201
