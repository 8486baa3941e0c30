"""A rating shard without Ray: exactly once, whatever comes twice, in between, or from a writer that is no more."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from actors.batches import NOT_OWNED, OVERLOADED, Block, decode_answer, encode_batch
from actors.decisions import decode_decided
from actors.followers import NO_ROWS, Decided
from actors.rating_shard import RatingShard, ShardSettings
from billing.errors import Overloaded, Unavailable
from billing.usage import Verdict
from storage.object_store import LocalObjectStore, ObjectStore, StoreRefused, StoreUnavailable
from storage.usage_log.genesis import open_log
from storage.usage_log.lane import walk
from storage.usage_log.manifest import ManifestChain
from storage.usage_log.partitions import event_ids, partitions_of
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.sizes import SEGMENT_BYTES_MAX
from tests.usage_log_support import OTHER_TENANT, TENANT, Hooked, encoded, logged_ids, make_events, send

Opener = Callable[..., RatingShard]


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "store")


@pytest.fixture
def opened(store: LocalObjectStore) -> Iterator[Opener]:
    """Opens shards and ends them all at the end."""
    shards: list[RatingShard] = []

    def open_shard(lane: int = 0, there: ObjectStore | None = None, **settings: object) -> RatingShard:
        shard = RatingShard(lane, there or store, settings=ShardSettings(**settings))  # type: ignore[arg-type]
        shards.append(shard)
        shard.start()
        return shard

    yield open_shard
    for shard in shards:
        shard.stop(2.0)


def test_repeats_in_a_batch_between_batches_and_after_a_restart_are_stored_once(
    store: LocalObjectStore, opened: Opener
) -> None:
    shard = opened()
    twice = pl.concat([make_events(3), make_events(4)])
    assert send(shard, twice).verdicts.tolist() == [0, 0, 0, 1, 1, 1, 0]
    assert send(shard, make_events(5)).verdicts.tolist() == [1, 1, 1, 1, 0]
    shard.stop()
    assert send(opened(), make_events(6)).verdicts.tolist() == [1, 1, 1, 1, 1, 0]
    assert sorted(logged_ids(store)) == [f"event-{number}" for number in range(6)]


def test_the_same_id_of_another_tenant_or_source_is_another_event(store: LocalObjectStore, opened: Opener) -> None:
    shard = opened()
    for events, tenant in (
        (make_events(2), TENANT),
        (make_events(2), OTHER_TENANT),
        (make_events(2, source="second"), TENANT),
    ):
        assert send(shard, events, tenant).verdicts.tolist() == [0, 0]


def test_ids_stay_known_when_they_have_left_memory_for_the_runs(store: LocalObjectStore, opened: Opener) -> None:
    shard = opened(checkpoint_rows=2_000)
    for first in range(0, 20_000, 1_000):
        assert (send(shard, make_events(1_000, first)).verdicts == Verdict.ACCEPTED).all()
    deadline = time.monotonic() + 20
    while shard.status().recent_ids > 4_000 or shard.status().runs < 2:
        send(shard, make_events(1, 19_999))
        assert time.monotonic() < deadline, shard.status()
        time.sleep(0.05)
    assert shard.status().run_ids >= 16_000
    for first in range(0, 20_000, 1_000):
        assert (send(shard, make_events(1_000, first)).verdicts == Verdict.DUPLICATE).all()
    shard.stop()
    successor = opened(checkpoint_rows=2_000)
    assert (send(successor, make_events(20_000)).verdicts == Verdict.DUPLICATE).all()
    assert len(logged_ids(store)) == 20_000


def test_a_shard_whose_lane_was_taken_over_says_unknown_and_serves_no_more(
    store: LocalObjectStore, opened: Opener
) -> None:
    zombie = opened()
    send(zombie, make_events(3))
    successor = opened()
    answer = send(zombie, make_events(3, first=3))
    assert answer.failed == "unavailable"
    assert "same ids" in answer.detail
    assert send(zombie, make_events(1, first=9)).failed == "unavailable"
    assert not zombie.serving
    assert send(successor, make_events(6)).verdicts.tolist() == [1, 1, 1, 0, 0, 0]
    assert len(logged_ids(store)) == 6


def test_rows_of_a_partition_that_another_lane_owns_are_not_stored_and_its_owner_is_named(
    store: LocalObjectStore, opened: Opener
) -> None:
    genesis = open_log(store, lanes=3)
    shard = opened(lane=1)
    events = make_events(200)
    answer = send(shard, events)
    lanes = partitions_of(genesis.seed, TENANT, events["customer"]) % 3
    assert ((answer.verdicts == NOT_OWNED) == (lanes != 1)).all()
    assert {lane for _, lane in answer.owners.values()} == {0, 2}
    assert len(logged_ids(store)) == int((lanes == 1).sum())
    reader = UsageLogReader(store)
    read = sum(frame.height for frame in reader.scan(TENANT, reader.now()))
    assert read == len(logged_ids(store)), "a cut leaves out a lane because an earlier one has not begun"


def test_nothing_is_acknowledged_while_the_put_is_open_and_all_is_when_the_store_returns(
    store: LocalObjectStore, opened: Opener
) -> None:
    away = threading.Event()

    def before(what: str, key: str) -> None:
        if away.is_set() and what == "create" and "lanes" in key:
            raise StoreUnavailable("no answer")

    shard = opened(there=Hooked(store, before))
    away.set()
    assert shard.genesis is not None
    future = shard.submit(encoded(shard.genesis.seed, make_events(5)))
    time.sleep(0.3)
    assert not future.done()
    assert shard.status().stalled_s > 0
    assert logged_ids(store) == []
    away.clear()
    assert decode_answer(future.result(10)).verdicts.tolist() == [0] * 5
    assert len(logged_ids(store)) == 5


def test_a_refused_group_leaves_its_ids_free(store: LocalObjectStore, opened: Opener) -> None:
    full = threading.Event()

    def before(what: str, key: str) -> None:
        if full.is_set() and what == "create":
            raise StoreRefused("the disk is full")

    shard = opened(there=Hooked(store, before))
    send(shard, make_events(3))
    full.set()
    answer = send(shard, make_events(5))
    assert answer.failed == "refused"
    assert "full" in answer.detail
    assert send(shard, make_events(3)).verdicts.tolist() == [1, 1, 1], "durable repeats need no disk"
    full.clear()
    assert send(shard, make_events(5)).verdicts.tolist() == [1, 1, 1, 0, 0]
    assert len(logged_ids(store)) == 5


FULL_DISK = """
    import sys
    from pathlib import Path
    from actors.rating_shard import RatingShard
    from storage.object_store import LocalObjectStore
    from tests.usage_log_support import logged_ids, make_events, send
    store = LocalObjectStore(Path(sys.argv[1]))
    shard = RatingShard(0, store)
    shard.start()
    stored = 0
    for first in range(0, 1_000_000, 5_000):
        answer = send(shard, make_events(5_000, first))
        if answer.failed:
            break
        stored += 5_000
    assert answer.failed == "refused", answer
    assert "disk is full" in answer.detail and "Nothing was stored" in answer.detail, answer.detail
    assert len(logged_ids(store)) == stored > 0
    ballast = Path(sys.argv[1]) / "ballast"
    ballast.unlink()
    answer = send(shard, make_events(5_000, first))
    assert not answer.failed and (answer.verdicts == 0).all(), answer
    assert len(set(logged_ids(store))) == len(logged_ids(store)) == stored + 5_000
    shard.stop()
    print("stored", stored)
