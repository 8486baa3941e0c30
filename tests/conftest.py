"""What all tests share: a quiet environment, and a fence that keeps unit tests pure."""

import functools
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before anything imports Polars or Ray: few threads on small machines, no calls home, authentication said explicitly.
os.environ.setdefault("POLARS_MAX_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "token")

import pytest
from xdist.scheduler import LoadScopeScheduling

PURE = Path(__file__).parent / "billing"


@pytest.fixture(autouse=True)
def _pure_core(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of the pure core may not open a socket, sleep or start Ray: it would be no test of a function."""
    if PURE in request.path.parents:

        def forbidden(*_: object, **__: object) -> None:
            raise AssertionError("tests under tests/billing open no socket and do not sleep")

        monkeypatch.setattr(socket.socket, "connect", forbidden)
        monkeypatch.setattr("time.sleep", forbidden)


@pytest.fixture(scope="session", autouse=True)
def _one_seed_of_the_log() -> Iterator[None]:
    """New logs hash alike in every run: two keys that met in one partition by chance would change what a test sees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("storage.usage_log.genesis.new_seed", lambda: 20261125)
        yield


@pytest.fixture(scope="session")
def ray_here() -> Iterator[Any]:
    """The one Ray that lives in the test process itself; a second start in one process does not come up."""
    with tempfile.TemporaryDirectory(prefix="cb-ray-") as home:
        before = os.environ.get("HOME")
        os.environ["HOME"] = home  # Ray writes its token there
        try:
            import ray

            ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
            yield ray
            ray.shutdown()
        finally:
            if before is not None:
                os.environ["HOME"] = before


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a Ray in this process come last and those that start platforms of their own first: two at once are too
    many for a small machine, and with several workers (`OneRay`) the longest queue is begun first."""

    def order(item: pytest.Item) -> int:
        if "ray_here" in getattr(item, "fixturenames", ()):
            return 2
        return 0 if item.get_closest_marker("ray") else 1

    items.sort(key=order)


class OneRay(LoadScopeScheduling):
    """Workers take whole files, so what a file shares is made once; all files that start Ray go to one worker."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "ray" if _starts_ray(file) else file


@functools.cache
def _starts_ray(file: str) -> bool:
    return "pytest.mark.ray" in (Path(__file__).parent.parent / file).read_text()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneRay:
    return OneRay(config, log)
