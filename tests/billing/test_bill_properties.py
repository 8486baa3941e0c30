"""What holds for every contract: documents add up, credits mirror, order and timing of runs do not matter."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lives import METER, NO_TAX, TAX, documents, flat, life, plan, run, subscribe, usage, used

from billing.assemble import tax_of
from billing.bill import BilledDocument, bill, events_needed_from
from billing.credit_notes import CreditLine, credit_note, mirror
from billing.documents import Document
from billing.master import MasterData
from billing.money import round_amount
from billing.periods import days_between, grid, parse_moment
from billing.scenario import documents_of
from billing.usage import EVENT_SCHEMA
from billing.verdicts import classify

FEW = settings(max_examples=20, deadline=None)
ZERO = Decimal(0)
amounts = st.decimals(min_value=-50, max_value=500, places=2).map(str)
percents = st.sampled_from(["10", "33.333", "50", "100"])
days = st.integers(min_value=0, max_value=80)


def day(number: int) -> str:
    return (date(2026, 1, 1) + timedelta(days=number)).isoformat()


@st.composite
def charges(draw: st.DrawFn) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 3))):
        more = {
            "timing": draw(st.sampled_from(["advance", "arrears"])),
            "proration": draw(st.sampled_from(["day", "second", "none"])),
        }
        found.append({**flat(draw(amounts), f"f{number}", **more), "tax": draw(st.sampled_from(["vat", "none"]))})
    tiers = [{"up_to": "10", "unit": draw(amounts)}, {"up_to": None, "unit": "0.015", "flat": "1"}]
    found.append({**usage(), "price": {"model": "graduated", "tiers": tiers}, "tax": "vat"})
    return found


@st.composite
def phases(draw: st.DrawFn) -> dict[str, Any]:
    """Phases of a plan whose charges are f0 ... and n; none of them in half of the cases."""
    if draw(st.booleans()):
        return {}
    found: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 2))):
        terms = draw(
            st.sampled_from(
                [
                    {"free": True},
                    {"discount": "50"},
                    {"discount": {"percent": "100", "charges": ["f0"]}},
                    {"prices": {"f0": {"model": "flat", "amount": "7.77"}}},
                    {"charges": [flat("3", "other"), {**usage("0.5"), "tax": "vat"}]},
                    {"minimum": "20"},
                ]
            )
        )
        found.append({"for": draw(st.sampled_from(["5 days", "14 days", "1 month"])), **terms})
    return {"phases": [*found, {}]}


@st.composite
def lives(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A scenario without bill runs, and its steps in order of time."""
    plans = [
        plan(*draw(charges()), **draw(phases())),
        plan(*draw(charges()), code="q", minimum=draw(st.sampled_from([None, "40"])), **draw(phases())),
    ]
    discounts = draw(st.lists(st.fixed_dictionaries({"percent": percents}), max_size=2))
    if draw(st.booleans()):
        discounts.append({"amount": "7.77", "times": "2"})
    anchor = draw(st.sampled_from(["calendar", "anniversary"]))
    steps: list[dict[str, Any]] = []
    paused = False
    for moment in sorted(draw(st.lists(days, max_size=5))):
        kind = draw(st.sampled_from(["change", "quantity", "usage", "usage", "pause", "add_on", "remove_add_on"]))
        at = day(moment)
        if kind == "add_on":
            end = draw(st.sampled_from([{}, {"end": day(moment + 20)}]))
            add_on = {"subscription": "s", "code": f"x{len(steps)}", "plan": draw(st.sampled_from("pq")), **end}
            steps.append({"at": at, "add_on": add_on})
            continue
        if kind == "remove_add_on":
            known = [step["add_on"]["code"] for step in steps if "add_on" in step and "end" not in step["add_on"]]
            if known and not any("remove_add_on" in step for step in steps):
                when = draw(st.sampled_from(["now", "period_end"]))
                refund = draw(st.booleans())
                form = {"subscription": "s", "code": known[0], "when": when, "refund_unused": refund}
                steps.append({"at": at, "remove_add_on": form})
            continue
        if kind == "pause":
            steps.append({"at": at, "resume" if paused else "pause": {"subscription": "s"}})
            paused = not paused
            continue
        if kind == "change":
            when = draw(st.sampled_from(["now", "period_end"]))
            steps.append({"at": at, "change": {"subscription": "s", "plan": draw(st.sampled_from("pq")), "when": when}})
        elif kind == "quantity":
            quantity = str(draw(st.integers(0, 5)))
            steps.append({"at": at, "quantity": {"subscription": "s", "charge": "f0", "quantity": quantity}})
        else:
            value = str(draw(st.decimals(min_value=0, max_value=30, places=3)))
            steps.append(used(at, (at, value), data={"v": value}))
            steps[-1]["usage"][0]["id"] = f"e{len(steps)}"
    if draw(st.sampled_from([True, False, False])):
        when = {"when": draw(st.sampled_from(["now", "period_end"])), "refund_unused": draw(st.booleans())}
        steps.append({"at": day(81), "cancel": {"subscription": "s", **when}})
    begin = subscribe(day(0), anchor=anchor, discounts=discounts)
    return life(plans, [begin, *steps]), steps


