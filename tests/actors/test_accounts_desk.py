"""The callers' side of accounts: what waits travels together, and nobody's entries depend on another's."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors import accounts_desk
from actors.accounts_desk import AccountsDesk, Problem
from actors.decisions import Elsewhere
from billing.errors import Conflict, Overloaded, Unavailable
from tests.actors.accounts_support import Place, customer, place, top_up
from tests.usage_log_support import TENANT


class Watched:
    """A real router; notes how many entries each call has, and can be told that the lanes are away."""

    def __init__(self, router: Any) -> None:
        self._router = router
        self.calls: list[int] = []
        self.away = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._router, name)

    async def decide(self, tenant_id: str, key: str, name: str, payload: bytes) -> bytes:
        self.calls.append(len(msgspec.json.decode(payload)["entries"]))
        await asyncio.sleep(0.02)
        if self.away:
            raise Unavailable("the lanes are away")
        answer: bytes = await self._router.decide(tenant_id, key, name, payload)
        return answer


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    made = place(tmp_path, lanes=1)
    made.masters.apply(*(customer(f"c{n}") for n in range(4)), *(top_up(f"c{n}", "10.00") for n in range(4)))
    made.open()
    yield made
    made.close()


def form(n: int) -> dict[str, str]:
    return {"customer": f"c{n % 4}", "id": f"r{n}", "amount": "1.00"}


def test_requests_that_wait_travel_together_and_each_gets_its_own_answers(here: Place) -> None:
    router = Watched(here.router)
    desk = AccountsDesk(router)  # type: ignore[arg-type]

    async def scene() -> list[Any]:
        batches = [[form(n), {"id": f"bad{n}"}] for n in range(40)]
        return await asyncio.gather(*(desk.reserve(TENANT, batch) for batch in batches))

    answers = asyncio.run(scene())
    assert [len(one) for one in answers] == [2] * 40
    for n, (good, bad) in enumerate(answers):
        assert (good["id"], good["customer"], good["granted"]) == (f"r{n}", f"c{n % 4}", "1.00")
        assert isinstance(bad, Problem)
    assert sum(router.calls) == 80
    assert len(router.calls) <= 4  # two at once, then the rest


def test_a_caller_who_goes_away_takes_nobody_along(here: Place) -> None:
    desk = AccountsDesk(Watched(here.router))  # type: ignore[arg-type]

    async def scene() -> Any:
        tasks = [asyncio.create_task(desk.reserve(TENANT, [form(n)])) for n in range(12)]
        await asyncio.sleep(0.005)
        for task in tasks[::3]:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(scene())
    for n, answer in enumerate(answers):
        if n % 3 == 0:
            assert isinstance(answer, asyncio.CancelledError)
        else:
            assert answer[0]["id"] == f"r{n}"


def test_everybody_who_waits_is_told_that_the_lane_is_away_and_may_ask_again(here: Place) -> None:
    router = Watched(here.router)
    desk = AccountsDesk(router)  # type: ignore[arg-type]

    async def scene() -> None:
        router.away = True
        failed = await asyncio.gather(*(desk.reserve(TENANT, [form(n)]) for n in range(10)), return_exceptions=True)
        assert all(isinstance(one, Unavailable) for one in failed)
        router.away = False
        again = await asyncio.gather(*(desk.reserve(TENANT, [form(n)]) for n in range(10)))
        assert [one["id"] for (one,) in again] == [f"r{n}" for n in range(10)]

    asyncio.run(scene())


def test_a_line_that_is_too_long_refuses_more(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts_desk, "WAITING_MAX", 3)
    desk = AccountsDesk(Watched(here.router))  # type: ignore[arg-type]

    async def scene() -> Any:
        return await asyncio.gather(*(desk.reserve(TENANT, [form(n)]) for n in range(9)), return_exceptions=True)

    answers = asyncio.run(scene())
    kept = [one[0]["id"] for one in answers if not isinstance(one, Overloaded)]
    assert kept == ["r0", "r1", "r2"]
    assert sum(isinstance(one, Overloaded) for one in answers) == 6


def test_an_id_of_two_customers_in_two_lanes_must_be_told_apart(tmp_path: Path) -> None:
    two = place(tmp_path, lanes=2)
    codes = [f"c{n}" for n in range(20)]
    two.masters.apply(*(customer(code) for code in codes))
    desk = two.open()
    assert two.router is not None
    lanes = two.router.lanes_of(TENANT, codes)
    one, other = codes[lanes.index(0)], codes[lanes.index(1)]
    try:
        for code in (one, other):
            [made] = asyncio.run(desk.reserve(TENANT, [{"customer": code, "id": "same", "amount": "1.00"}]))
            assert made["customer"] == code
        with pytest.raises(Conflict, match="name the `customer`"):
            asyncio.run(desk.commit(TENANT, [{"id": "same", "amount": "1.00"}]))
        [done] = asyncio.run(desk.commit(TENANT, [{"id": "same", "amount": "1.00", "customer": other}]))
        assert (done["customer"], done["state"]) == (other, "committed")
        assert {form["state"] for form in asyncio.run(desk.find(TENANT, ["same"]))} == {"open", "committed"}
    finally:
        two.close()


def test_a_lone_request_leaves_nothing_behind_in_its_loop(here: Place) -> None:
    """A generator that is left open wakes the loop to be closed: a task and a system call for every reservation."""
    desk = AccountsDesk(here.router)  # type: ignore[arg-type]
    left: list[Any] = []

    async def scene() -> None:
        asyncio.get_running_loop()._asyncgen_finalizer_hook = left.append  # type: ignore[attr-defined]
        sys.set_asyncgen_hooks(finalizer=left.append)
        await desk.reserve(TENANT, [form(0)])
        await desk.reserve(TENANT, [form(1), form(2)])

    asyncio.run(scene())
    assert left == []


def test_a_lone_request_finds_the_lane_that_its_partition_has_moved_to(here: Place) -> None:
    """Elsewhere at the first try: nothing was decided, and the same is asked again."""
    router = Watched(here.router)
    desk = AccountsDesk(router)  # type: ignore[arg-type]
    moves = [True]
    decide = router.decide

    async def moved_once(*asked: Any) -> bytes:
        if moves:
            moves.pop()
            raise Elsewhere("in another lane", {})
        return await decide(*asked)

    router.decide = moved_once  # type: ignore[method-assign]
    [answer] = asyncio.run(desk.reserve(TENANT, [form(0)]))
    assert isinstance(answer, dict)
    assert answer["granted"] == "1.00"
    assert router.calls == [1]


@pytest.mark.parametrize("kind", [Conflict, Overloaded, Unavailable])
def test_what_an_entry_ran_into_is_the_same_error_for_its_caller(kind: type[Any]) -> None:
    """A budget whose past is still being read is "try again" (503): it came out as a bug of the platform (500)."""
    error = Problem(kind.code, "the past is being read; try again", (("/amount", "why"),)).error("/0")
    assert type(error) is kind
    assert error.retryable is (kind is not Conflict)
    assert [(one.pointer, one.detail) for one in error.errors] == [("/0/amount", "why")]
