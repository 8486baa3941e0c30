"""The step that makes or changes a customer, with who pays for whom."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from billing.einvoice.addresses import check_endpoint, check_ids, check_leitweg_id
from billing.einvoice.debits import mandate_of
from billing.einvoice.parties import E_INVOICES
from billing.einvoice.words import LANGUAGES
from billing.forms import CODE_LENGTH_MAX, Form, Mistakes
from billing.master import DOCUMENT_PER, PAYERS_MAX, TREATMENTS, Customer, Payer
from billing.steps.draft import Draft

CUSTOMER_EXTRAS = frozenset(
    {
        "vat_id",
        "legal_id",
        "tax_number",
        "address",
        "contact",
        "language",
        "buyer_reference",
        "cost_centre",
        "order_reference",
        "payment_days",
        "einvoice",
        "usage_record",
        "legal_entity",
        "endpoint",
        "ids",
        "note",
        "tags",
        "payment",
        "erased",  # the rule under which an erasure took all else (billing/erasing.py); no change may say it
    }
)


def set_customer(draft: Draft, form: Form, at: datetime, mistakes: Mistakes) -> None:
    code = form.code()
    known = draft.customers.get(code)
    name = form.text("name", known.name if known else code)
    country = form.text("country", known.country if known else draft.tenant.country, 2)
    if not re.fullmatch(r"[A-Z]{2}", country):
        form.wrong("country", "a country is two capital letters (ISO 3166)")
    treatment = form.choice("tax_treatment", TREATMENTS, "" if known else "domestic")
    payers = _payers(draft, form, code, known, at)
    keys = form.texts("keys") if "keys" in form.fields else (known.keys if known else ())
    if draft.fresh:
        looked_at = Form(form.fields, form.pointer, mistakes)  # what is kept as it is, looked at without taking it
        check_endpoint(looked_at)
        check_ids(looked_at)
        _check_known(looked_at, "language", LANGUAGES)  # else his documents would have no words
        _check_known(looked_at, "einvoice", tuple(E_INVOICES))
    per = form.choice("document_per", DOCUMENT_PER, "") if "document_per" in form.fields else None
    more: dict[str, Any] = {"document_per": per} if per is not None else {}
    if "leitweg_id" in form.fields:
        more["leitweg_id"] = check_leitweg_id(form)
    if "mandate" in form.fields:
        mandate_of(form)
        more["mandate"] = form.raw("mandate")
    extras = form.rest(CUSTOMER_EXTRAS)
    form.done()
    for place, key in ((form.at("code"), code), *((f"{form.at('keys')}/{n}", key) for n, key in enumerate(keys))):
        if draft.key_owners.get(key, code) != code:
            mistakes.add(place, f"key {key!r} belongs to customer {draft.key_owners[key]!r}")
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
        draft.key_owners.pop(key, None)
    for key in (code, *keys):
        draft.key_owners[key] = code
    merged = {**(known.form if known else {}), **extras, **more}
    draft.customers[code] = Customer(code, name, country, treatments, keys, merged, payers)
    for payer in payers:
        draft.paid_by.setdefault(payer.code, set()).add(code)


def _check_known(form: Form, key: str, known: Sequence[str]) -> None:
    """null and an empty text are as if nothing were said."""
    value = form.fields.get(key)
    if value is not None and value != "" and value not in known:
        form.wrong(key, f"must be one of {', '.join(known)}, not {value!r}")


def _payers(draft: Draft, form: Form, code: str, known: Customer | None, at: datetime) -> tuple[Payer, ...]:
    """Who pays from when on: `payer` names another customer, null (or nobody) ends it, without the key it stays."""
    before = known.payers if known else ()
    if "payer" not in form.fields:
        return before
    payer = form.code("payer") if form.fields["payer"] is not None else ""
    form.raw("payer")
    if payer and payer not in draft.customers and payer != code:
        form.wrong("payer", f"there is no customer {payer!r}")
        return before
    if payer == (before[-1].code if before else ""):
        return before
    if before and at < before[-1].since:
        form.wrong("payer", f"{code!r} has a later payer already; payers come in order of time")
        return before
    found = (*(one for one in before if one.since < at), Payer(at, payer))
    above, circle = _payers_above(draft, code, payer, at) if payer else (0, "")
    if circle:
        form.wrong("payer", f"{payer!r} cannot pay for {code!r}: {circle} is a circle")
        return before
    if above + _depth_below(draft, code) > PAYERS_MAX:
        form.wrong("payer", f"at most {PAYERS_MAX} customers may pay for each other in a row")
        return before
    return found


def _payers_above(draft: Draft, code: str, payer: str, at: datetime) -> tuple[int, str]:
    """How many payers in a row there would be above a customer from a moment on, and the circle if it is one."""
    row: dict[str, tuple[datetime, str]] = {payer: (at, f"{code} -> {payer}")}
    for depth in range(1, PAYERS_MAX + 2):
        if code in row:
            return depth, row[code][1]
        following: dict[str, tuple[datetime, str]] = {}
        for one, (since, shown) in row.items():
            entries = draft.customers[one].payers
            for place, entry in enumerate(entries):
                over = place + 1 < len(entries) and entries[place + 1].since <= since
                if entry.code and not over:
                    following.setdefault(entry.code, (max(since, entry.since), f"{shown} -> {entry.code}"))
        if not following:
            return depth, ""
        row = following
    return PAYERS_MAX + 1, ""


def _depth_below(draft: Draft, code: str) -> int:
    """How many customers in a row this one pays for, at any time."""
    depth, row = 0, {code}
    while row and depth <= PAYERS_MAX:
        row = {child for one in row for child in draft.paid_by.get(one, ())}
        depth += bool(row)
    return depth
