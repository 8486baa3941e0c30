"""The master chain gives the same master data at a number, however it comes to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from billing.errors import NotFound
from storage.master_chain import MasterChain, change_key, pack_change
from storage.object_store import LocalObjectStore

TENANT = "0198f0aa-0000-7000-8000-000000000001"


class Counted(LocalObjectStore):
    """The real local store; counts what is read."""

    reads = 0

    def get(self, key: str) -> bytes | None:
        self.reads += 1
        return super().get(key)


@pytest.fixture
def store(tmp_path: Path) -> Counted:
    made = Counted(tmp_path)
    for number in range(41):
        steps: list[dict[str, Any]] = []
        if number:
            steps = [{"at": "2026-01-01", "customer": {"code": f"c{number}", "name": "Some", "country": "DE"}}]
        entry = {
            "number": number,
            "tenant": {"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE"} if number == 0 else None,
            "steps": steps,
            "actor": "test",
            "changed_at": "2026-01-01T00:00:00+00:00",
        }
        assert made.create(change_key(TENANT, number), pack_change(entry))
    return made


def test_a_number_gives_the_same_data_fresh_from_the_newest_and_again(store: Counted) -> None:
    for number in (0, 1, 20, 39, 40):
        assert len(MasterChain(store).at(TENANT, number).customers) == number
    chain = MasterChain(store)
    assert chain.newest(TENANT)[0] == 40
    assert len(chain.at(TENANT, 12).customers) == 12
    assert len(chain.at(TENANT, 40).customers) == 40
    assert len(chain.newest(TENANT)[1].customers) == 40


def test_asking_again_for_a_number_reads_nothing(store: Counted) -> None:
    chain = MasterChain(store)
    first = chain.at(TENANT, 33)
    reads = store.reads
    assert chain.at(TENANT, 33) is first
    assert store.reads == reads


def test_a_number_beyond_the_chain_is_not_found(store: Counted) -> None:
    with pytest.raises(NotFound):
        MasterChain(store).at(TENANT, 41)


def test_going_on_from_a_number_that_is_at_hand_reads_only_the_changes_since(store: Counted) -> None:
    chain = MasterChain(store)
    fresh = MasterChain(store).at(TENANT, 39)
    chain.keep(TENANT, 37, MasterChain(store).at(TENANT, 37))
    reads = store.reads
    assert len(chain.at(TENANT, 39).customers) == len(fresh.customers)
    assert store.reads - reads == 2
