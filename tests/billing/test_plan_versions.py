"""Which version of a plan a contract takes: the newest that is in force on the day it begins."""

from __future__ import annotations

from typing import Any

import pytest
from lives import documents, flat, life, plan, run, subscribe

from billing.catalog_forms import parse_plan, to_form
from billing.errors import InvalidInput

FUTURE = plan(flat("12"), effective_from="2026-07-01")
OLD = plan(flat("10"))


def published(at: str, form: dict[str, Any]) -> dict[str, Any]:
    return {"at": at, "publish": {"plan": form}}


def net(plans: list[dict[str, Any]], *steps: dict[str, Any]) -> str:
    return str(documents(life(plans, [*steps, run("2026-07-02", "2026-07-01")]))[0]["net"])


def test_a_version_is_taken_from_its_day_on_and_not_the_day_before() -> None:
    announced = published("2026-05-01", FUTURE)
    assert net([OLD], announced, subscribe("2026-05-02", start="2026-06-30", anchor="anniversary")) == "10.00"
    assert net([OLD], announced, subscribe("2026-05-02", start="2026-07-01", anchor="anniversary")) == "12.00"


def test_a_newer_version_without_a_day_counts_at_once() -> None:
    newest = published("2026-05-02", plan(flat("11")))
    assert net([OLD, FUTURE], newest, subscribe("2026-07-01")) == "11.00"


def test_a_change_takes_the_version_that_is_in_force_when_it_is_made() -> None:
    change = {"subscription": "s", "plan": "q", "when": "now"}
    other = plan(flat("20"), code="q")
    later = plan(flat("25"), code="q", effective_from="2026-07-01")
    steps = [subscribe("2026-05-01"), {"at": "2026-07-01", "change": change}]
    assert net([OLD, other, later], *steps) == "45.00"  # May and June at 10, July at 25


def test_a_plan_that_is_not_in_force_yet_is_refused_with_the_day() -> None:
    with pytest.raises(InvalidInput) as caught:
        documents(life([FUTURE], [subscribe("2026-06-30")]))
    (error,) = caught.value.errors
    assert error.pointer == "/timeline/0/subscribe/plan"
    assert error.detail == "plan 'p' is effective only from 2026-07-01, the contract begins on 2026-06-30"


def test_the_form_keeps_the_day() -> None:
    assert to_form(parse_plan(FUTURE))["effective_from"] == "2026-07-01"
    assert "effective_from" not in to_form(parse_plan(OLD))


@pytest.mark.parametrize("wrong", ["2026-02-30", "soon", 7, "2026-07-01T00:00:00Z"])
def test_what_is_no_day_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_plan(plan(flat("1"), effective_from=wrong))
    assert [error.pointer for error in caught.value.errors] == ["/effective_from"]
