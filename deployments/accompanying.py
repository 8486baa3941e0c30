"""Accompanying documents over REST: any of them from JSON, and those of a customer from the platform's own figures.

The first needs nothing else of the platform and stores nothing. What they say and look like is
`billing/accompanying.py` and `pipelines/accompanying.py`.
"""

import base64
import hashlib
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any, cast

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from billing.accompanying import KINDS, Accompanying, Kind, ReminderCharge, StatementEntry, accompanying_schema
from billing.einvoice.model import read
from billing.errors import FieldError, InvalidInput
from billing.money import parse_number
from billing.periods import zone
from deployments.access import Caller, may
from deployments.archive import reader as archive_reader
from deployments.archive import shown_file
from deployments.bodies import json_form, known_keys, text_of
from deployments.manners import (
    PageOf,
    described,
    json_response,
    number_cursor,
    page_of,
    paging,
    tenant_now,
)
from deployments.services import Services
from pipelines.accompanying import DocumentFile, formats_of, render_document, stem_of
from pipelines.customer_documents import CustomerDocuments, Made
from storage.sql import audit

router = APIRouter(prefix="/v1", tags=["Accompanying documents"])
_PARTY = {
    "name": "Nordwind Cloud GmbH",
    "address": {"street": "Am Kornspeicher 4", "city": "Bremen", "post_code": "28217", "country": "DE"},
}
_DOCUMENT = {
    "type": "account_statement",
    "number": "KA-2026-10-10042",
    "issued_on": "2026-11-02",
    "currency": "EUR",
    "seller": _PARTY,
    "buyer": {**_PARTY, "name": "Hafenkontor GmbH", "ids": [{"id": "10042"}]},
    "period": {"start": "2026-10-01", "end": "2026-10-31"},
    "statement": {
        "opening": "487.27",
        "entries": [
            {"booked_on": "2026-10-08", "kind": "payment", "amount": "-487.27"},
            {
                "booked_on": "2026-10-31",
                "kind": "invoice",
                "number": "RE-2026-000041",
                "due_on": "2026-11-14",
                "amount": "91.00",
            },
        ],
        "closing": "91.00",
    },
}
_FILES = {
    "number": "KA-2026-10-10042",
    "type": "account_statement",
    "files": [
        {
            "format": "pdf",
            "name": "KA-2026-10-10042.pdf",
            "mime": "application/pdf",
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "bytes": "JVBERi0xLjcK",
        }
    ],
}
_ARCHIVED = {
    "position": 12,
    "document_id": "3f9f2d0c-6a5e-5c1e-9a54-2f0d1c6b7e11",
    "kind": "pdf",
    "version": 1,
    "number": "KA-acme-2026-01",
    "document_type": "account_statement",
    "customer": "acme",
    "document_date": "2026-02-02",
    "amount": "91.00",
    "currency": "EUR",
    "mime": "application/pdf",
    "file_name": "KA-acme-2026-01.pdf",
    "byte_count": 47667,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "archived_at": "2026-02-02T09:00:00Z",
    "retained_until": "2032-12-31",
    "previous": "00",
    "chain": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
}
_MADE = {"document": _DOCUMENT, "files": [_ARCHIVED]}
_WANTED = {
    "type": "account_statement",
    "from": "2026-01-01",
    "to": "2026-01-31",
    "payments": [{"booked_on": "2026-01-20", "amount": "-80.92", "text": "transfer"}],
}
_KEYS: Mapping[Kind, tuple[tuple[str, ...], tuple[str, ...]]] = {  # what a form may say, and what it has to
    "usage_record": (("from", "to"), ("from", "to")),
    "delivery_note": (("from", "to"), ("from", "to")),
    "account_statement": (("from", "to", "currency", "payments"), ("from", "to")),
    "reminder": (("level", "due_on", "currency", "charges", "paid", "previous_on"), ("level", "due_on")),
    "credit_statement": (("from", "to", "currency"), ("from", "to")),
}
LISTED_MAX = 10_000  # payments and charges of one form


@router.get(
    "/schemas/document",
    summary="The JSON schema of an accompanying document",
    **described(
        answer={
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "A document that accompanies invoices",
        }
    ),
)
def read_document_schema(caller: Caller = Depends(may("billing:read", "billing:write"))) -> Response:
    """JSON schema (2020-12) of what `POST /v1/documents/render` takes."""
    return json_response(accompanying_schema())


