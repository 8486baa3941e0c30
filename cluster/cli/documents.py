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
        written: list[dict[str, Any]] = []
        try:
            out.mkdir(parents=True, exist_ok=True)
            for one in files:
                path = out / f"{file.stem}.{one.name}"
                path.write_bytes(one.data)
                written.append({"format": one.format, "file": str(path), "bytes": len(one.data)})
        except OSError as error:
            context.fail(str(error), context.NO)
    context.show({"written": written}, as_json, _print_written)


def _print_written(result: dict[str, Any]) -> None:
    for one in result["written"]:
        print(f"{one['file']}  {one['bytes']:,} bytes")  # noqa: T201
