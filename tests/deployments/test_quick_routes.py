"""Usage is answered in front of the framework's routing, by the very route that the framework has."""

import json
import re
from typing import Any
from urllib.parse import quote

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


def test_reservations_are_answered_the_same_both_ways(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids in the path, lists, what is refused, and what is no request of these routes at all."""
    tenant = api.tenant()
    tenant.catalog()
    step = {"at": "2026-01-01", "top_up": {"customer": "acme", "amount": "50.00", "kind": "purchased"}}
    assert tenant.post("/v1/steps", [step]).status_code == 201
    reader = {"Authorization": f"Bearer {tenant.key_with('usage:read')}"}

    def answers(mark: str) -> list[tuple[int, dict[str, str], str]]:
        ask = {"customer": "acme", "id": f"{mark}1", "amount": "2.00"}
        odd = {**ask, "id": f"{mark} 2/ü"}
        sent = [
            tenant.post("/v1/reservations", ask),
            tenant.post("/v1/reservations", [odd, {"id": f"{mark}3"}]),
            tenant.post("/v1/reservations", {"id": f"{mark}3"}),
            tenant.post(f"/v1/reservations/{mark}1/commit", {"amount": "1.00", "more": "x"}),
            tenant.post(f"/v1/reservations/{mark}1/commit", {"amount": "1.00"}),
            tenant.post(f"/v1/reservations/{mark}1/release", {}),
            tenant.post(f"/v1/reservations/{mark}9/release", {}),
            tenant.post(f"/v1/reservations/{quote(mark + ' 2', safe='')}/release", {}),
            tenant.post("/v1/reservations/commit", [{"id": f"{mark}1", "amount": "1.00"}]),
            tenant.post("/v1/reservations/release", [{"id": odd["id"]}]),
            tenant.post("/v1/reservations/release", {"id": f"{mark}1"}),
            api.http.post("/v1/reservations", json=ask, headers=reader),
            api.http.post(f"/v1/reservations/{mark}1/commit", json={}, headers=reader),
            api.http.post(f"/v1/reservations/{mark}1/commit", content="no json"),
            tenant.post(f"/v1/reservations/{mark}1/nothing", {}),
            tenant.post(f"/v1/reservations/{mark}1/x/commit", {}),
        ]
        kept = ("content-type", "retry-after", "www-authenticate", "ratelimit", "ratelimit-policy")
        return [
            (one.status_code, {name: one.headers[name] for name in kept if name in one.headers}, one.text)
            for one in sent
        ]

    quick = answers("q")
    monkeypatch.setattr(QuickRoutes, "__call__", lambda self, scope, receive, send: self._app(scope, receive, send))
    slow = answers("s")
    assert [one[:2] for one in quick] == [one[:2] for one in slow]
    assert [one[0] for one in quick] == [200, 200, 422, 422, 200, 409, 404, 404, 200, 200, 422, 403, 403, 401, 404, 404]

    def words(found: list[tuple[int, dict[str, str], str]], mark: str) -> list[str]:
        texts = [re.sub(r'"at":"[^"]*"', "", one[2]) for one in found]
        return [re.sub(rf"(?<![a-z]){mark}(?=[ %0-9])", "_", text) for text in texts]

    assert words(quick, "q") == words(slow, "s")


def test_reservations_that_travel_together_are_one_line_of_the_log(api: Any) -> None:
    tenant = api.tenant()
    tenant.catalog()
    with structlog.testing.capture_logs() as written:
        tenant.post("/v1/reservations", {"customer": "acme", "id": "l1", "amount": "2.00"})
        tenant.post("/v1/reservations/l1/release", {"customer": "acme"})
        tenant.post("/v1/reservations/l2/release", {"customer": "acme"})
    told = [(one["event"], one.get("decision"), one.get("requests"), one.get("status")) for one in written]
    lines = [("reservations", "reserve", 1, None), ("reservations", "release", 1, None)]
    assert told == [*lines, lines[1], ("request", None, None, 404)]


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
