"""What all tests share: a quiet environment, and a fence that keeps unit tests pure."""

import os
import socket
from pathlib import Path

# Before anything imports Polars or Ray: few threads on small machines, no calls home, authentication said explicitly.
os.environ.setdefault("POLARS_MAX_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "token")

import pytest

PURE = Path(__file__).parent / "billing"


@pytest.fixture(autouse=True)
def _pure_core(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of the pure core may not open a socket, sleep or start Ray: it would be no test of a function."""
    if PURE in request.path.parents:

        def forbidden(*_: object, **__: object) -> None:
            raise AssertionError("tests under tests/billing open no socket and do not sleep")

        monkeypatch.setattr(socket.socket, "connect", forbidden)
        monkeypatch.setattr("time.sleep", forbidden)
