"""What the pages of customers and subscriptions show, read from the master data.

Owns no rule: segments, ends and periods come from `billing/contracts.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from billing.contracts import FOREVER, Contract, Segment, Subscription, contracts_of
from billing.master import Customer, MasterData
from deployments.front.formats import Formats
from deployments.front.texts import Texts


@dataclass(frozen=True)
class CustomerRow:
    code: str
    name: str
    country: str
    treatment: str
    subscriptions: int
    state: str

    @property
    def export(self) -> Mapping[str, Any]:
        return {
            "code": self.code, "name": self.name, "country": self.country, "tax_treatment": self.treatment,
            "subscriptions": self.subscriptions, "state": self.state,
        }  # fmt: skip


CUSTOMER_COLUMNS = ("code", "name", "country", "tax_treatment", "subscriptions", "state")


@dataclass(frozen=True)
class SubscriptionRow:
    code: str
    customer: str
    customer_name: str
    plan: str
    plan_name: str
    version: int
    start: datetime
    end: datetime | None
    state: str

    @property
    def export(self) -> Mapping[str, Any]:
        return {
            "code": self.code, "customer": self.customer, "customer_name": self.customer_name, "plan": self.plan,
            "version": self.version, "start": self.start, "end": self.end, "state": self.state,
        }  # fmt: skip


SUBSCRIPTION_COLUMNS = ("code", "customer", "customer_name", "plan", "version", "start", "end", "state")


@dataclass(frozen=True)
class Stretch:
    """One segment on the time line: x and width in percent of the shown time."""

    style: str
    x: Decimal
    width: Decimal
    label: str
    label_x: Decimal


@dataclass(frozen=True)
class Lane:
    code: str
    shown: str  # the code, or the add-on's
    name: str
    label: str
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True)
class TimeLine:
    first: datetime
    last: datetime
    today: Decimal
    ticks: tuple[tuple[Decimal, str], ...]
    lanes: tuple[Lane, ...]


def end_of(contract: Contract) -> datetime | None:
    return None if contract.end >= FOREVER else contract.end


def state_of(contract: Contract, now: datetime) -> str:
    end = end_of(contract)
    if contract.subscription.start > now:
        return "future"
    return "ended" if end is not None and end <= now else "active"


def contract_of(master: MasterData, subscription: Subscription) -> Contract:
    return contracts_of(subscription, master.tenant.timezone)[0]


def customer_row(master: MasterData, customer: Customer, now: datetime) -> CustomerRow:
    codes = master.subscriptions_of.get(customer.code, ())
    states = {state_of(contract_of(master, master.subscriptions[code]), now) for code in codes}
    state = "active" if "active" in states else "future" if "future" in states else "ended" if states else ""
    return CustomerRow(customer.code, customer.name, customer.country, customer.treatment_at(now), len(codes), state)


def subscription_row(master: MasterData, subscription: Subscription, now: datetime) -> SubscriptionRow:
    contract = contract_of(master, subscription)
    segment = contract.segment_at(max(now, subscription.start))
    return SubscriptionRow(
        subscription.code, subscription.customer, master.customers[subscription.customer].name, segment.plan.code,
        segment.plan.name or segment.plan.code, segment.plan.version, subscription.start, end_of(contract),
        state_of(contract, now),
    )  # fmt: skip


def subscription_name(master: MasterData, code: str) -> str:
    """What the subscription is called: its own name if its form has one."""
    for form in (step["subscribe"] for _, step in master.log if step.get("subscribe", {}).get("code") == code):
        return str(form.get("name") or code)
    return code


def time_line(master: MasterData, codes: Sequence[str], now: datetime, t: Texts, f: Formats) -> TimeLine | None:
    """The subscriptions' plan segments side by side: a year back (or from the first start) to half a year ahead."""
    if not codes:
        return None
    contracts = [one for code in codes for one in contracts_of(master.subscriptions[code], master.tenant.timezone)]
    year, month = f.local(now).year, f.local(now).month
    earliest = min(contract.subscription.start for contract in contracts)
    first = max(_month(year, month - 12), min(_floor(f.local(earliest)), _month(year, month - 3)))
    last = _month(year, month + 6)
    length = Decimal(int((last - first).total_seconds()))

    def at(moment: datetime) -> Decimal:
        inside = min(max(moment, first), last)
        return (Decimal(int((inside - first).total_seconds())) * 100 / length).quantize(Decimal("0.01"))

    lanes: list[Lane] = []
    for contract in contracts:
        stretches: list[Stretch] = []
        for segment in contract.segments:
            start, end = segment.start, min(segment.end, contract.end)
            if end <= first or start >= last or end <= start:
                continue
            x = at(start)
            style = "fe" if end <= now else "plan" if start > now else "fp"
            width = at(end) - x
            label = segment_label(segment) if width >= 14 else ""
            stretches.append(Stretch(style, x, width, label, x + Decimal("1")))
        code, add_on = contract.key
        label = "; ".join(segment_words(segment, contract, t, f) for segment in contract.segments)
        lanes.append(
            Lane(code, f"+ {add_on}" if add_on else code, segment_label(contract.segments[-1]), label, tuple(stretches))
        )
    ticks: list[tuple[Decimal, str]] = []
    moment = first
    while moment < last:
        if moment.month in (1, 7):
            words = t(f"month.short.{moment.month}")
            ticks.append((at(moment), f"{words} {moment.year % 100:02}" if moment.month == 1 else words))
        moment = _month(moment.year, moment.month + 1)
    today = at(now)
    shown = tuple(tick for tick in ticks if abs(tick[0] - today) > 9 and tick[0] < 93)
    return TimeLine(first, last, today, shown, tuple(lanes))


def segment_label(segment: Segment) -> str:
    """Plan, version and phase."""
    plan = segment.plan
    phase = next((one.name or one.code for one in plan.whole.phases if one.code == plan.phase), "")
    return f"{plan.name or plan.code} {plan.version}{', ' if phase else ''}{phase}"


def segment_words(segment: Segment, contract: Contract, t: Texts, f: Formats) -> str:
    name = t("contracts.plan_version", plan=segment.plan.name or segment.plan.code, version=segment.plan.version)
    end = min(segment.end, contract.end)
    if end >= FOREVER:
        return t("contracts.since", what=name, day=f.day(f.local(segment.start).date()))
    return t("contracts.during", what=name, period=f.period(segment.start, end))


def _floor(moment: datetime) -> datetime:
    return datetime(moment.year, moment.month, 1, tzinfo=UTC)


def _month(year: int, month: int) -> datetime:
    years, months = divmod(month - 1, 12)
    return datetime(year + years, months + 1, 1, tzinfo=UTC)
