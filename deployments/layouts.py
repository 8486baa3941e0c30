"""Layouts over REST: drafts, versions that never change, which one is in use, and previews that store nothing.

A thin shell: what a layout may say is `pipelines/layout_blocks.py`, rows are `storage/sql/layouts.py`, pages are drawn
by `pipelines/layout_preview.py`.
"""

from collections.abc import Sequence
from typing import Any, cast

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import Response

from billing.accompanying import KINDS, Accompanying, Kind
from billing.errors import FieldError, InvalidInput, NotFound
from deployments.access import Caller, may
from deployments.bodies import json_form, known_keys, text_of
from deployments.manners import (
    Answer,
    PageOf,
    Write,
    described,
    etag,
    json_response,
    number_cursor,
    page_of,
    paging,
    plain,
    text_cursor,
)
from deployments.services import Services
from pipelines.accompanying import document_id
from pipelines.layout_blocks import DOCUMENT_KINDS, ISSUED_KINDS, Layout, layout_of
from pipelines.layout_preview import Issued, preview
from storage.sql import audit, invoices, issued_invoices, layouts, tenants
from storage.sql.database import Connection

router = APIRouter(prefix="/v1", tags=["Layouts"])
_ERRORS = (400, 409, 413, 415, 422)
_FORM = {
    "engine": "typst",
    "blocks": {"accent": "#1a4f9c", "grouping": "product", "texts": {"de": {"greeting": "Moin,"}}},
}
_ROW = {
    "code": "house",
    "document_type": "invoice",
    "name": "House style",
    "engine": "typst",
    "revision": 3,
    "newest": 2,
    "in_use": 2,
    "changed_at": "2026-11-02T09:00:00Z",
    "changed_by": "user ann@example.org",
}
_VERSION = {
    "version": 2,
    "note": "new logo",
    "engine": "typst",
    "published_at": "2026-11-02T09:05:00Z",
    "published_by": "user ann@example.org",
}
_USED = {"document_type": "invoice", "code": "house", "version": 2}


@router.get(
    "/layouts", summary="Layouts of documents", **described(answer={"items": [_ROW], "next_cursor": None}, also=(422,))
)
def list_layouts(
    request: Request, caller: Caller = Depends(may("billing:read")), page: PageOf = Depends(paging)
) -> Response:
    """Each with its newest version and the one in use, null where there is none."""
    with _services(request).database.tenant(caller.tenant_id) as connection:
        rows = layouts.page(connection, after=text_cursor(page), limit=page.limit + 1)
    return page_of(rows, page, lambda row: row["code"], plain)


@router.get(
    "/layouts/{code}", summary="A layout with its draft", **described(answer=_ROW | {"draft": _FORM}, also=(404, 422))
)
def read_layout(request: Request, code: str, caller: Caller = Depends(may("billing:read"))) -> Response:
    """The draft as it was kept; send its `ETag` with the next change."""
    with _services(request).database.tenant(caller.tenant_id) as connection:
        found = layouts.get(connection, code)
    return json_response(plain(found), headers={"ETag": etag(found["revision"])})


@router.put(
    "/layouts/{code}",
    summary="Make or change the draft of a layout",
    **described(
        request={"document_type": "invoice", "name": "House style", "draft": _FORM},
        answer={"code": "house", "revision": 3},
        also=(*_ERRORS, 404, 412),
    ),
)
def put_layout(
    request: Request, code: str, caller: Caller = Depends(may("layouts:write")), form: Any = Depends(json_form)
) -> Response:
    """`document_type` is `invoice`, `credit_note` or one of what accompanies them. `draft` holds `engine` (`typst` or
    `html`), `blocks` and, if the tenant draws the page itself, `source`. What is left out of `blocks` is as in the
    built-in layout. Every mistake is named by its place. No document changes by this: a draft has to be published and
    put to use."""
    write = Write(request)
    whole = known_keys(form, ("document_type", "name", "draft"), ("document_type", "draft"))
    kind = _kind(text_of(whole, "document_type"))
    _check(whole["draft"], kind)

    def work(connection: Connection) -> Answer:
        revision = layouts.put(
            connection,
            caller.tenant_id,
            layouts.code_of(code),
            kind,
            _text(whole, "name"),
            whole["draft"],
            actor=caller.actor,
            now=write.services.clock(),
            expected=write.expected,
        )
        return Answer({"code": code, "revision": revision}, headers={"ETag": etag(revision)})

    return write.run(caller, work)


