"""Where the buyer books a line (BT-133): the cost centre of its contract, as of when its document is made.

Owns which moment counts. The reference of a whole document (BT-19) is `document_groups.py`. Source: docs/rules.md, What
goes on one document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from billing.contracts import Subscription
from billing.documents import Document, Line
from billing.settle import BilledDocument


def with_cost_centres(
    subscriptions: Mapping[str, Subscription], lines: Sequence[Line], earlier: Sequence[BilledDocument], now: datetime
) -> list[Line]:
    """The lines of a new document. One that takes back or corrects another is booked where that one was."""
    documents: dict[str, Document] = {}
    if any(line.corrects is not None for line in lines):
        documents = {one.number: one.document for one in earlier}
    return [
        _booked(line, _said(subscriptions, line, now))
        if line.corrects is None
        else _booked(line, documents[line.corrects.document].lines[line.corrects.line - 1].cost_centre)
        for line in lines
    ]


def with_cost_centres_again(
    subscriptions: Mapping[str, Subscription], lines: Sequence[Line], old: Document, now: datetime
) -> list[Line]:
    """The lines of a document that is made again: those of a contract stay where they were booked on it."""
    known = {line.subscription: line.cost_centre for line in old.lines if line.corrects is None}
    return [
        line
        if line.corrects is not None  # repeated as it was
        else _booked(line, known.get(line.subscription, _said(subscriptions, line, now)))
        for line in lines
    ]


def _said(subscriptions: Mapping[str, Subscription], line: Line, now: datetime) -> str:
    subscription = subscriptions.get(line.subscription)  # an amount of no contract has none
    return "" if subscription is None or not subscription.references else subscription.references_at(now).cost_centre


def _booked(line: Line, cost_centre: str) -> Line:
    return line if line.cost_centre == cost_centre else replace(line, cost_centre=cost_centre)
