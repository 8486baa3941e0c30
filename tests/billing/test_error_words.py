"""Whole refusals of bad master data, word by word, as a golden page; what each step gets wrong is in test_bad_input."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from test_bad_input import METER, PRICE, REFUSED, STEPS, TENANT, charge, on, phased, plan, priced, subscribed

from billing.errors import InvalidInput
from billing.master import MasterData

BAND = {"unit": "1", "days": ["mon"], "from": "08:00", "to": "18:00"}


def banded(**more: Any) -> dict[str, Any]:
    return priced({"model": "bands", "bands": [{**BAND, **more}], "otherwise": "2"})


def meter(**more: Any) -> dict[str, Any]:
    return {"meter": {**METER, "code": "new", **more}}


def customer(**more: Any) -> dict[str, Any]:
    return {"customer": {"code": "c", **more}}


def recurring(**more: Any) -> dict[str, Any]:
    flat = {"model": "flat", "amount": "1"}
    return {"publish": {"plan": plan("new", {"code": "f", "kind": "recurring", "price": flat, "tax": "none", **more})}}


ROW = {"when": {"r": "a"}, "price": PRICE}
# What test_bad_input leaves out: mistakes that are read the same everywhere, but each has words of its own.
MORE: list[dict[str, Any]] = [
    *(banded(**{key: value}) for key in ("from", "to") for value in ("8:00", "08:60", "24:01", "0800", "aa:bb", 8)),
    banded(**{"from": "24:00"}),
    banded(days=["mon", "monday"]),
    banded(unit=None),
    meter(value=None),
    meter(aggregation="median"),
    meter(filter={"region": []}),
    meter(filter={"region": ["eu", 1]}),
    meter(filter={"region": "eu"}),
    meter(filter={f"p{number}": ["x"] for number in range(11)}),
    meter(event_type=""),
    meter(colour="red"),
    charge(meter=None),
    charge(timing="advance"),
    charge(kind="seldom"),
    charge(tax=None),
    charge(price=None),
    charge(price={"model": "percentage", "percent": "1"}, included="5"),
    charge(price={"model": "event_amount", "property": "v"}, included="5"),
    charge(price={"model": "barter"}),
    charge(price=[]),
    charge(price_by=["r"], prices=[ROW], price=None, minimum="1"),
    charge(prices=[ROW], price=None),
    charge(price_by=["r"], prices=[{**ROW, "when": {"r": 1}}], price=None),
    charge(price_by=[f"d{number}" for number in range(11)], prices=[{"price": PRICE}], price=None),
    recurring(meter="n"),
    recurring(included="1"),
    recurring(minimum="1", maximum="2"),
    recurring(prorate_usage=True),
    recurring(prorate_usage="yes"),
    recurring(price_by=["r"], prices=[ROW], price=None),
    recurring(kind="one_off", timing="advance"),
    recurring(timing="never"),
    phased({"for": "1 month", "charges": [recurring()["publish"]["plan"]["charges"][0]],
            "prices": {"f": {"model": "flat", "amount": "1"}}}, {}),
    customer(payer="nobody"),
    customer(payer="c"),
    customer(keys="k"),
    customer(keys=["k", 1]),
    customer(code=" c"),
    subscribed(discounts=[{"amount": "5", "charges": ["base"]}]),
    subscribed(discounts=[{"percent": "5", "times": "2"}]),
    subscribed(discounts=[{"amount": "5", "times": "0"}]),
    subscribed(discounts=["5 %"]),
    subscribed(quantities=[]),
    subscribed(start=5),
    {"at": "2026-01-02", **on("cancel", "s")},
    {"ad_hoc": {"customer": "c", "code": "minimum", "amount": "1", "tax": "none"}},
    {"ad_hoc": {"customer": "nobody", "code": "x", "amount": "1", "tax": "nothing", "currency": "EU"}},
    {"ad_hoc": {"customer": "c", "amount": None, "tax": None}},
    {"bill_run": {"up_to": "2026-01-20", "cut": {"0": "x"}}},
    {"bill_run": {"up_to": "2026-01-20", "cut": {"a": 1}}},
    {"bill_run": {"up_to": "2026-01-20", "steps": 1.5}},
    {"bill_run": {}},
    {"at": "soon", "customer": {"code": "e"}},
    {"tax_code": {"code": "t"}},
    {"tax_code": {"percents": [{"percent": "1"}, {"from": "2026-01-01"}, 5]}},
    {"publish": {}},
    {"publish": {"plan": plan("new", "x")}},
]  # fmt: skip
GOLDEN = Path(__file__).parents[1] / "golden" / "bad-input.txt"


def words(master: MasterData, step: dict[str, Any]) -> str:
    """What the refusal says as a whole, and below it every place with its own words."""
    wrong = {"at": "2026-01-10" if "override" in step else "2026-01-20", **step}
    with pytest.raises(InvalidInput) as caught:
        master.apply(wrong)
    lines = [f"{error.pointer or 'all of it'}: {error.detail}" for error in caught.value.errors]
    return "\n  ".join([caught.value.detail, *lines])


def test_every_refusal_of_master_data_says_the_golden_words() -> None:
    master = MasterData.start(TENANT).apply_all(STEPS)
    text = "\n".join(words(master, step) for step in [*(step for step, _, _ in REFUSED), *MORE]) + "\n"
    if os.environ.get("CLOUDBILLING_REWRITE_GOLDEN") == "1":
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")
