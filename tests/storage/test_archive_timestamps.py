"""Time stamps of signed roots, from a local authority: OpenSSL behind a small HTTP server."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from uuid import uuid4

import pytest

from storage.archive.roots import Roots, SigningKey
from storage.archive.timestamps import Rfc3161Timestamper
from storage.object_store import LocalObjectStore

NOW = datetime(2026, 11, 1, tzinfo=UTC)
CONFIG = """
[tsa]
default_tsa = authority
[authority]
serial = {folder}/serial
crypto_device = builtin
signer_cert = {folder}/tsa.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
accuracy = secs:1
ess_cert_id_chain = no
[ca_ext]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[tsa_ext]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, timeStamping
[req]
distinguished_name = name
[name]
"""


@dataclass
class Authority:
    url: str
    certificates: Path
    mood: str = "well"  # well, away, forging


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    folder = tmp_path_factory.mktemp("tsa")
    (folder / "serial").write_text("01\n")
    config = folder / "tsa.cnf"
    config.write_text(CONFIG.format(folder=folder))
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", f"{folder}/ca.key", "-out", f"{folder}/ca.pem", "-subj", "/CN=Test Root",
            "-days", "3650", "-config", str(config), "-extensions", "ca_ext")  # fmt: skip
    openssl("req", "-x509", *key, "-keyout", f"{folder}/tsa.key", "-out", f"{folder}/tsa.pem", "-subj",
            "/CN=Test Authority", "-days", "3650", "-config", str(config), "-extensions", "tsa_ext",
            "-CA", f"{folder}/ca.pem", "-CAkey", f"{folder}/ca.key")  # fmt: skip
    made: list[Authority] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Content-Type"] == "application/timestamp-query"
            if made[0].mood == "away":
                self.send_error(503)
                return
            (folder / "q").write_bytes(query)
            openssl("ts", "-reply", "-config", str(config), "-queryfile", f"{folder}/q", "-out", f"{folder}/r")
            answer = (folder / "r").read_bytes()
            if made[0].mood == "forging":
                answer = answer[:-1] + bytes([answer[-1] ^ 1])
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *arguments: object) -> None:
            print("authority:", format % arguments)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    made.append(Authority(f"http://127.0.0.1:{server.server_port}/", folder / "ca.pem"))
    yield made[0]
    server.shutdown()
    thread.join(10)


@pytest.fixture
def roots(authority: Authority, tmp_path: Path) -> Roots:
    authority.mood = "well"
    store = LocalObjectStore(tmp_path / "objects")
    timestamper = Rfc3161Timestamper(authority.url, authority.certificates)
    return Roots(store, SigningKey.of_file(tmp_path / "key"), timestamper=timestamper)


def test_a_root_is_stamped_and_the_stamp_speaks_for_its_very_bytes(roots: Roots, tmp_path: Path) -> None:
    tenant = str(uuid4())
    roots.sign(tenant, NOW.date(), 3, b"3" * 32, NOW)
    (root,) = roots.all(tenant)
    stamped = roots.stamped_at(root)
    assert stamped is not None
    assert abs(datetime.now(UTC) - stamped) < timedelta(minutes=5)
    assert list(roots.findings([root], 3)) == []
    store = LocalObjectStore(tmp_path / "objects")
    data = store.get(root.key)
    assert data is not None
    store.put(root.key, data.replace(b'\\"position\\":3', b'\\"position\\":2'))
    found = [one.detail for one in roots.findings(roots.all(tenant), 3)]
    assert any("signature" in one for one in found)
    assert any("time stamp" in one for one in found)


def test_a_root_waits_for_an_authority_that_is_away(roots: Roots, authority: Authority) -> None:
    tenant = str(uuid4())
    authority.mood = "away"
    roots.sign(tenant, NOW.date(), 1, b"1" * 32, NOW)
    authority.mood = "forging"
    roots.sign(tenant, NOW.date() + timedelta(days=1), 2, b"2" * 32, NOW)
    assert [one.stamp for one in roots.all(tenant)] == [None, None]
    authority.mood = "well"
    assert roots.stamp_missing(tenant) == 2
    assert all(roots.stamped_at(one) for one in roots.all(tenant))
    assert roots.stamp_missing(tenant) == 0
