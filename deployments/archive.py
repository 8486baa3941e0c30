"""The Cloud Archive over REST: put, find, read, keep, hold, delete after its time, prove. It works alone.

The work is done by `storage/archive/`. Whoever is limited by a right sees only what it shows, here and at the files of
invoices; every reading is on record.
"""

import base64
import logging
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from billing.errors import Conflict, FieldError, InvalidInput, Malformed, NotFound
from billing.forms import decimal_of
from billing.money import MINOR_DIGITS
from deployments.access import Caller, may
from deployments.bodies import json_form, known_keys, read_body, text_of
from deployments.manners import (
    PageOf,
    described,
    json_response,
    number_cursor,
    page_of,
    paging,
    plain,
)
from deployments.services import Services
from storage import pdf_text
from storage.archive import Archived, Entry, retention, rights
from storage.archive import deletion as deletions
from storage.archive.rights import Reader
from storage.sql import audit, invoices

router = APIRouter(prefix="/v1/archive", tags=["Archive"])
LOG = logging.getLogger("cloudbilling.archive")
_READ = ("archive:read", "billing:read")
_WRITE_ERRORS = (400, 409, 413, 415, 422)
FILE_BYTES_MAX = 32 * 1024 * 1024
NAME_LENGTH_MAX = 200
LISTED_MAX = 10_000

_ARCHIVED = {
    "position": 1,
    "document_id": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11",
    "kind": "pdf",
    "version": 1,
    "number": "RE-2026-000001",
    "document_type": "invoice",
    "customer": "acme",
    "document_date": "2026-02-01",
    "amount": "80.92",
    "currency": "EUR",
    "mime": "application/pdf",
    "file_name": "RE-2026-000001.pdf",
    "byte_count": 54321,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "archived_at": "2026-02-01T08:00:00Z",
    "retained_until": "2034-12-31",
    "previous": "00" * 32,
    "chain": "ab" * 32,
}


def reader(services: Services, caller: Caller) -> Reader:
    """Who reads, with the rights that limit him."""
    with services.database.tenant(caller.tenant_id) as connection:
        keeper = "archive:write" in caller.scopes
        return rights.reader_of(connection, caller.actor, caller.role or None, keeper=keeper)


def shown_file(found: Archived) -> dict[str, Any]:
    hidden = ("link_format", "deleted_by")
    return {name: plain(value) for name, value in vars(found).items() if name not in hidden}


# --- files


@router.get(
    "",
    summary="Search the archive",
    **described(answer={"items": [_ARCHIVED], "next_cursor": None}, also=(422,)),
)
def search_archive(
    request: Request,
    page: PageOf = Depends(paging),
    text: str | None = Query(None, max_length=500, description='Words of the document; "a phrase", `or`, `-not`.'),
    customer: str | None = Query(None, max_length=256, description="Only of this customer."),
    number: str | None = Query(None, max_length=256, description="Beginning of the number."),
    kind: str | None = Query(None, max_length=64, description="`pdf`, `xml` or another kind of file."),
    document_type: str | None = Query(None, max_length=64, description="`invoice`, `credit_note` or your own."),
    since: date | None = Query(None, description="Dated on or after."),
    until: date | None = Query(None, description="Dated on or before."),
    amount_min: str | None = Query(None, max_length=40, description="Of this gross amount or more."),
    amount_max: str | None = Query(None, max_length=40, description="Of this gross amount or less."),
    caller: Caller = Depends(may(*_READ)),
) -> Response:
    services: Services = request.app.state.services
    rows = services.archive.search(
        caller.tenant_id,
        reader=reader(services, caller),
        text=text or None,
        customer=customer,
        number=number,
        kind=kind,
        document_type=document_type,
        since=since,
        until=until,
        amount_min=_amount(amount_min, "query:amount_min"),
        amount_max=_amount(amount_max, "query:amount_max"),
        after=number_cursor(page) or 0,
        limit=page.limit + 1,
    )
    return page_of(rows, page, lambda row: row.position, shown_file)


