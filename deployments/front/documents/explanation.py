"""Why an amount is what it is: a line's explanation in words and numbers, one form for invoices and usage so far.

Owns no arithmetic: everything shown was computed when the line was rated and lies in `Line.explanation`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from billing.documents import Line
from deployments.front.formats import Formats
from deployments.front.texts import Texts

EXACT_PLACES_MAX = 14  # shown; more are cut and marked with an ellipsis


@dataclass(frozen=True)
class TierRow:
    label: str
    quantity: Decimal
    filled: str
    unit: str
    flat: str
    amount: str
    share: Decimal  # of the whole quantity, in percent, for a bar


@dataclass(frozen=True)
class SumRow:
    label: str
    value: str


@dataclass(frozen=True)
class DimensionRow:
    label: str
    quantity: str


@dataclass(frozen=True)
class Explanation:
    number: int
    what: str
    period: str
    charge: str
    plan: str
    plan_version: int
    amount: Decimal
    currency: str
    unit: str
    tiers: Sequence[TierRow]
    flats: bool
    sums: Sequence[SumRow]
    result_label: str
    result: str
    dimensions: Sequence[DimensionRow]
    facts: Sequence[tuple[str, str]]


def explain(number: int, line: Line, currency: str, t: Texts, f: Formats) -> Explanation:
    """The explanation of one line. What a line does not carry is left out, nothing is made up."""
    given = line.explanation
    listed = line.stated + line.stated_allowance  # before the discount, in the terms of the price
    tiers, flats = _tiers(given.get("tiers") or (), t, f)
    sums: list[SumRow] = []
    if "billed" in given and "rated" in given:
        sums += _difference(given, currency, t, f)
    else:
        sums += _price(line, given, currency, t, f)
        if given.get("exact") is not None:
            exact = f.number(_decimal(given["exact"]), 0, EXACT_PLACES_MAX)
            sums.append(SumRow(t("why.sum_exact" if tiers else "why.exact"), exact))
            sums.append(SumRow(t("why.rounded"), f.amount(listed, currency)))
    if line.stated_allowance:
        sums.append(SumRow(t("why.allowance"), f.amount(-line.stated_allowance, currency)))
    if line.gross is not None:
        sums.append(SumRow(t("why.with_tax"), f.amount(line.gross, currency)))
        sums.append(SumRow(t("why.tax_within"), f.amount(line.amount - line.gross, currency)))
    return Explanation(
        number, line.name or line.charge, f.period(line.start, line.end), line.charge, line.plan, line.plan_version,
        line.amount, currency, line.unit, tiers, flats, sums, t("why.line_net"), f.amount(line.amount, currency),
        _dimensions(given.get("dimensions") or (), f), _facts(line, given, t, f),
    )  # fmt: skip


def _price(line: Line, given: Mapping[str, Any], currency: str, t: Texts, f: Formats) -> list[SumRow]:
    rows: list[SumRow] = []
    metered, included = _decimal(given.get("metered")), _decimal(given.get("included"))
    unit = f" {line.unit}" if line.unit else ""
    if included:
        if metered is not None:
            rows.append(SumRow(t("why.metered"), f.number(metered) + unit))
        rows.append(SumRow(t("why.included"), f.number(-included) + unit))
    if not given.get("tiers"):
        price = _decimal(given.get("unit_price")) or line.unit_price
        if given.get("package"):
            package = given["package"]
            words = t("why.package", size=f.number(_decimal(package.get("size"))) + unit)
            size, amount = f.number(_decimal(package.get("size"))), f.number(_decimal(package.get("amount")), 2)
            charged = max(line.quantity - (included or 0), Decimal(0)) if line.quantity > 0 else line.quantity
            rows.append(SumRow(words, f"⌈{f.number(charged)} / {size}⌉ × {amount}"))
        elif given.get("percent") is not None:
            rows.append(
                SumRow(t("why.percent"), f"{f.number(line.quantity)} × {f.number(_decimal(given['percent']))} %")
            )
        elif price is not None:
            rows.append(SumRow(t("why.each_row"), f"{f.number(line.quantity)}{unit} × {f.number(price, 2)}"))
    if given.get("net_of_lines") is not None:
        rows.append(SumRow(t("why.minimum_agreed"), f.number(_decimal(given.get("minimum")), 2)))
        rows.append(SumRow(t("why.net_of_lines"), f.number(-_required(given["net_of_lines"]), 2)))
    if given.get("proration"):
        part = given["proration"]
        by = str(part.get("by", "day"))
        words = t(f"why.prorated_{by}", active=f.number(int(part["active"])), full=f.number(int(part["full"])))
        rows.append(SumRow(words, f"× {f.number(int(part['active']))} / {f.number(int(part['full']))}"))
    for key in ("minimum_applied", "maximum_applied"):
        if given.get(key) is not None:
            rows.append(SumRow(t(f"why.{key}"), f.number(_decimal(given[key]), 2)))
    return rows


def _difference(given: Mapping[str, Any], currency: str, t: Texts, f: Formats) -> list[SumRow]:
    billed, rated = given["billed"], given["rated"]
    return [
        SumRow(
            t("why.rated_now", quantity=f.number(_decimal(rated["quantity"]))),
            f.amount(_required(rated["amount"]), currency),
        ),
        SumRow(
            t(
                "why.billed_before",
                document=billed.get("document", ""),
                quantity=f.number(_decimal(billed["quantity"])),
            ),
            f.amount(-_required(billed["amount"]), currency),
        ),
    ]


def _tiers(given: Sequence[Mapping[str, Any]], t: Texts, f: Formats) -> tuple[list[TierRow], bool]:
    rows: list[TierRow] = []
    lower = Decimal(0)
    prices = [_decimal(tier.get("unit")) for tier in given]
    amounts = [_decimal(tier.get("amount")) for tier in given]
    quantities = [_decimal(tier.get("quantity")) or Decimal(0) for tier in given]
    price_places, amount_places = f.places(prices, 2), min(f.places(amounts, 2), EXACT_PLACES_MAX)
    quantity_places = f.places(quantities)
    flats = any(_decimal(tier.get("flat")) for tier in given)
    for tier, price, amount, quantity in zip(given, prices, amounts, quantities, strict=True):
        upper = _decimal(tier.get("up_to"))
        label = f"{f.number(lower)} – {f.number(upper)}" if upper is not None else t("why.above", lower=f.number(lower))
        rows.append(
            TierRow(
                label,
                quantity,
                f.number(quantity, quantity_places) if quantity else f.number(None),
                f.number(price, price_places),
                f.number(_decimal(tier.get("flat")), 2),
                f.number(amount if quantity else None, amount_places, EXACT_PLACES_MAX),
                _percent(quantity, quantities),
            )
        )
        lower = upper if upper is not None else lower
    return rows, flats


def _percent(part: Decimal, parts: Sequence[Decimal]) -> Decimal:
    """For a picture only."""
    whole = sum((abs(one) for one in parts), Decimal(0))
    return (abs(part) * 100 / whole).quantize(Decimal("0.1")) if whole else Decimal(0)


def _dimensions(given: Sequence[Mapping[str, Any]], f: Formats) -> list[DimensionRow]:
    rows: list[DimensionRow] = []
    for entry in given:
        label = ", ".join(f"{name}: {value}" for name, value in entry.get("values", {}).items())
        rows.append(DimensionRow(label, f.number(_decimal(entry.get("quantity")))))
    return rows


def _facts(line: Line, given: Mapping[str, Any], t: Texts, f: Formats) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    if given.get("events") is not None:
        facts.append((t("why.events"), f.number(int(given["events"]))))
    if given.get("model"):
        facts.append((t("why.model"), t.word("model", str(given["model"]))))
    if line.when:
        facts.append((t("why.row"), ", ".join(f"{name} = {value}" for name, value in line.when.items())))
    if given.get("late"):
        facts.append((t("why.late"), t("why.late_text")))
    if line.tax_code:
        facts.append(
            (t("why.tax"), f"{line.tax_code}, {t(f'tax.{line.tax_category}')}, {f.number(line.tax_percent)} %")
        )
    return facts


def _decimal(value: object) -> Decimal | None:
    return None if value is None else Decimal(str(value))


def _required(value: object) -> Decimal:
    return Decimal(str(value))
