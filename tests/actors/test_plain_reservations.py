"""The short way of reservations gives what the long way gives: answers, rows and state, in any order of calls."""

import json
import random
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec
import polars as pl
import pytest

from actors import accounts
from actors.accounts import Accounts
from actors.followers import LogMoment
from storage.usage_log.segment import microseconds_of
from tests.actors.accounts_support import START, Masters, customer, top_up
from tests.usage_log_support import TENANT

CUSTOMERS = ("acme", "bolt", "cora", "dune", "unknown")


def masters() -> Masters:
    made = Masters()
    made.start()
    budget = {"code": "b", "customer": "cora", "period": "month", "amount": "5.00", "thresholds": [], "action": "block"}
    made.apply(
        *[customer(code) for code in CUSTOMERS[:-1]],
        top_up("acme", "15.00"),
        top_up("acme", "20.00", expires="2026-05-10T12:20:00Z"),
        top_up("acme", "9.00", kind="promotional"),
        top_up("acme", "15.00", currency="USD"),
        top_up("bolt", "3.00"),
        {"budget": budget},
    )
    return made


def some_form(chance: random.Random, name: str, step: int, now: Any) -> Any:
    id = f"r{chance.randrange(step + 3)}"
    who = chance.choice(CUSTOMERS)
    amount = chance.choice(["0.00", "1.00", "2.50", "12.34", "0.1", "1e2", "007.50", "-1.00", 3, None])
    if name == "reserve":
        form: dict[str, Any] = {"customer": who, "id": id, "amount": amount}
        if chance.random() < 0.4:
            ends = now + timedelta(minutes=chance.randrange(-1, 6))
            form["expires"] = chance.choice([ends.isoformat(), ends.isoformat().replace("+00:00", "Z"), "soon"])
        if chance.random() < 0.1:
            form["currency"] = chance.choice(["EUR", "USD", "KWD"])
        return form if chance.random() < 0.95 else chance.choice([[], {}, "x", {"id": id}])
    form = {"id": id} if name == "release" else {"id": id, "amount": amount}
    if chance.random() < 0.5:
        form["customer"] = who
    return form