@router.post(
    "/documents",
    summary="Put a file into the archive",
    **described(
        request={"application/pdf": "%PDF-1.7 ... (the bytes of the file)"},
        answer=_ARCHIVED,
        status=201,
        also=_WRITE_ERRORS,
    ),
)
async def put_document(
    request: Request,
    document_id: str = Query(..., min_length=1, max_length=NAME_LENGTH_MAX, description="The document's identity."),
    kind: str = Query(..., pattern="^[a-z][a-z0-9_-]{0,63}$", description="Name of this file of it: `pdf`, `scan` ..."),
    date: date = Query(..., description="Date of the document; its time to be kept runs from the end of this year."),
    number: str = Query("", max_length=NAME_LENGTH_MAX, description="The document's number."),
    type: str = Query("other", pattern="^[a-z][a-z0-9_-]{0,63}$", description="Type: `invoice`, `contract` ..."),
    customer: str = Query("", max_length=256, description="Code of the customer it belongs to."),
    amount: str = Query("0", max_length=40, description="Gross amount."),
    currency: str = Query("", pattern="^([A-Z]{3})?$", description="Currency of the amount."),
    file_name: str = Query("", max_length=NAME_LENGTH_MAX, description="Name that it is downloaded under."),
    version: int = Query(1, ge=1, le=100_000, description="1, or one more than the newest: nothing is overwritten."),
    caller: Caller = Depends(may("archive:write")),
) -> Response:
    """The body is the file. The same again (same bytes) answers the entry that is there; other bytes under the same
    `document_id`, `kind` and `version` are refused, and so is the id of an invoice or credit note that the platform
    issues: its files come from the document itself. Text in PDF, XML, CSV and plain text is found by its words."""
    services: Services = request.app.state.services
    if currency and currency not in MINOR_DIGITS:
        raise InvalidInput("there is no such currency", errors=[FieldError("query:currency", "is no currency")])
    data = await read_body(request, min(FILE_BYTES_MAX, services.limits.body_bytes_max))
    if not data:
        raise Malformed("the body is empty; send the file")
    mime = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()[:100]
    entry = Entry(
        document_id=document_id,
        kind=kind,
        number=number or document_id,
        document_type=type,
        customer=customer,
        document_date=date,
        amount=_amount(amount, "query:amount") or Decimal(0),
        currency=currency,
        data=data,
        mime=mime,
        file_name=_file_name(file_name or f"{number or document_id}.{kind}"),
        version=version,
    )

    def put() -> Archived:
        with services.database.tenant(caller.tenant_id) as connection:
            if invoices.is_document(connection, document_id):
                # Else a foreign file would be what a bill run finds archived, and the invoice's own never made.
                raise Conflict(f"{document_id} is a document that the platform issues: take another document_id")
        found = services.archive.put(caller.tenant_id, replace(entry, text=pdf_text.words(data, mime)))
        with services.database.tenant(caller.tenant_id) as connection:
            rights.record(connection, caller.tenant_id, at=services.clock(), actor=caller.actor, action="put",
                          document_id=document_id, detail=f"{kind}, version {version}")  # fmt: skip
        return found

    return json_response(shown_file(await run_in_threadpool(put)), 201)


@router.get(
    "/documents/{document_id}",
    summary="The files and versions of a document",
    **described(answer={"items": [_ARCHIVED | {"kept_until": "2034-12-31", "holds": []}]}, also=(404,)),
)
def read_document(request: Request, document_id: str, caller: Caller = Depends(may(*_READ))) -> Response:
    """`kept_until` goes by the rules of today and is never earlier than `retained_until`."""
    services: Services = request.app.state.services
    who = reader(services, caller)
    found = [each for each in services.archive.entries(caller.tenant_id, [document_id]) if who.sees(each)]
    if not found:
        raise NotFound(f"nothing is archived for {document_id}")
    with services.database.tenant(caller.tenant_id) as connection:
        years = retention.years_of(connection, caller.tenant_id)
        holds = retention.holds(connection)
    items = [
        shown_file(each)
        | {
            "kept_until": retention.kept_until(each, years).isoformat(),
            "holds": [hold.id for hold in holds if hold.holds(each)],
        }
        for each in found
    ]
    return json_response({"items": items})


