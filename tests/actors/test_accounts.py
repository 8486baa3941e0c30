"""Accounts of a lane: verdicts that are recorded once, survive everything, and never overdraw."""

import asyncio
import json
import os
import random
import threading
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from actors.accounts import Accounts
from actors.accounts_desk import AccountsDesk, Problem, RunDesk
from actors.local_router import LocalLaneCalls
from actors.partition_mover import finish, half_moved, move_partition
from actors.rating_shard import ShardSettings
from billing.errors import BillingError, Conflict, Unavailable
from billing.run_credit import Ask, Move, RunCredit, RunHold
from billing.usage import Verdict
from storage.usage_log.lane import count_lanes, walk
from storage.usage_log.partitions import partition_of
from storage.usage_log.segment import RowKind
from tests.actors.accounts_support import START, Place, customer, place, top_up
from tests.usage_log_support import TENANT, make_events

ZERO = Decimal(0)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    made = place(tmp_path)
    yield made
    made.close()


def run(call: Any) -> Any:
    return asyncio.run(call)


def reserve(desk: AccountsDesk, id: str, amount: str, code: str = "acme", **more: Any) -> Any:
    [outcome] = run(desk.reserve(TENANT, [{"customer": code, "id": id, "amount": amount, **more}]))
    return outcome


def balances(desk: AccountsDesk, code: str = "acme") -> tuple[str, str, str]:
    [form] = run(desk.wallets(TENANT, [code]))
    [wallet] = form["wallets"]
    return wallet["balance"], wallet["reserved"], wallet["committed"]


def rows_of(here: Place, *kinds: RowKind) -> list[tuple[int, dict[str, Any]]]:
    """(log time, row) of all lanes, lane by lane in the order of numbers, read from the segments themselves."""
    found: list[tuple[int, dict[str, Any]]] = []
    for lane in range(count_lanes(here.store)):
        for segment in walk(here.store, lane, 0):
            for row in segment.rows().iter_rows(named=True):
                if not kinds or row["kind"] in kinds:
                    found.append((segment.head.log_time_us, row))
    return found


def test_a_verdict_outlives_its_shard_and_is_recorded_once(here: Place) -> None:
    here.masters.apply(customer("acme"), top_up("acme", "10.00"))
    desk = here.open()
    first = reserve(desk, "r1", "7.50")
    assert first["granted"] == "7.50"
    assert reserve(desk, "r2", "7.50")["granted"] == "2.50"
    assert reserve(desk, "r3", "1.00")["granted"] == "0.00"  # a verdict as well
    here.kill()
    here.masters.apply(top_up("acme", "100.00"))
    desk = here.open()
    for id, granted in (("r1", "7.50"), ("r2", "2.50"), ("r3", "0.00")):
        assert reserve(desk, id, "99.00")["granted"] == granted
    assert [row["id"] for _, row in rows_of(here, RowKind.RESERVED)] == ["r1", "r2", "r3"]
    assert balances(desk) == ("110.00", "10.00", "0.00")


def test_what_is_refused_leaves_no_row_and_its_id_free(here: Place) -> None:
    desk = here.open()
    outcome = reserve(desk, "r1", "1.00", "later")
    assert isinstance(outcome, Problem)
    assert outcome.errors == (("/customer", "there is no customer 'later'"),)
    for form in ({"customer": "acme"}, "no object", {"customer": 3, "id": "x", "amount": "1"}, {"id": "y"}):
        [outcome] = run(desk.reserve(TENANT, [form]))
        assert isinstance(outcome, Problem), form
    assert rows_of(here) == []
    number = here.masters.apply(customer("later"))
    [outcome] = run(desk.reserve(TENANT, [{"customer": "later", "id": "r1", "amount": "1.00"}], master=number))
    assert outcome["granted"] == "1.00"  # no wallet, no budget: no limit
    [row] = rows_of(here, RowKind.RESERVED)
    assert json.loads(row[1]["detail"])["master"] == number


