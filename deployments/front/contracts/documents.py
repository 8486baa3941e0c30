"""A customer's accompanying documents as a page: what was made, and forms that make more of it.

Owns the look; which figures they are made of is `pipelines/customer_documents.py`. Files are fetched from the archive's
own pages, under the reader's rights there.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Response

from billing.accompanying import KINDS
from billing.errors import Conflict, InvalidInput
from billing.periods import zone
from deployments.accompanying import make_for
from deployments.front.documents.archive import reader_of_visit
from deployments.front.page import Front, Visit, path_of
from pipelines.customer_credit import currencies_of
from pipelines.documents import NotIssuable
from storage.archive import Archived
from storage.sql import receivables

LISTED = 200  # files
PAY_WITHIN = timedelta(days=14)


@dataclass(frozen=True)
class DocumentRow:
    """One version of a document with its files, the PDF first."""

    number: str
    kind: str
    version: int
    day: date
    files: list[Archived]


def routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    visitor = Depends(front.signed_in)

    @router.get("/customers/{code:path}/documents")
    def documents(
        visit: Annotated[Visit, visitor], code: str, made: Annotated[str, Query(max_length=256)] = ""
    ) -> Response:
        visit.need("billing:read")
        return _page(front, visit, code, {}, made=made)

    @router.post("/customers/{code:path}/documents")
    def make(
        visit: Annotated[Visit, visitor],
        code: str,
        type: Annotated[str, Form(max_length=40)] = "",
        first: Annotated[str, Form(max_length=10)] = "",
        last: Annotated[str, Form(max_length=10)] = "",
        currency: Annotated[str, Form(max_length=3)] = "",
        level: Annotated[str, Form(max_length=1)] = "",
        due_on: Annotated[str, Form(max_length=10)] = "",
        form_token: Annotated[str, Form(max_length=200)] = "",
    ) -> Response:
        visit.need("billing:write")
        front.check_form(visit, form_token)
        said = {"type": type, "first": first, "last": last, "currency": currency, "level": level, "due_on": due_on}
        form: dict[str, Any] = {"type": type}
        if type == "reminder":
            form |= {"level": int(level) if level.isdecimal() else 0, "due_on": due_on}
        else:
            form |= {"from": first, "to": last}
        if currency and type in ("reminder", "account_statement", "credit_statement"):
            form["currency"] = currency
        try:
            found = make_for(
                front.services, visit.tenant_id, visit.user.actor, _now(visit), visit.user.timezone, code, form
            )
        except Conflict:
            return _page(front, visit, code, said, wrong=visit.texts("accompany.nothing_overdue"))
        except InvalidInput as error:
            return _page(front, visit, code, said, wrong=_words(visit, error))
        except NotIssuable as error:  # a character that no font has: it is named
            return _page(front, visit, code, said, wrong=error.detail)
        return front.go(visit, path_of("customers", code) + f"/documents?made={path_of(found.document.number)[1:]}")

    return router


def _page(front: Front, visit: Visit, code: str, said: dict[str, str], *, made: str = "", wrong: str = "") -> Response:
    customer = front.master(visit).customer(code)
    files = front.services.archive.newest(visit.tenant_id, code, KINDS, LISTED)
    reader = reader_of_visit(front, visit)
    with front.services.database.tenant(visit.tenant_id) as connection:
        currencies = sorted({*receivables.currencies(connection, code), *currencies_of(front.master(visit), code)})
    rows = _rows([one for one in files if reader.sees(one)])
    today = _today(visit)
    last = today.replace(day=1) - timedelta(days=1)
    usual = {
        "type": "usage_record",
        "first": last.replace(day=1).isoformat(),
        "last": last.isoformat(),
        "currency": currencies[0] if currencies else "",
        "level": "1",
        "due_on": (today + PAY_WITHIN).isoformat(),
    }
    return front.page(
        visit,
        "contracts/documents.html",
        status=422 if wrong else 200,
        area="customers",
        customer=customer,
        rows=rows,
        currencies=currencies if len(currencies) > 1 else [],
        more=len(files) == LISTED,
        said={**usual, **{key: value for key, value in said.items() if value}},
        made=made if any(row.number == made for row in rows) else "",
        wrong=wrong,
    )


def _words(visit: Visit, error: InvalidInput) -> str:
    """What is wrong in the reader's language, where the form itself can be wrong; else as it is said to programs."""
    first = error.errors[0] if error.errors else None
    words = {"/from": "days_wrong", "/to": "days_wrong", "/due_on": "due_wrong", "/reminder/due_on": "due_wrong"}
    key = words.get(first.pointer) if first is not None else None
    if key is None or first is None or "rows" in first.detail:
        return error.detail
    return visit.texts(f"accompany.{key}")


def _rows(files: list[Archived]) -> list[DocumentRow]:
    """Files by document and version, in the order in which they come (newest first)."""
    found: dict[tuple[str, int], DocumentRow] = {}
    for one in files:
        key = (one.document_id, one.version)
        row = found.setdefault(key, DocumentRow(one.number, one.document_type, one.version, one.document_date, []))
        row.files.append(one)
    for row in found.values():
        row.files.sort(key=lambda one: one.kind != "pdf")
    return list(found.values())


def _today(visit: Visit) -> date:
    """The tenant's day: its test clock's, if it has one."""
    return _now(visit).astimezone(zone(visit.user.timezone)).date()


def _now(visit: Visit) -> datetime:
    return visit.user.test_clock or visit.now
