"""`bands`: each event's quantity times the unit of the band that its local start time falls in; the first that fits.

`included` is taken off the events in the order (time, id, source).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from zoneinfo import ZoneInfo

import polars as pl

from billing.catalog import Band, Bands
from billing.money import NUMBER, PRODUCT
from billing.pricing.exact import SAFE_MAX, sum_of_fees, whole


def exactly(
    price: Bands, events: Sequence[tuple[datetime, Fraction]], timezone: str, included: Fraction = Fraction(0)
) -> Fraction:
    """`events` are times and quantities in order."""
    zone, total, left = ZoneInfo(timezone), Fraction(0), included
    for time, value in events:
        free = min(left, max(value, Fraction(0)))
        left -= free
        local = time.astimezone(zone)
        minutes, weekday = local.hour * 60 + local.minute, local.weekday()
        unit = next((band.unit for band in price.bands if _holds(band, weekday, minutes)), price.otherwise)
        total += (value - free) * Fraction(unit)
    return total


def _holds(band: Band, weekday: int, minutes: int) -> bool:
    if band.start < band.end:
        return band.start <= minutes < band.end and (not band.days or weekday in band.days)
    yesterday = (weekday - 1) % 7
    return (minutes >= band.start and (not band.days or weekday in band.days)) or (
        minutes < band.end and (not band.days or yesterday in band.days)
    )


def columns(events: pl.DataFrame, prices: Sequence[tuple[Bands, str]]) -> pl.DataFrame:
    """`events` has line, price, time, value, included, and is in order within each line; a price goes with its zone."""
    value, zero = pl.col("value"), pl.lit(Decimal(0), NUMBER)
    if bool(events.select((pl.col("included") > 0).any()).item()):
        small = (whole(value).sum().over("line") <= SAFE_MAX).alias("small")
        positive = pl.when("small").then(value.clip(zero, None)).otherwise(zero)
        left = (pl.col("included") - positive.cum_sum().over("line") + positive).clip(zero, None)
        events = events.with_columns(small).with_columns(paid=value - pl.min_horizontal(left, positive))
    else:
        events = events.with_columns(small=pl.lit(True), paid=value)
    priced = [
        events.filter(pl.col("price") == number).with_columns(unit=_unit(price, timezone))
        for number, (price, timezone) in enumerate(prices)
    ]
    frame = pl.concat(priced) if priced else events.with_columns(unit=zero)
    fee_size = whole(pl.col("paid")) * whole(pl.col("unit"))
    safe = pl.col("small") & (fee_size <= SAFE_MAX) & (whole(pl.col("paid")) <= SAFE_MAX)
    fee = pl.when(safe).then(pl.col("paid")).otherwise(None).cast(PRODUCT) * pl.col("unit")
    return sum_of_fees(frame.with_columns(safe=safe, fee_size=fee_size, fee=fee))


def _unit(price: Bands, timezone: str) -> pl.Expr:
    local = pl.col("time").dt.convert_time_zone(timezone)
    minutes = local.dt.hour().cast(pl.Int32) * 60 + local.dt.minute()
    weekday = local.dt.weekday().cast(pl.Int32) - 1
    unit = pl.lit(price.otherwise, NUMBER)
    for band in reversed(price.bands):  # the first that fits wins, so it has to be the outermost
        today = weekday.is_in(list(band.days)) if band.days else pl.lit(True)
        if band.start < band.end:
            holds = (minutes >= band.start) & (minutes < band.end) & today
        else:
            yesterday = ((weekday + 6) % 7).is_in(list(band.days)) if band.days else pl.lit(True)
            holds = ((minutes >= band.start) & today) | ((minutes < band.end) & yesterday)
        unit = pl.when(holds).then(pl.lit(band.unit, NUMBER)).otherwise(unit)
    return unit
