"""The lanes of the usage log as a page: what each holds and does, what is under way, moving, draining and spreading.

Lanes belong to all tenants, and a person signs in to one: who changes them names a platform key each time, which is
checked and not kept. What a move is and does is `actors/partition_mover.py`.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Response

from actors.lane_spread import even_moves
from actors.partition_mover import half_moved
from actors.spread_job import Spread
from billing.errors import BillingError, Conflict, InvalidInput
from deployments.front.operations.routes import STATUS_TIMEOUT_S
from deployments.front.page import Front, Visit
from deployments.lanes import LANES_MAX
from storage.sql import audit, keys
from storage.usage_log.genesis import PARTITIONS
from storage.usage_log.manifest import Manifest, ManifestChain

PATH = "/operations/lanes"
ACTIONS = ("move", "drain", "spread")
SCOPE = "tenants:create"
ERRORS = ("stopped_because", "clock_error", "checkpoint_error", "figures_error", "followers_error")
SHOWN_PARTITIONS = 256
NODE_SHOWN = 12  # characters of a node's id, enough for `lanes leave`
MOVES_SHOWN = 100  # of one change in the trail
FOLLOW_EVERY_S, FOLLOWED_S = 2, 3_600
log = logging.getLogger("cloudbilling.http")
Word = Annotated[str, Form(max_length=200)]


@dataclass(frozen=True)
class Asked:
    """What somebody wants to change, as typed; and what it comes to once it is understood."""

    action: str
    partition: str = ""
    lane: str = ""
    lanes: str = ""
    moves: tuple[tuple[int, int, int], ...] = ()  # partition, from lane, to lane
    after: tuple[int, ...] = ()  # lanes that have partitions then


@dataclass(frozen=True)
class State:
    """One look at all lanes; `wrong` says why there is none."""

    lanes: tuple[Any, ...] = ()
    unreachable: tuple[int, ...] = ()
    plan: dict[str, Any] | None = None
    manifest: Manifest | None = None
    wrong: str = ""
    spread: Spread | None = None  # that is under way
    closed: tuple[int, ...] = ()
    nodes: Mapping[int, str] = field(default_factory=dict[int, str])  # by lane, on a cluster
    leaving: tuple[str, ...] = ()

    @property
    def next_lane(self) -> int:
        """The number of one that would be begun; those of closed lanes are not used again."""
        return max([one.lane for one in self.lanes] + list(self.closed)) + 1


def routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    services = front.services
    visitor = Depends(front.signed_in)
    followers: set[asyncio.Task[None]] = set()  # an event loop keeps no task by itself

    async def look(visit: Visit) -> State:
        try:
            status = await asyncio.wait_for(services.router.status(), STATUS_TIMEOUT_S)
            plan = await asyncio.wait_for(services.router.plan(), STATUS_TIMEOUT_S)
            manifest = await asyncio.to_thread(ManifestChain(services.store).newest)
        except (BillingError, TimeoutError) as error:
            return State(wrong=str(error) or visit.texts("operations.no_shard"))
        known = tuple(sorted(status.lanes, key=lambda one: one.lane))
        spread = status.spread if status.spread is not None and not status.spread.done else None
        return State(
            known, status.unreachable, plan, manifest, spread=spread, closed=status.closed,
            nodes=status.nodes, leaving=tuple(sorted(status.leaving)),
        )  # fmt: skip

    async def page(visit: Visit, status: int = 200, **view: Any) -> Response:
        state = await look(visit)
        shown = {"asked": None, "wrong": "", "done": "", "key_wrong": False, **view}
        return await asyncio.to_thread(
            front.page, visit, "operations/lanes.html", status=status, area="operations", state=state,
            lanes=[_lane_view(one, state, visit) for one in state.lanes],
            half=half_moved(state.lanes) if not state.unreachable else [], may=visit.may("access:write"), **shown,
        )  # fmt: skip

    def _operator(text: str) -> str | None:
        """The key's name for the record, if it may change lanes."""
        with services.database.system() as connection:
            key = keys.find(connection, text.strip(), services.clock()) if text.strip() else None
        return f"key {key.start}" if key is not None and key.tenant_id is None and SCOPE in key.scopes else None

    @router.get(PATH)
    async def show(
        visit: Annotated[Visit, visitor], moved: int | None = None, stayed: int = 0, left: int = 0
    ) -> Response:
        visit.need("access:read")
        t, done = visit.texts, ""
        if moved is not None:
            done = t("lanes.done", n=moved, count=visit.formats.number(moved))
            done += " " + t("lanes.stayed", n=stayed, count=visit.formats.number(stayed)) if stayed > 0 else ""
            done += " " + t("lanes.left", n=left, count=visit.formats.number(left)) if left > 0 else ""
        return await page(visit, done=done)

    @router.post(PATH)
    async def change(
        visit: Annotated[Visit, visitor],
        action: Word = "",
        partition: Word = "",
        lane: Word = "",
        lanes: Word = "",
        confirmed: Word = "",
        platform_key: Word = "",
        form_token: Word = "",
    ) -> Response:
        """First what it comes to, then, with a platform key, the change itself."""
        visit.need("access:write")
        front.check_form(visit, form_token)
        state = await look(visit)
        asked = Asked(action, partition, lane, lanes)
        try:
            asked = _understood(asked, state, visit)
        except InvalidInput as error:
            return await page(visit, 422, asked=asked, wrong=error.detail)
        if not confirmed:
            return await page(visit, asked=asked)
        operator = await asyncio.to_thread(_operator, platform_key)
        if operator is None:
            return await page(visit, 403, asked=asked, wrong=visit.texts("lanes.key_wrong"), key_wrong=True)
        # Before and after: what was begun is seen even if this process ends, or the answer does not come, in between.
        await asyncio.to_thread(_record, visit, "lanes change begun", _said(asked, operator))
        left = 0
        try:
            if asked.action == "move":
                [(number, _, target)] = asked.moves
                moved = int(bool((await services.router.move(number, target)).get("moved", True)))
            else:
                spread = await services.router.spread(list(asked.after))
                moved, left = spread.moved, 0
                if not spread.done:  # what is left it knows once it has looked at all lanes
                    left = len(asked.moves) - spread.moved - spread.stayed
        except Exception as error:
            why = (error.detail if isinstance(error, BillingError) else "") or type(error).__name__
            await asyncio.to_thread(_record, visit, "lanes change failed", {**_said(asked, operator), "why": why})
            if isinstance(error, (Conflict, InvalidInput)):
                return await page(visit, error.status, asked=asked, wrong=error.detail)
            raise
        log.info("lanes changed by %s, %s: %s, %d moved", visit.user.actor, operator, asked.action, moved)
        if left:
            follower = asyncio.create_task(_follow(visit, asked, operator))
            followers.add(follower)
            follower.add_done_callback(followers.discard)
        else:
            await asyncio.to_thread(_record, visit, "lanes changed", {**_said(asked, operator), "moved": moved})
        return front.go(visit, f"{PATH}?moved={moved}&stayed={max(len(asked.moves) - moved - left, 0)}&left={left}")

    async def _follow(visit: Visit, asked: Asked, operator: str) -> None:
        """Record how a change ended that goes on by itself. If this process ends before, it is recorded as begun."""
        said = {**_said(asked, operator)}
        for _ in range(FOLLOWED_S // FOLLOW_EVERY_S):
            await asyncio.sleep(FOLLOW_EVERY_S)
            with contextlib.suppress(BillingError, TimeoutError):  # the next look may find it
                spread = (await services.router.status()).spread
                if spread is None or spread.lanes != asked.after:
                    return  # its supervisor began anew: what became of it stands in the lanes only
                if spread.done:
                    action = "lanes change failed" if spread.error else "lanes changed"
                    ended: dict[str, Any] = {"why": spread.error} if spread.error else {}
                    await asyncio.to_thread(_record, visit, action, {**said, "moved": spread.moved, **ended})
                    return

    def _record(visit: Visit, action: str, said: dict[str, Any]) -> None:
        subject = str(said.pop("action"))
        with services.database.tenant(visit.tenant_id) as connection:
            audit.record(connection, visit.tenant_id, at=services.clock(), actor=visit.user.actor, action=action,
                         subject=subject, after=said)  # fmt: skip

    return router


def _said(asked: Asked, operator: str) -> dict[str, Any]:
    """What the trail says of a change: its first moves, and how many more there are."""
    moves: Any = [{"partition": number, "from": one, "to": other} for number, one, other in asked.moves[:MOVES_SHOWN]]
    more = len(asked.moves) - len(moves)
    return {"action": asked.action, "lanes": list(asked.after), "moves": moves, "with": operator,
            **({"more_moves": more} if more else {})}  # fmt: skip


def _number(text: str, most: int) -> int | None:
    text = text.strip()
    return int(text) if re.fullmatch(r"\d{1,6}", text, re.ASCII) and int(text) <= most else None


def _understood(asked: Asked, state: State, visit: Visit) -> Asked:
    """With its moves. Raises InvalidInput in the reader's language."""
    t = visit.texts
    if asked.action not in ACTIONS:
        raise InvalidInput(t("error.parameter", name="action"))
    silent = InvalidInput(t("lanes.not_all", lanes=", ".join(map(str, state.unreachable)) or "–"))
    if state.wrong or not state.lanes or (state.unreachable and asked.action != "move"):
        raise silent
    held = {one.lane: one.owned for one in state.lanes}
    active = [lane for lane, owned in held.items() if owned]
    lane = _number(asked.lane, LANES_MAX)
    if asked.action == "move":
        partition = _number(asked.partition, PARTITIONS - 1)
        if partition is None:
            raise InvalidInput(t("lanes.partition_wrong", most=PARTITIONS - 1))
        if lane in state.unreachable:
            raise silent
        if lane is None or lane not in held:
            raise InvalidInput(t("lanes.lane_wrong", lanes=", ".join(map(str, held))))
        owner = next((one for one, owned in held.items() if partition in owned), None)
        if owner is None and state.unreachable:
            raise silent  # one that does not answer has it; a move between others needs these two only
        if owner is None or owner == lane:
            raise InvalidInput(t("lanes.there_already", partition=partition, lane=lane))
        after = {one for one, owned in held.items() if set(owned) - {partition}} | {lane}
        return replace(asked, moves=((partition, owner, lane),), after=tuple(sorted(after)))
    if asked.action == "drain":
        if lane not in active:
            raise InvalidInput(t("lanes.empty_already"))
        after = {one for one in active if one != lane}
        if not after:
            raise InvalidInput(t("lanes.only_one"))
    else:
        words = [word for word in re.split(r"[\s,]+", asked.lanes) if word]
        numbers = [_number(word, LANES_MAX) for word in words]
        after = {number for number in numbers if number is not None}
        # One new lane at a time: each is a process that begins, and a slip of the keys would begin hundreds.
        if not after or None in numbers or max(after) > state.next_lane or after.intersection(state.closed):
            raise InvalidInput(t("lanes.list_wrong", most=state.next_lane))
    moves = tuple(even_moves(held, sorted(after)))
    if not moves:
        raise InvalidInput(t("lanes.nothing"))
    return replace(asked, moves=moves, after=tuple(sorted(after)))


def _lane_view(one: Any, state: State, visit: Visit) -> dict[str, Any]:
    f = visit.formats
    load = next((load for load in (state.plan or {}).get("loads", ()) if load["lane"] == one.lane), None)
    sealed = state.manifest.sealed_to(one.lane) if state.manifest else -1
    facts = [
        ("partitions", f.number(one.partitions)),
        ("rows_s", f.number(load["rows_s"] if load else None)),
        ("queued_rows", f.number(one.queued_rows)),
        ("number", f.number(one.number)),
        ("sealed", f.number(sealed if sealed >= 0 else None)),
        ("tail", f.number(one.number - sealed)),
        ("checkpoint", f.number(one.checkpoint if one.checkpoint >= 0 else None)),
        ("epoch", f.number(one.epoch)),
    ]
    heard = datetime.fromtimestamp(one.log_time_us // 1_000_000, UTC) if one.log_time_us > 0 else None
    return {
        "lane": one.lane,
        "node": (state.nodes.get(one.lane) or "")[:NODE_SHOWN],
        "facts": facts,
        "heard": heard,
        "ok": bool(one.serving),
        "errors": [str(getattr(one, name)) for name in ERRORS if getattr(one, name)],
        "owned": _ranges(one.owned),
        "empty": not one.partitions,
    }


def _ranges(numbers: Any) -> str:
    """3, 4, 5, 9 as 3–5, 9."""
    found: list[list[int]] = []
    for number in sorted(numbers)[:SHOWN_PARTITIONS]:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{first}–{last}" if first != last else str(first) for first, last in found) or "–"
