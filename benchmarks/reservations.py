"""Reservations a second over HTTP, each durable before its answer: one at a time, 32 callers at once, and in batches.

Every reservation is of a wallet that is large enough; at the end what the wallets say is reserved must be the sum of
what was granted, to the cent. A batch has 1,000 reservations of many customers, so all lanes decide at once.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx

from benchmarks.platform import platform
from benchmarks.runner import Say, percentiles
from benchmarks.senders import Answer, as_fast_as_answered
from cluster.client import Client

CALLERS, BATCH, BATCHES_AT_ONCE = 32, 1_000, 4
AMOUNT = Decimal("0.01")


@dataclass(frozen=True)
class Size:
    customers: int
    alone: int  # one caller
    together: int  # 32 callers
    batches: int


SIZES = {
    "small": Size(customers=20, alone=20, together=64, batches=2),
    "normal": Size(customers=1_000, alone=1_500, together=10_000, batches=100),
    "long": Size(customers=2_000, alone=10_000, together=100_000, batches=500),
}


def run(size: str, say: Say) -> dict[str, Any]:
    chosen = SIZES[size]
    batch = BATCH if size != "small" else 50
    with platform(size, chosen.customers) as ours:
        say(f"{ours.kind} at {ours.url} is up")
        with Client(ours.url, ours.key) as client:
            top_ups = [
                {"at": "2026-01-01", "top_up": {"customer": f"c{n}", "amount": "1000000.00", "kind": "purchased"}}
                for n in range(chosen.customers)
            ]
            for first in range(0, len(top_ups), 5_000):
                client.steps(top_ups[first : first + 5_000])
        asyncio.run(_reserve(ours.quick, ours.key, _forms("warm", 40, chosen.customers), 1, CALLERS))
        alone_s, alone = asyncio.run(_reserve(ours.quick, ours.key, _forms("a", chosen.alone, chosen.customers), 1, 1))
        say(f"one caller: {chosen.alone / alone_s:,.0f}/s, {percentiles(alone)}")
        forms = _forms("t", chosen.together, chosen.customers)
        together_s, together = asyncio.run(_reserve(ours.quick, ours.key, forms, 1, CALLERS))
        say(f"{CALLERS} callers: {chosen.together / together_s:,.0f}/s, {percentiles(together)}")
        forms = _forms("b", chosen.batches * batch, chosen.customers)
        batched_s, batched = asyncio.run(_reserve(ours.quick, ours.key, forms, batch, BATCHES_AT_ONCE))
        say(f"batches of {batch}: {len(forms) / batched_s:,.0f}/s")
        made = 40 + chosen.alone + chosen.together + len(forms)
        reserved = _reserved(ours.url, ours.key)
        assert reserved == made * AMOUNT, f"{reserved} reserved, {made * AMOUNT} granted"
    return {
        "figure": round(len(forms) / batched_s),
        "unit": "reservations/s",
        "batch": batch,
        **percentiles(batched),
        "single": round(chosen.alone / alone_s),
        **{f"single_{name}": value for name, value in percentiles(alone).items()},
        "together": round(chosen.together / together_s),
        "callers": CALLERS,
        **{f"together_{name}": value for name, value in percentiles(together).items()},
        "platform": ours.kind,
    }


def _forms(name: str, count: int, customers: int) -> list[dict[str, str]]:
    return [{"customer": f"c{n % customers}", "id": f"{name}-{n}", "amount": str(AMOUNT)} for n in range(count)]


async def _reserve(
    url: str, key: str, forms: list[dict[str, str]], batch: int, callers: int
) -> tuple[float, list[float]]:
    """Seconds for all of them, and for each request; every one must be granted in full."""
    parts = [forms[first : first + batch] for first in range(0, len(forms), batch)]
    bodies = [json.dumps(part if batch > 1 else part[0], separators=(",", ":")).encode() for part in parts]
    times: list[float] = []

    def take(_: bytes, answer: Answer, seconds: float) -> None:
        assert answer.status == 200, answer.body[:500]
        times.append(seconds)
        found = json.loads(answer.body)
        for one in found["items"] if batch > 1 else [found]:
            assert one.get("granted") == str(AMOUNT), one

    seconds = await as_fast_as_answered(
        url, key, bodies, callers, take, path="/v1/reservations", content_type="application/json"
    )
    return seconds, times


def _reserved(url: str, key: str) -> Decimal:
    """What all wallets of the tenant say is reserved."""
    total, cursor = Decimal(0), ""
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as http:
        for _ in range(1_000):
            answer = http.get(f"/v1/wallets?limit=500{cursor}")
            assert answer.status_code == 200, answer.text[:500]
            page = answer.json()
            total += sum(
                (Decimal(wallet["reserved"]) for one in page["items"] for wallet in one["wallets"]), Decimal(0)
            )
            if page["next_cursor"] is None:
                return total
            cursor = f"&cursor={page['next_cursor']}"
    raise AssertionError("more pages than wallets")