def test_state_is_the_same_from_a_snapshot_as_from_the_log(here: Place) -> None:
    here.masters.apply(customer("acme"), top_up("acme", "50.00", expires="2026-07-01"), top_up("acme", "9.99"))
    desk = here.open()
    expires = "2026-05-20T00:00:00Z"
    forms = [{"customer": "acme", "id": f"r{n}", "amount": "3.00", "expires": expires} for n in range(6)]
    run(desk.reserve(TENANT, forms))
    run(desk.commit(TENANT, [{"id": "r0", "amount": "1.25"}, {"id": "r1", "amount": "3.00"}]))
    run(desk.release(TENANT, [{"id": "r2"}]))
    way = RunDesk(here.router)  # type: ignore[arg-type]
    asks = {"acme": [Ask("a/EUR/0", "EUR", "purchased", Decimal("20.00"), Decimal("20.00"))]}
    assert way.run_hold(TENANT, RunHold("run-1", asks, START, 99))["acme"].held
    assert here.router is not None
    for shard in here.router.shards.values():
        for follower in shard.state.followers._followers.values():
            if isinstance(follower, Accounts):
                again = Accounts(here.masters)
                again.thaw(follower.freeze()(), 0)
                assert again.freeze()() == follower.freeze()()
                assert again._tenants == follower._tenants
    before = balances(desk)
    here.kill()
    assert balances(here.open()) == before == ("39.99", "9.00", "0.00")


def test_reservations_end_by_the_logs_time_and_their_credit_is_free_again(here: Place) -> None:
    here.masters.apply(customer("acme"), top_up("acme", "10.00"))
    desk = here.open()
    expires = (START + timedelta(minutes=5)).isoformat()
    reserve(desk, "r1", "8.00", expires=expires)
    here.clock.now = START + timedelta(minutes=5) - timedelta(microseconds=1)
    assert reserve(desk, "r2", "8.00")["granted"] == "2.00"
    here.clock.now = START + timedelta(minutes=5)
    assert balances(desk) == ("10.00", "2.00", "0.00")
    assert reserve(desk, "r3", "8.00")["granted"] == "8.00"
    [form] = run(desk.find(TENANT, ["r1"]))
    assert form["state"] == "expired"
    here.kill()
    assert balances(here.open()) == ("10.00", "10.00", "0.00")


def test_a_reservation_that_is_over_before_it_begins_is_refused(here: Place) -> None:
    here.masters.apply(customer("acme"), top_up("acme", "10.00"))
    desk = here.open()
    outcome = reserve(desk, "r1", "5.00", expires=START.isoformat())
    assert isinstance(outcome, Problem)
    assert outcome.errors[0][0] == "/expires"
    assert reserve(desk, "r1", "5.00", expires=(START + timedelta(microseconds=1)).isoformat())["granted"] == "5.00"
    here.clock.now += timedelta(days=1)
    assert reserve(desk, "r1", "5.00", expires=START.isoformat())["granted"] == "5.00"  # the recorded verdict


def test_a_commit_after_expiry_takes_free_credit_or_is_refused(here: Place) -> None:
    here.masters.apply(customer("acme"), top_up("acme", "10.00"))
    desk = here.open()
    expires = (START + timedelta(minutes=5)).isoformat()
    for id in ("r1", "r2"):
        reserve(desk, id, "5.00", expires=expires)
    here.clock.now = START + timedelta(hours=1)
    reserve(desk, "r3", "7.00")
    [late, refused] = run(desk.commit(TENANT, [{"id": "r1", "amount": "2.00"}, {"id": "r2", "amount": "2.00"}]))
    assert (late["state"], late["committed"]) == ("committed", "2.00")
    assert isinstance(refused, Problem)
    assert refused.code == "conflict"
    assert balances(desk) == ("8.00", "7.00", "2.00")
    run(desk.release(TENANT, [{"id": "r3"}]))
    [again] = run(desk.commit(TENANT, [{"id": "r2", "amount": "2.00"}]))
    assert again["committed"] == "2.00"  # a refusal is no verdict
    here.kill()
    assert balances(here.open()) == ("6.00", "0.00", "4.00")


