"""Master data of one tenant: all that rating and billing need, built from dated steps in the scenario's forms.

Owns the steps' forms, their validation and what they add up to. What the steps mean for periods and amounts is
`billing/contracts.py`; the catalog's own forms are `billing/catalog.py`. A step never changes an earlier one: the
n-th step has number n for ever, so "as known at step n" can be asked later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec
import zstandard

from billing.catalog import (
    Charge,
    Meter,
    Plan,
    Price,
    TaxCode,
    check_references,
    parse_meter,
    parse_plan,
    parse_price,
    parse_tax_code,
    price_misfit,
)
from billing.contracts import ContractStep, Discount, Subscription, contract, ended_at, plan_at
from billing.errors import InvalidInput, NotFound
from billing.forms import Form, Mistakes
from billing.money import minor_digits
from billing.periods import (
    MONTHS,
    Anchor,
    TimeInvalid,
    zone,
)

if TYPE_CHECKING:
    from billing.rating import RatingBook

LateUsage = Literal["delta", "reissue", "reject"]
TaxTreatment = Literal["domestic", "reverse_charge", "intra_community", "export", "exempt", "outside_scope"]
TREATMENTS: tuple[str, ...] = (
    "domestic",
    "reverse_charge",
    "intra_community",
    "export",
    "exempt",
    "outside_scope",
)
START = datetime(1, 1, 1, tzinfo=UTC)  # of what holds since ever

# The forms carry more than billing needs (addresses, seller data ...): kept as given, for documents to read.
TENANT_EXTRAS = frozenset({"code", "name", "kind", "language", "legal_entity", "legal_entities", "parking", "settings"})
CUSTOMER_EXTRAS = frozenset(
    {
        "vat_id",
        "legal_id",
        "tax_number",
        "address",
        "contact",
        "language",
        "buyer_reference",
        "order_reference",
        "payment_days",
        "einvoice",
        "legal_entity",
        "endpoint",
        "ids",
        "note",
        "tags",
        "payment",
    }
)
SUBSCRIPTION_EXTRAS = frozenset({"name", "note", "order_reference", "legal_entity", "tags"})
SUBSCRIPTION_STEPS_MAX = 10_000  # of one subscription
STEPS_OF_MASTER_DATA = frozenset(
    {
        "tax_code",
        "meter",
        "publish",
        "customer",
        "subscribe",
        "change",
        "quantity",
        "override",
        "cancel",
        "pause",
        "resume",
        "top_up",
        "budget",
        "ad_hoc",
        "bill_run",
    }
)


@dataclass(frozen=True)
class Tenant:
    currency: str
    timezone: str
    country: str
    late_usage: LateUsage
    future_limit: timedelta
    form: Mapping[str, Any]


@dataclass(frozen=True)
class Customer:
    code: str
    name: str
    country: str
    treatments: tuple[tuple[datetime, str], ...]  # in order; the first one also counts before its own time
    keys: tuple[str, ...]  # further customer keys that events may carry; the code itself always counts
    form: Mapping[str, Any]

    def treatment_at(self, moment: datetime) -> str:
        found = self.treatments[0][1]
        for since, treatment in self.treatments:
            if since > moment:
                break
            found = treatment
        return found


@dataclass(frozen=True)
class TopUp:
    number: int
    at: datetime
    customer: str
    currency: str
    kind: Literal["promotional", "purchased"]
    amount: Decimal
    expires: datetime | None


@dataclass(frozen=True)
class AdHoc:
    """An amount for the customer's next document: a charge of its own, or goodwill (negative)."""

    number: int
    at: datetime
    customer: str
    subscription: str  # that it belongs to, empty for none
    code: str
    name: str
    amount: Decimal  # net, in the currency's minor unit
    tax: str
    currency: str


@dataclass(frozen=True)
class Budget:
    code: str
    number: int
    at: datetime
    customer: str
    amount: Decimal
    period: str
    thresholds: tuple[Decimal, ...]  # percent, ascending
    action: Literal["notify", "block"]


