"""The platform as a whole, started as a person does: `cloudbilling up`, its tour, its faults, its end.

One platform for the module, in the order of the file: each test leaves it running. Faults are real kills by process id.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from billing.errors import BillingError
from cluster.client import Client
from cluster.demo import load_all
from cluster.ray_head import free_port
from cluster.settings import Settings

pytestmark = [pytest.mark.ray, pytest.mark.postgres, pytest.mark.chaos, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
START_S, BACK_S = 240.0, 90.0


class Running:
    """One platform: its folder, its port, its process and everything below it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.dashboard = folder, free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "CLOUDBILLING_PORT": str(self.port),
            "CLOUDBILLING_DASHBOARD_PORT": str(self.dashboard),
            "CLOUDBILLING_DATA_DIR": str(folder / "data"),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = (self.folder / "up.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", "up"], cwd=ROOT, env=self.environment, stdout=log, stderr=log
        )
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            assert self.process.poll() is None, f"it ended while starting:\n{self.log()}"
            if self.status().get("ready"):
                return
            time.sleep(1.0)
        raise AssertionError(f"not ready after {START_S:.0f} s:\n{self.log()}")

    def status(self) -> dict[str, Any]:
        done = self.command("status", "--json", check=False)
        return json.loads(done.stdout) if done.stdout else {}

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "cluster.cli", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def processes(self) -> list[psutil.Process]:
        """The process tree, PostgreSQL and what Ray moved to other groups included."""
        assert self.process is not None
        found = [psutil.Process(self.process.pid)]
        found += found[0].children(recursive=True)
        known = {process.pid for process in found}
        noted = json.loads((self.folder / "data" / "processes.json").read_text())
        pids = {one["pid"] for one in noted} | {self.postgres()}
        for pid in pids - known:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                found += [process, *process.children(recursive=True)]
        return found

    def postgres(self) -> int:
        return int((self.folder / "data" / "postgres" / "postmaster.pid").read_text().splitlines()[0])

    def named(self, part: str) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                if part in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        assert found, f"there is no process {part}"
        return found

    def log(self) -> str:
        return (self.folder / "up.log").read_text()[-3000:]

    def direct(self) -> str:
        """The address beside the proxy."""
        return self.status()["direct_url"]

    def tenant(self, code: str) -> Client:
        """A client for a new tenant with one customer on one plan."""
        client = Client(self.url, self.tenant_key(code))
        client.steps(STEPS)
        return client

    def tenant_key(self, code: str) -> str:
        key = (self.folder / "data" / "admin.key").read_text().strip()
        form = {"code": code, "currency": "EUR", "timezone": "Europe/Berlin", "country": "DE"}
        with Client(self.url, key) as platform:
            return platform.post("/v1/tenants", form)["key"]


STEPS = [
    {"at": "2026-01-01", "tax_code": {"code": "standard", "percents": [{"from": "2021-01-01", "percent": "19"}]}},
    {"at": "2026-01-01", "meter": {"code": "calls", "event_type": "call", "aggregation": "count"}},
    {
        "at": "2026-01-01",
        "publish": {
            "plan": {
                "code": "basic",
                "currency": "EUR",
                "interval": "month",
                "charges": [
                    {
                        "code": "calls",
                        "kind": "usage",
                        "meter": "calls",
                        "tax": "standard",
                        "price": {"model": "per_unit", "unit": "0.01"},
                    }
                ],
            }
        },
    },
    {"at": "2026-01-01", "customer": {"code": "acme", "name": "ACME GmbH", "country": "DE"}},
    {"at": "2026-01-01", "subscribe": {"code": "s1", "customer": "acme", "plan": "basic", "anchor": "calendar"}},
]


