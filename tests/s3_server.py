"""A real S3 server for tests: versitygw on loopback over a directory, fetched and built by package name once."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.object_store import S3ObjectStore, StoreUnavailable

VERSITYGW = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cloudbilling" / "bin"
KEY, SECRET = "testkey", "testsecret"


class S3Server:
    """versitygw on loopback over a directory; it is killed and started again on the same port by tests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("data", "iam", "versions", "data/bucket"):
            (directory / name).mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [str(CACHE / "versitygw"), "--access", KEY, "--secret", SECRET, "-p", f"127.0.0.1:{self.port}"]
        command += ["--quiet", "--iam-dir", str(self.directory / "iam"), "posix"]
        command += ["--versioning-dir", str(self.directory / "versions"), str(self.directory / "data")]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        store, deadline = self.store(), time.monotonic() + 20
        while True:
            try:
                store.get("ready")
                return
            except StoreUnavailable:
                assert time.monotonic() < deadline, "the S3 server does not answer"
                time.sleep(0.1)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)

    def store(self, prefix: str = "log-of-tests", bucket: str = "bucket") -> S3ObjectStore:
        return S3ObjectStore(bucket, prefix, endpoint_url=self.url, key=KEY, secret=SECRET, timeout_s=2.0)

    def bucket_with_lock(self, name: str) -> S3ObjectStore:
        store = self.store("kept", name)
        store.call("create_bucket", ObjectLockEnabledForBucket=True)
        return store


def running(directory: Path) -> Iterator[S3Server]:
    """A started server; skips, and fails in CI, where it cannot be built."""
    if not (CACHE / "versitygw").exists():
        if shutil.which("go") is None:
            if os.environ.get("CI"):
                pytest.fail("no Go on this machine, so no S3 server for the contract test")
            pytest.skip("no Go on this machine: `apt-get install golang` to test against an S3 server")
        CACHE.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "GOBIN": str(CACHE)}
        subprocess.run(["go", "install", VERSITYGW], check=True, env=environment, timeout=600)
    server = S3Server(directory)
    server.start()
    yield server
    server.kill()
