"""Bills in columns are the bills made one by one, to the last byte: worked examples, lives, and many at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lives import TAX, life, plan, run, subscribe, usage, used
from polars.testing import assert_frame_equal
from test_bill_properties import day, lives, with_runs

import billing.scenario as scenario
from billing.bill import BillResult
from billing.bill_columns import bill_plain, late_owners, plain, usage_pieces
from billing.document_columns import DocumentColumns, columns_of, sums_of_lines, together, totals_of
from billing.documents import Document
from billing.folded_usage import FoldedUsage, Folding
from billing.guard_rails import LAST_SCHEMA, held_by, outliers
from billing.master import DOCUMENT_PER, MasterData
from billing.money import exact_sum
from billing.run_settings import GuardRails
from billing.scenario import documents_of
from billing.typed_columns import with_typed
from cluster.scenario_command import load
from storage.sql.finalising import postings_of

CASES = Path(__file__).parents[1] / "cases"
SCENARIOS = sorted([*(CASES / "scenarios").glob("*.yaml"), *(CASES / "own").glob("*.yaml")])


def same(one: DocumentColumns, other: DocumentColumns) -> None:
    for name in ("documents", "lines", "taxes", "members"):
        assert_frame_equal(getattr(one, name), getattr(other, name))


class Both:
    """Stands in for `bill` in a scenario: makes the documents both ways, compares them, and counts who was plain."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        self._bill = scenario.bill
        self._seen = pl.DataFrame(schema={"source": pl.String, "id": pl.String})
        monkeypatch.setattr(scenario, "bill", self)

    def start(self) -> None:
        self._seen = self._seen.clear()

    def __call__(self, master: MasterData, customers: Sequence[str], **given: Any) -> BillResult:
        result = self._bill(master, customers, **given)
        events: pl.DataFrame = given["events"]
        fresh = events.join(self._seen, on=["source", "id"], how="anti")
        self._seen = events.select("source", "id")
        chosen = plain(master, customers, given["up_to"])
        late = late_owners(chosen, fresh.select(pl.col("customer").alias("key"), "time"))
        found = bill_plain(master, chosen, events, now=given["now"], leave=late)
        self._folded(master, customers, events, given, late)
        rest = set(found.rest)
        self.counts["rest"] += len(rest)
        self.counts["plain"] += len(set(customers) - rest)
        self.counts["documents"] += found.documents.count
        assert rest >= {one.customer for one in result.parked}
        pairs = [pair for pair in zip(result.keys, result.documents, strict=True) if pair[1].customer not in rest]
        assert late <= rest
        same(found.documents, columns_of([document for _, document in pairs], [key for key, _ in pairs]))
        others = [pair for pair in zip(result.keys, result.documents, strict=True) if pair[1].customer in rest]
        by_hand = columns_of([document for _, document in others], [key for key, _ in others])
        whole = columns_of(result.documents, result.keys)
        same(together([found.documents, by_hand]), whole)
        assert totals_of(whole) == plain_totals(result.documents)
        return result

    def _folded(
        self,
        master: MasterData,
        customers: Sequence[str],
        events: pl.DataFrame,
        given: dict[str, Any],
        late: frozenset[str],
    ) -> None:
        """The same bills when usage is folded for two chunks at once, out of typed frames, before it is priced."""
        chunks = [plain(master, part, given["up_to"]) for part in (customers[::2], customers[1::2])]
        folding = Folding(master, [usage_pieces(master, chosen)[0] for chosen in chunks])
        owned = events.join(folding.keys, left_on="customer", right_on="key", how="inner", maintain_order="left")
        owned = with_typed(owned, master.rating_book().reads)
        for offset in range(0, owned.height, 3):
            folding.add(folding.fold(owned.slice(offset, 3)))
        others = events.join(folding.keys, left_on="customer", right_on="key", how="anti", maintain_order="left")
        for chosen, part in zip(chunks, folding.parts(), strict=True):
            leave = late & set(chosen.customers)
            by_events = bill_plain(master, chosen, events, now=given["now"], leave=leave)
            found = bill_plain(master, chosen, others, now=given["now"], leave=leave, folded=part)
            same(found.documents, by_events.documents)
            assert found.rest == by_events.rest
            again = FoldedUsage.of_frames({name: frame for name, frame in part.frames().items() if frame.height})
            same(
                bill_plain(master, chosen, others, now=given["now"], leave=leave, folded=again).documents,
                found.documents,
            )
            self.counts["folded"] += found.documents.count


