"""`cloudbilling credit-note`: what a credit note would be, or writing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.cli import context


def wanted(lines: Sequence[str], amount: str | None) -> dict[str, Any]:
    """The part of the request that says what is credited; nothing of it: all of the invoice."""
    if lines and amount is not None:
        context.fail("--line and --amount exclude each other", context.WRONG_CALL, "a part of a line: --line 3=5.00")
    if amount is not None:
        return {"amount": amount}
    return {"lines": [_line(text) for text in lines]} if lines else {}


def _line(text: str) -> dict[str, str]:
    number, given, amount = text.partition("=")
    if not (number.isascii() and number.isdecimal()) or (given and not amount):
        context.fail(f"--line {text}: the number of a line is needed, or 3=5.00", context.WRONG_CALL)
    return {"line": number, "amount": amount} if given else {"line": number}


def write(
    wish: dict[str, Any], dry_run: bool, tenant: str | None, key: str | None, url: str | None, as_json: bool
) -> None:
    """With `dry_run` nothing is written. A repeat of a call is another credit note, but of an invoice that is left."""
    scope, path = ("billing:read", "/v1/credit-notes/preview") if dry_run else ("billing:write", "/v1/credit-notes")
    with context.problems(), context.tenant_client(tenant, key, [scope], url) as client:
        note = client.post(path, wish)
    context.show(note, as_json, _print)


def _print(note: dict[str, Any]) -> None:
    currency = note["currency"]
    rows = [
        (one["corrects"]["line"] if one["corrects"] else "", one["name"] or one["charge"], one["tax"]["percent"],
         one["amount"])
        for one in note["lines"]
    ]  # fmt: skip
    context.table(["line", "of the invoice", "tax %", f"net {currency}"], rows, right=["tax %", f"net {currency}"])
    written = f"credit note {note['number']} of" if "number" in note else "would credit"
    print(f"{written} {note['refers_to']}: net {note['net']}, tax {note['tax']}, gross {note['gross']} {currency}")  # noqa: T201
    if "left_after" in note:
        print(f"of {note['left']} {currency} that can be credited, {note['left_after']} would be left")  # noqa: T201
        print("nothing is written: leave out --dry-run to write it")  # noqa: T201
