"""Why a line is what it is: the arithmetic of an invoice line as data and as English sentences.

Owns how an explanation is put; every number in it was computed when the line was rated and lies in `Line.explanation`
(exact amounts as decimal text, or as a fraction `1/3` where no decimal is exact). Which events count for a line is
answered by the join that rates (`billing/rating.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from billing.catalog import (
    WEEKDAYS,
    Band,
    Bands,
    Charge,
    EventAmount,
    Flat,
    Graduated,
    Package,
    Percentage,
    PerUnit,
    Price,
    PriceRow,
    Tier,
    Volume,
)
from billing.contracts import Piece, Span, contract
from billing.documents import Line
from billing.due import Use
from billing.master import MasterData
from billing.money import decimal_text, round_amount
from billing.periods import local_date
from billing.rate_uses import usage_piece
from billing.rating import UsagePiece
from billing.tax.treatment import tax_point

BANDS_SAID = 5  # in one sentence; the others are counted


def span_of_line(master: MasterData, line: Line) -> Span | None:
    """The span of the contract that a line bills; None for minimum, ad-hoc lines, and what the contract has not."""
    subscription = master.subscriptions.get(line.subscription)
    if subscription is None or line.kind == "minimum":
        return None
    found = [
        span
        for span in contract(subscription, master.tenant.timezone).spans
        if span.charge.code == line.charge and span.step == line.step and span.start <= line.start
    ]
    return found[-1] if found else None


def piece_of_line(master: MasterData, line: Line) -> tuple[UsagePiece, int] | None:
    """What was rated for a usage line, and its price row; None for other lines."""
    span = span_of_line(master, line)
    if span is None or line.kind != "usage":
        return None
    one = contract(master.subscriptions[line.subscription], master.tenant.timezone)
    period = span.segment.grid.at(line.start)
    piece = Piece(span, line.start, line.end, period, line.end, span.step)
    return usage_piece(master, Use(one, piece, None)), row_of_line(span.charge, line)


def row_of_line(charge: Charge, line: Line) -> int:
    """The place of the line's price row in its charge."""
    when = dict(line.when or {})
    for place, row in enumerate(charge.rows):
        if dict(row.when) == when:
            return place
    return 0


# --- prices in words ----------------------------------------------------------------------------------------------


def price_words(row: PriceRow, unit: str, currency: str) -> str:
    """A price in one English sentence, limits included: `0.10 EUR per GB up to 100 GB, 0.08 EUR above`."""
    parts = [_model_words(row.price, unit, currency)]
    if row.included:
        parts.append(f"{decimal_text(row.included)} {unit or 'units'} included")
    if row.minimum is not None:
        parts.append(f"at least {decimal_text(row.minimum)} {currency}")
    if row.maximum is not None:
        parts.append(f"at most {decimal_text(row.maximum)} {currency}")
    return "; ".join(parts)


def _model_words(price: Price, unit: str, currency: str) -> str:
    each = unit or "unit"
    match price:
        case Flat(amount=amount):
            return f"{decimal_text(amount)} {currency} flat"
        case PerUnit(unit=rate):
            return f"{decimal_text(rate)} {currency} per {each}"
        case Graduated(tiers=tiers):
            return "each part in its own tier: " + ", ".join(_tier_words(tiers, each, currency))
        case Volume(tiers=tiers):
            return "the whole quantity at the tier that it reaches: " + ", ".join(_tier_words(tiers, each, currency))
        case Package(size=size, amount=amount):
            return f"{decimal_text(amount)} {currency} per started package of {decimal_text(size)} {each}"
        case Percentage():
            return _percentage_words(price, currency)
        case EventAmount(property=name):
            return f"the amount that each event states in {name!r}"
        case Bands(bands=bands, otherwise=otherwise):
            said = [_band_words(band, currency) for band in bands[:BANDS_SAID]]
            more = [f"{len(bands) - BANDS_SAID} more bands"] if len(bands) > BANDS_SAID else []
            return f"per {each} by local time: " + ", ".join(
                [*said, *more, f"otherwise {decimal_text(otherwise)} {currency}"]
            )


def _tier_words(tiers: Sequence[Tier], each: str, currency: str) -> list[str]:
    words: list[str] = []
    for tier in tiers:
        price = f"{decimal_text(tier.unit)} {currency} per {each}"
        if tier.flat:
            price += f" plus {decimal_text(tier.flat)} {currency}"
        words.append(f"{price} above" if tier.up_to is None else f"{price} up to {decimal_text(tier.up_to)}")
    return words


def _percentage_words(price: Percentage, currency: str) -> str:
    words = f"{decimal_text(price.percent)} % of each event's value"
    if price.per_event:
        words += f" plus {decimal_text(price.per_event)} {currency}"
    limits = (("at least", price.min_per_event), ("at most", price.max_per_event))
    words += "".join(f", {word} {decimal_text(limit)} {currency}" for word, limit in limits if limit is not None)
    if price.free_events:
        words += f", the first {price.free_events} events free"
    if price.free_value:
        words += f", the first {decimal_text(price.free_value)} {currency} of value free"
    return words