@router.post(
    "/layouts/{code}/versions",
    summary="Publish the draft as the next version",
    **described(request={"note": "new logo", "use": True}, answer=_USED, status=201, also=(*_ERRORS, 404, 412)),
)
def publish_layout(
    request: Request, code: str, caller: Caller = Depends(may("layouts:write")), form: Any = Depends(json_form)
) -> Response:
    """A version never changes and is never deleted. With `use` new documents of its type are drawn with it from now on;
    those that exist keep theirs. The draft is drawn once before: one that cannot be drawn is refused with the place of
    the mistake. A draft that equals the newest version makes no new one."""
    write = Write(request)
    whole = known_keys(form, ("note", "use"))
    is_used = whole.get("use", False)
    if not isinstance(is_used, bool):
        raise InvalidInput("use is true or false", errors=[FieldError("/use", "true or false is needed")])
    with write.services.database.tenant(caller.tenant_id) as connection:
        draft = layouts.get(connection, code)
    kind = draft["document_type"]
    preview(layout_of(draft["draft"], kind), "de", "pdf", owner=caller.tenant_id, kind=kind)

    def work(connection: Connection) -> Answer:
        now = write.services.clock()
        number = layouts.publish(
            connection,
            caller.tenant_id,
            code,
            note=_text(whole, "note", 1_000),
            actor=caller.actor,
            now=now,
            expected=draft["revision"],
        )
        used = {"document_type": draft["document_type"], "code": code, "version": number}
        if is_used:
            _choose(connection, caller, write, **used)
        return Answer(used, 201)

    return write.run(caller, work)


@router.get(
    "/layouts/{code}/versions",
    summary="Versions of a layout",
    **described(answer={"items": [_VERSION], "next_cursor": None}, also=(404, 422)),
)
def list_layout_versions(
    request: Request, code: str, caller: Caller = Depends(may("billing:read")), page: PageOf = Depends(paging)
) -> Response:
    """The newest first."""
    with _services(request).database.tenant(caller.tenant_id) as connection:
        layouts.get(connection, code)
        rows = layouts.versions(connection, code, after=number_cursor(page), limit=page.limit + 1)
    return page_of(rows, page, lambda row: row["version"], plain)


@router.get(
    "/layouts/{code}/versions/{version}",
    summary="A version of a layout",
    **described(answer=_VERSION | {"form": _FORM}, also=(404, 422)),
)
def read_layout_version(
    request: Request, code: str, version: int, caller: Caller = Depends(may("billing:read"))
) -> Response:
    """As it was published. To go on from it send its `form` as the draft; to go back to it put it to use."""
    with _services(request).database.tenant(caller.tenant_id) as connection:
        found = layouts.version(connection, code, version)
    return json_response(plain(found))


@router.get(
    "/layout-choices",
    summary="Which version each type of document is drawn with, and was",
    **described(
        answer={"items": [_USED | {"chosen_at": "2026-11-02T09:05:00Z", "chosen_by": "user ann@example.org"}]},
        also=(422,),
    ),
)
def list_layout_choices(request: Request, caller: Caller = Depends(may("billing:read"))) -> Response:
    """The newest first; the first of a type counts. `code: null` is the built-in layout."""
    with _services(request).database.tenant(caller.tenant_id) as connection:
        rows = layouts.choices(connection)
    return json_response({"items": [plain(row) for row in rows]})


@router.put(
    "/layout-choices/{document_type}",
    summary="Put a version to use, an older one too",
    **described(request={"code": "house", "version": 1}, answer=_USED, also=(*_ERRORS, 404)),
)
def put_layout_choice(
    request: Request,
    document_type: str,
    caller: Caller = Depends(may("layouts:write")),
    form: Any = Depends(json_form),
) -> Response:
    """For documents made from now on. `code: null` goes back to the built-in layout."""
    write = Write(request)
    kind = _kind(document_type)
    whole = known_keys(form, ("code", "version"))
    if "code" not in whole:
        raise InvalidInput("code is missing; null is the built-in layout", errors=[FieldError("/code", "is missing")])
    code, number = whole["code"], whole.get("version")
    if code is not None and not (isinstance(code, str) and isinstance(number, int) and 0 < number < 2**31):
        raise InvalidInput("code is a text and version its number", errors=[FieldError("/version", "is missing")])

    def work(connection: Connection) -> Answer:
        used = {"document_type": kind, "code": code, "version": number if code is not None else None}
        _choose(connection, caller, write, **used)
        return Answer(used)

    return write.run(caller, work)


