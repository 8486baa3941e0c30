"""The JSON forms of the catalog: tax codes, meters, price models, charges and plans, read and written.

A form is checked as a whole: every mistake is named with its JSON pointer. What refers to other things (a charge to its
meter and tax code) is checked by `check_references`. The values are `billing/catalog.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any, cast, get_args

from billing.catalog import (
    AGGREGATIONS,
    BANDS_MAX,
    CHARGE_KINDS,
    CHARGES_MAX,
    DIMENSIONS_MAX,
    EVENT_MODELS,
    FREE_EVENTS_MAX,
    INTERVALS,
    MINUTES_OF_DAY,
    MODELS,
    PRICE_ROWS_MAX,
    TAX_BEHAVIORS,
    TIERS_MAX,
    WEEKDAYS,
    Aggregation,
    Band,
    Bands,
    Charge,
    ChargeKind,
    EventAmount,
    Flat,
    Graduated,
    Interval,
    Meter,
    Package,
    Percentage,
    PerUnit,
    Plan,
    Price,
    PriceRow,
    Proration,
    TaxBehavior,
    TaxCode,
    TaxPercent,
    Tier,
    Timing,
    Volume,
)
from billing.errors import FieldError
from billing.forms import Form, Mistakes, escape
from billing.money import MINOR_DIGITS, decimal_text
from billing.phases import Phase, parse_phases

# --- from a form ---------------------------------------------------------------------------------------------------

PERCENT_MAX = 1_000  # of a price; resale is the cost and a margin on it


def parse_tax_code(form: object, pointer: str = "") -> TaxCode:
    mistakes = Mistakes()
    fields = Form(form, pointer, mistakes)
    percents: list[TaxPercent] = []
    for place, entry in fields.items("percents", most=1_000):
        row = Form(entry, place, mistakes)
        start = _day(row, "from")
        percent = row.decimal("percent", least=Decimal(0))
        if percent is not None and percent > 100:
            row.wrong("percent", "must be at most 100")
        if start and percents and start <= percents[-1].start:
            row.wrong("from", "must be later than the one before")
        row.done()
        percents.append(TaxPercent(start or date.min, percent or Decimal(0)))
    if not percents:
        fields.wrong("percents", "needs at least one entry")
    code, (name, description) = fields.code(), _human(fields)
    fields.done()
    mistakes.check()
    return TaxCode(code, tuple(percents), name, description)


def parse_meter(form: object, pointer: str = "") -> Meter:
    mistakes = Mistakes()
    fields = Form(form, pointer, mistakes)
    code, event_type = fields.code(), fields.code("event_type")
    aggregation = cast("Aggregation", fields.choice("aggregation", AGGREGATIONS))
    value = fields.code("value", default="") or None
    said = fields.fields.get("aggregation")  # of a wrong one nothing more can be said
    if said in AGGREGATIONS and aggregation != "count" and value is None:
        fields.wrong("value", f"{aggregation} needs the property that it measures")
    if said == "count" and value is not None:
        fields.wrong("value", "count measures no property")
    rows: list[tuple[str, tuple[str, ...]]] = []
    for name, values in sorted(fields.mapping("filter").items()):
        texts = Form({name: values}, fields.at("filter"), mistakes).texts(name)
        if not texts:
            mistakes.add(f"{fields.at('filter')}", f"{name!r} needs at least one text")
        rows.append((name, tuple(dict.fromkeys(texts))))
    if len(rows) > DIMENSIONS_MAX:
        fields.wrong("filter", f"has more than {DIMENSIONS_MAX} properties")
    name, description = _human(fields)
    unit = fields.text("unit", "")
    fields.done()
    mistakes.check()
    return Meter(code, event_type, aggregation, value, tuple(rows), name, description, unit)


def parse_price(form: object, pointer: str = "") -> Price:
    mistakes = Mistakes()
    price = _price(form, pointer, mistakes)
    mistakes.check()
    assert price is not None, "a price without mistakes is a price"
    return price


def parse_charge(form: object, pointer: str = "") -> Charge:
    mistakes = Mistakes()
    charge = _charge(form, pointer, mistakes)
    mistakes.check()
    return charge


def parse_plan(form: object, pointer: str = "", *, version: int = 1) -> Plan:
    mistakes = Mistakes()
    fields = Form(form, pointer, mistakes)
    code, currency = fields.code(), fields.text("currency")
    if currency and currency not in MINOR_DIGITS:
        fields.wrong("currency", f"{currency[:20]!r} is no current currency of ISO 4217")
    interval = cast("Interval", fields.choice("interval", INTERVALS))
    minimum, minimum_tax = _plan_minimum(fields)
    charges = _charges(fields)
    if not charges:
        fields.wrong("charges", "needs at least one charge")
    phases, trial_end = parse_phases(fields, [charge.code for charge in charges], _charges, _price)
    tax_behavior = cast("TaxBehavior", fields.choice("tax_behavior", TAX_BEHAVIORS, "exclusive"))
    name, description = _human(fields)
    effective_from = _day(fields, "effective_from") if fields.fields.get("effective_from") is not None else None
    fields.raw("effective_from")
    fields.done()
    mistakes.check()
    plan = Plan(code, currency, interval, charges, minimum, version, name, description, minimum_tax, phases, trial_end)
    plan = replace(plan, tax_behavior=tax_behavior, effective_from=effective_from)
    _check_phase_prices(plan, fields)
    mistakes.check()
    return plan


def _charges(fields: Form) -> tuple[Charge, ...]:
    """The charges of a plan, or of a phase with charges of its own."""
    charges: list[Charge] = []
    seen: set[str] = set()
    for place, entry in fields.items("charges", most=CHARGES_MAX):
        charge = _charge(entry, place, fields.mistakes)
        if charge.code in seen:
            fields.mistakes.add(f"{place}/code", f"{charge.code!r} is there twice")
        if charge.code == "minimum":
            fields.mistakes.add(f"{place}/code", "'minimum' is the name of the plan's own minimum")
        seen.add(charge.code)
        charges.append(charge)
    return tuple(charges)


def _check_phase_prices(plan: Plan, fields: Form) -> None:
    """A price of a phase must fit the charge that it is for."""
    for index, phase in enumerate(plan.phases):
        for code, price in phase.prices:
            charge = plan.charge(code)
            assert charge is not None, "checked with the form"
            at = f"{fields.at('phases')}/{index}/prices/{escape(code)}/model"
            if charge.kind != "usage" and price.model in EVENT_MODELS:
                fields.mistakes.add(at, f"{price.model} prices events: for usage charges only")
            elif charge.included and price.model in ("percentage", "event_amount"):
                fields.mistakes.add(at, f"{price.model} does not go with the charge's `included`")


def _plan_minimum(fields: Form) -> tuple[Decimal | None, str]:
    """A plan's minimum: an amount, or `{amount, tax}` where it has a tax code of its own."""
    if not isinstance(fields.fields.get("minimum"), Mapping):
        return fields.decimal("minimum", required=False, least=Decimal(0)), ""
    form = Form(fields.raw("minimum"), fields.at("minimum"), fields.mistakes)
    amount, tax = form.decimal("amount", least=Decimal(0)), form.code("tax")
    form.done()
    return amount, tax


