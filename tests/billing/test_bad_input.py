"""Bad input: what an integrator gets wrong is refused with its place and the reason, before anything is stored."""

from __future__ import annotations

from typing import Any

import pytest
from lives import NO_TAX, TAX, flat, usage

from billing.errors import InvalidInput
from billing.master import MasterData
from billing.scenario import check_scenario

TENANT = {"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE"}
METER = {"code": "n", "event_type": "n", "aggregation": "sum", "value": "v"}
LEVEL = {"code": "level", "event_type": "l", "aggregation": "time_weighted_sum", "value": "v"}


def plan(code: str, *charges: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"code": code, "currency": "EUR", "interval": "month", "charges": list(charges), **more}


TRIAL = {"code": "trial", "for": "14 days", "free": True}
SETUP = {"code": "setup", "kind": "one_off", "price": {"model": "flat", "amount": "5"}, "tax": "none"}
BASE = [
    {"tax_code": TAX},
    {"tax_code": NO_TAX},
    {"meter": METER},
    {"meter": LEVEL},
    {"publish": {"plan": plan("p", flat("10"), usage(), SETUP)}},
    {"publish": {"plan": plan("q", flat("20"), usage(included="5"))}},
    {"publish": {"plan": plan("usd", flat("20"), currency="USD")}},
    {"publish": {"plan": plan("tried", flat("20"), phases=[TRIAL, {"code": "regular"}])}},
    {"customer": {"code": "c", "keys": ["k1"]}},
    {"customer": {"code": "d"}},
    {"subscribe": {"code": "s", "customer": "c", "plan": "p"}},
    {"subscribe": {"code": "late", "customer": "c", "plan": "p", "start": "2026-06-01"}},
    {"subscribe": {"code": "gone", "customer": "c", "plan": "p"}},
    {"subscribe": {"code": "leaves", "customer": "c", "plan": "p"}},
    {"subscribe": {"code": "rests", "customer": "c", "plan": "p"}},
    {"subscribe": {"code": "extended", "customer": "c", "plan": "q"}},
    {"add_on": {"subscription": "extended", "code": "x", "plan": "p", "start": "2026-01-05"}},
    {"add_on": {"subscription": "extended", "code": "y", "plan": "p", "end": "2026-01-08"}},
    {"subscribe": {"code": "future", "customer": "c", "plan": "q"}},
    {"add_on": {"subscription": "future", "code": "x", "plan": "p", "start": "2026-07-01"}},
    {"budget": {"code": "b", "customer": "c", "amount": "5"}},
]
BEFORE = [
    {"at": "2026-01-10", "cancel": {"subscription": "gone"}},
    {"at": "2026-01-10", "cancel": {"subscription": "leaves", "when": "period_end"}},
    {"at": "2026-01-10", "pause": {"subscription": "rests"}},
    {
        "at": "2026-01-10",
        "override": {"subscription": "s", "charge": "base", "price": {"model": "flat", "amount": "1"}},
    },
    {"at": "2026-01-10", "publish": {"plan": plan("q", flat("21"), usage(included="5"))}},
    {"at": "2026-01-10", "remove_add_on": {"subscription": "extended", "code": "x"}},
]
STEPS = [*({"at": "2026-01-01", **step} for step in BASE), *BEFORE]
PRICE = {"model": "per_unit", "unit": "1"}
TIER = {"up_to": None, "unit": "1"}


def charge(**more: Any) -> dict[str, Any]:
    return {"publish": {"plan": plan("new", {**usage(), **more})}}


def priced(price: Any) -> dict[str, Any]:
    return charge(price=price)


def phased(*phases: Any, **more: Any) -> dict[str, Any]:
    return {"publish": {"plan": plan("new", flat("10"), usage(included="1"), phases=list(phases), **more)}}


def subscribed(**more: Any) -> dict[str, Any]:
    return {"subscribe": {"code": "new", "customer": "c", "plan": "p", **more}}


def added(**more: Any) -> dict[str, Any]:
    return {"add_on": {"subscription": "s", "code": "new", "plan": "q", **more}}


