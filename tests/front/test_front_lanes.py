"""The lanes on their page: shown, asked before anything moves, moved with a platform key only, and recorded."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from contextlib import closing

import pytest
from platform_under_test import READER, Platform, start
from playwright.sync_api import Browser
from test_front_browser import PHONE, WIDE, findings, signed_in

from deployments.access import PLATFORM_SCOPES
from storage.sql import audit, keys

pytestmark = pytest.mark.postgres
PATH = "/operations/lanes"


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
