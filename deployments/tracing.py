"""One span, one count and one log line per request (or group of them), as a plain ASGI shell around the application.

The trace goes on where the caller's `traceparent` left off; the answer names it (`traceparent`), so that a complaint
can be found in logs and traces. No path parameter, key, body or customer goes into tags or lines.
"""

import time
from typing import Any

import structlog
from fastapi.telemetry import TelemetryConfig
from opentelemetry import metrics, trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from storage.telemetry import context_of, traceparent

LOG = structlog.get_logger("cloudbilling.http")
QUIET = frozenset({"/v1/health/live", "/v1/health/ready"})  # asked every second; a line each would hide the rest
TOLD = "told"  # in a request's state: a line of the log tells of it already, with others (deployments/usage_groups.py)
# FastAPI's own spans name whole paths, and with them codes of customers. Ours name the route.
FRAMEWORK_TELEMETRY_OFF: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
_tracer = trace.get_tracer("cloudbilling.http")
_meter = metrics.get_meter("cloudbilling.http")
_seconds = _meter.create_histogram("http.server.request.duration", unit="s", description="Time to the whole answer")


class Traced:
    """ASGI middleware; outermost, so that it sees refusals and failures too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent: dict[str, Any] = {"status": 500}
        parent = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"), None)
        method = scope["method"]
        context = context_of(parent) if parent else None
        with _tracer.start_as_current_span(f"{method} ?", context=context, kind=trace.SpanKind.SERVER) as span:
            header = traceparent() if span.get_span_context().is_valid else None

            async def watched(message: Message) -> None:
                if message["type"] == "http.response.start":
                    sent["status"] = message["status"]
                    if header:
                        message.setdefault("headers", []).append((b"traceparent", header.encode()))
                await send(message)

            began = time.perf_counter()
            try:
                await self._app(scope, receive, watched)
            finally:
                seconds = time.perf_counter() - began
                route = getattr(scope.get("route"), "path", None) or "other"
                tags = {"http.request.method": method, "http.route": route, "http.response.status_code": sent["status"]}
                span.update_name(f"{method} {route}")
                span.set_attributes(tags)
                if sent["status"] >= 500:
                    span.set_status(trace.StatusCode.ERROR)
                _seconds.record(seconds, tags)
                if route not in QUIET and (sent["status"] >= 400 or not scope.get("state", {}).get(TOLD)):
                    LOG.info("request", method=method, route=route, status=sent["status"], ms=round(seconds * 1e3, 2))