def plain_totals(documents: Sequence[Document]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for currency in sorted({document.currency for document in documents}):
        own = [document for document in documents if document.currency == currency]
        signs = [-1 if document.type == "credit_note" else 1 for document in own]
        found[currency] = {
            "documents": str(len(own)),
            "credit_notes": str(signs.count(-1)),
            **{
                name: format(exact_sum(getattr(one, name) * sign for sign, one in zip(signs, own, strict=True)), "f")
                for name in ("net", "tax", "gross")
            },
        }
    return found


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Both:
    return Both(monkeypatch)


def test_the_worked_examples_come_out_alike_both_ways(both: Both) -> None:
    for path in SCENARIOS:
        both.start()
        documents_of(load(path.read_text(encoding="utf-8")))
    assert both.counts["documents"] > 50, both.counts


def test_any_life_is_billed_alike_both_ways() -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        both = Both(monkeypatch)

        @settings(max_examples=12, deadline=None)
        @given(lives(), st.lists(st.integers(0, 80), min_size=1, max_size=3))
        def alike(made: tuple[dict[str, Any], list[dict[str, Any]]], runs: list[int]) -> None:
            both.start()
            documents_of(with_runs(made[0], [*runs, 90]))

        alike()


prices = st.sampled_from(
    [
        {"model": "per_unit", "unit": "0.1234567"},
        {"model": "per_unit", "unit": "-2"},
        {"model": "flat", "amount": "9.995"},
        {
            "model": "graduated",
            "tiers": [{"up_to": "10", "unit": "0.015"}, {"up_to": None, "unit": "0.007", "flat": "1"}],
        },
        {"model": "volume", "tiers": [{"up_to": "5", "unit": "2"}, {"up_to": None, "unit": "1.5"}]},
        {"model": "package", "size": "3", "amount": "0.99"},
        {"model": "percentage", "percent": "1.75", "per_event": "0.1"},
    ]
)
values = st.one_of(
    st.decimals(min_value=0, max_value=50, places=4), st.sampled_from(["0.0000001", "1000000000000000", "0", "-7"])
).map(str)


@st.composite
def crowds(draw: st.DrawFn) -> dict[str, Any]:
    """Several customers on a few plans of several currencies, some with odd codes, some with late usage."""
    rows = [{"when": {"zone": "a"}, "price": draw(prices)}, {"when": {}, "price": draw(prices)}]
    plans: list[dict[str, Any]] = []
    for code, currency in (("p", "EUR"), ("q", draw(st.sampled_from(["EUR", "KWD", "JPY", "CLF"])))):
        charges = [
            {"code": "fee", "kind": "recurring", "tax": draw(st.sampled_from(["vat", "small"])),
             "price": {"model": "per_unit", "unit": draw(st.sampled_from(["3", "1.005", "-4"]))},
             "timing": draw(st.sampled_from(["advance", "arrears"]))},
            {"code": "start", "kind": "one_off", "tax": "vat", "price": {"model": "flat", "amount": "20"}},
            {**usage(), "price": draw(prices), "tax": "vat", "name": 'Usage "é"'},
            {**usage(code="m", prices=rows, price_by=["zone"]), "tax": "small"},
            {**usage(code="low"), "price": draw(prices), "minimum": draw(st.sampled_from(["0", "4"])), "tax": "vat"},
        ]  # fmt: skip
        interval = draw(st.sampled_from(["month", "quarter", "week"]))
        plans.append({**plan(*draw(st.permutations(charges)), code=code), "currency": currency, "interval": interval})
    customers, steps = [], []
    for number in range(draw(st.integers(1, 5))):
        code = draw(st.sampled_from(["c", "cü", 'c"', "c\\x"])) + str(number)
        treatment = draw(st.sampled_from(["domestic", "domestic", "reverse_charge"]))
        customers.append({"code": code, "name": code, "country": "DE", "tax_treatment": treatment})
        for place in range(draw(st.integers(0, 2))):
            begin = day(draw(st.sampled_from([0, 0, 0, 14, 40])))
            more: dict[str, Any] = {"quantities": {"fee": draw(st.sampled_from(["1", "3"]))}}
            more |= {key: draw(st.sampled_from([None, None, "1", 'ü"2'])) for key in ("order_reference", "cost_centre")}
            anchor = draw(st.sampled_from(["calendar", "anniversary"]))
            name = draw(st.sampled_from(["s", "s'", 's"'])) + f"{number}-{place}"
            steps.append(subscribe(begin, name, draw(st.sampled_from("pq")), code, anchor=anchor, **more))
        for event in range(draw(st.integers(0, 6))):
            at, value = day(draw(st.integers(0, 85))), draw(values)
            sent = day(draw(st.integers(0, 88)))
            step = used(sent, (at, value), customer=code, data={"v": value, "zone": draw(st.sampled_from("ab"))})
            step["usage"][0]["id"] = f"{number}/{event}"
            steps.append(step)
    steps.sort(key=lambda step: (step["at"], "usage" in step))
    tax = [TAX, {"code": "small", "percents": [{"from": "2000-01-01", "percent": draw(st.sampled_from(["7.7", "0"]))}]}]
    setting = {"document_per": draw(st.sampled_from(["customer", *DOCUMENT_PER]))}
    return {**life(plans, steps, customers=customers, tenant=setting), "tax_codes": tax}


def test_any_crowd_is_billed_alike_both_ways() -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        both = Both(monkeypatch)

        @settings(max_examples=40, deadline=None)
        @given(crowds(), st.lists(st.integers(1, 80), max_size=2))
        def alike(made: dict[str, Any], runs: list[int]) -> None:
            both.start()
            documents_of(with_runs(made, [*runs, 90]))

        alike()
    assert both.counts["documents"] > both.counts["rest"], both.counts  # columns are the rule here


def test_a_customer_with_late_usage_is_left_to_the_other_way(both: Both) -> None:
    steps = [subscribe("2026-01-01"), used("2026-01-05", ("2026-01-05", "1")), run("2026-02-01")]
    late = used("2026-02-10", ("2026-01-07", "2"), ("2026-02-07", "4"))
    documents = documents_of(life([plan(usage())], [*steps, late, run("2026-03-01")]))
    assert [line.correction for line in documents[1].document.lines] == [True, False]
    assert (both.counts["plain"], both.counts["rest"]) == (1, 1)


def monthly(code: str, amount: str, tax: str = "vat", **more: Any) -> dict[str, Any]:
    return {"code": code, "kind": "recurring", "price": {"model": "per_unit", "unit": amount}, "tax": tax, **more}


# The largest price times the largest quantity, tax groups far apart that cancel out, usage beyond any column.
@pytest.mark.parametrize(
    ("charges", "quantities", "value"),
    [
        ([monthly("a", "99999999999999.99")], {"a": "99999999999999"}, "1"),
        ([monthly("a", "99999999999999.99"), monthly("b", "0.01")], {"a": "99999999999999.99"}, "1"),
        ([monthly("a", "10000000000000.01")], {}, "1"),
        ([monthly("a", "9000000000000"), monthly("b", "-9000000000000", "small"), monthly("c", "1")], {}, "1"),
        ([monthly("a", "1", timing="arrears")], {"a": "0.0000001"}, "1"),
        ([monthly("a", "1")], {}, "99999999999999999999999999"),
    ],
)
def test_numbers_beyond_the_columns_are_billed_to_the_last_digit(
    charges: list[dict[str, Any]], quantities: dict[str, str], value: str, both: Both
) -> None:
    metered = {**usage(unit="1" if value == "1" else "99999999999999"), "tax": "vat"}
    steps = [subscribe("2026-01-01", quantities=quantities), used("2026-01-05", ("2026-01-05", value))]
    scenario_ = life([plan(*charges, metered)], [*steps, run("2026-02-01")])
    small = {"code": "small", "percents": [{"from": "2000-01-01", "percent": "5"}]}
    documents = documents_of({**scenario_, "tax_codes": [*scenario_["tax_codes"], small]})
    for document in (one.document for one in documents):
        net = sum(Fraction(line.amount) for line in document.lines)
        tax = sum(Fraction(one.amount) for one in document.taxes)
        assert (Fraction(document.net), Fraction(document.tax)) == (net, tax)
        assert Fraction(document.gross) == net + tax
        columns = columns_of([document])
        assert Fraction(sums_of_lines(columns.lines)[0]) == net
        posted = postings_of(columns.documents).filter(pl.col("credit") == "revenue")
        assert Fraction(posted["amount"].item()) == net
        last = pl.DataFrame([(document.customer, "EUR", Decimal(1), Decimal(1))], schema=LAST_SCHEMA, orient="row")
        held = [one.code for one in held_by(GuardRails(on=True), columns.documents, last, {}, (), ())]
        assert held == (["over_last_invoices"] if document.gross > 3 else [])
        (outlier,) = outliers(columns.documents, last)
        assert Fraction(outlier["gross"]) == Fraction(document.gross)


@pytest.mark.parametrize("said", [("K1", "K2", None), ('K "1"\\', "Köln", "1"), (None, None, None)], ids=str)
def test_columns_say_the_cost_centre_of_each_contract_as_of_the_run(both: Both, said: tuple[str | None, ...]) -> None:
    charges = [{"code": "fee", "kind": "recurring", "price": {"model": "flat", "amount": "3"}, "tax": "vat"}, usage()]
    steps = [
        *(subscribe("2026-01-01", f"s{place}", customer="cd"[place % 2], cost_centre=centre)
          for place, centre in enumerate((*said, None))),
        used("2026-01-05", ("2026-01-05", "2"), ("2026-01-06", "3")),
        run("2026-02-01"),
        {"at": "2026-02-05", "references": {"subscription": "s0", "cost_centre": "later"}},
        used("2026-02-06", ("2026-02-05", "2"), customer="d"),
        run("2026-03-01"),
    ]  # fmt: skip
    customers = [{"code": code, "name": code, "country": "DE"} for code in "cd"]
    made = documents_of(life([plan(*charges)], steps, customers=customers))
    assert both.counts["rest"] == 0
    found = {(line.subscription, line.cost_centre) for one in made for line in one.document.lines}
    assert found == {("s0", "later"), *((f"s{place}", centre or "") for place, centre in enumerate((*said, None)))}


@pytest.mark.parametrize("per", DOCUMENT_PER)
def test_columns_make_several_documents_for_one_customer(both: Both, per: str) -> None:
    """By order and references of the run's day, in two currencies, beside a customer who gets one document."""
    charges = [
        {"code": "fee", "kind": "recurring", "price": {"model": "flat", "amount": "3.33"}, "tax": "vat"},
        {**usage(unit="0.07"), "tax": "vat"},
    ]
    said: list[dict[str, Any]] = [
        {"order_reference": "2", "cost_centre": "K1"},
        {"order_reference": "1", "buyer_reference": 'a "b"\\'},
        {"order_reference": "2", "cost_centre": "K2"},
        {"order_reference": "Ä 1", "cost_centre": "K1", "leitweg_id": "04011000-1234512345-06"},
        {},
        {"cost_centre": "K1"},
    ]
    steps = [
        *(subscribe("2026-01-01", f"s{place}", "pq"[place > 8], "cccce"[place % 5], **one)
          for place, one in enumerate([*said, *said])),
        used("2026-01-05", ("2026-01-05", "20"), ("2026-01-06", "30")),
        used("2026-01-05", ("2026-01-05", "21"), customer="e"),
        run("2026-02-01"),
        {"at": "2026-02-05", "references": {"subscription": "s2", "order_reference": "1", "cost_centre": "K1"}},
        used("2026-02-06", ("2026-02-05", "2"), customer="e"),
        run("2026-03-01"),
    ]  # fmt: skip
    customers: list[dict[str, Any]] = [{"code": code, "name": code, "country": "DE"} for code in "ce"]
    customers[1]["document_per"] = "customer"
    form = life([plan(*charges), plan(*charges, code="q", currency="USD")], steps, customers=customers)
    form["tenant"]["document_per"] = per
    made = documents_of(form)
    assert both.counts["rest"] == 0
    several = Counter((one.document.customer, one.document.currency, one.document.date) for one in made)
    assert max(several.values()) > (1 if per != "customer" else 0)
    assert {one.document.group is None for one in made if one.document.customer == "e"} == {True}


def test_a_group_below_nothing_is_a_credit_note_that_the_engine_makes(both: Both) -> None:
    negative = {"code": "fee", "kind": "recurring", "price": {"model": "flat", "amount": "-3"}, "tax": "vat"}
    charge = {**negative, "price": {"model": "flat", "amount": "30"}}
    steps = [
        subscribe("2026-01-01", "a", order_reference="1"),
        subscribe("2026-01-01", "b", "q", order_reference="2"),
        run("2026-01-01"),
    ]
    customers = [{"code": "c", "name": "c", "country": "DE", "document_per": "order"}]
    made = documents_of(life([plan(charge), plan(negative, code="q")], steps, customers=customers))
    assert [one.document.type for one in made] == ["invoice", "credit_note"]
    assert both.counts["rest"] == 1
