"""Chunks of a bill run or a simulation as Ray tasks: a window of them at a time, results as they come.

Owns how tasks are sent, named and waited for; what a task computes is `bill_run_chunk.py`. Small runs stay in the
driver's process. A cluster without a free processor slows a run down and never stops it: the driver then computes a
chunk itself. That two compute the same chunk is harmless, its result is put once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from billing.errors import BillingError, Unavailable
from pipelines.bill_run_chunk import compute_chunk, fold_tasks, fold_usage, put_together
from pipelines.chunk_failures import Failures
from pipelines.run_credit import DeskAddress, WalletDesk
from pipelines.usage_slices import is_gathered
from storage.master_chain import MasterChain
from storage.object_store import ObjectStore, StoreAddress
from storage.sql.database import Database

LOG = logging.getLogger("cloudbilling.ray_tasks")

WINDOW_PER_PROCESSOR = 2  # one computes, one waits at its worker
PATIENCE_S = 20.0


@dataclass(frozen=True)
class RayExecutor:
    """Computes chunks on the Ray cluster that this process belongs to.

    `work` is a function of a module: (task, store, database, master chain[, desk]) -> result. A task has a `title`.
    """

    store: StoreAddress
    dsn: str
    patience_s: float = PATIENCE_S
    work: Callable[..., Any] = compute_chunk
    desk: DeskAddress | None = None  # the way to the lanes, where the work needs one: it is opened where it runs
    tasks_of_nodes: Counter[str] = field(default_factory=Counter[str], compare=False)  # results by the node's id

    def compute(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Results in any order, then what a chunk raised; Unavailable when its worker was lost again and again."""
        waiting = iter(tasks)
        first = list(islice(waiting, 2))
        if len(first) < 2:  # a single chunk gains nothing from another process
            for task in first:
                yield self._here(task)
            return
        window = WINDOW_PER_PROCESSOR * processors()
        running: dict[Any, Any] = {self._send(task): task for task in first}
        failures = Failures()
        try:
            while running:
                for task in islice(waiting, 0 if failures.is_enough else window - len(running)):
                    running[self._send(task)] = task
                done, _ = ray.wait(list(running), num_returns=1, timeout=self.patience_s)
                try:
                    if done:
                        del running[done[0]]
                        node, result = _result(done[0])
                        self.tasks_of_nodes[node] += 1
                    else:
                        reference, task = running.popitem()  # the one sent last, most likely not begun
                        ray.cancel(reference)
                        result = self._here(task)
                except Exception as error:  # noqa: BLE001 - raised at the end, whatever it is
                    failures.note(error)
                    continue
                yield result
        finally:
            for reference in running:
                ray.cancel(reference)
        failures.raise_first()

    def gather(self, task: Any) -> None:
        """Read the usage of a whole run: a task for each group of partitions, at least one for each processor."""
        store, _, chain = _stores(self.store, self.dsn)
        if is_gathered(store, task.prefix):
            return
        folded = fold_tasks(task, processors())
        apart = replace(self._of(fold_usage), tasks_of_nodes=Counter[str]())
        for _ in apart.compute(folded):
            pass
        self.tasks_of_nodes.update(apart.tasks_of_nodes)
        LOG.info("%s: read in %s tasks on %s nodes", task.title, len(folded), len(apart.tasks_of_nodes))
        put_together(task, folded, store, chain)

    def _of(self, work: Callable[..., Any]) -> RayExecutor:
        return replace(self, work=work)

    def _send(self, task: Any) -> Any:
        return _chunk.options(name=task.title).remote(self.work, task, self.store, self.dsn, self.desk)

    def _here(self, task: Any) -> Any:
        return self.work(task, *_stores(self.store, self.dsn), *_desk(self.desk))


def processors() -> int:
    """How many processors the cluster has just now; at least one."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


# Spread: else Ray fills one node before it looks at the next, and the memory of one bounds the run.
@ray.remote(num_cpus=1, max_retries=3, scheduling_strategy="SPREAD")
def _chunk(
    work: Callable[..., Any], task: Any, store: StoreAddress, dsn: str, desk: DeskAddress | None
) -> tuple[str, Any]:
    """The node's id and the result."""
    return ray.get_runtime_context().get_node_id(), work(task, *_stores(store, dsn), *_desk(desk))


@lru_cache(maxsize=4)
def _stores(address: StoreAddress, dsn: str) -> tuple[ObjectStore, Database, MasterChain]:
    """Opened once per worker process; the chain keeps the master data of its last tenants."""
    store = address.open()
    return store, Database(dsn, size_max=2), MasterChain(store)


@lru_cache(maxsize=4)
def _desk(address: DeskAddress | None) -> tuple[WalletDesk, ...]:
    """Opened once per worker process, too."""
    return () if address is None else (address.open(),)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, BillingError):
            raise error.cause from error
        raise
    except RayError as error:  # the worker or its node was lost, more often than the retries cover
        raise Unavailable("a worker that computed a chunk was lost; drive the run again to resume it") from error
