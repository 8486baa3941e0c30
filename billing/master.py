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

from billing.catalog import TAX_BEHAVIORS, Charge, Meter, Plan, Price, TaxCode
from billing.catalog_forms import check_references, parse_meter, parse_plan, parse_price, parse_tax_code, price_misfit
from billing.contracts import (
    FOREVER,
    AddOn,
    ContractStep,
    Discount,
    Subscription,
    contract,
    contracts_of,
    ended_at,
    plan_at,
)
from billing.errors import InvalidInput, NotFound
from billing.forms import CODE_LENGTH_MAX, Form, Mistakes, escape
from billing.money import minor_digits
from billing.periods import (
    MONTHS,
    Anchor,
    TimeInvalid,
    local_date,
    zone,
)
from billing.phases import TRIAL_ENDS, TrialEnd

if TYPE_CHECKING:
    from billing.rating_book import RatingBook

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
ADD_ON_EXTRAS = frozenset({"name", "note"})
ADD_ONS_MAX = 1_000  # of one subscription
SUBSCRIPTION_STEPS_MAX = 10_000  # of one subscription
PAYERS_MAX = 10  # customers who pay for each other in a row
STEPS_OF_SUBSCRIPTIONS = (  # those that name one
    *("change", "quantity", "override", "cancel", "pause", "resume"),
    *("add_on", "remove_add_on"),
)
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
        "add_on",
        "remove_add_on",
        "top_up",
        "budget",
        "ad_hoc",
        "bill_run",
    }
)
STEPS_OF_RUNS = frozenset({"bill_run_reversed"})  # what only the driver of bill runs writes


@dataclass(frozen=True)
class Tenant:
    currency: str
    timezone: str
    country: str
    late_usage: LateUsage
    future_limit: timedelta
    form: Mapping[str, Any]


@dataclass(frozen=True)
class Payer:
    """Who pays for a customer from a moment on: another customer's code, empty for himself."""

    since: datetime
    code: str


@dataclass(frozen=True)
class Customer:
    code: str
    name: str
    country: str
    treatments: tuple[tuple[datetime, str], ...]  # in order; the first one also counts before its own time
    keys: tuple[str, ...]  # further customer keys that events may carry; the code itself always counts
    form: Mapping[str, Any]
    payers: tuple[Payer, ...] = ()  # in order; before the first one he pays himself

    def treatment_at(self, moment: datetime) -> str:
        found = self.treatments[0][1]
        for since, treatment in self.treatments:
            if since > moment:
                break
            found = treatment
        return found

    def payer_at(self, moment: datetime) -> str:
        """The code of who pays for him then, his own where nobody else does. That one may have a payer, too."""
        found = self.code
        for one in self.payers:
            if one.since > moment:
                break
            found = one.code or self.code
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
    amount: Decimal  # in the currency's minor unit
    tax: str
    currency: str
    inclusive: bool = False  # whether the amount contains the tax


@dataclass(frozen=True)
class Budget:
    code: str
    number: int
    at: datetime
    customer: str
    amount: Decimal
    period: str
    thresholds: tuple[Decimal, ...]  # percent, ascending
    action: Literal["notify", "webhook", "block"]


