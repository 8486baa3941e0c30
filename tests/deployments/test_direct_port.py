"""The port beside the proxy: opens and ends with the application, shared, bounded, and nobody else's."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from billing.errors import Unavailable
from cluster.ray_head import free_port
from deployments.direct_port import Bounded, DirectPort


def application(direct: DirectPort, name: str = "one") -> FastAPI:
    app = FastAPI(lifespan=direct.lifespan)

    @app.get("/who")
    async def who() -> JSONResponse:
        return JSONResponse({"name": name})

    @app.post("/slow")
    async def slow(request: Request) -> JSONResponse:
        body = await request.body()
        await asyncio.sleep(0.3)
        return JSONResponse({"bytes": len(body)})

    return app


@asynccontextmanager
async def opened(app: FastAPI) -> AsyncIterator[None]:
    async with app.router.lifespan_context(app):
        yield


async def answered(port: int) -> str:
    async with httpx.AsyncClient(trust_env=False) as http:
        return (await http.get(f"http://127.0.0.1:{port}/who")).json()["name"]


async def until_it_listens(port: int) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        await asyncio.sleep(0.02)
    raise AssertionError(f"nobody listens on {port}")


def test_it_answers_as_long_as_the_application_lives() -> None:
    async def main() -> None:
        direct = DirectPort(free_port())
        assert not direct.answers
        async with opened(application(direct)):
            await until_it_listens(direct.port)
            assert direct.answers
            assert await answered(direct.port) == "one"
        assert not direct.answers
        with pytest.raises(httpx.ConnectError):
            await answered(direct.port)

    asyncio.run(main())


def test_what_is_in_flight_is_answered_before_it_closes() -> None:
    async def main() -> None:
        direct = DirectPort(free_port())
        async with httpx.AsyncClient(trust_env=False) as http:
            async with opened(application(direct)):
                await until_it_listens(direct.port)
                waiting = asyncio.create_task(http.post(f"http://127.0.0.1:{direct.port}/slow", content=b"12345"))
                await asyncio.sleep(0.1)
            assert (await waiting).json() == {"bytes": 5}

    asyncio.run(main())


def test_replicas_share_a_port_and_one_that_ends_leaves_it_to_the_other() -> None:
    async def main() -> None:
        port = free_port()
        first, second = DirectPort(port), DirectPort(port)
        async with opened(application(first, "first")):
            async with opened(application(second, "second")):
                await until_it_listens(port)
                names = {await answered(port) for _ in range(60)}
                assert names == {"first", "second"}
            assert {await answered(port) for _ in range(20)} == {"first"}

    asyncio.run(main())


def test_a_port_of_another_program_is_an_error_and_not_shared() -> None:
    async def main() -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            direct = DirectPort(other.getsockname()[1])
            with pytest.raises(OSError) as refused:
                async with opened(application(direct)):
                    raise AssertionError("it took a port that was not free")
            assert refused.value.errno == errno.EADDRINUSE
            assert not direct.answers

    asyncio.run(main())


def test_a_server_that_ended_by_itself_is_seen() -> None:
    """Serve asks (`check_health` of the deployment) and replaces the replica."""

    async def main() -> None:
        direct, seen = DirectPort(free_port()), list[bool]()
        with contextlib.suppress(asyncio.CancelledError):
            async with opened(application(direct)):
                await until_it_listens(direct.port)
                (task,) = [one for one in asyncio.all_tasks() if one.get_name() == "direct-port"]
                task.cancel()
                await asyncio.wait([task])
                seen.append(direct.answers)
        assert seen == [False]

    asyncio.run(main())


def test_a_replica_whose_server_has_ended_is_not_healthy() -> None:
    from deployments.serve_app import application
    from deployments.wiring import PlatformAddress
    from storage.object_store import StoreAddress

    address = PlatformAddress("dsn", StoreAddress("/nowhere"), "namespace", "1", direct_port=4711)
    made: Any = application(address)
    replica = object.__new__(made._bound_deployment.func_or_class)
    replica._direct = None
    replica.check_health()  # no such port: nothing to look at
    replica._direct = DirectPort(4711)
    with pytest.raises(Unavailable, match="4711"):
        replica.check_health()


def test_more_requests_at_once_than_it_takes_are_told_to_come_back() -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await gate.wait()
            await JSONResponse({})(scope, receive, send)

        bounded = Bounded(app, 2)
        waiting = [asyncio.create_task(asked(bounded)) for _ in range(2)]
        await asyncio.sleep(0)
        status, headers = await asked(bounded)
        assert (status, headers[b"retry-after"]) == (429, b"1")
        gate.set()
        assert [status for status, _ in await asyncio.gather(*waiting)] == [200, 200]
        assert (await asked(bounded))[0] == 200, "a place is free again"

    asyncio.run(main())


async def asked(app: Bounded) -> tuple[int, dict[bytes, bytes]]:
    scope: Scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": [],
        "server": ("x", 1),
    }
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"])
