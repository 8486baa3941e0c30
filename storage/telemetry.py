"""What leaves a process for those who watch it: JSON logs with trace ids; traces and metrics over OTLP if switched on.

Owns set-up and nothing else: spans and counters stand beside the facts that they tell (OpenTelemetry API, which costs
next to nothing while no exporter is set). Logs never hold personal data, keys or bodies.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.propagate import extract, inject

ENDPOINT_VARIABLE, LEVEL_VARIABLE = "CLOUDBILLING_OTEL_ENDPOINT", "CLOUDBILLING_LOG_LEVEL"
_EXPORT_MS = 10_000
_lock = threading.Lock()
_started: set[str] = set()  # one logger and one provider a process; a second start changes nothing


def start(service: str, *, endpoint: str | None = None, level: str | None = None) -> None:
    """Set up logs, and with an OTLP/HTTP endpoint traces and metrics, for this process under this service name.

    What is not given comes from the environment that the starting process has left to its children (`pass_on`).
    Which share of requests is traced is the standard variable OTEL_TRACES_SAMPLER(_ARG); the default is all.
    """
    endpoint = os.environ.get(ENDPOINT_VARIABLE, "") if endpoint is None else endpoint
    level = os.environ.get(LEVEL_VARIABLE, "INFO") if level is None else level
    with _lock:
        if "logs" not in _started:
            _started.add("logs")
            _start_logs(service, level)
        if endpoint and "export" not in _started:
            _started.add("export")
            _start_export(service, endpoint.rstrip("/"))


def load() -> None:
    """Import what `start` needs and nothing of it sets up: for a process that has time now and none later."""
    import structlog  # noqa: F401

    if os.environ.get(ENDPOINT_VARIABLE):
        import opentelemetry.exporter.otlp.proto.http.metric_exporter
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.metrics  # noqa: F401


def pass_on(*, endpoint: str, level: str) -> None:
    """Leave the settings to every process that this one starts: actors and replicas of Ray among them."""
    os.environ[ENDPOINT_VARIABLE] = endpoint
    os.environ[LEVEL_VARIABLE] = level


def flush(timeout_ms: int = 5_000) -> None:
    """Send what waits; before a process leaves in order."""
    for provider in (trace.get_tracer_provider(), metrics.get_meter_provider()):
        force = getattr(provider, "force_flush", None)  # the API's own provider, used while all is off, has none
        if force is not None:
            force(timeout_ms)


def traceparent() -> str | None:
    """The W3C header of the current span, to travel in our own envelope to an actor or a task; None outside of one."""
    carrier: dict[str, str] = {}
    inject(carrier)
    return carrier.get("traceparent")


def context_of(header: str | None) -> Any:
    """The context that a `traceparent` names, for `tracer.start_as_current_span(..., context=...)`."""
    return extract({"traceparent": header} if header else {})


def _start_logs(service: str, level: str) -> None:
    import structlog  # here: it costs a third of a second of CPU time, which a shard that comes back does not have

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _with_trace_ids,
        lambda _logger, _name, event: {"service": service, **event},
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.EventRenamer("event"),
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for chatty in ("httpx", "httpcore", "urllib3", "botocore", "fontTools", "weasyprint"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _with_trace_ids(_logger: Any, _name: str, event: dict[str, Any]) -> dict[str, Any]:
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        event["trace_id"] = f"{span.trace_id:032x}"
        event["span_id"] = f"{span.span_id:016x}"
    return event


def _start_export(service: str, endpoint: str) -> None:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": service, "service.namespace": "cloudbilling"})
    tracers = TracerProvider(resource=resource)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces")))
    trace.set_tracer_provider(tracers)
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(endpoint=f"{endpoint}/v1/metrics"), export_interval_millis=_EXPORT_MS
    )
    metrics.set_meter_provider(MeterProvider(resource=resource, metric_readers=[reader]))
