"""Listening, the limits of the protocol itself, and an orderly end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import structlog
from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import RawRequestMessage

from node.errors import (
    InternalError,
    InvalidValue,
    MethodNotAllowed,
    NodeError,
    NotFound,
    RequestTooLarge,
)
from node.transport.http.decode import request_id
from node.transport.http.encode import error_response
from node.transport.http.server import App

log = structlog.get_logger()

KEEPALIVE_TIMEOUT_S = 75.0
"""Longer than the usual proxy keeps an idle connection, so that it is the one to close."""
HEADER_TIMEOUT_S = 20.0
"""From the connection to the end of the first request's headers; later ones have the keep-alive
time."""
MAX_HEADER_BYTES = 64 << 10
"""Of one header or of the request line. A token of 100,000 sat can take 7 KB."""
DRAIN_TIMEOUT_S = 30.0
LINGER_S = 5.0
"""How long the rest of a refused body is read and dropped, so that the client sees the answer."""
BACKLOG = 1024
HAND_OVER_S = 1.0
"""How long at least connections are kept for their next request when another process takes over."""
_POLL_S = 0.02


class HttpServer:
    """Serves ``app`` on one address.

    Args:
        port: 0 takes a free one; see ``port`` after ``start``.
        sock: a listening socket from outside, instead of host and port.
        drain_timeout_s: what ``stop`` grants to running requests.
    """

    def __init__(
        self,
        app: App,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        sock: socket.socket | None = None,
        keepalive_timeout_s: float = KEEPALIVE_TIMEOUT_S,
        header_timeout_s: float = HEADER_TIMEOUT_S,
        max_header_bytes: int = MAX_HEADER_BYTES,
        drain_timeout_s: float = DRAIN_TIMEOUT_S,
    ) -> None:
        self._host, self._port, self._sock = host, port, sock
        self._keepalive_timeout_s = keepalive_timeout_s
        self._header_timeout_s = header_timeout_s
        self._max_header_bytes = max_header_bytes
        self._app = app
        self._drain_timeout_s = drain_timeout_s
        self._runner: web.ServerRunner | None = None
        self._listener: asyncio.Server | None = None
        self._busy = 0
        self.handing_over = False
        """Whether every answer is the last one of its connection."""

    async def start(self) -> None:
        """Bind and serve. Raises OSError when the address cannot be bound."""
        # cancellation is how a running exchange learns that its client has gone
        server = web.Server(self._answer, request_factory=self._request, handler_cancellation=True)
        self._runner = web.ServerRunner(server, shutdown_timeout=self._drain_timeout_s)
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        if self._sock is not None:
            listener = await loop.create_server(self._connection, sock=self._sock, backlog=BACKLOG)
        else:
            listener = await loop.create_server(
                self._connection, self._host, self._port, backlog=BACKLOG
            )
        self._listener = listener
        log.info("http_listening", host=self._host, port=self.port)

    async def hand_over(self, timeout_s: float) -> bool:
        """Leave who connects to whoever listens on the same socket next, serve who is connected.

        Connections close with their next answer; idle ones have ``HAND_OVER_S`` to ask once more.

        Returns whether nothing runs any more; False if something still does after ``timeout_s``.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.handing_over = True
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        while self._busy or loop.time() < began + min(HAND_OVER_S, timeout_s):
            if loop.time() > began + timeout_s:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    async def stop(self) -> None:
        """Take no more connections, let running requests finish, cancel what is left."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def sockets(self) -> Sequence[socket.socket]:
        return self._listener.sockets if self._listener is not None else ()

    @property
    def port(self) -> int:
        """The bound port; 0 when not started, or on a socket without ports."""
        for listening in self.sockets:
            if listening.family in (socket.AF_INET, socket.AF_INET6):
                port: int = listening.getsockname()[1]
                return port
        return 0

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self._busy += 1
        try:
            return await self._app(request)
        finally:
            self._busy -= 1

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        if self.handing_over:
            message = message._replace(should_close=True)
        return web.BaseRequest(message, payload, protocol, writer, task, asyncio.get_running_loop())

    def _connection(self) -> _Connection:
        assert self._runner is not None
        server = self._runner.server
        assert server is not None
        return _Connection(
            server,
            self._header_timeout_s,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=self._keepalive_timeout_s,
            max_line_size=self._max_header_bytes,
            max_field_size=self._max_header_bytes,
            lingering_time=LINGER_S,
            auto_decompress=False,  # see ``body``: inflated when it is whole, and counted
            access_log=None,
        )


class _Connection(web.RequestHandler):
    """aiohttp's connection with our error pages and a deadline for the first headers."""

    def __init__(self, manager: web.Server, header_timeout_s: float, **options: object) -> None:
        super().__init__(manager, **options)  # type: ignore[arg-type]
        self._header_timeout_s = header_timeout_s
        self._header_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._header_deadline = asyncio.get_running_loop().call_later(
            self._header_timeout_s, self._close_if_silent
        )

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._header_deadline is not None:
            self._header_deadline.cancel()
        super().connection_lost(exc)

    def _close_if_silent(self) -> None:
        if self._request_count == 0:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        # ``message`` and ``exc`` may quote a header, and with it a token: neither is repeated
        if status >= 500:
            log.error("http_handler_failed", error=type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun")
        if isinstance(exc, LineTooLong):
            error: NodeError = RequestTooLarge("a header or the request line is too long")
        else:
            error = _error_of_status(status)
        response = error_response(error, request_id(request))
        response.force_close()
        return response


def _error_of_status(status: int) -> NodeError:
    match status:
        case 404:
            return NotFound()
        case 405:
            return MethodNotAllowed()
        case 413:
            return RequestTooLarge()
        case _ if 400 <= status < 500:
            return InvalidValue("this is not a valid HTTP request")
        case _:
            return InternalError()