def check_references(
    plan: Plan, meters: Mapping[str, Meter], tax_codes: Iterable[str], pointer: str = ""
) -> list[FieldError]:
    """What the plan's charges name that is not there, or that does not go together."""
    known, errors = set(tax_codes), list[FieldError]()
    if plan.minimum_tax and plan.minimum_tax not in known:
        errors.append(FieldError(f"{pointer}/minimum/tax", f"there is no tax code {plan.minimum_tax!r}"))
    for place, charge in plan.versions_of_charges:
        at = f"{pointer}/{place}"
        if charge.tax not in known:
            errors.append(FieldError(f"{at}/tax", f"there is no tax code {charge.tax!r}"))
        if charge.kind != "usage":
            continue
        meter = meters.get(charge.meter)
        if meter is None:
            errors.append(FieldError(f"{at}/meter", f"there is no meter {charge.meter!r}"))
            continue
        for row_place, row in enumerate(charge.rows):
            detail = price_misfit(row.price, meter)
            if detail:
                inside = f"/prices/{row_place}/price" if charge.price is None else "/price"
                errors.append(FieldError(f"{at}{'' if '/prices/' in place else inside}/model", detail))
    return errors


def price_misfit(price: Price, meter: Meter) -> str | None:
    """Why this price cannot price this meter's quantity; None if it can."""
    if price.model == "percentage" and meter.aggregation != "sum":
        return f"percentage prices each event's value: its meter must be a sum, not {meter.aggregation}"
    if price.model == "bands" and meter.aggregation not in ("sum", "count"):
        return f"bands price each event's quantity: their meter must be a sum or a count, not {meter.aggregation}"
    return None


