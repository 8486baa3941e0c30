"""One contract for both object stores: create if absent, whole or not at all, and errors that say what is true."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.claimed_store import ClaimedStore
from storage.object_store import (
    LocalObjectStore,
    ObjectStore,
    S3ObjectStore,
    StoreAddress,
    StoreRefused,
    StoreUnavailable,
    StoreUnfit,
    open_object_store,
    probe,
)
from storage.sql.database import Database
from tests.s3_server import S3Server
from tests.usage_log_support import Hooked


@pytest.fixture(params=["local", "claimed", pytest.param("s3", marks=pytest.mark.services)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return LocalObjectStore(tmp_path / "store")
    if request.param == "claimed":
        database: Database = request.getfixturevalue("database")
        return ClaimedStore(Unconditional(tmp_path / "store"), database, str(tmp_path))
    server: S3Server = request.getfixturevalue("s3_server")
    return server.store(tmp_path.name)


class Unconditional(LocalObjectStore):
    """A store whose every write replaces what was there, as object stores without a conditional put do."""

    def create(self, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True


def test_the_probe_accepts_the_store_and_leaves_nothing_behind(store: ObjectStore) -> None:
    probe(store)
    assert list(store.list("probe/")) == []


def test_who_creates_a_key_first_has_decided_it(store: ObjectStore) -> None:
    assert store.create("a/b/0001", b"first")
    assert not store.create("a/b/0001", b"second")
    assert not store.create("a/b/0001", b"first")
    assert store.get("a/b/0001") == b"first"
    store.settle("a/b/0001")


def test_of_many_creators_at_once_exactly_one_wins(store: ObjectStore) -> None:
    for round_number in range(5):
        key = f"race/{round_number}"
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda number, key=key: store.create(key, b"%d" % number), range(8)))
        assert won.count(True) == 1
        assert store.get(key) == b"%d" % won.index(True)


def test_put_replaces_and_get_of_nothing_is_none(store: ObjectStore) -> None:
    assert store.get("hints/lane") is None
    store.put("hints/lane", b"1")
    store.put("hints/lane", b"2")
    assert store.get("hints/lane") == b"2"
    assert store.exists("hints/lane")
    store.delete("hints/lane")
    store.delete("hints/lane")
    assert not store.exists("hints/lane")


def test_replace_wants_the_very_bytes_that_were_read(store: ObjectStore) -> None:
    assert store.replace("erased/none", b"", b"x") is False
    assert store.get("erased/none") is None
    assert store.create("erased/one", b"first")
    assert store.replace("erased/one", b"first", b"second") is True
    assert store.get("erased/one") == b"second"
    assert store.replace("erased/one", b"first", b"second") is True, "our own first try, sent again"
    assert store.replace("erased/one", b"first", b"third") is False, "somebody else was there meanwhile"
    assert store.get("erased/one") == b"second"
    store.delete("erased/one")


def test_of_many_that_replace_the_same_bytes_at_once_exactly_one_wins(store: ObjectStore) -> None:
    assert store.create("erased/race", b"old")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.replace("erased/race", b"old", f"new {n}".encode()), range(8)))
    assert sum(won) == 1
    assert store.get("erased/race") == f"new {won.index(True)}".encode()
    store.delete("erased/race")


def test_list_gives_the_keys_of_a_prefix_in_order(store: ObjectStore) -> None:
    for key in ("l/2/b", "l/2/a", "l/10/c", "l/2x", "m/1"):
        store.create(key, b"x")
    assert list(store.list("l/2/")) == ["l/2/a", "l/2/b"]
    assert list(store.list("l/2")) == ["l/2/a", "l/2/b", "l/2x"]
    assert list(store.list("nothing/here/")) == []


def test_a_large_object_comes_back_whole(store: ObjectStore) -> None:
    data = os.urandom(6 * 1024 * 1024)
    assert store.create("large/one", data)
    store.put("large/two", data)
    assert store.get("large/one") == data == store.get("large/two")


def test_a_key_cannot_leave_the_store(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path / "store")
    for key in ("../outside", "a/../../outside", "/etc/passwd", ""):
        with pytest.raises(ValueError, match="not a key"):
            store.get(key)


@pytest.mark.services
def test_a_server_that_was_killed_leaves_the_outcome_open_and_keeps_what_it_confirmed(s3_server: S3Server) -> None:
    store = s3_server.store("killed")
    assert store.create("one", b"1")
    s3_server.kill()
    with pytest.raises(StoreUnavailable):
        store.create("two", b"2")
    with pytest.raises(StoreUnavailable):
        store.get("one")
    s3_server.start()
    assert store.get("one") == b"1"
    assert store.create("two", b"2") or store.get("two") == b"2"


@pytest.mark.services
def test_a_lane_on_s3_is_fenced_like_one_in_a_directory(s3_server: S3Server) -> None:
    from actors.rating_shard import RatingShard
    from tests.usage_log_support import logged_ids, make_events, send

    store = s3_server.store("lane")
    first = RatingShard(0, store)
    first.start()
    assert send(first, make_events(100)).verdicts.tolist() == [0] * 100
    second = RatingShard(0, s3_server.store("lane"))
    second.start()
    assert send(first, make_events(10, 100)).failed == "unavailable"
    assert send(second, make_events(110)).verdicts.tolist() == [1] * 100 + [0] * 10
    first.stop()
    second.stop()
    assert len(logged_ids(store)) == 110


class Died(Exception):
    pass


@pytest.mark.postgres
@pytest.mark.parametrize("step", range(1, 12))
def test_a_creator_that_dies_at_any_step_has_either_decided_or_not(
    database: Database, tmp_path: Path, step: int
) -> None:
    """Then others come: they agree, whatever it left; and the late put of the dead one changes nothing."""
    left = step
    late: list[tuple[str, bytes]] = []

    class Dying(Unconditional):
        def _count(self, key: str, data: bytes = b"") -> None:
            nonlocal left
            left -= 1
            if left == 0:
                if data:
                    late.append((key, data))
                raise Died

        def put(self, key: str, data: bytes) -> None:
            self._count(key, data)
            super().put(key, data)
            self._count(key)

        def exists(self, key: str) -> bool:
            self._count(key)
            return super().exists(key)

        def delete(self, key: str) -> None:
            self._count(key)
            super().delete(key)

    plain = Unconditional(tmp_path / "store")
    name = str(tmp_path)
    answered = None
    with contextlib.suppress(Died):
        answered = ClaimedStore(Dying(tmp_path / "store"), database, name).create("n/1", b"dying")
    others = [ClaimedStore(plain, database, name) for _ in range(3)]
    won = [other.create("n/1", b"other %d" % number) for number, other in enumerate(others)]
    decided = plain.get("n/1")
    assert won.count(True) <= 1
    assert decided == (b"other 0" if won[0] else b"dying")
    assert answered in (None, decided == b"dying")
    for key, data in late:  # the network kept it for a while
        plain.put(key, data)
    assert plain.get("n/1") == decided
    others[0].delete("n/1")
    with database.system() as connection:
        row = connection.execute("SELECT count(*) AS n FROM object_claims WHERE store = %s", (name,)).fetchone()
    assert row == {"n": 0}
    assert others[1].create("n/1", b"again")


@pytest.mark.postgres
def test_a_creator_that_looked_long_ago_does_not_replace_what_was_created_meanwhile(
    database: Database, tmp_path: Path
) -> None:
    """It sees nothing, sleeps; another creates, and its row goes; then it claims and wins the row."""
    plain = Unconditional(tmp_path / "store")
    other = ClaimedStore(plain, database, "sleeper")

    class Sleeps(Unconditional):
        slept = False

        def exists(self, key: str) -> bool:
            found = super().exists(key)
            if not self.slept:
                self.slept = True
                assert other.create(key, b"meanwhile")
            return found

    assert not ClaimedStore(Sleeps(tmp_path / "store"), database, "sleeper").create("n/1", b"sleeper")
    assert plain.get("n/1") == b"meanwhile"


@pytest.mark.postgres
def test_without_sql_nothing_is_created_and_the_outcome_is_open(tmp_path: Path) -> None:
    with Database("host=127.0.0.1 port=1 dbname=none", wait_s=0.2) as away:
        store = ClaimedStore(Unconditional(tmp_path / "store"), away, "away")
        with pytest.raises(StoreUnavailable, match="who creates n/1"):
            store.create("n/1", b"x")
        assert not store.exists("n/1")


@pytest.mark.postgres
def test_a_lane_over_claims_is_fenced_like_one_with_conditional_puts(server: str, tmp_path: Path) -> None:
    from actors.rating_shard import RatingShard
    from tests.usage_log_support import logged_ids, make_events, send

    address = StoreAddress(str(tmp_path / "store"), claims_dsn=server)
    first = RatingShard(0, address.open())
    first.start()
    assert send(first, make_events(100)).verdicts.tolist() == [0] * 100
    second = RatingShard(0, address.open())
    second.start()
    assert send(first, make_events(10, 100)).failed == "unavailable"
    assert send(second, make_events(110)).verdicts.tolist() == [1] * 100 + [0] * 10
    first.stop()
    second.stop()
    assert len(logged_ids(address.open())) == 110
    assert server not in repr(address), "a DSN holds a password"


def test_a_store_that_overwrites_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    class Overwrites(Hooked):
        def create(self, key: str, data: bytes) -> bool:
            self.store.put(key, data)
            return True

    with pytest.raises(StoreUnfit, match="does not create if absent"):
        probe(Overwrites(LocalObjectStore(tmp_path), lambda *_: None))


def test_a_file_system_without_hard_links_says_so_and_stored_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    store = LocalObjectStore(tmp_path)
    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(StoreRefused, match="hard links"):
        store.create("a/b", b"x")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_failure_after_the_link_is_an_open_outcome_not_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import storage.object_store as module

    store = LocalObjectStore(tmp_path)
    store.create("a/first", b"x")

    def broken(folder: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "_fsync_folder", broken)
    with pytest.raises(StoreUnavailable, match="cannot say"):
        store.create("a/second", b"x")


def test_readers_never_see_half_an_object(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)
    sizes: set[int] = set()
    stopped = threading.Event()

    def read() -> None:
        while not stopped.is_set():
            for number in range(20):
                data = store.get(f"objects/{number}")
                if data is not None:
                    sizes.add(len(data))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(20):
        store.create(f"objects/{number}", b"x" * 300_000)
    stopped.set()
    reader.join()
    assert sizes <= {300_000}


def test_an_address_opens_the_right_store_and_hides_its_secret(tmp_path: Path) -> None:
    assert isinstance(open_object_store(f"file://{tmp_path}"), LocalObjectStore)
    assert isinstance(StoreAddress(str(tmp_path)).open(), LocalObjectStore)
    address = StoreAddress("s3://bucket/prefix", "http://127.0.0.1:1", "key", "very-secret")
    assert isinstance(address.open(), S3ObjectStore)
    assert "very-secret" not in repr(address)
