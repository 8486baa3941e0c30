"""A generated business to look at: a cloud provider with 40 customers, thirteen months of usage, four plans.

Everything comes from one seed and is marked as generated (tenant name, event source). Nothing here is real; no
person or company is meant. Events are made in columns; amounts and quantities are integers until they become text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl

from billing.usage import EVENT_SCHEMA, INSTANT

SEED = 20261125
SOURCE = "generated"
MONTHS = 12  # billed months; the running one comes on top, unbilled
EVENTS_PER_CUSTOMER_MONTH = {"team": 300, "compute": 480, "prepaid": 320, "marketplace": 340}
CUSTOMERS = {"team": 12, "compute": 16, "prepaid": 5, "marketplace": 7}
ZONE = ZoneInfo("Europe/Berlin")

TENANT: dict[str, Any] = {
    "code": "nordwind",
    "name": "Nordwind Cloud GmbH (generated)",
    "kind": "test",
    "currency": "EUR",
    "timezone": "Europe/Berlin",
    "country": "DE",
    "legal_entity": {
        "name": "Nordwind Cloud GmbH",
        "legal_form": "GmbH",
        "vat_id": "DE318204776",
        "tax_number": "60/118/04776",
        "legal_id": "HRB 40417",
        "court": "Amtsgericht Bremen",
        "directors": "Dr. Inken Thomsen, Jonas Falk",
        "address": {"street": "Am Kornspeicher 4", "post_code": "28217", "city": "Bremen"},
        "contact": {"name": "Lasse Brandt", "email": "rechnung@nordwind.example", "phone": "+49 421 5550 142"},
        "bank": {"name": "Weserbank Bremen", "iban": "DE02120300000000202051", "bic": "BYLADEM1001"},
        "series": {"invoice": "RE-{yyyy}-{n:06}", "credit_note": "RK-{yyyy}-{n:06}"},
    },
}

# country -> (VAT id pattern or none, treatment, language, cities with post codes)
COUNTRIES: dict[str, tuple[str, str, str, list[tuple[str, str]]]] = {
    "DE": ("DE{:09d}", "domestic", "de", [("20457", "Hamburg"), ("50667", "Köln"), ("80331", "München")]),
    "AT": ("ATU{:08d}", "reverse_charge", "de", [("1010", "Wien"), ("5020", "Salzburg")]),
    "FR": ("FR40{:09d}", "reverse_charge", "en", [("75002", "Paris"), ("69001", "Lyon")]),
    "NL": ("NL{:09d}B01", "reverse_charge", "en", [("1012 AB", "Amsterdam"), ("3011 AA", "Rotterdam")]),
    "CH": ("", "outside_scope", "de", [("8001", "Zürich"), ("3011", "Bern")]),
}
STARTS = ["Hafen", "Alpen", "Delta", "Nord", "Quell", "Stein", "Blau", "Linden", "Aurora", "Tiden"]
ENDS = ["kontor", "werk", "data", "logistik", "studio", "labor", "netz", "markt", "media", "energie"]
FORMS = {"DE": "GmbH", "AT": "GmbH", "FR": "SARL", "NL": "B.V.", "CH": "AG"}
STREETS = ["Versmannkai", "Lindenweg", "Marktplatz", "Ringstrasse", "Quai du Port", "Keizersgracht", "Bahnhofstrasse"]


@dataclass(frozen=True)
class Customer:
    """One generated customer and the plan that it is on."""

    code: str
    plan: str
    form: dict[str, Any]


@dataclass(frozen=True)
class Business:
    """The generated business as of a day: set-up steps, customers, and the twelve billing dates."""

    today: date
    customers: tuple[Customer, ...]

    @property
    def start(self) -> date:
        """First of the first billed month."""
        return _add_months(self.today.replace(day=1), -MONTHS)

    @property
    def billing_dates(self) -> list[date]:
        """The first of each month after a billed one: what the twelve bill runs bill up to."""
        return [_add_months(self.start, number) for number in range(1, MONTHS + 1)]

    def steps(self) -> list[dict[str, Any]]:
        """Set-up as steps in the forms of the API, in order of their date."""
        at = self.start.isoformat()
        steps: list[dict[str, Any]] = [{"at": at, **form} for form in _catalog()]
        steps += [{"at": at, "customer": customer.form} for customer in self.customers]
        for number, customer in enumerate(self.customers):
            subscribe: dict[str, Any] = {
                "code": f"S-{10001 + number}",
                "customer": customer.code,
                "plan": customer.plan,
                "anchor": "calendar",
            }
            if customer.plan == "team":
                subscribe["quantities"] = {"seats": str(5 + number * 3)}
            if number % 9 == 4:
                subscribe["discounts"] = [{"percent": "5"}]
            steps.append({"at": at, "subscribe": subscribe})
            if customer.plan == "prepaid":
                top_up = {
                    "customer": customer.code,
                    "amount": str(400 + 150 * (number % 3)) + ".00",
                    "kind": "purchased",
                }
                steps.append({"at": at, "top_up": top_up})
        return steps

    def later_steps(self) -> list[dict[str, Any]]:
        """What happened during the year: more seats, an upgrade, a promotional credit."""
        teams = [customer for customer in self.customers if customer.plan == "team"]
        first = self.customers.index(teams[0])
        half = _add_months(self.start, 5).isoformat()
        return [
            {"at": half, "quantity": {"subscription": f"S-{10001 + first}", "charge": "seats", "quantity": "25"}},
            {"at": half, "top_up": {"customer": teams[1].code, "amount": "50.00", "kind": "promotional"}},
        ]

    def batches(self, until: datetime, batch_rows: int = 20_000) -> Iterator[pl.DataFrame]:
        """All usage from the start to `until`, ordered by time, as frames of EVENT_SCHEMA."""
        frames = [_events(customer, number, self, until) for number, customer in enumerate(self.customers)]
        yield from pl.concat(frames).sort("time", "id").iter_slices(batch_rows)


def business(today: date, seed: int = SEED) -> Business:
    """The business that the seed gives, with its running month being that of `today`."""
    random_ = random.Random(seed)  # noqa: S311 (not a secret: the same seed gives the same business)
    customers: list[Customer] = []
    plans = [plan for plan, count in CUSTOMERS.items() for _ in range(count)]
    random_.shuffle(plans)
    names: set[str] = set()
    for number, plan in enumerate(plans):
        country = list(COUNTRIES)[0 if number % 2 == 0 else 1 + (number // 2) % 4]
        pattern, treatment, language, cities = COUNTRIES[country]
        name = _name(random_, names)
        postcode, city = random_.choice(cities)
        code = f"K-{10400 + number}"
        street = f"{random_.choice(STREETS)} {random_.randint(1, 90)}"
        form: dict[str, Any] = {
            "code": code,
            "name": f"{name} {FORMS[country]}",
            "country": country,
            "tax_treatment": treatment,
            "language": language,
            "address": {"street": street, "post_code": postcode, "city": city},
            "contact": {"email": f"invoices@{name.lower()}.example"},
        }
        if pattern:
            form["vat_id"] = pattern.format(random_.randint(10_000_000, 99_999_999))
        customers.append(Customer(code, plan, form))
    return Business(today, tuple(customers))


def _name(random_: random.Random, taken: set[str]) -> str:
    for _ in range(1000):
        name = random_.choice(STARTS) + random_.choice(ENDS)
        if name not in taken:
            taken.add(name)
            return name
    raise AssertionError("there are 100 names for 40 customers")


def _catalog() -> list[dict[str, Any]]:
    def meter(code: str, name: str, unit: str, aggregation: str, value: str | None) -> dict[str, Any]:
        form = {"code": code, "name": name, "unit": unit, "event_type": code, "aggregation": aggregation}
        return {"meter": form if value is None else form | {"value": value}}

    def usage(code: str, name: str, price: dict[str, Any], **more: str) -> dict[str, Any]:
        return {"code": code, "name": name, "kind": "usage", "meter": code, "tax": "standard", "price": price, **more}

    def base(code: str, name: str, price: dict[str, Any]) -> dict[str, Any]:
        return {"code": code, "name": name, "kind": "recurring", "timing": "advance", "tax": "standard", "price": price}

    def tiers(model: str, *steps: tuple[str | None, str]) -> dict[str, Any]:
        return {"model": model, "tiers": [{"up_to": up_to, "unit": unit} for up_to, unit in steps]}

    compute = tiers("graduated", ("1000", "0.0310"), ("10000", "0.0285"), (None, "0.0240"))
    storage = tiers("volume", ("500", "0.0900"), ("5000", "0.0875"), (None, "0.0790"))
    packages = {"model": "package", "size": "1000", "amount": "0.40"}

    def plan(code: str, name: str, charges: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "publish": {
                "plan": {"code": code, "name": name, "currency": "EUR", "interval": "month", "charges": charges}
            }
        }

    return [
        {"tax_code": {"code": "standard", "name": "VAT", "percents": [{"from": "2021-01-01", "percent": "19"}]}},
        meter("compute", "Compute", "vCPU h", "sum", "hours"),
        meter("storage", "Block storage", "GiB", "max", "gib"),
        meter("traffic", "Traffic", "GiB", "sum", "gib"),
        meter("requests", "API requests", "requests", "sum", "count"),
        meter("order", "Marketplace orders", "EUR", "sum", "amount"),
        plan("team", "Team", [
            base("seats", "Seat", {"model": "per_unit", "unit": "12.00"}),
            usage("requests", "API requests", packages, included="50000")]),
        plan("compute", "Compute Scale", [
            base("platform", "Platform base price", {"model": "flat", "amount": "29.00"}),
            usage("compute", "Compute", compute), usage("storage", "Block storage", storage),
            usage("traffic", "Traffic", {"model": "per_unit", "unit": "0.0200"}, included="5000")]),
        plan("prepaid", "Prepaid API", [usage("requests", "API requests", {"model": "per_unit", "unit": "0.0006"})]),
        plan("marketplace", "Marketplace share", [
            usage("order", "Share of orders",
                  {"model": "percentage", "percent": "2.9", "per_event": "0.25", "max_per_event": "40"})]),
    ]  # fmt: skip


def _events(customer: Customer, number: int, business_: Business, until: datetime) -> pl.DataFrame:
    """The customer's events: more on working days, growing over the year. Times are whole seconds."""
    generator = np.random.default_rng([SEED, number])
    start = datetime.combine(business_.start, datetime.min.time(), ZONE).astimezone(UTC)
    seconds = int((until - start) / timedelta(seconds=1))
    months = seconds / (30.44 * 86_400)
    count = int(EVENTS_PER_CUSTOMER_MONTH[customer.plan] * months)
    offsets = np.sort((generator.random(count) ** 0.85 * seconds).astype(np.int64))
    size = 1 + number % 5
    types: np.ndarray
    if customer.plan == "compute":
        types = generator.choice(np.array(["compute", "storage", "traffic"]), count, p=[0.7, 0.1, 0.2])
        compute = generator.integers(200, 900 * size, count)  # hundredths of a vCPU hour
        storage = 40_000 * size + np.arange(count) * 20 + generator.integers(0, 900, count)
        traffic = generator.integers(500, 6000 * size, count)
        number_ = np.select([types == "compute", types == "storage"], [compute, storage], traffic)
        name = np.where(types == "compute", "hours", "gib")
    elif customer.plan == "marketplace":
        types = np.full(count, "order")
        number_, name = generator.integers(900, 60_000, count), np.full(count, "amount")
    else:
        types = np.full(count, "requests")
        number_ = generator.integers(20, 400 * size, count) * 100  # whole requests, in hundredths
        name = np.full(count, "count")
    region = generator.choice(np.array(["eu-north-1", "eu-central-1", "eu-west-3"]), count)
    frame = pl.DataFrame({"offset": offsets, "type": types, "number": number_, "name": name, "region": region})
    text = pl.format("{}.{}", pl.col("number") // 100, (pl.col("number") % 100).cast(pl.String).str.zfill(2))
    return frame.select(
        source=pl.lit(SOURCE),
        id=pl.format("{}-{}", pl.lit(customer.code), pl.int_range(pl.len())),
        type=pl.col("type"),
        customer=pl.lit(customer.code),
        subscription=pl.lit(None, pl.String),
        time=(pl.lit(start).cast(INSTANT) + pl.duration(seconds=pl.col("offset"))).cast(INSTANT),
        data=pl.concat_str(
            pl.lit('{"'), pl.col("name"), pl.lit('":"'), text, pl.lit('","region":"'), pl.col("region"), pl.lit('"}')
        ),
    ).select(list(EVENT_SCHEMA))


def _add_months(day: date, months: int) -> date:
    index = day.year * 12 + day.month - 1 + months
    return day.replace(year=index // 12, month=index % 12 + 1)
