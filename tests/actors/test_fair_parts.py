"""Parts travel by tenant in turns: nobody waits behind all that somebody else has sent."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actors.fair_parts import QUANTUM_ROWS, FairParts


@dataclass
class Rows:
    tenant_id: str
    partitions: npt.NDArray[np.uint8]
    number: int


def rows(tenant_id: str, count: int, number: int = 0) -> Rows:
    return Rows(tenant_id, np.zeros(count, np.uint8), number)


def test_one_event_does_not_wait_behind_a_flood() -> None:
    parts: FairParts[Rows] = FairParts()
    for number in range(100):
        parts.append(rows("flood", 20_000, number))
    parts.popleft()
    parts.append(rows("small", 1))
    assert "small" in [parts.popleft().tenant_id for _ in range(2)]


def test_tenants_share_by_rows_and_keep_their_own_order() -> None:
    parts: FairParts[Rows] = FairParts()
    sizes = {"big": 5_000, "middle": 500, "small": 7}
    sent = {tenant_id: 40_000 // size for tenant_id, size in sizes.items()}
    for tenant_id, size in sizes.items():
        for number in range(sent[tenant_id]):
            parts.append(rows(tenant_id, size, number))
    carried = dict.fromkeys(sizes, 0)
    count = dict.fromkeys(sizes, 0)
    while parts:
        assert parts.first() is parts.first()
        part = parts.popleft()
        assert part.number == count[part.tenant_id]
        count[part.tenant_id] += 1
        carried[part.tenant_id] += len(part.partitions)
        if max(carried.values()) < 30_000:  # all three still wait
            assert max(carried.values()) - min(carried.values()) <= 5_000 + 2 * QUANTUM_ROWS, carried
    assert count == sent
