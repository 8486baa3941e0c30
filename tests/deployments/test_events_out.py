"""What happens to bill runs and documents reaches endpoints out of the outbox: each once, in order, in batches."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg
import pytest

from actors import webhook_reconciler
from actors.webhook_reconciler import EVENTS_KEPT, GIVEN_UP_AFTER, RESTS, TIDY_EVERY
from billing import events
from billing.errors import InvalidInput
from billing.webhooks import is_signed
from pipelines import bill_run, document_files, run_schedule
from pipelines.bill_run import BillRunDriver
from pipelines.run_schedule import start_due
from storage.gateways.webhook_http import NotReachable
from storage.sql import outbox, webhooks
from tests.deployments.conftest import Api
from tests.deployments.test_webhooks import Endpoint, World, endpoint, world

pytestmark = pytest.mark.postgres
__all__ = ["endpoint", "world"]  # fixtures

EXAMPLES = {one.name: one.example for one in events.CATALOG}
USAGE = "".join(
    f'{{"source":"a","id":"e{number}","type":"storage.write","customer":"acme",'
    f'"time":"2026-01-{number:02}T10:00:00Z","data":{{"gb":"{number}.5"}}}}\n'
    for number in (5, 6)
)


def driver_of(api: Api) -> BillRunDriver:
    services = api.services
    return BillRunDriver(
        services.database, services.store, services.masters, services.archive, services.clock, desk=services.desk
    )


def billed(world: World, **steered: Any) -> dict[str, Any]:
    """A run up to February 2026, in which acme has an invoice the first time."""
    assert world.tenant.usage(USAGE).status_code == 200
    answer = world.tenant.post("/v1/bill-runs", {"up_to": "2026-02-01", **steered})
    world.now = datetime.now(UTC)
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def told(endpoint: Endpoint) -> list[dict[str, Any]]:
    return [json.loads(body) for _, body in endpoint.came]


def rows(world: World) -> list[dict[str, Any]]:
    with world.api.services.database.tenant(world.tenant.id) as connection:
        return [dict(row) for row in connection.execute("SELECT * FROM outbox ORDER BY id").fetchall()]


def happen(world: World, count: int, kind: str = events.INVOICE_FINALISED) -> None:
    """As if a bill run had just made so many documents for a tenant whose endpoints listen."""
    with world.api.services.database.tenant(world.tenant.id) as connection:
        connection.execute(
            "INSERT INTO outbox (tenant_id, at, kind, subject, body) SELECT %s, %s, %s, 'RE-' || n,"
            " jsonb_build_object('number', 'RE-' || n) FROM generate_series(1, %s) n ORDER BY n",
            (UUID(world.tenant.id), datetime.now(UTC), kind, count),
        )
    world.now = datetime.now(UTC)


def test_a_run_and_its_invoice_are_told_to_who_listens_signed_and_in_order(world: World, endpoint: Endpoint) -> None:
    hook = world.hook(endpoint.url, event_types=["invoice.finalised", "bill_run.done", "budget.threshold_crossed"])
    other = Endpoint()
    world.hook(endpoint.url + "/other", event_types=["bill_run.missed"])
    run = billed(world)
    for _ in range(3):
        world.reconciler().round()  # each is a new process
    first, second = sorted(told(endpoint), key=lambda one: one["data"]["sequence"])
    assert (first["type"], second["type"]) == ("invoice.finalised", "bill_run.done")
    assert first["data"].keys() == EXAMPLES["invoice.finalised"].keys()
    assert second["data"].keys() == EXAMPLES["bill_run.done"].keys()
    [invoice] = world.tenant.get("/v1/invoices").json()["items"]
    assert (first["data"]["number"], first["data"]["gross"]) == (invoice["number"], invoice["gross"])
    assert (second["data"]["run"], second["data"]["documents"]) == (run["id"], 1)
    for headers, body in endpoint.came:
        assert is_signed(headers, body, hook["secret"], datetime.now(UTC))
        assert headers["webhook-id"] == json.loads(body)["data"]["id"]
    assert other.came == []
    assert len(world.deliveries()) == 2


def test_what_nobody_listens_to_is_not_queued_and_written_once(world: World, endpoint: Endpoint) -> None:
    world.hook(endpoint.url)  # by default no message for each document
    billed(world)
    written = {row["kind"]: row["told_at"] for row in rows(world)}
    assert written["invoice.finalised"] is not None
    assert written["bill_run.done"] is None
    world.reconciler().round()
    assert [one["type"] for one in told(endpoint)] == ["bill_run.done"]
    assert len(world.deliveries()) == 1


def test_a_process_that_dies_between_queue_and_mark_tells_each_once(
    world: World, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.hook(endpoint.url, event_types=[events.INVOICE_FINALISED])
    happen(world, 3)
    queue = webhooks.add_messages

    def dies(*arguments: Any) -> int:
        assert queue(*arguments) == 3
        raise SystemExit("killed here")

    with monkeypatch.context() as patched:
        patched.setattr(webhooks, "add_messages", dies)
        with pytest.raises(SystemExit):
            world.reconciler().round()
    assert world.deliveries() == []
    # One that dies after the mark, before it delivers.
    assert world.reconciler().tell_events() == 3
    assert world.reconciler().tell_events() == 0
    world.reconciler().round()
    world.reconciler().round()
    assert [one["data"]["number"] for one in sorted(told(endpoint), key=lambda one: one["data"]["sequence"])] == [
        "RE-1", "RE-2", "RE-3",
    ]  # fmt: skip
    assert len(set(endpoint.ids())) == len(endpoint.came) == 3


def test_two_at_once_do_not_mix_the_order(world: World, endpoint: Endpoint) -> None:
    world.hook(endpoint.url, event_types=[events.INVOICE_FINALISED])
    happen(world, 5)
    database, tenant_id = world.api.services.database, world.tenant.id
    with database.tenant(tenant_id) as one:
        assert outbox.tell(one, tenant_id, world.now, 3) == 3
        with database.tenant(tenant_id) as another:
            assert outbox.tell(another, tenant_id, world.now, 3) == 0
    with database.tenant(tenant_id) as one:
        assert outbox.tell(one, tenant_id, world.now, 3) == 2
        queued = one.execute("SELECT message_id FROM webhook_deliveries ORDER BY id").fetchall()
    numbers = [int(row["message_id"].rsplit("_", 1)[1]) for row in queued]
    assert numbers == [row["id"] for row in rows(world)]


def test_a_hundred_thousand_invoices_are_not_a_hundred_thousand_statements(
    world: World, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.hook(endpoint.url, event_types=[events.INVOICE_FINALISED])
    sent: list[str] = []
    execute = psycopg.Connection.execute

    def counted(self: Any, query: Any, *arguments: Any, **options: Any) -> Any:
        sent.append(str(query))
        return execute(self, query, *arguments, **options)

    statements: list[int] = []
    for count in (10, 2_000):
        happen(world, count)
        with monkeypatch.context() as patched:
            patched.setattr(psycopg.Connection, "execute", counted)
            sent.clear()
            assert world.reconciler().tell_events() == count
        statements.append(len([query for query in sent if "outbox" in query or "webhook" in query]))
    # The same for ten and for a batch; a batch is followed by a look whether there is more.
    assert statements == [5, 5 + 1]
    with world.api.services.database.tenant(world.tenant.id) as connection:
        assert webhooks.counts(connection)["waiting"] == 2_010


def test_a_queue_for_one_endpoint_is_in_nobody_s_way(world: World, endpoint: Endpoint) -> None:
    world.hook("http://127.0.0.1:9/nobody", event_types=[events.INVOICE_FINALISED])
    world.hook(endpoint.url, event_types=[events.RUN_DONE])
    happen(world, 1_000)
    happen(world, 30, events.RUN_DONE)
    calls: list[str] = []
    reconciler = world.reconciler()
    post = reconciler.http.post

    def counted(url: str, body: bytes, headers: Any) -> Any:
        if "nobody" in url:
            calls.append(url)
            raise NotReachable("nobody answers")
        return post(url, body, headers)

    reconciler.http = SimpleNamespace(post=counted)
    reconciler.round()
    assert len(endpoint.came) == 30
    with world.api.services.database.tenant(world.tenant.id) as connection:
        row = connection.execute(
            "SELECT count(*) AS n FROM webhook_deliveries WHERE state = 'waiting' AND next_at <= %s", (world.now,)
        ).fetchone()
    assert row is not None
    assert row["n"] == 1_000 - len(calls)
    # Not a thousand tries in a row: what was in hand went back, and the endpoint rests, longer each time.
    assert 1 <= len(calls) <= webhook_reconciler.EACH_MAX
    for rest in RESTS[:2]:
        calls.clear()
        reconciler.round()
        assert calls == []
        world.now += timedelta(seconds=rest + 1)
        reconciler.round()
        assert 1 <= len(calls) <= webhook_reconciler.EACH_MAX
    with world.api.services.database.tenant(world.tenant.id) as connection:
        assert webhooks.counts(connection)["waiting"] == 1_000
    # After days of silence what never had a try is given up, and may be replayed.
    world.now += GIVEN_UP_AFTER
    reconciler._tidy()
    states = world.tenant.get("/v1/webhook-deliveries?limit=500").json()["items"]
    assert {one["state"] for one in states} >= {"dead"}
    with world.api.services.database.tenant(world.tenant.id) as connection:
        counts = webhooks.counts(connection)
    assert counts["waiting"] <= 3 * webhook_reconciler.EACH_MAX
    assert counts["dead"] == 1_000 - counts["waiting"]
    world.now = datetime.now(UTC)
    assert world.tenant.post("/v1/webhook-deliveries/replay", {}).json() == {"replayed": counts["dead"]}
    reconciler._tidied_at = None
    reconciler._tidy()
    with world.api.services.database.tenant(world.tenant.id) as connection:
        assert webhooks.counts(connection)["dead"] == 0


def test_what_is_refused_comes_again(world: World, endpoint: Endpoint) -> None:
    world.hook(endpoint.url, event_types=[events.RUN_DONE])
    happen(world, 1, events.RUN_DONE)
    endpoint.status = 503
    world.reconciler().round()
    endpoint.status = 204
    world.now += timedelta(seconds=6)
    world.reconciler().round()
    world.now += timedelta(days=9)
    world.reconciler().round()
    assert len(endpoint.came) == 2
    assert len(set(endpoint.ids())) == 1


@pytest.fixture
def scheduled(api: Api) -> Iterator[World]:
    """A tenant whose clock stands two months after it was made, with a schedule."""
    clock = datetime.now(UTC) + timedelta(days=70)
    tenant = api.tenant(kind="test", test_clock=clock.date().isoformat())
    tenant.catalog()
    answer = tenant.put("/v1/billing-settings", {"schedule": {"interval": "month"}})
    assert answer.status_code == 200, answer.text
    yield World(api, tenant)
    assert tenant.put("/v1/billing-settings", {}).status_code == 200  # for the tests after this one


def test_that_no_bill_run_happened_reaches_an_endpoint_once(
    scheduled: World, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    monkeypatch.setattr(run_schedule, "_missed", SimpleNamespace(set=measured.append))
    world = scheduled
    world.hook(endpoint.url)
    services = world.api.services
    missed = world.tenant.get("/v1/billing-schedule").json()["missed"]
    assert missed
    alarms = world.tenant.get("/v1/status").json()["alarms"]
    assert [(one["type"], datetime.fromisoformat(one["up_to"])) for one in alarms] == [
        ("bill_run.missed", datetime.fromisoformat(one["up_to"])) for one in missed
    ]
    for _ in range(2):
        start_due(services.database, driver_of(world.api), services.clock)
        world.now = datetime.now(UTC)
        world.reconciler().round()
    assert len(measured) == 2
    assert min(measured) >= len(missed)  # other tests leave schedules, too
    found = [one for one in told(endpoint) if one["type"] == "bill_run.missed"]
    assert [one["data"]["up_to"] for one in sorted(found, key=lambda one: one["data"]["sequence"])] == [
        one["up_to"] for one in missed
    ]
    assert all(one["data"].keys() == EXAMPLES["bill_run.missed"].keys() for one in found)


def test_who_must_approve_is_told_once(world: World, endpoint: Endpoint) -> None:
    world.hook(endpoint.url)
    run = billed(world, approve=False)
    assert world.tenant.get(f"/v1/bill-runs/{run['id']}").json()["state"] == "computed"
    driver_of(world.api).drive(world.tenant.id, run["id"])  # looked at again, as after a start
    world.reconciler().round()
    [one] = told(endpoint)
    assert (one["type"], one["data"]["run"]) == ("bill_run.waits_for_approval", run["id"])
    assert one["data"].keys() == EXAMPLES["bill_run.waits_for_approval"].keys()
    assert world.tenant.post(f"/v1/bill-runs/{run['id']}/approve", {}).status_code == 202
    world.now = datetime.now(UTC)
    world.reconciler().round()
    assert [one["type"] for one in told(endpoint)][1:] == ["bill_run.done"]


def test_a_run_that_goes_on_by_itself_asks_nobody(world: World, endpoint: Endpoint) -> None:
    world.hook(endpoint.url, event_types=[events.RUN_WAITS])
    billed(world)
    assert [row["kind"] for row in rows(world)] == ["invoice.finalised", "bill_run.done"]


def test_each_time_that_a_run_stops_is_told_with_its_reason(
    world: World, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.hook(endpoint.url)
    assert world.tenant.usage(USAGE).status_code == 200
    driver = driver_of(world.api)
    run = driver.plan(world.tenant.id, datetime(2026, 2, 1, tzinfo=UTC), "ann")
    for reason in ("a rate is missing", "a rate is missing", "a meter is missing"):  # each time somebody resumes it
        with monkeypatch.context() as patched:
            patched.setattr(bill_run, "look_at", _raises(reason))
            with pytest.raises(InvalidInput):
                driver.drive(world.tenant.id, run["id"])
    world.now = datetime.now(UTC)
    world.reconciler().round()
    found = sorted(told(endpoint), key=lambda one: one["data"]["sequence"])
    assert [(one["type"], one["data"]["error"]) for one in found] == [
        ("bill_run.failed", "a rate is missing"),
        ("bill_run.failed", "a rate is missing"),
        ("bill_run.failed", "a meter is missing"),
    ]
    assert found[0]["data"].keys() == EXAMPLES["bill_run.failed"].keys()


def _raises(reason: str) -> Any:
    def check(*_: object) -> None:
        raise InvalidInput(reason)

    return check


def test_a_document_that_is_parked_is_told_once(
    world: World, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parks(documents: Any, *_: object) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(document_id=one.document_id, state="parked", sha256="", e_invoice=False, reason="BR-CO-10")
            for one in documents
        ]

    monkeypatch.setattr(document_files, "render_and_archive", parks)
    world.hook(endpoint.url)
    billed(world)
    with world.api.services.database.tenant(world.tenant.id) as connection:  # another driver made the same batch
        [row] = connection.execute("SELECT id::text FROM invoices").fetchall()
        outbox.documents_parked(connection, [(row["id"], "BR-CO-10")], world.now)
    world.reconciler().round()
    parked, done = sorted(told(endpoint), key=lambda one: one["data"]["sequence"])
    [invoice] = world.tenant.get("/v1/invoices").json()["items"]
    assert parked["type"] == "document.parked"
    assert (parked["data"]["number"], parked["data"]["reason"]) == (invoice["number"], "BR-CO-10")
    assert parked["data"].keys() == EXAMPLES["document.parked"].keys()
    assert (done["type"], done["data"]["documents_parked"]) == ("bill_run.done", 1)


def test_events_that_were_told_long_ago_are_deleted_and_no_others(world: World, endpoint: Endpoint) -> None:
    world.hook(endpoint.url, event_types=[events.RUN_DONE])
    happen(world, 3, events.RUN_DONE)
    services = world.api.services
    with services.database.tenant(world.tenant.id) as connection:
        outbox.run_missed(connection, world.tenant.id, world.now, world.now, world.now)
    reconciler = world.reconciler()
    reconciler.round()
    world.now += EVENTS_KEPT - timedelta(minutes=1)
    happen(world, 0)
    with services.database.tenant(world.tenant.id) as connection:
        waiting = datetime.now(UTC) - 2 * EVENTS_KEPT  # old, and nobody had the time to tell it
        connection.execute(
            "INSERT INTO outbox (tenant_id, at, kind, subject, body) VALUES (%s, %s, 'x', 'x', '{}')",
            (UUID(world.tenant.id), waiting),
        )
    world.now = datetime.now(UTC) + EVENTS_KEPT - timedelta(minutes=1)
    reconciler._tidy()
    assert [row["kind"] for row in rows(world)] == ["bill_run.done"] * 3 + ["bill_run.missed", "x"]
    world.now += TIDY_EVERY
    reconciler._tidy()
    assert [row["kind"] for row in rows(world)] == ["bill_run.missed", "x"]


def test_an_alert_says_what_its_example_says(world: World, endpoint: Endpoint) -> None:
    world.hook(endpoint.url)
    world.alert()
    world.reconciler().round()
    [one] = told(endpoint)
    assert one["data"].keys() == EXAMPLES["budget.threshold_crossed"].keys()


def test_types_are_listed_with_examples_that_the_manual_shows_too(world: World) -> None:
    listed = world.tenant.get("/v1/webhook-event-types").json()["items"]
    assert [one["type"] for one in listed] == list(events.EVENT_TYPES)
    manual = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
    shown = {
        name: json.loads(data)
        for name, data in re.findall(r'^\{"type": "([^"]+)", .*"data": (\{.*\})\}$', manual, re.M)
    }
    assert shown == {one["type"]: one["example"] for one in listed}
    assert {one["type"] for one in listed if not one["by_default"]} == {"invoice.finalised", "credit_note.finalised"}
