"""One entry for both carriages: finds the endpoint of a request and runs it.

The routes of all endpoints are in ``node.service.routes``; this is the machinery.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

import orjson
import structlog

from node.core.exchange import Chunk, Failed, Receipt, ReplyEvent, Request, Started
from node.core.money import Msat
from node.errors import (
    InternalError,
    MethodNotAllowed,
    NodeError,
    NotFound,
    RateLimitExceeded,
    ServerDraining,
)
from node.service.limits import Limiter, has_credentials, stranger

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer of a plain endpoint: ``document`` becomes JSON; None sends no body."""

    document: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    on_end: Callable[[bool], None] | None = None
    """Told once whether the carriage took the whole answer."""


Plain: TypeAlias = Callable[[Request, Mapping[str, str]], Awaitable[Reply]]
Streaming: TypeAlias = Callable[[Request], AsyncGenerator[ReplyEvent, None]]


@dataclass(frozen=True, slots=True)
class Route:
    """``path`` may hold ``{name}`` (one segment) and ``{name:path}`` (the rest).

    What stands for ``{secret}`` is not logged.

    One of ``plain`` and ``streaming`` is set. ``bare``: also reachable without ``/v1``. ``open``:
    nobody looks at credentials there, so that those who send some count as strangers, too.
    """

    method: str
    path: str
    summary: str
    plain: Plain | None = None
    streaming: Streaming | None = None
    bare: bool = False
    open: bool = False


class Observer(Protocol):
    """Learns what became of requests; see ``node.ops.traffic``."""

    def served(
        self,
        endpoint: str,
        carriage: str,
        status: int,
        code: str,
        receipt: Receipt,
        duration_s: float,
        first_byte_s: float | None,
        request_id: str = "",
        model: str = "",
    ) -> None:
        """A request has ended: path of its route, status (0: the client left before), error.

        ``model``: that it was about, once that was known; else "".
        """


def _pattern(path: str) -> re.Pattern[str]:
    parts = []
    for piece in re.split(r"(\{\w+(?::path)?\})", path):
        if piece.endswith(":path}"):
            parts.append(f"(?P<{piece[1:-6]}>.+)")
        elif piece.startswith("{"):
            parts.append(f"(?P<{piece[1:-1]}>[^/]+)")
        else:
            parts.append(re.escape(piece))
    return re.compile("".join(parts))


