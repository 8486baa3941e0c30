"""What becomes of forms when a customer is forgotten: his words go, contracts, amounts and other people's stay."""

from __future__ import annotations

from typing import Any

import pytest

from billing.erasing import ERASED, Marks, forgotten_step, marks_of
from billing.master import MasterData
from pipelines.bill_run_chunk import billable

SECRET = "ab" * 32
TENANT = {"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE"}
PLAN = {"code": "basic", "currency": "EUR", "interval": "month", "charges": [
    {"code": "seat", "kind": "recurring", "tax": "vat", "price": {"model": "flat", "amount": "9.00"}}]}  # fmt: skip
STEPS: list[dict[str, Any]] = [
    {"at": "2026-01-01", "tax_code": {"code": "vat", "percents": [{"from": "2021-01-01", "percent": "19"}]}},
    {"at": "2026-01-01", "publish": {"plan": PLAN}},
    {"at": "2026-01-01", "customer": {"code": "seat", "name": "Ann Example", "country": "DE", "keys": ["sim 7"],
                                       "address": {"post_code": "20457", "city": "Ulm"}}},
    {"at": "2026-01-01", "customer": {"code": "other", "name": "Ann Example Ltd", "country": "AT", "payer": "seat"}},
    {"at": "2026-01-01", "subscribe": {"code": "s1", "customer": "seat", "plan": "basic", "note": "by Ann",
                                        "discounts": [{"percent": "10"}]}},
    {"at": "2026-01-01", "subscribe": {"code": "s2", "customer": "other", "plan": "basic", "note": "sim 7"}},
    {"at": "2026-01-02", "quantity": {"subscription": "s1", "charge": "seat", "quantity": "3"}},
    {"at": "2026-01-03", "ad_hoc": {"customer": "seat", "code": "visit", "name": "Visit at 7", "amount": "20457.00",
                                     "tax": "vat"}},
    {"at": "2026-02-01", "customer": {"code": "other", "payer": None}},
    {"at": "2026-02-01", "bill_run": {"up_to": "2026-02-01", "parked": ["seat"]}},
    {"at": "2026-02-02", "cancel": {"subscription": "s1"}},
]  # fmt: skip


@pytest.fixture
def marks() -> Marks:
    return marks_of(STEPS, "seat", SECRET)


def test_the_steps_without_him_add_up_to_the_same_contracts_and_amounts(marks: Marks) -> None:
    after = [forgotten_step(step, marks, "GDPR 17") for step in STEPS]
    before, master = MasterData.start(TENANT).apply_all(STEPS), MasterData.start(TENANT).apply_all(after)
    code = marks.stands_for
    assert set(master.customers) == {"other", code}
    assert master.customers[code].name == ERASED
    assert master.customers["other"] == MasterData.start(TENANT).apply_all(after).customers["other"]
    assert master.customers["other"].name == "Ann Example Ltd", "another one's name stays, though his is part of it"
    assert [one.code for one in master.customers["other"].payers] == [code, ""]
    assert master.runs[0].parked == {code}
    old, new = before.subscriptions["s1"], master.subscriptions[marks.pseudonym("s1")]
    assert (new.start, new.discounts, new.plan) == (old.start, old.discounts, old.plan)
    assert new.plan.charges[0].code == "seat", "a charge of the catalog that is called as he is stays"
    assert master.ad_hoc[code][0].amount == before.ad_hoc["seat"][0].amount
    assert master.step_count == before.step_count
    assert master.plans == before.plans
    text = str([after[place] for place in (2, 4, 6, 7, 9, 10)])
    assert not [word for word in ("Ann", "sim 7", "20457'", "Ulm", "s1'", "visit", "Visit") if word in text], text


def test_done_twice_or_half_it_gives_the_same(marks: Marks) -> None:
    once = [forgotten_step(step, marks, "x") for step in STEPS]
    assert [forgotten_step(step, marks, "x") for step in once] == once
    half = [*once[:5], *STEPS[5:]]  # the contract is written anew, its changes are not yet
    assert [forgotten_step(step, marks, "x") for step in half] == once


def test_who_was_erased_is_billed_no_more(marks: Marks) -> None:
    steps = [step for step in STEPS if "payer" not in step.get("customer", {})]
    steps.insert(2, {"at": "2026-01-01", "customer": {"code": "other", "name": "Other", "country": "AT"}})
    assert billable(MasterData.start(TENANT).apply_all(steps)) == ["other", "seat"]
    after = [forgotten_step(step, marks, "x") for step in steps]
    assert billable(MasterData.start(TENANT).apply_all(after)) == ["other"]


def test_a_number_that_holds_his_post_code_stays_and_his_words_go_from_texts(marks: Marks) -> None:
    form = {"customer": "seat", "amount": "20457", "charge": "seat", "kind": "seat", "name": "for Ann Example, 20457",
            "lines": [{"subscription": "s1", "quantity": "7"}], "by": {"sim 7": 1}}  # fmt: skip
    new = marks.without(form)
    assert (new["amount"], new["kind"], new["lines"][0]["quantity"]) == ("20457", "seat", "7")
    assert new["customer"] == marks.stands_for
    assert "Ann" not in new["name"]
    assert "20457" not in new["name"]
    assert new["lines"][0]["subscription"] == marks.pseudonym("s1")
    assert list(new["by"]) == [marks.pseudonym("sim 7")]


def test_a_form_of_somebody_else_loses_his_codes_only_where_forms_name_somebody(marks: Marks) -> None:
    form = {"meter": "seat", "text": "one seat", "customers": ["seat", "other"], "who": "Ann Example",
            "parked": [{"customer": "seat", "reason": "seat has no address"}]}  # fmt: skip
    new = marks.without(form, own=False)
    assert new["meter"] == "seat"
    assert new["text"] == "one seat"
    assert new["customers"] == [marks.stands_for, "other"]
    assert new["who"] == ERASED or new["who"].startswith("erased")
    assert "seat" not in new["parked"][0]["reason"], "what says that it is about him is his as a whole"
    assert marks.names(form)
    assert not marks.names({"meter": "seat", "text": "one seat"})


def test_marks_come_back_from_their_form_and_grow(marks: Marks) -> None:
    assert Marks.of_form(marks.to_form()) == marks
    more = marks_of([*STEPS, {"customer": {"code": "seat", "name": "Ann Married"}}], "seat", SECRET)
    grown = marks.with_more(more)
    assert {"Ann Example", "Ann Married"} <= grown.texts
    assert grown.pseudonym("seat") == marks.stands_for
    other = marks_of(STEPS, "seat", "cd" * 32)
    assert other.stands_for != marks.stands_for, "another erasure, another key"
