"""The Invoice Factory over REST: an invoice in JSON becomes files, a file becomes that JSON. It works alone.

Nothing is stored and no number is given (`invoice_issuing.py` does that): what comes in is checked by the rules of each
format and written. The work is done by `pipelines/invoice_files.py` and `pipelines/read_invoice.py`.
"""

import base64
import hashlib
from typing import Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from billing.einvoice.model import Invoice
from billing.einvoice.terms import invoice_schema, issue_schema
from billing.errors import FieldError, InvalidInput, UnsupportedMediaType
from deployments.access import Caller, may
from deployments.bodies import json_form, read_body
from deployments.manners import described, json_response
from deployments.services import Services
from pipelines.invoice_files import DEFAULT, FORMATS, RenderedFile, formats_of, render_files
from pipelines.read_invoice import read_invoice

router = APIRouter(prefix="/v1", tags=["Invoice Factory"])
READ_BYTES_MAX = 16 * 1024 * 1024
_READABLE = ("application/pdf", "application/xml", "text/xml", "application/octet-stream")
INVOICE = {
    "number": "RE-2026-0042",
    "issued_on": "2026-11-01",
    "type_code": "380",
    "currency": "EUR",
    "due_on": "2026-12-01",
    "buyer_reference": "04011000-12345-03",
    "payment_terms": "Payable by 1 December 2026 without deduction.",
    "seller": {
        "name": "Nordwind Cloud GmbH",
        "vat_id": "DE318204776",
        "address": {"street": "Am Kornspeicher 4", "city": "Bremen", "post_code": "28217", "country": "DE"},
    },
    "buyer": {
        "name": "Hafenkontor GmbH",
        "address": {"street": "Versmannkai 18", "city": "Hamburg", "post_code": "20457", "country": "DE"},
    },
    "period": {"start": "2026-10-01", "end": "2026-10-31"},
    "payment": {"code": "58", "transfer": [{"iban": "DE02120300000000202051"}]},
    "lines": [
        {
            "id": "1",
            "name": "Requests",
            "quantity": "48217",
            "unit": "C62",
            "price": "76.11",
            "base_quantity": "48217",
            "net": "76.11",
            "tax": {"category": "S", "percent": "19"},
        }
    ],
    "taxes": [{"base": "76.11", "amount": "14.46", "category": "S", "percent": "19"}],
    "totals": {"lines": "76.11", "net": "76.11", "tax": "14.46", "gross": "90.57", "due": "90.57"},
}
_FILES = {
    "number": "RE-2026-0042",
    "files": [
        {
            "format": "zugferd",
            "name": "RE-2026-0042.zugferd.pdf",
            "mime": "application/pdf",
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "bytes": "JVBERi0xLjcK",
            "warnings": [],
        }
    ],
}


@router.get(
    "/schemas/invoice",
    summary="The JSON schema of an invoice",
    **described(answer={"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "An invoice"}),
)
def read_schema(
    use: str = Query(
        "render", pattern="^(render|issue)$", description="`issue`: as `POST /v1/invoices` takes it, without number."
    ),
    caller: Caller = Depends(may("billing:read", "billing:write")),
) -> Response:
    """JSON schema (2020-12) of what `POST /v1/invoices/render` takes; each member names its business term (BT-n)."""
    return json_response(issue_schema() if use == "issue" else invoice_schema())


@router.post(
    "/invoices/render",
    summary="Make the files of an invoice",
    **described(request=INVOICE, answer=_FILES, also=(400, 413, 415, 422)),
)
def render_invoice(
    request: Request,
    formats: str = Query(
        ",".join(DEFAULT), alias="format", max_length=200, description="With commas: " + ", ".join(FORMATS)
    ),
    language: str = Query("de", max_length=2, description="Of the page: de or en."),
    strict: bool = Query(False, description="Refuse what is only a warning, too."),
    usage_record: bool = Query(False, description="Put the usage record of the lines inside, as CSV (BG-24)."),
    caller: Caller = Depends(may("billing:read", "billing:write")),
    form: Any = Depends(json_form),
) -> Response:
    """PDF/A-3 with the e-invoice inside, XML of each syntax and profile, or a page in HTML; nothing is stored.

    Checked before: every sum to the cent, the official schema, EN 16931's rules and those of the profile. A violation
    is a 422 that names the rule, its text and the place. `warnings` are what the official rules let pass and we would
    not issue, such as a line that is not its quantity x price. `bytes` are base64; with one format and its own type in
    `Accept` (`application/pdf`, `application/xml`, `text/html`) the answer is the file itself.
    """
    invoice = Invoice.from_json(form)
    files = render_files(invoice, formats_of(formats), language, strict=strict, usage_record=usage_record)
    accepted = request.headers.get("accept", "")
    if len(files) == 1 and files[0].mime in accepted:
        headers = {"Content-Disposition": f'attachment; filename="{_name(invoice, files[0])}"'}
        return Response(files[0].data, media_type=files[0].mime, headers=headers)
    return json_response({"number": invoice.number, "files": [_shown(invoice, one) for one in files]})


def _shown(invoice: Invoice, one: RenderedFile) -> dict[str, Any]:
    return {
        "format": one.format,
        "name": _name(invoice, one),
        "mime": one.mime,
        "sha256": hashlib.sha256(one.data).hexdigest(),
        "bytes": base64.b64encode(one.data).decode(),
        "warnings": [{"rule": each.rule, "detail": each.detail, "pointer": each.pointer} for each in one.warnings],
    }


def _name(invoice: Invoice, one: RenderedFile) -> str:
    safe = "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in invoice.number
    )
    return f"{safe.strip('-.') or 'invoice'}.{one.name}"


@router.post(
    "/invoices/read",
    summary="Read an incoming e-invoice",
    **described(
        request={
            "application/pdf": "%PDF-1.7 ... (the bytes of the file)",
            "application/xml": "<rsm:CrossIndustryInvoice ...>",
        },
        answer={"invoice": INVOICE},
        also=(400, 413, 415, 422),
    ),
)
async def read_e_invoice(request: Request, caller: Caller = Depends(may("billing:read", "billing:write"))) -> Response:
    """ZUGFeRD and Factur-X (PDF), XRechnung, CII, UBL and Peppol in the JSON that `POST /v1/invoices/render` takes.

    The body is the file, at most 16 MB. XML is read without entities and with bounds on its size and depth.
    """
    services: Services = request.app.state.services
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _READABLE:
        raise UnsupportedMediaType(f"Content-Type {kind or '(none)'!r} is not taken here; send {', '.join(_READABLE)}")
    body = await read_body(request, min(READ_BYTES_MAX, services.limits.form_bytes_max))
    if not body:
        raise InvalidInput("the body is empty; a PDF or XML file is needed", errors=[FieldError("", "is empty")])
    invoice = await run_in_threadpool(read_invoice, body)
    return json_response({"invoice": invoice.to_json()})
