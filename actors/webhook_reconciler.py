"""Tells endpoints what happened: makes messages of alerts and of the outbox, and delivers them until they are there or
dead.

Owns the order of things. The log is the truth of alerts: messages are made of it again and again, under ids that follow
from what they tell, so a crash anywhere loses none. The outbox is the truth of everything else: what waits there goes
into the queue in its order, marked in the same transaction, so each once. A delivery that was not marked is sent again
with the same id (at least once). Several of these may run. What it costs to be wrong: one request more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from actors.budget_desk import BudgetDesk, Position
from billing.errors import BillingError
from billing.events import THRESHOLD_CROSSED
from billing.webhooks import headers_of, message_body, next_try
from storage.gateways.webhook_http import Answer, NotReachable
from storage.sql import outbox, tenants, webhooks
from storage.sql.database import Database
from storage.usage_log.segment import instant_of

LOG = logging.getLogger("cloudbilling.webhooks")
ALERTS_AT_ONCE = 500
PAGES_MAX = 200  # of one look at a tenant
OVERLAP_US = 600 * 1_000_000  # a lane that stalled shows an alert later than its time says
WHOLE_EVERY = timedelta(hours=1)  # so often all alerts are compared, however late one came
EVENTS_AT_ONCE = 2_000  # of a tenant's outbox, in one transaction
EVENT_BATCHES_MAX = 100  # of one tenant in a round
EVENTS_KEPT = timedelta(days=30)  # in the outbox, after they were told
TIDIED_AT_ONCE = 5_000
TIDY_EVERY = timedelta(hours=1)
WORKERS = 8
EACH_MAX = 2  # at once to one endpoint, so that one that hangs holds up nobody else
EACH_CLAIMED = 20  # of one endpoint, to be tried one after the other
CLAIMED_MAX = 1_000  # of all tenants at once; the next time it begins with others
GIVEN_UP_AFTER = timedelta(days=3)  # what has not been tried in this time, as its endpoint cannot be reached
HELD_FOR = timedelta(seconds=60)  # longer than it takes to begin a try (CARRIED_S) and to end it
CARRIED_S = 20.0  # so long after the claim a try may begin; what is left is given back
ROUND_S = 10.0  # after it, alerts are read again before more is delivered
RESTS = (5, 10, 20, 40, 80, 160, 300)  # seconds, of an endpoint that cannot be reached so many times in a row


class Post(Protocol):
    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer: ...


@dataclass
class _Seen:
    newest: Position | None = None
    whole_at: datetime | None = None


@dataclass(frozen=True)
class _Rest:
    until: datetime
    times: int  # in a row, before this one


@dataclass
class _Hand:
    """What was claimed for one endpoint, in its order, until it is tried or given back."""

    tenant_id: str
    waiting: deque[webhooks.Due]
    ends_at: float = field(default_factory=lambda: time.monotonic() + CARRIED_S)

    def take(self) -> webhooks.Due | None:
        """The next one; of two threads each gets another."""
        try:
            return self.waiting.popleft()
        except IndexError:
            return None


@dataclass
class WebhookReconciler:
    """`round` is everything; call it again and again."""

    database: Database
    desk: BudgetDesk
    http: Post
    clock: Callable[[], datetime]
    _seen: dict[str, _Seen] = field(default_factory=dict[str, _Seen])
    _resting: dict[str, _Rest] = field(default_factory=dict[str, _Rest])
    _tidied_at: datetime | None = None
    _turn: int = 0

    def round(self) -> int:
        """Make what is missing, deliver what is due; how many deliveries were tried."""
        with self.database.system() as connection:
            listening = webhooks.tenants_with_endpoints(connection)
        for tenant_id in listening:
            try:
                asyncio.run(self.collect(tenant_id))
            except BillingError as error:  # a lane is away: the next round looks again
                LOG.warning("alerts of tenant %s are not read now: %s", tenant_id, error.detail)
        self.tell_events()
        self._tidy()
        tried, ends_at = 0, time.monotonic() + ROUND_S
        while (now_tried := self.deliver()) > 0:
            tried += now_tried
            if time.monotonic() > ends_at:
                break
        return tried

    def tell_events(self) -> int:
        """Bring what waits in the outboxes into the queue of deliveries; how many events."""
        with self.database.system() as connection:
            waiting = outbox.tenants_waiting(connection)
        told = 0
        for tenant_id in waiting:
            for _ in range(EVENT_BATCHES_MAX):
                with self.database.tenant(tenant_id) as connection:
                    count = outbox.tell(connection, tenant_id, self.clock(), EVENTS_AT_ONCE)
                told += count
                if count < EVENTS_AT_ONCE:
                    break
        return told

    def _tidy(self) -> None:
        """Delete what was told long ago, give up what waits for who is away, now and then: nothing grows for ever."""
        now = self.clock()
        if self._tidied_at is not None and now - self._tidied_at < TIDY_EVERY:
            return
        self._tidied_at = now
        with self.database.system() as connection:
            known = tenants.all_ids(connection)
        for tenant_id in known:
            count = TIDIED_AT_ONCE
            while count == TIDIED_AT_ONCE:
                with self.database.tenant(tenant_id) as connection:
                    count = outbox.delete_told(connection, now - EVENTS_KEPT, TIDIED_AT_ONCE)
            away = [endpoint_id for endpoint_id, rest in self._resting.items() if rest.times]
            count = TIDIED_AT_ONCE if away else 0
            while count == TIDIED_AT_ONCE:
                with self.database.tenant(tenant_id) as connection:
                    count = webhooks.give_up(connection, away, now - GIVEN_UP_AFTER, now, TIDIED_AT_ONCE)

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
        """Try what is due, once, and at most EACH_CLAIMED of an endpoint; how many were tried.

        Of one endpoint at most EACH_MAX are under way at once. One that cannot be reached is not tried again for each
        delivery that waits for it: those in hand are given back, and it rests for a while.
        """
        with self.database.system() as connection:
            due_tenants = webhooks.tenants_due(connection, self.clock())
        self._turn += 1
        first = self._turn % max(len(due_tenants), 1)
        now = self.clock()
        resting = [endpoint_id for endpoint_id, rest in self._resting.items() if rest.until > now]
        hands: list[_Hand] = []
        tried = 0
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="webhook") as pool:
            for tenant_id in due_tenants[first:] + due_tenants[:first]:
                if tried >= CLAIMED_MAX:
                    break
                with self.database.tenant(tenant_id) as connection:
                    due = webhooks.claim(connection, self.clock(), HELD_FOR, EACH_CLAIMED, resting)
                for endpoint_id in dict.fromkeys(one.endpoint_id for one in due):
                    hand = _Hand(tenant_id, deque(one for one in due if one.endpoint_id == endpoint_id))
                    hands.append(hand)
                    tried += len(hand.waiting)
                    for _ in range(min(EACH_MAX, len(hand.waiting))):
                        pool.submit(self._carry, hand)
        for hand in hands:
            if hand.waiting:
                self._give_back(hand.tenant_id, list(hand.waiting))
        return tried - sum(len(hand.waiting) for hand in hands)

    def _carry(self, hand: _Hand) -> None:
        """Try what is in hand for one endpoint, one after the other; two of these may share it."""
        while time.monotonic() < hand.ends_at and (one := hand.take()) is not None:
            try:
                reached = self.try_one(hand.tenant_id, one)
            except BillingError as error:  # SQL is away: the claim ends by itself and it is tried again
                LOG.warning("delivery %s could not be noted: %s", one.id, error.detail)
                return
            if not reached:
                return

    def _give_back(self, tenant_id: str, left: Sequence[webhooks.Due]) -> None:
        try:
            with self.database.tenant(tenant_id) as connection:
                webhooks.give_back(connection, left)
        except BillingError as error:  # SQL is away: the claims end by themselves
            LOG.warning("%s deliveries could not be given back: %s", len(left), error.detail)

    def try_one(self, tenant_id: str, one: webhooks.Due) -> bool:
        """One POST, and what came of it noted. False if the endpoint cannot be reached: it rests."""
        now = self.clock()
        status: int | None = None
        retry_after: timedelta | None = None
        try:
            answer = self.http.post(one.url, one.body, headers_of(one.message_id, now, one.body, one.secrets))
            status, retry_after = answer.status, answer.retry_after
            error = "" if 200 <= status < 300 else f"the endpoint answered {status}"
            self._resting.pop(one.endpoint_id, None)
        except NotReachable as failed:
            error = str(failed)
            self._rest(one.endpoint_id)
        now = self.clock()
        with self.database.tenant(tenant_id) as connection:
            if not error:
                assert status is not None
                webhooks.delivered(connection, one.id, status, now)
                return True
            gone = status == 410  # "do not send any more", says the standard
            next_at = None if gone else next_try(one.tries + 1, now, retry_after)
            webhooks.failed(connection, one.id, status, error, now, next_at)
            if gone:
                changes = {"disabled_at": now, "disabled_because": "it answered 410 Gone"}
                webhooks.change_endpoint(connection, one.endpoint_id, changes)
        return status is not None

    def _rest(self, endpoint_id: str) -> None:
        now, rest = self.clock(), self._resting.get(endpoint_id)
        if rest is not None and rest.until > now:
            return  # the other thread of the same hand has said so
        times = 0 if rest is None else rest.times + 1
        self._resting[endpoint_id] = _Rest(now + timedelta(seconds=RESTS[min(times, len(RESTS) - 1)]), times)
