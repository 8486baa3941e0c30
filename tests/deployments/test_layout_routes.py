"""Layouts over REST: drafts change, versions do not, documents keep the version that they were drawn with."""

from typing import Any

import psycopg
import pytest

from storage.sql import layouts
from tests.deployments.conftest import Api

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
