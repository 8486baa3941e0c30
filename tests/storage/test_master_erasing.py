"""A customer is taken out of every entry of the master chain, complete ones too, or out of none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from billing.erasing import marks_of
from billing.errors import BillingError
from billing.master import MasterData
from storage.master_chain import COMPLETE_EVERY, MasterChain, change_key, complete_key, pack_change
from storage.master_erasing import rewrite_chain
from storage.object_store import LocalObjectStore

TENANT = "01920000-0000-7000-8000-000000000001"
FORM = {"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE", "kind": "test"}
LAST = 2 * COMPLETE_EVERY + 5
MARK = "Zq7Xmarker"
MARKS_SECRET = "5" * 64


def customer(code: str, name: str) -> dict[str, Any]:
    return {"at": "2026-01-01", "customer": {"code": code, "name": name, "country": "DE"}}


def write_chain(store: LocalObjectStore, last_steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A chain with complete entries but the second; all its steps."""
    master, given = MasterData.start(FORM), list[dict[str, Any]]()
    for number in range(LAST + 1):
        steps = [customer(f"c{number}", f"Customer {number}")] if number else []
        if number == 3:
            steps = [customer(MARK, f"{MARK} GmbH")]
        if number == LAST:
            steps = last_steps
        entry = {"number": number, "tenant": None if number else FORM, "steps": steps, "actor": "test",
                 "changed_at": "2026-01-01T00:00:00+00:00"}  # fmt: skip
        assert store.create(change_key(TENANT, number), pack_change(entry))
        given += steps
        if number < LAST:
            master = master.apply_all(steps)
        if number == COMPLETE_EVERY:
            assert store.create(complete_key(TENANT, number), master.to_bytes())
    return given


def objects(store: LocalObjectStore) -> dict[str, bytes | None]:
    return {key: store.get(key) for key in store.list(f"master/{TENANT}/")}


def test_complete_entries_say_nothing_of_him_and_a_missing_one_is_made(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)
    marks = marks_of(write_chain(store, [customer("last", "Last")]), MARK, MARKS_SECRET)
    assert rewrite_chain(store, TENANT, marks, "GDPR 17", LAST) == 2, "his own change and the complete entry"
    for number in (COMPLETE_EVERY, 2 * COMPLETE_EVERY):
        master = MasterData.from_bytes(store.get(complete_key(TENANT, number)) or b"")
        assert MARK not in str(master.log)
        assert set(master.customers) >= {marks.stands_for, "c1", "c2", f"c{number}"}
        assert len(master.customers) == number
    number, master = MasterChain(store).newest(TENANT)
    assert (number, len(master.customers), MARK in str(master.log)) == (LAST, LAST, False)
    before = objects(store)
    assert rewrite_chain(store, TENANT, marks, "GDPR 17", LAST) == 0, "done again it changes nothing"
    assert objects(store) == before


def test_nothing_is_replaced_where_what_is_left_does_not_add_up(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)
    unknown = {"code": "s", "customer": "c1", "plan": "no such plan", "anchor": "calendar"}
    given = write_chain(store, [{"at": "2026-01-01", "subscribe": unknown}])
    before = objects(store)
    with pytest.raises(BillingError):
        rewrite_chain(store, TENANT, marks_of(given, MARK, MARKS_SECRET), "GDPR 17", LAST)
    assert objects(store) == before