@router.post(
    "/layouts/preview",
    summary="Draw a layout without keeping anything",
    **described(
        request={"document_type": "invoice", "draft": _FORM, "language": "de", "document": None},
        answer={"detail": "the answer is a PDF (application/pdf)"},
        also=(*_ERRORS, 404),
    ),
)
async def preview_layout(
    request: Request, caller: Caller = Depends(may("billing:read")), form: Any = Depends(json_form)
) -> Response:
    """The page as PDF, of sample data of the type (`invoice` unless said) or of a `document`: of an invoice or credit
    note its number, of what accompanies them the document itself as `POST /v1/documents/render` takes it. A mistake in
    the source is told with its line and column."""
    services = _services(request)
    whole = known_keys(form, ("document_type", "draft", "language", "document"), ("draft",))
    kind = _kind(text_of(whole, "document_type", "invoice"))
    layout = _check(whole["draft"], kind)
    language = text_of(whole, "language", "de", 2)

    def draw() -> bytes:
        document = _document(services, caller.tenant_id, kind, whole.get("document"))
        return preview(layout, language, "pdf", owner=caller.tenant_id, kind=kind, document=document)[0]

    return Response(await run_in_threadpool(draw), media_type="application/pdf")


@router.get(
    "/layout-of-document",
    summary="Which version a document was drawn with",
    **described(answer={"number": "RE-2026-000001", "code": "house", "version": 2}, also=(404, 422)),
)
def read_layout_of_document(
    request: Request,
    number: str = Query(max_length=256, description="The document's number."),
    document_type: str = Query("", max_length=40, description="Of what accompanies invoices: its type."),
    edition: int | None = Query(None, ge=1, le=2**31 - 1, description="Its version in the archive, else the newest."),
    caller: Caller = Depends(may("billing:read")),
) -> Response:
    """`code: null` is the built-in layout, with its own version. 404 while its files are not made. Types that accompany
    invoices are named: their numbers are their own. What was made before layouts of them were noted has none."""
    kind = None if document_type in ("", *ISSUED_KINDS) else _accompanying(document_type)
    with _services(request).database.tenant(caller.tenant_id) as connection:
        if kind is None:
            own = str(invoices.get(connection, number)["id"])
        else:
            own = document_id(caller.tenant_id, kind, number)
        used = layouts.of_document(connection, own, edition)
    if used is None:
        raise NotFound(f"the files of {number!r} are not made yet")
    return json_response({"number": number, "code": used.code, "version": used.version})


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _kind(text: str) -> str:
    return _one_of(text, DOCUMENT_KINDS)


def _accompanying(text: str) -> Kind:
    return cast(Kind, _one_of(text, KINDS, "query:document_type"))


def _one_of(text: str, kinds: Sequence[str], pointer: str = "/document_type") -> str:
    if text not in kinds:
        detail = f"{text!r} is none of {', '.join(kinds)}"
        raise InvalidInput(detail, errors=[FieldError(pointer, detail)])
    return text


def _text(form: dict[str, Any], key: str, length_max: int = 256) -> str:
    """A text that may be left out."""
    return text_of(form, key, length_max=length_max) if form.get(key) else ""


def _check(draft: object, kind: str) -> Layout:
    try:
        return layout_of(draft, kind)
    except InvalidInput as error:
        raise _below("/draft", error) from error


def _document(services: Services, tenant_id: str, kind: str, said: object) -> Issued | Accompanying | None:
    if said is None:
        return None
    if kind in ISSUED_KINDS:
        return issued(services, tenant_id, str(said))
    try:
        document = Accompanying.from_json(said)
    except InvalidInput as error:
        raise _below("/document", error) from error
    if document.type != kind:
        detail = f"this is a document of type {document.type}, the layout one of {kind}"
        raise InvalidInput(detail, errors=[FieldError("/document/type", detail)])
    return document


def _below(pointer: str, error: InvalidInput) -> InvalidInput:
    return InvalidInput(
        error.detail, errors=[FieldError(f"{pointer}{one.pointer}", one.detail) for one in error.errors]
    )


def _choose(
    connection: Connection, caller: Caller, write: Write, document_type: str, code: str | None, version: int | None
) -> None:
    now = write.services.clock()
    layouts.choose(connection, caller.tenant_id, document_type, code, version, actor=caller.actor, now=now)
    audit.record(
        connection,
        caller.tenant_id,
        at=now,
        actor=caller.actor,
        action="layout put to use",
        subject=document_type,
        after={"code": code, "version": version},
    )


def issued(services: Services, tenant_id: str, number: str) -> Issued:
    """What a preview needs of one of the tenant's invoices or credit notes."""
    with services.database.tenant(tenant_id) as connection:
        row = invoices.get(connection, number)
        entities = {one["code"]: one for one in tenants.legal_entities(connection)}
        tenant = tenants.by_id(connection, tenant_id)
        form = issued_invoices.form_of(connection, str(row["id"])) if row["outside"] else None
    return Issued(row, tenant, entities[row["entity"]], form)
