"""The client against a server that answers as Ray Serve does while a replica is replaced."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from billing.errors import BillingError, NotFound
from cluster.client import Client

Answer = tuple[int, str, bytes]
PROBLEM, TEXT, JSON = "application/problem+json", "text/plain", "application/json"


@pytest.fixture
def server() -> Iterator[tuple[str, list[Answer], list[str]]]:
    answers: list[Answer] = []
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.headers["Idempotency-Key"])
            self.rfile.read(int(self.headers["Content-Length"]))
            status, kind, body = answers.pop(0)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a test's output is its own."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_address[1]}", answers, seen
    http.shutdown()
    http.server_close()


def test_what_serve_answers_for_a_dead_replica_is_sent_again_with_the_same_key(
    server: tuple[str, list[Answer], list[str]],
) -> None:
    url, answers, seen = server
    answers += [(500, TEXT, b"Internal Server Error"), (404, TEXT, b"Path '/v1' not found."), (200, JSON, b'{"a": 1}')]
    with Client(url, "k") as client:
        assert client.post("/v1/things", {}) == {"a": 1}
    assert len(seen) == 3
    assert len(set(seen)) == 1


def test_what_the_platform_itself_answers_is_believed(server: tuple[str, list[Answer], list[str]]) -> None:
    url, answers, seen = server
    answers += [(500, PROBLEM, b'{"detail": "a bug"}'), (404, PROBLEM, b'{"detail": "no such thing"}')]
    with Client(url, "k") as client:
        with pytest.raises(BillingError, match="a bug"):
            client.post("/v1/things", {})
        with pytest.raises(NotFound):
            client.post("/v1/things", {})
    assert len(seen) == 2
