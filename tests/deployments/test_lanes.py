"""Lanes over REST, for who runs the platform: what they have, a move, a spread, and who may."""

from typing import Any

from tests.deployments.conftest import Api, bearer
from tests.deployments.test_amendments_over_rest import event, quantity, send


def call(api: Api, method: str, path: str, body: Any = None, key: str = "") -> Any:
    return api.http.request(method, path, json=body, headers=bearer(key or api.platform_key))


def lanes(api: Api) -> dict[int, list[int]]:
    return {one["lane"]: one["owned"] for one in call(api, "GET", "/v1/lanes").json()["items"]}


def test_a_partition_moves_and_moves_back_and_no_tenant_sees_a_difference(api: Api) -> None:
    tenant = api.tenant(kind="test", test_clock="2026-01-10")
    tenant.catalog()
    send(tenant, *(event(f"e{number}") for number in range(10)))
    before = lanes(api)
    assert sorted(one for owned in before.values() for one in owned) == list(range(256))
    partition, source = next((owned[0], lane) for lane, owned in before.items() if owned)
    target = next(lane for lane in before if lane != source)
    answer = call(api, "POST", "/v1/lanes/moves", {"partition": partition, "lane": target})
    if answer.status_code == 409:  # other tests of this process made a budget or a reservation there
        assert "cannot move now" in answer.json()["detail"]
        return
    assert answer.json()["moved"], answer.text
    assert partition in lanes(api)[target]
    assert not call(api, "POST", "/v1/lanes/moves", {"partition": partition, "lane": target}).json()["moved"]
    send(tenant, event("e10"), event("e1"))
    assert quantity(tenant) == "11"
    assert call(api, "POST", "/v1/lanes/moves", {"partition": partition, "lane": source}).json()["moved"]
    assert lanes(api) == before


def test_only_who_runs_the_platform_may_and_what_makes_no_sense_is_refused(api: Api) -> None:
    tenant = api.tenant()
    for method, path, body in (
        ("GET", "/v1/lanes", None),
        ("POST", "/v1/lanes/moves", {"partition": 1, "lane": 1}),
        ("POST", "/v1/lanes/spread", {"lanes": [0]}),
    ):
        assert call(api, method, path, body, key=tenant.key).status_code == 403
    assert call(api, "POST", "/v1/lanes/moves", {"partition": 256, "lane": 1}).status_code == 422
    assert call(api, "POST", "/v1/lanes/moves", {"partition": 1, "lane": 999}).status_code == 409
    for wrong in ([], [-1], ["0"], "0", [99_999]):
        assert call(api, "POST", "/v1/lanes/spread", {"lanes": wrong}).status_code == 422, wrong
    same = sorted(lane for lane, owned in lanes(api).items() if owned)
    assert call(api, "POST", "/v1/lanes/spread", {"lanes": same}).json()["lanes"] == same