def _human(fields: Form) -> tuple[str, str]:
    return fields.text("name", ""), fields.text("description", "")


def _day(fields: Form, key: str) -> date | None:
    value = fields.raw(key)
    if isinstance(value, date):
        return value
    try:
        return date.fromisoformat(value) if isinstance(value, str) and len(value) == 10 else _no_day(fields, key)
    except ValueError:
        return _no_day(fields, key)


def _no_day(fields: Form, key: str) -> None:
    fields.wrong(key, "a day is needed, such as 2026-01-31")


def _number(fields: Form, key: str, default: Decimal = Decimal(0), *, least: Decimal | None = None) -> Decimal:
    number = fields.decimal(key, required=False, least=least)
    return default if number is None else number


def _price(form: object, pointer: str, mistakes: Mistakes) -> Price | None:
    fields = Form(form, pointer, mistakes)
    model = fields.choice("model", MODELS)
    if fields.fields.get("model") not in MODELS:
        return None  # nothing else can be said about its keys
    price: Price
    if model == "flat":
        price = Flat(fields.decimal("amount") or Decimal(0))
    elif model == "per_unit":
        price = PerUnit(fields.decimal("unit") or Decimal(0))
    elif model == "graduated":
        price = Graduated(_tiers(fields))
    elif model == "volume":
        price = Volume(_tiers(fields))
    elif model == "package":
        price = Package(fields.decimal("size", above=Decimal(0)) or Decimal(1), fields.decimal("amount") or Decimal(0))
    elif model == "percentage":
        price = _percentage(fields)
    elif model == "event_amount":
        price = EventAmount(fields.code("property", default="amount") or "amount")
    else:
        bands = tuple(_band(entry, place, mistakes) for place, entry in fields.items("bands", most=BANDS_MAX))
        price = Bands(bands, fields.decimal("otherwise") or Decimal(0))
    fields.done()
    return price


def _percentage(fields: Form) -> Percentage:
    percent = fields.decimal("percent", least=Decimal(0)) or Decimal(0)
    if percent > PERCENT_MAX:
        fields.wrong("percent", f"must be at most {PERCENT_MAX}")
    least = fields.decimal("min_per_event", required=False)
    most = fields.decimal("max_per_event", required=False)
    if least is not None and most is not None and least > most:
        fields.wrong("max_per_event", "must not be below min_per_event")
    return Percentage(
        percent,
        _number(fields, "per_event"),
        least,
        most,
        fields.count("free_events", 0, least=0, most=FREE_EVENTS_MAX),
        _number(fields, "free_value", least=Decimal(0)),
    )


def _tiers(fields: Form) -> tuple[Tier, ...]:
    tiers: list[Tier] = []
    entries = list(fields.items("tiers", most=TIERS_MAX))
    before = Decimal(0)
    for number, (place, entry) in enumerate(entries, start=1):
        row = Form(entry, place, fields.mistakes)
        up_to = row.decimal("up_to", required=False)
        if number == len(entries):
            if up_to is not None:
                row.wrong("up_to", "the last tier must be open: null")
        elif up_to is None:
            if "up_to" not in row.fields or row.fields["up_to"] is None:
                row.wrong("up_to", "only the last tier is open")
        elif up_to <= before:
            row.wrong("up_to", f"must be above {decimal_text(before)}, where the tier before ends")
        before = up_to if up_to is not None else before
        tiers.append(Tier(up_to, _number(row, "unit"), _number(row, "flat")))
        row.done()
    if not entries:
        fields.wrong("tiers", "needs at least one tier")
    return tuple(tiers)


