"""Searchable records of catalog and contracts: the newest form of each thing that has a code.

They follow from the steps (`storage/sql/steps.py`) and are written in the same transaction; lists, details and
search read them, billing never does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from billing.catalog_forms import to_form
from billing.errors import NotFound
from billing.master import STEPS_OF_SUBSCRIPTIONS, MasterData
from storage.sql.database import Connection, containing

# kind of record -> kinds of steps that make or change it
STEP_KINDS: dict[str, tuple[str, ...]] = {
    "tax_code": ("tax_code",),
    "meter": ("meter",),
    "plan": ("publish",),
    "customer": ("customer", "top_up", "ad_hoc"),
    "subscription": ("subscribe", *STEPS_OF_SUBSCRIPTIONS),
    "budget": ("budget",),
}
LIMIT_MAX = 1_000


@dataclass(frozen=True)
class Record:
    """One thing: `form` is its newest JSON form, for a subscription with its present `plan` and `ends`."""

    kind: str
    code: str
    name: str
    form: Mapping[str, Any]
    parent: str | None = None
    plan: str | None = None
    country: str | None = None


def subject_of(step: Mapping[str, Any]) -> tuple[str, str]:
    """(kind of record, code) that a step is about; a bill run is about the whole tenant."""
    kind = next(key for key in step if key != "at")
    form = step[kind]
    if kind == "publish":
        return "plan", str(form["plan"]["code"])
    if kind == "subscribe":
        return "subscription", str(form["code"])
    if kind in STEPS_OF_SUBSCRIPTIONS:
        return "subscription", str(form["subscription"])
    if kind in ("top_up", "ad_hoc"):
        return "customer", str(form["customer"])
    if kind in ("documents", "settings"):
        return "tenant", kind
    if kind == "bill_run_reversed":
        return "bill_run", str(form["id"])
    if kind == "bill_run":
        return "bill_run", str(form["up_to"])
    return kind, str(form["code"])


def changed(before: MasterData, after: MasterData, steps: Sequence[Mapping[str, Any]]) -> list[Record]:
    """The records that steps made or changed, each once, as they are after all of them."""
    subjects = dict.fromkeys(subject_of(step) for step in steps)
    own: dict[tuple[str, str], list[dict[str, Any]]] = {subject: [] for subject in subjects}
    for _, step in after.log:  # one pass for all: a change may have thousands of steps
        mine = own.get(subject_of(step))
        if mine is not None:
            mine.append(dict(step))
    made = (_record(after, kind, code, own[kind, code]) for kind, code in subjects)
    return [record for record in made if record is not None]


def _record(master: MasterData, kind: str, code: str, steps: Sequence[Mapping[str, Any]]) -> Record | None:
    if kind == "tax_code":
        form = to_form(master.tax_codes[code])
        return Record(kind, code, str(form.get("name") or code), form)
    if kind == "meter":
        form = to_form(master.meters[code])
        return Record(kind, code, str(form.get("name") or code), form)
    if kind == "plan":
        versions = master.plans[code]
        newest = versions[-1]
        form = {**to_form(newest), "versions": [to_form(version) for version in versions]}
        return Record(kind, code, newest.name or code, form)
    if kind == "customer":
        customer = master.customers[code]
        payer = customer.payers[-1].code if customer.payers else ""
        form = {
            "code": code,
            "name": customer.name,
            "country": customer.country,
            "tax_treatment": customer.treatments[-1][1],
            **({"keys": list(customer.keys)} if customer.keys else {}),
            **({"payer": payer} if payer else {}),
            **customer.form,
        }
        return Record(kind, code, customer.name, form, parent=payer or None, country=customer.country)
    if kind == "subscription":
        subscription = master.subscriptions[code]
        first = dict(next(step for step in steps if "subscribe" in step)["subscribe"])
        plan = next((step["change"]["plan"] for step in reversed(steps) if "change" in step), first["plan"])
        form = {**first, "plan": plan, "steps": list(steps)}
        name = f"{subscription.customer} {code}"
        return Record(kind, code, name, form, parent=subscription.customer, plan=plan)
    if kind == "budget":
        budget = master.budgets[code]
        return Record(kind, code, code, dict(steps[-1]["budget"]), parent=budget.customer)
    return None


def store(connection: Connection, tenant_id: str, records: Sequence[Record], step: int) -> None:
    """Write the newest forms; every change raises the version."""
    tenant = UUID(tenant_id)
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO master_records (tenant_id, kind, code, name, parent, plan, country, form, step, search)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
            " ON CONFLICT (tenant_id, kind, code) DO UPDATE SET name = excluded.name, parent = excluded.parent,"
            " plan = excluded.plan, country = excluded.country, form = excluded.form, step = excluded.step,"
            " search = excluded.search, version = master_records.version + 1",
            [
                (
                    tenant,
                    record.kind,
                    record.code,
                    record.name,
                    record.parent,
                    record.plan,
                    record.country,
                    Jsonb(dict(record.form)),
                    step,
                    f"{record.code} {record.name}".lower(),
                )
                for record in records
            ],
        )


def forms(connection: Connection, subjects: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """The stored forms of some things, by (kind, code); what is not there is left out."""
    if not subjects:
        return {}
    kinds, codes = [kind for kind, _ in subjects], [code for _, code in subjects]
    rows = connection.execute(
        "SELECT r.kind, r.code, r.form FROM master_records r"
        " JOIN unnest(%s::text[], %s::text[]) AS wanted (kind, code) ON wanted.kind = r.kind AND wanted.code = r.code",
        (kinds, codes),
    ).fetchall()
    return {(row["kind"], row["code"]): row["form"] for row in rows}


def version(connection: Connection, kind: str, code: str) -> int | None:
    row = connection.execute(
        "SELECT version FROM master_records WHERE kind = %s AND code = %s", (kind, code)
    ).fetchone()
    return None if row is None else int(row["version"])


def get(connection: Connection, kind: str, code: str) -> dict[str, Any]:
    """One record: kind, code, name, parent, plan, country, form, version, step."""
    row = connection.execute(
        "SELECT kind, code, name, parent, plan, country, form, version, step FROM master_records"
        " WHERE kind = %s AND code = %s",
        (kind, code),
    ).fetchone()
    if row is None:
        raise NotFound(f"there is no {kind.replace('_', ' ')} {code!r}")
    return dict(row)


def page(
    connection: Connection,
    kind: str,
    *,
    after: str | None = None,
    limit: int = 100,
    search: str | None = None,
    parent: str | None = None,
    plan: str | None = None,
    country: str | None = None,
) -> list[dict[str, Any]]:
    """Records of a kind by code, behind `after`; `search` finds parts of code and name."""
    assert 0 < limit <= LIMIT_MAX
    pattern = None if not search else containing(search.lower())
    rows = connection.execute(
        "SELECT kind, code, name, parent, plan, country, form, version, step FROM master_records"
        " WHERE kind = %(kind)s AND code > %(after)s"
        " AND (%(search)s::text IS NULL OR search LIKE %(search)s)"
        " AND (%(parent)s::text IS NULL OR parent = %(parent)s)"
        " AND (%(plan)s::text IS NULL OR plan = %(plan)s)"
        " AND (%(country)s::text IS NULL OR country = %(country)s)"
        " ORDER BY code LIMIT %(limit)s",
        {
            "kind": kind,
            "after": after or "",
            "search": pattern,
            "parent": parent,
            "plan": plan,
            "country": country,
            "limit": limit,
        },
    ).fetchall()
    return [dict(row) for row in rows]


def count(connection: Connection, kind: str) -> int:
    row = connection.execute("SELECT count(*) AS n FROM master_records WHERE kind = %s", (kind,)).fetchone()
    return int(row["n"]) if row else 0
