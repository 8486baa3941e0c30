"""A newer form is refused with words, and written only when every declared reader reads it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from actors.rating_shard import RatingShard, ShardSettings
from billing.errors import NotFound
from storage.object_store import LocalObjectStore, StoreUnfit
from storage.usage_log.checkpoints import read_snapshot
from storage.usage_log.deleting import delete_announced
from storage.usage_log.formats import (
    NEWEST,
    OLDEST,
    FormatTooNew,
    declare_reader,
    permitted,
    raise_formats,
    retire_reader,
)
from storage.usage_log.genesis import GENESIS_KEY, IdForm, open_log
from storage.usage_log.id_runs import open_run
from storage.usage_log.lane import read_segment
from storage.usage_log.manifest import Manifest, ManifestChain, manifest_key
from storage.usage_log.merging import merge_sealed
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.run_cache import RunCache
from storage.usage_log.sealed_totals import Wanted, sealed_totals
from storage.usage_log.sealing import seal
from storage.usage_log.segment import SegmentHead, encode_segment, segment_key
from tests.usage_log_support import TENANT, make_events, send


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "objects")


def filled(store: LocalObjectStore) -> Manifest:
    open_log(store)
    shard = RatingShard(0, store, settings=ShardSettings(checkpoint_rows=10))
    shard.start()
    send(shard, make_events(40))
    shard.stop()
    shard = RatingShard(0, store, settings=ShardSettings(checkpoint_rows=10))
    shard.start()
    send(shard, make_events(40, 40))
    shard.stop()
    while (thread := shard.state.checkpoint_thread) is not None:  # the last entry is its
        thread.join()
    seal(store, UsageLogReader(store).now())
    return ManifestChain(store).newest()


def rewritten(store: LocalObjectStore, key: str, old: bytes, new: bytes) -> None:
    data = store.get(key)
    assert data is not None
    assert old in data
    store.put(key, data.replace(old, new))


def test_each_kind_of_object_of_a_newer_version_is_refused_and_nothing_is_changed(
    store: LocalObjectStore, tmp_path: Path
) -> None:
    manifest = filled(store)
    head = SegmentHead(0, 1, 1, "n", 1, "")
    newer = head.to_text().replace('"format":1', '"format":9')
    with pytest.raises(FormatTooNew, match=r"lane 0 number 1.*has format 9.*Nothing was changed"):
        SegmentHead.from_text(newer)
    rewritten(store, segment_key(0, 1), b'"format":1', b'"format":9')
    with pytest.raises(FormatTooNew):
        read_segment(store, 0, 1)

    snapshot = manifest.snapshots[0]
    rewritten(store, snapshot.key, b'"format": 2', b'"format": 9')
    with pytest.raises(FormatTooNew, match="snapshot"):
        read_snapshot(store, snapshot.key)

    run = manifest.runs[0]
    rewritten(store, run.key, b"CBIDS001", b"CBIDS002")
    with pytest.raises(FormatTooNew, match="run of the usage log"):
        open_run(store, run, RunCache(tmp_path))

    file = replace(manifest.files[0], format=3)
    with pytest.raises(FormatTooNew, match="sealed of the usage log"):
        list(sealed_totals(store, [file], Wanted(TENANT, {"storage": "gb"})))
    form = json.loads(manifest.to_bytes("n"))
    form["files"][0]["format"] = 3
    store.create(manifest_key(manifest.number + 1), json.dumps({**form, "number": manifest.number + 1}).encode())
    reader = UsageLogReader(store)
    with pytest.raises(FormatTooNew, match="reads up to 2"):
        list(reader.scan(TENANT, reader.now()))
    store.create(manifest_key(manifest.number + 2), json.dumps({**form, "format": NEWEST["manifest"] + 1}).encode())
    with pytest.raises(FormatTooNew, match="manifest"):
        ManifestChain(store).newest()


def test_a_shard_behind_a_newer_segment_says_so_and_serves_nothing(store: LocalObjectStore) -> None:
    filled(store)
    last = UsageLogReader(store).now().positions[0]
    newer = encode_segment(SegmentHead(0, last + 1, 3, "n", 1, ""), None).replace(b'"format":1', b'"format":9')
    store.create(segment_key(0, last + 1), newer)
    shard = RatingShard(0, store)
    with pytest.raises(FormatTooNew, match="Run the newer version"):
        shard.start()


def test_a_new_log_permits_all_forms_and_an_older_one_the_oldest(store: LocalObjectStore, tmp_path: Path) -> None:
    open_log(store)
    assert permitted(store).permitted == NEWEST
    older = LocalObjectStore(tmp_path / "older")
    data = store.get(GENESIS_KEY)
    assert data is not None
    older.create(GENESIS_KEY, data)  # made by a version that knew no formats
    open_log(older)
    assert permitted(older).permitted == OLDEST


def test_a_log_says_what_its_ids_are_made_of_and_who_does_not_know_that_leaves_it_alone(
    store: LocalObjectStore,
) -> None:
    assert open_log(store).ids is IdForm.OF_CUSTOMER
    data = store.get(GENESIS_KEY)
    assert data is not None
    form = json.loads(data)
    assert form["format"] == 2
    older = LocalObjectStore(store.root.parent / "older")
    older.create(GENESIS_KEY, json.dumps(form | {"format": 1}).encode())
    assert open_log(older).ids is IdForm.OF_TENANT
    newer = LocalObjectStore(store.root.parent / "newer")
    newer.create(GENESIS_KEY, json.dumps(form | {"format": 3}).encode())
    with pytest.raises(StoreUnfit, match="has format 3; this version reads up to format 2"):
        open_log(newer)


def older_log(store: LocalObjectStore, tmp_path: Path) -> None:
    other = LocalObjectStore(tmp_path / "other")
    open_log(other)
    data = other.get(GENESIS_KEY)
    assert data is not None
    store.create(GENESIS_KEY, data)


def test_a_new_form_is_written_when_the_last_reader_that_cannot_read_it_is_retired(
    store: LocalObjectStore, tmp_path: Path
) -> None:
    older_log(store, tmp_path)
    old = declare_reader(store, OLDEST, machine="machine-2")
    manifest = filled(store)
    seal(store, UsageLogReader(store).now())
    assert "leaving" not in json.loads(store.get(manifest_key(manifest.number)) or b"")
    raised = raise_formats(store)
    assert raised.waiting_for == (old,)
    assert raised.permitted == OLDEST
    for start in range(80, 160, 40):
        shard = RatingShard(0, store)
        shard.start()
        send(shard, make_events(40, start))
        shard.stop()
        seal(store, UsageLogReader(store).now())
    merged = merge_sealed(store, count=2)
    assert merged is not None
    assert merged.leaving == (), "an older reader would forget what is leaving, so nothing leaves"
    assert delete_announced(store, grace_us=0) == 0

    with pytest.raises(NotFound, match="cloudbilling formats"):
        retire_reader(store, "machine-3/none")
    retire_reader(store, old)
    assert raise_formats(store).permitted == NEWEST
    assert raise_formats(store).permitted == NEWEST
    entry = ManifestChain(store).append(lambda base: replace(base, files=base.files[1:]))
    assert json.loads(store.get(manifest_key(entry.number)) or b"")["format"] == NEWEST["manifest"]
    assert [one.key for one in entry.leaving] == [merged.files[0].key]