def override(subscription: str = "s", charge: str = "base", **more: Any) -> dict[str, Any]:
    form = {"subscription": subscription, "charge": charge, "price": {"model": "flat", "amount": "2"}, **more}
    return {"override": form}


def on(kind: str, subscription: str, **more: Any) -> dict[str, Any]:
    return {kind: {"subscription": subscription, **more}}


CHARGE = "/publish/plan/charges/0"
PHASES = "/publish/plan/phases"
# step, place within the step, words of the reason
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    # prices: tiers that overlap, leave a gap, or have no end
    (
        priced({"model": "volume", "tiers": [{"up_to": "10"}, {"up_to": "5"}, TIER]}),
        f"{CHARGE}/price/tiers/1/up_to",
        "must be above 10, where the tier before ends",
    ),
    (
        priced({"model": "volume", "tiers": [{"up_to": "10"}, {"up_to": "10"}, TIER]}),
        f"{CHARGE}/price/tiers/1/up_to",
        "must be above 10, where the tier before ends",
    ),
    (
        priced({"model": "graduated", "tiers": [{"from": "0", "up_to": "10"}, {"from": "20", "up_to": None}]}),
        f"{CHARGE}/price/tiers/0/from",
        "unknown key 'from'",
    ),
    (
        priced({"model": "graduated", "tiers": [{"up_to": "10", "unit": "1"}]}),
        f"{CHARGE}/price/tiers/0/up_to",
        "the last tier must be open: null",
    ),
    (
        priced({"model": "graduated", "tiers": [TIER, TIER]}),
        f"{CHARGE}/price/tiers/0/up_to",
        "only the last tier is open",
    ),
    (
        priced({"model": "graduated", "tiers": [{"up_to": "-1"}, TIER]}),
        f"{CHARGE}/price/tiers/0/up_to",
        "must be above 0, where the tier before ends",
    ),
    (priced({"model": "graduated", "tiers": []}), f"{CHARGE}/price/tiers", "needs at least one tier"),
    (priced({"model": "graduated", "tiers": [TIER] * 101}), f"{CHARGE}/price/tiers", "has more than 100 entries"),
    # numbers
    (
        priced({"model": "per_unit", "unit": "0.1234567890123"}),
        f"{CHARGE}/price/unit",
        "'0.1234567890123' is no decimal number of at most 14 digits before and 12 after the point, as text",
    ),
    (
        priced({"model": "per_unit", "unit": "123456789012345"}),
        f"{CHARGE}/price/unit",
        "'123456789012345' is no decimal number of at most 14 digits before and 12 after the point, as text",
    ),
    (
        priced({"model": "per_unit", "unit": "NaN"}),
        f"{CHARGE}/price/unit",
        "'NaN' is no decimal number of at most 14 digits before and 12 after the point, as text",
    ),
    (
        priced({"model": "per_unit", "unit": "Infinity"}),
        f"{CHARGE}/price/unit",
        "'Infinity' is no decimal number of at most 14 digits before and 12 after the point, as text",
    ),
    (
        priced({"model": "per_unit", "unit": "1e400"}),
        f"{CHARGE}/price/unit",
        "'1e400' is no decimal number of at most 14 digits before and 12 after the point, as text",
    ),
    (
        priced({"model": "per_unit", "unit": "1,50"}),
        f"{CHARGE}/price/unit",
        "'1,50' is no decimal number of at most 14 digits before and 12 after the point, as text",
    ),
    (
        priced({"model": "per_unit", "unit": "\u0663"}),
        f"{CHARGE}/price/unit",
        "'\u0663' is no decimal number of at most 14 digits before and 12 after the point, as text",
    ),
    (
        priced({"model": "per_unit", "unit": 0.1}),
        f"{CHARGE}/price/unit",
        "'0.1' is no decimal number of at most 14 digits before and 12 after the point, as text",
    ),
    (
        priced({"model": "per_unit", "unit": True}),
        f"{CHARGE}/price/unit",
        "'True' is no decimal number of at most 14 digits before and 12 after the point, as text",
    ),
    (
        priced({"model": "per_unit", "unit": 10**5000}),
        f"{CHARGE}/price/unit",
        "a huge integer is no decimal number of at most 14 digits before and 12 after the point, as text",
    ),
    (
        priced({"model": "per_unit", "unit": ["1"]}),
        f"{CHARGE}/price/unit",
        "\"['1']\" is no decimal number of at most 14 digits before and 12 after the point, as text",
    ),
    (
        priced({"model": "per_unit", "unit": "9" * 5_000}),
        f"{CHARGE}/price/unit",
        f"'{'9' * 40}' is no decimal number of at most 14 digits before and 12 after the point, as text",
    ),
    (priced({"model": "package", "size": "0", "amount": "1"}), f"{CHARGE}/price/size", "must be above 0"),
    (priced({"model": "percentage", "percent": "2900"}), f"{CHARGE}/price/percent", "must be at most 1000"),
    (priced({"model": "percentage", "percent": "-1"}), f"{CHARGE}/price/percent", "must be at least 0"),
    (
        priced({"model": "percentage", "percent": "1", "min_per_event": "2", "max_per_event": "1"}),
        f"{CHARGE}/price/max_per_event",
        "must not be below min_per_event",
    ),
    (
        priced({"model": "percentage", "percent": "1", "free_events": "-1"}),
        f"{CHARGE}/price/free_events",
        "must be a whole number from 0 to 1000000000",
    ),
    # charges
    (charge(minimum="-0.01"), f"{CHARGE}/minimum", "must be at least 0"),
    (charge(minimum="5", maximum="4"), f"{CHARGE}/maximum", "must not be below minimum"),
    (charge(price_by=["r"], prices=[]), f"{CHARGE}/prices", "price_by needs rows of prices"),
    (
        charge(price=None, price_by=["r"], prices=[{"when": {"r": None}, "price": PRICE}]),
        f"{CHARGE}/prices/0/when",
        "the value of 'r' is missing: leave the key out for every value",
    ),
    (
        charge(price=None, price_by=["r", "r"], prices=[{"price": PRICE}]),
        f"{CHARGE}/price_by",
        "needs different dimensions, at most 10",
    ),
    (
        charge(price=None, price_by=["r"], prices=[{"when": {"s": "a"}, "price": PRICE}]),
        f"{CHARGE}/prices/0/when",
        "'s' is not in price_by",
    ),
    (charge(prorate_usage=True, proration="none"), f"{CHARGE}/prorate_usage", "contradicts proration none"),
    (
        charge(meter="level", price={"model": "percentage", "percent": "1"}),
        f"{CHARGE}/price/model",
        "percentage prices each event's value: its meter must be a sum, not time_weighted_sum",
    ),
    (charge(meter="nowhere"), f"{CHARGE}/meter", "there is no meter 'nowhere'"),
    (charge(tax="nowhere"), f"{CHARGE}/tax", "there is no tax code 'nowhere'"),
    (charge(code=" a"), f"{CHARGE}/code", "must not begin or end with a space"),
    (charge(code="a\u200b"), f"{CHARGE}/code", "must hold printable characters only"),
    (charge(code="x" * 257), f"{CHARGE}/code", "is longer than 256 characters"),
    (charge(code="minimum"), f"{CHARGE}/code", "'minimum' is the name of the plan's own minimum"),
    (charge(colour="red"), f"{CHARGE}/colour", "unknown key 'colour'"),
    # plans
    ({"publish": {"plan": plan("new", flat("1"), flat("2"))}}, "/publish/plan/charges/1/code", "'base' is there twice"),
    (
        {"publish": {"plan": plan("new", flat("1"), currency="EUX")}},
        "/publish/plan/currency",
        "'EUX' is no current currency of ISO 4217",
    ),
    (
        {"publish": {"plan": plan("new", flat("1"), currency="eur")}},
        "/publish/plan/currency",
        "'eur' is no current currency of ISO 4217",
    ),
    (
        {"publish": {"plan": plan("new", flat("1"), currency="XAU")}},
        "/publish/plan/currency",
        "'XAU' is no current currency of ISO 4217",
    ),
    (
        {"publish": {"plan": plan("new", flat("1"), interval="fortnight")}},
        "/publish/plan/interval",
        "must be one of day, week, month, quarter, year, not 'fortnight'",
    ),
    ({"publish": {"plan": plan("new", flat("1"), minimum="-1")}}, "/publish/plan/minimum", "must be at least 0"),
    ({"publish": {"plan": plan("new", flat("1"), charges={"a": 1})}}, "/publish/plan/charges", "a list is needed"),
    ({"publish": {"plan": plan("new")}}, "/publish/plan/charges", "needs at least one charge"),
    (
        {"publish": {"plan": plan("new", flat("1"), name="x" * 4_001)}},
        "/publish/plan/name",
        "is longer than 4000 characters",
    ),
    (
        {"at": "2026-01-09", "publish": {"plan": plan("q", flat("1"))}},
        "/at",
        "lies before version 2 of plan 'q' (2026-01-09)",
    ),
    # phases
    (phased({"free": True}, {}), f"{PHASES}/0/for", "is missing: only the last phase is open"),
    (phased(TRIAL, {"for": "1 month"}), f"{PHASES}/1/for", "the last phase is open: it has no length"),
    (phased({"for": "a month"}, {}), f"{PHASES}/0/for", "'a month' is no length such as 14 days, 1 month or 2 years"),
    (phased({"for": "0 days"}, {}), f"{PHASES}/0/for", "'0 days' is no length such as 14 days, 1 month or 2 years"),
    (phased({**TRIAL, "code": "x"}, {"code": "x"}), f"{PHASES}/1/code", "'x' is there twice"),
    (phased({**TRIAL, "discount": "50"}, {}), f"{PHASES}/0/discount", "a free phase has no terms of its own"),
    (phased({"for": "1 month", "discount": "101"}, {}), f"{PHASES}/0/discount", "must be at most 100"),
    (
        phased({"for": "1 month", "discount": {"percent": "5", "charges": ["z"]}}, {}),
        f"{PHASES}/0/discount/charges/0",
        "there is no charge 'z'",
    ),
    (phased({"for": "1 month", "prices": {"z": PRICE}}, {}), f"{PHASES}/0/prices/z", "the plan has no charge 'z'"),
    (
        phased({"for": "1 month", "prices": {"base": {"model": "event_amount"}}}, {}),
        f"{PHASES}/0/prices/base/model",
        "event_amount prices events: for usage charges only",
    ),
    (
        phased({"for": "1 month", "prices": {"n": {"model": "event_amount"}}}, {}),
        f"{PHASES}/0/prices/n/model",
        "event_amount does not go with the charge's `included`",
    ),
    (
        phased({"for": "1 month", "charges": [{**flat("1"), "tax": "nowhere"}]}, {}),
        f"{PHASES}/0/charges/0/tax",
        "there is no tax code 'nowhere'",
    ),
    (phased({"for": "1 month", "charges": []}, {}), f"{PHASES}/0/charges", "needs at least one charge"),
    (
        phased({"for": "1 month", "free": True}, {"free": True}),
        f"{PHASES}/1/free",
        "the last phase cannot be free: a trial ends",
    ),
    (phased(), PHASES, "needs at least one phase"),
    (phased({}, trial_end="cancel"), "/publish/plan/trial_end", "is for plans that begin with a free phase"),
    (phased(TRIAL, {}, trial_end="stop"), "/publish/plan/trial_end", "must be one of continue, cancel, not 'stop'"),
    # tax codes and meters
    ({"tax_code": {"code": "t", "percents": []}}, "/tax_code/percents", "needs at least one entry"),
    (
        {"tax_code": {"code": "t", "percents": [{"from": "2026-01-01", "percent": "119"}]}},
        "/tax_code/percents/0/percent",
        "must be at most 100",
    ),
    (
        {"tax_code": {"code": "t", "percents": [{"from": "2026-02-30", "percent": "1"}]}},
        "/tax_code/percents/0/from",
        "a day is needed, such as 2026-01-31",
    ),
    (
        {"tax_code": {"code": "t", "percents": [{"from": f"2026-0{n}-01", "percent": "1"} for n in (2, 1)]}},
        "/tax_code/percents/1/from",
        "must be later than the one before",
    ),
    (
        {"meter": {**METER, "aggregation": "max"}},
        "/meter/code",
        "meter 'n' exists with another definition; meters never change",
    ),
    (
        {"meter": {"code": "m", "event_type": "e", "aggregation": "count", "value": "v"}},
        "/meter/value",
        "count measures no property",
    ),
    # customers
    ({"customer": {"code": "d", "keys": ["k1"]}}, "/customer/keys/0", "key 'k1' belongs to customer 'c'"),
    ({"customer": {"code": "k1"}}, "/customer/code", "key 'k1' belongs to customer 'c'"),
    ({"customer": {"code": "e", "keys": [""]}}, "/customer/keys/0", "a key has 1 to 256 printable characters"),
    ({"customer": {"code": "e", "keys": ["x" * 257]}}, "/customer/keys/0", "a key has 1 to 256 printable characters"),
    ({"customer": {"code": "e", "country": "Germany"}}, "/customer/country", "is longer than 2 characters"),
    (
        {"customer": {"code": "e", "tax_treatment": "holy"}},
        "/customer/tax_treatment",
        "must be one of domestic, reverse_charge, intra_community, export, exempt, outside_scope, not 'holy'",
    ),
    ({"customer": {"code": "e", "vat": "DE1"}}, "/customer/vat", "unknown key 'vat'"),
    # subscriptions
    (subscribed(code="s"), "/subscribe/code", "subscription 's' exists already"),
    (subscribed(customer="nobody"), "/subscribe/customer", "there is no customer 'nobody'"),
    (subscribed(plan="nothing"), "/subscribe/plan", "there is no plan 'nothing'"),
    (subscribed(anchor="yearly"), "/subscribe/anchor", "must be one of calendar, anniversary, not 'yearly'"),
    (
        subscribed(start="2026-02-30"),
        "/subscribe/start",
        "'2026-02-30' is neither a date (2026-01-31) nor a time (2026-01-31T10:00:00+01:00)",
    ),
    (
        subscribed(start="20260201"),
        "/subscribe/start",
        "'20260201' is neither a date (2026-01-31) nor a time (2026-01-31T10:00:00+01:00)",
    ),
    (
        subscribed(start="2026-W05-6"),
        "/subscribe/start",
        "'2026-W05-6' is neither a date (2026-01-31) nor a time (2026-01-31T10:00:00+01:00)",
    ),
    (
        subscribed(start="2026-02-01T10:00:00"),
        "/subscribe/start",
        "'2026-02-01T10:00:00' has no offset: add Z or +01:00",
    ),
    (
        subscribed(start="2026-02-01T10:00:00+25:00"),
        "/subscribe/start",
        "'2026-02-01T10:00:00+25:00' is neither a date (2026-01-31) nor a time (2026-01-31T10:00:00+01:00)",
    ),
    (subscribed(start="1626-02-01"), "/subscribe/start", "the year must be between 1900 and 9998"),
    (subscribed(quantities={"seats": "1"}), "/subscribe/quantities/seats", "plan 'p' has no charge 'seats'"),
    (subscribed(quantities={"base": "-1"}), "/subscribe/quantities/base", "must be at least 0"),
    (subscribed(discounts=[{"percent": "101"}]), "/subscribe/discounts/0/percent", "must be at most 100"),
    (subscribed(discounts=[{"percent": "0"}]), "/subscribe/discounts/0/percent", "must be above 0"),
    (
        subscribed(discounts=[{"percent": "5", "amount": "5"}]),
        "/subscribe/discounts/0",
        "a discount has either `percent` or `amount`",
    ),
    (
        subscribed(discounts=[{"amount": "0.001"}]),
        "/subscribe/discounts/0/amount",
        "has more than 2 decimals, EUR has no smaller unit",
    ),
    (
        subscribed(discounts=[{"percent": "5", "charges": ["seats"]}]),
        "/subscribe/discounts/0/charges",
        "plan 'p' has no charge 'seats'",
    ),
    (subscribed(trial_end="cancel"), "/subscribe/trial_end", "plan 'p' does not begin with a free phase"),
    (subscribed(plan="tried", trial_end="end"), "/subscribe/trial_end", "must be one of continue, cancel, not 'end'"),
    # changes: before the start, after the end, twice, contradictory
    (
        on("change", "late", plan="q"),
        "/change/subscription",
        "'late' starts only later: a change cannot come before the start",
    ),
    (on("cancel", "gone"), "/cancel/subscription", "'gone' has ended: nothing can be changed after the end"),
    (on("cancel", "leaves", when="period_end"), "/cancel/subscription", "'leaves' is cancelled already, to 2026-01-31"),
    (on("change", "gone", plan="q"), "/change/subscription", "'gone' has ended: nothing can be changed after the end"),
    (
        on("quantity", "gone", charge="base", quantity="2"),
        "/quantity/subscription",
        "'gone' has ended: nothing can be changed after the end",
    ),
    (override("gone"), "/override/subscription", "'gone' has ended: nothing can be changed after the end"),
    (on("pause", "gone"), "/pause/subscription", "'gone' has ended: nothing can be changed after the end"),
    (on("resume", "gone"), "/resume/subscription", "'gone' has ended: nothing can be changed after the end"),
    (on("change", "s", plan="usd"), "/change/plan", "is in another currency: that needs a new subscription"),
    (on("change", "s", plan="q", when="soon"), "/change/when", "must be one of now, period_end, not 'soon'"),
    (on("pause", "rests"), "/pause/subscription", "'rests' is paused already"),
    (on("resume", "s"), "/resume/subscription", "'s' is not paused"),
    (on("pause", "nothing"), "/pause/subscription", "there is no subscription 'nothing'"),
    (on("quantity", "s", charge="seats", quantity="2"), "/quantity/charge", "plan 'p' has no charge 'seats'"),
    (
        on("quantity", "s", charge="setup", quantity="2"),
        "/quantity/charge",
        "'setup' is due once, with the terms of the start: nothing of it can be changed",
    ),
    (override(), "/override/charge", "'base' has an override of the same moment already"),
    (override("rests"), "/override/subscription", "'rests' is paused: resume it first"),
    (
        override(charge="n", price={"model": "graduated", "tiers": []}),
        "/override/price/tiers",
        "needs at least one tier",
    ),
    (
        override("extended", "n", price={"model": "event_amount"}),
        "/override/price",
        "event_amount does not go with the charge's `included`",
    ),
    (
        override(charge="base", price={"model": "event_amount"}),
        "/override/price",
        "a recurring charge cannot have the price model event_amount",
    ),
    # add-ons
    (added(plan="nothing"), "/add_on/plan", "there is no plan 'nothing'"),
    (added(plan="usd"), "/add_on/plan", "is in another currency: that needs a subscription of its own"),
    (added(start="2025-12-31"), "/add_on/start", "'s' starts only later: an add-on cannot come before it"),
    (added(subscription="leaves", start="2026-03-01"), "/add_on/start", "'leaves' ends before that"),
    (added(subscription="gone"), "/add_on/subscription", "'gone' has ended: nothing can be changed after the end"),
    (added(start="2026-02-01", end="2026-02-01"), "/add_on/end", "must be after the start"),
    (
        added(subscription="extended", code="x"),
        "/add_on/code",
        "'extended' has an add-on 'x' already; a code is used once",
    ),
    (added(quantities={"seats": "1"}), "/add_on/quantities/seats", "plan 'q' has no charge 'seats'"),
    (
        added(discounts=[{"percent": "5", "charges": ["z"]}]),
        "/add_on/discounts/0/charges",
        "plan 'q' has no charge 'z'",
    ),
    (on("remove_add_on", "extended", code="x"), "/remove_add_on/code", "'x' has ended already"),
    (on("remove_add_on", "extended", code="y"), "/remove_add_on/code", "'y' has ended already"),
    (on("remove_add_on", "extended", code="z"), "/remove_add_on/code", "'extended' has no add-on 'z'"),
    (
        on("remove_add_on", "future", code="x"),
        "/remove_add_on/code",
        "'x' starts only later: it cannot be removed before its start",
    ),
    (
        on("quantity", "extended", add_on="y", charge="base", quantity="2"),
        "/quantity/add_on",
        "'y' has ended: nothing can be changed after the end",
    ),
    (
        on("quantity", "extended", add_on="z", charge="base", quantity="2"),
        "/quantity/add_on",
        "'extended' has no add-on 'z'",
    ),
    (
        override("future", add_on="x"),
        "/override/add_on",
        "'x' starts only later: a change cannot come before the start",
    ),
    # money and limits
    ({"top_up": {"customer": "c", "amount": "0", "kind": "purchased"}}, "/top_up/amount", "must be above 0"),
    (
        {"top_up": {"customer": "c", "amount": "0.005", "kind": "purchased"}},
        "/top_up/amount",
        "has more than 2 decimals, EUR has no smaller unit",
    ),
    (
        {"top_up": {"customer": "c", "amount": "5", "kind": "purchased", "expires": "2026-01-01"}},
        "/top_up/expires",
        "must be after the top-up: this credit could never be used",
    ),
    (
        {"top_up": {"customer": "c", "amount": "5", "kind": "gift"}},
        "/top_up/kind",
        "must be one of promotional, purchased, not 'gift'",
    ),
    (
        {"budget": {"code": "b", "customer": "d", "amount": "5"}},
        "/budget/code",
        "budget 'b' belongs to another customer",
    ),
    (
        {"budget": {"code": "e", "customer": "c", "amount": "5", "thresholds": ["0"]}},
        "/budget/thresholds/0",
        'a percent above 0 is needed, as text, or {"amount": "40.00"}',
    ),
    (
        {"budget": {"code": "e", "customer": "c", "amount": "5", "thresholds": [{"amount": "0.001"}]}},
        "/budget/thresholds/0/amount",
        "has more than 2 decimals, EUR has no smaller unit",
    ),
    (
        {"budget": {"code": "e", "customer": "c", "amount": "5", "thresholds": [{"amount": "1", "percent": "1"}]}},
        "/budget/thresholds/0/percent",
        "unknown key 'percent'",
    ),
    (
        {"ad_hoc": {"customer": "d", "subscription": "s", "code": "a", "amount": "1", "tax": "none"}},
        "/ad_hoc/subscription",
        "customer 'd' has no subscription 's'",
    ),
    (
        {"ad_hoc": {"customer": "d", "code": "a", "amount": "0.001", "tax": "none"}},
        "/ad_hoc/amount",
        "has more than 2 decimals, EUR has no smaller unit",
    ),
    ({"bill_run": {"up_to": "2026-01-21"}}, "/bill_run/up_to", "must not lie after the clock"),
    ({"bill_run": {"up_to": "2026-01-20", "steps": "5000"}}, "/bill_run/steps", "must be a whole number from 0 to 28"),
]


