"""The callers' side of accounts: sends requests to the home lanes of their customers and puts the answers together.

Owns the grouping by lane, nothing else: every verdict is the lane's (`actors/accounts.py`). `AccountsDesk` is for event
loops (HTTP), `RunDesk` for bill runs, which wait in threads.
"""

from __future__ import annotations

import asyncio
import collections
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import msgspec
import numpy as np

from actors.amendment_desk import AmendmentDesk
from actors.decisions import Elsewhere
from actors.router import UsageRouter
from billing.errors import BillingError, Conflict, FieldError, InvalidInput, NotFound, Overloaded, Unavailable
from billing.run_credit import CreditState, Move, RunAnswer, RunCredit, RunHold
from storage.usage_log.reader import UsageLogReader

CUSTOMERS_MAX = 1_000  # of one call to a lane
CALLS_MAX = 2  # to a lane, of one tenant and decision; meanwhile others wait and then travel together
TOGETHER_MAX = 2_000  # entries of one call
WAITING_MAX = 10_000  # requests
PAUSE_S_FIRST, PAUSE_S_MAX = 0.01, 0.2  # while partitions move
T = TypeVar("T")
_ERRORS: dict[str, type[BillingError]] = {
    error.code: error for error in (Conflict, InvalidInput, NotFound, Overloaded, Unavailable)
}


@dataclass(frozen=True)
class Problem:
    """What was wrong with one entry of a batch: code and words of the error family, and the places."""

    code: str
    detail: str
    errors: tuple[tuple[str, str], ...] = ()

    def error(self, pointer: str = "") -> BillingError:
        """The same as an error, its places below a pointer."""
        kind = _ERRORS.get(self.code, BillingError)
        return kind(self.detail, errors=[FieldError(pointer + place, detail) for place, detail in self.errors])


Outcome = dict[str, Any] | Problem  # a reservation as the lane shows it, or why not
RawOutcome = msgspec.Raw | Problem  # the same as the lane encoded it: for whoever only passes it on


class _Share(msgspec.Struct):
    """What one lane knows of reservations, and the partitions that are at home there (bits)."""

    found: list[dict[str, Any]]
    owned: bytes


class _Answered(msgspec.Struct):
    ok: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    problem: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


_answered = msgspec.json.Decoder(list[_Answered])
_shown = msgspec.json.Decoder()


_LineKey = tuple[str, str, int, int]
Told = Callable[[str, int, int, float], None]  # decision, requests and entries that travelled together, seconds


@dataclass
class _Waiting:
    entries: Sequence[tuple[str, Any]]  # customer, form
    outcome: asyncio.Future[Sequence[RawOutcome]]