@router.get(
    "/documents/{document_id}/{kind}",
    summary="Read a file as it was archived",
    **described(answer=None, media="application/octet-stream", also=(404, 409)),
)
def read_archived_file(
    request: Request,
    document_id: str,
    kind: str,
    version: int | None = Query(None, ge=1, le=100_000, description="The newest if none is given."),
    caller: Caller = Depends(may(*_READ)),
) -> Response:
    """Bytes that are not those that were archived are never handed out (409)."""
    services: Services = request.app.state.services
    found, data = services.archive.read(caller.tenant_id, reader(services, caller), document_id, kind, version)
    headers = {
        "Content-Disposition": f'attachment; filename="{_file_name(found.file_name)}"',
        "Cache-Control": "private, no-store",
        "X-Content-Type-Options": "nosniff",
        "ETag": f'"{found.sha256}"',
        "Repr-Digest": f"sha-256=:{_base64(found.sha256)}:",
    }
    return Response(data, media_type=found.mime, headers=headers)


@router.post(
    "/deletions",
    summary="Delete documents whose time is over",
    **described(
        request={"document_ids": ["contract-17"], "reason": "time is over"},
        answer={"record": _ARCHIVED | {"kind": "deletion"}, "documents": 1, "files": 2},
        status=201,
        also=(*_WRITE_ERRORS, 404),
    ),
)
def delete_documents(
    request: Request, caller: Caller = Depends(may("archive:write")), form: Any = Depends(json_form)
) -> Response:
    """All or none: a document that must be kept, or that is held, is named with its day (409). A record stays in the
    chain: who, when, why, under which rule, and the hashes of what was there."""
    services: Services = request.app.state.services
    form = known_keys(form, ("document_ids", "reason"), ("document_ids", "reason"))
    ids = _texts(form["document_ids"], "/document_ids", deletions.DOCUMENTS_MAX)
    record, files = deletions.delete(
        services.archive, caller.tenant_id, ids, actor=caller.actor, reason=text_of(form, "reason", length_max=1_000)
    )
    return json_response({"record": shown_file(record), "documents": len(ids), "files": files}, 201)


@router.get(
    "/expired",
    summary="What may be deleted",
    **described(answer={"items": [_ARCHIVED]}, also=(422,)),
)
def expired_files(
    request: Request,
    limit: int = Query(100, ge=1, le=500, description="At most so many files."),
    caller: Caller = Depends(may(*_READ)),
) -> Response:
    """Files whose time is over and that nobody holds, the oldest first."""
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        found = deletions.expired(connection, caller.tenant_id, services.clock().date(), limit=limit)
    who = reader(services, caller)
    return json_response({"items": [shown_file(each) for each in found if who.sees(each)]})


@router.get(
    "/export",
    summary="Everything that is archived of a customer, as a ZIP file",
    **described(answer=None, media="application/zip", also=(404, 422)),
)
def export_customer(
    request: Request,
    customer: str = Query(..., min_length=1, max_length=256, description="Code of the customer."),
    caller: Caller = Depends(may(*_READ)),
) -> Response:
    """The files as they were archived, and `register.csv` with their numbers, dates and hashes."""
    services: Services = request.app.state.services
    who = reader(services, caller)
    if not services.archive.search(caller.tenant_id, reader=who, customer=customer, limit=1):
        raise NotFound(f"nothing is archived of customer {customer}")
    with services.database.tenant(caller.tenant_id) as connection:
        rights.record(connection, caller.tenant_id, at=services.clock(), actor=caller.actor, action="export",
                      detail=f"customer={customer}")  # fmt: skip
    return StreamingResponse(
        zipped(services, caller.tenant_id, customer, who),
        media_type="application/zip",
        headers={"Content-Disposition": 'attachment; filename="archive.zip"', "Cache-Control": "private, no-store"},
    )


