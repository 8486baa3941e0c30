"""Layouts over REST: drafts change, versions do not, documents keep the version that they were drawn with."""

import hashlib
import io
from datetime import date
from typing import Any

import psycopg
import pypdf
import pytest

from deployments.accompanying import documents_of
from pipelines import customer_documents
from storage.sql import layouts
from tests.deployments.conftest import Api
from tests.deployments.test_accompanying_routes import example, made, pdf_of

pytestmark = pytest.mark.postgres
DRAFT: dict[str, Any] = {"engine": "typst", "blocks": {"accent": "#a01040"}}


def put(tenant: Any, draft: Any = DRAFT, code: str = "house", **headers: str) -> Any:
    return tenant.put(f"/v1/layouts/{code}", {"document_type": "invoice", "name": "House", "draft": draft}, **headers)


def test_a_draft_is_published_put_to_use_and_an_older_version_comes_back(api: Api) -> None:
    tenant = api.tenant()
    assert put(tenant).json() == {"code": "house", "revision": 1}
    first = tenant.post("/v1/layouts/house/versions", {"note": "first", "use": True})
    assert first.status_code == 201, first.text
    assert first.json() == {"document_type": "invoice", "code": "house", "version": 1}
    assert tenant.post("/v1/layouts/house/versions", {}).json()["version"] == 1  # nothing new, no new version
    put(tenant, {"engine": "typst", "blocks": {"accent": "#104080"}})
    assert tenant.post("/v1/layouts/house/versions", {"use": True}).json()["version"] == 2
    row = tenant.get("/v1/layouts").json()["items"][0]
    assert (row["newest"], row["in_use"], row["revision"]) == (2, 2, 2)
    back = tenant.put("/v1/layout-choices/invoice", {"code": "house", "version": 1})
    assert back.status_code == 200, back.text
    assert tenant.get("/v1/layouts").json()["items"][0]["in_use"] == 1
    assert tenant.get("/v1/layouts/house/versions/1").json()["form"] == DRAFT
    assert tenant.put("/v1/layout-choices/invoice", {}).status_code == 422
    assert [one["version"] for one in tenant.get("/v1/layout-choices").json()["items"]] == [1, 2, 1]
    assert tenant.put("/v1/layout-choices/invoice", {"code": None}).json()["code"] is None
    assert tenant.get("/v1/layouts").json()["items"][0]["in_use"] is None
    assert [one["version"] for one in tenant.get("/v1/layouts/house/versions").json()["items"]] == [2, 1]


def test_a_published_version_cannot_be_changed_even_by_the_platform_s_own_role(api: Api) -> None:
    tenant = api.tenant()
    put(tenant)
    tenant.post("/v1/layouts/house/versions", {})
    with api.services.database.tenant(tenant.id) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("UPDATE layout_versions SET note = 'x'")


def test_a_document_keeps_the_version_that_it_was_pinned_to_and_tenants_never_meet(api: Api) -> None:
    tenant, other = api.tenant(), api.tenant()
    put(tenant)
    tenant.post("/v1/layouts/house/versions", {"use": True})
    document = "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11"
    with api.services.database.tenant(tenant.id) as connection:
        assert layouts.pin(connection, tenant.id, [(document, "invoice")])[document].version == 1
    put(tenant, {"engine": "typst"})
    tenant.post("/v1/layouts/house/versions", {"use": True})
    with api.services.database.tenant(tenant.id) as connection:
        assert layouts.pin(connection, tenant.id, [(document, "invoice")])[document].version == 1
        assert layouts.in_use(connection, "invoice").version == 2
        assert layouts.in_use(connection, "credit_note") == layouts.BUILT_IN
    with api.services.database.tenant(other.id) as connection:
        assert layouts.of_document(connection, document) is None
    assert other.get("/v1/layouts").json()["items"] == []
    assert other.get("/v1/layouts/house").status_code == 404


