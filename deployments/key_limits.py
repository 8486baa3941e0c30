"""How much one API key may ask: requests and events a second, as buckets that fill by themselves.

Owns the counting and the headers that tell of it. A bucket holds what may come at once; a batch of events that is more
than is left is taken as a whole and paid back by waiting, so that no batch is too large for its key. Counted in this
process: where several answer, each gives its share. Whether the platform is full is another matter (queues, 429/503).
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from billing.errors import FieldError, InvalidInput, Overloaded

BUCKETS_MAX = 20_000
RATE_MAX = 1_000_000_000
BURST_S = 2  # what a bucket holds where nobody says: so many seconds of its rate
NAMES = ("requests_per_s", "requests_burst", "events_per_s", "events_burst")


@dataclass(frozen=True)
class KeyLimits:
    """Whole numbers; None: not limited, or the burst that follows from the rate."""

    requests_per_s: int | None = None
    requests_burst: int | None = None
    events_per_s: int | None = None
    events_burst: int | None = None

    @classmethod
    def of(cls, form: Mapping[str, int]) -> "KeyLimits":
        return cls(**{name: form.get(name) for name in NAMES})

    def over(self, other: "KeyLimits") -> "KeyLimits":
        """These, and the other's where nothing is said."""
        own = {name: getattr(self, name) for name in NAMES}
        for what in ("requests", "events"):
            if own[f"{what}_per_s"] is None:
                own[f"{what}_per_s"] = getattr(other, f"{what}_per_s")
                own[f"{what}_burst"] = getattr(other, f"{what}_burst")
        return KeyLimits(**own)

    def rate_and_burst(self, what: str) -> tuple[int, int] | None:
        rate: int | None = getattr(self, f"{what}_per_s")
        if rate is None:
            return None
        burst: int | None = getattr(self, f"{what}_burst")
        return rate, burst if burst is not None else BURST_S * rate

    @property
    def none(self) -> bool:
        return self.requests_per_s is None and self.events_per_s is None


def parse_limits(form: Any, pointer: str = "/limits") -> dict[str, int]:
    """What was sent as limits; every mistake with its place. `{}` and null take the platform's."""
    if form is None:
        return {}
    if not isinstance(form, dict):
        raise InvalidInput("limits is an object", errors=[FieldError(pointer, "an object is needed")])
    errors = [FieldError(f"{pointer}/{name}", f"is none of {', '.join(NAMES)}") for name in form if name not in NAMES]
    found: dict[str, int] = {}
    for name in NAMES:
        value = form.get(name)
        if value is None:
            continue
        if type(value) is not int or not 1 <= value <= RATE_MAX:
            errors.append(FieldError(f"{pointer}/{name}", f"a whole number from 1 to {RATE_MAX:,} is needed"))
        else:
            found[name] = value
    for what in ("requests", "events"):
        if f"{what}_burst" in found and f"{what}_per_s" not in found:
            errors.append(FieldError(f"{pointer}/{what}_burst", f"needs {what}_per_s"))
    if errors:
        raise InvalidInput(f"{errors[0].pointer}: {errors[0].detail}", errors=errors)
    return found


@dataclass(slots=True)
class _Bucket:
    left: float  # no money: how many may come now; below zero after a batch that was more
    at_s: float


@dataclass(frozen=True)
class Standing:
    """One bucket after a request, for the headers."""

    what: str
    rate: int
    burst: int
    left: int
    full_in_s: int


@dataclass
class KeyBuckets:
    """All buckets of this process, bounded: the key that asked longest ago is forgotten, its bucket is full again."""

    share: int = 1  # processes that answer
    now_s: Callable[[], float] = time.monotonic
    _buckets: OrderedDict[tuple[str, str], _Bucket] = field(default_factory=OrderedDict)

    def take(self, key_id: str, limits: KeyLimits, what: str, count: int) -> Standing | None:
        """Count; None where nothing limits it. Overloaded (429) with the seconds until something is left again."""
        found = limits.rate_and_burst(what)
        if found is None:
            return None
        rate, burst = max(found[0] / self.share, 1e-6), max(found[1] / self.share, 1.0)
        now = self.now_s()
        bucket = self._buckets.get((key_id, what))
        if bucket is None:
            bucket = self._buckets[key_id, what] = _Bucket(burst, now)
            while len(self._buckets) > BUCKETS_MAX:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end((key_id, what))
        bucket.left = min(burst, bucket.left + (now - bucket.at_s) * rate)
        bucket.at_s = now
        if bucket.left < 1:
            wait = max(1, math.ceil((1 - bucket.left) / rate))
            raise Overloaded(
                f"this key may send {found[0]:,} {what} a second; come back in {wait} s with the same again",
                retry_after=wait,
            )
        bucket.left -= count
        full_in = math.ceil((burst - bucket.left) / rate)
        return Standing(what, found[0], found[1], max(0, math.floor(bucket.left)), full_in)


def headers_of(standings: Mapping[str, Standing]) -> list[tuple[bytes, bytes]]:
    """`RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers): what is allowed, what is left."""
    policies = [f'"{one.what}";q={one.burst};w={max(1, math.ceil(one.burst / one.rate))}' for one in standings.values()]
    left = [f'"{one.what}";r={one.left};t={one.full_in_s}' for one in standings.values()]
    return [(b"ratelimit-policy", ", ".join(policies).encode()), (b"ratelimit", ", ".join(left).encode())]


class LimitHeaders:
    """ASGI middleware: adds what was counted for a request to its answer, refusals included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                standings = scope.get("state", {}).get("key_limits")
                if standings:
                    message.setdefault("headers", []).extend(headers_of(standings))
            await send(message)

        await self._app(scope, receive, told)
