"""Master data of one tenant: all that rating and billing need, built from dated steps in the scenario's forms.

Owns what the steps add up to; their forms and what each does are `billing/steps/`, what they mean for periods and
amounts `billing/contracts.py`. A step never changes an earlier one: the n-th step has number n for ever, so "as known
at step n" can be asked later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import zstandard

from billing.catalog import Meter, Plan, TaxCode
from billing.contracts import Subscription
from billing.errors import NotFound
from billing.thresholds import Threshold

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

DocumentPer = Literal["customer", "subscription", "order", "cost_centre"]  # what goes on one document
DOCUMENT_PER: tuple[DocumentPer, ...] = ("customer", "subscription", "order", "cost_centre")
PAYERS_MAX = 10  # customers who pay for each other in a row
STEPS_OF_SUBSCRIPTIONS = (  # those that name one
    *("change", "quantity", "override", "cancel", "pause", "resume"),
    *("add_on", "remove_add_on", "references"),
)


@dataclass(frozen=True)
class Tenant:
    currency: str
    timezone: str
    country: str
    late_usage: LateUsage
    future_limit: timedelta
    form: Mapping[str, Any]
    document_per: DocumentPer = "customer"  # of customers who say nothing else
    unique_within_customer: tuple[str, ...] = ()  # sources that number their events for each customer anew
    has_reissued: bool = False  # late usage was billed by making invoices again before, and is no more


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
    thresholds: tuple[Threshold, ...]  # ascending by what must be spent
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
    closes: bool = False  # late usage was rejected then: what comes after the cut for what is billed by it, is late

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
        from billing.steps.tenant import read_tenant  # late: steps are made of master data

        return cls(read_tenant(form, pointer))

    def apply(self, step: Mapping[str, Any], pointer: str = "") -> MasterData:
        """One more step; raises InvalidInput naming every bad field, and changes nothing then."""
        return self._with_steps([(step, pointer, None)], fresh=True)

    def apply_all(self, steps: Iterable[Mapping[str, Any]], pointer: str = "", *, fresh: bool = False) -> MasterData:
        """Many steps at once, all or none; pointers start with the step's place (`/17/subscribe/plan`).

        `fresh` ones have not been stored yet: they are also checked for what was once taken without a look.
        """
        numbered = ((step, f"{pointer}/{place}", None) for place, step in enumerate(steps))
        return self._with_steps(numbered, fresh=fresh)

    def _with_steps(
        self, steps: Iterable[tuple[Mapping[str, Any], str, int | None]], *, fresh: bool = False
    ) -> MasterData:
        from billing.steps.apply import apply_step  # late: steps are made of master data
        from billing.steps.draft import Draft

        draft = Draft(self, fresh=fresh)
        for step, pointer, number in steps:
            apply_step(draft, step, pointer, number)
        return draft.finish()

    def customer(self, code: str) -> Customer:
        if code not in self.customers:
            raise NotFound(f"there is no customer {code!r}", customer=code)
        return self.customers[code]

    def document_per(self, customer: str) -> DocumentPer:
        """What goes on one document of a customer: as he says, else as the tenant does."""
        return self.customers[customer].form.get("document_per") or self.tenant.document_per

    def keys_of(self, customer: str) -> tuple[str, ...]:
        return (customer, *self.customers[customer].keys)

    def plan(self, code: str) -> Plan:
        """The newest version of a plan."""
        if code not in self.plans:
            raise NotFound(f"there is no plan {code!r}", plan=code)
        return self.plans[code][-1]

    @cached_property
    def closing_runs(self) -> tuple[RunMark, ...]:
        """The runs that let no usage come late, in order. What a run closed stays closed, whatever the tenant wants
        later: so no event that counted is ever late, and none that was late counts."""
        return tuple(mark for mark in self.runs if mark.closes)

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
        if self.tenant.late_usage == "reissue" or self.tenant.has_reissued:
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
        known = cls.start(packed["tenant"])._with_steps((step, "", number) for number, step in packed["steps"])
        return replace(known, step_count=packed["step_count"])


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