def _band(form: object, pointer: str, mistakes: Mistakes) -> Band:
    fields = Form(form, pointer, mistakes)
    days: list[int] = []
    for number, day in enumerate(fields.texts("days")):
        if day in WEEKDAYS:
            days.append(WEEKDAYS.index(day))
        else:
            mistakes.add(f"{fields.at('days')}/{number}", f"must be one of {', '.join(WEEKDAYS)}")
    start, end = _minutes(fields, "from", 0), _minutes(fields, "to", MINUTES_OF_DAY)
    if start >= MINUTES_OF_DAY:
        fields.wrong("from", "must be before 24:00")
    band = Band(fields.decimal("unit") or Decimal(0), tuple(sorted(set(days))), start, end)
    fields.done()
    return band


def _minutes(fields: Form, key: str, default: int) -> int:
    text = fields.text(key, "")
    if not text:
        return default
    hours, colon, minutes = text.partition(":")
    if colon and len(hours) == 2 and len(minutes) == 2 and hours.isdecimal() and minutes.isdecimal():
        total = int(hours) * 60 + int(minutes)
        if int(minutes) < 60 and total <= MINUTES_OF_DAY:
            return total
    fields.wrong(key, "a time of day is needed, such as 08:30 or 24:00")
    return default


def _limits(
    fields: Form, prices: Sequence[Price | None], kind: ChargeKind
) -> tuple[Decimal, Decimal | None, Decimal | None]:
    """`included`, `minimum`, `maximum` of a charge or row."""
    included = _number(fields, "included", least=Decimal(0))
    minimum = fields.decimal("minimum", required=False, least=Decimal(0))
    maximum = fields.decimal("maximum", required=False, least=Decimal(0))
    if minimum is not None and maximum is not None and minimum > maximum:
        fields.wrong("maximum", "must not be below minimum")
    if included and any(price is not None and price.model in ("percentage", "event_amount") for price in prices):
        fields.wrong("included", "is not for percentage (use free_value) and event_amount")
    if kind != "usage":
        for key in ("included", "minimum", "maximum"):
            if fields.fields.get(key) is not None:
                fields.wrong(key, "is for usage charges only")
    return included, minimum, maximum


def _row(form: object, pointer: str, mistakes: Mistakes, price_by: Sequence[str]) -> PriceRow:
    fields = Form(form, pointer, mistakes)
    when: list[tuple[str, str]] = []
    for name, value in sorted(fields.mapping("when").items()):
        if name not in price_by:
            mistakes.add(fields.at("when"), f"{name!r} is not in price_by")
        elif value is None:
            mistakes.add(fields.at("when"), f"the value of {name!r} is missing: leave the key out for every value")
            continue
        if isinstance(value, str):
            when.append((name, value))
        else:
            mistakes.add(fields.at("when"), f"the value of {name!r} must be a text")
    price = _price(fields.raw("price"), fields.at("price"), mistakes)
    included, minimum, maximum = _limits(fields, [price], "usage")
    fields.done()
    return PriceRow(price or Flat(Decimal(0)), tuple(when), included, minimum, maximum)


