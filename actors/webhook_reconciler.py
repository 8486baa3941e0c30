"""Tells endpoints of alerts: makes messages of what the log recorded, and delivers them until they are there or dead.

Owns the order of things. The log is the truth: messages are made of it again and again, under ids that follow from what
they tell, so a crash anywhere loses none; a delivery that was not marked is sent again with the same id (at least
once). Several of these may run. What it costs to be wrong: one request more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from actors.budget_desk import BudgetDesk, Position
from billing.errors import BillingError
from billing.webhooks import THRESHOLD_CROSSED, headers_of, message_body, next_try
from storage.gateways.webhook_http import Answer, NotReachable
from storage.sql import webhooks
from storage.sql.database import Database
from storage.usage_log.segment import instant_of

LOG = logging.getLogger("cloudbilling.webhooks")
ALERTS_AT_ONCE = 500
PAGES_MAX = 200  # of one look at a tenant
OVERLAP_US = 600 * 1_000_000  # a lane that stalled shows an alert later than its time says
WHOLE_EVERY = timedelta(hours=1)  # so often all alerts are compared, however late one came
WORKERS = 8
EACH_MAX = 2  # at once to one endpoint, so that one that hangs holds up nobody else
HELD_FOR = timedelta(seconds=60)  # longer than a try may take


class Post(Protocol):
    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer: ...


@dataclass
class _Seen:
    newest: Position | None = None
    whole_at: datetime | None = None


@dataclass
class WebhookReconciler:
    """`round` is everything; call it again and again."""

    database: Database
    desk: BudgetDesk
    http: Post
    clock: Callable[[], datetime]
    _seen: dict[str, _Seen] = field(default_factory=dict[str, _Seen])

    def round(self) -> int:
        """Make what is missing, deliver what is due; how many deliveries were tried."""
        with self.database.system() as connection:
            tenants = webhooks.tenants_with_endpoints(connection)
        for tenant_id in tenants:
            try:
                asyncio.run(self.collect(tenant_id))
            except BillingError as error:  # a lane is away: the next round looks again
                LOG.warning("alerts of tenant %s are not read now: %s", tenant_id, error.detail)
        return self.deliver()

    async def collect(self, tenant_id: str) -> int:
        """Messages of alerts that have none yet; how many."""
        seen = self._seen.setdefault(tenant_id, _Seen())
        now = self.clock()
        whole = seen.whole_at is None or now - seen.whole_at >= WHOLE_EVERY
        after: Position | None = None
        if not whole and seen.newest is not None:
            after = (seen.newest[0] - OVERLAP_US, -1, -1, -1)
        made = 0
        for _ in range(PAGES_MAX):
            alerts = await self.desk.alerts(tenant_id, after=after, limit=ALERTS_AT_ONCE, look=False)
            if alerts:
                made += self._store(tenant_id, alerts)
                after = seen.newest = tuple(alerts[-1]["position"])
            if len(alerts) < ALERTS_AT_ONCE:
                break
        if whole:
            seen.whole_at = now
        return made

    def _store(self, tenant_id: str, alerts: list[dict[str, Any]]) -> int:
        now, made = self.clock(), 0
        with self.database.tenant(tenant_id) as connection:
            known = webhooks.known_messages(connection, [alert["id"] for alert in alerts])
            for alert in alerts:
                if alert["id"] not in known:
                    told = {key: value for key, value in alert.items() if key != "position"}
                    made += webhooks.add_message(
                        connection,
                        tenant_id,
                        id=alert["id"],
                        event_type=THRESHOLD_CROSSED,
                        body=message_body(THRESHOLD_CROSSED, alert["at"], told),
                        happened_at=instant_of(alert["position"][0]),
                        now=now,
                    )
        return made

    def deliver(self) -> int:
        """Try what is due, once."""
        with self.database.system() as connection:
            tenants = webhooks.tenants_due(connection, self.clock())
        tried = 0
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="webhook") as pool:
            for tenant_id in tenants:
                with self.database.tenant(tenant_id) as connection:
                    due = webhooks.claim(connection, self.clock(), HELD_FOR, WORKERS, EACH_MAX)
                for one in due:
                    pool.submit(self._logged, tenant_id, one)
                tried += len(due)
        return tried

    def _logged(self, tenant_id: str, one: webhooks.Due) -> None:
        try:
            self.try_one(tenant_id, one)
        except BillingError as error:  # SQL is away: the claim ends by itself and it is tried again
            LOG.warning("delivery %s could not be noted: %s", one.id, error.detail)

    def try_one(self, tenant_id: str, one: webhooks.Due) -> None:
        now = self.clock()
        status: int | None = None
        retry_after: timedelta | None = None
        try:
            answer = self.http.post(one.url, one.body, headers_of(one.message_id, now, one.body, one.secrets))
            status, retry_after = answer.status, answer.retry_after
            error = "" if 200 <= status < 300 else f"the endpoint answered {status}"
        except NotReachable as failed:
            error = str(failed)
        now = self.clock()
        with self.database.tenant(tenant_id) as connection:
            if not error:
                assert status is not None
                webhooks.delivered(connection, one.id, status, now)
                return
            gone = status == 410  # "do not send any more", says the standard
            next_at = None if gone else next_try(one.tries + 1, now, retry_after)
            webhooks.failed(connection, one.id, status, error, now, next_at)
            if gone:
                changes = {"disabled_at": now, "disabled_because": "it answered 410 Gone"}
                webhooks.change_endpoint(connection, one.endpoint_id, changes)
