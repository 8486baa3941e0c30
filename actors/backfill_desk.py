"""Backfills over any router: open, send, commit, revert, in the order that keeps them all or nothing.

Owns that order. A commit stops new lanes at home, closes every lane (each says where it stands and what it has), and
then writes the one record at home by which the events count; live figures follow lane by lane. Whoever crashes in
between leaves a backfill that is closed and does not count: the same call again goes on from there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from actors.backfills import (
    ADMIT,
    CLOSE,
    CLOSE_DOWN,
    COMMIT,
    ELSEWHERE,
    LIST,
    MISSING,
    OPEN,
    REVERT,
    ROWS,
    SHOW,
    encode_rows,
)
from actors.router import DEADLINE_S, UsageRouter
from billing.backfills import HOME_KEY, REVERTED_MAX, Backfill
from billing.errors import Conflict, Unavailable
from billing.usage import EVENT_SCHEMA
from storage.object_store import ObjectStore
from storage.usage_log.backfills import mark_backfilled
from storage.usage_log.sizes import DECISION_BYTES_MAX, pieces

CALL_ROWS = 10_000
WAIT_S = 0.05


@dataclass(frozen=True)
class _Opened:
    backfill: Backfill
    reverted: list[str]  # whose ids are free for it


class BackfillDesk:
    """For routes. Stateless but for what it has seen done."""

    def __init__(self, router: UsageRouter, store: ObjectStore) -> None:
        self._router = router
        self._store = store
        self._shown: dict[tuple[str, str], bool] = {}  # what all lanes show already, as far as this process knows

    async def open(self, tenant_id: str, name: str, by: str, note: str = "") -> Backfill:
        """Open a backfill, in every lane; one that is there already stays as it is."""
        await asyncio.to_thread(mark_backfilled, self._store, tenant_id)
        opened = await self._open(tenant_id, name, by, note)
        return opened.backfill

    async def _open(self, tenant_id: str, name: str, by: str, note: str) -> _Opened:
        payload = json.dumps({"backfill": name, "by": by, "note": note}).encode()
        opened = _opened(await self._router.decide(tenant_id, HOME_KEY, OPEN, payload))
        if opened.backfill.state == "open":
            await self._admit(tenant_id, opened)
        return opened

    async def _admit(self, tenant_id: str, opened: _Opened) -> None:
        payload = json.dumps({"backfill": opened.backfill.name, "reverted": opened.reverted}).encode()
        await self._router.decide_everywhere(tenant_id, ADMIT, payload)

    async def send(self, tenant_id: str, name: str, events: pl.DataFrame) -> npt.NDArray[np.uint8]:
        """Store events under an open backfill; a verdict (accepted, duplicate) each, once they are durable.

        Unavailable: unknown; send the same again, what is stored comes back as a duplicate.
        """
        events = events.select(EVENT_SCHEMA.names())
        verdicts = np.full(events.height, ELSEWHERE, np.uint8)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DEADLINE_S
        rows: npt.NDArray[np.int64] = np.arange(events.height)
        while len(rows):
            before = len(rows)
            parts = self._by_lane(tenant_id, events, rows)
            answers = await asyncio.gather(
                *(self._send_part(tenant_id, name, events, part) for part in parts), return_exceptions=True
            )
            for part, answer in zip(parts, answers, strict=True):
                if isinstance(answer, BaseException):
                    raise answer
                verdicts[part] = answer
            rows = np.flatnonzero(verdicts == ELSEWHERE)
            if len(rows) and loop.time() > deadline:
                raise Unavailable(f"It is unknown what became of {len(rows)} events (partitions are being moved).")
            if len(rows) == before:
                await asyncio.sleep(WAIT_S)
        return verdicts

    def _by_lane(
        self, tenant_id: str, events: pl.DataFrame, rows: npt.NDArray[np.int64]
    ) -> list[npt.NDArray[np.int64]]:
        """Rows by the lane that has them as far as the router knows, in calls of bounded size."""
        customers = events["customer"].gather(rows)
        keys = customers.unique()
        known = self._router.lanes_of(tenant_id, keys.to_list())
        lanes = customers.replace_strict(keys, pl.Series(known, dtype=pl.Int64), return_dtype=pl.Int64).to_numpy()
        parts: list[npt.NDArray[np.int64]] = []
        for lane in np.unique(lanes):
            mine = rows[lanes == lane]
            cut = pieces(events[mine], CALL_ROWS, DECISION_BYTES_MAX)
            parts += [mine[start : start + count] for start, count, _ in cut]
        return parts

    async def _send_part(
        self, tenant_id: str, name: str, events: pl.DataFrame, part: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.uint8]:
        chosen = events[part]
        payload, key = encode_rows(name, chosen), str(chosen["customer"][0])
        answer = await self._router.decide(tenant_id, key, ROWS, payload)
        if answer == MISSING:  # a lane that is younger than the backfill
            one = await self.get(tenant_id, name)
            if one.state != "open":
                raise Conflict(f"the backfill {name} takes no more events: it is {one.state}")
            await self._open(tenant_id, name, "", "")
            answer = await self._router.decide(tenant_id, key, ROWS, payload)
            if answer == MISSING:
                raise Unavailable("A lane has not opened the backfill. Send the same again with the same ids.")
        return np.frombuffer(answer, np.uint8)

    async def commit(self, tenant_id: str, name: str, by: str) -> Backfill:
        """Let all its events count, at once. The same call again does no harm and goes on where a crash left it."""
        one = await self._close(tenant_id, name)
        if one.state == "closing":
            answers = await self._router.decide_everywhere(tenant_id, CLOSE, name.encode())
            shares = {str(lane): [number, events] for lane, number, events in map(json.loads, answers)}
            payload = json.dumps({"backfill": name, "by": by, "shares": shares}).encode()
            one = _opened(await self._router.decide(tenant_id, HOME_KEY, COMMIT, payload)).backfill
        if one.state == "reverted":
            raise Conflict(f"the backfill {name} was reverted")
        # One whose ids this may have taken over ceases to count first, if a crash left it half hidden.
        reverted = [other for other in await self._listed(tenant_id, "") if other.state == "reverted"]
        await self.finish(tenant_id, sorted(reverted, key=lambda other: other.reverted_us)[-REVERTED_MAX:])
        await self._show(tenant_id, one)
        return one

    async def revert(self, tenant_id: str, name: str, by: str, reason: str) -> Backfill:
        """Let its events count no more; of one that was not committed: never."""
        one = await self._close(tenant_id, name)
        if one.state == "closing":  # no lane takes events that nobody will count
            await self._router.decide_everywhere(tenant_id, CLOSE, name.encode())
        payload = json.dumps({"backfill": name, "by": by, "reason": reason}).encode()
        one = _opened(await self._router.decide(tenant_id, HOME_KEY, REVERT, payload)).backfill
        await self._show(tenant_id, one)
        return one

    async def get(self, tenant_id: str, name: str) -> Backfill:
        """One backfill as it is now."""
        (one,) = await self._listed(tenant_id, name)
        return one

    async def list(self, tenant_id: str) -> list[Backfill]:
        """All backfills of a tenant, in the order in which they were opened."""
        return sorted(await self._listed(tenant_id, ""), key=lambda one: (one.opened_us, one.name))

    async def _listed(self, tenant_id: str, name: str) -> list[Backfill]:
        forms = json.loads(await self._router.decide(tenant_id, HOME_KEY, LIST, name.encode()))
        return [Backfill.from_form(form) for form in forms]

    async def _close(self, tenant_id: str, name: str) -> Backfill:
        payload = json.dumps({"backfill": name}).encode()
        return _opened(await self._router.decide(tenant_id, HOME_KEY, CLOSE_DOWN, payload)).backfill

    async def finish(self, tenant_id: str, found: Sequence[Backfill]) -> None:
        """Let live figures follow what is decided, where a crash kept them from it."""
        for one in found:
            await self._show(tenant_id, one)

    async def _show(self, tenant_id: str, one: Backfill) -> None:
        shown = one.state == "committed"
        if not one.was_committed or self._shown.get((tenant_id, one.name)) == shown:
            return
        payload = json.dumps({"backfill": one.name, "shown": shown}).encode()
        await self._router.decide_everywhere(tenant_id, SHOW, payload)
        self._shown[tenant_id, one.name] = shown


def _opened(answer: bytes) -> _Opened:
    form = json.loads(answer)
    return _Opened(Backfill.from_form(form["backfill"]), form["reverted"])
