"""The world of bill runs for tests that drive some in this process; a module with another one has its own `world`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from storage.sql.database import Database
from storage.sql.embedded import EmbeddedPostgres
from storage.sql.migrate import migrate

if TYPE_CHECKING:  # imported where it is wanted: it makes chunks small for its whole process
    from tests.chaos.bill_run_world import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    from tests.chaos.bill_run_world import World

    with TemporaryDirectory(prefix="cb-sql-") as directory:
        server = EmbeddedPostgres(Path(directory) / "sql")
        try:
            migrate(server.start())
            yield World(server.dsn, tmp_path_factory.mktemp("store"))
        finally:
            server.stop()


@pytest.fixture
def database(world: World) -> Iterator[Database]:
    with Database(world.dsn) as one:
        yield one
