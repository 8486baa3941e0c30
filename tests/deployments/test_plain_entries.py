"""Bodies of reservations read quickly are read as the careful way reads them, or not at all."""

import json
import random
from typing import Any

import msgspec
import pytest

from billing.errors import BillingError
from deployments.bodies import parse_json
from deployments.plain_entries import plain_entries

GOOD = {"customer": "acme", "id": "r1", "amount": "1.00"}
ODD = (
    b'[{"customer":"a","id":"r","id":"r2","amount":"1.00"}]',
    b'[{"customer":"a","id":"r","amount":"1.00","expires":"x","expires":"y"}]',
    b'[{"customer":"a\\"","id":"r","amount":"1.00"}]',
    b'[{"customer":"a","id":"r","amount":1.00}]',
    b'[{"customer":"a","id":"r","amount":"1.00","usage":null}]',
    b'[{"customer":"a","id":"r","amount":"1.00","expires":null}]',
    b'[{"customer":"a\x00","id":"r","amount":"1.00"}]',
    b'[{"customer":"\xff","id":"r","amount":"1.00"}]',
    b'[{"customer":"\\ud800","id":"r","amount":"1.00"}]',
    b'[{"customer":"a","id":"r"}]',
    b"[[]]",
    b"{}",
    b"",
    b"[",
)


@pytest.mark.parametrize("body", ODD)
def test_what_is_not_plain_is_left_to_the_careful_way(body: bytes) -> None:
    assert plain_entries(body) is None


def test_what_is_read_quickly_is_what_the_careful_way_reads() -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    taken = 0
    for _ in range(3_000):
        forms = [_some(chance) for _ in range(chance.randrange(1, 4))]
        text = json.dumps(forms, ensure_ascii=chance.random() < 0.5, indent=chance.choice([None, 2]))
        body = bytearray(text.encode("utf-8", "surrogatepass"))
        if chance.random() < 0.3:  # a byte changed somewhere
            body[chance.randrange(len(body))] = chance.choice(b'"{}[]:, ax\\\x00\xff')
        quick = plain_entries(bytes(body))
        if quick is not None:
            taken += 1
            try:
                careful: Any = parse_json(bytes(body))
            except BillingError as error:
                pytest.fail(f"seed {seed}: {bytes(body)!r} was taken, the careful way says {error.detail}")
            assert msgspec.to_builtins(quick) == careful, f"seed {seed}: {bytes(body)!r}"
    assert taken > 500


def _some(chance: random.Random) -> dict[str, Any]:
    form: dict[str, Any] = {key: chance.choice([value, value, value, "ä", "a b"]) for key, value in GOOD.items()}
    if chance.random() < 0.3:
        form["expires"] = chance.choice(["2026-05-10T12:00:00Z", None, 7])
    if chance.random() < 0.1:
        form[chance.choice(["usage", "customer", "x"])] = chance.choice(["", {}, "y"])
    return form