@pytest.fixture(scope="module")
def master() -> MasterData:
    return MasterData.start(TENANT).apply_all(STEPS)


@pytest.mark.parametrize(("step", "place", "words"), REFUSED, ids=[f"{n}{case[1]}" for n, case in enumerate(REFUSED)])
def test_a_mistake_is_refused_with_its_place_and_the_reason(
    master: MasterData, step: dict[str, Any], place: str, words: str
) -> None:
    """As a step of master data (what REST sends), and as a step of a scenario: the same place, the same words."""
    here = f"/timeline/{len(STEPS)}"
    before = master.to_bytes()
    wrong = {"at": "2026-01-10" if "override" in step else "2026-01-20", **step}
    with pytest.raises(InvalidInput) as caught:
        master.apply(wrong, here)
    assert caught.value.errors[0].pointer == here + place
    assert caught.value.errors[0].detail == words
    with pytest.raises(InvalidInput):
        master.apply_all([{"at": "2026-01-20", "customer": {"code": "fine"}}, wrong])
    assert master.to_bytes() == before
    assert "fine" not in master.customers


IN_SCENARIOS = [case for case in REFUSED if case[1] != "/at"]  # a scenario's clock cannot go back at all


@pytest.mark.parametrize(
    ("step", "place", "words"), IN_SCENARIOS, ids=[f"{n}{case[1]}" for n, case in enumerate(IN_SCENARIOS)]
)
def test_a_scenario_with_a_mistake_is_refused_at_the_same_place(step: dict[str, Any], place: str, words: str) -> None:
    timeline = [*STEPS, {"at": "2026-01-10" if "override" in step else "2026-01-20", **step}]
    with pytest.raises(InvalidInput) as caught:
        check_scenario({"tenant": TENANT, "timeline": timeline, "expect": {}})
    assert caught.value.errors[0].pointer == f"/timeline/{len(STEPS)}{place}"
    assert caught.value.errors[0].detail == words


