"""The process that draws pages from a source which a tenant wrote; started by `layout_sandbox.py`, one per source.

Reads frames from its input (four bytes of length, then JSON) and answers each with a frame (one byte of verdict, then
the file or the error). Before the first source is read it gives up what a source must not have: memory beyond its
share, files to write, new programs, sockets. It holds no credential and is told nothing but the page to draw.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.layout_engines import CannotDraw, HtmlEngine, LayoutEngine, TypstEngine, missing_glyphs
from pipelines.printable import unprintable

MEMORY_MAX = 1_200_000_000  # bytes of address space beyond what the engine took to start
CPU_S_MAX = 3_600  # of its whole life; what one page may take is the parent's clock
FILES_MAX = 128
OUTPUT_BYTES_MAX = 50_000_000
FINE, BAD = b"+", b"-"
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_FILTER = 1, 38, 22, 2
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # the second: EPERM
# Numbers of system calls by machine: socket, connect, execve, execveat, ptrace, unlinkat, mkdirat, symlinkat, linkat,
# process_vm_readv, io_uring_setup. Whoever has no socket reaches no network.
_CALLS = {
    "x86_64": (0xC000003E, (41, 42, 59, 322, 101, 87, 263, 83, 258, 88, 266, 86, 265, 310, 425)),
    "aarch64": (0xC00000B7, (198, 203, 221, 281, 117, 35, 34, 36, 37, 270, 425)),
}


def main() -> int:
    """Serve frames until the input ends."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    engine_name, folder = sys.argv[1], Path(sys.argv[2])
    engine: LayoutEngine = TypstEngine(folder) if engine_name == "typst" else HtmlEngine()
    own = folder / "layout"
    source = own.read_text("utf-8") if own.exists() else None
    _warm(engine_name)
    _give_up()
    replies.write(struct.pack(">I", 1) + FINE)
    replies.flush()
    requests = sys.stdin.buffer
    while (frame := _frame(requests)) is not None:
        verdict, content = _answer(engine, source, json.loads(frame))
        replies.write(struct.pack(">I", len(content) + 1) + verdict + content)
        replies.flush()
    return 0


def _answer(engine: LayoutEngine, source: str | None, asked: dict[str, Any]) -> tuple[bytes, bytes]:
    try:
        files = engine.draw(source, asked["data"], asked["output"])
        if sum(map(len, files)) > OUTPUT_BYTES_MAX:
            raise CannotDraw(f"the document has more than {OUTPUT_BYTES_MAX:,} bytes")
        heads = b"".join(struct.pack(">I", len(one)) for one in files)
        return FINE, struct.pack(">I", len(files)) + heads + b"".join(files)
    except CannotDraw as error:
        told = {"detail": error.detail, "line": error.line, "column": error.column, "missing": error.missing}
        return BAD, json.dumps(told).encode()
    except MemoryError:
        raise  # nothing can be trusted to go on after this: the parent says what it means
    except Exception as error:  # noqa: BLE001 - of a library on a strange page: told by name, the next page is drawn
        return BAD, json.dumps({"detail": f"{type(error).__name__}: {error}"[:2_000]}).encode()


def _frame(requests: BinaryIO) -> bytes | None:
    head = requests.read(4)
    if len(head) < 4:
        return None
    length = struct.unpack(">I", head)[0]
    return requests.read(length)


def _warm(engine: str) -> None:
    """Load everything that is loaded late, while files may still be opened at will."""
    if engine == "html":
        data = {"title": "-", "author": "-", "date": [2026, 1, 1]}
        HtmlEngine().draw("<p>{{ d.title }} äß 一 ا ✓</p>", data, "pdf")
        unprintable("一")
        missing_glyphs("")


def _give_up() -> None:
    """Limits that cannot be taken back, on this process and all that it would start."""
    status = Path("/proc/self/statm").read_text().split()
    memory = int(status[0]) * resource.getpagesize() + MEMORY_MAX
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, CPU_S_MAX),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, FILES_MAX),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write to a file is an error, not the end
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _no_sockets(libc)


def _no_sockets(libc: Any) -> None:
    """A seccomp filter: sockets, programs and changes to folders end in EPERM. Raises where the kernel has none."""
    known = _CALLS.get(platform.machine())
    if known is None:
        raise OSError(f"layouts of tenants are not drawn on {platform.machine()}: its system calls are not known")
    architecture, calls = known
    program = [(0x20, 0, 0, 4), (0x15, 1, 0, architecture), (0x06, 0, 0, 0), (0x20, 0, 0, 0)]
    program += [(0x35, 0, 1, 0x40000000), (0x06, 0, 0, _REFUSE)]  # the same calls under their x32 numbers
    for number in calls:
        program += [(0x15, 0, 1, number), (0x06, 0, 0, _REFUSE)]
    program.append((0x06, 0, 0, _ALLOW))

    class Filter(ctypes.Structure):
        _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)]

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.POINTER(Filter))]

    filters = (Filter * len(program))(*program)
    made = Program(len(program), filters)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _SECCOMP_FILTER, ctypes.byref(made)):
        raise OSError(ctypes.get_errno(), "no filter of system calls: layouts of tenants are not drawn")


if __name__ == "__main__":
    sys.exit(main())
