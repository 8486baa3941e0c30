"""A plan's prices as a form: every number of it is a field, and the fields make a plan again.

Owns which numbers of a price can be edited and how their fields are called; what is right is decided by the core
(`billing/simulation.py`), whose pointers lead back to the fields.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from billing.catalog import Plan
from billing.catalog_forms import to_form
from deployments.front.formats import Formats
from deployments.front.prices.view import unit_of
from deployments.front.texts import Texts

ROWS_MAX = 12  # price rows of one charge in the form; a charge with more keeps its prices
NUMBERS = (
    *("amount", "unit", "size", "percent", "per_event", "min_per_event", "max_per_event", "free_events", "free_value"),
    "otherwise",
)
LIMITS = ("included", "minimum", "maximum")
TEXT_MAX = 40  # characters of a field


@dataclass(frozen=True)
class Field:
    """`name` is the place in the plan's form: `charges.0.price.tiers.1.unit`."""

    name: str
    label: str
    value: str
    wrong: str = ""


@dataclass(frozen=True)
class TierFields:
    up_to: Field | None  # None: the last tier has no end
    unit: Field
    flat: Field | None


@dataclass(frozen=True)
class PriceFields:
    """The numbers of one price row."""

    title: str
    model: str
    unit: str
    fields: tuple[Field, ...]
    tiers: tuple[TierFields, ...]


def fields_of(
    plan: Plan, meters: Mapping[str, Any], typed: Mapping[str, str], wrong: Mapping[str, str], t: Texts, f: Formats
) -> list[PriceFields]:
    """The form: what was typed, else the plan's own numbers."""
    found: list[PriceFields] = []
    for place, charge in enumerate(plan.charges):
        form = to_form(charge)
        unit = unit_of(charge, dict(meters))
        for here, row, when in _rows(form, f"charges.{place}"):
            price: Mapping[str, Any] = row["price"]

            def field(name: str, key: str, value: Any, label_key: str = "") -> Field:
                shown = typed.get(name, "" if value is None else f.number(Decimal(str(value))))
                return Field(name, t(f"price_field.{label_key or key}"), shown, wrong.get(name, ""))

            simple = [
                field(f"{here}.price.{key}", key, price.get(key))
                for key in NUMBERS
                if key in price or _wanted(price, key)
            ]
            simple += [
                field(f"{here}.{key}", key, row.get(key)) for key in LIMITS if _may_have(charge.kind, price, key)
            ]
            simple += [
                field(f"{here}.price.bands.{number}.unit", "unit", band.get("unit"), "band")
                for number, band in enumerate(price.get("bands") or ())
            ]
            tiers = tuple(
                TierFields(
                    None
                    if tier.get("up_to") is None
                    else field(f"{here}.price.tiers.{number}.up_to", "up_to", tier["up_to"]),
                    field(f"{here}.price.tiers.{number}.unit", "unit", tier.get("unit", "0")),
                    field(f"{here}.price.tiers.{number}.flat", "flat", tier.get("flat", "0"))
                    if any("flat" in one for one in price["tiers"])
                    else None,
                )
                for number, tier in enumerate(price.get("tiers") or ())
            )
            name = charge.name or charge.code
            found.append(
                PriceFields(
                    f"{name} ({when})" if when else name, t.word("model", price["model"]), unit, tuple(simple), tiers
                )
            )
    return found


def _rows(form: Mapping[str, Any], here: str) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """The price rows of a charge's form: where they stand, and what they are for."""
    if "price" in form:
        yield here, form, ""
        return
    rows = form["prices"]
    if len(rows) <= ROWS_MAX:
        for number, row in enumerate(rows):
            when = ", ".join(str(value) for value in (row.get("when") or {}).values())
            yield f"{here}.prices.{number}", row, when


def _wanted(price: Mapping[str, Any], key: str) -> bool:
    """Numbers that a price has even where its form leaves them out, as they are zero."""
    return price["model"] == "percentage" and key == "per_event"


def _may_have(kind: str, price: Mapping[str, Any], key: str) -> bool:
    if kind != "usage":
        return False
    return key != "included" or price["model"] not in ("percentage", "event_amount")


def plan_form(plan: Plan, typed: Mapping[str, str], f: Formats) -> dict[str, Any]:
    """The plan's form with the numbers that were typed; an empty limit is none. What is no number stays as it is."""
    form = to_form(plan)
    for name, text in typed.items():
        found = _FIELD.fullmatch(name)
        at = _inside(form, name.split(".")[:-1]) if found else None
        if found is None or at is None:
            continue
        value = f.exact(text[:TEXT_MAX])
        if value or found[1] not in LIMITS:
            at[found[1]] = value
        else:
            at.pop(found[1], None)
    return form


_FIELD = re.compile(
    r"charges\.[0-9]{1,5}(?:\.prices\.[0-9]{1,5})?(?:\.price(?:\.(?:tiers|bands)\.[0-9]{1,3})?)?"
    rf"\.({'|'.join((*NUMBERS, *LIMITS, 'up_to'))})"
)


def _inside(form: dict[str, Any], parts: list[str]) -> dict[str, Any] | None:
    """The object at that place of the form; None where there is none: the plan was published anew meanwhile."""
    at: Any = form
    for part in parts:
        if isinstance(at, list):
            at = at[int(part)] if int(part) < len(at) else None
        else:
            at = at.get(part) if isinstance(at, dict) else None
    return at if isinstance(at, dict) else None


def field_of(pointer: str) -> str:
    """The field that a pointer of the core means: `/plan/charges/0/price/unit` is `charges.0.price.unit`."""
    return pointer.removeprefix("/plan").strip("/").replace("/", ".")