@pytest.mark.parametrize(
    ("step", "place"),
    [
        ({"refund": {"customer": "c"}}, "/refund"),
        ({"pause": {"subscription": "s"}, "resume": {"subscription": "s"}}, ""),
        ({}, ""),
    ],
)
def test_a_step_of_no_kind_or_two_is_refused(master: MasterData, step: dict[str, Any], place: str) -> None:
    wrong = {"at": "2026-01-20", **step}
    with pytest.raises(InvalidInput) as caught:
        master.apply(wrong, "/7")
    assert [error.pointer for error in caught.value.errors] == ["/7" + place]
    assert caught.value.errors[0].detail.startswith("a step has `at` and one of: ad_hoc, add_on, bill_run, budget, ")
    with pytest.raises(InvalidInput) as caught:
        check_scenario({"tenant": TENANT, "timeline": [wrong], "expect": {}})
    assert [error.pointer for error in caught.value.errors] == ["/timeline/0" + place]


def test_what_the_table_starts_from_is_right() -> None:
    assert check_scenario({"tenant": TENANT, "timeline": STEPS, "expect": {}}) == []


ZONES = ["right/Europe/Berlin", "posix/UTC", "localtime", "Factory", "../../etc/passwd", "", "Europe"]


@pytest.mark.parametrize("name", ZONES)
def test_a_time_zone_must_be_one_that_means_the_same_everywhere(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        MasterData.start({**TENANT, "timezone": name})
    assert [error.pointer for error in caught.value.errors] == ["/timezone"]


def test_an_override_may_follow_a_plan_change_of_the_same_moment() -> None:
    """It is of the new plan: the one before it ended with the old plan."""
    form = {"subscription": "s", "charge": "base", "price": {"model": "flat", "amount": "2"}}
    more = [{"at": "2026-01-10", "change": {"subscription": "s", "plan": "q"}}, {"at": "2026-01-10", "override": form}]
    assert MasterData.start(TENANT).apply_all([*STEPS, *more]).subscriptions["s"].steps[-1].kind == "override"


def test_a_customer_keeps_his_treatment_when_something_else_of_him_changes() -> None:
    master = MasterData.start(TENANT).apply({"customer": {"code": "c", "tax_treatment": "reverse_charge"}})
    master = master.apply({"at": "2026-01-10", "customer": {"code": "c", "name": "New name"}})
    assert [treatment for _, treatment in master.customers["c"].treatments] == ["reverse_charge"]
    later = {"at": "2026-02-01", "customer": {"code": "c", "tax_treatment": "domestic"}}
    master = master.apply(later)
    with pytest.raises(InvalidInput, match="treatments come in order of time"):
        master.apply({"at": "2026-01-15", "customer": {"code": "c", "tax_treatment": "exempt"}})