@router.post(
    "/documents/render",
    summary="Make the files of an accompanying document",
    **described(request=_DOCUMENT, answer=_FILES, also=(400, 413, 415, 422)),
)
def render_accompanying(
    request: Request,
    formats: str = Query("pdf,csv", alias="format", max_length=40, description="With commas: pdf, csv"),
    language: str = Query("de", max_length=2, description="Of the page: de or en."),
    caller: Caller = Depends(may("billing:read", "billing:write")),
    form: Any = Depends(json_form),
) -> Response:
    """Usage record, account statement, reminder, delivery note or credit statement as PDF/A-3 (PDF/UA-1) and CSV.

    Nothing is stored, nothing is booked. Sums that are given are checked, others are computed; every bad field is named
    by its pointer. `bytes` are base64; with one format and its own type in `Accept` (`application/pdf`, `text/csv`)
    the answer is the file itself.
    """
    document = Accompanying.from_json(form)
    files = render_document(document, formats_of(formats), language)
    if len(files) == 1 and files[0].mime in request.headers.get("accept", ""):
        headers = {"Content-Disposition": f'attachment; filename="{_name(document, files[0])}"'}
        return Response(files[0].data, media_type=files[0].mime, headers=headers)
    shown = [
        {
            "format": one.format,
            "name": _name(document, one),
            "mime": one.mime,
            "sha256": hashlib.sha256(one.data).hexdigest(),
            "bytes": base64.b64encode(one.data).decode(),
        }
        for one in files
    ]
    return json_response({"number": document.number, "type": document.type, "files": shown})


def _name(document: Accompanying, one: DocumentFile) -> str:
    return f"{stem_of(document.number)}.{one.name}"


# --- from the platform's own figures


@router.post(
    "/customers/{code:path}/documents",
    summary="Make and archive an accompanying document of a customer",
    **described(request=_WANTED, answer=_MADE, status=201, also=(400, 404, 409, 413, 415, 422)),
)
def make_document(
    request: Request, code: str, caller: Caller = Depends(may("billing:write")), form: Any = Depends(json_form)
) -> Response:
    """`usage_record` and `delivery_note`: what was billed of usage in service periods within `from` to `to`.
    `account_statement`: receivables by the ledger; `payments` are entries that the platform does not book (below zero:
    paid). `credit_statement`: the credit that is held, by wallets and documents: paid in, granted, used, given back,
    expired, and credit notes. `reminder`: what is overdue today less `paid` (amount by number of invoice), with `level`
    1 to 3, `due_on`, `charges` (fees and interest as you state them) and `previous_on`. `currency` is needed where
    there are several.

    The files are in the archive under the document's type and number. The same again is the same; other figures, or
    another day, make its next version.
    """
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        now = tenant_now(services, connection, caller)
    made = make_for(services, caller.tenant_id, caller.actor, now, caller.timezone, code, form)
    return json_response({"document": made.document.to_json(), "files": [shown_file(one) for one in made.files]}, 201)


def make_for(
    services: Services, tenant: str, actor: str, now: datetime, timezone: str, customer: str, form: Any
) -> Made:
    """The document that a form asks for, by the tenant's clock `now`; archived and noted in the audit trail."""
    kind = _kind(form)
    today = now.astimezone(zone(timezone)).date()
    may_say, must_say = _KEYS[kind]
    form = known_keys(form, ("type", *may_say), ("type", *must_say))
    makes = documents_of(services)
    if kind == "usage_record":
        made = makes.usage_record(tenant, customer, _day(form, "from"), _day(form, "to"), today)
    elif kind == "delivery_note":
        made = makes.delivery_note(tenant, customer, _day(form, "from"), _day(form, "to"), today)
    elif kind == "account_statement":
        first, last = _day(form, "from"), _day(form, "to")
        made = makes.account_statement(
            tenant, customer, first, last, today, currency=_text(form, "currency"), payments=_payments(form)
        )
    elif kind == "credit_statement":
        first, last = _day(form, "from"), _day(form, "to")
        made = makes.credit_statement(tenant, customer, first, last, now, currency=_text(form, "currency"))
    else:
        level = form["level"]
        if isinstance(level, bool) or level not in (1, 2, 3):
            raise _wrong("/level", "1, 2 or 3 is needed")
        made = makes.reminder(
            tenant, customer, level, _day(form, "due_on"), today,
            currency=_text(form, "currency"), charges=_charges(form), paid=_paid(form),
            previous_on=_day(form, "previous_on") if form.get("previous_on") is not None else None,
        )  # fmt: skip
    with services.database.tenant(tenant) as connection:
        audit.record(connection, tenant, at=services.clock(), actor=actor, action="document made",
                     subject=made.document.number, after={"type": kind, "customer": customer})  # fmt: skip
    return made


