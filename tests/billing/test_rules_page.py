"""docs/rules.md is true: each of its examples is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from billing.scenario import check_prices, check_scenario
from cluster.scenario_command import load

PAGE = Path(__file__).parents[2] / "docs" / "rules.md"
BLOCK = re.compile(r"^```(\w+) ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TAX_CODES = [
    {"code": "standard", "percents": [{"from": "2007-01-01", "percent": "19"}]},
    {"code": "none", "percents": [{"from": "2007-01-01", "percent": "0"}]},
]
CUSTOMER = {"code": "c", "name": "C", "country": "DE", "tax_treatment": "domestic"}
OF_THE_PLAN = frozenset({"minimum", "tax_behavior", "phases", "trial_end"})


def blocks(kind: str) -> list[Any]:
    found = [load(text) for language, name, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if name == kind]
    assert found, f"the page has no {kind} examples"
    return found


def whole(block: dict[str, Any]) -> dict[str, Any]:
    """A block of the page as a complete scenario."""
    plan = {"code": "p", "currency": "EUR", "interval": block.get("interval", "month"), "charges": block["charges"]}
    plan.update({key: block[key] for key in OF_THE_PLAN & set(block)})
    return {
        "tenant": {"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE"},
        "tax_codes": [*TAX_CODES, *block.get("tax_codes", [])],
        "meters": [{"code": "n", "event_type": "n", "aggregation": "sum", "value": "v"}],
        "plans": [plan, *block.get("plans", [])],
        "customers": block.get("customers", [CUSTOMER]),
        "timeline": block["timeline"],
        "expect": block["expect"],
    }


@pytest.mark.parametrize("block", blocks("life"), ids=lambda block: block.get("about", "life")[:40])
def test_a_life_on_the_page_comes_out_as_it_says(block: dict[str, Any]) -> None:
    more = {"about", "interval", "tax_codes", "customers", "charges", "plans", "timeline", "expect"}
    assert set(block) <= OF_THE_PLAN | more
    assert block["expect"]["documents"]
    assert check_scenario(whole(block)) == []


def test_the_prices_on_the_page_come_out_as_it_says() -> None:
    for cases in blocks("prices"):
        assert check_prices(cases) == []


def test_every_block_of_the_page_is_run() -> None:
    assert {name for _, name, _ in BLOCK.findall(PAGE.read_text(encoding="utf-8"))} == {"life", "prices"}
