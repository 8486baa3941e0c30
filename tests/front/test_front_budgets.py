"""Budgets on the pages: what to do without one, and spent, thresholds, forecast and alerts with one."""

from __future__ import annotations

import html
import re
from contextlib import closing

import pytest
from platform_under_test import HOSTILE_CODE, NOW, Platform

from deployments.front.page import path_of
from storage.sql import steps

pytestmark = pytest.mark.postgres


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def test_a_customer_page_shows_what_budgets_have_spent_and_their_alerts(platform: Platform) -> None:
    services = platform.services
    path = path_of("customers", HOSTILE_CODE)
    with closing(platform.client()) as client:
        assert "Make one with POST /v1/budgets" in text_of(client.get(path).text)
        made = {
            "customer": HOSTILE_CODE,
            "amount": "100",
            "period": "year",
            "thresholds": ["95", {"amount": "36"}, {"amount": "1"}],
            "action": "block",
        }
        past = {"customer": HOSTILE_CODE, "amount": "20", "period": "day", "thresholds": ["50", "100"]}
        with services.database.tenant(platform.tenant_id) as connection:
            budgets = [
                {"at": NOW.isoformat(), "budget": {"code": "a-year", **made}},
                {"at": NOW.isoformat(), "budget": {"code": "a-day", **past}},
            ]
            steps.append_steps(connection, platform.tenant_id, budgets, "test", now=NOW)
        services.masters.project(services.database, platform.tenant_id)
        shown = text_of(client.get(path).text)
        assert "36.72 of 100.00 EUR warned" in shown
        assert "Left 63.28 EUR" in shown
        assert "if it goes on as it did so far" in shown
        assert re.search(r"Threshold 1\.00 EUR 1\.00 EUR crossed \d", shown)
        assert re.search(r"Threshold 36\.00 EUR 36\.00 EUR crossed \d", shown)
        assert "Threshold 95 % 95.00 EUR not reached" in shown
        alerts = shown[shown.index("Alerts Budget Threshold") :]
        assert re.search(r"a-day .{5,25} Seen 100 % Spent then 36\.72 EUR", alerts)
        assert re.search(r"a-year .{5,25} Seen 1\.00 EUR Spent then 36\.72 EUR", alerts)
        home = text_of(client.get("/").text)
        assert "36.72 EUR of 100.00 EUR, 36.7 %" in home
