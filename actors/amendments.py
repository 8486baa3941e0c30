"""Amending and voiding events: decided in the lane of the key that an event was sent with. No Ray in here.

Owns the order of one event's amendments: its `nth` is given out here, so two people who change one event at once do not
both succeed. The rows in other partitions only follow from the decision and are harmless to write again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from actors.followers import NO_ROWS, Decided, Decision, LiesIn, LogMoment, LogRow, log_rows
from billing.amendments import SOURCE, Amendment, AmendmentRow, EventState, amendment_of, rows_of
from storage.usage_log.segment import RowKind

AMEND, AMEND_PARTS = "amend", "amend_parts"
ITEMS_MAX = 5_000  # of one decision

_CHANGES = frozenset((int(RowKind.AMENDED), int(RowKind.VOIDED)))
# Of each event that was ever amended: nth, id of the amendment, and the key that has it now ("": voided).
_Newest = tuple[int, str, str]


class Amendments:
    """A follower; keeps the newest amendment of each amended event whose key is at home in this lane."""

    name = "amendments"
    version = 1

    def __init__(self) -> None:
        self.decisions: Mapping[str, Decision] = {AMEND: self._amend, AMEND_PARTS: self._parts}
        self._newest: dict[tuple[str, str, str, str], _Newest] = {}

    def watches(self, tenant_id: str) -> bool:
        return False

    def propose(self, rows: pl.DataFrame, moment: LogMoment) -> pl.DataFrame:
        return NO_ROWS

    def apply(self, rows: pl.DataFrame, moment: LogMoment) -> None:
        if _CHANGES.isdisjoint(rows["kind"].to_list()):
            return
        changes = rows.filter(pl.col("kind").is_in([int(RowKind.AMENDED), int(RowKind.VOIDED)]))
        for tenant_id, id_, detail in changes.select("tenant", "id", "detail").iter_rows():
            amendment = amendment_of(detail)
            if id_ != amendment.id:
                continue  # not the decision: a row that follows from one
            holder = "" if amendment.after is None else amendment.after.customer
            self._newest[tenant_id, *amendment.event.identity] = (amendment.nth, amendment.id, holder)

    def freeze(self) -> Callable[[], bytes]:
        newest = list(self._newest.items())
        return lambda: json.dumps([[*key, *value] for key, value in newest]).encode()

    def thaw(self, data: bytes, number: int) -> None:
        self._newest = {(row[0], row[1], row[2], row[3]): (row[4], row[5], row[6]) for row in json.loads(data)}

    def clear(self) -> None:
        self._newest = {}

    def leave(self, lies_in: LiesIn) -> None:
        tenants: dict[str, list[tuple[str, str, str, str]]] = {}
        for name in self._newest:
            tenants.setdefault(name[0], []).append(name)
        for tenant_id, names in tenants.items():
            for name, goes in zip(names, lies_in(tenant_id, [one[1] for one in names]), strict=True):
                if goes:
                    del self._newest[name]

    # -- decisions ----------------------------------------------------------------------------------------------------

    def _amend(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        """Amendments of events of this lane; an answer each: the amendment as it was decided, or why not."""
        asked = [Amendment.from_form(form) for form in json.loads(payload)]
        assert len(asked) <= ITEMS_MAX, "the caller makes smaller batches"
        exists = moment.is_recorded(tenant_id, [one.event.identity for one in asked])
        used = moment.is_recorded(tenant_id, [(one.event.key, SOURCE, one.id) for one in asked])
        fresh: dict[tuple[str, str, str, str], _Newest] = {}
        taken: set[tuple[str, str]] = set()
        rows: list[LogRow] = []
        answers: list[dict[str, Any]] = []
        for one, is_there, is_used in zip(asked, exists, used, strict=True):
            name = (tenant_id, *one.event.identity)
            newest = fresh.get(name) or self._newest.get(name)
            if newest is not None and newest[1] == one.id:
                answers.append({"repeated": True})
            elif not is_there:
                answers.append({"refused": "there is no such event"})
            elif is_used:
                answers.append({"refused": "this amendment was made before, and the event was changed again since"})
            elif (one.event.key, one.id) in taken:
                answers.append({"refused": "another event has an amendment of this id in the same request"})
            elif one.nth != (newest[0] if newest else 0) + 1:
                answers.append({"refused": "the event was changed meanwhile: look at it again"})
            else:
                holder = newest[2] if newest else one.event.key
                decided = replace(one, at_us=moment.now_us(tenant_id), holder=holder)
                rows.append(log_row(rows_of(decided)[0]))
                taken.add((one.event.key, one.id))
                fresh[name] = (one.nth, one.id, "" if one.after is None else one.after.customer)
                answers.append({"decided": decided.to_form()})
        return Decided(log_rows(tenant_id, rows), json.dumps(answers).encode())

    def _parts(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        """Rows that follow from decisions elsewhere; those that are there already, or twice in here, are left out."""
        named = {(one.customer, one.id): one for one in (part_of(form) for form in json.loads(payload))}
        asked = list(named.values())
        there = moment.is_recorded(tenant_id, [(one.customer, SOURCE, one.id) for one in asked])
        rows = [log_row(one) for one, is_there in zip(asked, there, strict=True) if not is_there]
        return Decided(log_rows(tenant_id, rows), str(len(rows)).encode())


def log_row(row: AmendmentRow) -> LogRow:
    return LogRow(
        RowKind.AMENDED if row.is_amended else RowKind.VOIDED,
        SOURCE,
        row.id,
        row.customer,
        row.state.time_us,
        row.detail,
        type=row.state.type,
        subscription=row.state.subscription,
        data=row.state.data,
    )


def part_to_form(row: AmendmentRow) -> dict[str, Any]:
    return {
        "is_amended": row.is_amended,
        "id": row.id,
        "customer": row.customer,
        "state": row.state.to_form(),
        "detail": row.detail,
    }


def part_of(form: dict[str, Any]) -> AmendmentRow:
    return AmendmentRow(
        form["is_amended"], form["id"], form["customer"], EventState.from_form(form["state"]), form["detail"]
    )


def as_list(forms: Sequence[str]) -> bytes:
    """Forms that are JSON already (ASCII) as the payload of one decision."""
    return f"[{', '.join(forms)}]".encode()
