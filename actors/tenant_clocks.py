"""The times of test tenants in a lane: set by a decision, recorded as CLOCK_SET, never back. No Ray in here.

A test tenant has a time of its own (docs/usage-log.md): in its rows `received_at`, expiry and the limit for the future
go by it. It is written into every lane, so that each lane's rows say by themselves what time it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import polars as pl

from actors.followers import NO_ROWS, Decided, Decision, LogMoment, LogRow, log_rows
from storage.usage_log.segment import RowKind

SET_CLOCK = "set_clock"
SOURCE = "cloudbilling:clock"  # of ids; no sender may use it


def clock_rows(times: Mapping[str, int], place: str) -> pl.DataFrame:
    """The clocks as they stand, for a partition that goes to a lane which may not know them; `place` makes ids new."""
    rows = [
        log_rows(tenant_id, [LogRow(RowKind.CLOCK_SET, SOURCE, f"{time_us}@{place}", "", time_us, type="clock")])
        for tenant_id, time_us in sorted(times.items())
    ]
    return pl.concat(rows) if rows else NO_ROWS


class TenantClocks:
    name = "clocks"
    version = 1

    def __init__(self) -> None:
        self.decisions: Mapping[str, Decision] = {SET_CLOCK: self._set}
        self.times: Mapping[str, int] = {}  # tenant -> microseconds; replaced, never changed in place

    def watches(self, tenant_id: str) -> bool:
        return False

    def propose(self, rows: pl.DataFrame, moment: LogMoment) -> pl.DataFrame:
        return NO_ROWS

    def apply(self, rows: pl.DataFrame, moment: LogMoment) -> None:
        if int(RowKind.CLOCK_SET) not in rows["kind"].to_list():
            return
        set_ = rows.filter(pl.col("kind") == int(RowKind.CLOCK_SET)).select("tenant", pl.col("time").to_physical())
        if set_.height:
            times = dict(self.times)
            for tenant_id, time_us in set_.iter_rows():
                times[tenant_id] = max(times.get(tenant_id, time_us), time_us)
            self.times = times

    def freeze(self) -> Callable[[], bytes]:
        times = self.times
        return lambda: json.dumps(dict(times)).encode()

    def thaw(self, data: bytes, number: int) -> None:
        self.times = json.loads(data)

    def clear(self) -> None:
        self.times = {}

    def _set(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        """Move a clock on; one that is there or further stays. Answers the time it has then."""
        wanted = int(payload)
        now = self.times.get(tenant_id)
        if now is not None and wanted <= now:
            return Decided(NO_ROWS, str(now).encode())
        # With the lane: its partitions move, and another lane that sets the same time may have them then.
        id_ = f"{wanted}:{moment.lane}:{moment.number}"
        row = LogRow(RowKind.CLOCK_SET, SOURCE, id_, customer="", time_us=wanted, type="clock")
        return Decided(log_rows(tenant_id, [row]), payload)
