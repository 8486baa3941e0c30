"""What travels between a router and a shard for a decision: a named request in, its answer or the error it met out.

Owns the frame (JSON head, then the bytes that the decision gave) and how errors cross it: by their code, as one of the
same family, so that a caller sees what the decision raised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from billing.errors import (
    BillingError,
    Conflict,
    FieldError,
    InvalidInput,
    NotAllowed,
    NotFound,
    Overloaded,
    PreconditionFailed,
    TooLarge,
    Unavailable,
)
from storage.object_store import StoreRefused

ANY_PARTITION = -1


class Elsewhere(Unavailable):
    """A decision about several keys, and some of their partitions are in other lanes: nothing was decided."""

    def __init__(self, detail: str, owners: Mapping[int, tuple[int, int]]) -> None:
        super().__init__(detail)
        self.owners = dict(owners)  # partition: generation, lane


_ERRORS: dict[str, type[BillingError]] = {
    error.code: error
    for error in (
        Conflict,
        InvalidInput,
        NotAllowed,
        NotFound,
        Overloaded,
        PreconditionFailed,
        StoreRefused,
        TooLarge,
        Unavailable,
    )
}


@dataclass(frozen=True)
class DecisionRequest:
    tenant_id: str
    partition: int  # the home of the key it is about; ANY_PARTITION: about the lane
    name: str
    payload: bytes


@dataclass(frozen=True)
class DecisionAnswer:
    """`owner` is set when another lane owns the partition: nothing was decided."""

    lane: int
    number: int  # what was decided lies at or below it
    body: bytes
    error: BillingError | None = None
    owner: tuple[int, int] | None = None  # (generation, lane)


def encode_request(request: DecisionRequest) -> bytes:
    head = {"tenant": request.tenant_id, "partition": request.partition, "name": request.name}
    return _framed(head, request.payload)


def decode_request(data: bytes) -> DecisionRequest:
    head, body = _parts(data)
    return DecisionRequest(head["tenant"], head["partition"], head["name"], body)


def encode_decided(lane: int, number: int, body: bytes) -> bytes:
    return _framed({"lane": lane, "number": number}, body)


def encode_moved(lane: int, generation: int, owner: int) -> bytes:
    return _framed({"lane": lane, "number": -1, "owner": [generation, owner]}, b"")


def encode_failure(error: BillingError) -> bytes:
    code = error.code if error.code in _ERRORS else (Unavailable.code if error.retryable else "error")
    fields = [[one.pointer, one.detail] for one in error.errors]
    head: dict[str, Any] = {"lane": -1, "number": -1, "failed": code, "detail": error.detail, "errors": fields}
    if isinstance(error, Elsewhere):
        head["owners"] = [[partition, *owner] for partition, owner in error.owners.items()]
    return _framed(head, b"")


def decode_decided(data: bytes) -> DecisionAnswer:
    head, body = _parts(data)
    error: BillingError | None = None
    if "failed" in head:
        fields = [FieldError(pointer, detail) for pointer, detail in head["errors"]]
        error = _ERRORS.get(head["failed"], BillingError)(head["detail"], errors=fields)
    if "owners" in head:
        owners = {partition: (generation, lane) for partition, generation, lane in head["owners"]}
        error = Elsewhere(head["detail"], owners)
    owner = (head["owner"][0], head["owner"][1]) if "owner" in head else None
    return DecisionAnswer(head["lane"], head["number"], body, error, owner)


def _framed(head: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join([len(text).to_bytes(4, "little"), text, body])


def _parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    end = 4 + int.from_bytes(data[:4], "little")
    return json.loads(data[4:end]), data[end:]