def test_a_test_tenants_clock_decides_what_has_expired(here: Place) -> None:
    here.masters.apply(customer("acme"), top_up("acme", "10.00", expires="2027-01-01"))
    desk = here.open()
    assert here.router is not None
    run(here.router.advance_clock(TENANT, datetime(2026, 12, 31, tzinfo=UTC)))
    reserve(desk, "r1", "4.00", expires="2026-12-31T12:00:00Z")
    run(here.router.advance_clock(TENANT, datetime(2026, 12, 31, 12, tzinfo=UTC)))
    assert balances(desk) == ("10.00", "0.00", "0.00")
    run(here.router.advance_clock(TENANT, datetime(2027, 1, 1, tzinfo=UTC)))
    assert balances(desk) == ("0.00", "0.00", "0.00")
    assert reserve(desk, "r2", "4.00")["granted"] == "0.00"


def test_credit_that_starts_later_is_not_there_yet(here: Place) -> None:
    here.masters.apply(customer("acme"), top_up("acme", "1.00"))
    here.masters.apply(top_up("acme", "10.00"), at="2026-05-11")
    desk = here.open()
    assert reserve(desk, "r1", "5.00")["granted"] == "1.00"
    here.clock.now = START + timedelta(days=1)
    assert reserve(desk, "r2", "5.00")["granted"] == "5.00"


def test_use_is_priced_by_live_figures_and_what_is_asked_before_in_the_same_call(here: Place) -> None:
    subscribe = {"subscribe": {"code": "s", "customer": "acme", "plan": "basic", "anchor": "calendar"}}
    number = here.masters.apply(customer("acme"), subscribe, top_up("acme", "20.00", kind="promotional"))
    desk = here.open()
    events = make_events(2).with_columns(customer=pl.lit("acme"), data=pl.lit('{"gb":"45"}'))
    assert here.router is not None
    run(here.router.ingest(TENANT, events, master_number=number))
    ask = {"customer": "acme", "usage": {"meter": "gb", "quantity": "20"}}
    outcomes = run(desk.reserve(TENANT, [{**ask, "id": "r1"}, {**ask, "id": "r2"}]))
    # 90 are used: 10 more at 0.10, 10 at 0.08. A reservation is no use, so the next one asks for the same.
    assert [one["granted"] for one in outcomes] == ["1.80", "1.80"]
    assert balances(desk) == ("20.00", "3.60", "0.00")


def test_a_forgotten_verdict_is_a_conflict_and_never_a_second_grant(here: Place) -> None:
    here.masters.apply(customer("acme"), top_up("acme", "10.00"))
    desk = here.open()
    assert here.router is not None
    for shard in here.router.shards.values():
        shard.state.followers._followers["accounts"]._closed_max = 2  # type: ignore[attr-defined]
    for n in range(5):
        reserve(desk, f"r{n}", "1.00")
        run(desk.release(TENANT, [{"id": f"r{n}", "customer": "acme"}]))
    assert isinstance(outcome := reserve(desk, "r0", "1.00"), Problem)
    assert outcome.code == "conflict"
    assert reserve(desk, "r4", "1.00")["state"] == "released"
    [gone] = run(desk.commit(TENANT, [{"id": "r1", "amount": "1.00", "customer": "acme"}]))
    assert isinstance(gone, Problem)
    assert gone.code == "conflict"
    assert balances(desk) == ("10.00", "0.00", "0.00")


