"""A seeded search for a life that comes to another sum when its lines go on several documents: none is known.

Families with other payers, tax codes, treatments and a change of rates, prices with and without the tax inside, and
currencies of 0, 2 and 3 decimals. `tests/billing/test_document_groups.py` looks at what is on which document.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from decimal import Decimal
from typing import Any

import pytest
from lives import NO_TAX, TAX, flat, life, plan, run, subscribe, usage, used
from test_bill_properties import day

from billing.documents import Document
from billing.master import DOCUMENT_PER
from billing.money import minor_digits
from billing.scenario import documents_of

ZERO = Decimal(0)
SEEDS = range(12)
CURRENCIES = ("EUR", "JPY", "KWD")
# The rate changes inside of the lives: lines of one contract are in several groups.
LOW = {"code": "low", "percents": [{"from": "2000-01-01", "percent": "7"}, {"from": "2026-02-10", "percent": "5.5"}]}
CODES = ("p", "c", "d", "e")  # p pays for c and sometimes for d; e pays for himself
WORDS = (None, "1", "2")
LAST = 75


def drawn(seed: int) -> dict[str, Any]:
    """A life with runs; what goes on one document is left to the tenant's setting."""
    draw = random.Random(seed)

    def amount(places: int = 2, most: int = 200) -> str:
        return f"{draw.randint(-20, most)}.{draw.randint(0, 10**places - 1):0{places}}"

    def references() -> dict[str, Any]:
        return {key: draw.choice(WORDS) for key in ("order_reference", "cost_centre", "buyer_reference")}

    plans = [_plan(draw, f"q{number}", currency, amount) for number, currency in enumerate((*CURRENCIES, "EUR"))]
    treatments = [draw.choice(("domestic", "domestic", "reverse_charge", "export")) for _ in CODES]
    customers = [
        {"code": code, "name": code, "country": "DE", "tax_treatment": treatment}
        for code, treatment in zip(CODES, treatments, strict=True)
    ]
    customers[1]["payer"] = "p"
    if draw.random() < 0.5:
        customers[2]["payer"] = "p"
    steps: list[dict[str, Any]] = []
    subscriptions: list[tuple[str, str]] = []
    for code in CODES:
        for number in range(draw.randint(1, 4)):
            chosen = draw.choice(plans)
            own = f"{code}{number}"
            percent = [{"percent": draw.choice(("10", "33.333"))}] if draw.random() < 0.3 else []
            begin = subscribe(
                day(draw.randint(0, 20)), own, chosen["code"], code,
                anchor=draw.choice(("calendar", "anniversary")), discounts=percent,
            )  # fmt: skip
            begin["subscribe"].update(references())
            steps.append(begin)
            subscriptions.append((own, code))
    for place in range(draw.randint(6, 14)):
        own, code = draw.choice(subscriptions)
        moment = draw.randint(21, 70)
        steps.append(_event(draw, place, own, code, day(moment), references(), day(draw.randint(21, moment))))
    for own, _ in draw.sample(subscriptions, 2):
        when = draw.choice(("now", "period_end"))
        steps.append({"at": day(71), "cancel": {"subscription": own, "when": when}})
    runs = [run(day(moment)) for moment in sorted(draw.sample(range(20, LAST), 3))]
    steps = sorted([*steps, *runs], key=lambda step: step["at"])
    late_usage = draw.choice(("delta", "reissue"))
    form = life(plans, [*steps, run(day(LAST))], customers=customers, tenant={"late_usage": late_usage})
    return {**form, "tax_codes": [TAX, NO_TAX, LOW]}


def _plan(draw: random.Random, code: str, currency: str, amount: Any) -> dict[str, Any]:
    def tax() -> str:
        return draw.choice(("vat", "low", "none"))

    tiers = [{"up_to": "10", "unit": amount(4, 5)}, {"up_to": None, "unit": "0.0153", "flat": "1"}]
    charges = [
        {**flat(amount(), code_, timing=draw.choice(("advance", "arrears"))), "tax": tax()} for code_ in ("f0", "f1")
    ]
    metered = {**usage(), "price": {"model": "graduated", "tiers": tiers}, "tax": tax()}
    more: dict[str, Any] = {"tax_behavior": "inclusive"} if draw.random() < 0.4 else {}
    return plan(*charges, metered, code=code, minimum=draw.choice((None, "50")), **more) | {"currency": currency}


