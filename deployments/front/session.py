"""Who is signed in to the pages, by a cookie; tokens that tie a form to the page that made it.

Owns the cookies. Passwords, pauses after wrong ones and what a session is are `storage/sql/users.py`; what a role may
do is `deployments/access.py`.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from deployments.access import READ_SCOPES, ROLES
from deployments.services import Services
from storage.sql import tenants, users

VISIT_COOKIE = "cloudbilling_visit"  # before anybody is signed in: what the sign-in form's token rests on
TOKEN_LENGTH_MAX = 200


@dataclass(frozen=True)
class SignedIn:
    """A person in a tenant, for the pages."""

    who: users.SignedIn
    scopes: frozenset[str]
    test_clock: datetime | None
    tenants: tuple[Mapping[str, Any], ...]

    @classmethod
    def find(cls, services: Services, token: str | None) -> "SignedIn | None":
        if not token or len(token) > TOKEN_LENGTH_MAX:
            return None
        with services.database.system() as connection:
            who = users.session(connection, token, services.clock())
            if who is None:
                return None
            tenant = tenants.by_id(connection, who.tenant_id)
            own = tuple(users.tenants_of(connection, who.user_id))
            scopes = ROLES.get(who.role, frozenset())
            return cls(who, scopes & READ_SCOPES if who.closed else scopes, tenant.test_clock, own)

    def may(self, scope: str) -> bool:
        return scope in self.scopes

    @property
    def tenant_id(self) -> str:
        return self.who.tenant_id

    @property
    def tenant_code(self) -> str:
        return self.who.tenant_code

    @property
    def tenant_name(self) -> str:
        return self.who.tenant_name

    @property
    def timezone(self) -> str:
        return self.who.timezone

    @property
    def currency(self) -> str:
        return self.who.currency

    @property
    def name(self) -> str:
        return self.who.name

    @property
    def email(self) -> str:
        return self.who.email

    @property
    def role(self) -> str:
        return self.who.role

    @property
    def actor(self) -> str:
        """How the records name this person."""
        return f"user {self.who.email}"

    @property
    def initials(self) -> str:
        words = [word for word in self.who.name.split() if word]
        return ((words[0][0] + (words[-1][0] if len(words) > 1 else "")) if words else self.who.email[:2]).upper()


def form_token(secret: str) -> str:
    """What a form of this session carries; made from the cookie, so nothing has to be stored."""
    return hmac.new(secret.encode(), b"form", hashlib.sha256).hexdigest()
