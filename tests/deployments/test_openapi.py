"""The published description of the API: valid, complete, with examples, and reviewed like code (golden file)."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from deployments.app import api_routes

pytestmark = pytest.mark.postgres
GOLDEN = Path(__file__).parent.parent / "golden" / "openapi.json"


def _document(api: Any) -> dict[str, Any]:
    return api.http.get("/openapi.json").json()


def test_the_description_is_valid_openapi_3_1(api: Any) -> None:
    document = _document(api)
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


def test_the_description_equals_its_golden_file(api: Any) -> None:
    """`make golden` rewrites it; a difference is a change of the public API: read it like code."""
    text = json.dumps(_document(api), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if os.environ.get("CLOUDBILLING_REWRITE_GOLDEN") == "1":
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_every_operation_has_words_examples_problems_and_its_scope(api: Any) -> None:
    document = _document(api)
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    assert len(operations) == sum(len(route.methods) for route in api_routes())
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert operation["summary"]
        assert operation["tags"]
        good = [answer for code, answer in operation["responses"].items() if code < "300"]
        assert len(good) == 1
        (content,) = good[0]["content"].values()
        assert "example" in content or content["schema"].get("format") == "binary"
        body = operation.get("requestBody")
        if body is not None:
            assert any("example" in each for each in body["content"].values())
        for code, answer in operation["responses"].items():
            if code >= "400":
                assert list(answer["content"]) == ["application/problem+json"], operation["operationId"]
        if operation["security"]:
            assert "Scope: `" in operation["description"]
            assert {"401", "403"} <= set(operation["responses"])


def test_the_examples_of_writes_are_taken_by_their_routes(api: Any) -> None:
    """What the description shows is tried: a reader may copy it."""
    tenant = api.tenant()
    paths = _document(api)["paths"]

    def example(path: str, method: str = "post") -> Any:
        return paths[path][method]["requestBody"]["content"]["application/json"]["example"]

    for path in ("/v1/tax-codes", "/v1/meters", "/v1/plans", "/v1/customers", "/v1/subscriptions", "/v1/budgets"):
        answer = tenant.post(path, example(path))
        assert answer.status_code == 201, (path, answer.text)
        assert set(answer.json()) <= set(
            paths[path]["post"]["responses"]["201"]["content"]["application/json"]["example"]
        )
    for path, status in [
        ("/v1/top-ups", 201),
        ("/v1/subscriptions/quantity", 200),
        ("/v1/ad-hoc-charges", 201),
        ("/v1/subscriptions/override", 200),
        ("/v1/subscriptions/pause", 200),
        ("/v1/subscriptions/resume", 200),
        ("/v1/subscriptions/add-on", 201),
        ("/v1/subscriptions/remove-add-on", 200),
        ("/v1/subscriptions/cancel", 200),
        ("/v1/keys", 201),
        ("/v1/legal-entities/main", 200),
    ]:
        template = path.replace("main", "{code}")
        method = "put" if "main" in path else "post"
        answer = getattr(tenant, method)(path, example(template, method))
        assert answer.status_code == status, (path, answer.text)
    for kind, content in paths["/v1/usage"]["post"]["requestBody"]["content"].items():
        if "example" in content:
            body = content["example"]
            sent = body if isinstance(body, str) else json.dumps(body)
            assert tenant.usage(sent, kind).status_code == 200, kind
