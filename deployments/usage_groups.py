"""Requests of one tenant that wait at the same time are read, routed and committed as one, and answered each.

Starting columns up costs as much as a thousand rows of them, at every step of the road. So while a group is under way,
what arrives meanwhile becomes the next one: a lone request waits for nobody, and under load each step runs once for
many. A request's answer is the same as if it had come alone (docs/usage-log.md).
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import polars as pl
import structlog

from actors.router import IngestResult, UsageRouter
from billing.errors import BillingError, Overloaded
from billing.parsed_usage import ParsedUsage
from billing.usage_formats import Lines, Together, read_together

LOG = structlog.get_logger("cloudbilling.usage")
GROUP_BYTES_MAX = 4 * 1024 * 1024
GROUP_LINES_MAX = 20_000
GROUPS_AT_ONCE = 2  # of one tenant: one is committed while the next is read
INLINE_BYTES_MAX = 65_536  # below, parsing takes less than the way to another thread and back

Admit = Callable[[int], None]  # told how many events a request has; raises if its key may not send so many now


@dataclass(frozen=True)
class Outcome:
    """What became of one request of a group; None for a request without an event to store."""

    together: Together
    place: int
    result: IngestResult | None

    @property
    def total(self) -> int:
        """Events and rejects."""
        return self.together.total_of(self.place)

    @property
    def parsed(self) -> ParsedUsage:
        """Cut out of the group here: most answers do not need it."""
        return self.together.part(self.place)


@dataclass
class _Waiting:
    lines: Lines
    master_number: int | None
    admit: Admit
    answer: asyncio.Future[Outcome]


@dataclass
class _Tenant:
    waiting: deque[_Waiting] = field(default_factory=deque[_Waiting])
    lines: int = 0  # waiting or under way
    under_way: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])


class UsageGroups:
    """One per process. A tenant is remembered while something of it waits or is under way."""

    def __init__(self, router: UsageRouter) -> None:
        self._router = router
        self._tenants: dict[tuple[asyncio.AbstractEventLoop, str], _Tenant] = {}

    async def send(self, tenant_id: str, lines: Lines, master_number: int | None, admit: Admit) -> Outcome:
        """What became of a request's events; raises what the router or `admit` raises."""
        loop = asyncio.get_running_loop()
        key = (loop, tenant_id)
        tenant = self._tenants.setdefault(key, _Tenant())
        if tenant.lines and tenant.lines + lines.count > self._router.tenant_waiting_rows_max:
            raise Overloaded("Too much of this tenant's usage is waiting. Send the same again with the same ids.")
        tenant.lines += lines.count
        one = _Waiting(lines, master_number, admit, loop.create_future())
        tenant.waiting.append(one)
        self._start(key, tenant)
        return await one.answer

    def _start(self, key: tuple[asyncio.AbstractEventLoop, str], tenant: _Tenant) -> None:
        while tenant.waiting and len(tenant.under_way) < GROUPS_AT_ONCE:
            group = _next_group(tenant.waiting)
            # A task of its own: a client that goes away cancels its handler, and must not take others' rows with it.
            task = key[0].create_task(self._carry(key[1], group), name="usage-group")
            tenant.under_way.add(task)
            task.add_done_callback(partial(self._ended, key, tenant, sum(one.lines.count for one in group)))

    def _ended(
        self, key: tuple[asyncio.AbstractEventLoop, str], tenant: _Tenant, lines: int, task: asyncio.Task[None]
    ) -> None:
        tenant.under_way.discard(task)
        tenant.lines -= lines
        self._start(key, tenant)
        if not tenant.under_way and not tenant.waiting:
            self._tenants.pop(key, None)

    async def _carry(self, tenant_id: str, group: list[_Waiting]) -> None:
        began = time.perf_counter()
        try:
            parts = [one.lines for one in group]
            if sum(len(part.body) for part in parts) > INLINE_BYTES_MAX:
                together = await asyncio.to_thread(read_together, parts)
            else:
                together = read_together(parts)
            admitted = [place for place, one in enumerate(group) if _admitted(one, together.events_of(place))]
            events = await self._ingest(tenant_id, group, together, admitted)
            # One line for all: a line each costs a lone event's request as much as all the rest of it in this process.
            LOG.info("usage", requests=len(group), events=events, ms=round((time.perf_counter() - began) * 1e3, 2))
        except Exception as error:  # noqa: BLE001 - goes to every waiting request, none may wait for ever
            for one in group:
                if not one.answer.done():
                    one.answer.set_exception(error)

    async def _ingest(self, tenant_id: str, group: list[_Waiting], together: Together, admitted: Sequence[int]) -> int:
        """Store the events of those that were let in; how many they are."""
        rows = {place: together.events_of(place) for place in admitted}
        stored = [place for place in admitted if rows[place].stop > rows[place].start]
        events = together.whole.events
        if len(stored) < len(group):
            frames = [events[rows[place]] for place in stored]
            events = pl.concat(frames) if frames else events.clear()
        if stored:
            named = [number for place in stored if (number := group[place].master_number) is not None]
            result = await self._router.ingest(tenant_id, events, master_number=max(named, default=None))
            start = 0
            for place in stored:
                end = start + rows[place].stop - rows[place].start
                _tell(group[place], Outcome(together, place, _part(result, start, end)))
                start = end
        for place in admitted:
            _tell(group[place], Outcome(together, place, None))
        return events.height


def _tell(one: _Waiting, outcome: Outcome) -> None:
    if not one.answer.done():
        one.answer.set_result(outcome)


def _next_group(waiting: deque[_Waiting]) -> list[_Waiting]:
    group = [waiting.popleft()]
    size, lines = len(group[0].lines.body), group[0].lines.count
    while waiting:
        size += len(waiting[0].lines.body)
        lines += waiting[0].lines.count
        if size > GROUP_BYTES_MAX or lines > GROUP_LINES_MAX:
            break
        group.append(waiting.popleft())
    return group


def _admitted(one: _Waiting, rows: slice) -> bool:
    try:
        if rows.stop > rows.start:
            one.admit(rows.stop - rows.start)
    except BillingError as error:
        if not one.answer.done():
            one.answer.set_exception(error)
        return False
    return True


def _part(result: IngestResult, start: int, end: int) -> IngestResult:
    if start == 0 and end == len(result.verdicts):
        return result
    return IngestResult(result.verdicts[start:end], result.reasons.slice(start, end - start), result.positions)
