"""The reconciliation states every difference with its reason and adds up to the last digit."""

from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import polars as pl
import pytest
import yaml

from billing.master import MasterData
from pipelines.price_list import PriceList, business_steps, charge_code, chargeable, plain, price_rows
from pipelines.reconciliation import PricedRow, differences, reason, report
from pipelines.usage_mapping import UsageMapping
from storage.sources.tables import read_table

FOCUS = Path(__file__).parents[2] / "examples" / "focus"


def row(ours: str, list_cost: str, unit_price: str | None = "0.02", id_: str = "1") -> PricedRow:
    return PricedRow(id_, Decimal(1), Decimal(unit_price) if unit_price else None, Decimal(ours), Decimal(list_cost))


@pytest.mark.parametrize(
    ("priced", "starts"),
    [
        (row("0.0000160599", "0.00001605990"), "rounding"),
        (row("0.00000000048", "0.0000000005"), "rounding"),
        (row("-0.0000000026", "-0.000026"), "block: the provider's quantity counts blocks of 10,000"),
        (row("12", "0.012"), "block: the provider's price is per block of 1,000"),
        (row("1.50", "0"), "free"),
        (row("1.50", "1.49"), "other"),
    ],
)
def test_a_difference_gets_the_reason_that_explains_its_size(priced: PricedRow, starts: str) -> None:
    assert reason(priced).startswith(starts)


def test_the_report_adds_up_and_says_when_it_does_not() -> None:
    rows = [row("0.10", "0.11", id_="a"), row("2", "2", id_="b"), row("-1", "-1", None, id_="c")]
    counts = {"rows": 3, "accepted": 3, "suspended": 0, "duplicates": 0, "rejected": 0, "customers": 1}
    invoices = [{"customer": "x", "number": "1", "currency": "USD", "net": "1.10", "gross": "1.10"}]
    made = report(rows, counts=counts, invoices=invoices, exact_of_lines=Fraction("1.1"))
    assert made["exact_total"] == "1.1"
    assert made["list_cost_total"] == "1.11"
    assert made["differences"] == [{"id": "a", "ours": "0.1", "list_cost": "0.11", "reason": reason(rows[0])}]
    assert made["rounding"] == "0"
    assert all(made["checks"].values())
    wrong = report(rows, counts={**counts, "accepted": 2}, invoices=invoices, exact_of_lines=Fraction(2))
    assert list(wrong["checks"].values()) == [True, False, False]


def test_equal_amounts_written_differently_are_no_difference() -> None:
    assert differences([row("0.10", "0.1000")]) == []


def focus() -> tuple[pl.DataFrame, PriceList]:
    mapping = UsageMapping.parse(yaml.safe_load((FOCUS / "mapping.yaml").read_text()))
    prices = PriceList.parse(yaml.safe_load((FOCUS / "business.yaml").read_text()))
    rows = pl.concat(read_table(FOCUS / "focus_usage.csv", missing=mapping.missing))
    return mapping.with_derived(rows), prices


def test_each_priced_thing_becomes_one_charge_and_each_account_one_customer() -> None:
    rows, prices = focus()
    steps = business_steps(rows, prices, by="consumption")
    plans = [step["publish"]["plan"] for step in steps if "publish" in step]
    priced = rows.filter(pl.col("price").is_not_null())["price"].n_unique()
    assert len(plans) == 1
    assert len(plans[0]["charges"]) == priced + 1  # and the rows without a price
    assert sum("customer" in step for step in steps) == sum("subscribe" in step for step in steps) == 63
    assert {step["at"] for step in steps} == {"2024-09-01"}
    codes = [charge["code"] for charge in plans[0]["charges"]]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("by", ["consumption", "value"])
def test_a_tenant_takes_the_steps_of_both_ways_to_bill(by: str) -> None:
    rows, prices = focus()
    tenant = {key: prices["tenant"][key] for key in ("currency", "timezone", "country")}
    whole = MasterData.start(tenant).apply_all(business_steps(rows, prices, by=by))
    assert len(whole.customers) == 63


def test_a_price_keeps_its_value_and_its_code() -> None:
    rows, prices = focus()
    for price in price_rows(rows, prices).iter_rows(named=True):
        assert Decimal(plain(price["unit_price"])) == Decimal(price["unit_price"])
    assert charge_code("ABC 0.1 GB USD") == charge_code("ABC 0.1 GB USD") != charge_code("ABC 0.10 GB USD")
    assert [plain(text) for text in ("0.001500000000", "0.000", "5", "10")] == ["0.0015", "0", "5", "10"]


def test_the_committed_catalog_and_customers_are_what_the_rows_give() -> None:
    """`cloudbilling import --derive` wrote them; a change of the derivation must be seen in a review."""
    rows, prices = focus()
    steps = business_steps(rows, prices, by="consumption")
    catalog = [step for step in steps if not {"customer", "subscribe"} & set(step)]
    customers = [step for step in steps if {"customer", "subscribe"} & set(step)]
    assert yaml.safe_load((FOCUS / "catalog.yaml").read_text())["steps"] == catalog
    assert yaml.safe_load((FOCUS / "customers.yaml").read_text())["steps"] == customers


def test_a_price_that_no_catalog_can_hold_makes_no_charge() -> None:
    rows, prices = focus()
    kept = price_rows(rows, prices).height
    odd = rows.with_columns(
        ListUnitPrice=pl.when(pl.int_range(pl.len()) == 0).then(pl.lit("0.1234567890123")).otherwise("ListUnitPrice"),
        price=pl.when(pl.int_range(pl.len()) == 0).then(pl.lit("odd")).otherwise("price"),
    )
    assert "odd" not in price_rows(odd, prices)["price"].to_list()
    assert price_rows(odd, prices).height in (kept, kept - 1)
    assert [chargeable(text) for text in ("0.5", "1E-5", "many", None, "NaN", "1e-13")] == [
        True, True, False, False, False, False]  # fmt: skip
    assert plain("1.50E-5") == "0.000015"
