"""Schedule and settings of bill runs on their page; what would begin is asked before it is saved."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import pytest
from platform_under_test import READER, Platform, start
from playwright.sync_api import Browser
from test_front_browser import PHONE, WIDE, findings, signed_in

from storage.sql import audit, billing_settings

pytestmark = pytest.mark.postgres
PATH = "/settings/bill-runs"
FORM = {"interval": "", "window": "0", "times_last": "3", "change_percent": "50", "limit": "", "rails": "1"}


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def hidden(page: str) -> dict[str, str]:
    """The fields that a person does not see: the form's token and the version it was made of."""
    return {name: re.findall(rf'name="{name}" value="([^"]*)"', page)[-1] for name in ("form_token", "version")}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform of its own: what would begin at once depends on the runs that there were."""
    running = start(tmp_path_factory.mktemp("run-settings"))
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def settings(own: Platform) -> Iterator[Platform]:
    yield own
    with own.services.database.tenant(own.tenant_id) as connection:
        billing_settings.put(connection, own.tenant_id, {}, "test", datetime(2026, 11, 24, tzinfo=UTC))


def stored(platform: Platform) -> dict[str, object]:
    with platform.services.database.tenant(platform.tenant_id) as connection:
        return dict(billing_settings.get(connection)["form"])


def test_a_schedule_asks_before_runs_begin_and_is_saved_paused_and_restored(settings: Platform) -> None:
    with closing(settings.client()) as client:
        page = client.get(PATH).text
        assert "No run begins by itself" in text_of(page)
        weekly = {**FORM, **hidden(page), "interval": "week", "window": "1:30", "limit": "25,000.50", "four_eyes": "1"}
        asked = client.post(PATH, data=weekly).text
        counted = re.search(r'name="confirmed" value="([0-9a-f]{64})"', asked)
        assert counted is not None, text_of(asked)
        assert "Nothing is saved yet" in text_of(asked)
        assert stored(settings) == {}
        assert 'value="25,000.50"' in asked
        # What is not exactly what would begin now is asked again.
        again = client.post(PATH, data={**weekly, "confirmed": "0" * 64}).text
        assert "Nothing is saved yet" in text_of(again)
        saved = text_of(client.post(PATH, data={**weekly, "confirmed": counted[1]}).text)
        assert "The settings are saved." in saved
        assert "No bill run happened" in saved
        assert "Runs begin by themselves: never, somebody starts them → weekly" in saved
        form = stored(settings)
        assert form["schedule"] == {"interval": "week", "approve": False}
        assert (form["collection_window"], form["four_eyes"]) == ("PT1H30M", True)
        assert form["guard_rails"]["limits"] == {"EUR": "25000.50"}  # type: ignore[index]
        paused = client.post(f"{PATH}/pause", data=hidden(client.get(PATH).text)).text
        assert "The schedule is paused." in text_of(paused)
        assert stored(settings)["schedule"] is None
        assert stored(settings)["collection_window"] == "PT1H30M"
        with settings.services.database.tenant(settings.tenant_id) as connection:
            newest = audit.of_action(connection, "billing settings changed", limit=1)[0]
        assert newest["before"]["schedule"]["interval"] == "week"
        back = client.post(f"{PATH}/restore", data={**hidden(paused), "entry": str(newest["id"])}).text
        assert '<option value="week" selected>' in back
        assert stored(settings)["schedule"] is None
        assert client.post(f"{PATH}/restore", data={**hidden(paused), "entry": "999999999"}).status_code == 404


@pytest.mark.parametrize(
    "other", [{"approve": "1"}, {"window": "2:30"}, {"four_eyes": ""}, {"interval": "day"}, {"rails": ""}], ids=str
)
def test_what_was_shown_is_what_is_saved_and_anything_else_is_shown_again(
    settings: Platform, other: dict[str, str]
) -> None:
    """As many runs as were shown are not yet the same runs, nor do they go as far by themselves."""
    with closing(settings.client()) as client:
        weekly = {**FORM, **hidden(client.get(PATH).text), "interval": "week", "window": "1:30", "four_eyes": "1"}
        confirmed = re.findall(r'name="confirmed" value="([^"]+)"', client.post(PATH, data=weekly).text)[0]
        changed = client.post(PATH, data={**weekly, **other, "confirmed": confirmed})
        assert changed.status_code == 409
        assert "no longer what was shown" in text_of(changed.text)
        assert stored(settings) == {}
        now_shown = re.findall(r'name="confirmed" value="([^"]+)"', changed.text)[0]
        assert "are saved" in text_of(client.post(PATH, data={**weekly, **other, "confirmed": now_shown}).text)
        assert stored(settings)["schedule"] is not None


def test_letting_runs_go_on_by_themselves_shows_those_that_are_due_already(settings: Platform) -> None:
    with closing(settings.client()) as client:
        weekly = {**FORM, **hidden(client.get(PATH).text), "interval": "week"}

        def confirmed_of(page: str) -> str:
            return re.findall(r'name="confirmed" value="([0-9a-f]{64})"', page)[0]

        client.post(PATH, data={**weekly, "confirmed": confirmed_of(client.post(PATH, data=weekly).text)})
        approving = {**weekly, **hidden(client.get(PATH).text), "approve": "1"}
        asked = client.post(PATH, data=approving).text
        assert "Nothing is saved yet" in text_of(asked)
        assert stored(settings)["schedule"] == {"interval": "week", "approve": False}
        client.post(PATH, data={**approving, "confirmed": confirmed_of(asked)})
        assert stored(settings)["schedule"] == {"interval": "week", "approve": True}
        # The other way nothing begins that would not have: nothing is asked.
        client.post(PATH, data={**weekly, **hidden(client.get(PATH).text)})
        assert stored(settings)["schedule"] == {"interval": "week", "approve": False}


def test_what_is_wrong_is_told_at_its_field_and_nothing_typed_is_lost(settings: Platform) -> None:
    with closing(settings.client()) as client:
        page = client.get(PATH).text
        typed = {**FORM, **hidden(page), "window": "two days", "times_last": "-1", "limit": "plenty"}
        answer = client.post(PATH, data=typed)
        assert answer.status_code == 422
        shown = text_of(answer.text)
        assert "Collection window: hours from 0 to 1,440, like 72 or 1:30" in shown
        assert "a number above 0" in shown
        assert "an amount of 0 or more" in shown
        for value in ("two days", "-1", "plenty"):
            assert f'value="{value}"' in answer.text
        assert stored(settings) == {}


def test_a_change_by_somebody_else_is_not_overwritten_unseen(settings: Platform) -> None:
    with closing(settings.client()) as client:
        old = hidden(client.get(PATH).text)
        client.post(PATH, data={**FORM, **old, "window": "5"})
        late = client.post(PATH, data={**FORM, **old, "window": "7"})
        assert late.status_code == 412
        assert "in the meantime" in text_of(late.text)
        assert 'value="7"' in late.text
        assert stored(settings)["collection_window"] == "PT5H"
        client.post(PATH, data={**FORM, **hidden(late.text), "window": "7"})
        assert stored(settings)["collection_window"] == "PT7H"


def test_keys_that_the_page_does_not_show_stay(settings: Platform) -> None:
    kept = {"guard_rails": {"limits": {"USD": "9000.00", "EUR": "1.00"}, "new_country": False}}
    with settings.services.database.tenant(settings.tenant_id) as connection:
        billing_settings.put(connection, settings.tenant_id, kept, "test", datetime(2026, 11, 24, tzinfo=UTC))
    with closing(settings.client()) as client:
        client.post(PATH, data={**FORM, **hidden(client.get(PATH).text), "limit": ""})
    assert stored(settings)["guard_rails"]["limits"] == {"USD": "9000.00"}  # type: ignore[index]


def test_who_may_not_change_settings_reads_them_and_forms_of_others_are_refused(settings: Platform) -> None:
    with closing(settings.client(READER)) as client:
        page = client.get(PATH)
        assert page.status_code == 200
        assert "Save the settings" not in page.text
        token = re.findall(r'name="form_token" value="([^"]*)"', page.text)[0]
        assert client.post(PATH, data={**FORM, "form_token": token}).status_code == 403
        assert client.post(f"{PATH}/pause", data={"form_token": token}).status_code == 403
        assert client.post(f"{PATH}/restore", data={"form_token": token, "entry": "1"}).status_code == 403
    with closing(settings.client()) as client:
        assert client.post(PATH, data={**FORM, "form_token": "forged"}).status_code == 403
    assert stored(settings) == {}


@pytest.mark.browser
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_the_page_has_no_finding_and_nothing_is_wider_than_the_screen(
    chromium: Browser, settings: Platform, size: tuple[int, int]
) -> None:
    with signed_in(chromium, settings, size) as (page, odd):
        page.goto(PATH)
        assert findings(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        page.fill("#window", "72")
        page.select_option("#interval", "month")
        page.get_by_role("button", name=re.compile("Save the settings")).click()
        if page.locator("#begins").count():
            assert findings(page) == []
            page.locator("#begins button").click()
        page.wait_for_url("**?done=saved")
        assert findings(page) == []
        folder = os.environ.get("CLOUDBILLING_PICTURES")
        if folder and size == WIDE:
            page.screenshot(path=f"{folder}/bill-run-settings.png", full_page=True)
        page.get_by_role("button", name="Pause…").click()
        page.locator("#pause button.danger").click()
        page.wait_for_url("**?done=paused")
        assert odd == []
