"""Bill runs in SQL: their fixed facts, their chunks, their state. What a run does is `pipelines/bill_run.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any
from uuid import UUID

import psycopg
import uuid_utils
from psycopg.types.json import Jsonb

from billing.errors import Conflict, NotFound
from billing.numbers import patterns_of
from storage.sql.database import Connection

ENDED = ("done", "cancelled", "reversed")
TIMED = ("planned", "approved", "finalised")  # states in which a driver works, one stage each


def keep_out(connection: Connection, tenant_id: str) -> None:
    """No run of the tenant begins, and none is taken back, until this transaction ends: for a document beside runs.

    Whoever asks `active` after this sees every run that there will be until then.
    """
    connection.execute("SELECT pg_advisory_xact_lock_shared(hashtextextended(%s, 0))", (f"bill runs {tenant_id}",))


def alone(connection: Connection, tenant_id: str) -> None:
    """Wait until nobody keeps runs out, and let nobody do so until this transaction ends."""
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"bill runs {tenant_id}",))


def one_preview_at_a_time(connection: Connection, tenant_id: str) -> None:
    """Until this transaction ends nobody else finds room for a preview of the tenant's runs, which no table has."""
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"run previews {tenant_id}",))


def create(
    connection: Connection,
    tenant_id: str,
    *,
    run_id: str | None = None,
    up_to: datetime,
    document_date: date,
    made_at: datetime,
    cut: Mapping[str, Any],
    previous_cut: Mapping[str, Any] | None,
    master_number: int,
    master_steps: int,
    data_versions: Mapping[str, str],
    chunks: Sequence[int],
    auto_approve: bool,
    actor: str,
    now: datetime,
    findings: Sequence[Mapping[str, Any]] = (),
    request_key: str | None = None,
    estimate: Mapping[str, Any] | None = None,
) -> str:
    """Plan a run; `chunks` are the numbers of customers in each. Conflict while another run of the tenant goes on.

    The number patterns of all legal entities are fixed with it: a change midway would split the run's series.
    `request_key` names who asked: `by_request` finds the run of a request that is sent again.
    """
    tenant = UUID(tenant_id)
    run = UUID(run_id) if run_id else UUID(bytes=uuid_utils.uuid7().bytes)
    alone(connection, tenant_id)
    try:
        connection.execute(
            "INSERT INTO bill_runs (tenant_id, id, number, up_to, document_date, made_at, cut, previous_cut,"
            " master_number, master_steps, data_versions, state, customers, chunks, auto_approve,"
            " created_by, started_at, findings, request_key, patterns, estimate)"
            " SELECT %s, %s, coalesce(max(number), 0) + 1, %s, %s, %s, %s, %s, %s, %s, %s, 'planned', %s, %s, %s, %s,"
            " %s, %s, %s, %s, %s FROM bill_runs",
            (
                tenant,
                run,
                up_to,
                document_date,
                made_at,
                Jsonb(dict(cut)),
                None if previous_cut is None else Jsonb(dict(previous_cut)),
                master_number,
                master_steps,
                Jsonb(dict(data_versions)),
                sum(chunks),
                len(chunks),
                auto_approve,
                actor,
                now,
                Jsonb(list(findings)),
                request_key,
                Jsonb(_patterns(connection)),
                None if estimate is None else Jsonb(dict(estimate)),
            ),
        )
    except psycopg.errors.UniqueViolation as error:
        raise goes_on() from error
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO bill_run_chunks (tenant_id, run_id, chunk, state, customers, changed_at)"
            " VALUES (%s, %s, %s, 'planned', %s, %s)",
            [(tenant, run, chunk, customers, now) for chunk, customers in enumerate(chunks)],
        )
    return str(run)


def goes_on() -> Conflict:
    """What a plan is answered while a run of its tenant has not ended."""
    return Conflict("a bill run of this tenant is going on: wait for it, resume it or cancel it")


