"""Webhooks: what a message says, how it is signed, when it is tried again. Standard Webhooks 1.0.

Owns the form of messages and signatures and the schedule; what there is to tell is `billing/events.py`, who is told
`storage/sql/webhooks.py`, the way there `storage/gateways/webhook_http.py`. A message's id is a function of what it
tells, so whoever tells it twice says so.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

SECRET_BYTES = 32
TOLERANCE_S = 300  # of a receiver that checks the timestamp
# After try n so long until the next; then the delivery is dead and waits for somebody to replay it.
WAITS = tuple(timedelta(seconds=seconds) for seconds in (5, 60, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000))
TRIES_MAX = len(WAITS) + 1
RETRY_AFTER_MAX = timedelta(days=1)


def new_secret(random_bytes: bytes) -> str:
    """A signing secret as it is shown: `whsec_` and base64."""
    assert len(random_bytes) >= 24, "Standard Webhooks asks for 24 to 64 random bytes"
    return "whsec_" + base64.b64encode(random_bytes).decode()


def key_of(secret: str) -> bytes:
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error as error:
        raise ValueError("a secret is whsec_ and base64") from error


def headers_of(message_id: str, at: datetime, body: bytes, secrets: Sequence[str]) -> dict[str, str]:
    """The three headers; with several secrets (one is being replaced) a signature of each, the newest first."""
    seconds = int(at.timestamp())
    signed = f"{message_id}.{seconds}.".encode() + body
    signatures = [
        "v1," + base64.b64encode(hmac.new(key_of(secret), signed, hashlib.sha256).digest()).decode()
        for secret in secrets
    ]
    return {"webhook-id": message_id, "webhook-timestamp": str(seconds), "webhook-signature": " ".join(signatures)}


def is_signed(headers: Mapping[str, str], body: bytes, secret: str, now: datetime) -> bool:
    """What a receiver checks: a signature of the raw body, and a timestamp that is not old."""
    stamp = headers.get("webhook-timestamp", "")
    if not stamp.isdigit() or abs(int(now.timestamp()) - int(stamp)) > TOLERANCE_S:
        return False
    at = datetime.fromtimestamp(int(stamp), now.tzinfo)
    expected = headers_of(headers.get("webhook-id", ""), at, body, [secret])["webhook-signature"]
    return any(hmac.compare_digest(expected, one) for one in headers.get("webhook-signature", "").split(" "))


def message_body(event_type: str, at: datetime, data: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode({"type": event_type, "timestamp": at, "data": data})


def event_id(tenant_id: str, number: int) -> str:
    """The name of a message out of the outbox: of the tenant and the row's number there, the same for ever."""
    return f"event_{tenant_id}_{number}"


def alert_id(tenant_id: str, budget: str, period_start: datetime, threshold: str) -> str:
    """The name of an alert for ever, the same in every process: of the row's own id (budget, period, threshold)."""
    parts = (tenant_id, budget, period_start.astimezone(UTC).isoformat(), threshold)
    text = b"".join(f"{len(part.encode())}:".encode() + part.encode() for part in parts)
    return "alert_" + hashlib.blake2b(text, digest_size=16).hexdigest()


def next_try(tries: int, now: datetime, retry_after: timedelta | None = None) -> datetime | None:
    """When to try again after so many tries; None: no more. A receiver may ask for longer, not for sooner."""
    if tries >= TRIES_MAX:
        return None
    wait = WAITS[tries - 1]
    if retry_after is not None:
        wait = max(wait, min(retry_after, RETRY_AFTER_MAX))
    return now + wait