class Dispatcher:
    """Runs requests; knows how many run, and can drain.

    Args:
        limiter: counts the requests of strangers here, those of accounts where they are
            identified.
    """

    def __init__(self, routes: Sequence[Route], limiter: Limiter | None = None) -> None:
        self.routes = tuple(routes)
        self._limiter = limiter or Limiter()
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[re.Pattern[str], Route]] = []
        for route in routes:
            if "{" in route.path:
                self._patterns.append((_pattern(route.path), route))
                continue
            self._exact.setdefault(route.path, {})[route.method] = route
            if route.bare:
                bare = route.path.removeprefix("/v1")
                self._exact.setdefault(bare, {})[route.method] = route
        self._secret = [pair for pair in self._patterns if "{secret}" in pair[1].path]
        # found anew by each use of the module's: 8 µs
        self._log = log.bind()
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False
        self.observers: list[Observer] = []
        """Told of each request that has ended."""

    @property
    def active(self) -> int:
        """Requests under way."""
        return self._active

    def _endpoint(self, path: str) -> str:
        """The path of the route that answers ``path``; ``other`` without one."""
        for route in self._exact.get(path, _NO_ROUTES).values():
            return route.path
        for pattern, route in self._patterns:
            if pattern.fullmatch(path):
                return route.path
        return "other"

    async def handle(self, request: Request) -> AsyncGenerator[ReplyEvent, None]:
        """The events of one request. Never raises a NodeError: errors come as ``Failed``.

        Callers must ``aclose`` it when the client is gone.
        """
        began = time.monotonic()
        first_byte_at = 0.0
        status = 0
        receipt = Receipt()
        code = ""
        self._active += 1
        self._idle.clear()
        events = self._events(request)
        try:
            async for event in events:
                if isinstance(event, Chunk):  # first, because most are
                    if not first_byte_at:
                        first_byte_at = time.monotonic()
                    yield event
                    continue
                if isinstance(event, Started):
                    status = event.status
                    if request.answer_headers:
                        headers = {**event.headers, **request.answer_headers}
                        event = Started(event.status, headers, event.live)
                elif isinstance(event, Failed):
                    event = self._count_failure(request, event)
                    status, code = event.error.status, event.error.code
                    receipt = event.receipt
                    if event.error.private:
                        log.warning(
                            "request_failed",
                            request_id=request.request_id,
                            code=code,
                            reason=event.error.private,
                        )
                else:
                    receipt = event
                yield event
        finally:
            await events.aclose()
            self._active -= 1
            if not self._active:
                self._idle.set()
            duration_s = time.monotonic() - began
            if self.observers:
                endpoint = self._endpoint(request.path)
                first_byte_s = first_byte_at - began if first_byte_at else None
                model = request.notes.get("model", "")
                for observer in self.observers:
                    observer.served(
                        endpoint,
                        request.carriage,
                        status,
                        code,
                        receipt,
                        duration_s,
                        first_byte_s,
                        request.request_id,
                        model,
                    )
            self._log.info(
                "request",
                request_id=request.request_id,
                carriage=request.carriage,
                method=request.method,
                path=self._loggable(request),
                status=status,
                code=code,
                cost_msat=receipt.cost,
                duration_ms=round(duration_s * 1000, 1),
            )

    def _loggable(self, request: Request) -> str:
        """The path, or its pattern where a part of it is a secret."""
        for pattern, route in self._secret:
            if pattern.fullmatch(request.path):
                return route.path
        return request.path

    def is_paid(self, method: str, path: str) -> bool:
        """Whether such a request costs money, so that its answer says how much."""
        try:
            route, _ = self._find(method, path)
        except NodeError:
            return False
        return route.streaming is not None

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for those that run; False when some still do."""
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def _events(self, request: Request) -> AsyncGenerator[ReplyEvent, None]:
        started = False
        nothing = Receipt()
        try:
            named = has_credentials(request)
            if not named:
                self._limiter.take(stranger(request), request.answer_headers)
            route, params = self._find(request.method, request.path)
            if named and route.open:
                self._limiter.take(stranger(request), request.answer_headers)
            if route.streaming is not None:
                nothing = Receipt(cost=Msat(0))
            if self.draining:
                raise ServerDraining(retry_after_s=30)
            if route.streaming is not None:
                stream = route.streaming(request)
                # what raises from here on may have cost something
                nothing = Receipt()
                try:
                    async for event in stream:
                        started = True
                        if isinstance(event, Failed) and event.receipt.cost is None:
                            event = replace(event, receipt=replace(event.receipt, cost=Msat(0)))
                        yield event
                finally:
                    await stream.aclose()
                return
            assert route.plain is not None
            reply = await route.plain(request, params)
            if not request.answer_headers:  # its credentials named no account
                self._limiter.take(stranger(request), request.answer_headers)
        except NodeError as error:
            yield Failed(error, nothing)
            return
        except Exception as error:  # a bug: the client gets the id, the log the rest
            log.exception("internal_error", request_id=request.request_id)
            failure = InternalError(private=type(error).__name__)
            if not started:
                yield Failed(failure)
                return
            yield Chunk(b"data: " + failure.body(request.request_id) + b"\n\n")
            yield Receipt()
            return
        taken = False
        try:
            headers = {"content-type": "application/json", **reply.headers}
            body = b"" if reply.document is None else orjson.dumps(reply.document)
            if request.method == "HEAD" and body:
                headers["content-length"] = str(len(body))
                body = b""
            yield Started(reply.status, headers)
            if body:
                yield Chunk(body)
            yield Receipt()
            taken = True
        finally:
            if reply.on_end is not None:
                reply.on_end(taken)

    def _count_failure(self, request: Request, failed: Failed) -> Failed:
        """A key or token that was no good counts as a stranger's request."""
        if (
            failed.error.status in _STRANGERS_MISTAKES
            and not request.answer_headers
            and failed.receipt.change is None
        ):
            try:
                self._limiter.take(stranger(request), request.answer_headers)
            except RateLimitExceeded as error:
                failed = Failed(error, failed.receipt)
        return replace(failed, headers=dict(request.answer_headers))

    def _find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """The route and the parameters in its path; GET's route answers HEAD too."""
        exact = self._exact.get(path, _NO_ROUTES)
        if method in exact:
            return exact[method], _NO_PARAMS
        found = {taken: (route, _NO_PARAMS) for taken, route in exact.items()}
        if not found:
            for pattern, route in self._patterns:
                match = pattern.fullmatch(path)
                if match:
                    found.setdefault(route.method, (route, match.groupdict()))
        if not found:
            raise NotFound
        if "GET" in found:
            found.setdefault("HEAD", found["GET"])
        if method not in found:
            raise MethodNotAllowed(allow=found)
        return found[method]


_NO_PARAMS: Mapping[str, str] = {}
_NO_ROUTES: Mapping[str, Route] = {}
_STRANGERS_MISTAKES = frozenset({400, 401, 402, 404, 405, 413, 415, 422})
