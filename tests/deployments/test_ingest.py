"""POST /v1/usage: what the answer says, and every bad body of the issue; on real lanes with real master data."""

import gzip
import json
from typing import Any

import pytest
import zstandard

from deployments.bodies import Room

pytestmark = pytest.mark.postgres


def line(number: int | str, **changes: Any) -> str:
    made = {
        "source": "a",
        "id": f"e{number}",
        "type": "storage.write",
        "customer": "acme",
        "time": "2026-01-20T09:59:00+01:00",
        "data": {"gb": "1.5"},
    }
    return json.dumps(made | changes)


@pytest.fixture(scope="module")
def tenant(api: Any) -> Any:
    made = api.tenant()
    made.catalog()
    return made


def test_a_batch_says_of_each_event_what_became_of_it(tenant: Any) -> None:
    body = "\n".join([line("v1"), line("v2", customer="nobody"), "no json", line("v3", time="2026-01-20"), line("v1")])
    answer = tenant.usage(body)
    assert answer.status_code == 200, answer.text
    result = answer.json()
    assert [(each["position"], each["verdict"]) for each in result["events"]] == [
        (1, "accepted"),
        (2, "suspended"),
        (3, "rejected"),
        (4, "rejected"),
        (5, "duplicate"),
    ]
    counts = {key: result[key] for key in ("received", "accepted", "duplicates", "suspended", "rejected")}
    assert counts == {"received": 5, "accepted": 1, "duplicates": 1, "suspended": 1, "rejected": 2}
    assert [(each["position"], each["reason"]) for each in result["errors"]] == [
        (2, "unknown_customer"),
        (3, "broken_json"),
        (4, "invalid_time"),
    ]
    again = tenant.usage(line("v1")).json()
    assert again["events"] == [{"position": 1, "verdict": "duplicate"}]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data": {"gb": "many"}}, "invalid_value"),
        ({"data": {"gb": "NaN"}}, "invalid_value"),
        ({"data": {"gb": "1234567890" * 4}}, "invalid_value"),
        ({"data": {}}, "missing_property"),
        ({"type": "no.meter"}, "unknown_type"),
        ({"subscription": "none"}, "unknown_subscription"),
        ({"time": "2999-01-01T00:00:00Z"}, "future"),
    ],
)
def test_what_cannot_be_rated_is_kept_in_suspense_with_its_reason(
    tenant: Any, changes: dict[str, Any], reason: str
) -> None:
    answer = tenant.usage(line(f"suspended {reason} {changes}", **changes)).json()
    assert (answer["suspended"], answer["errors"][0]["reason"]) == (1, reason)


def test_negative_quantities_and_old_times_are_accepted(tenant: Any) -> None:
    assert tenant.usage(line("negative", data={"gb": "-2"})).json()["accepted"] == 1
    assert tenant.usage(line("old", time="1970-01-01T00:00:00Z")).status_code == 200


def test_a_broken_line_500_of_1000_costs_nothing_but_itself(tenant: Any) -> None:
    lines = [line(f"thousand-{number}") for number in range(1_000)]
    lines[499] = lines[499][:40]
    answer = tenant.usage("\n".join(lines)).json()
    assert (answer["accepted"], answer["rejected"]) == (999, 1)
    assert (answer["errors"][0]["position"], answer["errors"][0]["reason"]) == (500, "broken_json")


def test_a_large_batch_is_answered_in_short_form_and_bounded(tenant: Any) -> None:
    lines = [line(f"many-{number}", customer="acme" if number % 2 else "nobody") for number in range(5_000)]
    for send in ("\n".join(lines).encode(), gzip.compress("\n".join(lines).encode())):
        headers = {"Content_Encoding": "gzip"} if send[:1] == b"\x1f" else {}
        answer = tenant.usage(send, **headers)
        result = answer.json()
        assert "events" not in result
        assert len(answer.content) < 200_000
    assert (result["received"], result["duplicates"]) == (5_000, 5_000)


