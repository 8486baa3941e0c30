"""The daily check of completeness: quiet when all is there, loud when one row of the log is gone."""

import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from billing.typed_columns import NO_READS
from deployments.completeness_check import EVERY, CompletenessCheck
from pipelines.usage_queries import UsageQueries
from storage.sql import webhooks
from storage.usage_log.erasing import Erasure, without
from storage.usage_log.genesis import read_genesis
from storage.usage_log.lane import walk
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.segment import encode_segment, segment_key
from tests.deployments.conftest import Api, Tenant
from tests.deployments.test_amendments_over_rest import event, send

pytestmark = pytest.mark.postgres


def checker(api: Api, now: list[datetime]) -> CompletenessCheck:
    """A new process: it has read nothing yet."""
    services = api.services
    queries = UsageQueries(UsageLogReader(services.store), services.database)
    return CompletenessCheck(services.database, queries, services.masters, lambda: now[0])


def checked(tenant: Tenant) -> Any:
    return tenant.get("/v1/usage/completeness").json()["checked"]


def test_a_log_that_is_whole_is_noted_once_a_day(api: Api) -> None:
    tenant = api.tenant()
    tenant.catalog()
    assert checked(tenant) is None
    send(tenant, event("a"), event("b"), event("c", customer="nobody"))
    now = [datetime.now(UTC)]
    check = checker(api, now)
    check.check(tenant.id)
    found = checked(tenant)
    assert (found["stored"], found["rated"], found["suspended"], found["complete"]) == (3, 2, 1, True)
    while check.round():
        pass
    send(tenant, event("d"))
    now[0] += EVERY / 2
    assert check.round() == 0
    now[0] += EVERY
    while check.round():
        pass
    assert checked(tenant)["stored"] == 4


def erase_by_hand(api: Api, erasure: Erasure) -> None:
    """Rows go out of the segments at once, also of those above the last checkpoint."""
    store = api.services.store
    genesis = read_genesis(store)
    assert genesis is not None
    for lane in range(3):
        for segment in walk(store, lane, 0):
            if erasure.tenant_id in segment.head.counters and segment.rows().filter(erasure.chosen()).height:
                key = segment_key(lane, segment.head.number)
                store.put(key, without(segment, erasure, genesis.seed, NO_READS, 1))


def test_rows_that_were_erased_with_a_proof_are_no_difference(api: Api) -> None:
    tenant = api.tenant()
    tenant.catalog()
    send(tenant, *[event(f"kept{n}") for n in range(3)], *[event(f"gone{n}", customer="nobody") for n in range(2)])
    erase_by_hand(api, Erasure(tenant.id, "GDPR 17", ("nobody",)))
    found = checker(api, [datetime.now(UTC)]).check(tenant.id)
    assert (found.stored, found.counted, found.complete) == (3, 3, True)


def test_a_voided_event_whose_own_row_was_erased_by_its_age_is_no_difference(api: Api) -> None:
    """What voids it stays in the log; it excuses as many events as were erased, and no more."""
    tenant = api.tenant()
    tenant.catalog()
    send(tenant, event("old", time="2026-01-01T00:00:00Z"), event("new"), event("other"))
    for id_ in ("old", "other"):
        void = {"amendments": [{"source": "a", "id": id_, "void": True}], "reason": "read twice"}
        assert tenant.post("/v1/usage/amendments", void).is_success
    erase_by_hand(api, Erasure(tenant.id, "traffic data", before=datetime(2026, 1, 2, tzinfo=UTC)))
    found = checker(api, [datetime.now(UTC)]).check(tenant.id)
    assert (found.stored, found.counted, found.rated, found.voided, found.of_erased) == (2, 2, 1, 2, 1)
    assert found.complete, found


def test_a_row_that_is_gone_is_an_alarm_in_log_api_and_webhook(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    tenant = api.tenant()
    tenant.catalog()
    made = tenant.post("/v1/webhooks", {"url": "https://hooks.example.org/"})
    assert made.status_code == 201, made.text
    send(tenant, *[event(f"e{n}") for n in range(5)])
    store = api.services.store
    tampered = 0
    for lane in range(3):
        for segment in walk(store, lane, 0):
            if tenant.id in segment.head.counters and segment.head.rows > 1 and not tampered:
                head = segment.head
                key = next(
                    key for key in store.list(f"log/lanes/{lane:04}/") if key.endswith(f"/{head.number:012}.parquet")
                )
                store.put(key, encode_segment(head, segment.rows().head(head.rows - 1)))
                tampered += 1
    assert tampered == 1
    now = [datetime.now(UTC) + timedelta(seconds=1)]
    with caplog.at_level(logging.ERROR, "cloudbilling.completeness"):
        proof = checker(api, now).check(tenant.id)
    assert (proof.stored, proof.counted, proof.complete) == (4, 5, False)
    assert "completeness is broken" in caplog.text
    assert key in caplog.text
    noted = checked(tenant)
    assert (noted["complete"], noted["found"]) == (False, len(noted["differences"]))
    assert key in {one["object"] for one in noted["differences"]}
    checker(api, now).check(tenant.id)  # told once a day
    with api.services.database.tenant(tenant.id) as connection:
        [delivery] = webhooks.page(connection, state=None, endpoint_id=None, after=None, limit=10)
    assert delivery["event_type"] == "usage.completeness_broken"
    with api.services.database.tenant(tenant.id) as connection:
        row = connection.execute("SELECT body FROM webhook_messages").fetchone()
    assert row is not None
    told = json.loads(bytes(row["body"]))["data"]
    assert (told["counted"], told["differences"]) == (5, noted["differences"])
    asked = tenant.get("/v1/usage/completeness?prove=true").json()["proof"]
    assert (asked["complete"], asked["differences"]) == (False, noted["differences"])


def test_a_log_that_cannot_be_read_through_is_an_alarm_and_its_proof_says_where(api: Api) -> None:
    tenant = api.tenant()
    tenant.catalog()
    send(tenant, event("a"), event("b"))
    store = api.services.store
    (key,) = [
        segment_key(lane, segment.head.number)
        for lane in range(3)
        for segment in walk(store, lane, 0)
        if tenant.id in segment.head.counters and segment.head.counters[tenant.id].stored
    ]
    whole = store.get(key)
    assert whole is not None
    store.put(key, whole[:100])
    try:
        found = checker(api, [datetime.now(UTC)]).check(tenant.id)
        assert (found.complete, found.rated) == (False, None)
        answer = tenant.get("/v1/usage/completeness?prove=true").json()
        assert (answer["totals"]["rated"], answer["proof"]["rated"], answer["checked"]["rated"]) == (None, None, None)
        assert key in {one["object"] for one in answer["proof"]["differences"]}
    finally:
        store.put(key, whole)  # other tests share the log
