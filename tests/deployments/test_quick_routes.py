"""Usage is answered in front of the framework's routing, by the very route that the framework has."""

import json
from typing import Any

import pytest
import structlog

from deployments.quick_routes import QuickRoutes

pytestmark = pytest.mark.postgres
LINE = (
    '{"source":"s","id":"%s","type":"storage.write","customer":"acme","time":"2026-01-02T03:04:05Z","data":{"gb":"1"}}'
)


def test_the_framework_answers_as_the_short_way_does(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same requests both ways: what is stored, refused and forbidden, with the same status, headers and words."""
    tenant = api.tenant()
    tenant.catalog()
    reader = tenant.key_with("usage:read")

    def answers(mark: str) -> list[tuple[int, dict[str, str], Any]]:
        sent = [
            tenant.usage(LINE % mark),
            tenant.usage(LINE % mark),
            tenant.usage("\n".join([LINE % f"{mark}{number}" for number in range(200)] + ["no json"])),
            tenant.usage("no json"),
            tenant.usage(b"", "application/json"),
            tenant.usage("x", "text/plain"),
            tenant.usage(LINE % mark, Master="x"),
            tenant.usage(b"\x1f\x8b", **{"Content-Encoding": "gzip"}),
            api.http.post("/v1/usage", content=LINE % mark),
            api.http.post("/v1/usage", content=LINE % mark, headers={"Authorization": "Bearer no"}),
            api.http.post("/v1/usage", content=LINE % mark, headers={"Authorization": f"Bearer {reader}"}),
        ]
        kept = ("content-type", "retry-after", "www-authenticate", "ratelimit", "ratelimit-policy")
        return [
            (one.status_code, {name: one.headers[name] for name in kept if name in one.headers}, one.json())
            for one in sent
        ]

    quick = answers("a")
    monkeypatch.setattr(QuickRoutes, "__call__", lambda self, scope, receive, send: self._app(scope, receive, send))
    slow = answers("b")
    assert [one[:2] for one in quick] == [one[:2] for one in slow]
    words = [json.dumps([one[2] for one in each]) for each in (quick, slow)]
    assert words[0].replace('"a', '"b') == words[1].replace('"a', '"b')
    assert [one[0] for one in quick] == [200, 200, 200, 422, 400, 415, 422, 400, 401, 401, 403]


def test_a_mistake_of_ours_is_answered_as_one(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = api.tenant()

    async def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(api.app.state.usage_groups, "send", broken)
    answer = tenant.usage(LINE % "x")
    assert answer.status_code == 500
    assert answer.json()["code"] == "error"
    assert "bug" not in answer.text


def test_requests_of_a_group_are_one_line_of_the_log(api: Any) -> None:
    tenant = api.tenant()
    with structlog.testing.capture_logs() as written:
        tenant.usage(LINE % "g1")
        tenant.usage("no json")
    told = [(one["event"], one.get("requests"), one.get("events"), one.get("status")) for one in written]
    assert told == [("usage", 1, 1, None), ("usage", 1, 0, None), ("request", None, None, 422)]
