"""Forgetting a customer in the master chain: its entries are written anew in place, under their numbers.

Owns the order in which that is safe: nothing is replaced before all of it adds up. What a step becomes is
`billing/erasing.py`, the same as in SQL, so that both tell the same. Complete entries are made anew of the changes; one
that is missing at its number is made, too, for a projector that slept since before would put the old one there. An
entry is replaced only where the bytes lie that were read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from billing.erasing import Marks, forgotten_step
from billing.errors import Unavailable
from billing.master import MasterData
from storage.master_chain import COMPLETE_EVERY, change_key, complete_key, pack_change, unpack_change
from storage.object_store import ObjectStore


def rewrite_chain(store: ObjectStore, tenant_id: str, marks: Marks, rule: str, up_to: int) -> int:
    """Write changes 0 to `up_to` and the complete entries among them without the customer; how many objects changed.

    Done again it changes nothing. Raises InvalidInput, before it writes, if what is left does not add up, and
    Unavailable where somebody else replaced an object meanwhile: begin again.
    """
    entries = []
    for number in range(up_to + 1):
        data = store.get(change_key(tenant_id, number))
        if data is None:
            raise Unavailable(f"change {number} is not in the master chain yet; try again")
        entries.append((data, unpack_change(data)))
    given = [step for _, entry in entries for step in entry["steps"]]
    after = [forgotten_step(step, marks, rule) for step in given]
    changed = 0
    for _ in _folded(entries, after):  # twice, for complete entries of a long chain are more than memory should hold
        pass
    for number, ((data, entry), (steps, master)) in enumerate(zip(entries, _folded(entries, after), strict=True)):
        if steps != entry["steps"]:
            changed += _replace(store, change_key(tenant_id, number), data, pack_change({**entry, "steps": steps}))
        if number and number % COMPLETE_EVERY == 0:
            key, whole = complete_key(tenant_id, number), master.to_bytes()
            known = store.get(key)
            if known is None and not store.create(key, whole):
                known = store.get(key)
            if known is not None and known != whole:
                # Bytes of an older compressor are no difference: what counts is what they say.
                changed += MasterData.from_bytes(known).log != master.log and _replace(store, key, known, whole)
    return changed


def _folded(
    entries: Sequence[tuple[bytes, Mapping[str, Any]]], after: Sequence[dict[str, Any]]
) -> Iterator[tuple[list[dict[str, Any]], MasterData]]:
    """Of each entry what its steps become, and the master data up to it."""
    place = 0
    master: MasterData | None = None
    for _, entry in entries:
        steps = list(after[place : place + len(entry["steps"])])
        place += len(steps)
        master = (MasterData.start(entry["tenant"]) if master is None else master).apply_all(steps)
        yield steps, master


def _replace(store: ObjectStore, key: str, old: bytes, data: bytes) -> bool:
    if not store.replace(key, old, data):
        raise Unavailable(f"{key} was changed by somebody else meanwhile; the erasure begins again")
    return True