@dataclass(frozen=True)
class RunMark:
    """A finalised bill run: everything due at or before `up_to` that step `steps` or an earlier one made is billed."""

    number: int
    at: datetime
    up_to: datetime
    steps: int
    parked: frozenset[str] = frozenset()  # customers that it left out
    cut: Mapping[int, int] | None = None  # lane -> last number that it read of the usage log; None: not known here

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
    published: Mapping[str, datetime] = field(default_factory=dict[str, datetime])  # the newest version of each plan
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

    def payer_at(self, customer: str, moment: datetime) -> str:
        """The customer who gets the documents with this customer's lines that are made then; himself without a payer.

        The payer's payer pays for both, and so on (at most PAYERS_MAX deep; a circle is refused when it is set).
        """
        for _ in range(PAYERS_MAX + 1):
            payer = self.customers[customer].payer_at(moment)
            if payer == customer:
                return customer
            customer = payer
        raise AssertionError("payers are no circle and not deeper than the limit")

    def family(self, customer: str) -> tuple[str, ...]:
        """All customers whose documents hang together because one pays, or ever paid or will pay, for another."""
        return self.families.get(customer, (customer,))

    @cached_property
    def families(self) -> Mapping[str, tuple[str, ...]]:
        """The family of every customer who has one, codes in order."""
        linked: dict[str, set[str]] = {}
        for customer in self.customers.values():
            for payer in customer.payers:
                if payer.code in self.customers:  # a subset may leave out who is not asked for
                    linked.setdefault(customer.code, set()).add(payer.code)
                    linked.setdefault(payer.code, set()).add(customer.code)
        found: dict[str, tuple[str, ...]] = {}
        for code in linked:
            if code in found:
                continue
            members, waiting = {code}, [code]
            while waiting:  # bounded by the number of customers
                fresh = linked[waiting.pop()] - members
                members |= fresh
                waiting.extend(fresh)
            family = tuple(sorted(members))
            found.update(dict.fromkeys(family, family))
        return found

    @cached_property
    def wallet_customers(self) -> frozenset[str]:
        return frozenset(top_up.customer for top_up in self.top_ups)

    def needs_all_documents(self, customer: str) -> bool:
        """Whether a bill run must be given all earlier documents of the customer's family, not only the recent ones."""
        if self.tenant.late_usage == "reissue":
            return True
        family = self.families.get(customer)
        if family is None:
            return self._has_credit_or_discount(customer)
        known: dict[str, bool] = self.__dict__.setdefault("_families_in_need", {})  # a cache beside the frozen fields
        if family[0] not in known:
            known[family[0]] = any(self._has_credit_or_discount(member) for member in family)
        return known[family[0]]

    def _has_credit_or_discount(self, customer: str) -> bool:
        return customer in self.wallet_customers or any(
            discount.amount is not None
            for code in self.subscriptions_of.get(customer, ())
            for owner in (self.subscriptions[code], *self.subscriptions[code].add_ons)
            for discount in owner.discounts
        )

    def rating_book(self) -> RatingBook:
        """What rating needs of this (`billing/rating_book.py`), in columns; computed once for each value."""
        return self._rating_book

    @cached_property
    def _rating_book(self) -> RatingBook:
        from billing.book import rating_book  # late: the book is made of contracts and master data

        return rating_book(self)

    def subset(self, customers: Sequence[str]) -> MasterData:
        """The same with only these customers and their families: what a task over a chunk needs."""
        wanted = {member for code in customers if code in self.customers for member in self.family(code)}
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
    for kind in STEPS_OF_SUBSCRIPTIONS:
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
        self.published = master.published
        self.customers = dict(master.customers)
        self.key_owners = dict(master.key_owners)
        self.paid_by: dict[str, set[str]] = {}  # who pays, or ever paid, for whom; the empty code for those who do not
        for customer in master.customers.values():
            for payer in customer.payers:
                self.paid_by.setdefault(payer.code, set()).add(customer.code)
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
            published=self.published,
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
        if len(kinds) != 1 or kinds[0] not in STEPS_OF_MASTER_DATA | STEPS_OF_RUNS:
            known = ", ".join(sorted(STEPS_OF_MASTER_DATA))
            wrong = next((key for key in kinds if key not in STEPS_OF_MASTER_DATA | STEPS_OF_RUNS), None)
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
        # A new percent from a date is a new form of the same code.
        self.tax_codes[code.code] = replace(code, step=self.step_count)

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
        since = self.published.get(plan.code, START)
        if versions and at < since:
            place = f"{form.pointer.rpartition('/')[0]}/at"
            return mistakes.add(place, f"lies before version {len(versions)} of plan {plan.code!r} ({since:%Y-%m-%d})")
        self.published = {**self.published, plan.code: at}
        self.plans[plan.code] = (*versions, replace(plan, version=len(versions) + 1))

    def _version(self, form: Form, code: str, moment: datetime) -> Plan | None:
        """The newest version of a plan that a contract may take which begins at the moment."""
        day = local_date(moment, self.timezone)
        for plan in reversed(self.plans[code]):
            if plan.effective_from is None or plan.effective_from <= day:
                return plan
        first = min(plan.effective_from for plan in self.plans[code] if plan.effective_from is not None)
        form.wrong("plan", f"plan {code!r} is effective only from {first}, the contract begins on {day}")
        return None

    # Customers and subscriptions

    def _customer(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        code = form.code()
        known = self.customers.get(code)
        name = form.text("name", known.name if known else code)
        country = form.text("country", known.country if known else self.tenant.country, 2)
        if not re.fullmatch(r"[A-Z]{2}", country):
            form.wrong("country", "a country is two capital letters (ISO 3166)")
        treatment = form.choice("tax_treatment", TREATMENTS, "" if known else "domestic")
        payers = self._payers(form, code, known, at)
        keys = form.texts("keys") if "keys" in form.fields else (known.keys if known else ())
        extras = form.rest(CUSTOMER_EXTRAS)
        form.done()
        for place, key in ((form.at("code"), code), *((f"{form.at('keys')}/{n}", key) for n, key in enumerate(keys))):
            if self.key_owners.get(key, code) != code:
                mistakes.add(place, f"key {key!r} belongs to customer {self.key_owners[key]!r}")
            elif not key or len(key) > CODE_LENGTH_MAX or not key.isprintable():
                mistakes.add(place, f"a key has 1 to {CODE_LENGTH_MAX} printable characters")
        treatments = known.treatments if known else ()
        if treatments and treatment not in ("", treatments[-1][1]) and at < treatments[-1][0]:
            form.wrong("tax_treatment", f"{code!r} has a later one already; treatments come in order of time")
        if mistakes.errors:
            return
        if treatment and (not treatments or treatments[-1][1] != treatment):
            treatments = (*treatments, (at, treatment))
        for key in known.keys if known else ():
            self.key_owners.pop(key, None)
        for key in (code, *keys):
            self.key_owners[key] = code
        merged = {**(known.form if known else {}), **extras}
        self.customers[code] = Customer(code, name, country, treatments, keys, merged, payers)
        for payer in payers:
            self.paid_by.setdefault(payer.code, set()).add(code)

    def _payers(self, form: Form, code: str, known: Customer | None, at: datetime) -> tuple[Payer, ...]:
        """Who pays from when on: `payer` names another customer, null (or nobody) ends it, without the key it stays."""
        before = known.payers if known else ()
        if "payer" not in form.fields:
            return before
        payer = form.code("payer") if form.fields["payer"] is not None else ""
        form.raw("payer")
        if payer and payer not in self.customers and payer != code:
            form.wrong("payer", f"there is no customer {payer!r}")
            return before
        if payer == (before[-1].code if before else ""):
            return before
        if before and at < before[-1].since:
            form.wrong("payer", f"{code!r} has a later payer already; payers come in order of time")
            return before
        found = (*(one for one in before if one.since < at), Payer(at, payer))
        above, circle = self._payers_above(code, payer, at) if payer else (0, "")
        if circle:
            form.wrong("payer", f"{payer!r} cannot pay for {code!r}: {circle} is a circle")
            return before
        if above + self._depth_below(code) > PAYERS_MAX:
            form.wrong("payer", f"at most {PAYERS_MAX} customers may pay for each other in a row")
            return before
        return found

    def _payers_above(self, code: str, payer: str, at: datetime) -> tuple[int, str]:
        """How many payers in a row there would be above a customer from a moment on, and the circle if it is one."""
        row: dict[str, tuple[datetime, str]] = {payer: (at, f"{code} -> {payer}")}
        for depth in range(1, PAYERS_MAX + 2):
            if code in row:
                return depth, row[code][1]
            following: dict[str, tuple[datetime, str]] = {}
            for one, (since, shown) in row.items():
                entries = self.customers[one].payers
                for place, entry in enumerate(entries):
                    over = place + 1 < len(entries) and entries[place + 1].since <= since
                    if entry.code and not over:
                        following.setdefault(entry.code, (max(since, entry.since), f"{shown} -> {entry.code}"))
            if not following:
                return depth, ""
            row = following
        return PAYERS_MAX + 1, ""

    def _depth_below(self, code: str) -> int:
        """How many customers in a row this one pays for, at any time."""
        depth, row = 0, {code}
        while row and depth <= PAYERS_MAX:
            row = {child for one in row for child in self.paid_by.get(one, ())}
            depth += bool(row)
        return depth

    def _subscribe(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        code = form.code()
        customer = form.code("customer")
        plan_code = form.code("plan")
        anchor = form.choice("anchor", ("calendar", "anniversary"), "calendar")
        start = form.moment("start", self.timezone, at)
        quantities = self._quantities(form)
        discounts = tuple(self._discount(entry, pointer, mistakes) for pointer, entry in form.items("discounts"))
        trial_end = form.choice("trial_end", TRIAL_ENDS, "")
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
        plan = self._version(form, plan_code, start)
        if plan is None:
            return
        self._check_charges(form, plan, quantities, discounts)
        if trial_end and not (plan.phases and plan.phases[0].free):
            form.wrong("trial_end", f"plan {plan_code!r} does not begin with a free phase")
        self.subscriptions[code] = Subscription(
            code, customer, self.step_count, start, cast("Anchor", anchor), plan, quantities, discounts,
            trial_end=cast("TrialEnd", trial_end) if trial_end else None,
        )  # fmt: skip
        self.subscriptions_of[customer] = (*self.subscriptions_of.get(customer, ()), code)

    def _check_charges(
        self, form: Form, plan: Plan, quantities: Mapping[str, Decimal], discounts: Sequence[Discount]
    ) -> None:
        """Quantities and discounts name charges of the plan."""
        charges = plan.charge_codes
        for charge in quantities:
            if charge not in charges:
                form.mistakes.add(
                    f"{form.at('quantities')}/{escape(charge)}", f"plan {plan.code!r} has no charge {charge!r}"
                )
        for place, discount in enumerate(discounts):
            _check_money(
                Form({}, f"{form.at('discounts')}/{place}", form.mistakes), "amount", discount.amount, plan.currency
            )
            for charge in sorted(discount.charges - charges):
                at = f"{form.at('discounts')}/{place}/charges"
                form.mistakes.add(at, f"plan {plan.code!r} has no charge {charge!r}")

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
        plan = self._version(form, plan_code, at)
        if plan is None:
            return
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
        before = ended_at(subscription, self.timezone)
        step = ContractStep(self.step_count, at, "cancel", when_, refund_unused=refund)
        after = replace(subscription, steps=(*subscription.steps, step))
        if before is not None and when == "period_end" and before == ended_at(after, self.timezone):
            return form.wrong("subscription", f"{subscription.code!r} is cancelled already, to {before:%Y-%m-%d}")
        self.subscriptions[subscription.code] = after

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
        charge, add_on = form.code("charge"), form.code("add_on", "")
        quantity = form.decimal("quantity", least=Decimal(0))
        form.done()
        if mistakes.errors or subscription is None or not self._has_charge(form, subscription, add_on, charge, at):
            return
        step = ContractStep(self.step_count, at, "quantity", charge=charge, quantity=quantity, add_on=add_on)
        self._add(subscription, step)

    def _override(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        subscription = self._running(form, at)
        charge_code, add_on = form.code("charge"), form.code("add_on", "")
        value = form.raw("price")
        form.done()
        price: Price | None = None
        try:
            price = parse_price(value, form.at("price"))
        except InvalidInput as error:
            mistakes.take(error)
        if mistakes.errors or subscription is None or price is None:
            return
        charge = self._has_charge(form, subscription, add_on, charge_code, at)
        if charge is None:
            return
        if charge.included and price.model in ("percentage", "event_amount"):
            return form.wrong("price", f"{price.model} does not go with the charge's `included`")
        if contract(subscription, self.timezone).paused:
            return form.wrong("subscription", f"{subscription.code!r} is paused: resume it first")
        misfit = price_misfit(price, self.meters[charge.meter]) if charge.kind == "usage" else None
        if misfit is not None:
            return form.wrong("price", misfit)
        if charge.kind != "usage" and price.model not in ("flat", "per_unit", "graduated", "volume", "package"):
            return form.wrong("price", f"a {charge.kind} charge cannot have the price model {price.model}")
        same = (add_on, charge_code, at)
        changes = [place for place, s in enumerate(subscription.steps, start=1) if s.kind == "change" and not add_on]
        since = subscription.steps[max(changes, default=0) :]  # an override ends with its plan
        if any(s.kind == "override" and (s.add_on, s.charge, s.at) == same for s in since):
            return form.wrong("charge", f"{charge_code!r} has an override of the same moment already")
        step = ContractStep(self.step_count, at, "override", charge=charge_code, price=price, add_on=add_on)
        self._add(subscription, step)

    def _has_charge(
        self, form: Form, subscription: Subscription, add_on: str, code: str, at: datetime
    ) -> Charge | None:
        """The charge of the subscription's plan at that time, or of the add-on's, in this phase or another one."""
        if add_on:
            running = next((one for one in subscription.add_ons if one.code == add_on), None)
            if running is None:
                form.wrong("add_on", f"{subscription.code!r} has no add-on {add_on!r}")
                return None
            if self._add_on_end(subscription, add_on) <= at:
                form.wrong("add_on", f"{add_on!r} has ended: nothing can be changed after the end")
                return None
            if at < running.start:
                form.wrong("add_on", f"{add_on!r} starts only later: a change cannot come before the start")
                return None
            plan = running.plan
        else:
            plan = plan_at(subscription, self.timezone, at).whole
        found = plan.charge(code) or next((one for _, one in plan.versions_of_charges if one.code == code), None)
        if found is None:
            form.wrong("charge", f"plan {plan.code!r} has no charge {code!r}")
        elif found.kind == "one_off":
            form.wrong("charge", f"{code!r} is due once, with the terms of the start: nothing of it can be changed")
            return None
        return found

    def _add_on_end(self, subscription: Subscription, code: str) -> datetime:
        return next(one.end for one in contracts_of(subscription, self.timezone) if one.subscription.add_on == code)

    def _add_on(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        subscription = self._running(form, at)
        code, plan_code = form.code(), form.code("plan")
        start = form.moment("start", self.timezone, at)
        end = form.moment("end", self.timezone) if form.fields.get("end") is not None else FOREVER
        form.raw("end")
        quantities = self._quantities(form)
        discounts = tuple(self._discount(entry, pointer, mistakes) for pointer, entry in form.items("discounts"))
        form.rest(ADD_ON_EXTRAS)
        form.done()
        if plan_code and plan_code not in self.plans:
            form.wrong("plan", f"there is no plan {plan_code!r}")
        if end <= start:
            form.wrong("end", "must be after the start")
        if mistakes.errors or subscription is None:
            return
        plan = self._version(form, plan_code, start)
        if plan is None:
            return
        if plan.currency != subscription.plan.currency:
            form.wrong("plan", "is in another currency: that needs a subscription of its own")
        if any(one.code == code for one in subscription.add_ons):
            form.wrong("code", f"{subscription.code!r} has an add-on {code!r} already; a code is used once")
        if len(subscription.add_ons) >= ADD_ONS_MAX:
            form.wrong("code", f"{subscription.code!r} has {ADD_ONS_MAX} add-ons; that is the limit")
        self._check_charges(form, plan, quantities, discounts)
        if start < subscription.start:
            form.wrong("start", f"{subscription.code!r} starts only later: an add-on cannot come before it")
        ends = ended_at(subscription, self.timezone)
        if ends is not None and start >= ends:
            form.wrong("start", f"{subscription.code!r} ends before that")
        if mistakes.errors:
            return
        made = AddOn(code, self.step_count, plan, start, end, quantities, discounts)
        self.subscriptions[subscription.code] = replace(subscription, add_ons=(*subscription.add_ons, made))

    def _remove_add_on(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        subscription = self._running(form, at)
        code = form.code()
        when = form.choice("when", ("now", "period_end"), "now")
        refund = form.truth("refund_unused", True)
        form.done()
        if mistakes.errors or subscription is None:
            return
        add_on = next((one for one in subscription.add_ons if one.code == code), None)
        if add_on is None:
            return form.wrong("code", f"{subscription.code!r} has no add-on {code!r}")
        if at < add_on.start:
            return form.wrong("code", f"{code!r} starts only later: it cannot be removed before its start")
        if self._add_on_end(subscription, code) <= at:
            return form.wrong("code", f"{code!r} has ended already")
        when_ = cast("Literal['now', 'period_end']", when)
        step = ContractStep(self.step_count, at, "remove_add_on", when_, refund_unused=refund, add_on=code)
        self._add(subscription, step)

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
        if expires is not None and expires <= at:
            form.wrong("expires", "must be after the top-up: this credit could never be used")
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
        # An amount for a subscription is in the terms of its plan, unless it says otherwise.
        plan = plan_at(known, self.timezone, at) if known and at >= known.start else known.plan if known else None
        behavior = form.choice("tax_behavior", TAX_BEHAVIORS, plan.tax_behavior if plan else "exclusive")
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
        inclusive = behavior == "inclusive"
        entry = AdHoc(self.step_count, at, customer, subscription, code, name, amount, tax, currency, inclusive)
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
        action = form.choice("action", ("notify", "webhook", "block"), "notify")
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
            cast("Literal['notify', 'webhook', 'block']", action),
        )

    def _bill_run(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        """A finalised run: what was due up to its cut is billed. `steps` = how many steps it had seen (default all)."""
        up_to = form.moment("up_to", self.timezone)
        steps = form.count("steps", self.step_count, 0, most=self.step_count)
        parked = frozenset(form.texts("parked"))
        positions = form.mapping("cut")
        if not all(lane.isdecimal() and isinstance(number, int) for lane, number in positions.items()):
            form.wrong("cut", "needs the last number of each lane")
            return
        cut = {int(lane): number for lane, number in positions.items()} or None
        form.rest(frozenset({"document_date", "id"}))
        form.done()
        if not mistakes.errors and at != START and up_to > at:
            form.wrong("up_to", "must not lie after the clock")
        if mistakes.errors:
            return
        self.runs.append(RunMark(self.step_count, at, up_to, steps, parked, cut))

    def _bill_run_reversed(self, form: Form, at: datetime, mistakes: Mistakes) -> None:
        """The last finalised run was taken back: what it billed is not billed any more. `mark` is its step."""
        mark = form.count("mark", 0, 0, most=self.step_count)
        form.rest(frozenset({"id"}))
        form.done()
        if not mistakes.errors and (not self.runs or self.runs[-1].number != mark):
            form.wrong("mark", "is not the last bill run")
        if not mistakes.errors:
            self.runs.pop()


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
