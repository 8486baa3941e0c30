"""The worked examples, as files: every one must come out to the last digit, and a wrong one must be noticed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from lives import flat, life, plan, run, subscribe, usage, used

from billing.bill import BillResult, bill
from billing.errors import InvalidInput
from billing.live_state import fold_days
from billing.master import MasterData
from billing.scenario import check_prices, check_scenario
from cluster.scenario_command import load, run_files

CASES = Path(__file__).parents[1] / "cases"
SCENARIOS = sorted([*(CASES / "scenarios").glob("*.yaml"), *(CASES / "own").glob("*.yaml")])


def test_there_are_scenarios() -> None:
    assert len(SCENARIOS) >= 66


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_the_scenario_comes_out_as_expected(path: Path) -> None:
    form = load(path.read_text(encoding="utf-8"))
    assert form["scenario"] == path.stem
    assert check_scenario(form) == []


def _amounts(form: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all amounts in an expectation."""
    if isinstance(form, dict):
        return [place for key, value in form.items() for place in _amounts(value, (*path, key))]
    if isinstance(form, list):
        return [place for number, value in enumerate(form) for place in _amounts(value, (*path, number))]
    return [path] if path[-1] in ("amount", "net", "gross", "due", "prepaid", "quantity", "base", "balance") else []


@pytest.mark.parametrize("name", ["saas-month", "reserve-commit-release", "late-usage-reissue", "credit-note-by-lines"])
def test_a_wrong_amount_anywhere_is_a_difference(name: str) -> None:
    form = load(next(path for path in SCENARIOS if path.stem == name).read_text(encoding="utf-8"))
    places = _amounts(form["expect"])
    assert places
    for place in places:
        wrong = copy.deepcopy(form)
        target = wrong["expect"]
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = "123456.78"
        pointers = [difference.place for difference in check_scenario(wrong)]
        assert pointers == ["/expect/" + "/".join(map(str, place))]


def _good() -> dict[str, Any]:
    return life([plan(flat("10"), usage())], [subscribe("2026-01-01"), run("2026-02-01")], expect={"documents": []})


BAD: list[tuple[str, tuple[Any, ...], Any]] = [
    ("/tenant/currency", ("tenant", "currency"), "EUX"),
    ("/tenant/timezone", ("tenant", "timezone"), "Europe/Nowhere"),
    ("/tenant/colour", ("tenant", "colour"), "blue"),
    ("/plans/0/currency", ("plans", 0, "currency"), "XXX"),
    ("/plans/0/minimum", ("plans", 0, "minimum"), "-1"),
    ("/plans/0/charges/0/price/amount", ("plans", 0, "charges", 0, "price", "amount"), "1.0000000000001"),
    ("/plans/0/charges/0/tax", ("plans", 0, "charges", 0, "tax"), "nowhere"),
    ("/plans/0/charges/1/meter", ("plans", 0, "charges", 1, "meter"), "nowhere"),
    ("/customers/0/tax_treatment", ("customers", 0, "tax_treatment"), "holy"),
    ("/timeline/0/subscribe/plan", ("timeline", 0, "subscribe", "plan"), "nowhere"),
    ("/timeline/0/subscribe/anker", ("timeline", 0, "subscribe", "anker"), "calendar"),
    ("/timeline/0/subscribe/quantities/base", ("timeline", 0, "subscribe", "quantities"), {"base": "-1"}),
    ("/timeline/0/subscribe/discounts/0/percent", ("timeline", 0, "subscribe", "discounts"), [{"percent": "101"}]),
    ("/timeline/1/at", ("timeline", 1, "at"), "2025-12-31"),
    ("/timeline/1/at", ("timeline", 1, "at"), "2026-02-01T10:00:00"),
    ("/timeline/1/bill_run/up_to", ("timeline", 1, "bill_run", "up_to"), "2026-02-02"),
    ("/timeline/1/bil_run", ("timeline", 1), {"at": "2026-02-01", "bil_run": {}}),
    ("/expect/dokuments", ("expect", "dokuments"), []),
    ("/expect/documents/0/lines/0/amuont", ("expect", "documents"), [{"lines": [{"amuont": "1"}]}]),
    ("/tariff", ("tariff",), "x"),
]


