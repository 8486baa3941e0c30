"""Requests of one tenant that wait at the same time are read, routed and committed as one, and answered each.

Starting columns up costs as much as a thousand rows of them, at every step of the road. So while a group is under way,
what arrives meanwhile becomes the next one: a lone request waits for nobody, and under load each step runs once for
many. A request's answer is the same as if it had come alone (docs/usage-log.md).
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import polars as pl

from actors.router import IngestResult, UsageRouter
from billing.errors import BillingError, Overloaded
from billing.usage_formats import Lines, ParsedUsage, parse_together

GROUP_BYTES_MAX = 4 * 1024 * 1024
GROUP_LINES_MAX = 20_000
GROUPS_AT_ONCE = 2  # of one tenant: one is committed while the next is read
INLINE_BYTES_MAX = 65_536  # below, parsing takes less than the way to another thread and back

Admit = Callable[[int], None]  # told how many events a request has; raises if its key may not send so many now
Outcome = tuple[ParsedUsage, IngestResult | None]


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
        try:
            parts = [one.lines for one in group]
            if sum(len(part.body) for part in parts) > INLINE_BYTES_MAX:
                parsed = await asyncio.to_thread(parse_together, parts)
            else:
                parsed = parse_together(parts)
            admitted = [pair for pair in zip(group, parsed, strict=True) if _admitted(*pair)]
            await self._ingest(tenant_id, admitted)
        except Exception as error:  # noqa: BLE001 - goes to every waiting request, none may wait for ever
            for one in group:
                if not one.answer.done():
                    one.answer.set_exception(error)

    async def _ingest(self, tenant_id: str, admitted: list[tuple[_Waiting, ParsedUsage]]) -> None:
        with_events = [(one, parsed) for one, parsed in admitted if parsed.events.height]
        if with_events:
            frames = [parsed.events for _, parsed in with_events]
            events = frames[0] if len(frames) == 1 else pl.concat(frames)
            named = [one.master_number for one, _ in with_events if one.master_number is not None]
            result = await self._router.ingest(tenant_id, events, master_number=max(named, default=None))
            ends = np.cumsum([frame.height for frame in frames]).tolist()
            for (one, parsed), end in zip(with_events, ends, strict=True):
                if not one.answer.done():
                    one.answer.set_result((parsed, _part(result, end - parsed.events.height, end)))
        for one, parsed in admitted:
            if not one.answer.done():
                one.answer.set_result((parsed, None))


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


def _admitted(one: _Waiting, parsed: ParsedUsage) -> bool:
    try:
        if parsed.events.height:
            one.admit(parsed.events.height)
    except BillingError as error:
        if not one.answer.done():
            one.answer.set_exception(error)
        return False
    return True


def _part(result: IngestResult, start: int, end: int) -> IngestResult:
    if start == 0 and end == len(result.verdicts):
        return result
    return IngestResult(result.verdicts[start:end], result.reasons.slice(start, end - start), result.positions)
