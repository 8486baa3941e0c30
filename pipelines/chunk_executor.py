"""Who computes the chunks of a bill run: the protocol, and the driver's own process. On Ray it is `ray_tasks.py`."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from pipelines.bill_run_chunk import ChunkResult, ChunkTask, GatherTask, compute_chunk, gather_usage
from pipelines.chunk_failures import Failures
from pipelines.run_credit import WalletDesk
from storage.master_chain import MasterChain
from storage.object_store import ObjectStore
from storage.sql.database import Database

COMPUTING = 2  # chunks at the same time in the driver's own process


class Executor(Protocol):
    """Runs chunk tasks and gives their results as they come, in any order."""

    def compute(self, tasks: Iterable[ChunkTask]) -> Iterator[ChunkResult]:
        """What a chunk raised is raised after the results of the others."""
        ...

    def gather(self, task: GatherTask) -> None:
        """Read the usage of all chunks; a repeat is harmless."""
        ...


@dataclass(frozen=True)
class InProcess:
    """Chunks in the driver's own process, two at a time: right for small tenants, and for tests."""

    store: ObjectStore
    database: Database
    chain: MasterChain
    desk: WalletDesk | None = None

    def compute(self, tasks: Iterable[ChunkTask]) -> Iterator[ChunkResult]:
        # Two: nearly all of a chunk's time is spent in steps that hold no lock of the interpreter, each on one core. A
        # desk is asked for the credit of one chunk after the other.
        at_once = COMPUTING if self.desk is None else 1
        failures = Failures()
        left = iter(tasks)
        with ThreadPoolExecutor(at_once, "compute") as pool:
            waiting: deque[Future[ChunkResult]] = deque()
            try:
                while True:
                    for task in itertools.islice(left, 0 if failures.is_enough else at_once - len(waiting)):
                        waiting.append(
                            pool.submit(compute_chunk, task, self.store, self.database, self.chain, self.desk)
                        )
                    if not waiting:
                        break
                    try:
                        result = waiting.popleft().result()
                    except Exception as error:  # noqa: BLE001 - raised at the end, whatever it is
                        failures.note(error)
                        continue
                    yield result
            finally:
                while waiting:
                    waiting.popleft().cancel()
        failures.raise_first()

    def gather(self, task: GatherTask) -> None:
        gather_usage(task, self.store, self.database, self.chain)
