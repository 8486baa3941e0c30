"""Pages of layouts: the list, an editor with a live preview, versions, and which one documents are drawn with."""

import base64
import re
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Response, UploadFile
from fastapi.concurrency import run_in_threadpool

from billing.errors import BillingError, InvalidInput, NotFound
from deployments.front.page import CONTENT_SECURITY_POLICY, Front, Visit, path_of
from deployments.layouts import issued
from pipelines.layout_blocks import (
    DOCUMENT_KINDS,
    FONTS,
    FOOTER_MAX,
    GROUPINGS,
    ISSUED_KINDS,
    LOGO_BYTES_MAX,
    TEXTS,
    Blocks,
    columns_of,
    layout_of,
    needed_of,
)
from pipelines.layout_preview import preview
from storage.sql import audit, layouts

# The preview is a picture inside the page; nothing else may come from a data: address.
EDITOR_POLICY = CONTENT_SECURITY_POLICY.replace("img-src 'self'", "img-src 'self' data:")
LANGUAGES = ("de", "en")


@dataclass(frozen=True)
class Preview:
    """Pictures of the first pages as data: addresses, or what is wrong."""

    pages: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """What the editor's form holds, as it was typed."""

    code: str
    kind: str
    name: str
    draft: dict[str, Any]
    language: str = "de"
    document: str = ""

    @property
    def is_issued(self) -> bool:
        """Whether it is of what books: it has groups, an appendix, and documents to try it on."""
        return self.kind in ISSUED_KINDS

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are ticked."""
        return tuple(self.draft.get("blocks", {}).get("columns", columns_of(self.kind)))

    def block(self, name: str) -> Any:
        return self.draft.get("blocks", {}).get(name, getattr(Blocks(), name))

    def text(self, language: str, name: str) -> str:
        return str(self.draft.get("blocks", {}).get("texts", {}).get(language, {}).get(name, ""))

    def cover(self, language: str) -> str:
        return str(self.draft.get("blocks", {}).get("cover", {}).get(language, ""))


async def sheet(
    code: Annotated[str, Form(max_length=64)] = "",
    kind: Annotated[str, Form(max_length=40)] = "invoice",
    name: Annotated[str, Form(max_length=256)] = "",
    engine: Annotated[str, Form(max_length=10)] = "typst",
    source: Annotated[str, Form(max_length=200_000)] = "",
    accent: Annotated[str, Form(max_length=20)] = "",
    font: Annotated[str, Form(max_length=40)] = "",
    size: Annotated[str, Form(max_length=4)] = "9",
    columns: Annotated[list[str] | None, Form(max_length=20)] = None,
    columns_for: Annotated[str, Form(max_length=40)] = "",
    grouping: Annotated[str, Form(max_length=20)] = "",
    appendix: Annotated[str, Form(max_length=3)] = "",
    logo: Annotated[str, Form(max_length=LOGO_BYTES_MAX * 2)] = "",
    logo_file: UploadFile | None = None,
    greeting_de: Annotated[str, Form(max_length=2_000)] = "",
    greeting_en: Annotated[str, Form(max_length=2_000)] = "",
    intro_de: Annotated[str, Form(max_length=2_000)] = "",
    intro_en: Annotated[str, Form(max_length=2_000)] = "",
    closing_de: Annotated[str, Form(max_length=2_000)] = "",
    closing_en: Annotated[str, Form(max_length=2_000)] = "",
    footer_de: Annotated[str, Form(max_length=FOOTER_MAX)] = "",
    footer_en: Annotated[str, Form(max_length=FOOTER_MAX)] = "",
    cover_de: Annotated[str, Form(max_length=20_000)] = "",
    cover_en: Annotated[str, Form(max_length=20_000)] = "",
    language: Annotated[str, Form(max_length=2)] = "de",
    document: Annotated[str, Form(max_length=256)] = "",
) -> Sheet:
    """The form's fields as a draft; whether it is one is `layout_of`'s."""
    if kind not in DOCUMENT_KINDS:
        raise NotFound(f"there is no type of document {kind!r}")
    if logo_file is not None and logo_file.size:
        logo = base64.b64encode(await logo_file.read(LOGO_BYTES_MAX + 1)).decode()
    said = {
        "de": (greeting_de, intro_de, closing_de, footer_de),
        "en": (greeting_en, intro_en, closing_en, footer_en),
    }
    texts = {one: {key: text.strip() for key, text in zip(TEXTS, words, strict=True) if text.strip()}
             for one, words in said.items()}  # fmt: skip
    covers = {one: cover.replace("\r\n", "\n") for one, cover in (("de", cover_de), ("en", cover_en)) if cover.strip()}
    blocks: dict[str, Any] = {}
    # Of another type than the page had: its boxes say nothing of this one's columns.
    if columns_for in ("", kind):
        blocks["columns"] = [one for one in columns_of(kind) if one in (columns or ()) or one in needed_of(kind)]
    given = {"accent": accent, "font": font, "size": size, "logo": logo,
             "texts": {one: words for one, words in texts.items() if words}, "cover": covers}  # fmt: skip
    blocks |= {key: value for key, value in given.items() if value}
    if kind in ISSUED_KINDS:
        blocks |= ({"grouping": grouping} if grouping else {}) | {"appendix": appendix == "on"}
    draft = {"engine": engine, "blocks": blocks} | ({"source": source.replace("\r\n", "\n")} if source.strip() else {})
    return Sheet(code.strip(), kind, name.strip(), draft, language, document.strip())


def routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    services = front.services
    visitor = Depends(front.signed_in)

    @router.get("/layouts")
    def layout_list(visit: Annotated[Visit, visitor]) -> Response:
        visit.need("billing:read")
        with services.database.tenant(visit.tenant_id) as connection:
            rows = layouts.page(connection)
            used = {kind: layouts.in_use(connection, kind) for kind in DOCUMENT_KINDS}
        return front.page(visit, "documents/layouts.html", area="layouts", rows=rows, used=used,
                          may_write=visit.may("layouts:write"))  # fmt: skip

    @router.get("/layouts/new")
    def new_layout(
        visit: Annotated[Visit, visitor], kind: Annotated[str, Query(max_length=40)] = "invoice"
    ) -> Response:
        visit.need("layouts:write")
        start = Sheet("", kind if kind in DOCUMENT_KINDS else "invoice", "", {"engine": "typst"})
        return _editor(front, visit, start, fresh=True)

    @router.post("/layouts/preview")
    async def show(
        visit: Annotated[Visit, visitor],
        typed: Annotated[Sheet, Depends(sheet)],
        form_token: Annotated[str, Form()] = "",
        fresh: Annotated[str, Form(max_length=3)] = "",
    ) -> Response:
        visit.need("billing:read")
        front.check_form(visit, form_token)
        return await run_in_threadpool(_editor, front, visit, typed, fresh=fresh == "yes")

    @router.post("/layouts")
    async def keep(
        visit: Annotated[Visit, visitor],
        typed: Annotated[Sheet, Depends(sheet)],
        form_token: Annotated[str, Form()] = "",
        act: Annotated[str, Form(max_length=10)] = "keep",
        note: Annotated[str, Form(max_length=1_000)] = "",
        fresh: Annotated[str, Form(max_length=3)] = "",
    ) -> Response:
        visit.need("layouts:write")
        front.check_form(visit, form_token)
        if act == "preview":  # the button of a browser without JavaScript
            return await run_in_threadpool(_editor, front, visit, typed, fresh=fresh == "yes")
        return await run_in_threadpool(_kept, front, visit, typed, act, note, fresh == "yes")

    @router.get("/layouts/{code}")
    def layout(
        visit: Annotated[Visit, visitor], code: str, version: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0
    ) -> Response:
        visit.need("billing:read")
        with services.database.tenant(visit.tenant_id) as connection:
            found = layouts.get(connection, code)
            draft = layouts.version(connection, code, version)["form"] if version else found["draft"]
        typed = Sheet(code, found["document_type"], found["name"], draft, visit.texts.language)
        return _editor(front, visit, typed, shown=version)

    @router.post("/layouts/{code}/use")
    def use(
        visit: Annotated[Visit, visitor],
        code: str,
        version: Annotated[int, Form(ge=1, le=2**31 - 1)],
        form_token: Annotated[str, Form()] = "",
    ) -> Response:
        visit.need("layouts:write")
        front.check_form(visit, form_token)
        with services.database.tenant(visit.tenant_id) as connection:
            kind = layouts.get(connection, code)["document_type"]
            _use(connection, visit, kind, code, version)
        return front.go(visit, path_of("layouts", code))

    return router


def _use(connection: Any, visit: Visit, kind: str, code: str, version: int) -> None:
    actor = f"user {visit.user.email}"
    layouts.choose(connection, visit.tenant_id, kind, code, version, actor=actor, now=visit.now)
    audit.record(connection, visit.tenant_id, at=visit.now, actor=actor, action="layout put to use", subject=kind,
                 after={"code": code, "version": version})  # fmt: skip


def _kept(front: Front, visit: Visit, typed: Sheet, act: str, note: str, fresh: bool) -> Response:
    """Keep the draft; with `publish` make it a version, with `use` put that to use as well."""
    actor, now = f"user {visit.user.email}", visit.now
    try:
        made = layout_of(typed.draft, typed.kind)
        if act in ("publish", "use"):
            preview(made, typed.language, "pdf", owner=visit.tenant_id, kind=typed.kind)
        with front.services.database.tenant(visit.tenant_id) as connection:
            if fresh and any(row["code"] == typed.code for row in layouts.page(connection)):
                raise InvalidInput(visit.texts("layouts.exists", code=typed.code))
            layouts.put(connection, visit.tenant_id, layouts.code_of(typed.code), typed.kind, typed.name, typed.draft,
                        actor=actor, now=now)  # fmt: skip
            if act in ("publish", "use"):
                number = layouts.publish(
                    connection, visit.tenant_id, typed.code, note=note.strip(), actor=actor, now=now
                )
                if act == "use":
                    _use(connection, visit, typed.kind, typed.code, number)
    except BillingError as error:
        if error.status >= 500:
            raise
        return _editor(front, visit, typed, fresh=fresh, wrong=_told(error), status=error.status)
    return front.go(visit, path_of("layouts", typed.code))


def _editor(
    front: Front, visit: Visit, typed: Sheet, *, fresh: bool = False, shown: int = 0, wrong: tuple[str, ...] = (),
    status: int = 200,
) -> Response:  # fmt: skip
    versions: list[dict[str, Any]] = []
    in_use = layouts.BUILT_IN
    if not fresh:
        with front.services.database.tenant(visit.tenant_id) as connection:
            versions = layouts.versions(connection, typed.code)
            in_use = layouts.in_use(connection, typed.kind)
    response = front.page(
        visit,
        "documents/layout.html",
        status=status,
        area="layouts",
        sheet=typed,
        fresh=fresh,
        shown=shown,
        wrong=wrong,
        preview=_preview(front, visit, typed),
        versions=versions,
        used_version=in_use.version if in_use.code == typed.code else 0,
        choices={
            "columns": columns_of(typed.kind),
            "needed": needed_of(typed.kind),
            "fonts": FONTS,
            "groupings": GROUPINGS,
            "kinds": DOCUMENT_KINDS,
        },
        languages_of_documents=LANGUAGES,
        may_write=visit.may("layouts:write"),
    )
    response.headers["Content-Security-Policy"] = EDITOR_POLICY
    return response


def _preview(front: Front, visit: Visit, typed: Sheet) -> Preview:
    try:
        wanted = typed.document if typed.is_issued else ""
        document = issued(front.services, visit.tenant_id, wanted) if wanted else None
        layout = layout_of(typed.draft, typed.kind)
        files = preview(layout, typed.language, "png", owner=visit.tenant_id, kind=typed.kind, document=document)
    except BillingError as error:
        if error.status >= 500:
            raise
        return Preview(wrong=_told(error))
    return Preview(tuple("data:image/png;base64," + base64.b64encode(one).decode() for one in files))


def _told(error: BillingError) -> tuple[str, ...]:
    """Every mistake with its place; the place of a block is its name."""
    told = [f"{re.sub('^/', '', one.pointer)}: {one.detail}" if one.pointer else one.detail for one in error.errors]
    return tuple(told or [error.detail])
