"""Who may do what: API keys and sessions become a `Caller` with scopes; `may(scope)` guards a route.

Owns the scopes and the roles. The tenant comes from the key or the session, never from the URL or the body. Where keys
and users are stored is `storage/sql/keys.py` and `storage/sql/users.py`.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from billing.errors import NotAllowed, NotAuthenticated, TenantClosed, Unavailable
from deployments.key_limits import KeyBuckets, KeyLimits
from deployments.services import Services
from storage.sql import keys, users

SCOPES: dict[str, str] = {
    "usage:write": "send usage events, correct events in suspense",
    "usage:read": "usage, events, suspense, completeness",
    "catalog:read": "tax codes, meters, plans",
    "catalog:write": "change tax codes, meters, plans",
    "contracts:read": "customers, subscriptions, budgets, wallets",
    "contracts:write": "change customers, subscriptions, budgets, wallets",
    "billing:read": "bill runs, invoices, credit notes, and their files in the archive",
    "billing:write": "start and cancel bill runs, issue invoices, write credit notes, amend and void events that count",
    "layouts:write": "change layouts of documents, publish them, put them to use",
    "archive:read": "find and read what is archived",
    "archive:write": "put files into the archive, hold them, delete them after their time",
    "access:read": "keys, users, settings, the record of changes",
    "access:write": "make and end keys and users, change settings, move a test clock",
}
PLATFORM_SCOPE_TEXTS: dict[str, str] = {
    "tenants:create": "make, close and erase tenants, and make keys and users in any of them",
    "tenants:read": "list tenants, see the state of the platform",
}
TENANT_SCOPES = frozenset(SCOPES)
PLATFORM_SCOPES = frozenset(PLATFORM_SCOPE_TEXTS)
READ_SCOPES = frozenset(scope for scope in SCOPES if scope.endswith(":read"))
ROLES: dict[str, frozenset[str]] = {
    "admin": TENANT_SCOPES,
    "billing": TENANT_SCOPES - {"access:write"},
    "catalog": READ_SCOPES - {"access:read"} | {"catalog:write"},
    "viewer": READ_SCOPES - {"access:read"},
}
SESSION_COOKIE = "cloudbilling_session"

# A key that was seen is believed for this long without asking SQL again: so long does an ended key live on at most.
FRESH_S = 5.0
# With SQL down usage still comes in (ingest rests on the object store alone), for keys seen within this time.
STALE_S = 900.0
AWAY_S = 5.0  # so long nobody asks SQL again after it did not answer, where a remembered key will do
REMEMBERED_MAX = 10_000
NO_LIMITS = KeyLimits()


@dataclass(frozen=True)
class Caller:
    """Who makes a request, in which tenant, and what they may do there."""

    actor: str  # for the record: "key cb_abcdef" or "user ann@example.org"
    owner: str  # whose idempotency keys these are: tenant id, or the platform key's id
    scopes: frozenset[str]
    platform: bool
    tenant_id: str  # "" for a platform key
    tenant_code: str
    tenant_name: str
    tenant_kind: str
    timezone: str
    currency: str
    role: str = ""  # of a person
    key_id: str = ""  # "" for a session
    limits: KeyLimits = NO_LIMITS
    closed: bool = False  # the tenant: only what reads is allowed


class Gate:
    """Turns credentials into callers; remembers keys for a moment, bounded."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._seen: OrderedDict[bytes, tuple[float, keys.Key]] = OrderedDict()
        self._away_until = 0.0
        limits = services.limits
        self._buckets = KeyBuckets(limits.api_processes)
        self._limits = KeyLimits(limits.key_requests_per_s or None, None, limits.key_events_per_s or None, None)

    async def caller(self, request: Request, scope: str) -> Caller:
        """The caller, if they may. NotAuthenticated without a valid key, NotAllowed where the scope is missing."""
        found = await self._of_key(request, scope)
        if found is None:
            found = await self._of_session(request)
        if found is None:
            raise NotAuthenticated("send an API key as `Authorization: Bearer KEY`")
        self._count(request, found, "requests", 1)
        if found.closed and scope not in READ_SCOPES:
            raise TenantClosed("the tenant is closed: what is there may be read and exported", scope=scope)
        if scope not in found.scopes:
            raise NotAllowed(f"this needs the scope {scope}", scope=scope)
        return found

    def count_events(self, request: Request, caller: Caller, events: int) -> None:
        """Events of a request that are about to be stored. Overloaded (429) if the key has sent too many."""
        self._count(request, caller, "events", events)

    def _count(self, request: Request, caller: Caller, what: str, count: int) -> None:
        if not caller.key_id or (caller.limits.none and self._limits.none):
            return
        counted: dict[str, Any] = request.state._state.setdefault("key_limits", {})
        if what in counted:
            return  # a route with alternatives asks the gate more than once
        standing = self._buckets.take(caller.key_id, caller.limits.over(self._limits), what, count)
        if standing is not None:
            counted[what] = standing

    async def _of_key(self, request: Request, scope: str) -> Caller | None:
        header = request.headers.get("authorization")
        if header is None:
            return None
        kind, _, text = header.partition(" ")
        text = text.strip()
        if kind.lower() != "bearer" or not text or len(text) > 200:
            raise NotAuthenticated("send an API key as `Authorization: Bearer KEY`")
        name = keys.hash_of(text)
        now = time.monotonic()
        seen = self._seen.get(name)
        if seen is not None and now - seen[0] < FRESH_S:
            return _key_caller(seen[1])
        remembered = seen is not None and scope == "usage:write" and now - seen[0] < STALE_S
        if remembered and now < self._away_until:
            return _key_caller(seen[1])  # do not let every request wait until SQL has not answered
        try:
            key = await asyncio.to_thread(self._find, text)
        except Unavailable:
            self._away_until = time.monotonic() + AWAY_S
            if remembered:
                return _key_caller(seen[1])
            raise
        if key is None:
            self._seen.pop(name, None)
            raise NotAuthenticated("this key is not known, has ended or has expired")
        self._seen[name] = (now, key)
        self._seen.move_to_end(name)
        while len(self._seen) > REMEMBERED_MAX:
            self._seen.popitem(last=False)
        return _key_caller(key)

    def _find(self, text: str) -> keys.Key | None:
        with self._services.database.system() as connection:
            return keys.find(connection, text, self._services.clock())

    async def _of_session(self, request: Request) -> Caller | None:
        token = request.cookies.get(SESSION_COOKIE)
        if not token or len(token) > 200:
            return None
        # A cookie travels by itself, so a write must come from our own page: browsers say where a request comes from.
        if request.method not in ("GET", "HEAD") and request.headers.get("sec-fetch-site") != "same-origin":
            raise NotAllowed("a session may change things from the platform's own pages only; use an API key")
        who = await asyncio.to_thread(self._session, token)
        return session_caller(who) if who is not None else None

    def _session(self, token: str) -> users.SignedIn | None:
        with self._services.database.system() as connection:
            return users.session(connection, token, self._services.clock())

    def forget(self) -> None:
        """Believe no remembered key any more: one of ours was just ended."""
        self._seen.clear()