@dataclass(frozen=True)
class RunMark:
    """A finalised bill run: everything due at or before `up_to` that step `steps` or an earlier one made is billed."""

    number: int
    at: datetime
    up_to: datetime
    steps: int
    parked: frozenset[str] = frozenset()  # customers that it left out

    def covers(self, customer: str, due: datetime, step: int) -> bool:
        return due <= self.up_to and step <= self.steps and customer not in self.parked


@dataclass(frozen=True)
class MasterData:
    """Everything known of one tenant after `step_count` steps. Values are never changed, `apply` makes a new one."""

    tenant: Tenant
    step_count: int = 0
    tax_codes: Mapping[str, TaxCode] = field(default_factory=dict[str, TaxCode])
    meters: Mapping[str, Meter] = field(default_factory=dict[str, Meter])
    plans: Mapping[str, tuple[Plan, ...]] = field(default_factory=dict[str, tuple[Plan, ...]])
    customers: Mapping[str, Customer] = field(default_factory=dict[str, Customer])
    key_owners: Mapping[str, str] = field(default_factory=dict[str, str])
    subscriptions: Mapping[str, Subscription] = field(default_factory=dict[str, Subscription])
    subscriptions_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    top_ups: tuple[TopUp, ...] = ()
    budgets: Mapping[str, Budget] = field(default_factory=dict[str, Budget])
    ad_hoc: Mapping[str, tuple[AdHoc, ...]] = field(default_factory=dict[str, tuple[AdHoc, ...]])  # by customer
    runs: tuple[RunMark, ...] = ()
    log: tuple[tuple[int, Mapping[str, Any]], ...] = ()  # the steps as given, with their numbers

    @classmethod
    def start(cls, form: object, pointer: str = "") -> MasterData:
        """Master data of a new tenant, from its form `{currency, timezone, country, late_usage, future_limit, ...}`."""
        mistakes = Mistakes()
        tenant = _tenant(form, pointer, mistakes)
        mistakes.check()
        return cls(tenant)

    def apply(self, step: Mapping[str, Any], pointer: str = "") -> MasterData:
        """One more step; raises InvalidInput naming every bad field, and changes nothing then."""
        builder = _Builder(self)
        builder.apply(step, pointer)
        return builder.finish()

    def apply_all(self, steps: Iterable[Mapping[str, Any]], pointer: str = "") -> MasterData:
        """Many steps at once, all or none; pointers start with the step's place (`/17/subscribe/plan`)."""
        builder = _Builder(self)
        for place, step in enumerate(steps):
            builder.apply(step, f"{pointer}/{place}")
        return builder.finish()

    def customer(self, code: str) -> Customer:
        if code not in self.customers:
            raise NotFound(f"there is no customer {code!r}", customer=code)
        return self.customers[code]

    def keys_of(self, customer: str) -> tuple[str, ...]:
        return (customer, *self.customers[customer].keys)

    def plan(self, code: str) -> Plan:
        """The newest version of a plan."""
        if code not in self.plans:
            raise NotFound(f"there is no plan {code!r}", plan=code)
        return self.plans[code][-1]

    def covered(self, customer: str, due: datetime, step: int) -> RunMark | None:
        """The first finalised run that billed what is due then and was made by that step."""
        for mark in self.runs:
            if mark.covers(customer, due, step):
                return mark
        return None

    @cached_property
    def wallet_customers(self) -> frozenset[str]:
        return frozenset(top_up.customer for top_up in self.top_ups)

    def needs_all_documents(self, customer: str) -> bool:
        """Whether a bill run must be given all earlier documents of the customer, not only the recent ones."""
        if self.tenant.late_usage == "reissue" or customer in self.wallet_customers:
            return True
        return any(
            discount.amount is not None
            for code in self.subscriptions_of.get(customer, ())
            for discount in self.subscriptions[code].discounts
        )

    def rating_book(self) -> RatingBook:
        """What `billing/rating.py` needs of this, in columns; computed once for each value."""
        return self._rating_book

    @cached_property
    def _rating_book(self) -> RatingBook:
        from billing.book import rating_book  # late: the book is made of contracts and master data

        return rating_book(self)

    def subset(self, customers: Sequence[str]) -> MasterData:
        """The same with only these customers: what a task over a chunk needs."""
        wanted = {code for code in customers if code in self.customers}
        codes = [code for customer in sorted(wanted) for code in self.subscriptions_of.get(customer, ())]
        chosen = set(codes)
        return replace(
            self,
            customers={code: self.customers[code] for code in wanted},
            key_owners={key: owner for key, owner in self.key_owners.items() if owner in wanted},
            subscriptions={code: self.subscriptions[code] for code in codes},
            subscriptions_of={code: self.subscriptions_of[code] for code in wanted if code in self.subscriptions_of},
            top_ups=tuple(top_up for top_up in self.top_ups if top_up.customer in wanted),
            budgets={code: budget for code, budget in self.budgets.items() if budget.customer in wanted},
            ad_hoc={code: entries for code, entries in self.ad_hoc.items() if code in wanted},
            log=tuple(entry for entry in self.log if _concerns(entry[1], wanted, chosen)),
        )

    def to_bytes(self) -> bytes:
        """The tenant's form and its steps, compressed; `from_bytes` gives the same value back."""
        steps = [(number, step) for number, step in self.log]
        packed = msgspec.json.encode({"tenant": self.tenant.form, "step_count": self.step_count, "steps": steps})
        return zstandard.ZstdCompressor(level=3).compress(packed)

    @classmethod
    def from_bytes(cls, data: bytes) -> MasterData:
        packed = msgspec.json.decode(zstandard.ZstdDecompressor().decompress(data))
        builder = _Builder(cls.start(packed["tenant"]))
        for number, step in packed["steps"]:
            builder.apply(step, "", number=number)
        builder.step_count = packed["step_count"]
        return builder.finish()


