"""A load generator that costs little beside what it measures: HTTP/1.1 over kept connections, no more than is needed.

A client library spends milliseconds a request, more than the platform does, on the same cores. A request is made of
bytes once; an answer is read by its status and its stated length (or chunks). For loopback only: no TLS, no redirects.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

ANSWER_S = 120.0


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes


class Sender:
    """One kept connection; one request at a time. Connects again where the server has closed it."""

    def __init__(self, url: str, key: str, content_type: str = "application/x-ndjson") -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host, self._port = parts.hostname, parts.port or 80
        lines = [f"host: {parts.netloc}", *([f"authorization: Bearer {key}"] if key else [])]
        self._common = "".join(f"{line}\r\n" for line in lines)
        self._headers = f"{self._common}content-type: {content_type}\r\n"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes) -> Answer:
        """The answer to one request; raises what a broken connection raises."""
        head = f"POST {path} HTTP/1.1\r\n{self._headers}content-length: {len(body)}\r\n\r\n".encode()
        return await self._ask(head, body)

    async def get(self, path: str) -> Answer:
        return await self._ask(f"GET {path} HTTP/1.1\r\n{self._common}\r\n".encode(), b"")

    async def _ask(self, head: bytes, body: bytes) -> Answer:
        if self._streams is None or self._streams[0].at_eof():
            await self.close()
            self._streams = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
        reader, writer = self._streams
        if len(body) < 65_536:
            writer.write(head + body)
        else:
            writer.write(head)
            writer.write(body)
        try:
            async with asyncio.timeout(ANSWER_S):
                return await _answer(reader)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _answer(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head[9:12])
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        length = int(head[at + 17 : head.index(b"\r\n", at + 2)])
        return Answer(status, await reader.readexactly(length) if length else b"")
    assert b"transfer-encoding: chunked" in head, "an answer without a length"
    parts: list[bytes] = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    await reader.readuntil(b"\r\n")
    return Answer(status, b"".join(parts))


async def as_fast_as_answered(
    url: str,
    key: str,
    waiting: Sequence[bytes],
    connections: int,
    take: Callable[[bytes, Answer, float], None],
    *,
    path: str = "/v1/usage",
    content_type: str = "application/x-ndjson",
) -> float:
    """Send all bodies over so many connections, each when the one before is answered; the seconds that it took.

    `take` is told each body, its answer and the seconds it took. A refusal (429, 503) is sent again for a while,
    as a client would.
    """
    queue = iter(waiting)
    senders = [Sender(url, key, content_type) for _ in range(connections)]
    began = time.perf_counter()
    try:
        await asyncio.gather(*(_work(sender, path, queue, take) for sender in senders))
    finally:
        for sender in senders:
            await sender.close()
    return time.perf_counter() - began


REPEAT_S = 20.0  # an overload is repeated as a client would; longer than that is a failure


async def _work(
    sender: Sender, path: str, queue: Iterator[bytes], take: Callable[[bytes, Answer, float], None]
) -> None:
    for body in queue:
        began = time.perf_counter()
        answer = await sender.post(path, body)
        while answer.status in (429, 503) and time.perf_counter() - began < REPEAT_S:
            await asyncio.sleep(0.1)
            answer = await sender.post(path, body)
        take(body, answer, time.perf_counter() - began)


async def as_scheduled(
    url: str,
    key: str,
    waiting: Sequence[bytes],
    rate: float,
    connections: int,
    take: Callable[[bytes, Answer, float], None],
) -> None:
    """Send each body when it is due, so many a second, whatever became of those before (if a connection is free).

    The seconds of a request count from the moment it was due: a server that falls behind is charged for all that wait,
    and for what it refuses, which is sent again.
    """
    free: asyncio.LifoQueue[Sender] = asyncio.LifoQueue()
    for _ in range(connections):
        free.put_nowait(Sender(url, key))
    began = time.perf_counter() + 0.2

    async def one(due: float, body: bytes) -> None:
        sender = await free.get()
        try:
            answer = await sender.post("/v1/usage", body)
            while answer.status in (429, 503) and time.perf_counter() - due < REPEAT_S:
                await asyncio.sleep(0.1)
                answer = await sender.post("/v1/usage", body)
        finally:
            free.put_nowait(sender)
        take(body, answer, time.perf_counter() - due)

    tasks: set[asyncio.Task[None]] = set()
    for number, body in enumerate(waiting):
        due = began + number / rate
        ahead = due - time.perf_counter()
        if ahead > 0:
            await asyncio.sleep(ahead)
        task = asyncio.create_task(one(due, body))
        tasks.add(task)
        if len(tasks) > 10_000:
            done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
    await asyncio.gather(*tasks)
    while not free.empty():
        await free.get_nowait().close()
