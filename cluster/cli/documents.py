"""`cloudbilling document render`: an accompanying document in JSON to its files; no platform needed."""

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


def _print_written(result: dict[str, Any]) -> None:
    for one in result["written"]:
        print(f"{one['file']}  {one['bytes']:,} bytes")  # noqa: T201
