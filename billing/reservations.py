"""Reservations: what is asked, how much of it is granted, and what commits and releases do to it.

Owns the verdicts. Limits are those that exist: a wallet once topped up, and every budget that blocks; what is granted
is what is there, at most what is asked. Credit and its order are `billing/wallets.py`; what the running period has
cost and what budgets leave is asked of whoever holds usage. Source: docs/rules.md, Reservations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec
import polars as pl

from billing.assemble import CreditKind, tax_of
from billing.budgets import budgets_of
from billing.due import Use
from billing.errors import FieldError, InvalidInput
from billing.forms import Form
from billing.master import Budget, MasterData
from billing.money import decimal_text, minor_digits, round_amount
from billing.running import running_uses
from billing.tax.treatment import tax_group, tax_point
from billing.usage import EVENT_SCHEMA
from billing.wallets import Hold, Wallets

SOURCE = "cloudbilling:reservation"  # of ids and of the event that a reservation imagines; no sender may use it
ZERO = Decimal(0)

CostOf = Callable[[Sequence[Use], pl.DataFrame], Fraction]  # exact cost of pieces, with events that are not there
BudgetLeft = Callable[[Budget], Fraction]  # what a budget leaves in the running period, before reservations


@dataclass(frozen=True)
class Asked:
    """A reservation as it is asked for: an amount, or the cost of a quantity more of a meter."""

    id: str
    customer: str
    currency: str
    amount: Decimal | None
    meter: str = ""
    quantity: Decimal | None = None
    expires: datetime | None = None


def parse_reservation(form: Form, master: MasterData) -> Asked:
    """Read `{customer, id, amount | usage: {meter, quantity}, currency, expires}`; mistakes go to the form's list."""
    mistakes = form.mistakes
    customer, id = form.code("customer"), form.code("id")
    currency = form.text("currency", master.tenant.currency)
    amount = form.decimal("amount", required=False, least=ZERO)
    usage = form.raw("usage")
    expires = None
    if form.raw("expires") is not None:
        expires = form.moment("expires", master.tenant.timezone)
    meter, quantity = "", None
    if usage is not None:
        inner = Form(usage, form.at("usage"), mistakes)
        meter, quantity = inner.code("meter"), inner.decimal("quantity", least=ZERO)
        inner.done()
        if meter and meter not in master.meters:
            inner.wrong("meter", f"there is no meter {meter!r}")
    form.done()
    if (amount is None) == (usage is None):
        mistakes.add(form.pointer, "a reservation asks for either `amount` or `usage`")
    if customer and customer not in master.customers:
        form.wrong("customer", f"there is no customer {customer!r}")
    check_money(form, "amount", amount, currency)
    return Asked(id, customer, currency, amount, meter, quantity, expires)


def check_money(form: Form, key: str, amount: Decimal | None, currency: str) -> None:
    """An amount must be a number of the currency's smallest unit."""
    try:
        digits = minor_digits(currency)
    except InvalidInput as error:
        form.wrong("currency", error.detail)
        return
    if amount is not None and amount != round(amount, digits):
        form.wrong(key, f"has more than {digits} decimals, {currency} has no smaller unit")


def reserve(
    master: MasterData, wallets: Wallets, asked: Asked, now: datetime, cost_of: CostOf, budget_left: BudgetLeft
) -> Hold:
    """Hold what is there, at most what is asked. An id that is known answers its first verdict again."""
    known = wallets.holds.get(asked.id)
    if known is not None:
        return known
    if asked.expires is not None and asked.expires <= now:
        detail = "must lie ahead: a reservation that is over holds nothing"
        raise InvalidInput(f"expires {detail}", errors=[FieldError("/expires", detail)])
    customer, currency = asked.customer, asked.currency
    net = asked.amount if asked.amount is not None else cost_of_more(master, asked, now, cost_of)
    net = min(net, allowed_by_budgets(master, wallets, customer, currency, budget_left, net))
    if not wallets.exists(customer, currency):
        return wallets.reserve(asked.id, customer, currency, None, net, net, asked.expires)
    if asked.amount is not None:
        granted = min(net, wallets.available(customer, currency))
        return wallets.reserve(asked.id, customer, currency, None, granted, granted, asked.expires)
    promotional = min(net, wallets.available(customer, currency, "promotional"))
    rest = net - promotional
    gross = rest + tax_of(rest, usage_tax(master, customer, asked.meter, now), currency)
    purchased = min(gross, wallets.available(customer, currency, "purchased"))
    held = net if purchased == gross else promotional + min(rest, purchased)
    parts: Mapping[CreditKind, Decimal] = {"promotional": promotional, "purchased": purchased}
    return wallets.reserve(asked.id, customer, currency, parts, promotional + purchased, held, asked.expires)


def allowed_by_budgets(
    master: MasterData, wallets: Wallets, customer: str, currency: str, left: BudgetLeft, asked: Decimal
) -> Decimal:
    """What the blocking budgets of the customer leave of a net amount; they are in the tenant's currency."""
    allowed = asked
    if currency != master.tenant.currency:
        return allowed
    for budget in budgets_of(master, customer):
        if budget.action == "block":
            rest = left(budget) - Fraction(wallets.held_net(customer, currency))
            allowed = min(allowed, max(_round_down(rest, currency), ZERO))
    return allowed


def _round_down(left: Fraction, currency: str) -> Decimal:
    digits = minor_digits(currency)
    return Decimal(left * 10**digits // 1).scaleb(-digits)


def cost_of_more(master: MasterData, asked: Asked, now: datetime, cost_of: CostOf) -> Decimal:
    """What a quantity more of a meter would cost in the running period: cost(q + quantity) - cost(q), rounded."""
    uses = [
        use
        for use in running_uses(master, asked.customer, now, meter=asked.meter)
        if use.piece.span.segment.plan.currency == asked.currency
    ]
    if not uses:
        return round_amount(0, asked.currency)
    nothing = pl.DataFrame(schema=EVENT_SCHEMA)
    more = cost_of(uses, imagined_event(master, asked, now))
    return round_amount(more - cost_of(uses, nothing), asked.currency)


def imagined_event(master: MasterData, asked: Asked, now: datetime) -> pl.DataFrame:
    """The event that would bring the quantity; it comes last of its moment."""
    definition = master.meters[asked.meter]
    data: dict[str, Any] = {name: values[0] for name, values in definition.filter}
    if definition.value is not None:
        data[definition.value] = decimal_text(asked.quantity or ZERO)
    event = {
        "source": SOURCE,
        "id": "~",
        "type": definition.event_type,
        "customer": asked.customer,
        "subscription": None,
        "time": now,
        "data": msgspec.json.encode(data).decode(),
    }
    return pl.DataFrame([event], schema=EVENT_SCHEMA, orient="row")


def usage_tax(master: MasterData, customer: str, meter: str, now: datetime) -> Decimal:
    """The percent of tax that use of a meter now will bear beside its cost."""
    for use in running_uses(master, customer, now, meter=meter):
        if use.piece.span.segment.plan.inclusive:
            return ZERO  # what it costs contains the tax
        code = master.tax_codes[use.piece.span.charge.tax]
        point = tax_point(use.piece.start, use.piece.end)
        treatment = master.customers[master.payer_at(customer, now)].treatment_at(point)
        return tax_group(code, treatment, point, master.tenant.timezone)[1]
    return ZERO
