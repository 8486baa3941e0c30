"""Webhooks, limits of keys and acknowledged alerts on the pages."""

from __future__ import annotations

import html
import re
from contextlib import closing

import pytest
from platform_under_test import HOSTILE_CODE, NOW, Platform

from deployments.front.page import path_of
from storage.sql import keys, steps, webhooks

pytestmark = pytest.mark.postgres


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def token_of(page: str) -> str:
    found = re.search(r'name="form_token" value="([^"]+)"', page)
    assert found is not None
    return found[1]


def test_an_endpoint_is_added_tested_switched_off_and_removed(platform: Platform) -> None:
    services = platform.services
    with closing(platform.client()) as client:
        page = client.get("/settings/webhooks").text
        assert "Nobody is told yet" in text_of(page)
        token = token_of(page)
        wrong = client.post("/settings/webhooks", data={"url": "https://10.0.0.1/", "form_token": token})
        assert wrong.status_code == 422
        assert "10.0.0.1 is no public address" in text_of(wrong.text)
        url = "https://hooks.example.org/<b>x</b>"
        assert client.post("/settings/webhooks", data={"url": url, "form_token": "forged"}).status_code == 403
        form = {"url": url, "description": "on-call", "form_token": token}
        nothing = client.post("/settings/webhooks", data=form)
        assert nothing.status_code == 422
        assert "Choose one type of event at least" in text_of(nothing.text)
        assert 'value="bill_run.missed" checked' in page
        assert 'value="invoice.finalised" checked' not in page
        chosen = ["bill_run.missed", "invoice.finalised", "no.such_type"]
        made = client.post("/settings/webhooks", data={**form, "event_types": chosen})
        secret = re.search(r"whsec_[A-Za-z0-9+/=]{44}", html.unescape(made.text))
        assert secret is not None
        assert "<b>x</b>" not in made.text
        assert secret[0] not in client.get("/settings/webhooks").text
        with services.database.tenant(platform.tenant_id) as connection:
            [one] = webhooks.endpoints(connection)
        assert one["event_types"] == ["bill_run.missed", "invoice.finalised"]
        path = f"/settings/webhooks/{one['id']}"
        assert client.post(f"{path}/test", data={"form_token": token}, follow_redirects=False).status_code == 303
        shown = text_of(client.get("/settings/webhooks").text)
        assert "webhook.test" in shown
        assert "1 waiting, 0 given up, 0 delivered" in shown
        client.post(f"{path}/switch", data={"form_token": token})
        assert "Switch on" in text_of(client.get("/settings/webhooks").text)
        client.post(f"{path}/delete", data={"form_token": token})
        shown = text_of(client.get("/settings/webhooks").text)
        assert "Nobody is told yet" in shown
        assert "0 waiting, 1 given up" in shown


def test_a_key_gets_its_limits_on_the_page(platform: Platform) -> None:
    with closing(platform.client()) as client:
        token = token_of(client.get("/settings/keys/new").text)
        form = {"name": "meter", "scopes": "usage:write", "form_token": token}
        wrong = client.post("/settings/keys", data={**form, "events_per_s": "many", "requests_per_s": "7"})
        assert wrong.status_code == 422
        assert 'value="7"' in wrong.text
        made = client.post("/settings/keys", data={**form, "events_per_s": "20000", "requests_per_s": ""})
        assert "20,000 events/s" in text_of(made.text)
    with platform.services.database.tenant(platform.tenant_id) as connection:
        limits = [key["limits"] for key in keys.page(connection, after=None, limit=100) if key["name"] == "meter"]
    assert limits == [{"events_per_s": 20_000}]


def test_an_alert_is_marked_as_seen_on_the_customer_s_page(platform: Platform) -> None:
    services = platform.services
    path = path_of("customers", HOSTILE_CODE)
    budget = {"code": "seen", "customer": HOSTILE_CODE, "amount": "1", "period": "year", "thresholds": ["1"]}
    with services.database.tenant(platform.tenant_id) as connection:
        steps.append_steps(connection, platform.tenant_id, [{"at": NOW.isoformat(), "budget": budget}], "test", now=NOW)
    services.masters.project(services.database, platform.tenant_id)
    with closing(platform.client()) as client:
        page = client.get(path).text
        action = re.search(
            r'action="(/alerts/alert_[0-9a-f]+/acknowledge)"[^>]*>(?:(?!</form>).)*the alert seen 1 %', page
        )
        assert action is not None
        client.post(action[1], data={"form_token": token_of(page)})
        assert re.search(r"seen by user \S+", text_of(client.get(path).text))
        assert client.post("/alerts/alert_0/acknowledge", data={"form_token": token_of(page)}).status_code == 404
