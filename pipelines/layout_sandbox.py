"""Pages of tenants' sources, and all of HTML: drawn in a child with limits on time, memory, files and network.

Owns the child's life: one per source, in its own process group, killed when a page takes too long, when its answer is
too large, when it is not used, and with the parent. What the child itself gives up is `layout_child.py`'s.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import selectors
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pipelines.layout_blocks import Layout
from pipelines.layout_child import FINE, MEMORY_MAX, OUTPUT_BYTES_MAX
from pipelines.layout_engines import TYPST_HEAD, TYPST_MAIN, CannotDraw, Output
from pipelines.printable import font_folders

PAGE_S = 15.0  # of one document, by the clock on the wall: a page of ten lines takes 0.05 to 0.5 s
START_S = 60.0  # until the child is ready: fonts are read once
CHILDREN_MAX = 2  # alive at once in this process; the one that was not used longest goes
DATA_BYTES_MAX = 64_000_000


class LayoutSandbox:
    """Children by source. Safe to use from several threads: one page at a time is drawn."""

    def __init__(self, *, page_s: float = PAGE_S, children_max: int = CHILDREN_MAX) -> None:
        self._page_s, self._children_max = page_s, children_max
        self._children: OrderedDict[str, _Child] = OrderedDict()
        self._lock = threading.Lock()

    def draw(self, owner: str, layout: Layout, data: Mapping[str, Any], output: Output) -> list[bytes]:
        """The files of a page. `owner` is the tenant: no two share a child. Raises `CannotDraw`."""
        asked = json.dumps({"data": data, "output": output}, ensure_ascii=False).encode()
        if len(asked) > DATA_BYTES_MAX:
            raise CannotDraw(f"the document's data have more than {DATA_BYTES_MAX:,} bytes")
        key = hashlib.sha256(f"{owner}\0{layout.engine}\0{layout.source or ''}".encode()).hexdigest()
        with self._lock:
            child = self._children.pop(key, None) or _Child(layout)
            try:
                while len(self._children) >= self._children_max:
                    self._children.popitem(last=False)[1].end()
                verdict, content = child.ask(asked, self._page_s)
            except BaseException:
                child.end()  # whatever it is doing, it does no more; the next page gets a new one
                raise
            self._children[key] = child
        if verdict == FINE:
            return _files(content)
        told = json.loads(content)
        raise CannotDraw(told["detail"], told.get("line", 0), told.get("column", 0), missing=told.get("missing", ""))

    def close(self) -> None:
        with self._lock:
            while self._children:
                self._children.popitem()[1].end()


def _files(content: bytes) -> list[bytes]:
    count = struct.unpack_from(">I", content)[0]
    sizes = struct.unpack_from(f">{count}I", content, 4)
    at = 4 + 4 * count
    files: list[bytes] = []
    for size in sizes:
        files.append(content[at : at + size])
        at += size
    return files


class _Child:
    """One process and the folder with its source."""

    def __init__(self, layout: Layout) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="layout-"))
        source = layout.source
        if source is not None:
            (self._folder / "layout").write_text(source, "utf-8")
        if source is not None and layout.engine == "typst":
            (self._folder / "main.typ").write_text(TYPST_MAIN, "utf-8")
            (self._folder / "layout.typ").write_text(TYPST_HEAD + source, "utf-8")
        fonts = "".join(f"<dir>{folder}</dir>" for folder in font_folders())
        (self._folder / "fonts.conf").write_text(
            f'<?xml version="1.0"?><fontconfig>{fonts}<cachedir>{self._folder}/fonts</cachedir></fontconfig>', "utf-8"
        )
        environment = {  # nothing of the parent's: no address, no password, no home
            "PYTHONPATH": os.pathsep.join(one for one in (str(Path(__file__).parents[1]), *sys.path) if one),
            "HOME": str(self._folder),
            "FONTCONFIG_FILE": str(self._folder / "fonts.conf"),
            "LANG": "C.UTF-8",
            "SOURCE_DATE_EPOCH": "1577836800",  # written into every embedded font: the same page has the same bytes
            "RAYON_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.layout_child", layout.engine, str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        os.set_blocking(self._process.stdout.fileno(), False)
        _living.add(self)
        try:
            self._read(time.monotonic() + START_S, "could not be started")
        except BaseException:
            self.end()
            raise

    def ask(self, asked: bytes, seconds: float) -> tuple[bytes, bytes]:
        """Verdict and content of one page. `CannotDraw` where it dies or takes too long: then it has to be ended."""
        until = time.monotonic() + seconds
        self._write(struct.pack(">I", len(asked)) + asked, until, seconds)
        answer = self._read(until, f"took more than {seconds:g} seconds for one document and was ended")
        return answer[:1], answer[1:]

    def _write(self, data: bytes, until: float, seconds: float) -> None:
        assert self._process.stdin is not None
        left = memoryview(data)
        while left:
            if not _ready(self._process.stdin, selectors.EVENT_WRITE, until):
                raise CannotDraw(f"the layout took more than {seconds:g} seconds for one document and was ended")
            try:
                left = left[os.write(self._process.stdin.fileno(), left) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise self._died() from error

    def _read(self, until: float, late: str) -> bytes:
        assert self._process.stdout is not None
        found = bytearray()
        needed = 4
        while len(found) < needed:
            if not _ready(self._process.stdout, selectors.EVENT_READ, until):
                raise CannotDraw(f"the layout {late}")
            part = os.read(self._process.stdout.fileno(), min(needed - len(found), 1_048_576))
            if not part:
                raise self._died()
            found += part
            if needed == 4 and len(found) == 4:
                needed += struct.unpack(">I", found)[0]
                if needed > OUTPUT_BYTES_MAX + 1_000_000:
                    raise CannotDraw(f"the document has more than {OUTPUT_BYTES_MAX:,} bytes")
        return bytes(found[4:])

    def _died(self) -> CannotDraw:
        return CannotDraw(
            f"the layout ended its process: most likely it needed more than {MEMORY_MAX // 1_000_000:,} MB of memory"
            " or called itself without an end"
        )

    def end(self) -> None:
        """Kill the whole group and take its folder away; once is enough."""
        _living.discard(self)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)


_living: set[_Child] = set()


def _ready(stream: IO[bytes], event: int, until: float) -> bool:
    """Whether a pipe may be read or written by then. Polled: `select` refuses descriptors above 1,023."""
    with selectors.PollSelector() as waiting:
        waiting.register(stream, event)
        return bool(waiting.select(max(0.0, until - time.monotonic())))


@atexit.register
def _end_all() -> None:
    for child in list(_living):
        child.end()