def _event(
    draw: random.Random, place: int, own: str, code: str, at: str, references: dict[str, Any], before: str
) -> dict[str, Any]:
    """Something that happens to a contract; `before` is when late usage was."""
    match draw.choice(("usage", "usage", "usage", "quantity", "references", "references", "ad_hoc")):
        case "usage":
            step = used(at, (before, f"{draw.randint(0, 40)}.{draw.randint(0, 999):03}"), customer=code)
            step["usage"][0]["id"] = f"e{place}"
            return step
        case "quantity":
            return {"at": at, "quantity": {"subscription": own, "charge": "f0", "quantity": str(draw.randint(0, 4))}}
        case "references":
            return {"at": at, "references": {"subscription": own, **references}}
        case _:
            said = {"code": f"a{place}", "amount": f"{draw.randint(-9, 30)}.07", "tax": "vat", "currency": "EUR"}
            return {"at": at, "ad_hoc": {"customer": code, **said}}


def _sum(document: Document) -> int:
    return -1 if document.type == "credit_note" else 1


def stated(made: list[Document]) -> dict[tuple[Any, ...], tuple[Decimal, Decimal]]:
    """By who gets it and what is billed: quantity and amount, as prices state them. Nothing of 0."""
    found: dict[tuple[Any, ...], tuple[Decimal, Decimal]] = {}
    for one in made:
        for line in one.lines:
            tax = (line.tax_category, line.tax_percent)
            what = (line.contract, line.charge, line.start, line.end, line.step, str(line.when), *tax, line.customer)
            key = (one.customer, one.currency, *what)
            quantity, amount = found.get(key, (ZERO, ZERO))
            found[key] = (quantity + _sum(one) * line.quantity, amount + _sum(one) * line.stated)
    return {key: sums for key, sums in found.items() if sums != (ZERO, ZERO)}


def check(document: Document) -> Counter[tuple[Any, ...]]:
    """A document adds up in its currency's digits. How often it rounds tax, by whom and currency."""
    digits = minor_digits(document.currency)
    for amount in (document.net, document.tax, document.gross, *(line.amount for line in document.lines)):
        assert amount == round(amount, digits)
    assert document.net == sum((line.amount for line in document.lines), ZERO)
    assert document.tax == sum((one.amount for one in document.taxes), ZERO)
    assert document.gross == document.net + document.tax == document.due
    groups = {(line.tax_category, line.tax_percent): ZERO for line in document.lines}
    for line in document.lines:
        groups[line.tax_category, line.tax_percent] += line.amount
    assert groups == {(one.category, one.percent): one.base for one in document.taxes}
    # Where prices contain the tax the gross is what was agreed: nothing is rounded.
    without = [line for line in document.lines if line.gross is None and line.tax_percent]
    taxed = {(line.tax_category, line.tax_percent) for line in without}
    return Counter({(document.customer, document.currency): len(taxed)})


def gross(made: list[Document]) -> dict[tuple[str, str], Decimal]:
    found: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for one in made:
        found[one.customer, one.currency] += _sum(one) * one.gross
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_documents_by_group_come_to_the_sum_of_one_document_for_all(seed: int) -> None:
    form = drawn(seed)
    whole = [one.document for one in documents_of(form)]
    rounded_whole = sum(map(check, whole), Counter[tuple[Any, ...]]())
    for per in DOCUMENT_PER[1:]:
        where = f"seed {seed}, by {per}"
        split = [one.document for one in documents_of({**form, "tenant": {**form["tenant"], "document_per": per}})]
        rounded = rounded_whole + sum(map(check, split), Counter[tuple[Any, ...]]())
        assert stated(split) == stated(whole), where
        assert all(one.group is not None and one.group.per == per for one in split), where
        # Tax is rounded by document: half of the smallest unit each time is all that this may do to what is paid.
        ones, others = gross(split), gross(whole)
        assert ones.keys() == others.keys(), where
        for key, amount in ones.items():
            unit = Decimal(1).scaleb(-minor_digits(key[1]))
            assert abs(amount - others[key]) <= rounded[key] * unit / 2, (where, key)


def test_the_search_meets_what_it_is_for() -> None:
    """Several documents at once, other payers, all currencies, credit notes, documents made again."""
    met: Counter[str] = Counter()
    for seed in SEEDS:
        form = drawn(seed)
        made = [one.document for one in documents_of({**form, "tenant": {**form["tenant"], "document_per": "order"}})]
        for one in made:
            met[one.currency] += 1
            met["credit note"] += one.type == "credit_note"
            met["made again"] += one.type == "invoice" and one.refers_to is not None
            met["of another payer"] += bool(one.members)
            met["rates"] += len({tax.percent for tax in one.taxes}) > 2
            met["with the tax inside"] += any(line.gross is not None for line in one.lines)
            met["correction"] += any(line.correction for line in one.lines)
        at_once = Counter((one.customer, one.currency, one.date) for one in made)
        met["several at once"] += sum(1 for count in at_once.values() if count > 1)
    assert all(count >= 10 for count in met.values()), met
    assert len(met) == len(CURRENCIES) + 7
