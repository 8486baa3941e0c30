"""Steps of master data in SQL: the record of every change of catalog and contracts, and the numbers they got.

Owns the order of changes (a locked counter per tenant, so change numbers have no gap), their validation against
everything before them, and the searchable records that follow from them. How changes reach shards and tasks is
`storage/master_chain.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from billing.errors import FieldError, InvalidInput, NotFound, PreconditionFailed, TooLarge
from billing.master import MasterData
from storage.sql import master_records
from storage.sql.database import Connection

STEPS_MAX = 10_000  # of one change


@dataclass(frozen=True)
class AppendedChange:
    """One committed change: its number in the tenant's master chain, and the numbers of its steps."""

    number: int
    first_step: int
    last_step: int
    master: MasterData


class _Cache:
    """The newest master data of a few tenants. Values never change and carry their number, so a stale entry is only
    a slower start, never a wrong answer."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = Lock()
        self._entries: OrderedDict[str, tuple[int, MasterData]] = OrderedDict()

    def get(self, tenant_id: str) -> tuple[int, MasterData] | None:
        with self._lock:
            entry = self._entries.get(tenant_id)
            if entry:
                self._entries.move_to_end(tenant_id)
            return entry

    def put(self, tenant_id: str, number: int, master: MasterData) -> None:
        with self._lock:
            known = self._entries.get(tenant_id)
            if known is None or known[0] <= number:
                self._entries[tenant_id] = (number, master)
                self._entries.move_to_end(tenant_id)
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)


_CACHE = _Cache(64)


def start_master(
    connection: Connection, tenant_id: str, tenant_form: Mapping[str, Any], actor: str, now: datetime | None = None
) -> int:
    """Begin a tenant's master data: change 0 without steps. In the transaction that made the tenant's row follow."""
    MasterData.start(tenant_form)
    tenant = UUID(tenant_id)
    connection.execute("INSERT INTO masters (tenant_id) VALUES (%s)", (tenant,))
    connection.execute(
        "INSERT INTO master_changes (tenant_id, number, first_step, last_step, actor, changed_at)"
        " VALUES (%s, 0, 1, 0, %s, %s)",
        (tenant, actor, now or datetime.now(UTC)),
    )
    return 0


def append_steps(
    connection: Connection,
    tenant_id: str,
    steps: Sequence[Mapping[str, Any]],
    actor: str,
    *,
    now: datetime | None = None,
    expected: Mapping[tuple[str, str], int] | None = None,
) -> AppendedChange:
    """Apply steps as one change, all or none. The caller projects it to the chain after its commit.

    `expected` maps (kind, code) to the version that the caller has seen (If-Match).
    Errors: InvalidInput with a pointer per bad field (`/17/subscribe/plan`), PreconditionFailed, TooLarge, NotFound.
    """
    if len(steps) > STEPS_MAX:
        raise TooLarge(f"a change has at most {STEPS_MAX} steps, this one has {len(steps)}")
    for place, step in enumerate(steps):
        customer = step.get("customer")
        if isinstance(customer, Mapping) and "erased" in customer:
            detail = "only an erasure writes this: POST /v1/customers/{code}/erasure"
            raise InvalidInput(detail, errors=[FieldError(f"/{place}/customer/erased", detail)])
    tenant = UUID(tenant_id)
    counter = connection.execute(
        "SELECT number, steps FROM masters WHERE tenant_id = %s FOR UPDATE", (tenant,)
    ).fetchone()
    if counter is None:
        raise NotFound("the tenant has no master data")
    for (kind, code), version in (expected or {}).items():
        found = master_records.version(connection, kind, code)
        if found is None:
            raise NotFound(f"there is no {kind} {code!r}")
        if found != version:
            raise PreconditionFailed(f"{kind} {code!r} is at version {found}, not {version}: read it again")
    before = _at(connection, tenant_id, counter["number"])
    assert before.step_count == counter["steps"], "the counter and the steps of a tenant differ"
    after = before.apply_all(steps, fresh=True)
    number, first = counter["number"] + 1, counter["steps"] + 1
    connection.execute(
        "INSERT INTO master_changes (tenant_id, number, first_step, last_step, actor, changed_at)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        (tenant, number, first, after.step_count, actor, now or datetime.now(UTC)),
    )
    records = master_records.changed(before, after, steps)
    previous = master_records.forms(connection, [(record.kind, record.code) for record in records])
    rows = []
    for place, step in enumerate(steps):
        kind = next(key for key in step if key != "at")
        subject = master_records.subject_of(step)
        rows.append((tenant, first + place, number, kind, subject[1], Jsonb(dict(step)), _json(previous.get(subject))))
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO steps (tenant_id, step, number, kind, subject, form, before)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            rows,
        )
    master_records.store(connection, tenant_id, records, after.step_count)
    connection.execute(
        "UPDATE masters SET number = %s, steps = %s WHERE tenant_id = %s", (number, after.step_count, tenant)
    )
    return AppendedChange(number, first, after.step_count, after)


def append_step(
    connection: Connection, tenant_id: str, step: Mapping[str, Any], actor: str, **options: Any
) -> AppendedChange:
    """One step as a change of its own; pointers of errors start with `/0`."""
    return append_steps(connection, tenant_id, [step], actor, **options)


def current(connection: Connection, tenant_id: str) -> tuple[int, MasterData]:
    """The newest committed master data of the tenant and its number."""
    number = current_number(connection, tenant_id)
    return number, _at(connection, tenant_id, number)


def current_number(connection: Connection, tenant_id: str) -> int:
    """The newest committed number of the tenant. Errors: NotFound."""
    row = connection.execute("SELECT number FROM masters WHERE tenant_id = %s", (UUID(tenant_id),)).fetchone()
    if row is None:
        raise NotFound("the tenant has no master data")
    return int(row["number"])


def at_hand(tenant_id: str) -> tuple[int, MasterData] | None:
    """A committed number and its master data, the newest that this process happens to have put together."""
    return _CACHE.get(tenant_id)


def keep(tenant_id: str, number: int, master: MasterData) -> None:
    """Have master data of a committed number at hand that the caller got elsewhere."""
    _CACHE.put(tenant_id, number, master)


def changes_after(connection: Connection, tenant_id: str, number: int, limit: int) -> list[dict[str, Any]]:
    """Committed changes behind a number, in order, each with its steps: what the projector writes to the chain."""
    rows = connection.execute(
        "SELECT c.number, c.first_step, c.last_step, c.actor, c.changed_at, c.erased,"
        " coalesce((SELECT jsonb_agg(s.form ORDER BY s.step) FROM steps s"
        "   WHERE s.tenant_id = c.tenant_id AND s.step BETWEEN c.first_step AND c.last_step), '[]'::jsonb) AS forms"
        " FROM master_changes c WHERE c.tenant_id = %s AND c.number > %s ORDER BY c.number LIMIT %s",
        (UUID(tenant_id), number, limit),
    ).fetchall()
    return [dict(row) for row in rows]


def history(connection: Connection, kind: str, code: str, limit: int = 200) -> list[dict[str, Any]]:
    """Who changed a thing, when, before and after; newest first."""
    rows = connection.execute(
        "SELECT s.step, s.number, s.kind, s.subject, s.form, s.before, c.actor, c.changed_at FROM steps s"
        " JOIN master_changes c ON c.tenant_id = s.tenant_id AND c.number = s.number"
        " WHERE s.subject = %s AND s.kind = ANY(%s) ORDER BY s.step DESC LIMIT %s",
        (code, list(master_records.STEP_KINDS[kind]), limit),
    ).fetchall()
    return [dict(row) for row in rows]


def _at(connection: Connection, tenant_id: str, number: int) -> MasterData:
    """Master data at a committed number: from the cache if it is there, with what came since applied to it."""
    known = _CACHE.get(tenant_id)
    if known and known[0] == number:
        return known[1]
    if known and known[0] < number and not _erased_since(connection, tenant_id, known[0], number):
        since, master = known
    else:
        row = connection.execute("SELECT form FROM tenants WHERE id = %s", (UUID(tenant_id),)).fetchone()
        if row is None:
            raise NotFound("there is no such tenant")
        since, master = -1, MasterData.start(row["form"])
    rows = connection.execute(
        "SELECT form FROM steps WHERE tenant_id = %s AND step > %s AND number > %s AND number <= %s ORDER BY step",
        (UUID(tenant_id), master.step_count, since, number),
    ).fetchall()
    master = master.apply_all(row["form"] for row in rows)
    _CACHE.put(tenant_id, number, master)
    return master


def _erased_since(connection: Connection, tenant_id: str, since: int, number: int) -> bool:
    """Whether older changes were written anew: what was put together of them before says what is to be forgotten."""
    row = connection.execute(
        "SELECT 1 FROM master_changes WHERE tenant_id = %s AND number > %s AND number <= %s AND erased LIMIT 1",
        (UUID(tenant_id), since, number),
    ).fetchone()
    return row is not None


def _json(form: Mapping[str, Any] | None) -> Jsonb | None:
    return None if form is None else Jsonb(dict(form))