def _band_words(band: Band, currency: str) -> str:
    days = "/".join(WEEKDAYS[day] for day in band.days) or "every day"
    hours = f"{band.start // 60:02}:{band.start % 60:02}-{band.end // 60:02}:{band.end % 60:02}"
    return f"{days} {hours} {decimal_text(band.unit)} {currency}"


# --- a line -------------------------------------------------------------------------------------------------------


def arithmetic(master: MasterData, line: Line, currency: str, customer: str) -> dict[str, Any]:
    """How the line's amount came about, as JSON: `quantity`, `price`, `proration`, `amount`, `tax`, `corrects`.

    `customer` is the document's: his tax treatment counts, also where he pays for the line's customer.
    """
    given = line.explanation
    span = span_of_line(master, line)
    row = span.charge.rows[row_of_line(span.charge, line)] if span is not None else None
    meter = master.meters.get(span.charge.meter) if span is not None else None
    return {
        "quantity": {
            "value": decimal_text(line.quantity),
            "exact": given.get("metered", given.get("quantity", decimal_text(line.quantity))),
            "unit": line.unit,
            "meter": None if meter is None else {"code": meter.code, "aggregation": meter.aggregation},
            "included": given.get("included"),
        },
        "price": {
            "model": given.get("model"),
            "words": price_words(row, line.unit, currency) if row is not None else "",
            "unit_price": None if line.unit_price is None else decimal_text(line.unit_price),
            "tiers": tiers_filled(given.get("tiers") or ()),
            "package": given.get("package"),
            "percent": given.get("percent"),
            "minimum": given.get("minimum"),
            "maximum": given.get("maximum"),
        },
        "proration": given.get("proration"),
        "difference": _difference(given),
        "amount": _amount(line, currency),
        "tax": {
            "code": line.tax_code,
            "category": line.tax_category,
            "percent": decimal_text(line.tax_percent),
            "treatment": _treatment(master, customer, line),
            "point": tax_point(line.start, line.end).isoformat(),
            "rate": _rate(master, line),
        },
        "corrects": None if line.corrects is None else {"document": line.corrects.document, "line": line.corrects.line},
        "catalog": {
            "plan": line.plan or None,
            "version": line.plan_version if line.plan else None,
            "charge": line.charge,
            "step": line.step or None,
            "own_price": span is not None and _own_price(master, span),
        },
    }


def _amount(line: Line, currency: str) -> dict[str, Any]:
    given = line.explanation
    listed = line.stated + line.stated_allowance  # before the discount, in the terms of the price
    exact = given.get("exact")
    # Of a correction, and of a part that is credited, the exact amount is that of the whole, not of the line.
    own = exact is not None and round_amount(Fraction(str(exact)), currency) == listed
    return {
        "currency": currency,
        "exact": exact,
        "rounded": str(round_amount(listed, currency)),
        "rounding": decimal_text(Fraction(listed) - Fraction(str(exact))) if own else None,
        "rule": "once a line, half away from zero",
        "discount": str(line.stated_allowance),
        "with_tax": None if line.gross is None else str(line.gross),  # what was agreed, where the price contains it
        "net": str(line.amount),
    }


def _difference(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was billed before and what is rated now, of a correction."""
    if not given.get("late") and "billed" not in given:
        return None
    return {"billed": given.get("billed"), "rated": given.get("rated"), "late": bool(given.get("late"))}


def _treatment(master: MasterData, customer: str, line: Line) -> str | None:
    known = master.customers.get(customer)
    return None if known is None else known.treatment_at(tax_point(line.start, line.end))


def _rate(master: MasterData, line: Line) -> dict[str, Any] | None:
    """Since when the tax code's percent of the tax point holds, and the step of master data that says so."""
    code = master.tax_codes.get(line.tax_code)
    entry = code and code.entry_on(local_date(tax_point(line.start, line.end), master.tenant.timezone))
    if code is None or entry is None:
        return None
    return {"percent": decimal_text(entry.percent), "since": entry.start.isoformat(), "step": code.step}


def _own_price(master: MasterData, span: Span) -> bool:
    """Whether the subscription's own price is billed, not the plan's."""
    listed = span.segment.plan.charge(span.charge.code)
    return listed is not None and listed != span.charge


def tiers_filled(tiers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tiers with where each begins and which share of the quantity it holds (`0.4`, for a bar; cut at 4 places)."""
    whole = sum((abs(Fraction(str(tier.get("quantity") or 0))) for tier in tiers), Fraction(0))
    found: list[dict[str, Any]] = []
    lower = "0"
    for tier in tiers:
        part = abs(Fraction(str(tier.get("quantity") or 0)))
        share = Decimal(int(part * 10_000 / whole)).scaleb(-4) if whole else Decimal(0)
        found.append({"from": lower, **tier, "share": decimal_text(share)})
        lower = str(tier.get("up_to") or lower)
    return found