def _key_caller(key: keys.Key) -> Caller:
    return Caller(
        actor=f"key {key.start}",
        owner=key.tenant_id or key.id,
        scopes=key.scopes,
        platform=key.tenant_id is None,
        tenant_id=key.tenant_id or "",
        tenant_code=key.tenant_code or "",
        tenant_name=key.tenant_name or "",
        tenant_kind=key.tenant_kind or "",
        timezone=key.timezone,
        currency=key.currency or "",
        key_id=key.id,
        limits=KeyLimits.of(key.limits) if key.limits else NO_LIMITS,
        closed=key.closed,
    )


def session_caller(who: users.SignedIn) -> Caller:
    """A signed-in person as a caller (the front end's routes use it, too)."""
    return Caller(
        actor=f"user {who.email}",
        owner=who.tenant_id,
        scopes=ROLES.get(who.role, frozenset()),
        platform=False,
        tenant_id=who.tenant_id,
        tenant_code=who.tenant_code,
        tenant_name=who.tenant_name,
        tenant_kind=who.tenant_kind,
        timezone=who.timezone,
        currency=who.currency,
        role=who.role,
        closed=who.closed,
    )


def may(*alternatives: str) -> Callable[[Request], Coroutine[Any, Any, Caller]]:
    """A dependency: the caller, if a key or session with (any of) the scope came along. The scope is kept on it for
    OpenAPI and for the test that looks for unguarded routes."""
    for scope in alternatives:
        assert scope in SCOPES or scope in PLATFORM_SCOPE_TEXTS, scope

    async def guard(request: Request) -> Caller:
        gate: Gate = request.app.state.gate
        for scope in alternatives[:-1]:
            try:
                return await gate.caller(request, scope)
            except NotAllowed:
                continue
        return await gate.caller(request, alternatives[-1])

    guard.scopes = alternatives  # type: ignore[attr-defined]
    return guard