def _charge(form: object, pointer: str, mistakes: Mistakes) -> Charge:
    fields = Form(form, pointer, mistakes)
    code = fields.code()
    kind = cast("ChargeKind", fields.choice("kind", CHARGE_KINDS))
    usage = kind == "usage"
    meter = fields.code("meter", default="")
    if usage and not meter:
        fields.wrong("meter", "a usage charge needs a meter")
    if not usage and meter:
        fields.wrong("meter", "is for usage charges only")
    timing = cast("Timing", fields.choice("timing", get_args(Timing), "arrears" if usage else "advance"))
    if kind != "recurring" and fields.fields.get("timing") is not None and not (usage and timing == "arrears"):
        fields.wrong("timing", "is for recurring charges only: usage is due at the end of its period")
    proration = cast("Proration", fields.choice("proration", get_args(Proration), "day"))
    prorate_usage = fields.truth("prorate_usage", False)
    if prorate_usage and not usage:
        fields.wrong("prorate_usage", "is for usage charges only")
    if prorate_usage and proration == "none":
        fields.wrong("prorate_usage", "contradicts proration none")
    price_by = fields.texts("price_by")
    if len(price_by) > DIMENSIONS_MAX or len(set(price_by)) != len(price_by):
        fields.wrong("price_by", f"needs different dimensions, at most {DIMENSIONS_MAX}")
    price: Price | None = None
    prices: tuple[PriceRow, ...] = ()
    if price_by or fields.fields.get("prices") is not None:
        prices = tuple(_row(entry, at, mistakes, price_by) for at, entry in fields.items("prices", most=PRICE_ROWS_MAX))
        if not prices:
            fields.wrong("prices", "price_by needs rows of prices")
        if not price_by:
            fields.wrong("price_by", "prices needs the dimensions that its rows name")
        for key in ("price", "included", "minimum", "maximum"):
            if fields.raw(key) is not None:
                fields.wrong(key, "stands in the rows of prices")
        if not usage:
            fields.wrong("price_by", "is for usage charges only")
        included, minimum, maximum = Decimal(0), None, None
    elif fields.raw("price") is None:
        fields.wrong("price", "is missing")
        included, minimum, maximum = _limits(fields, [], kind)
    else:
        price = _price(fields.raw("price"), fields.at("price"), mistakes)
        included, minimum, maximum = _limits(fields, [price], kind)
        if not usage and price is not None and price.model in EVENT_MODELS:
            mistakes.add(f"{fields.at('price')}/model", f"{price.model} prices events: for usage charges only")
    tax = fields.code("tax")
    name, description = _human(fields)
    unit = fields.text("unit", "")
    fields.done()
    return Charge(
        code, kind, tax, price, timing, proration, meter, included, minimum, maximum, prorate_usage,
        price_by, prices, name, description, unit,
    )  # fmt: skip


# --- to a form -----------------------------------------------------------------------------------------------------


def to_form(value: TaxCode | Meter | Price | PriceRow | Charge | Plan) -> dict[str, Any]:
    """The JSON form: what the parser of its kind reads back to an equal value. Defaults are left out."""
    if isinstance(value, TaxCode):
        percents = [{"from": row.start.isoformat(), "percent": decimal_text(row.percent)} for row in value.percents]
        return {"code": value.code, "percents": percents, **_texts(value)}
    if isinstance(value, Meter):
        form: dict[str, Any] = {"code": value.code, "event_type": value.event_type, "aggregation": value.aggregation}
        if value.value is not None:
            form["value"] = value.value
        if value.filter:
            form["filter"] = {name: list(texts) for name, texts in value.filter}
        return {**form, **_texts(value), **({"unit": value.unit} if value.unit else {})}
    if isinstance(value, PriceRow):
        return {
            **({"when": dict(value.when)} if value.when else {}),
            "price": to_form(value.price),
            **_limit_form(value),
        }
    if isinstance(value, Charge):
        return _charge_form(value)
    if isinstance(value, Plan):
        form = {"code": value.code, "currency": value.currency, "interval": value.interval}
        if value.inclusive:
            form["tax_behavior"] = value.tax_behavior
        if value.effective_from is not None:
            form["effective_from"] = value.effective_from.isoformat()
        if value.minimum is not None:
            amount = decimal_text(value.minimum)
            form["minimum"] = {"amount": amount, "tax": value.minimum_tax} if value.minimum_tax else amount
        form |= {"charges": [to_form(charge) for charge in value.charges], **_texts(value)}
        if value.phases:
            form["phases"] = [_phase_form(phase) for phase in value.phases]
        return {**form, **({"trial_end": value.trial_end} if value.trial_end != "continue" else {})}
    return _price_form(value)


