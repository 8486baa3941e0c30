"""Logs, traces and metrics leave the process as promised; a real receiver of OTLP over HTTP takes them."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ROOT = Path(__file__).resolve().parents[2]
TRACE = "0af7651916cd43dd8448eb211c80319c"
PROGRAM = """
import asyncio, sys
from fastapi import FastAPI
from fastapi.testclient import TestClient
from deployments.tracing import FRAMEWORK_TELEMETRY_OFF, Traced
from storage import telemetry

telemetry.start("api")
telemetry.start("api")  # a second start changes nothing
app = FastAPI(telemetry=FRAMEWORK_TELEMETRY_OFF)

@app.get("/v1/customers/{code}")
async def customer(code: str):
    return {"code": code}

app.add_middleware(Traced)
with TestClient(app) as http:
    answer = http.get("/v1/customers/acme-secret", headers={"traceparent": "00-TRACE-b7ad6b7169203331-01"})
    assert answer.status_code == 200
    print(answer.headers.get("traceparent", "none"))
    http.get("/nowhere")
telemetry.flush()
""".replace("TRACE", TRACE)


class Receiver(ThreadingHTTPServer):
    """Takes what an OpenTelemetry collector would take."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: dict[str, list[bytes]] = {"/v1/traces": [], "/v1/metrics": []}


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        import gzip

        body = self.rfile.read(int(self.headers["Content-Length"]))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        self.server.bodies[self.path].append(body)
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the test looks at the bodies."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def run(endpoint: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CLOUDBILLING_OTEL_ENDPOINT": endpoint, "CLOUDBILLING_LOG_LEVEL": "INFO"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def test_one_variable_sends_spans_and_metrics_that_go_on_with_the_trace_of_the_caller(receiver: Receiver) -> None:
    done = run(f"http://127.0.0.1:{receiver.server_address[1]}")
    spans = [
        (span, scope.resource.attributes)
        for body in receiver.bodies["/v1/traces"]
        for scope in ExportTraceServiceRequest.FromString(body).resource_spans
        for part in scope.scope_spans
        for span in part.spans
    ]
    span, resource = next(pair for pair in spans if pair[0].name == "GET /v1/customers/{code}")
    assert span.trace_id.hex() == TRACE
    assert ("service.name", "api") in {(one.key, one.value.string_value) for one in resource}
    names = {
        metric.name
        for body in receiver.bodies["/v1/metrics"]
        for scope in ExportMetricsServiceRequest.FromString(body).resource_metrics
        for part in scope.scope_metrics
        for metric in part.metrics
    }
    assert "http.server.request.duration" in names
    assert done.stdout.startswith(f"00-{TRACE}-"), "the answer names the trace"
    sent = b"".join(receiver.bodies["/v1/traces"] + receiver.bodies["/v1/metrics"])
    assert b"acme-secret" not in sent, "codes of customers stay out of tags"


def test_logs_are_json_lines_with_the_trace_id_and_without_codes(receiver: Receiver) -> None:
    done = run(f"http://127.0.0.1:{receiver.server_address[1]}")
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    line = next(line for line in lines if line.get("route") == "/v1/customers/{code}")
    assert (line["event"], line["status"], line["service"], line["level"]) == ("request", 200, "api", "info")
    assert line["trace_id"] == TRACE
    assert "acme-secret" not in done.stderr


def test_nothing_is_sent_while_the_variable_is_empty(receiver: Receiver) -> None:
    done = run("")
    assert receiver.bodies == {"/v1/traces": [], "/v1/metrics": []}
    assert any('"event": "request"' in line for line in done.stderr.splitlines()), "logs are there all the same"
