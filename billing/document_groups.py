"""What goes on one document: the lines of a customer in one currency, all together or by what their contracts say.

Owns the order and the heads of those groups. Which setting holds is `MasterData.document_per`; what is computed per
document (discounts, credit, tax, totals) is `billing/assemble.py`. Source: docs/rules.md, What goes on one document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Literal

from billing.contracts import Subscription
from billing.documents import DocumentGroup, Line
from billing.master import MasterData
from billing.settle import BilledDocument, Draft

GroupedPer = Literal["subscription", "order", "cost_centre"]


def grouped(
    master: MasterData, customer: str, drafts: Sequence[Draft], earlier: Sequence[BilledDocument], now: datetime
) -> list[tuple[DocumentGroup | None, list[Draft]]]:
    """The lines of a customer by document, those of each in their order; groups in the order of their keys.

    A line goes where its contract's references of `now` say. A line that corrects one of a document of the same
    setting goes under the head of that document: who was given an order number then needs it again.
    """
    per = master.document_per(customer)
    if per == "customer":
        return [(None, list(drafts))]
    heads = {one.number: one.document.group for one in earlier}
    found: dict[tuple[str, str, str], list[tuple[DocumentGroup, Draft]]] = {}
    for draft in drafts:
        group = _group_of(master, per, draft.line, heads, now)
        found.setdefault(group.key, []).append((group, draft))
    return [(_head([group for group, _ in found[key]]), [draft for _, draft in found[key]]) for key in sorted(found)]


def _group_of(
    master: MasterData, per: GroupedPer, line: Line, heads: Mapping[str, DocumentGroup | None], now: datetime
) -> DocumentGroup:
    known = heads.get(line.corrects.document) if line.corrects else None
    if known is not None and known.per == per:
        return known
    subscription = master.subscriptions.get(line.subscription)
    return DocumentGroup(per, "") if subscription is None else group_of(subscription, per, now)


def group_of(subscription: Subscription, per: GroupedPer, now: datetime) -> DocumentGroup:
    """Where the new lines of a contract go."""
    said = subscription.references_at(now)
    codes = {"subscription": subscription.code, "order": said.order_reference, "cost_centre": said.cost_centre}
    return DocumentGroup(per, codes[per], said.order_reference, said.reference, said.cost_centre)


def _head(groups: Sequence[DocumentGroup]) -> DocumentGroup:
    """The one head of lines with the same key: a cost centre is said where all of them have it."""
    centres = {one.cost_centre for one in groups}
    return replace(groups[0], cost_centre=centres.pop() if len(centres) == 1 else "")
