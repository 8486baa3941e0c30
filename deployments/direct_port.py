"""A port on which a replica answers by itself, beside Serve's proxy: the same application, one hop less.

For programs that send many small requests (docs/adr/0005). All replicas of a node listen on the same port and the
kernel deals connections out among them (SO_REUSEPORT), so one that ends takes nothing but its own connections along.
Keys, limits and answers are those of the application.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from fastapi import FastAPI, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from billing.errors import Overloaded
from deployments import problems

LOG = logging.getLogger("cloudbilling.direct_port")
HOST = "127.0.0.1"
REQUESTS_MAX = 256  # at once in a replica, as Serve's own max_ongoing_requests
CONNECTIONS_MAX = 1_024
KEEP_ALIVE_S = 75
DRAIN_S = 3  # what requests in flight get when the replica ends


class DirectPort:
    """One listener of one replica. `lifespan` opens it with the application and closes it with it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._serving: asyncio.Task[None] | None = None

    @property
    def answers(self) -> bool:
        """Whether it listens; False before it was opened and after its server has ended, for whatever reason."""
        return self._serving is not None and not self._serving.done()

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        listening = _socket(self.port)
        config = uvicorn.Config(
            Bounded(app, REQUESTS_MAX),
            lifespan="off",  # it is inside of it
            access_log=False,
            log_config=None,
            limit_concurrency=CONNECTIONS_MAX,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_S,
            server_header=False,
        )
        server = _Server(config)
        self._serving = asyncio.create_task(server.serve(sockets=[listening]), name="direct-port")
        LOG.info("listening on port %d beside the proxy", self.port)
        try:
            yield
        finally:
            server.should_exit = True
            await self._serving


class Bounded:
    """ASGI shell: more requests at once than a replica takes are told to come back."""

    def __init__(self, app: ASGIApp, requests_max: int) -> None:
        self._app = app
        self._free = requests_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._free == 0:
            refused = await problems.of(Request(scope, receive), Overloaded("too many requests at once on this port"))
            await refused(scope, receive, send)
            return
        self._free -= 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._free += 1


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are for the replica's process; Ray has its own handlers."""
        yield


def _socket(port: int) -> socket.socket:
    """Bound, together with whoever else of ours listens there. Errors: OSError when another program has the port."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((HOST, port))
    except OSError:
        made.close()
        raise
    return made
