"""Lanes over REST, for who runs the platform: what they have, a move, a spread, and who may."""

import json
import re
from typing import Any

import pytest
import typer

from cluster.cli import context
from cluster.cli import lanes as commands
from cluster.client import Client
from tests.deployments.conftest import Api, bearer, spread_over
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


def test_the_plan_says_what_lanes_do_and_changes_nothing(api: Api) -> None:
    before = lanes(api)
    plan = call(api, "GET", "/v1/lanes/plan").json()
    assert (plan["do"], plan["moves"]) == ("stay", 0)
    assert "lanes_max is 0" in plan["why"]
    assert [one["lane"] for one in plan["loads"]] == [lane for lane, owned in before.items() if owned]
    assert lanes(api) == before
    tenant = api.tenant(kind="test")
    assert call(api, "GET", "/v1/lanes/plan", key=tenant.key).status_code == 403


def test_an_operator_drains_a_lane_and_fills_it_again_on_the_command_line(
    api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def client(url: str | None = None) -> Client:
        return Client("http://testserver", api.platform_key, http=api.http)

    monkeypatch.setattr(context, "platform_client", client)
    tenant = api.tenant(kind="test", test_clock="2026-01-10")
    tenant.catalog()
    send(tenant, *(event(f"e{number}") for number in range(10)))
    before = lanes(api)
    active = [lane for lane, owned in before.items() if owned]
    last = active[-1]

    def printed() -> Any:
        found = re.search(
            r"^\{$.*?^\}$", capsys.readouterr().out, re.DOTALL | re.MULTILINE
        )  # the server's log beside it
        assert found is not None
        return json.loads(found[0])

    commands.drain(last, True, None, True)
    plan = printed()
    assert len(plan["moves"]) == len(before[last])
    assert lanes(api) == before, "a dry run moves nothing"
    commands.drain(last, False, None, True)
    assert printed() == {"lanes": active[:-1], "moved": len(before[last]), "stayed": []}
    assert lanes(api)[last] == []
    commands.drain(last, False, None, True)
    assert printed()["moved"] == 0, "again does nothing"
    assert quantity(tenant) == "10"
    commands.add(False, None, True)
    assert printed()["lanes"] == active
    sizes = [len(owned) for lane, owned in lanes(api).items() if lane in active]
    assert max(sizes) - min(sizes) <= 1
    (partition, *_) = lanes(api)[last]
    commands.move(partition, active[0], None, False)
    assert f"partition {partition} is in lane {active[0]}\n" in capsys.readouterr().out
    commands.spread(active, False, None, False)
    assert "partitions moved" in capsys.readouterr().out
    commands.show(None, False)
    assert "serving" in capsys.readouterr().out
    commands.plan(None, False)
    assert "nothing would change" in capsys.readouterr().out
    with pytest.raises(typer.Exit):
        commands.move(1, 999, None, False)
    assert "there is no lane 999" in capsys.readouterr().err


def test_an_empty_lane_is_closed_for_good_and_its_number_is_not_used_again(
    api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def client(url: str | None = None) -> Client:
        return Client("http://testserver", api.platform_key, http=api.http)

    monkeypatch.setattr(context, "platform_client", client)
    tenant = api.tenant(kind="test", test_clock="2026-01-10")
    tenant.catalog()
    send(tenant, *(event(f"e{number}") for number in range(10)))
    active = [lane for lane, owned in lanes(api).items() if owned]
    assert call(api, "POST", "/v1/lanes/closings", {"lane": active[0]}).status_code == 409, "it has partitions"
    assert call(api, "POST", "/v1/lanes/closings", {"lane": active[0]}, key=tenant.key).status_code == 403
    assert call(api, "POST", "/v1/lanes/closings", {"lane": -1}).status_code == 422
    new = max(lanes(api)) + 1
    spread = spread_over(api, [*active, new])
    assert (spread["left"], spread["done"], spread["moved"] > 0) == (0, True, True)
    assert call(api, "GET", "/v1/lanes").json()["spread"] == spread
    spread_over(api, active)
    commands.close(new, None, False)
    assert f"lane {new} is closed\n" in capsys.readouterr().out
    assert call(api, "POST", "/v1/lanes/closings", {"lane": new}).json() == {"lane": new, "closed": True}
    listed = call(api, "GET", "/v1/lanes").json()
    assert new in listed["closed"]
    assert new not in [one["lane"] for one in listed["items"]]
    for path, form in (("spread", {"lanes": [*active, new]}), ("moves", {"partition": 1, "lane": new})):
        refused = call(api, "POST", f"/v1/lanes/{path}", form)
        assert (refused.status_code, "close" in refused.text) == (409, True), refused.text
    assert quantity(tenant) == "10"
    free = [lane for lane, owned in lanes(api).items() if not owned]
    commands.add(True, None, True)
    added = re.search(r"^\{$.*?^\}$", capsys.readouterr().out, re.DOTALL | re.MULTILINE)
    assert added is not None
    assert json.loads(added[0])["lanes"] == sorted([*active, free[0] if free else new + 1])
