"""What is longer than a page goes on on the next one: every word of it is printed inside the text area."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pypdf
import pytest
from invoice_samples import ENTITY, ISSUER, SAMPLES

from billing.einvoice.model import AllowanceCharge, Invoice, Note
from billing.einvoice.parties import seller_of
from pipelines.documents import invoice_for, render_pdf

SELLER = seller_of(ENTITY, "DE")
WORDS = 3_000
LONG = " ".join(f"w{place}" for place in range(WORDS)) + " end"
HEAD = 297 / 25.4 * 72


def words_on_paper(pdf: bytes) -> set[str]:
    """The words whose base line lies on the paper; what runs out at its foot is in the file, but not on the page."""
    found: list[str] = []

    def visit(text: str, page: list[float], matrix: list[float], *_rest: Any) -> None:
        height = matrix[4] * page[1] + matrix[5] * page[3] + page[5]
        if 0 < height < HEAD:
            found.append(text)

    for page in pypdf.PdfReader(io.BytesIO(pdf)).pages:
        page.extract_text(visitor_text=visit)
    return set(" ".join(found).split())


def base() -> Invoice:
    return invoice_for(SAMPLES["invoice"](), ISSUER, SELLER)[0]


def with_line(**given: Any) -> Invoice:
    one = base()
    return replace(one, lines=(replace(one.lines[0], **given), *one.lines[1:]))


def with_record() -> Invoice:
    one = base()
    record = one.records[0]
    rows = (replace(record.rows[0], kind="dimension", label=LONG), *record.rows[1:])
    return replace(one, records=(replace(record, rows=rows), *one.records[1:]))


CASES: dict[str, Callable[[], Invoice]] = {
    "note": lambda: replace(base(), notes=(Note(LONG),)),
    "tax reason": lambda: replace(base(), taxes=(replace(base().taxes[0], reason=LONG), *base().taxes[1:])),
    "name of a line": lambda: with_line(name=LONG),
    "note of a line": lambda: with_line(note=LONG),
    "description of a line": lambda: with_line(description=LONG),
    "reason of a discount": lambda: with_line(allowances=(AllowanceCharge(amount=Decimal(1), reason=LONG),)),
    "reason of a discount on all": lambda: replace(
        base(), allowances=(AllowanceCharge(amount=Decimal(1), reason=LONG),)
    ),
    "name of a group": lambda: replace(base(), groups=(replace(base().groups[0], name=LONG), *base().groups[1:])),
    "cell of a usage record": with_record,
    "order number": lambda: replace(base(), order=LONG),
    "name of the buyer": lambda: replace(base(), buyer=replace(base().buyer, name=LONG)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_text_longer_than_a_page_goes_on_on_the_next(name: str) -> None:
    printed = words_on_paper(render_pdf(CASES[name](), seller=SELLER))
    missing = [place for place in range(WORDS) if f"w{place}" not in printed]
    assert not missing, f"{len(missing)} of {WORDS} words are not on paper, the first is w{missing[0]}"
