"""Billing documents as values: what a bill run makes, a number is given to, and a layout draws.

Amounts are `Decimal` in major currency units, already rounded to the currency's minor unit; quantities have at most
12 decimals. Periods are half-open instants `[start, end)` in UTC. Nothing here computes. BT and BG name the terms of
EN 16931.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal

DocumentType = Literal["invoice", "credit_note"]
TaxCategory = Literal["S", "Z", "E", "AE", "K", "G", "O", "L", "M", "B"]


@dataclass(frozen=True)
class Corrects:
    """The line that a correction or credit line takes back or changes."""

    document: str  # number, or the scenario's document number as text
    line: int


@dataclass(frozen=True)
class Line:
    """One invoice line (BG-25): BT-129 quantity, BT-131 amount, BT-136 allowance, BT-151/152 tax, BT-153 name.

    `amount` and `allowance` are net in every document. A line whose price contains the tax (`tax_behavior: inclusive`)
    has `gross` and `gross_allowance` too: what was agreed and rounded; its net is a share of the document's tax group.
    """

    subscription: str
    charge: str
    start: datetime
    end: datetime
    quantity: Decimal
    amount: Decimal  # net, after this line's percent discount
    tax_category: TaxCategory
    tax_percent: Decimal
    kind: Literal["one_off", "recurring", "usage", "minimum"] = "usage"
    allowance: Decimal = Decimal(0)  # percent discount of the line; amount + allowance = gross of discount
    when: Mapping[str, str] | None = None  # the row of `price_by`
    plan: str = ""
    plan_version: int = 1
    tax_code: str = ""
    name: str = ""  # what the customer reads, of the charge
    unit: str = ""  # of the quantity, as the meter or charge names it
    unit_price: Decimal | None = None  # where quantity x unit_price = stated amount + allowance, unrounded
    correction: bool = False
    corrects: Corrects | None = None
    explanation: Mapping[str, Any] = field(default_factory=dict[str, Any])  # tiers, proration, rounding, events
    step: int = 0  # the master step that began what is billed here: it tells pieces with the same start apart
    gross: Decimal | None = None  # with tax, after this line's percent discount; None: the price is without tax
    gross_allowance: Decimal | None = None  # percent discount with tax
    customer: str = ""  # whose line it is, where the document goes to who pays for him; empty: the document's customer
    add_on: str = ""  # of the subscription, where its plan bills the line
    cost_centre: str = ""  # BT-133: of the subscription, when the document was made

    @property
    def contract(self) -> tuple[str, str]:
        """What tells the contracts of lines apart: subscription and add-on."""
        return self.subscription, self.add_on

    @property
    def stated(self) -> Decimal:
        """The amount in the terms of the price: with tax where the price contains it."""
        return self.amount if self.gross is None else self.gross

    @property
    def stated_allowance(self) -> Decimal:
        return self.allowance if self.gross_allowance is None else self.gross_allowance

    def with_stated(self, amount: Decimal, allowance: Decimal) -> Line:
        """The same line of another amount in the terms of its price; the net of a gross is set by its document."""
        if self.gross is None:
            return replace(self, amount=amount, allowance=allowance)
        return replace(self, amount=amount, allowance=allowance, gross=amount, gross_allowance=allowance)


@dataclass(frozen=True)
class Allowance:
    """A document level allowance of one tax group (BG-20): BT-92 amount (net), BT-95/96 tax."""

    kind: Literal["discount", "promotional"]
    amount: Decimal
    tax_category: TaxCategory
    tax_percent: Decimal
    # Which discount (`subscription/1`), or whose wallet (empty: the document's customer). The parts of one allowance
    # over several tax groups share it.
    source: str = ""
    gross: Decimal | None = None  # with tax, where it is taken off prices that contain it

    @property
    def stated(self) -> Decimal:
        """What was taken off prices as they are stated: what a discount or a wallet gave."""
        return self.amount if self.gross is None else self.gross


@dataclass(frozen=True)
class TaxTotal:
    """One row of the tax table (BG-23): BT-116 base, BT-117 amount, BT-118 category, BT-119 percent.

    Tax of the group's base, rounded once; of prices that contain it, the tax within the group's gross, rounded once.
    """

    category: TaxCategory
    percent: Decimal
    base: Decimal
    amount: Decimal


@dataclass(frozen=True)
class Member:
    """A customer whose lines are on the document of who pays for him."""

    code: str
    name: str
    prepaid: Decimal = Decimal(0)  # part of the document's prepaid amount (BT-113): from this customer's own wallet


@dataclass(frozen=True)
class DocumentGroup:
    """Which lines a document takes of its customer's, where he gets several, and what its head says of them.

    `per` is the setting, `code` what these lines have in common (empty: lines that have none of it). What is empty of
    the others is the customer's own.
    """

    per: Literal["subscription", "order", "cost_centre"]
    code: str
    order_reference: str = ""  # BT-13
    buyer_reference: str = ""  # BT-10, of an authority its Leitweg-ID
    cost_centre: str = ""  # BT-19

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells the documents of one customer, currency and run apart: a document's head says each only once."""
        return self.code, self.order_reference, self.buyer_reference


@dataclass(frozen=True)
class Document:
    """An invoice (BT-3: 380) or credit note (381) of one customer in one currency, without its number.

    BT-2 date, BT-5 currency, BT-109 net, BT-110 tax, BT-112 gross, BT-113 prepaid, BT-115 due, BT-25 refers_to.
    """

    customer: str
    type: DocumentType
    currency: str
    date: date  # local day of the tenant
    lines: tuple[Line, ...]
    allowances: tuple[Allowance, ...]
    taxes: tuple[TaxTotal, ...]
    net: Decimal
    tax: Decimal
    gross: Decimal
    due: Decimal
    prepaid: Decimal = Decimal(0)
    refers_to: str | None = None
    members: tuple[Member, ...] = ()  # by code: whose lines these are beside the customer's own
    group: DocumentGroup | None = None  # None: all lines of the customer in the currency

    @property
    def takes_back(self) -> bool:
        """Whether it is a credit note of a document's own lines, by hand or by a run that makes the document again.

        A document that is made again and comes to less than 0 is a credit note that refers to the first one, too, but
        has lines of its own: it is billed, and takes nothing back.
        """
        return (
            self.type == "credit_note"
            and self.refers_to is not None
            and all(line.corrects is not None and line.corrects.document == self.refers_to for line in self.lines)
        )
