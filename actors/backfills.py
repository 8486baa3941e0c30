"""Backfills in a lane: which are open here, their events, and for those at home here what was decided. No Ray in here.

Owns the two halves of a commit: a lane that closes takes no more rows of a backfill and says how many it has; the home
partition writes the one record by which all of them count. The order of the calls is actors/backfill_desk.py.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from actors.followers import NO_ROWS, Decided, Decision, LiesIn, LogMoment, LogRow, log_rows
from billing.backfills import (
    ADMITTED,
    CLOSED,
    CLOSING,
    COMMITTED,
    HIDDEN,
    HOME_KEY,
    OPENED,
    REVERTED,
    REVERTED_MAX,
    SHOWN,
    SOURCE,
    Backfill,
    after_step,
    row_detail,
)
from billing.errors import Conflict, NotFound, Unavailable
from billing.usage import EVENT_SCHEMA, Verdict
from storage.usage_log.segment import ROW_SCHEMA, RowKind

OPEN, CLOSE_DOWN, COMMIT, REVERT, LIST = (
    "backfill_open",
    "backfill_close_down",
    "backfill_commit",
    "backfill_revert",
    "backfill_list",
)
ADMIT, ROWS, CLOSE, SHOW = "backfill_admit", "backfill_rows", "backfill_close", "backfill_show"
OPEN_MAX = 100  # of a tenant at once: each is looked at when a lane says what it has
ELSEWHERE = 254  # as a verdict: the row's partition lies in another lane
MISSING = b"missing"  # instead of verdicts: this lane has not heard of the backfill
_HOME_STEPS = frozenset((OPENED, CLOSING, COMMITTED, REVERTED))
_NOTED = frozenset((int(RowKind.BACKFILL_NOTED), int(RowKind.BACKFILL_COMMITTED), int(RowKind.BACKFILL_REVERTED)))
_BACKFILLED = int(RowKind.BACKFILLED)


@dataclass(frozen=True)
class _Share:
    """A backfill in this lane. `closed` is the number behind which nothing of it comes; -1 while it is open."""

    events: int = 0
    closed: int = -1
    shown: bool | None = None  # whether its events count in what this lane shows live, as it noted; None: nothing yet
    reverted: tuple[str, ...] = ()  # reverted before it was opened: their ids are free for it


class Backfills:
    """A follower: of the tenant's backfills what this lane has, and all about those whose home lies here."""

    name = "backfills"
    version = 2

    def __init__(self) -> None:
        self.decisions: Mapping[str, Decision] = {
            OPEN: self._open,
            CLOSE_DOWN: self._close_down,
            COMMIT: self._commit,
            REVERT: self._revert,
            LIST: self._list,
            ADMIT: self._admit,
            ROWS: self._rows,
            CLOSE: self._close,
            SHOW: self._show,
        }
        self.clear()

    def watches(self, tenant_id: str) -> bool:
        return False

    def propose(self, rows: pl.DataFrame, moment: LogMoment) -> pl.DataFrame:
        return NO_ROWS

    def apply(self, rows: pl.DataFrame, moment: LogMoment) -> None:
        kinds = rows["kind"].to_numpy()
        if (kinds == _BACKFILLED).any():
            backfilled = rows.filter(pl.col("kind") == _BACKFILLED)
            names = pl.col("detail").str.json_path_match("$.backfill").alias("backfill")
            for tenant_id, name, count in backfilled.group_by("tenant", names).len().iter_rows():
                share = self._shares.setdefault(tenant_id, {}).get(name, _Share())
                self._shares[tenant_id][name] = replace(share, events=share.events + count)
        if _NOTED.isdisjoint(np.unique(kinds).tolist()):
            return
        for tenant_id, detail in (
            rows.filter(pl.col("kind").is_in(sorted(_NOTED))).select("tenant", "detail").iter_rows()
        ):
            self._note(tenant_id, json.loads(detail), moment)

    def _note(self, tenant_id: str, form: Mapping[str, Any], moment: LogMoment) -> None:
        name, step = form["backfill"], form["step"]
        if step in _HOME_STEPS:
            known = self._at_home.setdefault(tenant_id, {})
            known[name] = after_step(known.get(name), name, form, moment.now_us(tenant_id), moment.lane, moment.number)
            return
        shares = self._shares.setdefault(tenant_id, {})
        share = shares.get(name, _Share())
        match step:
            case "admitted":
                share = replace(share, reverted=tuple(form["reverted"]))
            case "closed":
                share = replace(share, closed=moment.number)
            case "shown" | "hidden":
                share = replace(share, shown=step == SHOWN)
            case _:
                raise AssertionError(f"a step {step} of a backfill is not known here")
        shares[name] = share

    def freeze(self) -> Callable[[], bytes]:
        shares = {tenant_id: dict(known) for tenant_id, known in self._shares.items()}
        homes = {tenant_id: dict(known) for tenant_id, known in self._at_home.items()}

        def made() -> bytes:
            form = {
                "shares": {
                    tenant_id: {name: [one.events, one.closed, one.shown, one.reverted] for name, one in known.items()}
                    for tenant_id, known in shares.items()
                },
                "homes": {tenant_id: [one.to_form() for one in known.values()] for tenant_id, known in homes.items()},
            }
            return json.dumps(form).encode()

        return made

    def thaw(self, data: bytes, number: int) -> None:
        form = json.loads(data)
        self._shares = {
            tenant_id: {
                name: _Share(events, closed, shown, tuple(reverted))
                for name, (events, closed, shown, reverted) in known.items()
            }
            for tenant_id, known in form["shares"].items()
        }
        self._at_home = {
            tenant_id: {one["name"]: Backfill.from_form(one) for one in known}
            for tenant_id, known in form["homes"].items()
        }

    def clear(self) -> None:
        self._shares: dict[str, dict[str, _Share]] = {}
        self._at_home: dict[str, dict[str, Backfill]] = {}

    def keeps_lane(self) -> bool:
        """Whether a commit may still ask what this lane has of a backfill.

        What was decided while the lane had no partitions it could not note; then it stays, empty.
        """
        return any(one.events and one.shown is None for known in self._shares.values() for one in known.values())

    def leave(self, lies_in: LiesIn) -> None:
        """What was decided at home goes with the home partition; what this lane has stays its own."""
        for tenant_id in [one for one in self._at_home if lies_in(one, [HOME_KEY])[0]]:
            del self._at_home[tenant_id]

    # -- decided at home ----------------------------------------------------------------------------------------------

    def _open(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        """Open a backfill; one of this name that there is, is what it is. Answers it and the reverted ones before."""
        form = json.loads(payload)
        known = self._at_home.get(tenant_id, {})
        reverted = sorted((one for one in known.values() if one.state == "reverted"), key=lambda one: one.reverted_us)
        free = [one.name for one in reverted[-REVERTED_MAX:]]
        if form["backfill"] in known:
            return Decided(NO_ROWS, _answer(known[form["backfill"]], free))
        if sum(one.state in ("open", "closing") for one in known.values()) >= OPEN_MAX:
            raise Conflict(f"{OPEN_MAX} backfills are open; commit or revert one first")
        detail = {**form, "step": OPENED}
        opened = after_step(None, form["backfill"], detail, moment.now_us(tenant_id), moment.lane, moment.number)
        return Decided(_home_row(tenant_id, detail, moment), _answer(opened, free))

    def _close_down(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        """No lane may let this backfill in any more; those that have done so are closed next."""
        one = self._found(tenant_id, json.loads(payload)["backfill"])
        if one.state != "open":
            return Decided(NO_ROWS, _answer(one))
        return Decided(
            _home_row(tenant_id, {"backfill": one.name, "step": CLOSING}, moment),
            _answer(replace(one, state="closing")),
        )

    def _commit(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        """From this record on the events count, all at once. A repeat gets what was decided first."""
        form = json.loads(payload)
        one = self._found(tenant_id, form["backfill"])
        if one.state == "committed":
            return Decided(NO_ROWS, _answer(one))
        if one.state == "reverted":
            raise Conflict(f"the backfill {one.name} was reverted")
        if one.state != "closing":
            raise Unavailable("The lanes of the backfill are not closed. Send the same again.")
        detail = {**form, "step": COMMITTED}
        done = after_step(one, one.name, detail, moment.now_us(tenant_id), moment.lane, moment.number)
        return Decided(_home_row(tenant_id, detail, moment, RowKind.BACKFILL_COMMITTED), _answer(done))

    def _revert(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        """From this record on the events count no more, or never will."""
        form = json.loads(payload)
        one = self._found(tenant_id, form["backfill"])
        if one.state == "reverted":
            return Decided(NO_ROWS, _answer(one))
        if one.state == "open":
            raise Unavailable("The lanes of the backfill are not closed. Send the same again.")
        detail = {**form, "step": REVERTED}
        done = after_step(one, one.name, detail, moment.now_us(tenant_id), moment.lane, moment.number)
        return Decided(_home_row(tenant_id, detail, moment, RowKind.BACKFILL_REVERTED), _answer(done))

    def _list(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        """All backfills of the tenant, or the one that is named; true now, so after a put."""
        known = self._at_home.get(tenant_id, {})
        if payload:
            known = {payload.decode(): self._found(tenant_id, payload.decode())}
        return Decided(NO_ROWS, json.dumps([one.to_form() for one in known.values()]).encode())

    def _found(self, tenant_id: str, name: str) -> Backfill:
        one = self._at_home.get(tenant_id, {}).get(name)
        if one is None:
            raise NotFound(f"there is no backfill {name!r}")
        return one

    # -- decided in each lane -----------------------------------------------------------------------------------------

    def _admit(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        """Take rows of a backfill from now on; a lane that has closed it stays closed."""
        form = json.loads(payload)
        if form["backfill"] in self._shares.get(tenant_id, {}):
            return Decided(NO_ROWS, b"")
        return Decided(_lane_row(tenant_id, {**form, "step": ADMITTED}, moment), b"")

    def _rows(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        """Store events under a backfill: a verdict each, or MISSING. What is elsewhere is left to its own lane."""
        end = 4 + int.from_bytes(payload[:4], "little")
        name = payload[4:end].decode()
        share = self._shares.get(tenant_id, {}).get(name)
        if share is None:
            return Decided(NO_ROWS, MISSING)
        if share.closed >= 0:
            raise Conflict(f"the backfill {name} takes no more events")
        events = pl.read_ipc_stream(io.BytesIO(payload[end:]))
        judged = moment.judge_backfilled(tenant_id, events, name, share.reverted)
        verdicts = np.where(judged.is_mine, Verdict.DUPLICATE, ELSEWHERE).astype(np.uint8)
        verdicts[judged.is_new] = Verdict.ACCEPTED
        new = events.filter(pl.Series(judged.is_new))
        if not new.height:
            return Decided(NO_ROWS, verdicts.tobytes())
        again = judged.again.filter(pl.Series(judged.is_new))
        detail = pl.lit(row_detail(name)).alias("detail")
        if again.null_count() < new.height:
            texts = {one: row_detail(name, one) for one in again.drop_nulls().unique()}
            detail = again.replace_strict(texts, default=row_detail(name), return_dtype=pl.String).alias("detail")
        rows = new.select(
            pl.lit(tenant_id).alias("tenant"),
            pl.lit(0, pl.UInt8).alias("partition"),
            pl.lit(_BACKFILLED, pl.UInt8).alias("kind"),
            *EVENT_SCHEMA.names(),
            detail,
        )
        return Decided(rows.select(ROW_SCHEMA.names()), verdicts.tobytes())

    def _close(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        """Take no more rows of a backfill; answers the number it stands at and how many it has."""
        name = payload.decode()
        share = self._shares.get(tenant_id, {}).get(name, _Share())
        if share.closed >= 0:
            return Decided(NO_ROWS, json.dumps([moment.lane, share.closed, share.events]).encode())
        row = _lane_row(tenant_id, {"backfill": name, "step": CLOSED}, moment)
        return Decided(row, json.dumps([moment.lane, moment.number, share.events]).encode())

    def _show(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        """Let the events count in what this lane shows live, or no more. Only follows from the record at home."""
        form = json.loads(payload)
        share = self._shares.get(tenant_id, {}).get(form["backfill"], _Share())
        if share.shown == form["shown"]:
            return Decided(NO_ROWS, b"")
        step = SHOWN if form["shown"] else HIDDEN
        return Decided(_lane_row(tenant_id, {"backfill": form["backfill"], "step": step}, moment), b"")


def encode_rows(name: str, events: pl.DataFrame) -> bytes:
    """The payload of ROWS."""
    buffer = io.BytesIO()
    buffer.write(len(name.encode()).to_bytes(4, "little"))
    buffer.write(name.encode())
    events.select(EVENT_SCHEMA.names()).write_ipc_stream(buffer, compat_level=pl.CompatLevel.newest())
    return buffer.getvalue()


def _answer(one: Backfill, reverted: list[str] | None = None) -> bytes:
    return json.dumps({"backfill": one.to_form(), "reverted": reverted or []}).encode()


def _home_row(
    tenant_id: str, detail: Mapping[str, Any], moment: LogMoment, kind: RowKind = RowKind.BACKFILL_NOTED
) -> pl.DataFrame:
    id_ = f"{detail['backfill']}#{detail['step']}"
    return log_rows(tenant_id, [LogRow(kind, SOURCE, id_, HOME_KEY, moment.now_us(tenant_id), detail)])


def _lane_row(tenant_id: str, detail: Mapping[str, Any], moment: LogMoment) -> pl.DataFrame:
    # With lane and number: partitions move, so two lanes may note the same step in one partition.
    id_ = f"{detail['backfill']}#{detail['step']}:{moment.lane}:{moment.number}"
    row = LogRow(RowKind.BACKFILL_NOTED, SOURCE, id_, "", moment.now_us(tenant_id), detail)
    return log_rows(tenant_id, [row])
