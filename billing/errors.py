"""The one family of errors that a caller can act on; bugs are assertions, not errors.

Adapters translate their library's errors into this family (`raise ... from error`); one handler in
`deployments/` turns it into problem+json (RFC 9457).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FieldError:
    """One bad field: `pointer` is an RFC 6901 JSON pointer into what was sent ("" = the whole body)."""

    pointer: str
    detail: str


class BillingError(Exception):
    """Base of the family. `code` is stable and documented, `status` the HTTP status, `retryable` a promise."""

    code = "error"
    status = 500
    retryable = False
    title = "Something went wrong"

    def __init__(self, detail: str, *, errors: Sequence[FieldError] = (), **context: str | int | None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.context = context


class InvalidInput(BillingError):
    """What was sent cannot be understood or breaks a rule; `errors` names every bad field."""

    code, status, title = "invalid_input", 422, "The input is not valid"


class Malformed(InvalidInput):
    """The bytes are not what they say they are: no JSON, no gzip, nested without end."""

    code, status, title = "malformed", 400, "The request cannot be read"


class UnsupportedMediaType(BillingError):
    code, status, title = "unsupported_media_type", 415, "This content type is not taken here"


class NotFound(BillingError):
    code, status, title = "not_found", 404, "There is no such thing"


class Conflict(BillingError):
    """The thing exists already, or its state does not allow this."""

    code, status, title = "conflict", 409, "This does not fit the present state"


class PreconditionFailed(BillingError):
    """If-Match names another version than the stored one."""

    code, status, title = "precondition_failed", 412, "Somebody else changed it in the meantime"


class NotAuthenticated(BillingError):
    code, status, title = "not_authenticated", 401, "Sign in or send a key"


class NotAllowed(BillingError):
    code, status, title = "not_allowed", 403, "The key or user may not do this"


class TenantClosed(NotAllowed):
    """The tenant was closed: what is there may be read and exported, nothing changes any more."""

    code, title = "tenant_closed", "The tenant is closed"


class TooLarge(BillingError):
    code, status, title = "too_large", 413, "More than the limit"


class Overloaded(BillingError):
    """A bounded queue is full: this caller shall slow down."""

    code, status, title, retryable = "overloaded", 429, "Too many requests at once", True


class Unavailable(BillingError):
    """The outcome is unknown or the store is away: send the same again with the same ids."""

    code, status, title, retryable = "unavailable", 503, "Not available at the moment", True
