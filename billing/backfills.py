"""Backfills: usage that is sent for long and counts at once or not at all. What their rows of the log say; no I/O.

Owns the states of a backfill, the forms of its rows' `detail` and the fold of them. The rules are in docs/usage-log.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

SOURCE = "cloudbilling:backfill"  # of the rows' own ids; no sender may use it
HOME_KEY = "cloudbilling:backfills"  # the customer key whose partition is the tenant's home of backfills
REVERTED_MAX = 64  # the ids of so many reverted backfills, the newest, can be sent again
NOTE_LENGTH_MAX = 500
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # no colon: it ends the name in what is hashed

State = Literal["open", "closing", "committed", "reverted"]


def is_name(text: str) -> bool:
    """Whether a backfill may be called so."""
    return _NAME.fullmatch(text) is not None


def row_detail(backfill: str, again: str = "") -> str:
    """The `detail` of an event that was sent under a backfill; `again`: the reverted one that had its id before."""
    form = {"backfill": backfill} | ({"again": again} if again else {})
    return json.dumps(form, separators=(",", ":"))


@dataclass(frozen=True)
class LaneShare:
    """What a backfill has in one lane: it takes no more rows after `number`."""

    number: int
    events: int

    def to_form(self) -> list[int]:
        return [self.number, self.events]


@dataclass(frozen=True)
class Backfill:
    """One backfill as its home partition has decided it."""

    name: str
    state: State
    opened_us: int
    opened_by: str
    note: str = ""
    shares: Mapping[int, LaneShare] = field(default_factory=dict[int, LaneShare])  # by lane; known once it is committed
    committed_us: int = 0
    committed_by: str = ""
    lane: int = -1  # of the record that made its events count: their position for everything that goes by position
    number: int = -1
    reverted_us: int = 0
    reverted_by: str = ""
    reason: str = ""
    was_committed: bool = False  # a reverted one may never have counted

    @property
    def events(self) -> int:
        return sum(share.events for share in self.shares.values())

    def to_form(self) -> dict[str, Any]:
        form = dict(vars(self))
        form["shares"] = {str(lane): share.to_form() for lane, share in self.shares.items()}
        return form

    @classmethod
    def from_form(cls, form: Mapping[str, Any]) -> Backfill:
        shares: dict[int, LaneShare] = {int(lane): LaneShare(*share) for lane, share in form["shares"].items()}
        rest: dict[str, Any] = {name: value for name, value in form.items() if name != "shares"}
        return cls(shares=shares, **rest)


# The steps that rows of a backfill note, by the word in their detail. The first three and the two decisions lie in the
# home partition; the others in each lane.
OPENED, CLOSING, COMMITTED, REVERTED = "opened", "closing", "committed", "reverted"
ADMITTED, CLOSED, SHOWN, HIDDEN = "admitted", "closed", "shown", "hidden"


def positions_in(details: Iterable[str | None]) -> dict[int, int]:
    """The numbers of lanes that commit records rest on: a cut that has the record has these, too."""
    found: dict[int, int] = {}
    for detail in details:
        form = json.loads(detail or "{}")
        for lane, (number, _) in form.get("shares", {}).items():
            found[int(lane)] = max(found.get(int(lane), -1), number)
    return found


def after_step(
    before: Backfill | None, name: str, detail: Mapping[str, Any], time_us: int, lane: int, number: int
) -> Backfill:
    """A backfill after a row of its home partition."""
    step, by = detail["step"], detail.get("by", "")
    if step == OPENED:
        return Backfill(name, "open", time_us, by, detail.get("note", ""))
    assert before is not None, f"backfill {name} is {step} and was never opened"
    if step == CLOSING:
        return replace(before, state="closing")
    if step == COMMITTED:
        shares = {int(each): LaneShare(*share) for each, share in detail["shares"].items()}
        return replace(
            before,
            state="committed",
            shares=shares,
            committed_us=time_us,
            committed_by=by,
            lane=lane,
            number=number,
            was_committed=True,
        )
    assert step == REVERTED, f"a step {step} of a backfill is not known here"
    return replace(before, state="reverted", reverted_us=time_us, reverted_by=by, reason=detail.get("reason", ""))
