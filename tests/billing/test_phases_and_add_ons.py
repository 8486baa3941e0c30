"""Phases, trials and add-ons: what they change in a life, each with its arithmetic, and what they never change."""

from __future__ import annotations

import json
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lives import METER, NO_TAX, TAX, documents, flat, life, lines, plan, run, subscribe, usage, used

from billing.catalog_forms import parse_plan, to_form
from billing.contracts import contracts_of
from billing.due import due
from billing.live_state import fold_days, rate_live
from billing.master import MasterData
from billing.periods import parse_moment, show_moment
from billing.phases import phase_times
from billing.rate_uses import usage_piece
from billing.rating import rate
from billing.scenario import check_scenario, documents_of
from billing.usage import EVENT_SCHEMA

FEW = settings(max_examples=12, deadline=None)
ZERO = Decimal(0)
BERLIN = "Europe/Berlin"
TRIAL = {"code": "trial", "for": "14 days", "free": True}


def day(number: int) -> str:
    return (date(2026, 1, 1) + timedelta(days=number)).isoformat()


def phased(*phases: dict[str, Any], charges: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    return plan(*(charges or [flat("31"), usage()]), phases=list(phases), **more)


def step(at: str, kind: str, **form: Any) -> dict[str, Any]:
    return {"at": at, kind: {"subscription": "s", **form}}


def all_lines(scenario: dict[str, Any]) -> list[tuple[str, ...]]:
    return [line for document in documents(scenario) for line in lines(document)]


# When phases begin


@pytest.mark.parametrize(
    ("lengths", "start", "expected"),
    [
        (["14 days", "1 month"], "2026-01-10", ["2026-01-10", "2026-01-24", "2026-02-24"]),
        (["1 month", "1 month"], "2026-01-31", ["2026-01-31", "2026-02-28", "2026-03-31"]),
        (["1 month", "2 weeks", "1 quarter"], "2026-01-31", ["2026-01-31", "2026-02-28", "2026-03-14", "2026-06-14"]),
        (["1 year"], "2028-02-29", ["2028-02-29", "2029-02-28"]),
        (["14 days"], "2026-03-20T15:30:00+01:00", ["2026-03-20T15:30:00+01:00", "2026-04-03T15:30:00+02:00"]),
        (["9999 years"], "2026-01-01", ["2026-01-01"]),
    ],
)
def test_phases_count_from_the_start_in_local_time(lengths: list[str], start: str, expected: list[str]) -> None:
    terms = [{"for": length, "discount": str(place)} for place, length in enumerate(lengths, start=1)]
    parsed = parse_plan(phased(*terms, {}))
    times = phase_times(parsed, parse_moment(start, BERLIN), BERLIN)
    assert [show_moment(one.start, BERLIN) for one in times] == expected


def test_a_phased_plan_reads_back_from_its_form() -> None:
    form = phased(
        {**TRIAL, "name": "Try it"},
        {"code": "intro", "for": "3 months", "discount": {"percent": "50", "charges": ["base"]}},
        {"code": "half", "for": "1 month", "discount": "50", "minimum": "5"},
        {"code": "own", "for": "10 days", "charges": [flat("1", "other")]},
        {"code": "ramp", "for": "1 year", "prices": {"base": {"model": "flat", "amount": "8"}}},
        {"code": "open"},
        trial_end="cancel",
    )
    parsed = parse_plan(form)
    assert parse_plan(to_form(parsed)) == parsed
    assert [phase["for"] for phase in to_form(parsed)["phases"][:-1]] == [
        "14 days", "3 months", "1 month", "10 days", "12 months",
    ]  # fmt: skip
    assert parsed.charge_codes == {"base", "n", "other"}
    assert parsed.in_phase(4).charge("base") == parsed.charges[0].with_price(dict(parsed.phases[4].prices)["base"])
    assert parsed.in_phase(4).whole is parsed


# Phases


def test_a_free_phase_has_no_fee_and_its_usage_costs_nothing_and_says_so() -> None:
    steps = [subscribe("2026-01-10"), used("2026-01-12", ("2026-01-11", "7")), run("2026-02-01")]
    made = documents_of(
        life([phased(TRIAL, {"code": "regular"}, minimum="100", charges=[flat("31"), usage(minimum="5")])], steps)
    )
    (document,) = [one.document for one in made]
    shown = [(line.charge, str(line.amount), line.quantity) for line in document.lines]
    # 31 x 8/31, the charge's own minimum from the 24th, and what 13.00 lack to 100 x 8/31 = 25.81
    assert shown == [
        ("base", "8.00", 1),
        ("base", "31.00", 1),
        ("n", "0.00", 7),
        ("n", "5.00", 0),
        ("minimum", "12.81", 1),
    ]
    assert document.lines[2].explanation["catalog"] == {
        "plan": "p", "version": 1, "charge": "n", "phase": "trial", "free": True,
    }  # fmt: skip


def test_a_one_off_charge_is_due_with_the_first_phase_that_is_not_free_and_never_again() -> None:
    setup = {"code": "setup", "kind": "one_off", "price": {"model": "flat", "amount": "50"}, "tax": "none"}
    phases = ({"for": "1 month", "free": True}, {"for": "1 month", "discount": "10"}, {})
    steps = [subscribe("2026-01-01"), run("2026-01-31"), run("2026-04-01"), run("2026-05-01")]
    made = documents(life([phased(*phases, charges=[setup])], steps))
    assert [lines(one) for one in made] == [[("setup", "2026-02-01", "2026-02-01", "1", "45.00")]]


def test_a_change_in_the_trial_does_not_bring_the_setup_of_either_plan_back() -> None:
    setup = {"code": "setup", "kind": "one_off", "price": {"model": "flat", "amount": "50"}, "tax": "none"}
    steps = [subscribe("2026-01-01"), step("2026-01-10", "change", plan="q"), run("2026-03-01")]
    plans = [phased(TRIAL, {}, charges=[setup]), plan(setup, flat("1"), code="q")]
    assert {line[0] for line in all_lines(life(plans, steps))} == {"base"}


def test_without_proration_a_phase_waits_for_the_next_period_but_not_after_a_free_one() -> None:
    """The trial ends on the 15th: January is owed in full from then on. The discount goes on to the end of March."""
    charge = flat("30", proration="none")
    phases = (TRIAL, {"for": "2 months", "discount": "50"}, {})
    steps = [subscribe("2026-01-01"), run("2026-04-01")]
    assert all_lines(life([phased(*phases, charges=[charge])], steps)) == [
        ("base", "2026-01-15", "2026-02-01", "1", "15.00"),
        ("base", "2026-02-01", "2026-03-01", "1", "15.00"),
        ("base", "2026-03-01", "2026-04-01", "1", "15.00"),
        ("base", "2026-04-01", "2026-05-01", "1", "30.00"),
    ]


def test_a_price_of_its_own_holds_over_phases_but_makes_nothing_of_a_free_one_cost() -> None:
    price = {"model": "per_unit", "unit": "2"}
    steps = [
        subscribe("2026-01-01"),
        step("2026-01-05", "override", charge="n", price=price),
        step("2026-01-05", "quantity", charge="base", quantity="2"),
        used("2026-01-20", ("2026-01-10", "1"), ("2026-01-20", "1")),
        run("2026-02-01"),
    ]
    charges = [flat("31", timing="arrears"), usage()]
    assert all_lines(life([phased(TRIAL, {}, charges=charges)], steps)) == [
        ("base", "2026-01-15", "2026-02-01", "2", "34.00"),
        ("n", "2026-01-01", "2026-01-15", "1", "0.00"),
        ("n", "2026-01-15", "2026-02-01", "1", "2.00"),
    ]


def test_a_cancellation_in_the_trial_that_waits_ends_with_the_trial() -> None:
    cancel = step("2026-01-05", "cancel", when="period_end")
    assert all_lines(life([phased(TRIAL, {})], [subscribe("2026-01-01"), cancel, run("2026-03-01")])) == []


@pytest.mark.parametrize("moment", ["2026-01-14", "2026-01-15"])
def test_who_cancels_when_the_trial_ends_or_before_pays_nothing(moment: str) -> None:
    setup = {"code": "setup", "kind": "one_off", "price": {"model": "flat", "amount": "50"}, "tax": "none"}
    steps = [subscribe("2026-01-01"), step(moment, "cancel", when="now"), run("2026-03-01")]
    assert all_lines(life([phased(TRIAL, {}, charges=[flat("31"), setup])], steps)) == []


def test_phases_pass_while_a_subscription_is_paused() -> None:
    """Paused on the 10th in the trial, resumed on the 22nd: 10 of 31 days at the regular price."""
    steps = [
        subscribe("2026-01-01"),
        step("2026-01-10", "pause"),
        step("2026-01-22", "resume"),
        run("2026-02-01", "2026-01-31"),
    ]
    assert all_lines(life([phased(TRIAL, {})], steps)) == [("base", "2026-01-22", "2026-02-01", "1", "10.00")]


def test_a_plan_chosen_later_is_in_the_phase_that_its_age_gives() -> None:
    """Changed after two months: the trial of the new plan is over for this subscription."""
    steps = [subscribe("2026-01-01"), step("2026-03-01", "change", plan="q"), run("2026-03-01")]
    plans = [plan(flat("1", timing="arrears")), phased(TRIAL, {}, code="q")]
    assert all_lines(life(plans, steps))[-1] == ("base", "2026-03-01", "2026-04-01", "1", "31.00")


def test_a_change_written_later_takes_back_what_was_billed_of_a_phase_at_the_price_of_that_phase() -> None:
    """Phase 2 began on 1 February at 28.00 and was billed; the change of 22 January comes to be known in February."""
    price = {"model": "flat", "amount": "28"}
    steps: list[dict[str, Any]] = [
        *({"tax_code": one} for one in (TAX, NO_TAX)),
        {"meter": METER},
        {"publish": {"plan": phased({"for": "1 month", "discount": "50"}, {"prices": {"base": price}})}},
        {"publish": {"plan": plan(flat("62"), code="q")}},
        {"customer": {"code": "c"}},
        subscribe("2026-01-01"),
    ]
    master = MasterData.start({"currency": "EUR", "timezone": BERLIN}).apply_all(steps)
    master = master.apply(run("2026-02-01"))
    before = contracts_of(master.subscriptions["s"], BERLIN)[0]
    february = parse_moment("2026-02-01", BERLIN)
    billed = before.span_for("base", before.subscription.number, february)
    assert billed is not None
    after = contracts_of(master.apply(step("2026-01-22", "change", plan="q")).subscriptions["s"], BERLIN)[0]
    found = after.span_for("base", before.subscription.number, february)
    assert found is not None
    assert found.charge == billed.charge
    assert found.charge.price == parse_plan(phased({"prices": {"base": price}})).in_phase(0).charges[0].price


def test_what_a_plan_chosen_in_the_trial_brings_is_due_also_when_it_comes_to_be_known_after_a_run() -> None:
    """The run of 1 February saw a contract that ended on 15 January; that it goes on is written later."""
    steps: list[dict[str, Any]] = [
        *({"tax_code": one} for one in (TAX, NO_TAX)),
        {"meter": METER},
        {"publish": {"plan": phased(TRIAL, {}, trial_end="cancel")}},
        {"customer": {"code": "c"}},
        subscribe("2026-01-01"),
        run("2026-02-01"),
        step("2026-01-10", "change", plan="p", when="period_end"),
    ]
    master = MasterData.start({"currency": "EUR", "timezone": BERLIN}).apply_all(steps)
    found = due(master, "c", parse_moment("2026-02-01", BERLIN), None)
    pieces = [(show_moment(piece.start, BERLIN), show_moment(piece.end, BERLIN)) for _, piece in found.fees]
    assert pieces == [("2026-01-15", "2026-02-01"), ("2026-02-01", "2026-03-01")]


def test_the_tax_of_a_phase_is_that_of_its_own_last_moment() -> None:
    """16 % until the end of 2020: the phase that ends with the year has it, the rest of January does not."""
    german = [("2020-07-01", "16"), ("2021-01-01", "19")]
    tax = {"code": "vat", "percents": [{"from": start, "percent": percent} for start, percent in german]}
    form = life(
        [phased({"for": "17 days", "discount": "10"}, {}, charges=[{**flat("31"), "tax": "vat"}])],
        [subscribe("2020-12-15", anchor="anniversary"), run("2020-12-15"), run("2021-01-01")],
    )
    form["tax_codes"] = [tax]
    assert [line["tax_percent"] for one in documents(form) for line in one["lines"]] == ["16", "19"]


@FEW
@given(start=st.integers(0, 40), length=st.integers(1, 40), values=st.lists(st.integers(0, 80), max_size=4))
def test_a_free_phase_adds_nothing(start: int, length: int, values: list[int]) -> None:
    """With a trial a contract costs what one costs that begins when the trial ends."""
    tiers = [{"up_to": "10", "unit": "0.70"}, {"up_to": None, "unit": "0.015", "flat": "1"}]
    charges = [flat("29.99"), flat("7.5", "b", timing="arrears"), usage(price={"model": "graduated", "tiers": tiers})]
    events = used(day(100), *((day(number), str(number)) for number in values))
    trial = phased({"for": f"{length} days", "free": True}, {}, charges=charges)
    with_trial = life([trial], [subscribe(day(start)), events, run(day(110))])
    without = life([plan(*charges)], [subscribe(day(start + length)), events, run(day(110))])
    costly = [line for line in all_lines(with_trial) if line[2] > day(start + length) or line[4] != "0.00"]
    assert [line for line in costly if line[1] >= day(start + length)] == all_lines(without)
    assert len(costly) == len(all_lines(without))


TERMS = [
    {"discount": "25"},
    {"free": True},
    {"prices": {"base": {"model": "flat", "amount": "9.99"}}},
    {"minimum": "15"},
]


@FEW
@given(
    terms=st.sampled_from(TERMS),
    length=st.integers(2, 50),
    cut=st.integers(1, 49),
    runs=st.lists(st.integers(0, 80), max_size=3),
)
def test_a_phase_split_in_two_equal_ones_changes_nothing(
    terms: dict[str, Any], length: int, cut: int, runs: list[int]
) -> None:
    cut = min(cut, length - 1)
    tiers = [{"up_to": "10", "unit": "0.70"}, {"up_to": None, "unit": "0.015", "flat": "1"}]
    charges = [flat("31"), usage(price={"model": "graduated", "tiers": tiers})]

    def made(*lengths: int) -> list[dict[str, Any]]:
        phases = [{"for": f"{days} days", **terms} for days in lengths]
        steps = [subscribe("2026-01-01"), used("2026-01-01", *((day(n), "4") for n in range(0, 1)))]
        steps += [
            step(day(20), "quantity", charge="base", quantity="3"),
            *(run(day(number)) for number in runs),
            run(day(90)),
        ]
        order = sorted(range(len(steps)), key=lambda place: (steps[place]["at"], place))
        return documents(life([phased(*phases, {}, charges=charges)], [steps[place] for place in order]))

    assert made(length) == made(cut, length - cut)


# Add-ons


def extended(**more: Any) -> dict[str, Any]:
    return {"at": more.pop("at", "2026-01-11"), "add_on": {"subscription": "s", "code": "x", "plan": "q", **more}}


def of_add_on(scenario: dict[str, Any], code: str = "x") -> list[tuple[str, ...]]:
    return [
        tuple(line[key] for key in ("charge", "from", "to", "quantity", "amount"))
        for document in documents(scenario)
        for line in document["lines"]
        if line["add_on"] == code
    ]


ADD_ON_PLAN = plan(flat("3.10"), code="q")


def test_an_agreed_end_of_an_add_on_is_known_from_its_start() -> None:
    """11 to 20 January: 10 of 31 days, billed once, nothing to be taken back."""
    steps = [subscribe("2026-01-01"), extended(end="2026-01-21"), run("2026-01-11"), run("2026-03-01")]
    assert of_add_on(life([plan(flat("31")), ADD_ON_PLAN], steps)) == [
        ("base", "2026-01-11", "2026-01-21", "1", "1.00")
    ]


@pytest.mark.parametrize(
    ("form", "taken_back"),
    [({"when": "now"}, ["2.00"]), ({"when": "now", "refund_unused": False}, []), ({"when": "period_end"}, [])],
)
def test_a_cancelled_subscription_ends_its_add_ons_with_the_same_terms(
    form: dict[str, Any], taken_back: list[str]
) -> None:
    """12 to 31 January are 20 of 31 days of 3.10, on a credit note."""
    steps = [
        subscribe("2026-01-01"),
        extended(at="2026-01-01"),
        run("2026-01-11"),
        step("2026-01-12", "cancel", **form),
        run("2026-03-01"),
    ]
    made = of_add_on(life([plan(flat("31")), ADD_ON_PLAN], steps))
    assert [line[4] for line in made] == ["3.10", *taken_back]


def test_an_add_on_has_quantities_prices_and_a_minimum_of_its_own() -> None:
    """Both plans have a charge `base`; 2 x 3.10 x 10/31, then 3 x 1 x 11/31, and what lacks to 31 x 21/31."""
    steps = [
        subscribe("2026-01-01", quantities={"base": "7"}),
        extended(quantities={"base": "2"}),
        step("2026-01-21", "quantity", add_on="x", charge="base", quantity="3"),
        step("2026-01-21", "override", add_on="x", charge="base", price={"model": "flat", "amount": "1"}),
        run("2026-02-01"),
    ]
    plans = [plan(flat("31", timing="arrears")), plan(flat("3.10", timing="arrears"), code="q", minimum="31")]
    made = documents(life(plans, steps))
    assert lines(made[0])[0] == ("base", "2026-01-01", "2026-02-01", "7", "217.00")
    assert of_add_on(life(plans, steps)) == [
        ("base", "2026-01-11", "2026-01-21", "2", "2.00"),
        ("base", "2026-01-21", "2026-02-01", "3", "1.06"),
        ("minimum", "2026-01-11", "2026-02-01", "1", "17.94"),
    ]


def test_discounts_of_a_subscription_are_not_for_its_add_ons_and_theirs_not_for_it() -> None:
    steps = [
        subscribe("2026-01-01", discounts=[{"percent": "50"}]),
        extended(at="2026-01-01", discounts=[{"percent": "10"}, {"amount": "1", "times": "2"}]),
        *(run(day) for day in ("2026-01-01", "2026-02-01", "2026-03-01")),
    ]
    made = documents(life([plan(flat("10")), plan(flat("10"), code="q")], steps))
    assert [[line["amount"] for line in one["lines"]] for one in made] == [["5.00", "9.00"]] * 3
    assert [one["net"] for one in made] == ["13.00", "13.00", "14.00"]


def test_an_add_on_of_a_yearly_plan_keeps_to_the_day_of_its_subscription() -> None:
    """The subscription began on 10 January: the add-on of 10 March pays the days up to the next 10 January."""
    steps = [subscribe("2026-01-10", anchor="anniversary"), extended(at="2026-03-10"), run("2026-03-10")]
    plans = [plan(flat("1")), plan(flat("365"), code="q", interval="year")]
    assert of_add_on(life(plans, steps)) == [("base", "2026-03-10", "2027-01-10", "1", "306.00")]


@pytest.mark.parametrize(("refund", "taken_back"), [(True, [("2026-05-01", "2027-01-01", "-245.00")]), (False, [])])
def test_a_yearly_add_on_ends_with_a_monthly_subscription(refund: bool, taken_back: list[tuple[str, ...]]) -> None:
    """Cancelled to the end of April: 245 of 365 days of the add-on are unused."""
    steps = [
        subscribe("2026-01-01"),
        extended(at="2026-01-01"),
        run("2026-04-01"),
        step("2026-04-10", "cancel", when="period_end", refund_unused=refund),
        run("2026-05-01"),
        run("2027-02-01"),
    ]
    made = of_add_on(life([plan(flat("1")), plan(flat("365"), code="q", interval="year")], steps))
    assert made[0] == ("base", "2026-01-01", "2027-01-01", "1", "365.00")
    signed = [(line[1], line[2], f"-{line[4]}") for line in made[1:]]  # on a credit note
    assert signed == taken_back


def test_a_pause_that_holds_when_an_add_on_begins_holds_for_it() -> None:
    steps = [
        subscribe("2026-01-01"),
        extended(at="2026-01-01", start="2026-01-11"),
        step("2026-01-05", "pause"),
        step("2026-01-22", "resume"),
        run("2026-01-31"),
    ]
    assert of_add_on(life([plan(flat("31")), ADD_ON_PLAN], steps)) == [
        ("base", "2026-01-22", "2026-02-01", "1", "1.00")
    ]


def test_an_add_on_of_a_subscription_that_stays_paused_is_never_billed() -> None:
    steps = [subscribe("2026-01-01"), extended(at="2026-01-01", start="2026-01-11"), step("2026-01-05", "pause")]
    assert of_add_on(life([plan(flat("31")), ADD_ON_PLAN], [*steps, run("2026-03-01")])) == []


def test_usage_that_no_row_of_an_add_on_prices_waits_in_suspense() -> None:
    """What is outside the add-on's time costs nothing and waits for nothing."""
    prices = [{"when": {"r": "a"}, "price": {"model": "per_unit", "unit": "1"}}]
    steps = [
        subscribe("2026-01-01"),
        extended(),
        used("2026-01-12", ("2026-01-05", "1"), data={"v": "1", "r": "b"}),
        used("2026-01-20", ("2026-01-20", "1"), data={"v": "1", "r": "b"}),
        used("2026-01-21", ("2026-01-21", "1"), data={"v": "1", "r": "a"}, subscription="s"),
        run("2026-02-01"),
    ]
    plans = [plan(flat("31", timing="arrears")), plan(usage(price_by=["r"], prices=prices), code="q")]
    expect = {"ingest": {"accepted": "2", "suspense": "1"}, "suspense": [{"reason": "no_price"}]}
    assert check_scenario(life(plans, steps, expect=expect)) == []
    assert of_add_on(life(plans, steps)) == [("n", "2026-01-11", "2026-02-01", "1", "1.00")]


def test_live_figures_are_cut_where_an_add_on_begins_within_a_day() -> None:
    noon = "2026-01-11T12:00:00+01:00"
    steps: list[dict[str, Any]] = [
        *({"tax_code": one} for one in (TAX, NO_TAX)),
        {"meter": METER},
        {"publish": {"plan": plan(flat("31"))}},
        {"publish": {"plan": plan(usage(), code="q")}},
        {"customer": {"code": "c"}},
        subscribe("2026-01-01"),
        extended(at=noon),
    ]
    master = MasterData.start({"currency": "EUR", "timezone": BERLIN}).apply_all(steps)
    events = used("2026-01-11", ("2026-01-11T11:00:00+01:00", "5"), ("2026-01-11T13:00:00+01:00", "7"))["usage"]
    rows = [
        {**one, "subscription": None, "time": parse_moment(one["time"], BERLIN), "data": json.dumps(one["data"])}
        for one in events
    ]
    table = pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row")
    pieces = [usage_piece(master, use) for use in due(master, "c", parse_moment("2026-02-01", BERLIN), None).uses]
    book = master.rating_book()
    assert [row.quantity for row in rate_live(pieces, fold_days(table, book), book).rows()] == [7]


def test_a_phased_plan_as_an_add_on_counts_from_its_own_start() -> None:
    steps = [subscribe("2026-01-01"), extended(at="2026-02-01"), run("2026-02-28")]
    made = of_add_on(life([plan(flat("31")), phased(TRIAL, {}, code="q", charges=[flat("28")])], steps))
    assert made == [("base", "2026-02-15", "2026-03-01", "1", "14.00")]


@FEW
@given(
    begin=st.integers(0, 30),
    length=st.one_of(st.none(), st.integers(1, 40)),
    quantity=st.integers(0, 4),
    events=st.lists(st.tuples(st.integers(0, 75), st.integers(0, 30)), max_size=4),
    runs=st.lists(st.integers(0, 80), max_size=3),
    anchor=st.sampled_from(["calendar", "anniversary"]),
)
def test_an_add_on_is_a_second_subscription_in_totals(
    begin: int, length: int | None, quantity: int, events: list[tuple[int, int]], runs: list[int], anchor: str
) -> None:
    """With the same plan, start, end and grid: the same lines, only under another name."""
    tiers = [{"up_to": "10", "unit": "0.70"}, {"up_to": None, "unit": "0.015", "flat": "1"}]
    plans = [plan(flat("31")), plan(flat("7.77"), usage(price={"model": "graduated", "tiers": tiers}), code="q")]
    begin = 0 if anchor == "anniversary" else begin  # a second subscription would have a grid of its own
    end = begin + length if length else None
    rest = [used(day(number), (day(number), str(value)), customer="c") for number, value in events]
    rest += [run(day(number)) for number in runs]
    rest.append(run(day(90)))
    terms = {"plan": "q", "quantities": {"base": str(quantity)}}
    added = {"subscription": "s", "code": "x", **terms, **({"end": day(end)} if end else {})}
    apart = subscribe(day(begin), "t", anchor=anchor, **terms)
    closed = [{"at": day(end), "cancel": {"subscription": "t", "when": "now"}}] if end else []

    def made(*own: dict[str, Any]) -> list[tuple[str, str, str, Decimal]]:
        steps = [subscribe(day(0), anchor=anchor), *own, *rest]
        order = sorted(range(len(steps)), key=lambda place: (steps[place]["at"], place))
        found: dict[tuple[str, str, str], Decimal] = {}
        for billed in documents_of(life(plans, [steps[place] for place in order])):
            sign = -1 if billed.document.type == "credit_note" else 1
            for line in billed.document.lines:
                second = line.subscription == "t" or bool(line.add_on)
                key = (str(second), line.charge, billed.document.date.isoformat())
                found[key] = found.get(key, ZERO) + sign * line.amount
        return sorted((*key, amount) for key, amount in found.items() if amount)

    one, other = made({"at": day(begin), "add_on": added}), made(apart, *closed)
    if not end:
        assert one == other
    # A cancellation becomes known later than an agreed end: then only the sums are the same, but for rounding.
    assert abs(sum(row[3] for row in one) - sum(row[3] for row in other)) <= Decimal("0.03")


@FEW
@given(
    phases=st.lists(
        st.sampled_from([{"free": True}, {"discount": "50"}, {"prices": {"n": {"model": "flat", "amount": "3"}}}]),
        max_size=2,
    ),
    steps=st.lists(
        st.tuples(st.integers(0, 80), st.sampled_from(["pause", "add_on", "change", "override"])), max_size=5
    ),
    values=st.lists(st.tuples(st.integers(0, 88), st.integers(0, 23), st.integers(0, 30)), min_size=1, max_size=12),
    noon=st.booleans(),
)
def test_live_figures_are_what_is_billed_with_phases_and_add_ons(
    phases: list[dict[str, Any]], steps: list[tuple[int, str]], values: list[tuple[int, int, int]], noon: bool
) -> None:
    """Folded by day (and cuts of it), priced by piece: the same rows as from the events themselves."""
    tiers = [{"up_to": "10", "unit": "0.70"}, {"up_to": None, "unit": "0.015", "flat": "1"}]
    rows = [
        {"when": {"r": "a"}, "price": {"model": "graduated", "tiers": tiers}},
        {"price": {"model": "per_unit", "unit": "1"}},
    ]
    by_row = {key: value for key, value in usage(prices=rows, price_by=["r"], code="m").items()}
    terms = [{"for": f"{9 + place} days", **one} for place, one in enumerate(phases)]
    base: list[dict[str, Any]] = [{"tax_code": TAX}, {"tax_code": NO_TAX}, {"meter": METER}]
    base.append({"publish": {"plan": phased(*terms, {}, charges=[flat("31"), usage(), by_row])}})
    base.append({"publish": {"plan": plan(usage(price={"model": "graduated", "tiers": tiers}), code="q")}})
    base.append({"customer": {"code": "c"}})
    clock = "T12:00:00+01:00" if noon else "T00:00:00+01:00"
    made = [subscribe(day(0) + clock)]
    paused = False
    for place, (number, kind) in enumerate(sorted(steps)):
        at = day(number + 1) + clock
        if kind == "pause":
            made.append(step(at, "resume" if paused else "pause"))
            paused = not paused
        elif kind == "add_on":
            made.append(extended(at=at, code=f"x{place}", end=day(number + 30)))
        elif kind == "change":
            made.append(step(at, "change", plan="q"))
        elif not any("change" in one for one in made) and not paused:
            made.append(step(at, "override", charge="n", price={"model": "per_unit", "unit": f"0.0{place + 1}"}))
    master = MasterData.start({"currency": "EUR", "timezone": BERLIN}).apply_all([*base, *made])
    events = [
        {
            "source": "t",
            "id": f"e{place}",
            "type": "n",
            "customer": "c",
            "subscription": "s" if place % 3 == 0 else None,
            "time": parse_moment(f"{day(number)}T{hour:02}:30:00+01:00", BERLIN),
            "data": json.dumps({"v": str(value), "r": "ab"[value % 2]}),
        }
        for place, (number, hour, value) in enumerate(values)
    ]
    table = pl.DataFrame(events, schema=EVENT_SCHEMA, orient="row")
    found = due(master, "c", parse_moment(day(130), BERLIN), None)
    pieces = [usage_piece(master, use) for use in found.uses]
    book = master.rating_book()
    billed = [
        (row.piece, row.row, row.quantity, row.amount) for row in rate(pieces, table, master.meters, BERLIN).rows()
    ]
    live = [
        (row.piece, row.row, row.quantity, row.amount) for row in rate_live(pieces, fold_days(table, book), book).rows()
    ]
    assert live == billed