class _Outbox:
    """What a ZIP file is written to: bytes wait here until they are sent, so that no archive is held in memory."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._sent = 0

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        self._sent += len(data)
        return len(data)

    def tell(self) -> int:
        return self._sent

    def flush(self) -> None:
        """Nothing waits anywhere else."""

    def take(self) -> bytes:
        data, self._parts = b"".join(self._parts), []
        return data


def zipped(services: Services, tenant_id: str, customer: str, who: Reader) -> Iterator[bytes]:
    """A ZIP file of a customer's archive, piece by piece."""
    outbox = _Outbox()
    lines = ["number,type,date,amount,currency,file,version,sha256,archived_at,kept_until"]
    with zipfile.ZipFile(outbox, "w", zipfile.ZIP_DEFLATED) as zip_file:  # type: ignore[arg-type] - written, never read
        after = 0
        while page := services.archive.search(tenant_id, reader=who, customer=customer, after=after, limit=500):
            for found in page:
                name = f"{found.position:08}-{_file_name(found.file_name)}"
                zip_file.writestr(name, services.archive.get(tenant_id, found.document_id, found.kind, found.version))
                values = (found.number, found.document_type, found.document_date, format(found.amount, "f"),
                          found.currency, name, found.version, found.sha256, found.archived_at.isoformat(),
                          found.retained_until)  # fmt: skip
                lines.append(",".join(_csv(str(value)) for value in values))
                yield outbox.take()
            after = page[-1].position
        zip_file.writestr("register.csv", "\r\n".join(lines) + "\r\n")
    yield outbox.take()


# --- how long, and what holds it


@router.get(
    "/retention",
    summary="How long types of documents are kept",
    **described(answer={"years": {"invoice": 8, "credit_note": 8, "other": 10}}),
)
def read_retention(request: Request, caller: Caller = Depends(may(*_READ))) -> Response:
    """Years from the end of the year of the document; `other` is for types without a rule of their own."""
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        return json_response({"years": retention.years_of(connection, caller.tenant_id)})


@router.put(
    "/retention",
    summary="Keep a type of documents longer or shorter",
    **described(request={"document_type": "contract", "years": 10}, answer={"years": {"contract": 10}}, also=(422,)),
)
def set_retention(
    request: Request, caller: Caller = Depends(may("archive:write")), form: Any = Depends(json_form)
) -> Response:
    """A longer time counts for what is archived already, too; a shorter one for new files only."""
    services: Services = request.app.state.services
    form = known_keys(form, ("document_type", "years"), ("document_type", "years"))
    years = form["years"]
    if isinstance(years, bool) or not isinstance(years, int):
        raise InvalidInput("/years: a whole number is needed", errors=[FieldError("/years", "a whole number")])
    kind = text_of(form, "document_type", length_max=retention.TYPE_LENGTH_MAX)
    now = services.clock()
    with services.database.tenant(caller.tenant_id) as connection:
        before = retention.years_of(connection, caller.tenant_id).get(kind)
        retention.set_years(connection, caller.tenant_id, kind, years, actor=caller.actor, now=now)
        audit.record(connection, caller.tenant_id, at=now, actor=caller.actor, action="archive: retention set",
                     subject=kind, before={"years": before}, after={"years": years})  # fmt: skip
        answer = json_response({"years": retention.years_of(connection, caller.tenant_id)})
    services.archive.lengthen_locks(caller.tenant_id)
    return answer


_HOLD = {
    "id": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e12",
    "customer": "acme",
    "document_id": None,
    "reason": "lawsuit 4 O 17/26",
    "placed_at": "2026-02-01T08:00:00Z",
    "placed_by": "user ann@example.org",
    "released_at": None,
    "released_by": None,
    "release_reason": None,
}


@router.get("/holds", summary="List holds", **described(answer={"items": [_HOLD]}))
def list_holds(request: Request, caller: Caller = Depends(may(*_READ))) -> Response:
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        return json_response({"items": [plain(vars(each)) for each in retention.holds(connection)]})


@router.post(
    "/holds",
    summary="Hold documents beyond their time",
    **described(request={"customer": "acme", "reason": "lawsuit 4 O 17/26"}, answer=_HOLD, status=201, also=(422,)),
)
def place_hold(
    request: Request, caller: Caller = Depends(may("archive:write")), form: Any = Depends(json_form)
) -> Response:
    """Of one `customer`, of one `document_id`, or of the whole archive. What is held is not deleted until the hold is
    released, whatever its time."""
    services: Services = request.app.state.services
    form = known_keys(form, ("customer", "document_id", "reason"), ("reason",))
    with services.database.tenant(caller.tenant_id) as connection:
        hold = retention.place_hold(
            connection,
            caller.tenant_id,
            reason=text_of(form, "reason", length_max=retention.REASON_LENGTH_MAX),
            actor=caller.actor,
            now=services.clock(),
            customer=_optional(form, "customer"),
            document_id=_optional(form, "document_id"),
        )
    return json_response(plain(vars(hold)), 201)


