"""The program of tests/chaos/test_bill_run_nodes.py: one bill run in a process, on three Ray nodes, and on two of them.

Prints what it saw as JSON: who did the work, and whether all end with the same documents.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from storage.object_store import StoreAddress
from storage.sql.database import Database
from storage.sql.embedded import EmbeddedPostgres
from storage.sql.migrate import migrate
from tests.chaos.bill_run_world import MARCH, World
from tests.chaos.nodes import CPUS, Nodes


def main(folder: Path) -> dict[str, Any]:
    with ExitStack() as stack:
        server = EmbeddedPostgres(folder / "sql")
        stack.callback(server.stop)
        migrate(server.start())
        nodes = Nodes(folder / "ray", http_port=0, more=2)
        stack.callback(nodes.stop)
        database = stack.enter_context(Database(server.dsn))
        world = World(server.dsn, folder / "store")

        from pipelines.ray_tasks import RayExecutor

        killed: list[int] = []

        class Killing(RayExecutor):
            """Kills a node with all that runs on it when the first group of partitions is read."""

            def compute(self, tasks: Iterable[Any]) -> Iterator[Any]:
                for result in super().compute(tasks):
                    if not killed:
                        killed.extend(nodes.kill_one())
                    yield result

        def outcome(executor: RayExecutor | None) -> dict[str, Any]:
            tenant_id = world.make_tenant()
            if executor is not None:
                executor.tasks_of_nodes.clear()  # without the run before, which is of a single month
            driver = world.driver(database, executor=executor)
            assert driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "test")["id"])["state"] == "done"
            return world.outcome(tenant_id)

        address = StoreAddress(str(folder / "store"))
        alone = outcome(None)
        spread = RayExecutor(address, server.dsn)
        on_three = outcome(spread)
        with_kill = outcome(Killing(address, server.dsn))
        return {
            "nodes": len(spread.tasks_of_nodes),
            "tasks": sorted(spread.tasks_of_nodes.values()),
            "groups": 3 * CPUS,
            "killed": len(killed),
            "documents": len(alone["documents"]),
            "same_on_three": on_three == alone,
            "same_with_kill": with_kill == alone,
        }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))), flush=True)