@dataclass
class _Line:
    """Requests for one decision in one lane; `calls` of them are under way."""

    waiting: collections.deque[_Waiting] = field(default_factory=collections.deque)
    calls: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class AccountsDesk:
    """Reservations and wallets of all customers, wherever they are at home."""

    def __init__(self, router: UsageRouter, told: Told | None = None) -> None:
        """`told` hears of every call that a lane has answered."""
        self._router = router
        self._told = told
        # Of each event loop: what waits to travel together, by tenant, decision, lane and master number.
        self._lines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_LineKey, _Line]] = (
            weakref.WeakKeyDictionary()
        )

    async def reserve(self, tenant_id: str, forms: Sequence[Any], *, master: int = 0) -> list[Outcome]:
        """One outcome a form, in order. A form without a customer's code goes to any lane, which says what is wrong."""
        return _decoded(await self.reserve_raw(tenant_id, forms, [customer_of(form) for form in forms], master=master))

    async def reserve_raw(
        self, tenant_id: str, forms: Sequence[Any], customers: Sequence[str], *, master: int = 0
    ) -> list[RawOutcome]:
        """The same for forms of any kind that JSON has, with their customers ("": none)."""
        return await self._in_lanes(tenant_id, "reserve", forms, customers, master)

    async def commit(self, tenant_id: str, forms: Sequence[Any]) -> list[Outcome]:
        return _decoded(await self.commit_raw(tenant_id, forms))

    async def commit_raw(self, tenant_id: str, forms: Sequence[Any]) -> list[RawOutcome]:
        return await self._close(tenant_id, "commit", forms)

    async def release(self, tenant_id: str, forms: Sequence[Any]) -> list[Outcome]:
        return _decoded(await self.release_raw(tenant_id, forms))

    async def release_raw(self, tenant_id: str, forms: Sequence[Any]) -> list[RawOutcome]:
        return await self._close(tenant_id, "release", forms)

    async def find(self, tenant_id: str, ids: Sequence[str], customer: str | None = None) -> list[dict[str, Any]]:
        """Reservations by id; those that no lane knows are left out. Without a customer all lanes are asked."""
        payload = msgspec.json.encode({"ids": list(ids), "customer": customer})
        if customer is not None:
            found: list[dict[str, Any]] = msgspec.json.decode(
                await self._router.decide(tenant_id, customer, "reservations", payload)
            )
            return found
        payload = msgspec.json.encode({"ids": list(ids), "whole": True})
        async for _ in _tries(self._router.deadline_s):
            answers = await self._router.decide_everywhere(tenant_id, "reservations", payload)
            shares = [msgspec.json.decode(answer, type=_Share) for answer in answers]
            owners = sum(np.unpackbits(np.frombuffer(one.owned, np.uint8)).astype(np.int64) for one in shares)
            if (owners == 1).all():  # else what is on its way from lane to lane is in nobody's answer, or in two
                return [form for one in shares for form in one.found]
        raise Unavailable("Partitions are being moved. Send the same again.")

    async def of_customer(
        self, tenant_id: str, customer: str, *, state: str | None = None, after: str | None = None, limit: int = 100
    ) -> list[dict[str, Any]]:
        """A customer's reservations, newest first, behind the id `after`."""
        which = {"customer": customer, "state": state, "after": after, "limit": limit}
        answer = await self._router.decide(tenant_id, customer, "reservations", msgspec.json.encode(which))
        return cast("list[dict[str, Any]]", msgspec.json.decode(answer))

    async def wallets(
        self, tenant_id: str, customers: Sequence[str], *, fresh: bool = False, master: int = 0
    ) -> list[dict[str, Any]]:
        """The wallets of customers, in their order; `fresh` is answered after a put, so by the lane's true writer."""
        found: dict[str, dict[str, Any]] = {}

        async def ask(named: Sequence[str]) -> None:
            payload = msgspec.json.encode({"customers": named, "fresh": fresh, "master": master})
            answer = await self._router.decide(tenant_id, named[0], "wallets", payload)
            found.update({form["customer"]: form for form in msgspec.json.decode(answer)})

        await self._at_homes(tenant_id, customers, ask)
        return [found[customer] for customer in customers]

    async def _at_homes(
        self, tenant_id: str, customers: Sequence[str], ask: Callable[[Sequence[str]], Awaitable[None]]
    ) -> None:
        """Ask the lane of each customer, those of one lane at once; again where a partition has moved meanwhile."""
        waiting = list(customers)
        async for _ in _tries(self._router.deadline_s):
            moved: list[str] = []

            async def try_(named: list[str], moved: list[str] = moved) -> None:
                try:
                    await ask(named)
                except Elsewhere:
                    moved.extend(named)

            await asyncio.gather(*(try_(named) for named in self._by_lane(tenant_id, waiting)))
            waiting = moved
            if not waiting:
                return
        raise Unavailable("Partitions are being moved. Send the same again with the same ids.")

    async def _close(self, tenant_id: str, name: str, forms: Sequence[Any]) -> list[RawOutcome]:
        """Commit or release: where the customer is not said, it is looked up in all lanes first."""
        customers = [customer_of(form) for form in forms]
        unknown = [str(form.get("id")) for form, customer in zip(forms, customers, strict=True) if not customer]
        if unknown:
            owners: dict[str, set[str]] = {}
            for found in await self.find(tenant_id, unknown):
                owners.setdefault(found["id"], set()).add(found["customer"])
            for id, named in owners.items():
                if len(named) > 1:
                    raise Conflict(f"Several customers have a reservation {id!r}: name the `customer`.", id=id)
            customers = [
                customer or next(iter(owners.get(str(form.get("id")), {""})))
                for form, customer in zip(forms, customers, strict=True)
            ]
        return await self._in_lanes(tenant_id, name, forms, customers)

    async def _in_lanes(
        self, tenant_id: str, name: str, forms: Sequence[Any], customers: Sequence[str], master: int = 0
    ) -> list[RawOutcome]:
        if len(forms) == 1:  # what most requests are: nothing to take apart or to put together
            [lane] = self._router.lanes_of(tenant_id, customers)
            try:
                return list(await self._travel((tenant_id, name, lane, master), [(customers[0], forms[0])]))
            except Elsewhere:
                pass  # nothing was decided: again below, until the deadline
        outcomes: list[RawOutcome] = [_NOTHING] * len(forms)
        waiting: Sequence[int] = range(len(forms))
        async with aclosing(_tries(self._router.deadline_s)) as tries:  # left open, the loop is woken to close it
            async for _ in tries:
                waiting = await self._once(tenant_id, name, forms, customers, master, waiting, outcomes)
                if not waiting:
                    return outcomes
        raise Unavailable("Partitions are being moved. Send the same again with the same ids.")

    async def _once(
        self,
        tenant_id: str,
        name: str,
        forms: Sequence[Any],
        customers: Sequence[str],
        master: int,
        waiting: Sequence[int],
        outcomes: list[RawOutcome],
    ) -> list[int]:
        """Ask the lanes for the outcomes that are still missing; the places of those whose partition has moved."""
        places: dict[int, list[int]] = {}
        lanes = self._router.lanes_of(tenant_id, [customers[place] for place in waiting])
        for place, lane in zip(waiting, lanes, strict=True):
            places.setdefault(lane, []).append(place)
        moved: list[int] = []

        async def ask(lane: int, mine: Sequence[int]) -> None:
            entries = [(customers[place], forms[place]) for place in mine]
            try:
                found = await self._travel((tenant_id, name, lane, master), entries)
            except Elsewhere:  # nothing was decided: another grouping
                moved.extend(mine)
                return
            for place, outcome in zip(mine, found, strict=True):
                outcomes[place] = outcome

        await asyncio.gather(*(ask(lane, mine) for lane, mine in places.items()))
        return moved

    async def _travel(self, key: _LineKey, entries: Sequence[tuple[str, Any]]) -> Sequence[RawOutcome]:
        """Entries of one request to their lane, with those of others that wait while two calls are under way."""
        loop = asyncio.get_running_loop()
        lines = self._lines.setdefault(loop, {})
        line = lines.setdefault(key, _Line())
        if len(line.waiting) >= WAITING_MAX:
            raise Overloaded("Too many reservations wait for this lane. Send the same again with the same ids.")
        request = _Waiting(entries, loop.create_future())
        line.waiting.append(request)
        if line.calls < CALLS_MAX:
            line.calls += 1
            # A task of its own: a client that goes away must not take others' entries with it.
            task = loop.create_task(self._carry(key, line, lines))
            line.tasks.add(task)
            task.add_done_callback(line.tasks.discard)
        return await request.outcome

    async def _carry(self, key: _LineKey, line: _Line, lines: dict[_LineKey, _Line]) -> None:
        """Call after call, until nothing waits."""
        tenant_id, name, _, master = key
        try:
            while line.waiting:
                together: list[_Waiting] = []
                count = 0
                while line.waiting and (not together or count + len(line.waiting[0].entries) <= TOGETHER_MAX):
                    request = line.waiting.popleft()
                    together.append(request)
                    count += len(request.entries)
                entries = [entry for request in together for entry in request.entries]
                began = time.perf_counter()
                try:
                    customers = [customer for customer, _ in entries]
                    call = {"entries": [form for _, form in entries], "customers": customers, "master": master}
                    payload = msgspec.json.encode(call)
                    answer = await self._router.decide(tenant_id, entries[0][0], name, payload)
                    found = [_outcome(one) for one in _answered.decode(answer)]
                    assert len(found) == len(entries), f"{len(entries)} entries asked, {len(found)} answered"
                    if self._told is not None:
                        self._told(name, len(together), len(entries), time.perf_counter() - began)
                except Exception as error:  # noqa: BLE001 - goes to every waiting request, none may wait for ever
                    for request in together:
                        if not request.outcome.done():
                            request.outcome.set_exception(error)
                    continue
                first = 0
                for request in together:
                    last = first + len(request.entries)
                    if not request.outcome.done():
                        request.outcome.set_result(found[first:last])
                    first = last
        finally:
            line.calls -= 1
            if not line.calls and not line.waiting and lines.get(key) is line:
                del lines[key]

    def _by_lane(self, tenant_id: str, customers: Sequence[str]) -> list[list[str]]:
        if len(customers) == 1:
            return [list(customers)]
        lanes: dict[int, list[str]] = {}
        for customer, lane in zip(customers, self._router.lanes_of(tenant_id, customers), strict=True):
            lanes.setdefault(lane, []).append(customer)
        return [
            named[start : start + CUSTOMERS_MAX]
            for named in lanes.values()
            for start in range(0, len(named), CUSTOMERS_MAX)
        ]

    # -- bill runs ----------------------------------------------------------------------------------------------------

    async def run_credit(self, tenant_id: str, asked: RunCredit) -> dict[str, CreditState]:
        found: dict[str, CreditState] = {}

        async def ask(named: Sequence[str]) -> None:
            payload = msgspec.json.encode(msgspec.structs.replace(asked, customers=list(named)))
            answer = await self._router.decide(tenant_id, named[0], "run_credit", payload)
            found.update(msgspec.json.decode(answer, type=dict[str, CreditState]))

        await self._at_homes(tenant_id, asked.customers, ask)
        return found

    async def run_hold(self, tenant_id: str, asked: RunHold) -> dict[str, RunAnswer]:
        found: dict[str, RunAnswer] = {}

        async def ask(named: Sequence[str]) -> None:
            mine = {customer: asked.asks[customer] for customer in named}
            payload = msgspec.json.encode(msgspec.structs.replace(asked, asks=mine))
            answer = await self._router.decide(tenant_id, named[0], "run_hold", payload)
            found.update(msgspec.json.decode(answer, type=dict[str, RunAnswer]))

        await self._at_homes(tenant_id, list(asked.asks), ask)
        return found

    async def run_move(self, tenant_id: str, moves: Sequence[Move]) -> int:
        """Write what became of documents, in this order for each customer; how many rows that made."""
        made = 0
        waiting = list(moves)
        first: dict[str, Move] = {}

        async def ask(named: Sequence[str]) -> None:
            nonlocal made
            payload = msgspec.json.encode([first[customer] for customer in named])
            made += int(await self._router.decide(tenant_id, named[0], "run_move", payload))

        while waiting:
            first = {}
            rest: list[Move] = []
            for move in waiting:
                if move.customer in first:
                    rest.append(move)
                else:
                    first[move.customer] = move
            await self._at_homes(tenant_id, list(first), ask)
            waiting = rest
        return made