def _concerns(step: Mapping[str, Any], customers: set[str], subscriptions: set[str]) -> bool:
    """Whether a step is needed for these customers: shared things always, other customers' own things never."""
    if "customer" in step:
        return step["customer"].get("code") in customers
    for kind in ("subscribe", "top_up", "budget", "ad_hoc"):
        if kind in step:
            return step[kind].get("customer") in customers
    for kind in ("change", "quantity", "override", "cancel", "pause", "resume"):
        if kind in step:
            return step[kind].get("subscription") in subscriptions
    return True


class _Builder:
    """Applies steps to copies of the maps: one copy for any number of steps."""

    def __init__(self, master: MasterData) -> None:
        self.master = master
        self.tenant = master.tenant
        self.timezone = master.tenant.timezone
        self.step_count = master.step_count
        self.tax_codes = dict(master.tax_codes)
        self.meters = dict(master.meters)
        self.plans = dict(master.plans)
        self.customers = dict(master.customers)
        self.key_owners = dict(master.key_owners)
        self.subscriptions = dict(master.subscriptions)
        self.subscriptions_of = dict(master.subscriptions_of)
        self.top_ups = list(master.top_ups)
        self.budgets = dict(master.budgets)
        self.ad_hoc = dict(master.ad_hoc)
        self.runs = list(master.runs)
        self.log = list(master.log)

    def finish(self) -> MasterData:
        return MasterData(
            tenant=self.tenant,
            step_count=self.step_count,
            tax_codes=self.tax_codes,
            meters=self.meters,
            plans=self.plans,
            customers=self.customers,
            key_owners=self.key_owners,
            subscriptions=self.subscriptions,
            subscriptions_of=self.subscriptions_of,
            top_ups=tuple(self.top_ups),
            budgets=self.budgets,
            ad_hoc=self.ad_hoc,
            runs=tuple(self.runs),
            log=tuple(self.log),
        )

    def apply(self, step: object, pointer: str, number: int | None = None) -> None:
        mistakes = Mistakes()
        form = Form(step, pointer, mistakes)
        mistakes.check()
        kinds = [key for key in form.fields if key != "at"]
        if len(kinds) != 1 or kinds[0] not in STEPS_OF_MASTER_DATA:
            known = ", ".join(sorted(STEPS_OF_MASTER_DATA))
            wrong = next((key for key in kinds if key not in STEPS_OF_MASTER_DATA), None)
            mistakes.add(pointer if wrong is None else form.at(wrong), f"a step has `at` and one of: {known}")
            mistakes.check()
        kind = kinds[0]
        at = form.moment("at", self.timezone, START)
        here = Form(form.raw(kind), form.at(kind), mistakes)
        mistakes.check()
        self.step_count = number if number is not None else self.step_count + 1
        getattr(self, f"_{kind}")(here, at, mistakes)
        mistakes.check()
        self.log.append((self.step_count, cast("Mapping[str, Any]", step)))

    # Catalog

    def _tax_code(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        try:
            code = parse_tax_code(form.fields, form.pointer)
        except InvalidInput as error:
            return mistakes.take(error)
        self.tax_codes[code.code] = code  # a new percent from a date is a new form of the same code

    def _meter(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        try:
            meter = parse_meter(form.fields, form.pointer)
        except InvalidInput as error:
            return mistakes.take(error)
        if meter.code in self.meters and self.meters[meter.code] != meter:
            return form.wrong("code", f"meter {meter.code!r} exists with another definition; meters never change")
        self.meters[meter.code] = meter

    def _publish(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        value = form.raw("plan")
        form.done()
        if value is None:
            return form.wrong("plan", "is missing")
        try:
            plan = parse_plan(value, form.at("plan"))
        except InvalidInput as error:
            return mistakes.take(error)
        for error in check_references(plan, self.meters, self.tax_codes, form.at("plan")):
            mistakes.add(error.pointer, error.detail)
        versions = self.plans.get(plan.code, ())
        self.plans[plan.code] = (*versions, replace(plan, version=len(versions) + 1))

    # Customers and subscriptions

    def _customer(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        code = form.code()
        known = self.customers.get(code)
        name = form.text("name", known.name if known else code)
        country = form.text("country", known.country if known else self.tenant.country, 2)
        if not re.fullmatch(r"[A-Z]{2}", country):
            form.wrong("country", "a country is two capital letters (ISO 3166)")
        treatment = form.choice("tax_treatment", TREATMENTS, "" if known else "domestic")
        keys = form.texts("keys") if "keys" in form.fields else (known.keys if known else ())
        extras = form.rest(CUSTOMER_EXTRAS)
        form.done()
        for key in (code, *keys):
            if self.key_owners.get(key, code) != code:
                mistakes.add(form.at("keys"), f"key {key!r} belongs to customer {self.key_owners[key]!r}")
        if mistakes.errors:
            return
        treatments = known.treatments if known else ()
        if treatment and (not treatments or treatments[-1][1] != treatment):
            treatments = (*treatments, (at, treatment))
        for key in known.keys if known else ():
            self.key_owners.pop(key, None)
        for key in (code, *keys):
            self.key_owners[key] = code
        merged = {**(known.form if known else {}), **extras}
        self.customers[code] = Customer(code, name, country, treatments, keys, merged)

    def _subscribe(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        code = form.code()
        customer = form.code("customer")
        plan_code = form.code("plan")
        anchor = form.choice("anchor", ("calendar", "anniversary"), "calendar")
        start = form.moment("start", self.timezone, at)
        quantities = self._quantities(form)
        discounts = tuple(self._discount(entry, pointer, mistakes) for pointer, entry in form.items("discounts"))
        form.rest(SUBSCRIPTION_EXTRAS)
        form.done()
        if code in self.subscriptions:
            form.wrong("code", f"subscription {code!r} exists already")
        if customer and customer not in self.customers:
            form.wrong("customer", f"there is no customer {customer!r}")
        if plan_code and plan_code not in self.plans:
            form.wrong("plan", f"there is no plan {plan_code!r}")
        if start == START:
            form.wrong("start", "a subscription needs a start (or the step an `at`)")
        if mistakes.errors:
            return
        plan = self.plans[plan_code][-1]
        charges = {charge.code for charge in plan.charges}
        for charge in quantities:
            if charge not in charges:
                mistakes.add(f"{form.at('quantities')}/{charge}", f"plan {plan_code!r} has no charge {charge!r}")
        for place, discount in enumerate(discounts):
            for charge in sorted(discount.charges - charges):
                mistakes.add(f"{form.at('discounts')}/{place}/charges", f"plan {plan_code!r} has no charge {charge!r}")
        self.subscriptions[code] = Subscription(
            code, customer, self.step_count, start, cast("Anchor", anchor), plan, quantities, discounts
        )
        self.subscriptions_of[customer] = (*self.subscriptions_of.get(customer, ()), code)

    def _quantities(self, form: Form) -> dict[str, Decimal]:
        inner = Form(form.mapping("quantities"), form.at("quantities"), form.mistakes)
        found: dict[str, Decimal] = {}
        for charge in inner.fields:
            quantity = inner.decimal(charge, least=Decimal(0))
            if quantity is not None:
                found[charge] = quantity
        return found

    def _discount(self, entry: object, pointer: str, mistakes: Mistakes) -> Discount:
        form = Form(entry, pointer, mistakes)
        percent = form.decimal("percent", required=False, above=Decimal(0))
        amount = form.decimal("amount", required=False, above=Decimal(0))
        charges = frozenset(form.texts("charges"))
        times = form.count("times", 1)
        form.done()
        if (percent is None) == (amount is None):
            mistakes.add(pointer, "a discount has either `percent` or `amount`")
        if percent is not None and percent > 100:
            form.wrong("percent", "must be at most 100")
        if percent is None and charges:
            form.wrong("charges", "only a percent discount names charges")
        if percent is not None and "times" in form.fields:
            form.wrong("times", "only an amount discount has `times`")
        return Discount(percent, amount, charges, times)

    # Changes of a subscription

    def _running(self, form: Form, at: datetime) -> Subscription | None:
        """The subscription that a step names, if a step at that time is possible."""
        code = form.code("subscription")
        subscription = self.subscriptions.get(code)
        if subscription is None:
            if code:
                form.wrong("subscription", f"there is no subscription {code!r}")
            return None
        if at < subscription.start:
            form.wrong("subscription", f"{code!r} starts only later: a change cannot come before the start")
            return None
        if subscription.steps and at < subscription.steps[-1].at:
            form.wrong("subscription", f"{code!r} has a later change already; changes come in order of time")
            return None
        if len(subscription.steps) >= SUBSCRIPTION_STEPS_MAX:
            form.wrong("subscription", f"{code!r} has {SUBSCRIPTION_STEPS_MAX} changes; that is the limit")
            return None
        end = ended_at(subscription, self.timezone)
        if end is not None and end <= at:
            form.wrong("subscription", f"{code!r} has ended: nothing can be changed after the end")
            return None
        return subscription

    def _add(self, subscription: Subscription, step: ContractStep) -> None:
        self.subscriptions[subscription.code] = replace(subscription, steps=(*subscription.steps, step))

    def _change(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        subscription = self._running(form, at)
        plan_code = form.code("plan")
        when = form.choice("when", ("now", "period_end"), "now")
        form.done()
        if plan_code and plan_code not in self.plans:
            form.wrong("plan", f"there is no plan {plan_code!r}")
        if mistakes.errors or subscription is None:
            return
        plan = self.plans[plan_code][-1]
        if plan.currency != subscription.plan.currency:
            return form.wrong("plan", "is in another currency: that needs a new subscription")
        step = ContractStep(self.step_count, at, "change", cast("Literal['now', 'period_end']", when), plan)
        self._add(subscription, step)

    def _cancel(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        subscription = self._running(form, at)
        when = form.choice("when", ("now", "period_end"), "now")
        refund = form.truth("refund_unused", True)
        form.done()
        if mistakes.errors or subscription is None:
            return
        when_ = cast("Literal['now', 'period_end']", when)
        self._add(subscription, ContractStep(self.step_count, at, "cancel", when_, refund_unused=refund))

    def _pause(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        subscription = self._running(form, at)
        form.done()
        if subscription is not None and contract(subscription, self.timezone).paused:
            form.wrong("subscription", f"{subscription.code!r} is paused already")
        if not mistakes.errors and subscription is not None:
            self._add(subscription, ContractStep(self.step_count, at, "pause"))

    def _resume(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        subscription = self._running(form, at)
        form.done()
        if subscription is not None and not contract(subscription, self.timezone).paused:
            form.wrong("subscription", f"{subscription.code!r} is not paused")
        if not mistakes.errors and subscription is not None:
            self._add(subscription, ContractStep(self.step_count, at, "resume"))

    def _quantity(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        subscription = self._running(form, at)
        charge = form.code("charge")
        quantity = form.decimal("quantity", least=Decimal(0))
        form.done()
        if mistakes.errors or subscription is None or not self._has_charge(form, subscription, charge, at):
            return
        self._add(subscription, ContractStep(self.step_count, at, "quantity", charge=charge, quantity=quantity))

    def _override(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        subscription = self._running(form, at)
        charge_code = form.code("charge")
        value = form.raw("price")
        form.done()
        price: Price | None = None
        try:
            price = parse_price(value, form.at("price"))
        except InvalidInput as error:
            mistakes.take(error)
        if mistakes.errors or subscription is None or price is None:
            return
        charge = self._has_charge(form, subscription, charge_code, at)
        if charge is None:
            return
        if contract(subscription, self.timezone).paused:
            return form.wrong("subscription", f"{subscription.code!r} is paused: resume it first")
        misfit = price_misfit(price, self.meters[charge.meter]) if charge.kind == "usage" else None
        if misfit is not None:
            return form.wrong("price", misfit)
        if charge.kind != "usage" and price.model not in ("flat", "per_unit", "graduated", "volume", "package"):
            return form.wrong("price", f"a {charge.kind} charge cannot have the price model {price.model}")
        if any(s.kind == "override" and s.charge == charge_code and s.at == at for s in subscription.steps):
            return form.wrong("charge", f"{charge_code!r} has an override of the same moment already")
        self._add(subscription, ContractStep(self.step_count, at, "override", charge=charge_code, price=price))

    def _has_charge(self, form: Form, subscription: Subscription, code: str, at: datetime) -> Charge | None:
        plan = plan_at(subscription, self.timezone, at)
        for charge in plan.charges:
            if charge.code == code:
                return charge
        form.wrong("charge", f"plan {plan.code!r} has no charge {code!r}")
        return None

    # Money and limits

    def _top_up(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        customer = form.code("customer")
        amount = form.decimal("amount", above=Decimal(0))
        kind = form.choice("kind", ("promotional", "purchased"))
        expires = form.moment("expires", self.timezone, required=False) if form.fields.get("expires") else None
        form.raw("expires")
        currency = form.text("currency", self.tenant.currency)
        form.done()
        if customer and customer not in self.customers:
            form.wrong("customer", f"there is no customer {customer!r}")
        _check_money(form, "amount", amount, currency)
        if mistakes.errors or amount is None:
            return
        kind_ = cast("Literal['promotional', 'purchased']", kind)
        self.top_ups.append(TopUp(self.step_count, at, customer, currency, kind_, amount, expires))

    def _ad_hoc(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        customer, code = form.code("customer"), form.code()
        subscription = form.code("subscription", "")
        name = form.text("name", code or "ad hoc", 256)
        amount = form.decimal("amount")
        tax = form.code("tax")
        known = self.subscriptions.get(subscription)
        currency = form.text("currency", known.plan.currency if known else self.tenant.currency)
        form.done()
        if customer and customer not in self.customers:
            form.wrong("customer", f"there is no customer {customer!r}")
        if subscription and (known is None or known.customer != customer):
            form.wrong("subscription", f"customer {customer!r} has no subscription {subscription!r}")
        if tax and tax not in self.tax_codes:
            form.wrong("tax", f"there is no tax code {tax!r}")
        if code == "minimum":
            form.wrong("code", "'minimum' is the name of a plan's own minimum")
        _check_money(form, "amount", amount, currency)
        if at == START:
            mistakes.add(form.pointer, "the step needs an `at`: the day of the charge")
        if mistakes.errors or amount is None:
            return
        entry = AdHoc(self.step_count, at, customer, subscription, code, name, amount, tax, currency)
        self.ad_hoc[customer] = (*self.ad_hoc.get(customer, ()), entry)

    def _budget(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        code = form.code()
        customer = form.code("customer")
        amount = form.decimal("amount", above=Decimal(0))
        period = form.choice("period", ("day", "week", *MONTHS), "month")
        thresholds: list[Decimal] = []
        for pointer, entry in form.items("thresholds", most=100):
            number = Form({"threshold": entry}, "", Mistakes()).decimal("threshold", above=Decimal(0))
            if number is None or number <= 0:
                mistakes.add(pointer, "a percent above 0 is needed, as text")
            else:
                thresholds.append(number)
        action = form.choice("action", ("notify", "block"), "notify")
        form.done()
        if customer and customer not in self.customers:
            form.wrong("customer", f"there is no customer {customer!r}")
        if code in self.budgets and self.budgets[code].customer != customer:
            form.wrong("code", f"budget {code!r} belongs to another customer")
        if mistakes.errors or amount is None:
            return
        self.budgets[code] = Budget(
            code,
            self.step_count,
            at,
            customer,
            amount,
            period,
            tuple(sorted(set(thresholds))),
            cast("Literal['notify', 'block']", action),
        )

    def _bill_run(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        """A finalised run: what was due up to its cut is billed. `steps` = how many steps it had seen (default all)."""
        up_to = form.moment("up_to", self.timezone)
        steps = form.count("steps", self.step_count, 0)
        parked = frozenset(form.texts("parked"))
        form.rest(frozenset({"document_date", "id"}))
        form.done()
        if not mistakes.errors and at != START and up_to > at:
            form.wrong("up_to", "must not lie after the clock")
        if mistakes.errors:
            return
        self.runs.append(RunMark(self.step_count, at, up_to, steps, parked))


def _tenant(value: object, pointer: str, mistakes: Mistakes) -> Tenant:
    form = Form(value, pointer, mistakes)
    currency = form.text("currency", "EUR")
    _check_money(form, "currency", None, currency)
    timezone = form.text("timezone", "UTC")
    try:
        zone(timezone)
    except TimeInvalid as error:
        form.wrong("timezone", str(error))
    country = form.text("country", "DE")
    if not re.fullmatch(r"[A-Z]{2}", country):
        form.wrong("country", "a country is two capital letters (ISO 3166)")
    late_usage = form.choice("late_usage", ("delta", "reissue", "reject"), "delta")
    future_limit = _length(form, "future_limit", timedelta(hours=1))
    form.rest(TENANT_EXTRAS)
    form.done()
    return Tenant(currency, timezone, country, cast("LateUsage", late_usage), future_limit, form.fields)


def _length(form: Form, key: str, default: timedelta) -> timedelta:
    """`30m`, `1h`, `1d`."""
    text = form.text(key, "")
    if not text:
        return default
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if found is None:
        form.wrong(key, "a length like 30m, 1h or 1d is needed")
        return default
    unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[found[2]]
    return timedelta(**{unit: int(found[1])})


def _check_money(form: Form, key: str, amount: Decimal | None, currency: str) -> None:
    try:
        digits = minor_digits(currency)
    except InvalidInput as error:
        form.wrong("currency", error.detail)
        return
    if amount is not None and amount != amount.quantize(Decimal(1).scaleb(-digits)):
        form.wrong(key, f"has more than {digits} decimals, {currency} has no smaller unit")
