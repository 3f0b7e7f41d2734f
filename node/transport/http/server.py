"""The HTTP carriage: every request goes through one handler into the dispatcher.

Paths, payment and models mean nothing here; only ``/health/…`` is answered on the spot, since it
is about this process and never travels over another carriage.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

from aiohttp import HttpVersion11, web

from node.core.exchange import ReplyEvent, Request
from node.errors import InvalidValue, MethodNotAllowed, NodeError, NotFound
from node.transport.http.decode import check_body_headers, decode, request_id
from node.transport.http.encode import error_response, json_response, respond

MAX_BODY_BYTES = 32 << 20
"""Room for a few photographs in base64."""
BODY_TIMEOUT_S = 60.0
WRITE_TIMEOUT_S = 60.0
"""How long one piece of a live answer may wait for a client that does not read."""


class Dispatcher(Protocol):
    """What answers; see ``service.dispatch``."""

    def handle(self, request: Request) -> AsyncGenerator[ReplyEvent, None]: ...


class HealthReport(Protocol):
    def live(self) -> bool: ...

    async def ready(self) -> tuple[bool, Mapping[str, str]]: ...


def create_app(
    dispatcher: Dispatcher,
    *,
    health: HealthReport,
    max_body_bytes: int = MAX_BODY_BYTES,
    body_timeout_s: float = BODY_TIMEOUT_S,
    write_timeout_s: float = WRITE_TIMEOUT_S,
) -> web.Application:
    """The application; ``runner.HttpServer`` serves it with the limits of the protocol."""
    handler = _Handler(dispatcher, health, max_body_bytes, body_timeout_s, write_timeout_s)
    app = web.Application(client_max_size=max_body_bytes)
    app.router.add_route("*", "/{path:.*}", handler.handle, expect_handler=handler.expect)
    return app


class _Handler:
    def __init__(
        self,
        dispatcher: Dispatcher,
        health: HealthReport,
        max_body_bytes: int,
        body_timeout_s: float,
        write_timeout_s: float,
    ) -> None:
        self._dispatcher = dispatcher
        self._health = health
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._write_timeout_s = write_timeout_s

    async def handle(self, http_request: web.Request) -> web.StreamResponse:
        id_ = request_id(http_request)
        try:
            if http_request.path.startswith("/health/"):
                return await self._answer_health(http_request, id_)
            request = await decode(
                http_request,
                id_,
                max_body_bytes=self._max_body_bytes,
                body_timeout_s=self._body_timeout_s,
            )
        except NodeError as error:
            return error_response(error, id_)
        events = self._dispatcher.handle(request)
        return await respond(http_request, events, id_, write_timeout_s=self._write_timeout_s)

    async def expect(self, http_request: web.Request) -> web.StreamResponse | None:
        """Answer ``Expect`` before the body is sent: go on, or why not."""
        if http_request.version < HttpVersion11:
            return None
        try:
            if http_request.headers.get("Expect", "").lower() != "100-continue":
                raise InvalidValue("only 100-continue can be expected here", param="expect")
            check_body_headers(http_request, self._max_body_bytes)
        except NodeError as error:
            response = error_response(error, request_id(http_request))
            response.force_close()
            return response
        await http_request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        http_request.writer.output_size = 0  # not yet a byte of the answer itself
        return None

    async def _answer_health(self, http_request: web.Request, id_: str) -> web.Response:
        if http_request.path not in ("/health/live", "/health/ready"):
            raise NotFound
        if http_request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed
        checks: Mapping[str, str] = {}
        if http_request.path == "/health/live":
            ok = self._health.live()
        else:
            ok, checks = await self._health.ready()
        document = {"status": "ok" if ok else "unavailable", "checks": dict(checks)}
        return json_response(200 if ok else 503, document, id_)
