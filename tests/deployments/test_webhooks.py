"""Alerts reach endpoints: signed, at least once under one id, later again, dead at last, and replayed."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from actors.budget_desk import BudgetDesk
from actors.webhook_reconciler import HELD_FOR, WebhookReconciler
from billing.webhooks import TRIES_MAX, is_signed
from storage.gateways.webhook_http import WebhookHttp
from storage.sql import webhooks
from tests.deployments.conftest import Api, Tenant
from tests.deployments.test_budgets import budgeted, use

pytestmark = pytest.mark.postgres


@dataclass
class Endpoint:
    """A server of a customer: keeps what came, answers what it is told to."""

    url: str = ""
    status: int = 204
    came: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    hangs: threading.Event | None = None

    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.came]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.came.append(({name.lower(): value for name, value in self.headers.items()}, body))
            if made.hangs is not None:
                made.hangs.wait(5)
            self.send_response(made.status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    yield made
    server.shutdown()
    server.server_close()


@dataclass
class World:
    api: Api
    tenant: Tenant
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def reconciler(self, timeout_s: float = 3.0) -> WebhookReconciler:
        """A new process: it knows nothing."""
        services = self.api.services
        http = WebhookHttp(services.outbound, timeout_s=timeout_s)
        return WebhookReconciler(services.database, BudgetDesk(services.router), http, lambda: self.now)

    def hook(self, url: str, **form: Any) -> dict[str, Any]:
        answer = self.tenant.post("/v1/webhooks", {"url": url, **form})
        assert answer.status_code == 201, answer.text
        self.now = datetime.now(UTC)
        return dict(answer.json())

    def alert(self) -> str:
        code = budgeted(self.tenant, {"amount": "10", "period": "month", "thresholds": ["50"]})
        use(self.tenant, code, "60", "2026-03-05T10:00:00+01:00")
        [alert] = self.tenant.get(f"/v1/alerts?customer={code}").json()["items"]
        self.now = datetime.now(UTC)
        return str(alert["id"])

    def deliveries(self, **query: str) -> list[dict[str, Any]]:
        asked = "&".join(f"{name}={value}" for name, value in query.items())
        return list(self.tenant.get(f"/v1/webhook-deliveries?{asked}").json()["items"])


@pytest.fixture
def world(api: Api) -> World:
    tenant = api.tenant()
    tenant.catalog()
    return World(api, tenant)


def test_an_alert_is_told_once_signed_and_under_its_own_id(
    world: World, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "CLOCKS_DIFFER", timedelta(0))
    before = world.alert()
    hook = world.hook(endpoint.url, description="on-call")
    alert = world.alert()
    assert hook["secret"] not in world.tenant.get("/v1/webhooks").text
    for _ in range(3):
        world.reconciler().round()  # a new process each time: it reads all alerts again
    [(headers, body)] = endpoint.came
    told = json.loads(body)
    assert is_signed(headers, body, hook["secret"], datetime.now(UTC))
    assert headers["webhook-id"] == told["data"]["id"] == alert != before
    assert (told["type"], told["data"]["threshold"]) == ("budget.threshold_crossed", "50")
    assert (told["data"]["spent"], told["data"]["currency"]) == ("6.00", "EUR")
    [delivery] = world.deliveries()
    assert (delivery["state"], delivery["last_status"], delivery["tries"]) == ("delivered", 204, 1)


def test_a_process_that_dies_after_the_post_tells_it_again_under_the_same_id(world: World, endpoint: Endpoint) -> None:
    world.hook(endpoint.url)
    alert = world.alert()
    dying = world.reconciler()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(webhooks, "delivered", _die)
        dying.round()
    assert endpoint.ids() == [alert]
    world.reconciler().round()
    assert endpoint.ids() == [alert]  # claimed: nobody takes it yet
    world.now += HELD_FOR + timedelta(seconds=1)
    world.reconciler().round()
    assert endpoint.ids() == [alert, alert]
    world.now += timedelta(days=9)
    world.reconciler().round()
    assert endpoint.ids() == [alert, alert]


def _die(*_: object) -> None:
    raise SystemExit("killed here")


def test_what_is_refused_comes_later_dies_at_last_and_can_be_replayed(world: World, endpoint: Endpoint) -> None:
    hook = world.hook(endpoint.url)
    alert = world.alert()
    endpoint.status = 500
    reconciler = world.reconciler()
    for tries in range(1, TRIES_MAX + 1):
        reconciler.round()
        reconciler.round()  # not before its time
        assert endpoint.ids() == [alert] * tries
        world.now += timedelta(days=1)
    [dead] = world.deliveries(state="dead")
    assert (dead["tries"], dead["last_status"], dead["next_at"]) == (TRIES_MAX, 500, None)
    reconciler.round()
    assert len(endpoint.came) == TRIES_MAX
    assert world.tenant.post("/v1/webhook-deliveries/replay", {"ids": [dead["id"] + 1_000]}).json() == {"replayed": 0}
    assert world.tenant.post("/v1/webhook-deliveries/replay", {"ids": [dead["id"]]}).json() == {"replayed": 1}
    endpoint.status = 200
    world.now = datetime.now(UTC) + timedelta(seconds=1)
    world.reconciler().round()
    assert endpoint.ids() == [alert] * (TRIES_MAX + 1)
    assert is_signed(*endpoint.came[-1], hook["secret"], world.now)
    assert world.tenant.post("/v1/webhook-deliveries/replay", {}).json() == {"replayed": 0}  # delivered ones stay


def test_one_that_hangs_holds_up_nobody_else(world: World, endpoint: Endpoint) -> None:
    slow, quick = Endpoint(), endpoint
    slow.hangs = endpoint.hangs  # none: the slow one is a port where nobody answers
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        world.hook(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        world.hook(quick.url)
        alerts = {world.alert() for _ in range(4)}
        reconciler = world.reconciler(timeout_s=0.3)
        for _ in range(4):
            reconciler.round()
    assert set(quick.ids()) == alerts
    assert len(quick.came) == 4
    states = [one["state"] for one in world.deliveries()]
    assert (states.count("delivered"), states.count("waiting")) == (4, 4)


def test_gone_ends_an_endpoint_and_what_is_switched_off_hears_nothing_new(world: World, endpoint: Endpoint) -> None:
    hook = world.hook(endpoint.url)
    endpoint.status = 410
    world.alert()
    world.reconciler().round()
    [shown] = world.tenant.get("/v1/webhooks").json()["items"]
    assert shown["disabled_because"] == "it answered 410 Gone"
    world.alert()
    world.reconciler().round()
    assert len(endpoint.came) == 1
    endpoint.status = 200
    path = f"/v1/webhooks/{hook['id']}"
    headers = {"Authorization": f"Bearer {world.tenant.key}"}
    assert world.api.http.patch(path, json={"enabled": True}, headers=headers).json()["disabled_at"] is None
    third = world.alert()
    world.reconciler().round()
    heard = endpoint.ids()  # two are sent at once, in any order: the one that met the 410 comes again
    assert third in heard
    assert world.api.http.delete(path, headers=headers).json()["deleted"]
    world.alert()
    world.reconciler().round()
    assert endpoint.ids() == heard
    assert world.tenant.get("/v1/webhooks").json()["items"] == []
    assert world.api.http.delete(path, headers=headers).status_code == 404


def test_a_new_secret_and_the_old_one_sign_side_by_side_for_a_day(world: World, endpoint: Endpoint) -> None:
    hook = world.hook(endpoint.url)
    fresh = world.tenant.post(f"/v1/webhooks/{hook['id']}/secret", {}).json()["secret"]
    assert fresh != hook["secret"]
    assert world.tenant.post(f"/v1/webhooks/{hook['id']}/test", {}).status_code == 202
    world.now = datetime.now(UTC)
    world.reconciler().round()
    headers, body = endpoint.came[-1]
    assert is_signed(headers, body, fresh, world.now)
    assert is_signed(headers, body, hook["secret"], world.now)
    world.now += timedelta(hours=25)
    world.tenant.post(f"/v1/webhooks/{hook['id']}/test", {})
    world.reconciler().round()
    headers, body = endpoint.came[-1]
    assert is_signed(headers, body, fresh, world.now)
    assert not is_signed(headers, body, hook["secret"], world.now)


def test_an_alert_is_acknowledged_once_with_who_when_and_why(world: World) -> None:
    first, second = world.alert(), world.alert()
    answer = world.tenant.post(f"/v1/alerts/{first}/acknowledge", {"note": "talked to them"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["note"] == "talked to them"
    again = world.tenant.post(f"/v1/alerts/{first}/acknowledge", {"note": "other"}, key=world.tenant.key)
    assert again.json() == answer.json()
    items = world.tenant.get("/v1/alerts").json()["items"]
    assert [(one["id"], bool(one["acknowledged"])) for one in items] == [(first, True), (second, False)]
    assert [one["id"] for one in world.tenant.get("/v1/alerts?open=true").json()["items"]] == [second]
    assert world.tenant.post("/v1/alerts/alert_0/acknowledge", {}).status_code == 404
    reader = world.tenant.key_with("contracts:read")
    assert world.tenant.post(f"/v1/alerts/{second}/acknowledge", {}, key=reader).status_code == 403
    assert world.tenant.post(f"/v1/alerts/{second}/acknowledge", {"note": "x" * 1_001}).status_code == 422


def test_tenants_never_meet_and_what_is_wrong_is_said(world: World, endpoint: Endpoint) -> None:
    hook = world.hook(endpoint.url)
    other = World(world.api, world.api.tenant())
    other.tenant.catalog()
    alert = other.alert()
    world.reconciler().round()
    assert endpoint.came == []
    assert other.tenant.get("/v1/webhooks").json()["items"] == []
    assert other.tenant.post(f"/v1/webhooks/{hook['id']}/test", {}).status_code == 404
    assert world.tenant.post(f"/v1/alerts/{alert}/acknowledge", {}).status_code == 404
    for url in ("https://10.0.0.1/", "https://169.254.169.254/", "http://example.org", "x", 7):
        answer = world.tenant.post("/v1/webhooks", {"url": url})
        # Whether a name may be called by http is decided by where it leads, when it is called.
        assert answer.status_code == (201 if url == "http://example.org" else 422), url
    assert world.tenant.post("/v1/webhooks", {"url": endpoint.url, "event_types": ["x"]}).status_code == 422
    reader = world.tenant.key_with("contracts:write")
    assert world.tenant.post("/v1/webhooks", {"url": endpoint.url}, key=reader).status_code == 403
    assert world.tenant.get("/v1/webhook-deliveries?state=lost").status_code == 422
