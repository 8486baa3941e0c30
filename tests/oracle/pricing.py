"""Prices once more, slow and obvious: fractions, one event after the other, straight from the rules' sentences.

Shares nothing with `billing/pricing`: it reads the JSON form of a price itself.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from fractions import Fraction
from zoneinfo import ZoneInfo

DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


def number(form: dict, key: str, default: str | None = "0") -> Fraction | None:
    text = form.get(key)
    if text is None:
        return None if default is None else Fraction(default)
    return Fraction(text)


def tier_parts(price: dict, quantity: Fraction, share: Fraction = Fraction(1)) -> list[tuple[Fraction, Fraction]]:
    """(quantity, amount) of every tier that takes a part."""
    tiers = [
        (
            None if tier["up_to"] is None else Fraction(tier["up_to"]) * share,
            number(tier, "unit"),
            number(tier, "flat") * share,
        )
        for tier in price["tiers"]
    ]
    if quantity == 0:
        return []
    if quantity < 0:
        return [(quantity, quantity * tiers[0][1])]
    if price["model"] == "volume":
        for up_to, unit, flat in tiers:
            if up_to is None or quantity <= up_to:
                return [(quantity, quantity * unit + flat)]
    parts, taken = [], Fraction(0)
    for up_to, unit, flat in tiers:
        if taken >= quantity:
            break
        end = quantity if up_to is None else min(up_to, quantity)
        parts.append((end - taken, (end - taken) * unit + flat))
        taken = end
    return parts


def amount(
    price: dict,
    quantity: Fraction,
    events: list[tuple[datetime, str, Fraction]] = (),
    *,
    included: Fraction = Fraction(0),
    minimum: Fraction | None = None,
    maximum: Fraction | None = None,
    units: Fraction = Fraction(1),
    timezone: str = "UTC",
    share: Fraction = Fraction(1),
) -> Fraction:
    """The exact amount of a usage charge. `events` are (time, id, value)."""
    in_order = [(time, value) for time, _, value in sorted(events, key=lambda event: (event[0], event[1]))]
    model = price["model"]
    charged = quantity
    if charged > 0:
        charged = max(Fraction(0), charged - included * share)
    if model == "flat":
        total = number(price, "amount") * units if charged != 0 else Fraction(0)
    elif model == "per_unit":
        total = charged * number(price, "unit")
    elif model in ("graduated", "volume"):
        total = sum((part for _, part in tier_parts(price, charged, share)), Fraction(0))
    elif model == "package":
        packages = charged / number(price, "size")
        total = -(-packages.numerator // packages.denominator) * number(price, "amount")
    elif model == "event_amount":
        total = sum((value for _, value in in_order), Fraction(0))
    elif model == "percentage":
        total = _percentage(price, [value for _, value in in_order])
    else:
        total = _bands(price, in_order, included * share, timezone)
    if minimum is not None and total < minimum * share:
        total = minimum * share
    if maximum is not None and total > maximum * share:
        total = maximum * share
    return total


def _percentage(price: dict, values: list[Fraction]) -> Fraction:
    total, seen, free_value = Fraction(0), 0, number(price, "free_value")
    for value in values:
        seen += 1
        free_part = Fraction(0)
        whole = False
        if free_value > 0:
            whole = value <= free_value
            free_part = max(Fraction(0), min(value, free_value))
            free_value = free_value - free_part
        if whole or seen <= int(price.get("free_events", "0")):
            continue
        fee = (value - free_part) * number(price, "percent") / 100 + number(price, "per_event")
        least, most = number(price, "min_per_event", None), number(price, "max_per_event", None)
        fee = fee if least is None or fee > least else least
        fee = fee if most is None or fee < most else most
        total += fee
    return total


def _bands(price: dict, events: list[tuple[datetime, Fraction]], included: Fraction, timezone: str) -> Fraction:
    total = Fraction(0)
    for time, value in events:
        free = max(Fraction(0), min(included, value))
        included -= free
        total += (value - free) * _unit_at(price, time.astimezone(ZoneInfo(timezone)).replace(tzinfo=None))
    return total


def _unit_at(price: dict, wall: datetime) -> Fraction:
    """Each band is written out as the stretches of wall clock time that begin yesterday and today."""
    midnight = wall.replace(hour=0, minute=0, second=0, microsecond=0)
    for band in price["bands"]:
        start, end = _clock(band.get("from", "00:00")), _clock(band.get("to", "24:00"))
        if end <= start:
            end += timedelta(days=1)
        for day in (midnight - timedelta(days=1), midnight):
            if band.get("days") and DAYS[day.weekday()] not in band["days"]:
                continue
            if day + start <= wall < day + end:
                return Fraction(band["unit"])
    return Fraction(price["otherwise"])


def _clock(text: str) -> timedelta:
    hours, minutes = text.split(":")
    return timedelta(hours=int(hours), minutes=int(minutes))


def quantity(aggregation: str, events: list[dict], start: datetime, end: datetime) -> Fraction:
    """`events` are {time, id, source, value} with the value as Fraction (text for unique_count)."""
    ordered = sorted(events, key=lambda event: (event["time"], event["id"], event["source"]))
    inside = [event for event in ordered if start <= event["time"] < end]
    values = [event["value"] for event in inside]
    if aggregation == "count":
        return Fraction(len(inside))
    if aggregation == "unique_count":
        return Fraction(len(set(values)))
    if aggregation == "time_weighted_sum":
        level, since, total = Fraction(0), start, Fraction(0)
        for event in ordered:
            if event["time"] >= end:
                break
            if event["time"] >= start:
                total += level * _hours(event["time"] - since)
                since = event["time"]
            level = event["value"]
        return total + level * _hours(end - since)
    if not values:
        return Fraction(0)
    return {"sum": sum(values, Fraction(0)), "max": max(values), "min": min(values), "latest": values[-1]}[aggregation]


def _hours(length: timedelta) -> Fraction:
    return Fraction(length // timedelta(microseconds=1), 3_600_000_000)


def rounded(exact: Fraction, digits: int) -> Fraction:
    scaled = abs(exact) * 10**digits
    whole = scaled.numerator // scaled.denominator
    if scaled - whole >= Fraction(1, 2):
        whole += 1
    return Fraction(whole if exact >= 0 else -whole, 10**digits)