def with_runs(scenario: dict[str, Any], numbers: list[int]) -> dict[str, Any]:
    steps = [*scenario["timeline"], *(run(day(number)) for number in numbers)]
    order = sorted(range(len(steps)), key=lambda place: (steps[place]["at"], place))
    return {**scenario, "timeline": [steps[place] for place in order]}


def check_sums(document: Document) -> None:
    assert document.net == sum((line.amount for line in document.lines), ZERO) - sum(
        (allowance.amount for allowance in document.allowances), ZERO
    )
    assert document.gross == document.net + document.tax == document.net + sum((t.amount for t in document.taxes), ZERO)
    assert document.due == document.gross - document.prepaid
    assert sum((tax.base for tax in document.taxes), ZERO) == document.net
    for tax in document.taxes:
        assert tax.amount == tax_of(tax.base, tax.percent, document.currency)
    for line in document.lines:
        assert line.amount == line.amount.quantize(Decimal("0.01"))
        assert abs(line.allowance) <= abs(line.amount + line.allowance)


@FEW
@given(lives(), st.lists(days, min_size=1, max_size=4))
def test_documents_add_up_whatever_happens(made: tuple[dict[str, Any], list[dict[str, Any]]], runs: list[int]) -> None:
    for billed in documents_of(with_runs(made[0], [*runs, 90])):
        check_sums(billed.document)


@settings(max_examples=8, deadline=None)
@given(lives(), st.lists(days, min_size=1, max_size=4, unique=True))
def test_a_second_run_with_nothing_new_makes_nothing(
    made: tuple[dict[str, Any], list[dict[str, Any]]], runs: list[int]
) -> None:
    once = documents(with_runs(made[0], [*runs, 90]))
    twice = documents(with_runs(made[0], [*runs, *runs, 90, 90]))
    assert once == twice


def exact_total(documents: list[BilledDocument]) -> Decimal:
    return sum(
        (
            (line.amount + line.allowance) * (-1 if b.document.type == "credit_note" else 1)
            for b in documents
            for line in b.document.lines
        ),
        ZERO,
    )


@FEW
@given(lives(), st.lists(days, min_size=1, max_size=5, unique=True))
def test_billing_often_or_all_at_once_gives_the_same_but_for_rounding(
    made: tuple[dict[str, Any], list[dict[str, Any]]], runs: list[int]
) -> None:
    """One half of a cent for each line on either side is all that rounding may do."""
    often, once = documents_of(with_runs(made[0], [*runs, 90])), documents_of(with_runs(made[0], [90]))
    count = sum(len(b.document.lines) for b in (*often, *once))
    assert abs(exact_total(often) - exact_total(once)) <= Decimal("0.005") * count


@FEW
@given(lives(), st.randoms(use_true_random=False))
def test_the_order_in_which_events_arrive_does_not_matter(
    made: tuple[dict[str, Any], list[dict[str, Any]]], random: Any
) -> None:
    form, _ = made
    events = [event for step in form["timeline"] for event in step.get("usage", ())]
    rest = [step for step in form["timeline"] if "usage" not in step]
    shuffled = random.sample(events, len(events))
    results = [
        documents_of({**form, "timeline": [*rest, {"at": day(89), "usage": order}, run(day(90))]})
        for order in (events, shuffled)
    ]
    assert [b.document for b in results[0]] == [b.document for b in results[1]]