class RunDesk:
    """The same for a bill run's threads: an event loop of its own, started at the first call."""

    def __init__(self, router: UsageRouter) -> None:
        self._router = router
        self._desk = AccountsDesk(router)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run_credit(self, tenant_id: str, asked: RunCredit) -> Mapping[str, CreditState]:
        return self._wait(self._desk.run_credit(tenant_id, asked))

    def run_hold(self, tenant_id: str, asked: RunHold) -> Mapping[str, RunAnswer]:
        return self._wait(self._desk.run_hold(tenant_id, asked))

    def run_move(self, tenant_id: str, moves: Sequence[Move]) -> int:
        return self._wait(self._desk.run_move(tenant_id, moves))

    def finish_amendments(self, tenant_id: str, reader: UsageLogReader) -> list[dict[str, str]]:
        stuck = self._wait(AmendmentDesk(self._router, reader).finish(tenant_id))
        return [{"source": one.event.source, "id": one.event.id, "customer": one.event.key} for one in stuck]

    def void_reused(
        self, tenant_id: str, reader: UsageLogReader, names: Sequence[tuple[str, str]]
    ) -> list[dict[str, str]]:
        return self._wait(AmendmentDesk(self._router, reader).void_reused(tenant_id, names))

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="run-desk", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()


async def _tries(deadline_s: float) -> AsyncGenerator[None, None]:
    """Some tries, with pauses that grow, until a deadline."""
    loop = asyncio.get_running_loop()
    end_s, pause_s = loop.time() + deadline_s, PAUSE_S_FIRST
    yield
    while loop.time() + pause_s < end_s:
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, PAUSE_S_MAX)
        yield


def customer_of(form: Any) -> str:
    """Whose lane decides; "" where that is not said."""
    customer = form.get("customer") if isinstance(form, dict) else None
    return customer if isinstance(customer, str) else ""


_NOTHING = msgspec.Raw(b"null")


def _outcome(one: _Answered) -> RawOutcome:
    if isinstance(one.ok, msgspec.Raw):
        return one.ok
    assert isinstance(one.problem, dict), "an answer has either"
    return _problem(one.problem)


def _decoded(outcomes: Sequence[RawOutcome]) -> list[Outcome]:
    return [one if isinstance(one, Problem) else _shown.decode(one) for one in outcomes]


def _problem(form: Mapping[str, Any]) -> Problem:
    return Problem(form["code"], form["detail"], tuple((pointer, detail) for pointer, detail in form["errors"]))


def not_found(id: str) -> NotFound:
    return NotFound(f"There is no reservation {id!r}.", id=id)
