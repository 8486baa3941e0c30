"""The code on an invoice that banking apps read: a SEPA transfer by EPC069-12 (version 002), drawn as SVG.

Owns what may stand in it and when there is none: what would pay the wrong amount, to the wrong account or without its
reference is left out, the words beside it say all the same.
"""

from __future__ import annotations

import re
from decimal import Decimal

from billing.einvoice.checks import valid_iban
from billing.einvoice.model import Invoice
from pipelines.qr_code import rows_of

NAME_MAX, TEXT_MAX, REFERENCE_MAX, BYTES_MAX = 70, 140, 35, 331  # characters, and bytes of the whole
AMOUNT_MAX = Decimal("999999999.99")
TRANSFERS = frozenset({"30", "42", "58"})  # BT-81: what a payer still has to send
# Countries of SEPA by the first letters of their IBANs (European Payments Council, EPC409-09).
SEPA = re.compile(
    "A[DLT]|B[EG]|C[HYZ]|D[EK]|E[ES]|F[IR]|G[BIR]|H[RU]|I[EST]|L[ITUV]|M[CDEKT]|N[LO]|P[LT]|R[OS]|S[EIKM]|VA"
)
QR_MASK = 4  # any of the eight is valid; trying all of them for the prettiest takes 10 ms a document
_RUNS = re.compile("1+")


def epc_text(invoice: Invoice) -> str | None:
    """What the code says, or None where there is none: other currencies, accounts or ways to pay, or too long a text.

    The name may be cut, since banks pay by the IBAN; a reference never is. One by ISO 11649 (RF..) has its own place.
    """
    payment, due = invoice.payment, invoice.totals.due
    if payment is None or payment.code not in TRANSFERS or not payment.transfer or payment.debit or payment.card:
        return None
    account = payment.transfer[0]
    iban = account.iban.replace(" ", "").upper()
    if invoice.currency != "EUR" or not 0 < due <= AMOUNT_MAX or due != due.quantize(Decimal("0.01")):
        return None
    if not valid_iban(iban) or not SEPA.fullmatch(iban[:2]):
        return None
    name = _one_line(account.name or (invoice.payee.name if invoice.payee else invoice.seller.name))[:NAME_MAX]
    said = _one_line(payment.reference or invoice.number)
    compact = said.replace(" ", "").upper()
    structured = compact if len(compact) <= REFERENCE_MAX and _is_creditor_reference(compact) else ""
    text = "" if structured else said
    if len(text) > TEXT_MAX:
        return None
    bic = (account.bic or "").replace(" ", "").upper()
    fields = ["BCD", "002", "1", "SCT", bic, name, iban, f"EUR{due:.2f}", "", structured, text]
    while not fields[-1]:
        fields.pop()
    found = "\n".join(fields)
    return found if len(found.encode()) <= BYTES_MAX else None


def _one_line(text: str) -> str:
    """A field ends with its line: a break inside would move all that follows."""
    return " ".join(text.split())


def _is_creditor_reference(text: str) -> bool:
    """ISO 11649: RF, two check digits, up to 21 letters and digits; mod 97 is 1, the first four last."""
    if not re.fullmatch(r"RF\d{2}[A-Z0-9]{1,21}", text):
        return False
    return int("".join(str(int(one, 36)) for one in text[4:] + text[:4])) % 97 == 1


def epc_svg(text: str) -> str:
    """Error correction M, as the standard wants it: one path, a rectangle for each run of dark modules.

    A hair taller than a module, so that no printer leaves a white line between two rows.
    """
    rows = rows_of(text.encode(), QR_MASK)
    runs: list[str] = []
    for y, row in enumerate(rows):
        spans = [one.span() for one in _RUNS.finditer(row)]
        runs += [f"M{start} {y}h{end - start}v1.01h-{end - start}z" for start, end in spans]
    size = len(rows)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}"><path d="{"".join(runs)}"/></svg>'