@FEW
@given(lives())
def test_a_whole_credit_note_and_one_over_all_lines_take_back_exactly_the_invoice(
    made: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    for number, billed in enumerate(documents_of(with_runs(made[0], [90]))):
        document = billed.document
        if document.type != "invoice":
            continue
        whole = mirror(billed, date(2026, 6, 1))
        assert (whole.net, whole.tax, whole.gross, whole.due) == (
            document.net,
            document.tax,
            document.gross,
            document.due,
        )
        wanted = [CreditLine(place) for place, line in enumerate(document.lines, start=1) if line.amount]
        notes: list[Document] = []
        for one in wanted:
            notes.append(credit_note(BilledDocument(str(number), document), date(2026, 6, 1), notes, [one]))
        if wanted:
            assert sum((note.net for note in notes), ZERO) == document.net
            assert sum((note.tax for note in notes), ZERO) == document.tax


@FEW
@given(amounts, st.integers(1, 27), st.sampled_from(["day", "second"]))
def test_a_full_line_that_is_taken_back_is_its_exact_negative(amount: str, start: int, proration: str) -> None:
    steps = [
        subscribe(day(start)),
        run(day(start)),
        {"at": day(start), "cancel": {"subscription": "s", "when": "now"}},
        run(day(start + 1)),
    ]
    made = documents_of(life([plan(flat(amount, proration=proration))], steps))
    total = sum((-b.document.net if b.document.type == "credit_note" else b.document.net for b in made), ZERO)
    assert len(made) == 2
    assert total == 0


@FEW
@given(
    st.sampled_from(["day", "week", "month", "quarter", "year"]),
    st.datetimes(min_value=parse_moment("2000-01-01", "UTC").replace(tzinfo=None)),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kolkata", "America/Havana", "Pacific/Apia"]),
    st.sampled_from(["calendar", "anniversary"]),
)
def test_periods_follow_each_other_without_gap_and_their_days_add_up(
    interval: Any, local: Any, timezone: str, anchor: Any
) -> None:
    local = local.replace(year=2000 + local.year % 60, microsecond=0, day=min(local.day, 28))
    start = parse_moment(local.isoformat() + "+00:00", timezone)
    periods = grid(interval, anchor, timezone, start)
    one = first = periods.at(start)
    total = 0
    for _ in range(6):
        assert one.start < one.end
        assert periods.at(one.start) == one
        total += days_between(one.start, one.end, timezone)
        following = periods.following(one)
        assert following.start == one.end
        one = following
    assert total == days_between(first.start, one.start, timezone)


def test_chunks_of_customers_give_the_same_documents_as_all_at_once() -> None:
    """What a bill run over Ray rests on: a subset of master data, of documents and of events is enough."""
    steps: list[dict[str, Any]] = [{"tax_code": TAX}, {"tax_code": NO_TAX}, {"meter": METER}]
    steps.append({"publish": {"plan": plan(flat("9.99"), usage("0.015"))}})
    events: list[dict[str, Any]] = []
    for number in range(20):
        steps.append({"at": "2026-01-01", "customer": {"code": f"c{number:02}"}})
        steps.append(subscribe("2026-01-01", f"s{number:02}", customer=f"c{number:02}"))
        for event in used("2026-01-02", *((day(n), str(n * number)) for n in range(1, 4)), customer=f"c{number:02}")[
            "usage"
        ]:
            fields = {
                **event,
                "subscription": None,
                "time": parse_moment(event["time"], "Europe/Berlin"),
                "id": f"{number}{event['id']}",
            }
            events.append({**fields, "data": f'{{"v": "{event["data"]["v"]}"}}'})
    master = MasterData.start({"currency": "EUR", "timezone": "Europe/Berlin"}).apply_all(steps)
    table = pl.DataFrame(events, schema=EVENT_SCHEMA, orient="row")
    up_to = parse_moment("2026-02-01", "Europe/Berlin")

    def made(master: MasterData, customers: list[str], table: pl.DataFrame) -> list[Document]:
        return list(bill(master, customers, up_to=up_to, now=up_to, billed=[], events=table).documents)

    whole = made(master, list(master.customers), table)
    assert len(whole) == 20
    pieces: list[Document] = []
    codes = sorted(master.customers)
    for start in range(0, 20, 7):
        chunk = codes[start : start + 7]
        part = MasterData.from_bytes(master.subset(chunk).to_bytes())
        pieces += made(part, chunk, table.filter(pl.col("customer").is_in(chunk)))
    assert pieces == whole


def test_a_customer_who_cannot_be_billed_is_parked_and_the_others_are_not() -> None:
    steps: list[dict[str, Any]] = [
        {"tax_code": {"code": "none", "percents": [{"from": "2026-02-01", "percent": "0"}]}},
        {"publish": {"plan": plan(flat("10", timing="arrears"))}},
        {"customer": {"code": "early"}},
        {"customer": {"code": "later"}},
        subscribe("2026-01-01", "s1", customer="early"),
        subscribe("2026-02-01", "s2", customer="later"),
    ]
    master = MasterData.start({"currency": "EUR", "timezone": "Europe/Berlin"}).apply_all(steps)
    up_to = parse_moment("2026-03-01", "Europe/Berlin")
    result = bill(
        master, ["early", "later"], up_to=up_to, now=up_to, billed=[], events=pl.DataFrame(schema=EVENT_SCHEMA)
    )
    assert [document.customer for document in result.documents] == ["later"]
    assert [(one.customer, one.code) for one in result.parked] == [("early", "invalid_input")]
    assert "no percent" in result.parked[0].reason


def test_rounding_is_half_away_from_zero_for_decimals_and_fractions_alike() -> None:
    for text in ("0.005", "-0.005", "0.0049999", "2.675", "-1.005", "0", "123456789012345.675"):
        assert round_amount(Decimal(text), "EUR") == round_amount(Fraction(text), "EUR")
    assert str(round_amount(Decimal("-0.001"), "EUR")) == "0.00"


def as_the_platform_bills(form: dict[str, Any]) -> list[Document]:
    """The same life as a bill run sees it: only the events and documents that the engine says it needs."""
    master = MasterData.start(form["tenant"]).apply_all(
        [
            *({"tax_code": one} for one in form["tax_codes"]),
            *({"meter": one} for one in form["meters"]),
            *({"publish": {"plan": one}} for one in form["plans"]),
            *({"customer": one} for one in form["customers"]),
        ]
    )
    timezone = master.tenant.timezone
    events: list[dict[str, Any]] = []
    fresh = 0  # events from this place on were seen by no run
    made: list[BilledDocument] = []
    for step in form["timeline"]:
        now = parse_moment(step["at"], timezone)
        if "usage" in step:
            for event in step["usage"]:
                fields = {**event, "subscription": None, "time": parse_moment(event["time"], timezone)}
                events.append({**fields, "data": f'{{"v": "{event["data"]["v"]}"}}'})
            continue
        if "bill_run" not in step:
            master = MasterData.from_bytes(master.apply(step).to_bytes())
            continue
        up_to = parse_moment(step["bill_run"]["up_to"], timezone)
        customers = list(master.customers)
        late_since = min((event["time"] for event in events[fresh:]), default=None)
        since = events_needed_from(master, customers, up_to, late_since)
        needed = [event for event in events if event["time"] >= since]
        table = pl.DataFrame(needed, schema=EVENT_SCHEMA, orient="row")
        recent = [
            b
            for b in made
            if any(line.end > since for line in b.document.lines) or master.needs_all_documents(b.document.customer)
        ]
        result = bill(
            master,
            customers,
            up_to=up_to,
            now=now,
            billed=recent,
            events=table.filter(classify(table, master.rating_book(), now).is_null()),
            events_from=since,
        )
        assert result.parked == ()
        master = master.apply(step)
        fresh = len(events)
        for document in result.documents:
            made.append(BilledDocument(str(len(made) + 1), document, master.step_count, now))
    return [b.document for b in made]


@settings(max_examples=25, deadline=None)
@given(lives(), st.lists(days, min_size=1, max_size=5), st.sampled_from(["delta", "reissue"]), st.booleans())
def test_what_the_engine_says_it_needs_is_enough(
    made: tuple[dict[str, Any], list[dict[str, Any]]], runs: list[int], late_usage: str, much_late: bool
) -> None:
    form = with_runs(made[0], [*runs, 90])
    form["tenant"]["late_usage"] = late_usage
    if much_late:  # all usage comes just before the last run
        usage_steps = [{**step, "at": day(90)} for step in form["timeline"] if "usage" in step]
        rest = [step for step in form["timeline"] if "usage" not in step]
        form["timeline"] = [*rest[:-1], *usage_steps, rest[-1]]
    assert as_the_platform_bills(form) == [b.document for b in documents_of(form)]


@pytest.mark.parametrize("amount", ["0.00", "10.00"])
def test_a_fee_that_is_due_long_after_the_part_whose_minimum_it_counts_for_is_set_against_what_was_billed(
    amount: str,
) -> None:
    """The minimum of a phase of five days is billed on its last day, the month's fee in arrears at the month's end: the
    run then has to know the document with the minimum, or it bills the minimum again."""
    fee = {**flat(amount, "f0"), "timing": "arrears", "proration": "none"}
    form = life(
        [plan(fee, phases=[{"for": "5 days", "minimum": "20"}, {}])], [subscribe(day(0)), run(day(5)), run(day(90))]
    )
    made = as_the_platform_bills(form)
    assert made == [b.document for b in documents_of(form)]
    owed = [line.amount for one in made for line in one.lines if line.kind == "minimum"]
    assert owed == [Decimal("3.23"), *([Decimal("-3.23")] if amount != "0.00" else [])]