def test_mistakes_are_told_by_their_place_and_drafts_of_two_people_do_not_overwrite_each_other(api: Api) -> None:
    tenant = api.tenant()
    wrong = put(tenant, {"engine": "word", "blocks": {"accent": "red"}})
    assert wrong.status_code == 422
    assert {one["pointer"] for one in wrong.json()["errors"]} == {"/draft/engine", "/draft/blocks/accent"}
    put(tenant)
    put(tenant)
    assert put(tenant, **{"If-Match": '"1"'}).status_code == 412
    assert put(tenant, code="No Code").status_code == 422
    put(tenant, {"engine": "typst", "source": "= A\n#nobody"}, code="mine")
    refused = tenant.post("/v1/layouts/mine/versions", {})
    assert refused.status_code == 422
    assert refused.json()["errors"] == [{"pointer": "/source", "detail": "line 2, column 2: unknown variable: nobody"}]


def test_a_preview_is_a_pdf_and_changing_layouts_needs_its_own_scope(api: Api) -> None:
    tenant = api.tenant()
    drawn = tenant.post("/v1/layouts/preview", {"draft": DRAFT, "language": "en"})
    assert drawn.headers["content-type"] == "application/pdf"
    assert drawn.content.startswith(b"%PDF")
    reader = tenant.key_with("billing:read")
    assert tenant.post("/v1/layouts/preview", {"draft": DRAFT}, key=reader).status_code == 200
    assert tenant.post("/v1/layouts/house/versions", {}, key=reader).status_code == 403


# -- What accompanies invoices -----------------------------------------------------------------------------------------

STATEMENT = {"type": "account_statement", "from": "2026-01-01", "to": "2026-01-31"}


def used(tenant: Any, draft: Any, code: str = "letters", kind: str = "account_statement") -> int:
    kept = tenant.put(f"/v1/layouts/{code}", {"document_type": kind, "name": "Letters", "draft": draft})
    assert kept.status_code == 200, kept.text
    answer = tenant.post(f"/v1/layouts/{code}/versions", {"use": True})
    assert answer.status_code == 201, answer.text
    return int(answer.json()["version"])


def words(greeting: str) -> dict[str, Any]:
    return {"engine": "typst", "blocks": {"texts": {"de": {"greeting": greeting}}}}


def noted(tenant: Any, number: str = "KA-acme-2026-01", **more: Any) -> Any:
    asked = "&".join(f"{key}={value}" for key, value in {"document_type": "account_statement", **more}.items())
    answer = tenant.get(f"/v1/layout-of-document?number={number}&{asked}")
    assert answer.status_code == 200, answer.text
    return answer.json()["version"] if answer.json()["code"] else None


def statement(api: Api) -> Any:
    """A test tenant whose clock stands still: a document of today is the same again."""
    tenant = api.tenant(kind="test", test_clock="2026-02-02")
    tenant.catalog()
    return tenant


def test_a_statement_is_drawn_with_the_version_in_use_and_the_same_again_with_its_own(api: Api) -> None:
    tenant = statement(api)
    used(tenant, words("Moin,"))
    first = made(tenant, STATEMENT)
    assert "Moin," in pdf_of(tenant, first["files"])
    assert used(tenant, words("Servus,")) == 2
    assert made(tenant, STATEMENT)["files"] == first["files"]  # nothing new in it: version 1, of the layout too
    paid = {**STATEMENT, "payments": [{"booked_on": "2026-01-20", "amount": "-10.00"}]}
    second = made(tenant, paid)
    assert {one["version"] for one in second["files"]} == {2}
    text = pdf_of(tenant, second["files"])
    assert "Servus," in text
    assert "Moin," not in text
    assert (noted(tenant, edition=1), noted(tenant, edition=2), noted(tenant)) == (1, 2, 2)
    back = tenant.put("/v1/layout-choices/account_statement", {"code": "letters", "version": 1})
    assert back.status_code == 200, back.text
    assert "Moin," in pdf_of(tenant, made(tenant, STATEMENT)["files"])  # the third edition, with what is in use now
    assert (noted(tenant, edition=2), noted(tenant, edition=3)) == (2, 1)
    note = {"type": "delivery_note", "from": "2026-01-01", "to": "2026-01-31"}
    assert "Guten Tag," in pdf_of(tenant, made(tenant, note)["files"])  # another type has its own choice
    nobody = tenant.get("/v1/layout-of-document?number=KA-nobody-2026-01&document_type=account_statement")
    assert nobody.status_code == 404


