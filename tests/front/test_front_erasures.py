"""Forgetting a customer on the page: what is in the way, what would go, and that it is asked for only after a look."""

from __future__ import annotations

from contextlib import closing

import pytest
from platform_under_test import Platform
from test_front_webhooks import text_of, token_of

from storage.sql import erasures, steps

pytestmark = pytest.mark.postgres


def test_a_look_says_what_is_in_the_way_and_nothing_is_asked_by_it(platform: Platform) -> None:
    services = platform.services
    with services.database.tenant(platform.tenant_id) as connection:
        row = connection.execute(
            "SELECT parent FROM master_records WHERE kind = 'subscription' ORDER BY code LIMIT 1"
        ).fetchone()
    assert row is not None
    with closing(platform.client()) as client:
        page = client.get("/settings/erasures")
        assert "Nobody was forgotten yet" in text_of(page.text)
        token = token_of(page.text)
        form = {"customer": row["parent"], "rule": "GDPR 17", "form_token": token}
        looked = client.post("/settings/erasures/look", data=form)
        assert looked.status_code == 409
        assert "cancel it first" in text_of(looked.text)
        assert client.post("/settings/erasures/look", data={**form, "customer": "<b>no</b>"}).status_code == 404
        assert client.post("/settings/erasures", data={**form, "form_token": "forged"}).status_code == 403
        assert client.post("/settings/erasures/look", data={**form, "rule": ""}).status_code == 422


def test_after_a_look_it_is_asked_for_and_shown(platform: Platform) -> None:
    services = platform.services
    with closing(platform.client()) as client:
        token = token_of(client.get("/settings/erasures").text)
        made = {"code": "goes-away", "name": "Goes <i>away</i>", "country": "DE"}
        with services.database.tenant(platform.tenant_id) as connection:
            steps.append_step(connection, platform.tenant_id, {"at": "2026-01-01", "customer": made}, "test")
        form = {"customer": "goes-away", "rule": "GDPR 17", "form_token": token}
        looked = client.post("/settings/erasures/look", data=form)
        assert looked.status_code == 200
        assert "What would go of goes-away" in text_of(looked.text)
        with services.database.tenant(platform.tenant_id) as connection:
            assert erasures.page(connection, after=None, limit=10) == [], "a look asks for nothing"
        asked = client.post("/settings/erasures", data=form)
        assert asked.status_code == 200
        shown = text_of(client.get("/settings/erasures").text)
        assert "erased-" in shown
        assert "asked" in shown
        assert "goes-away" not in shown, "the list says nobody's name"