def _patterns(connection: Connection) -> dict[str, dict[str, str]]:
    """Those of all legal entities as they are now, by code and type of document."""
    rows = connection.execute("SELECT code, form, is_default FROM legal_entities").fetchall()
    return {row["code"]: patterns_of(row["code"], row["form"], is_default=row["is_default"]) for row in rows}


def patterns_given(connection: Connection, tenant_id: str) -> list[tuple[str, str, str]]:
    """(entity, type, pattern) of all numbers that were given, and of those that the run that goes on will give.

    No run begins until this transaction ends, so that none is planned by patterns that are being changed.
    """
    keep_out(connection, tenant_id)
    rows = connection.execute("SELECT entity, series, pattern FROM number_patterns").fetchall()
    found = {(row["entity"], row["series"], row["pattern"]) for row in rows}
    run = active(connection)
    for entity, patterns in ((run or {}).get("patterns") or {}).items():
        found |= {(entity, series, pattern) for series, pattern in patterns.items()}
    return sorted(found)


def get(connection: Connection, run_id: str, *, lock: bool = False) -> dict[str, Any]:
    """One run with all its columns."""
    row = connection.execute(
        ("SELECT * FROM bill_runs WHERE id = %s FOR UPDATE" if lock else "SELECT * FROM bill_runs WHERE id = %s"),
        (UUID(run_id),),
    ).fetchone()
    if row is None:
        raise NotFound("there is no such bill run")
    return dict(row)


def active(connection: Connection) -> dict[str, Any] | None:
    """The run of the tenant that has not ended, if there is one."""
    row = connection.execute("SELECT * FROM bill_runs WHERE NOT state = ANY(%s)", (list(ENDED),)).fetchone()
    return None if row is None else dict(row)


def last_finalised(connection: Connection) -> dict[str, Any] | None:
    """The newest run whose documents are final: its cut tells which events are new."""
    row = connection.execute(
        "SELECT * FROM bill_runs WHERE state IN ('finalised', 'done') ORDER BY number DESC LIMIT 1"
    ).fetchone()
    return None if row is None else dict(row)


def last_with_sums(connection: Connection, count: int) -> list[dict[str, Any]]:
    """The newest runs whose documents are final and which made some, newest first: each with `documents` and `sums`
    (net and gross by currency)."""
    rows = connection.execute(
        "SELECT r.*, made.documents FROM bill_runs r CROSS JOIN LATERAL (SELECT sum(c.documents) AS documents"
        "  FROM bill_run_chunks c WHERE c.run_id = r.id) made"
        " WHERE r.state IN ('finalised', 'done') AND made.documents > 0 ORDER BY r.number DESC LIMIT %s",
        (count,),
    ).fetchall()
    return [{**row, "documents": int(row["documents"]), "sums": totals(connection, str(row["id"]))} for row in rows]


def billed_up_to(connection: Connection) -> datetime | None:
    """How far the tenant is billed: the farthest end of a run whose documents are final, whichever came last."""
    row = connection.execute(
        "SELECT max(up_to) AS up_to FROM bill_runs WHERE state IN ('finalised', 'done')"
    ).fetchone()
    return None if row is None else row["up_to"]


def any_reversed(connection: Connection, marks: Sequence[int]) -> bool:
    """Whether one of these marks (steps of the master data that say a run is final) is of a run that was taken back."""
    row = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM bill_runs WHERE state IN ('reversing', 'reversed') AND mark = ANY(%s)) AS found",
        (list(marks),),
    ).fetchone()
    return row is not None and bool(row["found"])


def by_request(connection: Connection, request_key: str) -> str | None:
    """The run that this request planned, if it came so far."""
    row = connection.execute("SELECT id FROM bill_runs WHERE request_key = %s", (request_key,)).fetchone()
    return None if row is None else str(row["id"])