def test_zstd_and_all_content_types_are_taken(tenant: Any) -> None:
    assert tenant.usage(zstandard.compress(line("zstd").encode()), Content_Encoding="zstd").json()["accepted"] == 1
    assert tenant.usage(f"[{line('array')}]", "application/json").json()["accepted"] == 1
    assert tenant.usage(line("object"), "application/json").json()["accepted"] == 1
    cloud = {"specversion": "1.0", "subject": "acme", **json.loads(line("cloud"))}
    del cloud["customer"]
    assert tenant.usage(json.dumps(cloud), "application/cloudevents+json").json()["accepted"] == 1
    batch = json.dumps([cloud | {"id": "batch"}])
    assert tenant.usage(batch, "application/cloudevents-batch+json").json()["accepted"] == 1
    headers = {f"ce_{key}": value for key, value in cloud.items() if key != "data"} | {"ce_id": "binary"}
    assert tenant.usage('{"gb": "1"}', "application/json", **headers).json()["accepted"] == 1


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"<event/>", "application/xml", 415, "unsupported_media_type"),
        (b"x", "", 415, "unsupported_media_type"),
        (b"", "application/json", 400, "malformed"),
        (b"[{]", "application/json", 400, "malformed"),
        (b'{"a": ' + b"[" * 10_000, "application/x-ndjson", 422, "invalid_input"),
        (b"", "application/x-ndjson", 422, "invalid_input"),
        (b"not arrow", "application/vnd.apache.arrow.stream", 400, "malformed"),
        (line("x", id="").encode(), "application/json", 422, "invalid_input"),
    ],
)
def test_a_body_that_stores_nothing_is_a_problem_with_its_cause(
    tenant: Any, body: bytes, kind: str, status: int, code: str
) -> None:
    answer = tenant.usage(body, kind)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]


def test_a_single_bad_event_names_the_field_by_its_pointer(tenant: Any) -> None:
    problem = tenant.usage(line("x", time="2026-01-20T09:59:00"), "application/json").json()
    assert problem["errors"][0]["pointer"] == "/0/time"
    assert "offset" in problem["errors"][0]["detail"]


def test_zip_bombs_end_at_the_limit(tenant: Any) -> None:
    zeros = bytes(70_000_000)
    for encoding, bomb in (("gzip", gzip.compress(zeros, 1)), ("zstd", zstandard.compress(zeros))):
        answer = tenant.usage(bomb, Content_Encoding=encoding)
        assert answer.status_code == 413
    assert tenant.usage(b"no gzip", Content_Encoding="gzip").status_code == 400
    assert tenant.usage(b"x", Content_Encoding="br").status_code == 415


def test_200_mb_are_refused_without_being_read(tenant: Any) -> None:
    """By the stated length before a byte is read; without one, at the limit. The body here is never made."""
    sent = 0

    async def receive() -> dict[str, Any]:
        nonlocal sent
        sent += 1_000_000
        return {"type": "http.request", "body": bytes(1_000_000), "more_body": sent < 200_000_000}

    for length, most in ((b"200000000", 0), (None, 69_000_000)):
        sent = 0
        answers: list[dict[str, Any]] = []

        async def send(message: dict[str, Any], answers: list[dict[str, Any]] = answers) -> None:
            answers.append(message)

        headers = [(b"authorization", f"Bearer {tenant.key}".encode()), (b"content-type", b"application/json")]
        headers += [(b"content-length", length)] if length else []
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": "/v1/usage",
            "raw_path": b"/v1/usage",
            "query_string": b"",
            "headers": headers,
            "scheme": "http",
            "server": ("test", 80),
            "client": ("test", 1),
            "root_path": "",
        }
        tenant.api.http.portal.call(tenant.api.app, scope, receive, send)
        assert answers[0]["status"] == 413
        assert sent <= most


def test_more_bytes_at_once_than_there_is_room_for_are_told_to_come_back(tenant: Any) -> None:
    state = tenant.api.app.state
    room, state.room = state.room, Room(10)
    try:
        answer = tenant.usage(line("later"))
    finally:
        state.room = room
    assert (answer.status_code, answer.json()["code"]) == (429, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1
    assert tenant.usage(line("later")).json()["accepted"] == 1


def test_a_customer_is_rated_at_once_after_the_answer_that_made_it(tenant: Any) -> None:
    tenant.post("/v1/customers?at=2026-01-01", {"code": "new one", "name": "New", "country": "DE"})
    subscribe = {"code": "new s", "customer": "new one", "plan": "basic", "anchor": "calendar"}
    made = tenant.post("/v1/subscriptions?at=2026-01-01", subscribe)
    assert made.status_code == 201
    assert int(made.headers["master"]) > 1
    assert tenant.usage(line("first", customer="new one")).json()["accepted"] == 1


def test_the_same_ids_in_another_tenant_are_other_events(api: Any, tenant: Any) -> None:
    other = api.tenant()
    other.catalog()
    tenant.usage(line("shared"))
    assert other.usage(line("shared")).json()["accepted"] == 1
    assert other.get("/v1/events?customer=acme").json()["items"][0]["id"] == "eshared"
    assert len(other.get("/v1/events?customer=acme").json()["items"]) == 1
