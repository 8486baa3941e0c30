"""The last span of a request's trace: from a shard taking it in to its commit. Costs nothing where nobody traces.

Many requests travel in one call and are committed in one group, so each trace gets a span of its own with the same
number: one trace goes from HTTP to the log. No key, customer or body goes into a tag.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from opentelemetry import trace

from storage.telemetry import context_of

TRACES_MAX = 64  # of one call; further requests of it end in the router's span
_tracer = trace.get_tracer("cloudbilling.usage_log")


def committed(traces: Sequence[str], began_ns: int, lane: int, number: int, rows: int) -> None:
    """End what `traces` (W3C headers) began with the number under which it was committed."""
    tags = {"cloudbilling.lane": lane, "cloudbilling.number": number, "cloudbilling.rows": rows}
    ended_ns = time.time_ns()
    for header in traces:
        span = _tracer.start_span("usage commit", context=context_of(header), start_time=began_ns, attributes=tags)
        span.end(ended_ns)