def totals(connection: Connection, run_id: str) -> dict[str, dict[str, str]]:
    """What a run billed, by currency: sums of its chunks."""
    rows = connection.execute(
        "SELECT t.key AS currency, sum((t.value->>'net')::numeric)::text AS net,"
        " sum((t.value->>'gross')::numeric)::text AS gross"
        " FROM bill_run_chunks c CROSS JOIN jsonb_each(c.totals) t WHERE c.run_id = %s GROUP BY t.key",
        (UUID(run_id),),
    ).fetchall()
    return {row["currency"]: {"net": row["net"], "gross": row["gross"]} for row in rows}


def set_checks(
    connection: Connection, run_id: str, checks: Mapping[str, Any], held: Sequence[Mapping[str, str]]
) -> None:
    """What the look at a computed run found; the first one counts, they are all alike."""
    connection.execute(
        "UPDATE bill_runs SET checks = %s, held = %s WHERE id = %s AND checks IS NULL",
        (Jsonb(dict(checks)), Jsonb(list(held)), UUID(run_id)),
    )


def release(connection: Connection, run_id: str, customers: Sequence[str], by: str) -> None:
    """Let customers through whom a rail held."""
    connection.execute(
        "UPDATE bill_runs SET released = released || %s WHERE id = %s",
        (Jsonb([{"customer": customer, "by": by} for customer in customers]), UUID(run_id)),
    )


def held_back(run: Mapping[str, Any]) -> list[dict[str, str]]:
    """Those held whom nobody has let through."""
    released = {one["customer"] for one in run["released"]}
    return [one for one in run["held"] if one["customer"] not in released]


