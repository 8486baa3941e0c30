"""Phases and add-ons on the pages of contracts and plans, in plain words."""

import re
from datetime import UTC, datetime

import httpx
import pytest
from platform_under_test import Platform

from storage.master_chain import MasterChain
from storage.sql import steps as master_steps

pytestmark = pytest.mark.postgres

FLAT = {
    "code": "base",
    "name": "Seat",
    "kind": "recurring",
    "price": {"model": "flat", "amount": "31"},
    "tax": "phased",
}
PHASES = [
    {"code": "trial", "name": "Trial", "for": "14 days", "free": True},
    {"code": "intro", "name": "Introduction", "for": "2 months", "discount": "50"},
    {"code": "3", "for": "1 month", "prices": {"base": {"model": "flat", "amount": "20"}}, "minimum": "25"},
    {},
]
PLAN = {
    "code": "phased",
    "currency": "EUR",
    "interval": "month",
    "trial_end": "cancel",
    "charges": [FLAT],
    "phases": PHASES,
}
STEPS = [
    {"tax_code": {"code": "phased", "percents": [{"from": "2000-01-01", "percent": "19"}]}},
    {"publish": {"plan": PLAN}},
    {"publish": {"plan": {**PLAN, "code": "extra", "phases": None, "trial_end": None}}},
    {"customer": {"code": "ZZ-phased", "name": "Phased"}},
    {
        "at": "2026-10-10",
        "subscribe": {"code": "ZZ-1", "customer": "ZZ-phased", "plan": "phased", "trial_end": "continue"},
    },
    {
        "at": "2026-10-20",
        "add_on": {"subscription": "ZZ-1", "code": "seats", "plan": "extra", "quantities": {"base": "3"}},
    },
    {"at": "2026-10-25", "pause": {"subscription": "ZZ-1"}},
    {"at": "2026-10-27", "resume": {"subscription": "ZZ-1"}},
    {"at": "2026-11-01", "remove_add_on": {"subscription": "ZZ-1", "code": "seats"}},
    {"at": "2026-11-20", "subscribe": {"code": "ZZ-2", "customer": "ZZ-phased", "plan": "phased"}},
]


@pytest.fixture(scope="module")
def client(platform: Platform) -> httpx.Client:
    services = platform.services
    with services.database.tenant(platform.tenant_id) as connection:
        change = master_steps.append_steps(connection, platform.tenant_id, STEPS, "test", now=datetime.now(UTC))
    MasterChain(services.store).project(services.database, platform.tenant_id, up_to=change.number)
    return platform.client()


def words(client: httpx.Client, path: str, language: str = "en") -> str:
    answer = client.get(path, headers={"Accept-Language": language})
    assert answer.status_code == 200, answer.text
    return " ".join(re.sub(r"<[^>]+>", " ", answer.text).split())


def test_a_subscription_shows_its_phases_with_their_days_and_its_add_ons(client: httpx.Client) -> None:
    page = words(client, "/subscriptions/ZZ-1")
    for said in (
        "Trial ended 10–23 Oct 2026 free: usage is counted and costs nothing Introduction",
        "Introduction active 24 Oct – 23 Dec 2026 50 % on all charges",
        "Phase 3 not started 24 Dec 2026 – 23 Jan 2027 other prices for base; at least 25.00 EUR a period",
        "Phase 4 not started from 24 Jan 2027 as the plan says",
        "seats ended 20–31 Oct 2026 extra 1, base: 3",
        "Add-on seats removed (at once)",
        "Went on",
        "Paused",
    ):
        assert said in page, (said, page)


def test_in_a_trial_the_page_says_that_nothing_is_charged_and_how_it_ends(client: httpx.Client) -> None:
    english, german = words(client, "/subscriptions/ZZ-2"), words(client, "/subscriptions/ZZ-2", "de")
    assert "of the plan; nothing is charged in this phase" in english
    assert "then the subscription ends, unless a plan is chosen before" in english
    assert "Introduction" not in english  # it would begin after the end
    assert "danach endet das Abonnement, wenn vorher kein Tarif gewählt wird" in german


def test_a_plan_shows_its_phases_with_their_lengths(client: httpx.Client) -> None:
    page = words(client, "/plans/phased", "de")
    assert "Trial 14 Tage kostenlos: Verbrauch wird gezählt und kostet nichts; danach endet" in page
    assert "Introduction 2 Monate 50 % auf alle Preisbestandteile" in page
    assert "Phase 4 von da an wie im Tarif" in page
