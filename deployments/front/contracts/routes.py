"""Pages of customers and subscriptions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from billing.contracts import ContractStep, Subscription
from billing.errors import NotFound
from billing.master import Customer, MasterData
from deployments.front import usage_view
from deployments.front.contracts import budgets, references, terms, view, wallets
from deployments.front.formats import Formats
from deployments.front.lists import EXPORT_ROWS_MAX, Sort, export, window
from deployments.front.page import Front, Visit
from deployments.front.prices import view as prices
from deployments.front.texts import Texts
from storage.sql import overview

SEARCH_MAX = 200
KEYS_SHOWN = 5
USAGE_DAYS = 31


@dataclass(frozen=True)
class CustomerFilter:
    search: str
    country: str


@dataclass(frozen=True)
class SubscriptionFilter:
    search: str
    plan: str
    state: str


def routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    visitor = Depends(front.signed_in)

    @router.get("/customers")
    def customers(
        visit: Annotated[Visit, visitor],
        q: Annotated[str, Query(max_length=SEARCH_MAX)] = "",
        country: Annotated[str, Query(max_length=2)] = "",
        sort: str = "name",
        after: str | None = None,
        format: str = "",
    ) -> Response:
        visit.need("contracts:read")
        master = front.master(visit)
        needle = q.strip().casefold()
        chosen = [
            customer
            for customer in master.customers.values()
            if (not country or customer.country == country)
            and (not needle or needle in customer.name.casefold() or needle in customer.code.casefold())
        ]
        order = Sort.of(sort, ("name", "code", "country"), "name")
        page = window(
            chosen,
            sort=order,
            key=lambda customer: str(getattr(customer, order.key)).casefold(),
            code=lambda customer: customer.code,
            after=None if format else after,
            total_all=len(master.customers),
            limit=EXPORT_ROWS_MAX if format else 25,
        )
        rows = [view.customer_row(master, customer, visit.now) for customer in page.items]
        if format:
            return export(format, "customers", view.CUSTOMER_COLUMNS, (row.export for row in rows))
        countries = sorted({customer.country for customer in master.customers.values()})
        return front.page(
            visit, "contracts/customers.html", area="customers", rows=_with(page, rows), sort=order,
            countries=countries, filter=CustomerFilter(q, country),
        )  # fmt: skip

    @router.get("/customers/{code:path}")
    def customer(visit: Annotated[Visit, visitor], code: str, explain: int | None = None) -> Response:
        visit.need("contracts:read")
        master = front.master(visit)
        one = master.customer(code)
        codes = master.subscriptions_of.get(code, ())
        t, f = visit.texts, visit.formats
        with front.services.database.tenant(visit.tenant_id) as connection:
            documents = overview.documents_of(connection, code, limit=6)
            year_ago = f.local(visit.now).date() - timedelta(days=365)
            billed = overview.billed_since(connection, code, year_ago)
        today = f.local(visit.now).date()
        return front.page(
            visit,
            "contracts/customer.html",
            area="customers",
            customer=one,
            row=view.customer_row(master, one, visit.now),
            headline=_headline(one, visit.now, t),
            facts=[
                *_facts(one, visit.now, t, f),
                *_paying(master, code, visit.now, t, f),
                *references.facts_of_customer(one, master.tenant.document_per, t),
            ],
            line=view.time_line(master, codes, visit.now, t, f),
            documents=documents,
            billed=billed,
            usage=usage_view.so_far(front, visit, master, code, explain=explain),
            days=usage_view.days(front, visit, master, today - timedelta(days=USAGE_DAYS - 1), today, customer=code),
            wallet=_wallet(master, code, documents.prepaid),
            wallets=wallets.of_customer(front, visit, master, code),
            budgets=budgets.of_customer(front, visit, master, code),
        )

    @router.get("/subscriptions")
    def subscriptions(
        visit: Annotated[Visit, visitor],
        q: Annotated[str, Query(max_length=SEARCH_MAX)] = "",
        plan: str = "",
        state: str = "",
        sort: str = "code",
        after: str | None = None,
        format: str = "",
    ) -> Response:
        visit.need("contracts:read")
        master = front.master(visit)
        needle = q.strip().casefold()
        rows = [view.subscription_row(master, one, visit.now) for one in master.subscriptions.values()]
        fits = [
            row
            for row in rows
            if (not plan or row.plan == plan)
            and (not needle or needle in row.code.casefold() or needle in row.customer_name.casefold())
        ]
        counts = Counter(row.state for row in fits)
        tabs = [("", len(fits)), *((one, counts[one]) for one in ("active", "future", "ended") if counts[one])]
        order = Sort.of(sort, ("code", "customer", "plan", "start"), "code")
        keys = {
            "code": lambda row: row.code.casefold(),
            "customer": lambda row: row.customer_name.casefold(),
            "plan": lambda row: row.plan_name.casefold(),
            "start": lambda row: row.start,
        }
        page = window(
            [row for row in fits if not state or row.state == state],
            sort=order,
            key=keys[order.key],
            code=lambda row: row.code,
            after=None if format else after,
            total_all=len(rows),
            limit=EXPORT_ROWS_MAX if format else 25,
        )
        if format:
            return export(format, "subscriptions", view.SUBSCRIPTION_COLUMNS, (row.export for row in page.items))
        plans = sorted({(row.plan, row.plan_name) for row in rows}, key=lambda one: one[1].casefold())
        return front.page(
            visit, "contracts/subscriptions.html", area="subscriptions", rows=page, sort=order, plans=plans, tabs=tabs,
            filter=SubscriptionFilter(q, plan, state),
        )  # fmt: skip

    @router.get("/subscriptions/{code:path}")
    def subscription(visit: Annotated[Visit, visitor], code: str, explain: int | None = None) -> Response:
        visit.need("contracts:read")
        master = front.master(visit)
        one = master.subscriptions.get(code)
        if one is None:
            raise NotFound(code)
        t, f = visit.texts, visit.formats
        contract = view.contract_of(master, one)
        plan = contract.segment_at(max(visit.now, one.start)).plan
        return front.page(
            visit,
            "contracts/subscription.html",
            area="subscriptions",
            row=view.subscription_row(master, one, visit.now),
            line=view.time_line(master, [code], visit.now, t, f),
            usage=usage_view.so_far(front, visit, master, one.customer, subscription=code, explain=explain),
            plan=plan,
            charges=prices.charge_lines(plan, dict(master.meters), t, f),
            facts=_subscription_facts(one, view.end_of(contract), master, t, f),
            past=_past(master, one, t, f),
            phases=terms.phases_of_contract(contract, visit.now, t, f),
            add_ons=terms.add_ons_of(master, one, visit.now, t, f),
            references=references.facts_of_subscription(one, t),
        )

    return router


def _with(page: Any, rows: Sequence[Any]) -> Any:
    from dataclasses import replace

    return replace(page, items=rows)


def _headline(customer: Customer, now: datetime, t: Texts) -> list[str]:
    address = customer.form.get("address") or {}
    place = ", ".join(text for text in (address.get("city"), customer.country) if text)
    facts = [place, t.word("treatment", customer.treatment_at(now))]
    if customer.form.get("vat_id"):
        facts.append(t("customer.vat_id", id=customer.form["vat_id"]))
    return [fact for fact in facts if fact]


def _facts(customer: Customer, now: datetime, t: Texts, f: Formats) -> list[tuple[str, str]]:
    form = customer.form
    address: Mapping[str, Any] = form.get("address") or {}
    contact: Mapping[str, Any] = form.get("contact") or {}
    town = " ".join(str(address[key]) for key in ("post_code", "city") if address.get(key))
    lines = [str(address[key]) for key in ("street", "line_two", "line_three") if address.get(key)]
    facts = [
        (t("customer.address"), ", ".join([*lines, town] if town else lines)),
        (t("customers.country"), customer.country),
        (
            t("customer.contact"),
            " · ".join(str(contact[key]) for key in ("name", "email", "phone") if contact.get(key)),
        ),
        (t("customers.tax"), t.word("treatment", customer.treatment_at(now))),
        (t("settings.vat_id"), str(form.get("vat_id") or "")),
        (t("customer.language"), t(f"language.{form['language']}") if form.get("language") in ("de", "en") else ""),
        (
            t("customer.payment"),
            t("customer.payment_days", days=form["payment_days"]) if "payment_days" in form else "",
        ),
        (t("customer.order"), str(form.get("order_reference") or "")),
        (t("customer.buyer_reference"), str(form.get("buyer_reference") or "")),
        (t("references.leitweg_id"), str(form.get("leitweg_id") or "")),
        (t("references.cost_centre"), str(form.get("cost_centre") or "")),
        (t("customer.einvoice"), t.word("einvoice", str(form["einvoice"])) if form.get("einvoice") else ""),
        (t("customer.keys"), _keys(customer, t, f)),
    ]
    return [(label, value) for label, value in facts if value]


def _paying(master: MasterData, code: str, now: datetime, t: Texts, f: Formats) -> list[tuple[str, str]]:
    """Who gets his documents, where that is somebody else, and for whom he pays."""
    payer = master.payer_at(code, now)
    children = sorted(one for one in master.family(code) if one != code and master.payer_at(one, now) == code)
    shown = ", ".join(master.customers[one].name for one in children[:KEYS_SHOWN])
    if len(children) > KEYS_SHOWN:
        shown = t("customer.keys_more", keys=shown, count=f.number(len(children) - KEYS_SHOWN))
    facts = [
        (t("customer.payer"), master.customers[payer].name if payer != code else ""),
        (t("customer.pays_for"), shown),
    ]
    return [(label, value) for label, value in facts if value]


def _keys(customer: Customer, t: Texts, f: Formats) -> str:
    keys = (customer.code, *customer.keys)
    shown = ", ".join(keys[:KEYS_SHOWN])
    if len(keys) > KEYS_SHOWN:
        return t("customer.keys_more", keys=shown, count=f.number(len(keys) - KEYS_SHOWN))
    return shown


@dataclass(frozen=True)
class WalletTotal:
    currency: str
    amount: Decimal
    used: Decimal


def _wallet(master: MasterData, customer: str, prepaid: Mapping[str, Decimal]) -> list[WalletTotal]:
    paid: dict[str, Decimal] = {}
    for top_up in master.top_ups:
        if top_up.customer == customer:
            paid[top_up.currency] = paid.get(top_up.currency, Decimal(0)) + top_up.amount
    return [WalletTotal(code, amount, prepaid.get(code, Decimal(0))) for code, amount in sorted(paid.items())]


def _subscription_facts(
    one: Subscription, end: datetime | None, master: MasterData, t: Texts, f: Formats
) -> list[tuple[str, str]]:
    facts = [
        (t("subscriptions.start"), f.day(f.local(one.start).date())),
        (t("subscriptions.end"), f.day(f.local(end).date()) if end else f.number(None)),
        (t("subscription.anchor"), t(f"anchor.{one.anchor}")),
        (t("customers.tax"), t.word("treatment", master.customers[one.customer].treatment_at(one.start))),
    ]
    facts += [
        (t("subscription.quantity", charge=charge), f.number(number)) for charge, number in one.quantities.items()
    ]
    for discount in one.discounts:
        if discount.percent is not None:
            what = ", ".join(sorted(discount.charges)) or t("subscription.all_charges")
            words = t("subscription.discount_percent", percent=f.number(discount.percent), charges=what)
        else:
            words = t(
                "subscription.discount_amount", amount=f.number(discount.amount, 2), times=f.number(discount.times)
            )
        facts.append((t("subscription.discount"), words))
    return facts


def _past(master: MasterData, one: Subscription, t: Texts, f: Formats) -> list[tuple[datetime, str]]:
    past = [
        (
            one.start,
            t("subscription.step.start", plan=one.plan.name or one.plan.code, version=one.plan.version),
        )
    ]
    past += [(step.at, _step_words(step, t, f)) for step in one.steps]
    for add_on in one.add_ons:
        plan = add_on.plan.name or add_on.plan.code
        past.append(
            (add_on.start, t("subscription.step.add_on", add_on=add_on.code, plan=plan, version=add_on.plan.version))
        )
    return sorted(past, key=lambda entry: entry[0], reverse=True)


def _step_words(step: ContractStep, t: Texts, f: Formats) -> str:
    when = t(f"when.{step.when}")
    if step.kind == "change" and step.plan is not None:
        name = step.plan.name or step.plan.code
        return t("subscription.step.change", plan=name, version=step.plan.version, when=when)
    if step.kind == "quantity":
        return t("subscription.step.quantity", charge=step.charge, quantity=f.number(step.quantity))
    return t(f"subscription.step.{step.kind}", charge=step.charge, when=when, add_on=step.add_on)