@router.post(
    "/holds/{hold_id}/release",
    summary="Release a hold",
    **described(request={"reason": "settled"}, answer=_HOLD, also=(404, 409, 422)),
)
def release_hold(
    request: Request, hold_id: UUID, caller: Caller = Depends(may("archive:write")), form: Any = Depends(json_form)
) -> Response:
    services: Services = request.app.state.services
    form = known_keys(form, ("reason",), ("reason",))
    reason = text_of(form, "reason", length_max=retention.REASON_LENGTH_MAX)
    with services.database.tenant(caller.tenant_id) as connection:
        hold = retention.release_hold(
            connection, caller.tenant_id, str(hold_id), reason=reason, actor=caller.actor, now=services.clock()
        )
    return json_response(plain(vars(hold)))


# --- who reads


@router.get(
    "/access",
    summary="Who read, put, held or deleted what, newest first",
    **described(
        answer={
            "items": [
                {"id": 7, "at": "2026-02-01T08:00:00Z", "actor": "user ann@example.org", "action": "read",
                 "document_id": _ARCHIVED["document_id"], "detail": "pdf, version 1"}
            ],
            "next_cursor": None,
        },
        also=(422,),
    ),
)  # fmt: skip
def access_record(
    request: Request,
    page: PageOf = Depends(paging),
    document_id: str | None = Query(None, max_length=NAME_LENGTH_MAX, description="Only of this document."),
    caller: Caller = Depends(may("access:read")),
) -> Response:
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        rows = rights.accesses(connection, document_id=document_id, after=number_cursor(page), limit=page.limit + 1)
    return page_of(rows, page, lambda row: row["id"], plain)


_RIGHT = {"subject": "role viewer", "customers": ["acme"], "document_types": None}


@router.get("/rights", summary="Who is limited to what", **described(answer={"items": [_RIGHT]}))
def list_rights(request: Request, caller: Caller = Depends(may("access:read"))) -> Response:
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        return json_response({"items": [plain(each) for each in rights.rights(connection)]})


@router.put(
    "/rights",
    summary="Limit a role, user or key to customers or types of documents",
    **described(request=_RIGHT, answer={"items": [_RIGHT]}, also=(422,)),
)
def set_right(
    request: Request, caller: Caller = Depends(may("access:write")), form: Any = Depends(json_form)
) -> Response:
    """`subject` is `role NAME`, `user EMAIL` or `key PREFIX`. Null means no limit; both null takes the right away.
    Several rights of one caller add up; who is not named by any sees what the scope allows."""
    services: Services = request.app.state.services
    form = known_keys(form, ("subject", "customers", "document_types"), ("subject",))
    lists = {
        name: _texts(form[name], f"/{name}", LISTED_MAX) if form.get(name) is not None else None
        for name in ("customers", "document_types")
    }
    subject = text_of(form, "subject", length_max=300)
    now = services.clock()
    with services.database.tenant(caller.tenant_id) as connection:
        rights.set_right(connection, caller.tenant_id, subject, lists["customers"], lists["document_types"],
                         actor=caller.actor, now=now)  # fmt: skip
        audit.record(connection, caller.tenant_id, at=now, actor=caller.actor, action="archive: right set",
                     subject=subject, after=lists)  # fmt: skip
        return json_response({"items": [plain(each) for each in rights.rights(connection)]})


# --- proof


