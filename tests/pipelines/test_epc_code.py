"""The code for banking apps: what it says, by EPC069-12, read back out of the drawing; and where there must be none."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from billing.einvoice.model import Invoice
from billing.einvoice.parties import Seller
from pipelines.epc_code import BYTES_MAX, QR_MASK, epc_svg, epc_text
from pipelines.invoice_view import view

sys.path.append(str(Path(__file__).parents[1] / "billing" / "einvoice"))
from maximal import changed

EXAMPLE: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "examples" / "invoices" / "invoice.json").read_text(encoding="utf-8")
)
WHOLE = "BCD\n002\n1\nSCT\nBYLADEM1001\nNordwind Cloud GmbH\nDE02120300000000202051\nEUR487.27\n\n\nRE-2026-0042"
ACCOUNT, REFERENCE = "/payment/transfer/0/iban", "/payment/reference"


def invoice(changes: dict[str, Any] | None = None) -> Invoice:
    return Invoice.from_json(changed(EXAMPLE, changes or {}))


def test_it_says_payee_account_amount_and_reference() -> None:
    assert epc_text(invoice()) == WHOLE


@pytest.mark.parametrize(
    ("changes", "line", "text"),
    [
        ({"/payment/transfer/0/bic": ...}, 4, ""),  # of no use inside the European Economic Area
        ({ACCOUNT: "de02 1203 0000 0000 2020 51"}, 6, "DE02120300000000202051"),
        ({"/payment/transfer/0/name": "N" * 100}, 5, "N" * 70),
        ({"/payment/transfer/0/name": "Nordwind\nSCT\n"}, 5, "Nordwind SCT"),  # a break would move what follows
        ({"/payment/transfer/0/name": ...}, 5, "Nordwind Cloud GmbH"),
        ({REFERENCE: ...}, 10, "RE-2026-0042"),
        ({REFERENCE: "RE 1\nEUR1.00"}, 10, "RE 1 EUR1.00"),
        ({REFERENCE: "rf18 5390 0754 7034"}, 9, "RF18539007547034"),  # ISO 11649 has its own place
        ({REFERENCE: "RF19539007547034"}, 10, "RF19539007547034"),  # by its check digits it is none
    ],
)
def test_each_part_has_its_line(changes: dict[str, Any], line: int, text: str) -> None:
    found = epc_text(invoice(changes))
    assert found is not None
    assert found.split("\n")[line] == text
    assert found.split("\n")[7] == "EUR487.27"


@pytest.mark.parametrize(
    "changes",
    [
        {ACCOUNT: "DE03120300000000202051"},  # wrong check digits
        {ACCOUNT: "0532013000"},  # the bank's own number
        {ACCOUNT: "BR1800360305000010009795493C1"},  # outside of SEPA
        {"/currency": "CHF"},
        {"/totals/due": "1000000000.00"},
        {"/totals/due": "0.00"},
        {"/totals/due": "-5.00"},
        {"/payment/code": "57"},  # a standing order: with a code it would be paid twice
        {"/payment/code": "68"},
        {"/payment/debit": {"mandate": "M-1"}},
        {"/payment": ...},
        {REFERENCE: "R" * 141},  # cut, nobody would know what was paid
        {REFERENCE: "請" * 100},  # 300 bytes: no reader has to take them
    ],
)
def test_there_is_none_where_it_would_pay_wrongly(changes: dict[str, Any]) -> None:
    assert epc_text(invoice(changes)) is None


def test_the_longest_one_still_fits() -> None:
    found = epc_text(invoice({REFERENCE: "R" * 140, "/payment/transfer/0/name": "N" * 70}))
    assert found is not None
    assert len(found.encode()) <= BYTES_MAX
    assert decoded(epc_svg(found)) == found


@pytest.mark.parametrize("name", ["Nordwind Cloud GmbH", "Café Zürich", "株式会社"])
def test_what_is_drawn_is_what_is_read(name: str) -> None:
    found = epc_text(invoice({"/payment/transfer/0/name": name}))
    assert found is not None
    assert decoded(epc_svg(found)) == found


def test_the_page_names_an_account_that_is_no_iban_as_such() -> None:
    made = invoice({ACCOUNT: "0532013000"})
    page = view(made, Seller(made.seller), "invoice", "en")
    assert ["Account", "0532013000"] in page["payment"]["rows"]
    assert page["payment"]["qr"] is None
    assert "Account 0532013000" in page["letterhead"]["columns"][2]
    made = invoice({ACCOUNT: "DE02 1203 0000 0000 2020 51"})
    assert ["IBAN", "DE02 1203 0000 0000 2020 51"] in view(made, Seller(made.seller), "invoice", "en")["payment"][
        "rows"
    ]


# -- A reader of our own, by ISO/IEC 18004: it shares nothing with what draws ------------------------------------------

# Data and correction codewords of level M: (blocks, data codewords of each) by version.
BLOCKS = {
    4: [(2, 32)], 5: [(2, 43)], 6: [(4, 27)], 7: [(4, 31)], 8: [(2, 38), (2, 39)], 9: [(3, 36), (2, 37)],
    10: [(4, 43), (1, 44)], 11: [(1, 50), (4, 51)], 12: [(6, 36), (2, 37)], 13: [(8, 37), (1, 38)],
}  # fmt: skip
ALIGNED = {4: [6, 26], 5: [6, 30], 6: [6, 34], 7: [6, 22, 38], 8: [6, 24, 42], 9: [6, 26, 46], 10: [6, 28, 50],
           11: [6, 30, 54], 12: [6, 32, 58], 13: [6, 34, 62]}  # fmt: skip


def decoded(svg: str) -> str:
    size = int(re.findall(r'viewBox="0 0 (\d+)', svg)[0])
    dark = {
        (int(x) + step, int(y)) for x, y, run in re.findall(r"M(\d+) (\d+)h(\d+)v", svg) for step in range(int(run))
    }
    version = (size - 17) // 4
    fixed = _fixed(size, version)
    bits: list[int] = []
    upward, right = True, size - 1
    while right > 0:
        right -= right == 6  # the column of the timing pattern
        for y in range(size - 1, -1, -1) if upward else range(size):
            for x in (right, right - 1):
                if (x, y) not in fixed:
                    bits.append(((x, y) in dark) ^ ((y // 2 + x // 3) % 2 == 0))  # mask 4
        upward, right = not upward, right - 2
    words = [int("".join(str(int(bit)) for bit in bits[at : at + 8]), 2) for at in range(0, len(bits) - 7, 8)]
    lengths = [length for count, length in BLOCKS[version] for _ in range(count)]
    blocks: list[list[int]] = [[] for _ in lengths]
    stream = iter(words)
    for place in range(max(lengths)):
        for block, length in zip(blocks, lengths, strict=True):
            if place < length:
                block.append(next(stream))
    text = "".join(f"{word:08b}" for block in blocks for word in block)
    assert text[:4] == "0100"  # bytes
    width = 8 if version < 10 else 16
    count = int(text[4 : 4 + width], 2)
    start = 4 + width
    return bytes(int(text[start + 8 * at : start + 8 * at + 8], 2) for at in range(count)).decode()


def _fixed(size: int, version: int) -> set[tuple[int, int]]:
    """Modules that carry no data: finders with format, timing, alignment, version."""
    found = {(x, y) for x in range(9) for y in range(9)}
    found |= {(size - 8 + x, y) for x in range(8) for y in range(9)}
    found |= {(x, size - 8 + y) for x in range(9) for y in range(8)}
    found |= {(6, at) for at in range(size)} | {(at, 6) for at in range(size)}
    last = ALIGNED[version][-1]
    for x in ALIGNED[version]:
        for y in ALIGNED[version]:
            if (x, y) not in ((6, 6), (6, last), (last, 6)):
                found |= {(x + dx, y + dy) for dx in range(-2, 3) for dy in range(-2, 3)}
    if version >= 7:
        found |= {(size - 11 + x, y) for x in range(3) for y in range(6)}
        found |= {(x, size - 11 + y) for x in range(6) for y in range(3)}
    return found


def test_the_mask_is_the_one_that_the_reader_undoes() -> None:
    assert QR_MASK == 4