def test_a_run_that_was_given_up_holds_nothing_and_one_that_is_settled_stays_so(here: Place) -> None:
    here.masters.apply(customer("acme"), top_up("acme", "10.00"))
    desk = here.open()
    way = RunDesk(here.router)  # type: ignore[arg-type]
    asks = {"acme": [Ask("d", "EUR", "purchased", Decimal("4.00"), Decimal("4.00"))]}
    wrong = {"acme": [Ask("d", "EUR", "purchased", Decimal("40.00"), Decimal("40.00"))]}
    assert not way.run_hold(TENANT, RunHold("run", wrong, START, 99))["acme"].held
    for _ in range(2):  # a repeat is answered alike, whatever it asks
        assert way.run_hold(TENANT, RunHold("run", asks, START, 99))["acme"].uses["d"].purchased == Decimal("4.00")
    assert way.run_hold(TENANT, RunHold("run", wrong, START, 99))["acme"].uses["d"].purchased == Decimal("4.00")
    assert balances(desk) == ("6.00", "0.00", "0.00")
    settle = Move("settle", "run", "acme", {"d": "RE-1"})
    assert [way.run_move(TENANT, [settle]) for _ in range(2)] == [1, 0]
    with pytest.raises(Conflict, match="is settled"):
        way.run_move(TENANT, [Move("free", "run", "acme")])
    restore = Move("restore", "GS-1", "acme", invoice="RE-1")
    assert [way.run_move(TENANT, [restore]) for _ in range(2)] == [1, 0]
    assert balances(desk) == ("10.00", "0.00", "0.00")
    way.run_move(TENANT, [Move("free", "other", "acme")])
    with pytest.raises(Conflict, match="given up"):
        way.run_credit(TENANT, RunCredit("other", ["acme"], START, 99))
    with pytest.raises(Conflict, match="given up"):
        way.run_hold(TENANT, RunHold("other", asks, START, 99))


def test_an_overtaken_lane_that_knows_nothing_of_a_hold_moves_nothing_and_says_so(here: Place) -> None:
    here.masters.apply(customer("acme"), top_up("acme", "10.00"))
    here.open()
    assert here.router is not None
    zombie = RunDesk(here.router)
    zombie_router = here.router
    zombie_router._deadline_s = 0.5
    balances(here.open())
    way = RunDesk(here.router)
    asks = {"acme": [Ask("d", "EUR", "purchased", Decimal("4.00"), Decimal("4.00"))]}
    assert way.run_hold(TENANT, RunHold("run", asks, START, 99))["acme"].held
    settle = Move("settle", "run", "acme", {"d": "RE-1"})
    restore = Move("restore", "GS-1", "acme", invoice="RE-1")
    for move in (settle, restore):
        with pytest.raises(Unavailable):
            zombie.run_move(TENANT, [move])
        assert way.run_move(TENANT, [move]) == 1
    zombie_router.stop()


# -- many callers, and shards that die -------------------------------------------------------------------------------

CALLERS, CALLS, KILLS = 50, 4, 5
CODES = ("a", "b", "c", "d")