def test_a_crash_between_noting_and_drawing_changes_no_byte_of_what_is_drawn_later(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = statement(api)
    used(tenant, words("Moin,"))
    draws, meant = customer_documents.render_document, list[Any]()

    def dies(*args: Any, **named: Any) -> Any:
        meant.extend(draws(*args, **named))
        raise SystemExit("killed")

    monkeypatch.setattr(customer_documents, "render_document", dies)
    with pytest.raises(SystemExit):
        documents_of(api.services).account_statement(
            tenant.id, "acme", date(2026, 1, 1), date(2026, 1, 31), date(2026, 2, 2)
        )
    monkeypatch.setattr(customer_documents, "render_document", draws)
    used(tenant, words("Servus,"))
    found = made(tenant, STATEMENT)
    assert "Moin," in pdf_of(tenant, found["files"])
    assert noted(tenant, edition=1) == 1
    undisturbed = {one.format: hashlib.sha256(one.data).hexdigest() for one in meant}
    assert {one["kind"]: one["sha256"] for one in found["files"]} == undisturbed


def test_a_layout_that_cannot_draw_one_document_does_not_hold_it_for_ever(api: Api) -> None:
    tenant = statement(api)
    used(tenant, {"engine": "typst", "source": "#if d.tables.len() == 0 { panic(d.title) }\n= #d.title"})
    refused = tenant.post("/v1/customers/acme/documents", STATEMENT)  # an empty one, other than the sample
    assert refused.status_code == 422, refused.text
    assert "cannot be drawn" in refused.json()["detail"]
    used(tenant, words("Moin,"))
    assert "Moin," in pdf_of(tenant, made(tenant, STATEMENT)["files"])


def test_a_layout_is_of_one_type_and_no_other(api: Api) -> None:
    tenant = api.tenant()
    used(tenant, words("Moin,"))
    wrong = tenant.put("/v1/layout-choices/invoice", {"code": "letters", "version": 1})
    assert wrong.status_code == 422
    assert "one of account_statement" in wrong.json()["detail"]
    assert put(tenant, code="letters").status_code == 409  # the same code for invoices
    grouped = {"document_type": "reminder", "draft": {"blocks": {"grouping": "product", "columns": ["number"]}}}
    answer = tenant.put("/v1/layouts/dunning", grouped)
    assert {one["pointer"] for one in answer.json()["errors"]} == {"/draft/blocks/grouping", "/draft/blocks/columns"}
    assert tenant.put("/v1/layouts/x", {"document_type": "letter", "draft": {}}).status_code == 422


def test_previews_draw_the_type_that_is_asked_for(api: Api) -> None:
    tenant = api.tenant()
    for kind, title in (("usage_record", "Usage record"), ("credit_statement", "Credit statement")):
        asked = {"document_type": kind, "draft": words("Moin,"), "language": "en"}
        pdf = tenant.post("/v1/layouts/preview", asked).content
        assert title in pypdf.PdfReader(io.BytesIO(pdf)).pages[0].extract_text()
    form = example("reminder")
    asked = {"document_type": "reminder", "draft": words("Moin,"), "document": form}
    pdf = tenant.post("/v1/layouts/preview", asked).content
    assert form["number"] in pypdf.PdfReader(io.BytesIO(pdf)).pages[0].extract_text()
    other = tenant.post("/v1/layouts/preview", {**asked, "document_type": "delivery_note"})
    assert other.json()["errors"][0]["pointer"] == "/document/type"
    broken = tenant.post("/v1/layouts/preview", {**asked, "document": {**form, "currency": "XXX"}})
    assert "/document/currency" in [one["pointer"] for one in broken.json()["errors"]]
    unknown = tenant.post("/v1/layouts/preview", {**asked, "document_type": "letter"})
    assert unknown.json()["errors"][0]["pointer"] == "/document_type"