@pytest.mark.parametrize(("pointer", "place", "value"), BAD, ids=[f"{n}{case[0]}" for n, case in enumerate(BAD)])
def test_a_mistake_in_a_file_is_refused_with_its_place(pointer: str, place: tuple[Any, ...], value: Any) -> None:
    form = _good()
    target = form
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    with pytest.raises(InvalidInput) as caught:
        check_scenario(form)
    assert [error.pointer for error in caught.value.errors] == [pointer]


CHANGES: list[tuple[str, list[dict[str, Any]]]] = [
    ("starts only later", [{"at": "2026-01-05", "cancel": {"subscription": "late", "when": "now"}}]),
    (
        "has ended",
        [
            {"at": "2026-01-05", "cancel": {"subscription": "s", "when": "now"}},
            {"at": "2026-01-06", "change": {"subscription": "s", "plan": "p", "when": "now"}},
        ],
    ),
    ("another currency", [{"at": "2026-01-05", "change": {"subscription": "s", "plan": "usd", "when": "now"}}]),
    ("has no charge", [{"at": "2026-01-05", "quantity": {"subscription": "s", "charge": "x", "quantity": "2"}}]),
    (
        "of the same moment",
        [
            {
                "at": "2026-01-05",
                "override": {"subscription": "s", "charge": "n", "price": {"model": "per_unit", "unit": u}},
            }
            for u in ("1", "2")
        ],
    ),
    ("is not paused", [{"at": "2026-01-05", "resume": {"subscription": "s"}}]),
    ("is paused already", [{"at": "2026-01-05", "pause": {"subscription": "s"}} for _ in range(2)]),
    ("belongs to customer", [{"at": "2026-01-05", "customer": {"code": "d", "keys": ["c"]}}]),
]


@pytest.mark.parametrize(("detail", "steps"), CHANGES, ids=[detail for detail, _ in CHANGES])
def test_a_change_that_cannot_be_is_refused(detail: str, steps: list[dict[str, Any]]) -> None:
    plans = [plan(flat("10"), usage()), {**plan(flat("10"), code="usd"), "currency": "USD"}]
    form = life(plans, [subscribe("2026-01-01"), subscribe("2026-01-01", "late", start="2026-03-01"), *steps])
    with pytest.raises(InvalidInput, match=detail) as caught:
        check_scenario(form)
    assert caught.value.errors[0].pointer.startswith(f"/timeline/{1 + len(steps)}/")


def test_price_files_are_checked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"case": "a", "price": {"model": "per_unit", "unit": "0.005"}, "quantity": "1", "amount": "0.01"}
    assert check_prices([good]) == []
    assert [d.place for d in check_prices([good, {**good, "amount": "0.02"}])] == ["/1/amount (a)"]
    file = tmp_path / "wrong.yaml"
    file.write_text('- {case: a, price: {model: flat, amount: "1"}, amount: "2.00"}\n')
    assert run_files([file]) == 1
    shown = capsys.readouterr().out
    assert "expected  2.00" in shown
    assert "got       1.00" in shown


def test_a_key_written_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("scenario: a\nscenario: b\n")
    assert run_files([file]) == 1
    assert "'scenario' is there twice" in capsys.readouterr().out


def test_everything_but_null_true_and_false_is_text() -> None:
    assert load("a: 1.50\nb: 2026-01-01\nc: NO\nd: on\ne: null\nf: true\ng: 010\nh: 1e3\n") == {
        "a": "1.50", "b": "2026-01-01", "c": "NO", "d": "on", "e": None, "f": True, "g": "010", "h": "1e3",
    }  # fmt: skip


def test_suspense_is_listed_with_its_reason() -> None:
    form = life(
        [plan(usage())],
        [subscribe("2026-01-01"), used("2026-01-05", ("2026-01-04", "x"))],
        expect={"ingest": {"accepted": "0", "suspense": "1"}, "suspense": [{"reason": "invalid_value"}]},
    )
    assert check_scenario(form) == []


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_bills_of_what_shards_have_folded_are_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def both(master: MasterData, customers: list[str], *, events: pl.DataFrame, **given: Any) -> BillResult:
        if not any(meter.aggregation == "time_weighted_sum" for meter in master.meters.values()):
            without = given | {"credit": None}  # a wallet gives once
            folded = bill(master, customers, events=fold_days(events, master.rating_book()), **without)
            assert folded == bill(master, customers, events=events, **without)
        return bill(master, customers, events=events, **given)

    monkeypatch.setattr("billing.scenario.bill", both)
    assert check_scenario(load(path.read_text(encoding="utf-8"))) == []