@router.get(
    "/verify",
    summary="Prove that the archive is whole",
    **described(
        answer={"intact": True, "entries": 80, "deleted": 0, "bytes": 4_000_000, "head": "ab12", "roots": 3,
                "findings": []},
        also=(404,),
    ),
)  # fmt: skip
def verify_archive(
    request: Request,
    head: str | None = Query(None, pattern="^[0-9a-f]{64}$", description="The head of an earlier proof."),
    caller: Caller = Depends(may(*_READ)),
) -> Response:
    """Reads every file again, follows the chain of hashes and checks the signed roots. Keep `head` elsewhere: given at
    a later proof, it shows whether anything was taken off since."""
    services: Services = request.app.state.services
    proof = services.archive.verify(caller.tenant_id, known_head=head)
    if not proof.intact:
        LOG.error("the archive of tenant %s is not whole: %s", caller.tenant_code, proof.findings[0])
    return json_response(
        {
            "intact": proof.intact,
            "entries": proof.entries,
            "deleted": proof.deleted,
            "bytes": proof.bytes,
            "head": proof.head,
            "roots": proof.roots,
            "findings": [plain(vars(each)) for each in proof.findings],
        }
    )


@router.post(
    "/restore",
    summary="Bring back what was hidden or overwritten",
    **described(answer={"restored": ["archive/0192f3c0/packs/ab12.tar"]}),
)
def restore_archive(request: Request, caller: Caller = Depends(may("archive:write"))) -> Response:
    """Looks for what `verify` misses or finds changed. A bucket with Object Lock still has the right version below the
    deletion or the other bytes; elsewhere nothing comes back. Verify again afterwards."""
    services: Services = request.app.state.services
    restored = services.archive.restore(caller.tenant_id)
    with services.database.tenant(caller.tenant_id) as connection:
        audit.record(connection, caller.tenant_id, at=services.clock(), actor=caller.actor, action="archive: restored",
                     subject=f"{len(restored)} objects", after={"keys": restored[:100]})  # fmt: skip
    return json_response({"restored": restored})


@router.get(
    "/roots",
    summary="The signed roots of the archive",
    **described(
        answer={
            "public_key": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "items": [
                {"day": "2026-02-02", "position": 80, "chain": "ab" * 32, "previous": "", "signer": "d75a",
                 "signature": "e5564300", "body": "{...}", "stamped_at": None}
            ],
        },
    ),
)  # fmt: skip
def list_roots(request: Request, caller: Caller = Depends(may(*_READ))) -> Response:
    """Before the first entry of a day, the chain as it stands is signed (Ed25519 over `body`). Keep them elsewhere:
    they prove later that nobody has written the register anew. `stamped_at` is what a time-stamping authority says."""
    services: Services = request.app.state.services
    roots = services.archive.roots
    if roots is None:
        raise NotFound("this archive signs no roots")
    services.archive.close_day(caller.tenant_id)
    items = [
        {
            "day": each.day,
            "position": each.position,
            "chain": each.chain,
            "previous": each.previous,
            "signer": each.signer,
            "signature": each.signature,
            "body": each.body.decode(),
            "stamped_at": plain(roots.stamped_at(each)),
        }
        for each in roots.all(caller.tenant_id)
    ]
    return json_response({"public_key": roots.public_key, "items": items})


# --- helpers


def _amount(text: str | None, pointer: str) -> Decimal | None:
    if text is None:
        return None
    found = decimal_of(text)
    if found is None:
        raise InvalidInput(f"{pointer}: a decimal number is needed", errors=[FieldError(pointer, "a decimal number")])
    return found


def _optional(form: Mapping[str, Any], key: str) -> str | None:
    return text_of(form, key, length_max=256) if form.get(key) is not None else None


def _texts(value: Any, pointer: str, most: int) -> list[str]:
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= most
        or not all(isinstance(each, str) and 0 < len(each) <= 256 for each in value)
    ):
        detail = f"a list of 1 to {most:,} texts is needed"
        raise InvalidInput(f"{pointer}: {detail}", errors=[FieldError(pointer, detail)])
    return value


def _file_name(name: str) -> str:
    return "".join(sign if sign.isascii() and (sign.isalnum() or sign in "-_. ") else "_" for sign in name)[:200]


def _csv(text: str) -> str:
    """RFC 4180; what a spreadsheet would take for a formula gets an apostrophe."""
    if text[:1] in "=+@\t\r" or (text[:1] == "-" and decimal_of(text) is None):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"' if any(sign in text for sign in ',"\r\n') else text


def _base64(digest: str) -> str:
    return base64.b64encode(bytes.fromhex(digest)).decode()