def documents_of(services: Services) -> CustomerDocuments:
    return CustomerDocuments(services.database, services.store, services.masters, services.archive)


@router.get(
    "/customers/{code:path}/documents",
    summary="Accompanying documents of a customer in the archive",
    **described(answer={"items": [_ARCHIVED], "next_cursor": None}, also=(404, 422)),
)
def list_documents(
    request: Request,
    code: str,
    type: str = Query("account_statement", pattern="^[a-z_]{1,40}$", description="One of " + ", ".join(KINDS)),
    page: PageOf = Depends(paging),
    caller: Caller = Depends(may("billing:read")),
) -> Response:
    """Their files in the order of the archive, all versions; each is read at `/v1/archive/documents/{document_id}/...`.
    What the caller may see in the archive counts here, too."""
    services: Services = request.app.state.services
    services.masters.newest(caller.tenant_id)[1].customer(code)
    if type not in KINDS:
        raise _wrong("query:type", f"one of {', '.join(KINDS)} is needed")
    rows = services.archive.search(
        caller.tenant_id,
        reader=archive_reader(services, caller),
        customer=code,
        document_type=type,
        after=number_cursor(page) or 0,
        limit=page.limit + 1,
    )
    return page_of(rows, page, lambda row: row.position, shown_file)


def _kind(form: Any) -> Kind:
    kind = form.get("type") if isinstance(form, dict) else None
    if kind not in KINDS:
        raise _wrong("/type", f"one of {', '.join(KINDS)} is needed")
    return cast(Kind, kind)


def _day(form: Mapping[str, Any], key: str) -> date:
    try:
        value = form[key]
        day = date.fromisoformat(value)
        if not 1900 <= day.year <= 9998 or len(value) != 10:
            raise ValueError(value)
    except (ValueError, TypeError) as error:
        raise _wrong(f"/{key}", "a date like 2026-01-31 is needed") from error
    return day


def _text(form: Mapping[str, Any], key: str) -> str | None:
    return None if form.get(key) is None else text_of(form, key, length_max=3)


def _payments(form: Mapping[str, Any]) -> list[StatementEntry]:
    rows = _listed(form, "payments")
    return [
        read(StatementEntry, {"kind": "payment", **_object(row, f"/payments/{place}")}, f"/payments/{place}")
        for place, row in enumerate(rows)
    ]


def _charges(form: Mapping[str, Any]) -> list[ReminderCharge]:
    return [read(ReminderCharge, row, f"/charges/{place}") for place, row in enumerate(_listed(form, "charges"))]


def _paid(form: Mapping[str, Any]) -> dict[str, Any]:
    found = {number: parse_number(amount) for number, amount in _object(form.get("paid") or {}, "/paid").items()}
    for number, amount in found.items():
        if amount is None or amount < 0:
            escaped = number.replace("~", "~0").replace("/", "~1")
            raise _wrong(f"/paid/{escaped}", "an amount that is not below zero is needed")
    return found


def _listed(form: Mapping[str, Any], key: str) -> list[Any]:
    rows = form.get(key) or []
    if not isinstance(rows, list) or len(rows) > LISTED_MAX:
        raise _wrong(f"/{key}", f"a list of at most {LISTED_MAX:,} is needed")
    return rows


def _object(value: Any, pointer: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(pointer, "an object is needed")
    return value


def _wrong(pointer: str, detail: str) -> InvalidInput:
    return InvalidInput(f"{pointer}: {detail}", errors=[FieldError(pointer, detail)])