class Writer:
    """Sends small requests without a pause, repeats each with the same ids until it is acknowledged."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer")
        self.acknowledged: list[str] = []
        self.failed: str = ""

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(BACK_S + 60)
        assert not self.failed, self.failed

    def wait_for(self, more: int) -> None:
        """Wait until that many more events were acknowledged: the platform is back."""
        wanted, end = len(self.acknowledged) + more, time.monotonic() + BACK_S
        while len(self.acknowledged) < wanted:
            assert time.monotonic() < end, f"nothing was acknowledged for {BACK_S:.0f} s; {self.failed}"
            time.sleep(0.05)

    def _run(self) -> None:
        number = len(self.acknowledged)
        while not self._stop.is_set():
            ids = [f"e{number + one}" for one in range(20)]
            end = time.monotonic() + BACK_S
            while True:
                try:
                    send(self._client, ids)
                    break
                except (BillingError, httpx.HTTPError) as error:
                    if time.monotonic() > end:
                        self.failed = f"events stay unacknowledged: {error}"
                        return
                    time.sleep(0.2)
            self.acknowledged += ids
            number += len(ids)


def send(client: Client, ids: list[str]) -> dict[str, Any]:
    """Usage of October for `acme`; the counts of the answer."""
    import polars as pl

    from billing.usage import EVENT_SCHEMA

    rows = {
        "source": ["test"] * len(ids),
        "id": ids,
        "type": ["call"] * len(ids),
        "customer": ["acme"] * len(ids),
        "subscription": [None] * len(ids),
        "time": ["2026-10-05T10:00:00Z"] * len(ids),
        "data": ["{}"] * len(ids),
    }
    frame = pl.DataFrame(rows).with_columns(pl.col("time").str.to_datetime(time_zone="UTC", time_unit="us"))
    return client.usage(frame.cast(dict(EVENT_SCHEMA)))


def stored_once(client: Client, ids: list[str]) -> None:
    """Everything acknowledged is there, once: the log counts it so, and knows every id."""
    assert client.get("/v1/usage/completeness")["totals"]["stored"] == len(ids)
    for first in range(0, len(ids), 5_000):
        part = ids[first : first + 5_000]
        assert send(client, part)["duplicates"] == len(part)
    assert client.get("/v1/usage/completeness")["totals"]["stored"] == len(ids)


@pytest.fixture(scope="module")
def platform() -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="cb-") as folder:
        running = Running(Path(folder))
        try:
            running.start()
            yield running
        finally:
            if running.process is not None and running.process.poll() is None:
                running.process.send_signal(signal.SIGINT)
                try:
                    running.process.wait(60)
                except subprocess.TimeoutExpired:
                    running.process.kill()


@pytest.fixture(scope="module")
def acme(platform: Running) -> Client:
    return platform.tenant("acme-cloud-faults")


@pytest.fixture(scope="module")
def sent() -> list[str]:
    """Every acknowledged id of tenant `acme`, over all tests of the module."""
    return []


def test_the_commands_of_the_readme_do_what_it_says(platform: Running) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## A tour in five minutes")[1]
    script = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S))
    for start_or_stop in (" up --detach", " down"):
        script = script.replace(f".venv/bin/cloudbilling{start_or_stop}", "true")
    script = script.replace(".venv/bin/python", sys.executable).replace("127.0.0.1:8080", f"127.0.0.1:{platform.port}")
    script = script.replace(".venv/bin/cloudbilling", f"{sys.executable} -m cluster.cli")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env=platform.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert '"accepted":2' in done.stdout.replace(" ", "")
    assert "16.71" in done.stdout, done.stdout[-2000:]


def test_the_commands_of_forgetting_work_while_the_platform_runs(platform: Running) -> None:
    """Those of docs/forgetting.md; the usage log takes its five minutes and its hour, so that the rest is looked at."""
    client = platform.tenant("forgetful")
    send(client, ["f1", "f2"])
    of_tenant = ("--tenant", "forgetful", "--json")
    refused = platform.command("customer", "erase", "acme", "--rule", "GDPR 17", "--dry-run", *of_tenant, check=False)
    assert refused.returncode == 1
    assert "cancel it first" in refused.stderr
    client.steps([{"at": "2026-01-31", "cancel": {"subscription": "s1"}}])
    plan = platform.command("customer", "erase", "acme", "--rule", "GDPR 17", "--dry-run", *of_tenant)
    assert json.loads(plan.stdout)["usage_rows"] == 2
    unasked = platform.command("customer", "erase", "acme", "--rule", "GDPR 17", *of_tenant, check=False)
    assert unasked.returncode == 2
    asked = platform.command("customer", "erase", "acme", "--rule", "GDPR 17", "--yes", *of_tenant)
    erasure = json.loads(asked.stdout)["id"]
    end = time.monotonic() + 90
    while (one := json.loads(platform.command("customer", "erasures", erasure, *of_tenant).stdout))["state"] != "usage":
        assert time.monotonic() < end, one
        assert one["error"] is None, one
        time.sleep(2)
    assert client.get(f"/v1/customers/{one['stands_for']}")["form"]["name"] == "erased"
    assert erasure in platform.command("customer", "erasures", "--tenant", "forgetful").stdout
    assert json.loads(platform.command("compact", "--json").stdout)["tables"] > 30

    kept = platform.command("retention", "--notifications-months", "12", "--record-months", "never", *of_tenant)
    assert [(rule["class"], rule["months"]) for rule in json.loads(kept.stdout)["rules"]] == [("notifications", 12)]
    refused = platform.command("retention", "--usage-months", "6", "--tenant", "forgetful", check=False)
    assert refused.returncode == 1
    assert "late usage is rejected" in refused.stderr
    closed = platform.command("tenants", "close", "forgetful")
    assert "it may be read and exported" in closed.stdout
    exported = platform.command("tenants", "export", "forgetful", "--out", str(platform.folder / "export"), "--json")
    assert json.loads(exported.stdout)["usage rows"] >= 2
    planned = platform.command("tenants", "erase", "forgetful", "--rule", "contract ended", "--after-days", "30")
    assert "cloudbilling tenants reopen forgetful" in planned.stdout
    assert "will be erased at" in platform.command("tenants", "end", "forgetful").stdout
    assert "forgetful: open" in platform.command("tenants", "reopen", "forgetful").stdout


# One of each kind of thing that a platform does otherwise than the core: steps, lanes, credit, lateness, documents.
SCENARIOS = (
    *("saas-month", "telco-month", "iot-month", "energy-month", "cloud-provider-month", "several-currencies"),
    *("suspense-and-correction", "duplicates", "event-for-two-subscriptions", "time-weighted-level", "meters-all"),
    *(
        "late-usage-delta",
        "late-usage-reissue",
        "late-usage-reject",
        "credit-note-whole-with-wallet",
        "wallet-both-kinds",
    ),
    *("budget-blocks-reservations", "budget-one-event-crosses-three", "reserve-commit-release", "price-by-rows"),
)


def test_scenarios_come_out_over_http_as_in_process(platform: Running) -> None:
    cases = ROOT / "tests" / "cases"
    files = [str(cases / "scenarios" / f"{name}.yaml") for name in SCENARIOS] + [str(cases / "prices" / "bands.yaml")]
    key_file = str(platform.folder / "data" / "admin.key")
    done = platform.command(
        "scenario", "--url", platform.url, "--api-key-file", key_file, "--json", *files, check=False
    )
    answer = json.loads(done.stdout)
    assert [one for one in answer["files"] if not one["agrees"]] == []
    assert (done.returncode, len(answer["files"])) == (0, 21)


def test_a_scenario_that_differs_says_where_and_a_key_that_is_refused_says_why(
    platform: Running, tmp_path: Path
) -> None:
    text = (ROOT / "tests" / "cases" / "scenarios" / "fourteen-of-31-days.yaml").read_text(encoding="utf-8")
    wrong = tmp_path / "wrong.yaml"
    assert 'net: "145.16"' in text
    wrong.write_text(text.replace('net: "145.16"', 'net: "123456.78"'))
    done = platform.command("scenario", "--url", platform.url, "--keep", str(wrong), check=False)  # key: that of `up`
    assert done.returncode == 1, done.stderr
    assert "expected  123456.78" in done.stdout
    code, key = re.search(r"kept: tenant (\S+), key (\S+)", done.stdout).groups()  # type: ignore[union-attr]
    with Client(platform.url, key) as kept:
        shown = kept.get("/v1/tenant")
    assert (shown["code"], shown["kind"]) == (code, "test")
    for bad in (key, "cb_" + "x" * 43):  # a tenant's key, no key of ours
        file = tmp_path / "key"
        file.write_text(bad)
        refused = platform.command(
            "scenario", "--url", platform.url, "--api-key-file", str(file), str(wrong), check=False
        )
        assert refused.returncode == 2
        assert "key" in refused.stderr


def test_the_port_beside_the_proxy_answers_as_the_platform_does(platform: Running) -> None:
    direct = platform.direct()
    with httpx.Client(base_url=direct, trust_env=False) as http:
        assert http.get("/v1/health/ready").json()["ready"] is True
        refused = http.post("/v1/usage", json={})
        assert (refused.status_code, refused.json()["code"]) == (401, "not_authenticated")
    key = platform.tenant_key("direct")
    with Client(platform.url, key) as tenant, Client(direct, key) as beside:
        tenant.steps(STEPS)
        event = {
            "source": "a",
            "id": "1",
            "type": "call",
            "customer": "acme",
            "time": "2026-01-02T00:00:00Z",
            "data": {},
        }
        assert beside.post("/v1/usage", event)["accepted"] == 1
        assert tenant.post("/v1/usage", event)["duplicates"] == 1


def test_what_is_ours_listens_on_loopback_only(platform: Running) -> None:
    """Ray's own ports are not ours (SECURITY.md); HTTP, HAProxy, dashboard and PostgreSQL are."""
    by_port: dict[int, set[str]] = {}
    by_program: dict[str, set[str]] = {"haproxy": set(), "postgres": set()}
    for process in platform.processes():
        with suppress(psutil.NoSuchProcess):
            name = process.name()
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    by_port.setdefault(connection.laddr.port, set()).add(connection.laddr.ip)
                    if name in by_program:
                        by_program[name].add(connection.laddr.ip)
    assert by_port[platform.port] == {"127.0.0.1"}
    assert by_port[platform.dashboard] == {"127.0.0.1"}
    assert by_port[int(platform.direct().rpartition(":")[2])] == {"127.0.0.1"}
    assert by_program["haproxy"] == {"127.0.0.1"}, "statistics and metrics of HAProxy too"
    assert by_program["postgres"] == set(), "PostgreSQL has a Unix socket, no port"


