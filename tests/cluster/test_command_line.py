"""The command as people call it: fast help, exit codes, words on stderr, JSON for programs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "cluster.cli"]


def call(*arguments: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_help_lists_every_command_and_needs_no_heavy_import() -> None:
    script = (
        "import sys, cluster.cli.app\n"
        "heavy = {'ray', 'polars', 'pyarrow', 'fastapi', 'psycopg', 'pydantic_settings', 'httpx'} & set(sys.modules)\n"
        "sys.exit(f'imported for --help: {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = call("--help").stdout
    for command in (
        "up", "down", "status", "doctor", "demo", "import", "usage", "bill-run", "credit-note", "scenario",
        "invoices", "export", "verify", "keys", "tenants",
    ):  # fmt: skip
        assert f"\n  {command} " in shown, f"{command} is not in --help"


def test_help_costs_less_than_half_a_second_of_processor_time() -> None:
    """0.3 s on a quiet machine; processor time, because the tests share their cores."""
    before = os.times()
    began = time.monotonic()
    assert call("--help").returncode == 0
    after = os.times()
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    assert spent < 0.5, f"{spent:.2f} s of processor time, {time.monotonic() - began:.2f} s on the clock"


def test_status_of_a_folder_without_a_platform_says_so_with_exit_code_three(tmp_path: Path) -> None:
    done = call("status", "--json", CLOUDBILLING_DATA_DIR=str(tmp_path / "none"))
    assert done.returncode == 3, done.stderr
    state = json.loads(done.stdout)
    assert state["running"] is False
    assert state["ready"] is False


def test_down_without_a_platform_is_fine(tmp_path: Path) -> None:
    done = call("down", "--json", CLOUDBILLING_DATA_DIR=str(tmp_path))
    assert (done.returncode, json.loads(done.stdout)["stopped"]) == (0, False)


def test_formats_says_what_is_written_and_who_stands_in_the_way_while_nothing_runs(tmp_path: Path) -> None:
    from storage.object_store import LocalObjectStore
    from storage.usage_log.formats import OLDEST, declare_reader
    from storage.usage_log.genesis import open_log

    store = LocalObjectStore(tmp_path / "objects")
    open_log(store)
    old = declare_reader(store, {**OLDEST, "sealed": 1}, machine="other")
    environment = {"CLOUDBILLING_DATA_DIR": str(tmp_path)}
    assert f"--retired {old}" in call("formats", **environment).stdout
    shown = json.loads(call("formats", "--retired", old, "--json", **environment).stdout)
    assert shown["waiting_for"] == []
    assert {one["kind"]: one["written"] for one in shown["formats"]}["manifest"] == 3
    assert call("formats", "--retired", old, **environment).returncode == 2, "NotFound is a wrong call"


def test_a_command_that_cannot_reach_the_platform_ends_with_three_and_helpful_words(tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text("cb_x")
    done = call("tenants", "list", CLOUDBILLING_DATA_DIR=str(tmp_path), CLOUDBILLING_PORT="1", timeout=120)
    assert done.returncode == 3, (done.stdout, done.stderr)
    assert done.stderr.strip().splitlines()[-1].startswith("try: cloudbilling"), done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [["bill-run", "--no-such-option"], ["nothing"], ["invoices", "show"]])
def test_a_wrong_call_ends_with_two(arguments: list[str]) -> None:
    assert call(*arguments).returncode == 2


def test_a_bad_setting_is_named_and_ends_with_two(tmp_path: Path) -> None:
    done = call("status", CLOUDBILLING_PORT="many", CLOUDBILLING_DATA_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "CLOUDBILLING_PORT" in done.stderr


def test_doctor_names_what_it_looked_at(tmp_path: Path) -> None:
    done = call("doctor", "--json", CLOUDBILLING_DATA_DIR=str(tmp_path / "d"))
    found = json.loads(done.stdout)
    found = found["findings"] if isinstance(found, dict) else found
    texts = " | ".join(one["what"] for one in found)
    for part in ("Python 3.", "cores", "HAProxy", "PostgreSQL", "Ray's own ports"):
        assert part in texts, f"doctor does not look at {part}: {texts}"
    assert all(one["help"] for one in found if one["state"] == "missing")
    assert not (tmp_path / "d").exists(), "doctor changes nothing"


def test_doctor_says_that_a_port_is_taken_and_that_a_key_is_open_to_others(tmp_path: Path) -> None:
    import socket

    (tmp_path / "admin.key").write_text("cb_x")
    (tmp_path / "admin.key").chmod(0o644)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = call("doctor", "--json", CLOUDBILLING_DATA_DIR=str(tmp_path), CLOUDBILLING_PORT=str(port))
    found = json.loads(done.stdout)
    found = found["findings"] if isinstance(found, dict) else found
    missing = " | ".join(one["what"] for one in found if one["state"] == "missing")
    assert f"port {port} is in use" in missing
    assert "can be read by others" in missing
    assert done.returncode == 1
