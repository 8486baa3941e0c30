"""What travels between a router and a rating shard: bytes in, bytes out, the same for Ray and for one process.

Owns the frame around Arrow IPC: a JSON head, then columns. Rows of several requests and tenants lie in one batch as
consecutive blocks; the answer has one verdict and one reason code a row, in the same order.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from billing.usage import EVENT_SCHEMA, Reason
from storage.usage_log.partitions import EventIds

Codes = npt.NDArray[np.uint8]
REASONS: tuple[Reason, ...] = tuple(Reason)
NO_REASON = 255
UNJUDGED = 252  # as a reason inside a shard: stored, and nobody could say whether it can be rated; suspended
OVERLOADED = 253  # as a verdict: the tenant's queue is full; nothing was stored
NOT_OWNED = 254  # as a verdict: this shard does not own the row's partition; nothing was stored

_COLUMNS = (*EVENT_SCHEMA.names(), "partition", "id_high", "id_low")


@dataclass(frozen=True)
class Block:
    """Consecutive rows of one tenant; the shard loads this master number before it answers them."""

    tenant_id: str
    rows: int
    master_number: int | None = None


@dataclass(frozen=True)
class Batch:
    blocks: tuple[Block, ...]
    events: pl.DataFrame
    partitions: Codes
    ids: EventIds
    traces: tuple[str, ...] = ()  # W3C `traceparent` of the requests in it, where somebody traces


@dataclass(frozen=True)
class Answer:
    """`failed` is the code of an error that concerns the whole batch, then there are no verdicts."""

    verdicts: Codes
    reasons: Codes
    lane: int
    number: int  # all that is answered lies at or below this number of the lane
    log_time_us: int
    owners: dict[int, tuple[int, int]]  # partition that this shard does not own -> (generation, lane)
    failed: str | None = None
    detail: str = ""


def encode_batch(
    blocks: Sequence[Block], events: pl.DataFrame, partitions: Codes, ids: EventIds, traces: Sequence[str] = ()
) -> bytes:
    # Put side by side: a query would cost a request of one event more than all the rest of this.
    frame = events.hstack(
        [pl.Series("partition", partitions), pl.Series("id_high", ids.high), pl.Series("id_low", ids.low)]
    )
    assert tuple(frame.columns) == _COLUMNS, "events come in the order of EVENT_SCHEMA"
    buffer = io.BytesIO()
    head: dict[str, Any] = {"blocks": [[block.tenant_id, block.rows, block.master_number] for block in blocks]}
    if traces:
        head["traces"] = list(traces)
    _write_head(buffer, head)
    frame.write_ipc_stream(buffer, compat_level=pl.CompatLevel.newest())
    return buffer.getvalue()


def decode_batch(data: bytes) -> Batch:
    head, body = _read_head(data)
    frame = pl.read_ipc_stream(io.BytesIO(body))
    ids = EventIds(frame["id_high"].to_numpy(), frame["id_low"].to_numpy())
    return Batch(
        blocks=tuple(Block(*block) for block in head["blocks"]),
        # Not `select`: for that Polars starts a query in another thread.
        events=pl.DataFrame([frame.get_column(name) for name in EVENT_SCHEMA]),
        partitions=frame["partition"].to_numpy(),
        ids=ids,
        traces=tuple(head.get("traces", ())),
    )


def encode_answer(answer: Answer) -> bytes:
    buffer = io.BytesIO()
    head = {
        "lane": answer.lane,
        "number": answer.number,
        "log_time_us": answer.log_time_us,
        "owners": [[partition, *owner] for partition, owner in answer.owners.items()],
        "failed": answer.failed,
        "detail": answer.detail,
    }
    _write_head(buffer, head)
    buffer.write(answer.verdicts.tobytes())
    buffer.write(answer.reasons.tobytes())
    return buffer.getvalue()


def decode_answer(data: bytes) -> Answer:
    head, body = _read_head(data)
    codes = np.frombuffer(body, np.uint8)
    rows = len(codes) // 2
    return Answer(
        verdicts=codes[:rows],
        reasons=codes[rows:],
        lane=head["lane"],
        number=head["number"],
        log_time_us=head["log_time_us"],
        owners={partition: (generation, lane) for partition, generation, lane in head["owners"]},
        failed=head["failed"],
        detail=head["detail"],
    )


def failed_answer(lane: int, failed: str, detail: str) -> Answer:
    nothing = np.empty(0, np.uint8)
    return Answer(nothing, nothing, lane, -1, 0, {}, failed, detail)


def _write_head(buffer: io.BytesIO, head: dict[str, Any]) -> None:
    text = json.dumps(head, separators=(",", ":")).encode()
    buffer.write(len(text).to_bytes(4, "little"))
    buffer.write(text)


def _read_head(data: bytes) -> tuple[dict[str, Any], memoryview]:
    view = memoryview(data)
    length = int.from_bytes(view[:4], "little")
    return json.loads(bytes(view[4 : 4 + length])), view[4 + length :]