def test_a_second_platform_on_the_same_folder_is_refused_in_words(platform: Running) -> None:
    done = platform.command("up", check=False)
    assert done.returncode == 1
    assert "a platform runs on" in done.stderr
    assert "CLOUDBILLING_DATA_DIR" in done.stderr
    assert platform.status()["ready"] is True


@pytest.mark.parametrize("part", ["ray::RatingShardActor", "ray::ServeReplica", "postgres"])
def test_a_killed_process_comes_back_and_no_acknowledged_event_is_lost_or_doubled(
    platform: Running, acme: Client, sent: list[str], part: str
) -> None:
    writer = Writer(acme)
    writer.acknowledged = sent
    with writer:
        writer.wait_for(100)
        # All of a name: of shards one waits, warm, to follow the other.
        for victim in [psutil.Process(platform.postgres())] if part == "postgres" else platform.named(part):
            victim.kill()
        writer.wait_for(200)
    stored_once(acme, sent)
    assert platform.process is not None
    assert platform.process.poll() is None, "the platform itself stays"
    transport = httpx.HTTPTransport(retries=5)  # connections refused while a replica starts
    with httpx.Client(transport=transport, trust_env=False, timeout=30.0) as http:
        assert http.get(f"{platform.direct()}/v1/health/live").status_code == 200