def _phase_form(phase: Phase) -> dict[str, Any]:
    form: dict[str, Any] = {"code": phase.code}
    if phase.name:
        form["name"] = phase.name
    if not phase.open:
        form["for"] = phase.length
    if phase.free:
        form["free"] = True
    if phase.discount:
        percent = decimal_text(phase.discount)
        form["discount"] = {"percent": percent, "charges": sorted(phase.discounted)} if phase.discounted else percent
    if phase.charges is not None:
        form["charges"] = [to_form(charge) for charge in phase.charges]
    if phase.prices:
        form["prices"] = {code: to_form(price) for code, price in phase.prices}
    return {**form, **({"minimum": decimal_text(phase.minimum)} if phase.minimum is not None else {})}


def _texts(value: TaxCode | Meter | Charge | Plan) -> dict[str, str]:
    return {key: text for key, text in (("name", value.name), ("description", value.description)) if text}


def _limit_form(value: PriceRow | Charge) -> dict[str, str]:
    form = {"included": decimal_text(value.included)} if value.included else {}
    if value.minimum is not None:
        form["minimum"] = decimal_text(value.minimum)
    if value.maximum is not None:
        form["maximum"] = decimal_text(value.maximum)
    return form


def _charge_form(charge: Charge) -> dict[str, Any]:
    form: dict[str, Any] = {"code": charge.code, "kind": charge.kind}
    if charge.kind == "recurring":
        form["timing"] = charge.timing
    if charge.meter:
        form["meter"] = charge.meter
    form["tax"] = charge.tax
    if charge.proration != "day":
        form["proration"] = charge.proration
    if charge.prorate_usage:
        form["prorate_usage"] = True
    if charge.price is None:
        form["price_by"] = list(charge.price_by)
        form["prices"] = [to_form(row) for row in charge.prices]
    else:
        form["price"] = to_form(charge.price)
    return {**form, **_limit_form(charge), **_texts(charge), **({"unit": charge.unit} if charge.unit else {})}


def _price_form(price: Price) -> dict[str, Any]:
    form: dict[str, Any] = {"model": price.model}
    match price:
        case Flat(amount=amount):
            form["amount"] = decimal_text(amount)
        case PerUnit(unit=unit):
            form["unit"] = decimal_text(unit)
        case Graduated(tiers=tiers) | Volume(tiers=tiers):
            form["tiers"] = [_tier_form(tier) for tier in tiers]
        case Package(size=size, amount=amount):
            form |= {"size": decimal_text(size), "amount": decimal_text(amount)}
        case Percentage():
            form["percent"] = decimal_text(price.percent)
            for key in ("per_event", "min_per_event", "max_per_event", "free_value"):
                number = getattr(price, key)
                if number is not None and (number or key.startswith(("min", "max"))):
                    form[key] = decimal_text(number)
            if price.free_events:
                form["free_events"] = str(price.free_events)
        case EventAmount():
            form["property"] = price.property
        case Bands():
            form["bands"] = [_band_form(band) for band in price.bands]
            form["otherwise"] = decimal_text(price.otherwise)
    return form


def _tier_form(tier: Tier) -> dict[str, Any]:
    form: dict[str, Any] = {"up_to": None if tier.up_to is None else decimal_text(tier.up_to)}
    if tier.unit:
        form["unit"] = decimal_text(tier.unit)
    if tier.flat:
        form["flat"] = decimal_text(tier.flat)
    return form


def _band_form(band: Band) -> dict[str, Any]:
    form: dict[str, Any] = {}
    if band.days:
        form["days"] = [WEEKDAYS[day] for day in band.days]
    if (band.start, band.end) != (0, MINUTES_OF_DAY):
        form["from"] = f"{band.start // 60:02}:{band.start % 60:02}"
        form["to"] = f"{band.end // 60:02}:{band.end % 60:02}"
    return {**form, "unit": decimal_text(band.unit)}
