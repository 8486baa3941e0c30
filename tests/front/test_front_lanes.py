"""The lanes on their page: shown, asked before anything moves, moved with a platform key only, and recorded."""

from __future__ import annotations

import asyncio
import html
import re
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from platform_under_test import READER, Platform, start
from playwright.sync_api import Browser
from test_front_browser import PHONE, WIDE, findings, signed_in

from billing.errors import Unavailable
from deployments.access import PLATFORM_SCOPES
from storage.sql import audit, keys

pytestmark = pytest.mark.postgres
PATH = "/operations/lanes"
ACTIONS = ("lanes change begun", "lanes change failed")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One of its own: the other tests know one lane."""
    running = start(tmp_path_factory.mktemp("lanes"), months=1, events=500)
    try:
        yield running
    finally:
        running.close()


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def token_of(page: str) -> str:
    return re.findall(r'name="form_token" value="([^"]+)"', page)[0]


def platform_key(platform: Platform, scopes: frozenset[str] = PLATFORM_SCOPES) -> str:
    now = platform.services.clock()
    with platform.services.database.system() as connection:
        return keys.create(
            connection, tenant_id=None, name="operator", scopes=sorted(scopes), actor="test", now=now
        ).key


def homes(platform: Platform) -> dict[int, set[int]]:
    shards = platform.services.router.shards  # type: ignore[attr-defined]
    return {lane: set(shard.status().owned) for lane, shard in shards.items()}


def test_a_lane_is_added_a_partition_moved_and_the_lane_drained_again(platform: Platform) -> None:
    key = platform_key(platform)
    with closing(platform.client()) as client:
        client.timeout = 300  # 128 moves, on a machine that has other things to do
        page = client.get(PATH).text
        assert "What each lane holds and does" in text_of(page)
        assert "0–255" in text_of(page)
        token = {"form_token": token_of(page)}
        only = client.post(PATH, data={**token, "action": "drain", "lane": "0"})
        assert only.status_code == 422
        assert "the only lane that has partitions" in text_of(only.text)
        spread = {**token, "action": "spread", "lanes": "0, 1"}
        asked = text_of(client.post(PATH, data=spread).text)
        assert "128 partitions would move" in asked
        assert homes(platform) == {0: set(range(256))}
        done = client.post(PATH, data={**spread, "confirmed": "1", "platform_key": key})
        assert "have moved. " in text_of(done.text)
        assert key not in done.text
        before = homes(platform)
        assert len(before[1]) == 128
        one = min(before[0])
        move = {**token, "action": "move", "partition": str(one), "lane": "1"}
        assert f"{one} from lane 0 to 1" in text_of(client.post(PATH, data=move).text)
        assert "1 partition has moved" in text_of(
            client.post(PATH, data={**move, "confirmed": "1", "platform_key": key}).text
        )
        assert one in homes(platform)[1]
        again = client.post(PATH, data=move)
        assert again.status_code == 422
        assert f"Partition {one} is in lane 1 already" in text_of(again.text)
        drain = {**token, "action": "drain", "lane": "1", "confirmed": "1", "platform_key": key}
        assert "129 partitions have moved" in text_of(client.post(PATH, data=drain).text)
        assert homes(platform) == {0: set(range(256)), 1: set()}
    with platform.services.database.tenant(platform.tenant_id) as connection:
        newest = audit.of_action(connection, "lanes changed", limit=3)
    assert [one["subject"] for one in newest] == ["drain", "move", "spread"]
    assert newest[0]["after"]["moved"] == 129
    assert key not in str(newest)


def test_spreading_that_takes_long_goes_on_by_itself_and_the_page_says_how_far_it_is(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform.services.router, "spread_answer_s", 0.0)
    key, before = platform_key(platform), homes(platform)
    new = max(before) + 1
    with closing(platform.client()) as client:
        token = {"form_token": token_of(client.get(PATH).text)}
        form = {**token, "action": "spread", "confirmed": "1", "platform_key": key}
        done = text_of(client.post(PATH, data={**form, "lanes": f"0, {new}"}).text)
        assert "go on by themselves" in done
        assert f"being spread over lanes 0, {new}" in done
        other = client.post(PATH, data={**form, "lanes": "0"})
        assert other.status_code in (409, 422), "one at a time"
        for _ in range(300):
            if "being spread" not in text_of(client.get(PATH).text):
                break
            time.sleep(0.5)
        assert len(homes(platform)[new]) == 128
        for _ in range(60):
            with platform.services.database.tenant(platform.tenant_id) as connection:
                newest = audit.of_action(connection, "lanes changed", limit=1)
            if newest and newest[0]["after"]["moved"] == 128:
                break
            time.sleep(0.5)
        assert newest[0]["after"]["moved"] == 128, "how it ended is recorded though nobody waited"
        monkeypatch.setattr(platform.services.router, "spread_answer_s", 60.0)
        client.timeout = 300
        client.post(PATH, data={**form, "action": "drain", "lane": str(new)})


@pytest.mark.parametrize("which", ["none", "forged", "tenant", "reader"])
def test_without_a_platform_key_that_may_nothing_moves(platform: Platform, which: str) -> None:
    now = platform.services.clock()
    with platform.services.database.system() as connection:
        own = keys.create(
            connection, tenant_id=platform.tenant_id, name="own", scopes=["access:write"], actor="test", now=now
        ).key
    said = {"none": "", "forged": "cb_forged", "tenant": own}
    key = said.get(which) if which in said else platform_key(platform, frozenset({"tenants:read"}))
    before = homes(platform)
    with closing(platform.client()) as client:
        token = token_of(client.get(PATH).text)
        form = {"form_token": token, "action": "spread", "lanes": f"0, {max(before) + 1}", "confirmed": "1"}
        answer = client.post(PATH, data={**form, "platform_key": key or ""})
        assert answer.status_code == 403
        assert "no valid platform key" in text_of(answer.text)
        assert client.post(PATH, data={**form, "form_token": "forged"}).status_code == 403
    assert homes(platform) == before


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"action": "spread", "lanes": "0, 900"}, "Numbers of lanes from 0 to"),
        ({"action": "spread", "lanes": "0; DROP"}, "Numbers of lanes from 0 to"),
        ({"action": "spread", "lanes": "0"}, "Nothing would move"),
        ({"action": "move", "partition": "256", "lane": "0"}, "a number from 0 to 255"),
        ({"action": "move", "partition": "1", "lane": "77"}, "There are the lanes"),
        ({"action": "drain", "lane": "x"}, "empty already"),
        ({"action": "explode"}, "action"),
    ],
)
def test_what_cannot_be_is_refused_in_words(platform: Platform, form: dict[str, str], words: str) -> None:
    with closing(platform.client()) as client:
        answer = client.post(PATH, data={**form, "form_token": token_of(client.get(PATH).text)})
    assert answer.status_code == 422
    assert words in text_of(answer.text)


def test_who_may_not_see_operations_sees_no_lanes(platform: Platform) -> None:
    with closing(platform.client(READER)) as client:
        assert client.get(PATH).status_code == 403


@pytest.mark.browser
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_the_page_has_no_finding_and_nothing_is_wider_than_the_screen(
    chromium: Browser, platform: Platform, size: tuple[int, int]
) -> None:
    with signed_in(chromium, platform, size) as (page, odd):
        page.goto(PATH)
        assert findings(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        page.fill("#over", f"0, {len(homes(platform))}")
        page.locator("#spread").locator("xpath=ancestor::section").get_by_role("button").click()
        page.wait_for_selector("#platform_key")
        assert findings(page) == []
        assert odd == []


def test_a_change_is_recorded_before_it_begins_and_when_it_fails(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trail() -> list[tuple[str, Any]]:
        with platform.services.database.tenant(platform.tenant_id) as connection:
            rows = [one for name in ACTIONS for one in audit.of_action(connection, name, limit=1)]
        return [(row["action"], row["after"]) for row in rows]

    before = homes(platform)
    partition, target = min(before[0]), max(before)
    seen: list[tuple[str, Any]] = []

    async def move(number: int, lane: int) -> Any:
        seen.extend(await asyncio.to_thread(trail))
        raise Unavailable("the owner does not answer")

    monkeypatch.setattr(platform.services.router, "move", move)
    form = {"action": "move", "partition": str(partition), "lane": str(target), "confirmed": "1"}
    with closing(platform.client()) as client:
        form["form_token"] = token_of(client.get(PATH).text)
        answer = client.post(PATH, data={**form, "platform_key": platform_key(platform)})
    assert answer.status_code == 503
    moves = [{"partition": partition, "from": 0, "to": target}]
    assert [said["moves"] for name, said in seen if name == ACTIONS[0]] == [moves], "it was there before the move began"
    after = dict(trail())
    assert (after[ACTIONS[1]]["moves"], after[ACTIONS[1]]["why"]) == (moves, "the owner does not answer")


def test_a_move_needs_its_own_two_lanes_only(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    router, before = platform.services.router, homes(platform)
    look = router.status

    def without(*lanes: int) -> None:
        async def status() -> Any:
            found = await look()
            left = tuple(one for one in found.lanes if one.lane not in lanes)
            return replace(found, lanes=left, unreachable=lanes)

        monkeypatch.setattr(router, "status", status)

    target = max(before)
    form = {"action": "move", "partition": str(min(before[0])), "lane": str(target)}
    with closing(platform.client()) as client:
        form["form_token"] = token_of(client.get(PATH).text)
        without(9)
        assert client.post(PATH, data=form).status_code == 200
        spread = client.post(PATH, data={**form, "action": "spread", "lanes": f"0, {target}"})
        assert (spread.status_code, "9" in text_of(spread.text)) == (422, True)
        for silent in (0, target):
            without(silent)
            assert client.post(PATH, data=form).status_code == 422


def test_on_a_cluster_the_page_says_on_which_node_each_lane_is_and_which_is_to_leave(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    router, look = platform.services.router, platform.services.router.status

    async def status() -> Any:
        return replace(await look(), nodes={0: "4f1c0e77aa12bb34cc56"}, leaving=frozenset({"4f1c0e77aa12bb34cc56"}))

    with closing(platform.client()) as client:
        assert "on node" not in text_of(client.get(PATH).text), "one machine has no nodes to tell apart"
        monkeypatch.setattr(router, "status", status)
        page = text_of(client.get(PATH).text)
    assert "on node 4f1c0e77aa12 " in page
    assert "A node is to leave" in page