def test_after_kill_9_of_the_whole_tree_the_next_start_finds_everything_and_bills_it(
    platform: Running, acme: Client, sent: list[str]
) -> None:
    assert platform.process is not None
    ids = [f"last-{number}" for number in range(50)]
    send(acme, ids)
    sent += ids
    tree = platform.processes()
    psutil.Process(platform.process.pid).kill()  # first the watcher, so that it brings nothing back
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(tree, timeout=30)
    platform.process.wait(30)
    platform.start()
    stored_once(acme, sent)
    done = platform.command("bill-run", "--tenant", "acme-cloud-faults", "--up-to", "2026-11-01", "--json")
    assert json.loads(done.stdout)["state"] == "done", done.stdout
    (invoice,) = acme.get("/v1/invoices")["items"]
    document = acme.get(f"/v1/invoices/{invoice['number']}")
    assert float(document["lines"][0]["quantity"]) == len(sent)
    assert acme.get_bytes(f"/v1/invoices/{invoice['number']}/pdf").startswith(b"%PDF-")
    again = platform.command("bill-run", "--tenant", "acme-cloud-faults", "--up-to", "2026-11-01", "--json")
    assert again.returncode == 0
    assert len(acme.get("/v1/invoices")["items"]) == 1


def test_the_demo_that_the_readme_starts_with_is_loaded_whole(
    platform: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CLOUDBILLING_PORT", "CLOUDBILLING_DATA_DIR"):
        monkeypatch.setenv(name, platform.environment[name])
    load_all(Settings(), lambda *_: None, sign_in="demo@example.org")
    tenants = {one["code"] for one in json.loads(platform.command("tenants", "list", "--json").stdout)}
    assert tenants >= {"focus", "focus-resale", "nordwind"}


def test_ctrl_c_stops_all_of_it_and_leaves_no_process_behind(platform: Running) -> None:
    assert platform.process is not None
    tree = platform.processes()
    assert len(tree) > 8
    platform.process.send_signal(signal.SIGINT)
    code = platform.process.wait(90)
    assert code in (0, 130), platform.log()
    _, alive = psutil.wait_procs(tree, timeout=10)
    left = [process.name() for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert left == [], f"left behind: {left}"
    assert platform.status()["running"] is False
