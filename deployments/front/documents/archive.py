"""Pages of the archive: find files, fetch them, hold them, prove that they are as they were."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Form, Query, Response

from deployments.front.lists import LIMIT, Rows, cursor, cursor_number
from deployments.front.page import DOCUMENT_POLICY, Front, Visit
from storage.archive import Archived, retention, rights
from storage.archive.rights import Reader
from storage.sql import overview


def routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    services = front.services
    visitor = Depends(front.signed_in)

    @router.get("/archive")
    def archive(
        visit: Annotated[Visit, visitor],
        q: Annotated[str, Query(max_length=200)] = "",
        kind: Annotated[str, Query(pattern="^([a-z][a-z0-9_-]{0,63})?$")] = "",
        after: str | None = None,
    ) -> Response:
        visit.need("archive:read")
        return _archive(front, visit, q, kind, after)

    @router.get("/archive/files/{document_id}/{kind}/{version}")
    def archived_file(visit: Annotated[Visit, visitor], document_id: str, kind: str, version: int) -> Response:
        visit.need("archive:read")
        found, data = services.archive.read(visit.tenant_id, reader_of_visit(front, visit), document_id, kind, version)
        headers = {
            "Content-Disposition": attachment(found.number or document_id, kind),
            "Content-Security-Policy": DOCUMENT_POLICY,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "private, no-store",
        }
        return Response(data, media_type=found.mime, headers=headers)

    @router.post("/archive/holds")
    def hold(
        visit: Annotated[Visit, visitor],
        reason: Annotated[str, Form()] = "",
        customer: Annotated[str, Form()] = "",
        form_token: Annotated[str, Form()] = "",
    ) -> Response:
        visit.need("archive:write")
        front.check_form(visit, form_token)
        actor, whose = f"user {visit.user.email}", customer.strip() or None
        with services.database.tenant(visit.tenant_id) as connection:
            retention.place_hold(connection, visit.tenant_id, reason=reason, actor=actor, now=visit.now, customer=whose)
            rights.record(connection, visit.tenant_id, at=visit.now, actor=actor, action="hold",
                          detail=f"{whose or 'all'}: {reason}")  # fmt: skip
        return front.go(visit, "/archive")

    @router.post("/archive/holds/{hold_id}/release")
    def release(
        visit: Annotated[Visit, visitor],
        hold_id: UUID,
        reason: Annotated[str, Form()] = "",
        form_token: Annotated[str, Form()] = "",
    ) -> Response:
        visit.need("archive:write")
        front.check_form(visit, form_token)
        actor = f"user {visit.user.email}"
        with services.database.tenant(visit.tenant_id) as connection:
            retention.release_hold(connection, visit.tenant_id, str(hold_id), reason=reason, actor=actor, now=visit.now)
        return front.go(visit, "/archive")

    @router.post("/archive/verify")
    def verify(visit: Annotated[Visit, visitor], form_token: Annotated[str, Form()] = "") -> Response:
        visit.need("archive:read")
        front.check_form(visit, form_token)
        begin = time.monotonic()
        proof = services.archive.verify(visit.tenant_id)
        seconds = Decimal(str(round(time.monotonic() - begin, 1)))
        return _archive(front, visit, "", "", None, proof=proof, proof_seconds=seconds)

    return router


@dataclass(frozen=True)
class Kept:
    """An archived file with the day until which it is kept by the rules of today."""

    file: Archived
    until: date
    held: bool


def reader_of_visit(front: Front, visit: Visit) -> Reader:
    with front.services.database.tenant(visit.tenant_id) as connection:
        keeper = visit.user.may("archive:write")
        return rights.reader_of(connection, f"user {visit.user.email}", visit.user.role, keeper=keeper)


def _archive(
    front: Front,
    visit: Visit,
    search: str,
    kind: str,
    after: str | None,
    *,
    proof: Any = None,
    proof_seconds: Decimal = Decimal(0),
) -> Response:
    place = cursor_number(after) if after else 0
    archive = front.services.archive
    who = reader_of_visit(front, visit)
    found: Sequence[Archived] = archive.search(
        visit.tenant_id, reader=who, text=search.strip() or None, kind=kind or None, after=place, limit=LIMIT + 1
    )
    with front.services.database.tenant(visit.tenant_id) as connection:
        total = overview.archive_count(connection)
        years = retention.years_of(connection, visit.tenant_id)
        holds = [each for each in retention.holds(connection) if each.released_at is None]
    shown = [
        Kept(each, retention.kept_until(each, years), any(hold.holds(each) for hold in holds)) for each in found[:LIMIT]
    ]
    more = len(found) > LIMIT
    rows = Rows(shown, total, total, cursor(shown[-1].file.position) if more else None, place == 0)
    signed = archive.roots.all(visit.tenant_id) if archive.roots is not None else []
    return front.page(
        visit,
        "documents/archive.html",
        area="archive",
        rows=rows,
        filter={"search": search, "kind": kind},
        proof=proof,
        proof_seconds=proof_seconds,
        holds=holds,
        years=years,
        root=signed[-1] if signed else None,
        root_day=date.fromisoformat(signed[-1].day) if signed else None,
        may_write=visit.may("archive:write"),
    )


def attachment(number: str, kind: str) -> str:
    """The header that lets a browser save a file under its document's number."""
    safe = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "_" for letter in number)
    return f'attachment; filename="{safe}.{kind}"'
