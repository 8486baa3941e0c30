"""Requests that wait at the same time are carried as one, and each is answered as if it had come alone."""

import asyncio
from typing import Any

import numpy as np
import polars as pl
import pytest

from actors.router import IngestResult
from billing.errors import Overloaded, Unavailable
from billing.usage import Verdict
from billing.usage_formats import as_lines
from deployments.usage_groups import GROUPS_AT_ONCE, UsageGroups

LINE = '{"source":"s","id":"%s","type":"t","customer":"c","time":"2026-01-02T03:04:05Z","data":{"v":"1"}}'


class Router:
    """Answers when it is told to; an id that ends in d is a duplicate."""

    tenant_waiting_rows_max = 100

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str], int | None]] = []
        self.open = asyncio.Event()
        self.error: Exception | None = None

    async def ingest(self, tenant_id: str, events: pl.DataFrame, *, master_number: int | None = None) -> IngestResult:
        self.calls.append((tenant_id, events["id"].to_list(), master_number))
        await self.open.wait()
        if self.error is not None:
            raise self.error
        is_repeat = events["id"].str.ends_with("d").to_numpy()
        verdicts = np.where(is_repeat, Verdict.DUPLICATE, Verdict.ACCEPTED).astype(np.uint8)
        return IngestResult(verdicts, pl.Series("reason", [None] * events.height, dtype=pl.String), {0: 7})


def lines(*ids: str) -> Any:
    part = as_lines("\n".join(LINE % one for one in ids).encode(), "application/x-ndjson")
    assert part is not None
    return part


def freely(_: int) -> None:
    """A key without limits."""


async def started(groups: UsageGroups, requests: list[tuple[str, Any, int | None]], admit: Any = freely) -> list[Any]:
    tasks = [asyncio.create_task(groups.send(tenant, part, number, admit)) for tenant, part, number in requests]
    for _ in range(10):
        await asyncio.sleep(0)
    return tasks


def test_what_waits_is_one_call_and_each_gets_its_own_rows() -> None:
    async def main() -> None:
        router = Router()
        groups = UsageGroups(router)  # type: ignore[arg-type]
        first = await started(groups, [("a", lines("1"), None), ("a", lines("2"), None)])
        assert [call[1] for call in router.calls] == [["1"], ["2"]]  # a lone request waits for nobody
        assert len(router.calls) == GROUPS_AT_ONCE
        rest = await started(
            groups,
            [("a", lines("3", "4d"), 8), ("a", lines("5"), 9), ("b", lines("6"), None), ("a", lines("bad x"), 1)],
        )
        assert [call[0] for call in router.calls] == ["a", "a", "b"]  # another tenant waits for nobody either
        router.open.set()
        answers = await asyncio.gather(*first, *rest)
        assert router.calls[3] == ("a", ["3", "4d", "5", "bad x"], 9)
        got = [(one.parsed.events["id"].to_list(), one.result.verdicts.tolist()) for one in answers]
        assert got[2] == (["3", "4d"], [Verdict.ACCEPTED, Verdict.DUPLICATE])
        assert got[3] == (["5"], [Verdict.ACCEPTED])
        await asyncio.sleep(0)
        assert groups._tenants == {}  # nothing is remembered of a tenant without requests

    asyncio.run(main())


def test_a_client_that_goes_away_takes_nobody_s_rows_with_it() -> None:
    async def main() -> None:
        router = Router()
        groups = UsageGroups(router)  # type: ignore[arg-type]
        await started(groups, [("a", lines("0"), None), ("a", lines("1"), None)])
        tasks = await started(groups, [("a", lines("2"), None), ("a", lines("3"), None)])
        tasks[0].cancel()
        router.open.set()
        outcome = await tasks[1]
        assert outcome.parsed.events["id"].to_list() == ["3"]
        assert outcome.result.verdicts.tolist() == [Verdict.ACCEPTED]
        assert router.calls[2][1] == ["2", "3"]

    asyncio.run(main())


@pytest.mark.parametrize("error", [Overloaded("too much"), Unavailable("gone"), RuntimeError("bug")])
def test_an_error_reaches_every_request_of_the_group(error: Exception) -> None:
    async def main() -> None:
        router = Router()
        router.error = error
        groups = UsageGroups(router)  # type: ignore[arg-type]
        tasks = await started(groups, [("a", lines(str(number)), None) for number in range(5)])
        router.open.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in found] == [type(error)] * 5

    asyncio.run(main())


def test_what_waits_of_a_tenant_is_bounded_and_frees_itself() -> None:
    async def main() -> None:
        router = Router()
        router.tenant_waiting_rows_max = 5
        groups = UsageGroups(router)  # type: ignore[arg-type]
        requests = [("a", lines(str(number)), None) for number in range(7)]
        tasks = await started(groups, [*requests, ("b", lines("b"), None)])
        assert [task.done() for task in tasks] == [False] * 5 + [True] * 2 + [False]
        assert all(isinstance(task.exception(), Overloaded) for task in tasks[5:7])
        router.open.set()
        await asyncio.gather(*tasks[:5], tasks[7])
        await groups.send("a", lines(*(str(number) for number in range(9))), None, freely)  # alone, however large

    asyncio.run(main())


def test_a_key_over_its_limit_is_refused_alone() -> None:
    async def main() -> None:
        router = Router()
        router.open.set()
        groups = UsageGroups(router)  # type: ignore[arg-type]
        await started(groups, [("a", lines("0"), None), ("a", lines("1"), None)])

        def admit(events: int) -> None:
            if events > 1:
                raise Overloaded("too many events of this key")

        router.open.clear()
        blocked = await started(groups, [("a", lines("x"), None), ("a", lines("y"), None)])
        tasks = await started(groups, [("a", lines("2", "3"), None), ("a", lines("4"), None)], admit)
        router.open.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found[0], Overloaded)
        assert found[1].parsed.events["id"].to_list() == ["4"]
        assert ["4"] in [call[1] for call in router.calls]
        await asyncio.gather(*blocked)

    asyncio.run(main())


def test_a_body_without_an_event_gets_its_rejects_beside_a_good_one(api: Any) -> None:
    tenant = api.tenant()
    answer = tenant.usage("no json\n")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["reason"] == "broken_json"
    assert tenant.usage("\n\n").status_code == 422
