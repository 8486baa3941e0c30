"""Limits of a key: what is allowed passes, what is more is told when to come back, and nobody else notices."""

import random
from typing import Any
from uuid import uuid4

import pytest

from billing.errors import InvalidInput, Overloaded
from deployments.key_limits import BUCKETS_MAX, KeyBuckets, KeyLimits, parse_limits
from tests.deployments.conftest import Api, Tenant, bearer


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def took(buckets: KeyBuckets, limits: KeyLimits, count: int = 1, key: str = "k", what: str = "requests") -> bool:
    try:
        buckets.take(key, limits, what, count)
    except Overloaded:
        return False
    return True


def test_never_more_than_the_burst_and_the_rate_and_never_less_for_who_waits() -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for _ in range(50):
        clock = Clock()
        rate, burst = chance.randrange(1, 50), chance.randrange(1, 100)
        buckets, limits = KeyBuckets(now_s=clock), KeyLimits(rate, burst)
        passed = [0.0]
        began, counted = clock.now, 0
        for _ in range(400):
            clock.now += chance.choice([0.0, 0.001, 0.02, 0.5])
            if took(buckets, limits):
                counted += 1
                passed.append(clock.now)
        assert counted <= burst + rate * (clock.now - began) + 1, f"seed {seed}"
        clock.now += burst / rate + 1
        assert [took(buckets, limits) for _ in range(burst + 1)] == [True] * burst + [False], f"seed {seed}"


def test_who_comes_back_when_he_is_told_to_is_taken() -> None:
    clock = Clock()
    buckets, limits = KeyBuckets(now_s=clock), KeyLimits(None, None, 100, 200)
    assert took(buckets, limits, 5_000, what="events")  # a batch is taken whole, and paid back by waiting
    with pytest.raises(Overloaded) as refused:
        buckets.take("k", limits, "events", 1)
    wait = refused.value.context["retry_after"]
    assert wait == 49
    clock.now += wait - 1.5
    assert not took(buckets, limits, 1, what="events")
    clock.now += 1.5
    assert took(buckets, limits, 1, what="events")


def test_processes_share_and_buckets_are_bounded() -> None:
    clock = Clock()
    half, limits = KeyBuckets(2, clock), KeyLimits(10, 10)
    assert [took(half, limits) for _ in range(6)] == [True] * 5 + [False]
    for number in range(BUCKETS_MAX + 10):
        took(half, limits, key=f"k{number}")
    assert len(half._buckets) == BUCKETS_MAX


@pytest.mark.parametrize(
    ("form", "places"),
    [
        ([], [""]),
        ({"requests_per_s": 0}, ["/requests_per_s"]),
        ({"requests_per_s": True}, ["/requests_per_s"]),
        ({"requests_per_s": "5"}, ["/requests_per_s"]),
        ({"events_burst": 5}, ["/events_burst"]),
        ({"x": 1, "events_per_s": 2_000_000_000}, ["/x", "/events_per_s"]),
    ],
)
def test_wrong_limits_are_named_by_their_places(form: Any, places: list[str]) -> None:
    with pytest.raises(InvalidInput) as wrong:
        parse_limits(form)
    assert [one.pointer for one in wrong.value.errors] == [f"/limits{place}" for place in places]


# -- over HTTP ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tenant(api: Api) -> Tenant:
    made = api.tenant()
    made.catalog()
    return made


def limited(tenant: Tenant, **limits: int) -> dict[str, Any]:
    answer = tenant.post("/v1/keys", {"name": "some", "scopes": ["usage:write", "usage:read"], "limits": limits})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def send(tenant: Tenant, key: str, events: int) -> Any:
    body = [
        {
            "source": "t",
            "id": uuid4().hex,
            "type": "storage.write",
            "customer": "acme",
            "time": "2026-11-05T10:00:00Z",
            "data": {"gb": "1"},
        }
        for _ in range(events)
    ]
    return tenant.api.http.post("/v1/usage", json=body, headers=bearer(key))


@pytest.mark.postgres
def test_a_key_over_its_events_is_told_when_to_come_back_and_others_go_on(tenant: Tenant) -> None:
    made = limited(tenant, events_per_s=10, events_burst=50)
    first = send(tenant, made["key"], 45)
    assert (first.status_code, first.json()["accepted"]) == (200, 45)
    assert first.headers["ratelimit-policy"] == '"events";q=50;w=5'
    assert first.headers["ratelimit"] == '"events";r=5;t=5'
    assert send(tenant, made["key"], 45).status_code == 200  # in debt now: 40 too many
    refused = send(tenant, made["key"], 1)
    assert refused.status_code == 429
    assert 3 <= int(refused.headers["retry-after"]) <= 5
    assert refused.json()["retryable"] is True
    assert "10 events a second" in refused.json()["detail"]
    assert send(tenant, tenant.key, 100).status_code == 200
    assert "ratelimit" not in send(tenant, tenant.key, 1).headers


@pytest.mark.postgres
def test_a_key_over_its_requests_is_refused_before_its_body_is_read_and_limits_can_be_changed(tenant: Tenant) -> None:
    made = limited(tenant, requests_per_s=1, requests_burst=3)
    answers = [tenant.get("/v1/usage?customer=acme", key=made["key"]) for _ in range(5)]
    codes = [answer.status_code for answer in answers]
    assert codes[:3] == [200, 200, 200]
    assert 429 in codes[3:]
    assert answers[0].headers["ratelimit"] == '"requests";r=2;t=1'
    listed = tenant.get("/v1/keys").json()["items"]
    assert {"requests_per_s": 1, "requests_burst": 3} in [key["limits"] for key in listed]
    path = f"/v1/keys/{made['id']}"
    wrong = tenant.api.http.patch(path, json={"limits": {"requests_per_s": -1}}, headers=bearer(tenant.key))
    assert wrong.status_code == 422
    reader = tenant.key_with("access:read")
    assert tenant.api.http.patch(path, json={"limits": {}}, headers=bearer(reader)).status_code == 403
    changed = tenant.api.http.patch(path, json={"limits": {"requests_per_s": 1_000}}, headers=bearer(tenant.key))
    assert changed.json()["limits"] == {"requests_per_s": 1_000}
    assert tenant.get("/v1/usage?customer=acme", key=made["key"]).status_code == 200  # the gate has forgotten the old
    other = tenant.api.tenant()
    assert tenant.api.http.patch(path, json={"limits": {}}, headers=bearer(other.key)).status_code == 404
