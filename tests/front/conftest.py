"""One real platform for all tests of the pages, and Debian's Chromium."""

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from platform_under_test import Platform, start
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    running = start(tmp_path_factory.mktemp("front"))
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")  # its event loop would run on in the tests of other folders
def chromium() -> Iterator[Browser]:
    if not os.path.exists(CHROMIUM):
        command = ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            pytest.fail(f"the browser tests need Chromium: sudo {' '.join(command)}")
        subprocess.run(["apt-get", "update", "-q"], check=True, capture_output=True)
        subprocess.run(command, check=True, capture_output=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()