def page(connection: Connection, *, after: int | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """Runs, newest first, below the number `after`."""
    rows = connection.execute(
        "SELECT * FROM bill_runs WHERE (%s::int IS NULL OR number < %s) ORDER BY number DESC LIMIT %s",
        (after, after, limit),
    ).fetchall()
    return [dict(row) for row in rows]


def chunks(connection: Connection, run_id: str) -> list[dict[str, Any]]:
    rows = connection.execute(
        "SELECT * FROM bill_run_chunks WHERE run_id = %s ORDER BY chunk", (UUID(run_id),)
    ).fetchall()
    return [dict(row) for row in rows]


def chunk_for_update(connection: Connection, run_id: str, chunk: int) -> dict[str, Any]:
    """One chunk, locked until the transaction ends: two drivers finalise it one after the other."""
    row = connection.execute(
        "SELECT * FROM bill_run_chunks WHERE run_id = %s AND chunk = %s FOR UPDATE", (UUID(run_id), chunk)
    ).fetchone()
    assert row is not None, "a chunk of a run is never deleted"
    return dict(row)


def chunk_computed(
    connection: Connection,
    run_id: str,
    chunk: int,
    *,
    result: str,
    documents: int,
    lines: int,
    totals: Mapping[str, Any],
    parked: Sequence[Mapping[str, str]],
    now: datetime,
) -> None:
    connection.execute(
        "UPDATE bill_run_chunks SET state = 'computed', result = %s, documents = %s, lines = %s, totals = %s,"
        " parked = %s, changed_at = %s WHERE run_id = %s AND chunk = %s AND state = 'planned'",
        (result, documents, lines, Jsonb(dict(totals)), Jsonb(list(parked)), now, UUID(run_id), chunk),
    )


def chunk_finalised(
    connection: Connection,
    run_id: str,
    chunk: int,
    *,
    documents: int,
    lines: int,
    totals: Mapping[str, Any],
    now: datetime,
) -> None:
    """What became final of a chunk: less than was computed where a rail held somebody back."""
    connection.execute(
        "UPDATE bill_run_chunks SET state = 'finalised', documents = %s, lines = %s, totals = %s, changed_at = %s"
        " WHERE run_id = %s AND chunk = %s",
        (documents, lines, Jsonb(dict(totals)), now, UUID(run_id), chunk),
    )


def move(
    connection: Connection,
    run_id: str,
    *,
    expected: Sequence[str],
    state: str,
    now: datetime,
    parked: Sequence[Mapping[str, str]] | None = None,
    mark: int | None = None,
    approved_by: str | None = None,
    reversed_by: str | None = None,
) -> bool:
    """Move a run from one of the expected states; False if another driver has done so before.

    What went wrong before is over then: neither an error nor a reason to wait is carried along. How long a driver
    worked on the stage that ends is kept, since it took it up the last time.
    """
    result = connection.execute(
        "UPDATE bill_runs SET state = %s, error = NULL, waiting_reason = NULL, parked = coalesce(%s, parked),"
        " mark = coalesce(%s, mark), approved_by = coalesce(%s, approved_by), reversed_by = coalesce(%s, reversed_by),"
        " ended_at = CASE WHEN %s = ANY(%s) THEN %s ELSE ended_at END, stage_seconds = CASE WHEN stage_since IS NULL OR"
        " NOT state = ANY(%s) THEN stage_seconds ELSE stage_seconds || jsonb_build_object(state, jsonb_build_object("
        " 'seconds', extract(epoch FROM %s - stage_since), 'from', stage_from)) END WHERE id = %s AND state = ANY(%s)",
        (
            state,
            None if parked is None else Jsonb(list(parked)),
            mark,
            approved_by,
            reversed_by,
            state,
            list(ENDED),
            now,
            list(TIMED),
            now,
            UUID(run_id),
            list(expected),
        ),
    )
    return result.rowcount == 1


def ask(connection: Connection, run_id: str, *, paused: bool | None = None, cancel: bool | None = None) -> None:
    """Ask a run to pause, to go on or to give up; its driver looks before each chunk."""
    connection.execute(
        "UPDATE bill_runs SET paused = coalesce(%s, paused), cancel_asked = coalesce(%s, cancel_asked) WHERE id = %s",
        (paused, cancel, UUID(run_id)),
    )


def note(connection: Connection, run_id: str, *, error: str | None = None, waiting_reason: str | None = None) -> bool:
    """Why a run does not go on: for good, until somebody resumes it, or until a store is back. Neither clears both.

    False if it says so already, or has ended.
    """
    result = connection.execute(
        "UPDATE bill_runs SET error = %(error)s, waiting_reason = %(waits)s"
        " WHERE id = %(run)s AND NOT state = ANY(%(ended)s)"
        " AND (error IS DISTINCT FROM %(error)s OR waiting_reason IS DISTINCT FROM %(waits)s)",
        {"error": error, "waits": waiting_reason, "run": UUID(run_id), "ended": list(ENDED)},
    )
    return result.rowcount == 1


def stage_begins(connection: Connection, run_id: str, done: int, now: datetime, *, read: bool = False) -> None:
    """A driver takes up the work of a stage, of which so much is done: from here on its speed is measured.

    `read`: what it did since it took it up before was to read the usage of all chunks.
    """
    connection.execute(
        "UPDATE bill_runs SET stage_seconds = CASE WHEN %s AND stage_since IS NOT NULL THEN stage_seconds ||"
        " jsonb_build_object('reading', jsonb_build_object('seconds', extract(epoch FROM %s - stage_since), 'from', 0))"
        " ELSE stage_seconds END, stage_since = %s, stage_from = %s WHERE id = %s",
        (read, now, now, done, UUID(run_id)),
    )


def went_on(connection: Connection, run_id: str) -> None:
    """Something of the run was done: it does not wait any more."""
    connection.execute(
        "UPDATE bill_runs SET waiting_reason = NULL WHERE id = %s AND waiting_reason IS NOT NULL", (UUID(run_id),)
    )


def unfinished(connection: Connection) -> list[tuple[str, str]]:
    """(tenant, run) of all runs that have not ended and are not paused (system role): somebody should drive them."""
    rows = connection.execute(
        "SELECT tenant_id, id FROM bill_runs WHERE NOT state = ANY(%s) AND NOT paused ORDER BY id", (list(ENDED),)
    ).fetchall()
    return [(str(row["tenant_id"]), str(row["id"])) for row in rows]
