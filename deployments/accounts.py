"""Reservations and wallets over REST: ask before use, spend, release; what a customer's credit is worth now.

A thin shell: every verdict is made in the home lane of the customer (actors/accounts.py) and is durable when it is
answered. Top-ups are contracts (`POST /v1/top-ups`).
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from actors.accounts_desk import AccountsDesk, Problem, RawOutcome, customer_of, not_found
from billing.errors import FieldError, InvalidInput
from deployments.access import Caller, may
from deployments.bodies import json_body, json_form, known_keys, parse_json
from deployments.manners import (
    PageOf,
    described,
    json_response,
    number_cursor,
    page_of,
    paging,
    plain,
    text_cursor,
)
from deployments.plain_entries import PlainEntry, plain_entries
from deployments.problems import problem_body
from deployments.services import Services
from deployments.tracing import TOLD
from deployments.usage_ingest import newest_seen
from storage.sql import wallet_moves

LOG = structlog.get_logger("cloudbilling.accounts")
router = APIRouter(prefix="/v1", tags=["Wallets"])
BATCH_MAX = 10_000
STATES = ("open", "committed", "released", "expired")

_ASKED = {"customer": "acme", "id": "call-4711", "amount": "10.00", "expires": "2026-01-20T11:00:00+01:00"}
_RESERVATION = {
    "id": "call-4711",
    "customer": "acme",
    "currency": "EUR",
    "amount": "10.00",
    "granted": "7.50",
    "state": "open",
    "committed": "0.00",
    "at": "2026-01-20T09:59:00Z",
    "expires": "2026-01-20T10:00:00Z",
    "master": 12,
}
_SPENT = _RESERVATION | {"state": "committed", "committed": "4.20"}
_MOVE = {
    "id": 17,
    "made_at": "2026-02-01T08:00:00Z",
    "kind": "settle",
    "customer": "acme",
    "subject": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11",
    "refused": None,
    "refused_at": None,
}
_WALLETS = {
    "customer": "acme",
    "as_of": "2026-01-20T10:00:00Z",
    "wallets": [
        {
            "currency": "EUR",
            "balance": "25.00",
            "reserved": "7.50",
            "available": "17.50",
            "committed": "4.20",
            "top_ups": [
                {
                    "step": 9,
                    "at": "2026-01-01T00:00:00Z",
                    "kind": "purchased",
                    "amount": "29.20",
                    "left": "25.00",
                    "reserved": "7.50",
                    "committed": "4.20",
                    "expires": None,
                    "expired": False,
                }
            ],
        }
    ],
}


def tell(decision: str, requests: int, entries: int, seconds: float) -> None:
    """One line for all that travelled together: a line each costs as much as a third of the rest of a request."""
    LOG.info("reservations", decision=decision, requests=requests, entries=entries, ms=round(seconds * 1e3, 2))


def desk_of(request: Request) -> AccountsDesk:
    desk: AccountsDesk = request.app.state.accounts
    return desk


@router.post(
    "/reservations",
    summary="Reserve credit before use, one or many at once",
    **described(request=_ASKED, answer=_RESERVATION, also=(400, 404, 409, 413, 415, 422)),
)
async def post_reservations(request: Request, caller: Caller = Depends(may("usage:write"))) -> Response:
    """Hold what is there, at most what is asked: an `amount`, or what a quantity more of a meter will cost
    (`usage: {meter, quantity}`, with the tax that purchased credit must pay). Limits are those that exist: a wallet
    once topped up, every budget with `action: block`. A grant of `0.00` is a verdict, too.

    The `id` is yours and unique: the same id again answers the recorded verdict, whatever is asked then, so send the
    same again after 429, 503 or no answer. `currency` is the tenant's unless said; after `expires` nothing is held any
    more. `usage` is priced by the usage under the customer's own code and those of its keys whose home is the same
    lane: where a limit must be hard, send usage under the code.

    A list of up to 10,000 is answered by `{"items": [...]}` in its order, each a reservation or a `problem`.
    """
    desk = desk_of(request)
    master = newest_seen(request, caller) or 0
    body = await json_body(request)
    plain = plain_entries(body)
    form: Any = plain if plain is not None else parse_json(body)
    forms: list[Any] = form if isinstance(form, list) else [form]
    if isinstance(form, list):
        _check_batch(form)
    customers = [one.customer if isinstance(one, PlainEntry) else customer_of(one) for one in forms]
    outcomes = await desk.reserve_raw(caller.tenant_id, forms, customers, master=master)
    return _items(request, outcomes) if isinstance(form, list) else _one(request, outcomes)


@router.post(
    "/reservations/commit",
    summary="Commit many reservations at once",
    **described(
        request=[{"id": "call-4711", "amount": "4.20", "customer": "acme"}],
        answer={"items": [_SPENT]},
        also=(400, 409, 413, 415, 422),
    ),
)
async def post_commits(request: Request, caller: Caller = Depends(may("usage:write"))) -> Response:
    """A list of up to 10,000; each is answered in its place by the reservation or a `problem`, as one by one."""
    entries = _entries(await json_form(request), ("id", "amount", "customer"), ("id", "amount"))
    return _items(request, await desk_of(request).commit_raw(caller.tenant_id, entries))


@router.post(
    "/reservations/release",
    summary="Give many reservations back at once",
    **described(
        request=[{"id": "call-4711", "customer": "acme"}],
        answer={"items": [_RESERVATION | {"state": "released"}]},
        also=(400, 409, 413, 415, 422),
    ),
)
async def post_releases(request: Request, caller: Caller = Depends(may("usage:write"))) -> Response:
    """A list of up to 10,000; each is answered in its place by the reservation or a `problem`, as one by one."""
    entries = _entries(await json_form(request), ("id", "customer"), ("id",))
    return _items(request, await desk_of(request).release_raw(caller.tenant_id, entries))


@router.post(
    "/reservations/{id}/commit",
    summary="Spend of a reservation what was used",
    **described(request={"amount": "4.20", "customer": "acme"}, answer=_SPENT, also=(400, 404, 409, 413, 415, 422)),
)
async def post_commit(request: Request, id: str, caller: Caller = Depends(may("usage:write"))) -> Response:
    """At most what was granted leaves the balance, promotional credit first, and pays the next invoices; the rest of
    the reservation is released. Committed again: the first answer. After `expires` it is taken from free credit, if
    that suffices, else 409. `customer` may be left out; with it the request finds its way without a detour."""
    entry = {**known_keys(await json_form(request), ("amount", "customer"), ("amount",)), "id": id}
    return _one(request, await desk_of(request).commit_raw(caller.tenant_id, [entry]))


@router.post(
    "/reservations/{id}/release",
    summary="Give a reservation back",
    **described(request={"customer": "acme"}, answer=_RESERVATION | {"state": "released"}, also=(400, 404, 409, 422)),
)
async def post_release(request: Request, id: str, caller: Caller = Depends(may("usage:write"))) -> Response:
    """Nothing is held any more. Released or expired before: the same answer again; committed: 409. The body is an
    object, and may be empty (`{}`)."""
    entry = {**known_keys(await json_form(request), ("customer",)), "id": id}
    return _one(request, await desk_of(request).release_raw(caller.tenant_id, [entry]))


@router.get(
    "/reservations/{id}",
    summary="A reservation",
    **described(answer=_RESERVATION, also=(404, 409, 422)),
)
async def read_reservation(
    request: Request,
    id: str,
    customer: str | None = Query(None, max_length=256, description="Whose it is; saves asking every lane."),
    caller: Caller = Depends(may("contracts:read")),
) -> Response:
    """What was granted, and what became of it. The newest 200,000 closed ones of a lane are kept at hand."""
    found = await desk_of(request).find(caller.tenant_id, [id], customer)
    if not found:
        raise not_found(id)
    return json_response(found[0])


@router.get(
    "/reservations",
    summary="A customer's reservations, newest first",
    **described(answer={"items": [_RESERVATION], "next_cursor": None}, also=(404, 422)),
)
async def list_reservations(
    request: Request,
    page: PageOf = Depends(paging),
    customer: str = Query(max_length=256, description="The customer's code."),
    state: str | None = Query(None, description="Only those: open, committed, released, expired."),
    caller: Caller = Depends(may("contracts:read")),
) -> Response:
    if state is not None and state not in STATES:
        detail = f"one of {', '.join(STATES)} is needed"
        raise InvalidInput(f"state: {detail}", errors=[FieldError("query:state", detail)])
    _, master = await asyncio.to_thread(_services(request).masters.newest, caller.tenant_id)
    master.customer(customer)
    found = await desk_of(request).of_customer(
        caller.tenant_id, customer, state=state, after=text_cursor(page), limit=page.limit + 1
    )
    return page_of(found, page, lambda one: one["id"], lambda one: one)


@router.get(
    "/wallets",
    summary="The wallets of all customers that have one",
    **described(answer={"items": [_WALLETS], "next_cursor": None}, also=(422,)),
)
async def list_wallets(
    request: Request, page: PageOf = Depends(paging), caller: Caller = Depends(may("contracts:read"))
) -> Response:
    """By the customer's code. Balances as the lanes know them now; see one customer's with `fresh`."""
    number, master = await asyncio.to_thread(_services(request).masters.newest, caller.tenant_id)
    after = text_cursor(page)
    codes = sorted(code for code in master.wallet_customers if after is None or code > after)
    chosen = codes[: page.limit + 1]
    found = await desk_of(request).wallets(caller.tenant_id, chosen, master=number) if chosen else []
    return page_of(found, page, lambda one: one["customer"], _wallets)


@router.get(
    "/wallets/{customer}",
    summary="A customer's wallets: balance, reserved, and what is left of each top-up",
    **described(answer=_WALLETS, also=(404, 422)),
)
async def read_wallets(
    request: Request,
    customer: str,
    fresh: bool = Query(False, description="Answer only what is certainly true now (one durable write)."),
    caller: Caller = Depends(may("contracts:read")),
) -> Response:
    """One wallet a currency. `balance` includes what is `reserved`; `available` is what can be reserved or pay an
    invoice; `committed` has left the balance and pays the next invoices."""
    number, master = await asyncio.to_thread(_services(request).masters.newest, caller.tenant_id)
    master.customer(customer)
    found = await desk_of(request).wallets(caller.tenant_id, [customer], fresh=fresh, master=number)
    return json_response(_wallets(found[0]))


@router.get(
    "/wallet-moves",
    summary="Wallet credit of documents that has not reached the lanes yet",
    **described(answer={"items": [_MOVE], "next_cursor": None}, also=(422,)),
)
def list_wallet_moves(
    request: Request, page: PageOf = Depends(paging), caller: Caller = Depends(may("billing:read"))
) -> Response:
    """In the order in which documents asked for it; most often empty. `refused` says why a lane did not take one: it is
    tried again with every bill run, and holds up the moves of the same customer behind it, nobody else's."""
    with _services(request).database.tenant(caller.tenant_id) as connection:
        rows = wallet_moves.page(connection, after=number_cursor(page), limit=page.limit + 1)
    return page_of(rows, page, lambda row: row["id"], plain)


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _entries(form: Any, keys: Sequence[str], needed: Sequence[str]) -> list[dict[str, Any]]:
    """The objects of a list with these keys only; every mistake with the place of its entry."""
    if not isinstance(form, list):
        raise InvalidInput("a list is needed", errors=[FieldError("", "a list is needed")])
    _check_batch(form)
    errors: list[FieldError] = []
    for place, entry in enumerate(form):
        try:
            known_keys(entry, keys, needed)
        except InvalidInput as error:
            errors += [FieldError(f"/{place}{one.pointer}", one.detail) for one in error.errors]
    if errors:
        raise InvalidInput(f"{errors[0].pointer}: {errors[0].detail}", errors=errors)
    return form


def _check_batch(form: list[Any]) -> None:
    if not 0 < len(form) <= BATCH_MAX:
        raise InvalidInput(f"a list of 1 to {BATCH_MAX} reservations is needed", errors=[FieldError("", "see there")])


def _one(request: Request, outcomes: Sequence[RawOutcome]) -> Response:
    request.scope.setdefault("state", {})[TOLD] = True
    outcome = outcomes[0]
    if isinstance(outcome, Problem):
        raise outcome.error()
    return json_response(outcome)


def _items(request: Request, outcomes: Sequence[RawOutcome]) -> Response:
    request.scope.setdefault("state", {})[TOLD] = True
    items = [
        {"problem": problem_body(one.error(f"/{place}"), request.url.path)} if isinstance(one, Problem) else one
        for place, one in enumerate(outcomes)
    ]
    return json_response({"items": items})


def _wallets(form: dict[str, Any]) -> dict[str, Any]:
    return {key: form[key] for key in ("customer", "as_of", "wallets")}
