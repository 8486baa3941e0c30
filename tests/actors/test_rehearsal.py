"""What a warm process does before it has a lane: it comes to its end whatever the threads of the rehearsed shard do."""

from __future__ import annotations

import threading
import time

import pytest

from actors.rehearsal import rehearse


def test_a_rehearsal_ends_well_though_its_snapshot_is_noted_long_before_it_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, kept = threading.Thread.start, []

    def late(thread: threading.Thread) -> None:
        if thread.name.startswith("checkpoint-"):
            time.sleep(0.2)
            kept.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", late)
    rehearse()
    assert kept, "a snapshot was kept"
