"""The words of a file that somebody puts into the archive: PDF in a child process with limits, text as it is.

A PDF is a program of a stranger: a broken or hostile one costs its own words, never the archive.
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys

LOG = logging.getLogger("cloudbilling.archive")
SECONDS_MAX = 10
MEMORY_BYTES_MAX = 1024 * 1024 * 1024
PAGES_MAX = 200
TEXT_MAX = 200_000  # characters
_TAGS = re.compile(r"<[^>]*>")
_CHILD = f"""
import io, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES_MAX}, {MEMORY_BYTES_MAX}))
resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS_MAX}, {SECONDS_MAX}))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
from pypdf import PdfReader
left = {TEXT_MAX}
for page in PdfReader(io.BytesIO(sys.stdin.buffer.read())).pages[:{PAGES_MAX}]:
    text = page.extract_text()[:left]
    sys.stdout.buffer.write(text.encode("utf-8", "replace") + b"\\n")
    left -= len(text)
    if left <= 0:
        break
"""


def words(data: bytes, mime: str) -> str:
    """The text of a file by its type; empty for what has none or cannot be read."""
    if mime == "application/pdf":
        return _pdf(data)
    if mime in ("text/xml", "application/xml"):
        return _TAGS.sub(" ", data[: 4 * TEXT_MAX].decode("utf-8", "replace"))[:TEXT_MAX]
    if mime.startswith("text/") or mime == "application/json":
        return data[: 4 * TEXT_MAX].decode("utf-8", "replace")[:TEXT_MAX]
    return ""


def _pdf(data: bytes) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD],
            input=data,
            capture_output=True,
            timeout=SECONDS_MAX,
            env={},
            check=False,
        )
    except subprocess.TimeoutExpired:
        LOG.info("no words of a PDF of %d bytes: not read within %d s", len(data), SECONDS_MAX)
        return ""
    if done.returncode:
        LOG.info("no words of a PDF of %d bytes: %s", len(data), done.stderr[-200:].decode("utf-8", "replace"))
    return done.stdout.decode("utf-8", "replace")[:TEXT_MAX]