@pytest.mark.parametrize("moves", [0, 20])
def test_fifty_callers_never_overdraw_while_shards_die_and_partitions_move(here: Place, moves: int) -> None:
    seed = int(os.environ.get("CLOUDBILLING_SEED") or random.SystemRandom().randrange(10**9))
    """At every row of a customer: credit - what left it - open reservations >= 0, by the rows of all lanes alone."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    for code in CODES:
        here.masters.apply(customer(code), top_up(code, "40.00"), top_up(code, "15.00", kind="promotional"))
    world = _World(here, chance, moves)
    asyncio.run(world.live())
    _check_rows(here)
    assert world.moved >= moves // 4
    # What callers were told is what the rows say, for every request and every repeat of it.
    recorded = {row["id"]: json.loads(row["detail"]) for _, row in rows_of(here, RowKind.RESERVED)}
    for id, granted in world.told:
        assert Decimal(granted) == Decimal(recorded[id]["granted"]), id
    assert len(recorded) > 100


class _World:
    def __init__(self, here: Place, chance: random.Random, moves: int) -> None:
        self.here, self.chance = here, chance
        self.moves, self.moved = moves, 0
        self.settings = ShardSettings(checkpoint_rows=60, checkpoint_s=3600)
        self.told: list[tuple[str, str]] = []
        self.calls = 0
        self.called = asyncio.Condition()
        self.desk = self._open()

    def _open(self) -> AccountsDesk:
        from actors.local_router import LocalUsageRouter

        router = LocalUsageRouter.open(
            self.here.store,
            shards=2,
            master=self.here.masters,
            clock=self.here.clock,
            settings=self.settings,
            deadline_s=0.4,
        )
        self.here.router = router
        return AccountsDesk(router)

    async def live(self) -> None:
        await asyncio.gather(self._killer(), self._mover(), *(self._caller(number) for number in range(CALLERS)))

    async def _killer(self) -> None:
        """Nobody tells the old shards: they find out at their next put, if they have one."""
        for kill in range(1, KILLS + 1):
            # By work done, so that a slow machine kills as often.
            await self.calls_reached(kill * CALLERS * CALLS // (KILLS + 1))
            self.here.clock.now += timedelta(seconds=self.chance.choice((-30, 20, 60)))
            self.desk = await asyncio.to_thread(self._open)

    async def _mover(self) -> None:
        """Moves partitions of customers; some moves are left half done for a while, for the next look to finish."""
        for move in range(1, self.moves + 1):
            await self.calls_reached(move * CALLERS * CALLS // (self.moves + 2))
            router = self.here.router
            assert router is not None
            partition = partition_of(router._genesis.seed, TENANT, self.chance.choice(CODES))
            calls = LocalLaneCalls(router.shards)
            try:
                (owner,) = [one.lane for one in router.shards.values() if partition in one.status().owned]
                if self.chance.random() < 0.3:
                    await asyncio.to_thread(calls.release, owner, partition, 1 - owner)
                else:
                    generation = router.shards[owner].status().generation_of(partition)
                    await asyncio.to_thread(move_partition, calls, partition, owner, 1 - owner, generation)
                    self.moved += 1
            except (BillingError, TimeoutError, ValueError):  # a shard that was overtaken, or is not what it was
                pass
            await self._finish()

    async def _finish(self) -> None:
        for _ in range(100):
            await asyncio.sleep(0.05)
            router = self.here.router
            assert router is not None
            statuses = [shard.status() for shard in router.shards.values()]
            if not half_moved(statuses):
                return
            await asyncio.to_thread(finish, LocalLaneCalls(router.shards), statuses)
        raise AssertionError("a move was never finished")

    async def calls_reached(self, number: int) -> None:
        async with self.called:
            await self.called.wait_for(lambda: self.calls >= number)

    async def _again(self, name: str, form: dict[str, Any]) -> Any:
        for _ in range(100):
            try:
                [outcome] = await getattr(self.desk, name)(TENANT, [form])
            except Unavailable:
                continue
            return outcome
        raise AssertionError("a hundred tries")

    async def _caller(self, number: int) -> None:
        chance = random.Random(self.chance.random())
        for call in range(CALLS):
            id, code = f"{number}-{call}", chance.choice(CODES)
            ask = {"customer": code, "id": id, "amount": f"{chance.randrange(1, 1200) / 100:.2f}"}
            if chance.random() < 0.4:
                ask["expires"] = (self.here.clock.now + timedelta(seconds=chance.randrange(1, 90))).isoformat()
            for _ in range(chance.randrange(1, 3)):
                other = {"amount": "0.01"} if chance.random() < 0.1 else {}
                granted = await self._again("reserve", ask | other)
                if isinstance(granted, Problem):  # the clock has passed it by
                    assert granted.errors[0][0] == "/expires", granted
                    break
                self.told.append((id, granted["granted"]))
            await asyncio.sleep(chance.random() / 4)
            then = chance.random()
            if then < 0.35:
                amount = f"{chance.randrange(0, 400) / 100:.2f}"
                for _ in range(chance.randrange(1, 3)):
                    await self._again("commit", {"id": id, "customer": code, "amount": amount})
            elif then < 0.75:
                await self._again("release", {"id": id, "customer": code})
            async with self.called:
                self.calls += 1
                self.called.notify_all()


def _check_rows(here: Place) -> None:
    """Fold a customer's rows by hand, in exact amounts, and look at every pot after every row.

    Their order is that of log time, whatever lanes they lay in; of one time they lie in one lane.
    """
    _, master = here.masters.newest(TENANT)
    rows = rows_of(here, RowKind.RESERVED, RowKind.COMMITTED, RowKind.RELEASED)
    for code in CODES:
        amounts = {one.number: one.amount for one in master.top_ups if one.customer == code}
        open_: dict[str, tuple[dict[int, Decimal], int | None]] = {}
        gone: dict[int, Decimal] = defaultdict(Decimal)
        for now, row in sorted((one for one in rows if one[1]["customer"] == code), key=lambda one: one[0]):
            for id in [id for id, (_, expires) in open_.items() if expires is not None and expires <= now]:
                del open_[id]
            detail = json.loads(row["detail"])
            parts = {int(number): Decimal(part) for number, part in detail.get("parts", ())}
            if row["kind"] == RowKind.RESERVED:
                expires = detail.get("expires")
                until = None if expires is None else int(datetime.fromisoformat(expires).timestamp() * 1_000_000)
                open_[row["id"]] = (parts, until)
                assert sum(parts.values(), ZERO) == Decimal(detail["granted"])
            elif row["kind"] == RowKind.COMMITTED:
                held, _ = open_.pop(row["id"], ({}, None))
                assert detail.get("late") or all(part <= held[number] for number, part in parts.items())
                for number, part in parts.items():
                    gone[number] += part
            elif row["kind"] == RowKind.RELEASED:
                del open_[row["id"]]
            held: dict[int, Decimal] = defaultdict(Decimal)
            for parts, _ in open_.values():
                for number, part in parts.items():
                    held[number] += part
            for number, amount in amounts.items():
                left = amount - gone[number] - held[number]
                assert left >= 0, f"after {row['id']} of {code}: top-up {number} is {left}"


def test_lone_reservations_and_events_start_no_query(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query of Polars runs in another thread: where cores are busy the way there and back has cost milliseconds."""
    subscription = {"code": "acme", "customer": "acme", "plan": "basic", "anchor": "calendar"}
    here.masters.apply(customer("acme"), top_up("acme", "10.00"), {"subscribe": subscription})
    desk = here.open()
    assert here.router is not None
    first, second = (make_events(1, n).with_columns(customer=pl.lit("acme")) for n in range(2))
    reserve(desk, "r1", "1.00")
    run(here.router.ingest(TENANT, first))
    queries: list[str] = []

    def watched(name: str) -> None:
        real = getattr(pl.DataFrame, name)

        def call(frame: pl.DataFrame, *asked: Any, **more: Any) -> Any:
            if threading.current_thread().name.startswith(("rating-shard-", "MainThread")):  # who folds may ask
                queries.append(name)
            return real(frame, *asked, **more)

        monkeypatch.setattr(pl.DataFrame, name, call)

    for name in ("lazy", "filter", "sort", "to_arrow", "select", "with_columns", "partition_by", "group_by"):
        watched(name)
    assert reserve(desk, "r2", "1.00")["granted"] == "1.00"
    [spent] = run(desk.commit(TENANT, [{"customer": "acme", "id": "r1", "amount": "1.00"}]))
    assert spent["state"] == "committed"
    result = run(here.router.ingest(TENANT, second))
    assert result.verdicts.tolist() == [Verdict.ACCEPTED]
    assert queries == []