"""


def test_a_disk_that_is_really_full_gives_a_clear_error_and_no_acknowledgement(tmp_path: Path) -> None:
    """A file system of 1 MB in a mount namespace of its own; ballast is removed afterwards, and ingest goes on."""
    script = tmp_path / "full_disk.py"
    script.write_text(textwrap.dedent(FULL_DISK))
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f"mount -t tmpfs -o size=1m tmpfs {disk} && dd if=/dev/zero of={disk}/ballast bs=1k count=600 2>&1"
    probe = subprocess.run(["unshare", "-Urm", "sh", "-c", command], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"this machine allows no mount namespace: {probe.stderr.strip()}")
    root = Path(__file__).parents[2]
    result = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", f"{command} && exec {sys.executable} {script} {disk}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={"PYTHONPATH": str(root), "POLARS_MAX_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )
    assert result.returncode == 0, result.stderr
    assert "stored" in result.stdout


def test_a_flooding_tenant_is_slowed_down_and_another_is_still_served(store: LocalObjectStore, opened: Opener) -> None:
    slow = threading.Event()

    def before(what: str, key: str) -> None:
        if slow.is_set() and what == "create" and "lanes" in key:
            time.sleep(0.1)

    shard = opened(there=Hooked(store, before), tenant_queue_rows_max=3_000, group_rows_max=2_000)
    slow.set()
    assert shard.genesis is not None
    flood = [shard.submit(encoded(shard.genesis.seed, make_events(1_000, 1_000 * n))) for n in range(30)]
    began = time.monotonic()
    assert (send(shard, make_events(10), OTHER_TENANT).verdicts == Verdict.ACCEPTED).all()
    waited_s = time.monotonic() - began
    answers = [decode_answer(future.result(30)) for future in flood]
    refused = [answer for answer in answers if (answer.verdicts == OVERLOADED).all()]
    kept = [answer for answer in answers if (answer.verdicts == Verdict.ACCEPTED).all()]
    assert refused
    assert len(refused) + len(kept) == 30
    assert waited_s < 1.0, "the other tenant waited behind the flood"
    assert len(logged_ids(store)) == 1_000 * len(kept), "what was refused is stored, or what was stored is lost"


def test_a_mixed_batch_refuses_only_the_tenant_whose_queue_is_full(store: LocalObjectStore, opened: Opener) -> None:
    held = threading.Event()

    def before(what: str, key: str) -> None:
        if what == "create" and "lanes" in key:
            held.wait(5)

    held.set()
    shard = opened(there=Hooked(store, before), tenant_queue_rows_max=10)
    held.clear()
    assert shard.genesis is not None
    seed = shard.genesis.seed
    shard.submit(encoded(seed, make_events(1, 1_000)))  # in flight
    time.sleep(0.1)
    shard.submit(encoded(seed, make_events(10, 2_000)))  # fills the queue
    events = make_events(8)
    halves = [events.slice(0, 4), events.slice(4, 4)]
    tenants = pl.Series([TENANT] * 4 + [OTHER_TENANT] * 4)
    partitions = partitions_of(seed, tenants, events["customer"])
    blocks = [Block(TENANT, 4), Block(OTHER_TENANT, 4)]
    data = encode_batch(blocks, pl.concat(halves), partitions, event_ids(seed, tenants, events, partitions))
    future = shard.submit(data)
    held.set()
    assert decode_answer(future.result(10)).verdicts.tolist() == [OVERLOADED] * 4 + [Verdict.ACCEPTED] * 4


def heavy(rows: int, first: int = 0, length: int = 16_000) -> pl.DataFrame:
    """Events as large as they may be, with texts that hardly compress."""
    signs = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", np.uint8)
    texts = signs[np.random.default_rng(first).integers(0, 64, (rows, length))]
    return make_events(rows, first).with_columns(data=pl.Series([text.tobytes().decode() for text in texts]))


def test_a_segment_stays_below_its_size_however_large_the_events_of_a_call_are(
    store: LocalObjectStore, opened: Opener
) -> None:
    """1,500 of the largest events at once: 24 MB, which one put would hardly bring to a slow store in its time."""
    shard = opened()
    assert (send(shard, heavy(1_500)).verdicts == Verdict.ACCEPTED).all()
    sizes = [len(segment.data) for segment in walk(store, 0, 0)]
    assert max(sizes) <= SEGMENT_BYTES_MAX
    assert len(sizes) <= 1 + 5, "no more of them than needed"
    assert sorted(logged_ids(store)) == sorted(f"event-{number}" for number in range(1_500))


@pytest.mark.parametrize("limit", ["tenant_queue_bytes_max", "queue_bytes_max"])
def test_queues_are_bounded_by_bytes_too(store: LocalObjectStore, opened: Opener, limit: str) -> None:
    held = threading.Event()

    def before(what: str, key: str) -> None:
        if what == "create" and "lanes" in key:
            held.wait(5)

    held.set()
    shard = opened(there=Hooked(store, before), **{limit: 300_000})
    held.clear()
    assert shard.genesis is not None
    seed = shard.genesis.seed
    first = shard.submit(encoded(seed, make_events(1, 1_000)))  # in flight
    time.sleep(0.1)
    waits = shard.submit(encoded(seed, heavy(30, 2_000)))  # more than the limit, and nothing else waits
    late = shard.submit(encoded(seed, make_events(1, 3_000)))
    decided = shard.decide(TENANT, -1, lambda _: Decided(NO_ROWS, b""))
    held.set()
    answer = decode_answer(late.result(10))
    if limit == "queue_bytes_max":
        assert answer.failed == "unavailable"
    else:
        assert answer.verdicts.tolist() == [OVERLOADED]
    with pytest.raises((Overloaded, Unavailable)):
        raise decode_decided(decided.result(10)).error or AssertionError("it was decided")
    for future in (first, waits):
        assert (decode_answer(future.result(10)).verdicts == Verdict.ACCEPTED).all()
    assert send(shard, make_events(1, 3_000)).verdicts.tolist() == [Verdict.ACCEPTED]


def test_state_after_recovery_is_a_fresh_fold_of_the_log(store: LocalObjectStore, opened: Opener) -> None:
    """I8: ids and position, with and without a checkpoint in between."""
    shard = opened(checkpoint_rows=1_500)
    dice = np.random.default_rng(7)
    for _ in range(30):
        first = int(dice.integers(0, 4_000))
        send(shard, make_events(int(dice.integers(1, 400)), first))
    shard.stop()
    assert ManifestChain(store).newest().number >= 0, "no checkpoint was made"
    successor = opened()
    stored = logged_ids(store)
    assert len(stored) == len(set(stored))
    known = send(successor, make_events(4_500)).verdicts
    expected = [int(f"event-{number}" in set(stored)) for number in range(4_500)]
    assert known.tolist() == expected


def test_counters_of_the_segments_say_what_was_stored_and_repeated(store: LocalObjectStore, opened: Opener) -> None:
    """I14: stored in the counters = rows in the segments, per tenant."""
    shard = opened()
    send(shard, make_events(100))
    send(shard, pl.concat([make_events(100), make_events(50, 100)]))
    send(shard, make_events(7), OTHER_TENANT)
    stored = {TENANT: 0, OTHER_TENANT: 0}
    rows = {TENANT: 0, OTHER_TENANT: 0}
    repeats = 0
    for segment in walk(store, 0, 0):
        for tenant, count in segment.head.counters.items():
            stored[tenant] += count.stored
            repeats += count.duplicates
        for tenant in segment.rows()["tenant"]:
            rows[tenant] += 1
    assert stored == rows == {TENANT: 150, OTHER_TENANT: 7}
    assert repeats == 100


def test_a_batch_makes_no_python_object_per_event(store: LocalObjectStore, opened: Opener) -> None:
    shard = opened()
    assert shard.genesis is not None
    send(shard, make_events(10_000))
    data = encoded(shard.genesis.seed, make_events(10_000, 10_000))
    peak = {"blocks": 0}
    original = shard.state.writer.append

    def watched(*args: object, **kwargs: object) -> object:
        peak["blocks"] = sys.getallocatedblocks() - before
        return original(*args, **kwargs)  # type: ignore[arg-type]

    shard.state.writer.append = watched  # type: ignore[method-assign,assignment]
    gc.collect()
    before = sys.getallocatedblocks()
    assert (decode_answer(shard.submit(data).result(10)).verdicts == Verdict.ACCEPTED).all()
    assert 0 < peak["blocks"] < 2_000, f"{peak['blocks']} objects alive for 10,000 events"
