"""The HTTP carriage: every request goes through one handler into the dispatcher.

Paths, payment and models mean nothing here; only ``/health/…`` is answered on the spot, since it
is about this process and never travels over another carriage.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from typing import Protocol, TypeAlias

from aiohttp import HttpVersion10, HttpVersion11, web

from node.core.exchange import Receipt, ReplyEvent, Request
from node.core.money import Msat
from node.errors import InvalidValue, MethodNotAllowed, NodeError, NotFound
from node.transport.http import cors
from node.transport.http.body import (
    BODY_TIMEOUT_S,
    MAX_ANONYMOUS_BODY_BYTES,
    MAX_BODY_BYTES,
    MAX_BUFFERED_BYTES,
    BodyBudget,
    BodyLimits,
)
from node.transport.http.decode import decode, request_id
from node.transport.http.encode import (
    KEEPALIVE_S,
    common_headers,
    error_response,
    json_response,
    respond,
)
from node.transport.http.peer import Network, PeerFinder
from node.transport.http.site import Site

WRITE_TIMEOUT_S = 60.0
"""How long one piece of a live answer may wait for a client that does not read."""


App: TypeAlias = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Dispatcher(Protocol):
    """What answers; see ``service.dispatch``."""

    def handle(self, request: Request) -> AsyncGenerator[ReplyEvent, None]: ...

    def is_paid(self, method: str, path: str) -> bool: ...


class AdminDoor(Protocol):
    """What is below ``/admin``; see ``admin``."""

    async def handle(
        self, request: web.BaseRequest, id_: str, peer: str, budget: BodyBudget
    ) -> web.StreamResponse | None: ...


class HealthReport(Protocol):
    def live(self) -> bool: ...

    async def ready(self) -> tuple[bool, Mapping[str, str]]: ...


def create_app(
    dispatcher: Dispatcher,
    *,
    health: HealthReport,
    max_body_bytes: int = MAX_BODY_BYTES,
    max_anonymous_body_bytes: int = MAX_ANONYMOUS_BODY_BYTES,
    max_buffered_bytes: int = MAX_BUFFERED_BYTES,
    body_timeout_s: float = BODY_TIMEOUT_S,
    write_timeout_s: float = WRITE_TIMEOUT_S,
    trusted_proxies: Iterable[Network] = (),
    keepalive_s: float = KEEPALIVE_S,
    site: Site | None = None,
    admin: AdminDoor | None = None,
) -> App:
    """What answers every request; ``runner.HttpServer`` serves it with the limits of the protocol.

    ``site`` has the web pages, if there are any; ``admin`` answers before it does.

    It is aiohttp's low-level server, whose router has nothing to do here: 25 µs a request.
    """
    limits = BodyLimits(max_body_bytes, max_anonymous_body_bytes, body_timeout_s)
    budget = BodyBudget(max_buffered_bytes)
    peers = PeerFinder(trusted_proxies)
    return _Handler(
        dispatcher, health, limits, budget, peers, write_timeout_s, keepalive_s, site, admin
    ).handle


class _Handler:
    def __init__(
        self,
        dispatcher: Dispatcher,
        health: HealthReport,
        limits: BodyLimits,
        budget: BodyBudget,
        peers: PeerFinder,
        write_timeout_s: float,
        keepalive_s: float,
        site: Site | None,
        admin: AdminDoor | None,
    ) -> None:
        self._dispatcher = dispatcher
        self._health = health
        self._limits = limits
        self._budget = budget
        self._peers = peers
        self._write_timeout_s = write_timeout_s
        self._keepalive_s = keepalive_s
        self._site = site
        self._admin = admin

    async def handle(self, http_request: web.BaseRequest) -> web.StreamResponse:
        id_ = request_id(http_request)
        path = http_request.path
        try:
            if http_request.version < HttpVersion10:
                raise InvalidValue("this is not a valid HTTP request")
            if not path.startswith("/"):  # OPTIONS *, CONNECT
                raise NotFound
            if "Expect" in http_request.headers:
                refusal = await self._expect(http_request)
                if refusal is not None:
                    return refusal
            if path.startswith("/health/"):
                return await self._answer_health(http_request, id_)
            if http_request.method == "OPTIONS" and cors.is_open(path):
                return cors.preflight(common_headers(id_, path))
            if not path.startswith("/v1/"):
                page = await self._page(http_request, path, id_)
                if page is not None:
                    return page
            with self._budget.share() as share:
                peer = self._peers.address(http_request)
                request = await decode(http_request, id_, self._limits, share, peer)
                events = self._dispatcher.handle(request)
                return await respond(
                    http_request,
                    events,
                    id_,
                    write_timeout_s=self._write_timeout_s,
                    keepalive_s=self._keepalive_s,
                )
        except NodeError as error:
            paid = self._dispatcher.is_paid(http_request.method, path)
            return error_response(error, id_, Receipt(cost=Msat(0)) if paid else None, path=path)

    async def _page(
        self, http_request: web.BaseRequest, path: str, id_: str
    ) -> web.StreamResponse | None:
        """What is for people: the admin endpoints and the pages. None: it is neither."""
        if self._admin is not None and _is_admin(path):
            if not _is_admin(http_request.rel_url.raw_path):  # past a proxy that keeps it to itself
                raise NotFound
            peer = self._peers.address(http_request)
            answer = await self._admin.handle(http_request, id_, peer, self._budget)
            if answer is not None:
                return answer
        return None if self._site is None else self._site.handle(http_request, id_)

    async def _expect(self, http_request: web.BaseRequest) -> web.StreamResponse | None:
        """Answer ``Expect`` before the body is sent: go on, or why not."""
        if http_request.version < HttpVersion11:
            return None
        try:
            if http_request.headers.get("Expect", "").lower() != "100-continue":
                raise InvalidValue("only 100-continue can be expected here", param="expect")
            self._limits.check_headers(http_request)
        except NodeError as error:
            response = error_response(error, request_id(http_request), path=http_request.path)
            response.force_close()
            return response
        await http_request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        http_request.writer.output_size = 0  # not yet a byte of the answer itself
        return None

    async def _answer_health(self, http_request: web.BaseRequest, id_: str) -> web.Response:
        if http_request.path not in ("/health/live", "/health/ready"):
            raise NotFound
        if http_request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed(allow=("GET", "HEAD"))
        checks: Mapping[str, str] = {}
        if http_request.path == "/health/live":
            ok = self._health.live()
        else:
            ok, checks = await self._health.ready()
        document = {"status": "ok" if ok else "unavailable", "checks": dict(checks)}
        return json_response(200 if ok else 503, document, id_)


def _is_admin(path: str) -> bool:
    return path == "/admin" or path.startswith("/admin/")
