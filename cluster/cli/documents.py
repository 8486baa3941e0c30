"""`cloudbilling document`: an accompanying document in JSON to its files (no platform needed), and a customer's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.cli import context
from cluster.cli.invoice_factory import form_of


def render(file: Path, out: Path, formats: str, language: str, as_json: bool) -> None:
    """Each format as a file `STEM.FORMAT`; nothing is written if one of them is refused."""
    with context.problems():
        from billing.accompanying import Accompanying
        from pipelines.accompanying import formats_of, render_document

        document = Accompanying.from_json(form_of(file))
        files = render_document(document, formats_of(formats), language)
    context.write_files(out, [(f"{file.stem}.{one.name}", one.data) for one in files])
    written = [
        {"format": one.format, "file": str(out / f"{file.stem}.{one.name}"), "bytes": len(one.data)} for one in files
    ]
    context.show({"written": written}, as_json, _print_written)


def make(
    form: dict[str, Any],
    customer: str,
    out: Path | None,
    tenant: str | None,
    key: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """From the platform's own figures into the archive; with `out` the archived files are written there as well."""
    from cluster.client import path_part

    scopes = ["billing:write", "archive:read"]
    with context.problems(), context.tenant_client(tenant, key, scopes, url) as client:
        body = {name: value for name, value in form.items() if value is not None}
        made = client.post(f"/v1/customers/{path_part(customer)}/documents", body)
        if out is not None:
            paths = {
                one["file_name"]: f"{one['document_id']}/{one['kind']}?version={one['version']}"
                for one in made["files"]
            }
            context.write_files(
                out, [(name, client.get_bytes(f"/v1/archive/documents/{path}")) for name, path in paths.items()]
            )
    context.show(made, as_json, _print_made)


def _print_made(made: dict[str, Any]) -> None:
    for one in made["files"]:
        about = f"version {one['version']}, kept until {one['retained_until']}"
        print(f"{one['file_name']}  {one['byte_count']:,} bytes, {about}")  # noqa: T201
    if (credit := made["document"].get("credit")) is not None:
        currency = made["document"]["currency"]
        print(f"credit: {credit['opening']} {currency} before, {credit['closing']} {currency} at the end")  # noqa: T201


def _print_written(result: dict[str, Any]) -> None:
    for one in result["written"]:
        print(f"{one['file']}  {one['bytes']:,} bytes")  # noqa: T201