def one_life(seed: int, *, plainly: bool, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Answers, rows and state of a random life of a lane, decided with or without the short way."""
    with monkeypatch.context() as patched:
        if not plainly:
            of = accounts.PlainTerms.of
            patched.setattr(accounts.PlainTerms, "of", lambda master: replace(of(master), currency=""))
            for name in ("commit", "release"):
                patched.setattr(accounts.PlainReservations, name, lambda *_: False)
        chance = random.Random(seed)
        lane = Accounts(masters(), lambda *_: Fraction(5), closed_max=6)
        seen: list[Any] = []
        recorded: set[tuple[str, str, str]] = set()
        now = START
        for step in range(40):
            now += chance.randrange(3) * timedelta(minutes=1)
            moment = LogMoment(
                0,
                step,
                microseconds_of(now),
                is_recorded=lambda _, ids: [one in recorded for one in ids],  # noqa: B023 - asked at once
            )
            name = chance.choice(["reserve", "reserve", "commit", "release"])
            forms = [some_form(chance, name, step, now) for _ in range(chance.randrange(1, 9))]
            decided = lane.decisions[name](TENANT, msgspec.json.encode({"entries": forms}), moment)
            rows = decided.rows.select("kind", "source", "id", "customer", "time", "type", "detail").rows()
            recorded |= {(row[3], row[1], row[2]) for row in rows}
            seen.append((name, msgspec.json.decode(decided.answer), [(*row[:6], json.loads(row[6])) for row in rows]))
            if decided.rows.height:
                lane.apply(decided.rows, moment)
            wallets = lane.decisions["wallets"](TENANT, msgspec.json.encode({"customers": CUSTOMERS[:-1]}), moment)
            seen.append(msgspec.json.decode(wallets.answer))
        state = msgspec.json.decode(lane.freeze()())
        again = Accounts(masters())
        again.thaw(msgspec.json.encode(state), 40)
        assert msgspec.json.decode(again.freeze()()) == state
        return [_numbers(seen), _numbers(state)]


def _numbers(value: Any) -> Any:
    """Amounts compared as numbers: "0" and "0.00" are one."""
    if isinstance(value, dict):
        return {key: _numbers(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_numbers(each) for each in value]
    if isinstance(value, str) and value.replace(".", "", 1).isdigit():
        return Decimal(value)
    return value


@pytest.mark.parametrize("seed", range(25))
def test_the_short_way_decides_as_the_long_way(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    short = one_life(seed, plainly=True, monkeypatch=monkeypatch)
    assert short == one_life(seed, plainly=False, monkeypatch=monkeypatch), f"seed {seed}"


def test_the_short_way_is_taken_and_its_rows_are_those_of_any_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """That both ways agree says nothing if the short one is never taken."""
    monkeypatch.setattr(Accounts, "_reserve_one", None)
    monkeypatch.setattr(Accounts, "_commit_one", None)
    monkeypatch.setattr(Accounts, "_release_one", None)
    lane = Accounts(masters())
    ends = (START + timedelta(minutes=5)).isoformat()
    calls: list[tuple[str, list[dict[str, Any]]]] = [
        ("reserve", [{"customer": "acme", "id": f"r{n}", "amount": "1.00", "expires": ends} for n in range(4)]),
        ("commit", [{"id": "r0", "amount": "0.50"}, {"id": "r1", "amount": "9.00", "customer": "acme"}]),
        ("release", [{"id": "r2"}]),
    ]
    for number, (name, forms) in enumerate(calls):
        moment = LogMoment(0, number, microseconds_of(START))
        decided = lane.decisions[name](TENANT, msgspec.json.encode({"entries": forms}), moment)
        assert [set(one) for one in msgspec.json.decode(decided.answer)] == [{"ok"}] * len(forms)
        kind = {"reserve": "reserved", "commit": "committed", "release": "released"}[name]
        assert set(decided.rows["type"]) == {kind}
        assert decided.rows["subscription"].dtype == pl.String
        lane.apply(decided.rows, moment)
    wallets = msgspec.json.decode(
        lane.decisions["wallets"](
            TENANT, msgspec.json.encode({"customers": ["acme"]}), LogMoment(0, 9, microseconds_of(START))
        ).answer
    )
    euro = wallets[0]["wallets"][0]
    assert (euro["reserved"], euro["committed"]) == ("1.00", "1.50")


def test_two_hundred_thousand_endings_cost_no_more_than_a_few() -> None:
    """A commit, a release, an ending: none of them may walk over what waits."""
    lane = Accounts(masters())
    ends = START + timedelta(days=1)
    for number, start in enumerate(range(0, 200_000, 10_000)):
        forms = [
            {"customer": "dune", "id": f"r{n}", "amount": "0.00", "expires": (ends + timedelta(seconds=n)).isoformat()}
            for n in range(start, start + 10_000)
        ]
        moment = LogMoment(0, number, microseconds_of(START))
        lane.apply(lane.decisions["reserve"](TENANT, msgspec.json.encode({"entries": forms}), moment).rows, moment)
    account = lane._tenants[TENANT].accounts["dune"]
    assert account.open_expiring == 200_000
    scratch = account.scratch()
    assert len(scratch.expiries.heap) == 0  # looked at through, not copied
    looked_at = list(account.expiries.due(ends + timedelta(seconds=2)))
    assert sorted(id for _, id in looked_at) == ["r0", "r1", "r2"]
    assert scratch.at(ends + timedelta(seconds=1)) == ["r0", "r1"]
    assert scratch.at(ends + timedelta(seconds=1)) == []
    assert account.at(ends) == ["r0"]
    assert account.open_expiring == 199_999
