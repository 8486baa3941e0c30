"""Wallets as pages show them: balance, what is reserved, what is left of each top-up, and the newest reservations.

Owns the look. What is left is the customer's lane's (`actors/accounts_desk.py`); a page that cannot reach it says so
and shows what was paid in.
"""

import logging
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any

from anyio import from_thread

from actors.accounts_desk import AccountsDesk
from billing.errors import Unavailable
from billing.master import MasterData, TopUp
from deployments.front.page import Front, Visit

RESERVATIONS_SHOWN = 8
log = logging.getLogger("cloudbilling.http")


@dataclass(frozen=True)
class TopUpView:
    kind: str
    currency: str
    at: datetime
    expires: datetime | None
    amount: Decimal
    left: Decimal | None  # None: the lane does not answer just now
    expired: bool


@dataclass(frozen=True)
class WalletView:
    currency: str
    balance: Decimal
    reserved: Decimal
    available: Decimal
    committed: Decimal


@dataclass(frozen=True)
class ReservationView:
    id: str
    at: datetime
    state: str
    granted: Decimal
    committed: Decimal
    currency: str


@dataclass(frozen=True)
class WalletsView:
    wallets: list[WalletView]
    top_ups: list[TopUpView]  # in the order in which they are used
    reservations: list[ReservationView]  # newest first
    more: bool
    away: bool

    @property
    def is_empty(self) -> bool:
        return not (self.wallets or self.top_ups or self.reservations)


def of_customer(front: Front, visit: Visit, master: MasterData, customer: str) -> WalletsView:
    desk = AccountsDesk(front.services.router)
    top_ups = [one for one in master.top_ups if one.customer == customer]
    try:
        # Pages are made in threads; the lanes are asked in the server's own event loop.
        listed = partial(desk.of_customer, visit.tenant_id, customer, limit=RESERVATIONS_SHOWN + 1)
        reservations = from_thread.run(listed)
        forms: list[dict[str, Any]] = []
        if top_ups:
            (found,) = from_thread.run(partial(desk.wallets, visit.tenant_id, [customer]))
            forms = found["wallets"]
    except Unavailable as error:
        log.warning("a wallet cannot be read: %s", error.detail)
        return WalletsView([], [_paid_in(one, visit.now) for one in top_ups], [], False, away=True)
    lefts = [_top_up(one, wallet["currency"]) for wallet in forms for one in wallet["top_ups"]]
    known = {one["step"] for wallet in forms for one in wallet["top_ups"]}
    ahead = [_paid_in(one, visit.now) for one in top_ups if one.number not in known]  # paid in for later
    shown = [_reservation(one) for one in reservations[:RESERVATIONS_SHOWN]]
    more = len(reservations) > RESERVATIONS_SHOWN
    return WalletsView([_wallet(one) for one in forms], [*lefts, *ahead], shown, more, away=False)


def _wallet(form: dict[str, Any]) -> WalletView:
    amounts = (Decimal(form[key]) for key in ("balance", "reserved", "available", "committed"))
    return WalletView(form["currency"], *amounts)


def _top_up(form: dict[str, Any], currency: str) -> TopUpView:
    expires = None if form["expires"] is None else datetime.fromisoformat(form["expires"])
    at, amount, left = datetime.fromisoformat(form["at"]), Decimal(form["amount"]), Decimal(form["left"])
    return TopUpView(form["kind"], currency, at, expires, amount, left, form["expired"])


def _paid_in(one: TopUp, now: datetime) -> TopUpView:
    expired = one.expires is not None and one.expires <= now
    return TopUpView(one.kind, one.currency, one.at, one.expires, one.amount, None, expired)


def _reservation(form: dict[str, Any]) -> ReservationView:
    return ReservationView(
        form["id"],
        datetime.fromisoformat(form["at"]),
        form["state"],
        Decimal(form["granted"]),
        Decimal(form["committed"]),
        form["currency"],
    )
