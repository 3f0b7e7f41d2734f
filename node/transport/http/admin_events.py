"""Streams of events to the operator's pages: server-sent events that end with the session.

A stream ends when its source does, at logout, when the session is over, and when the node stops.
Pages ask again by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
import structlog
from aiohttp import web

from node.errors import InternalError, NodeError, RateLimitExceeded, ServerDraining
from node.transport.http.encode import common_headers

log = structlog.get_logger()

RETRY_S = 5
"""When to ask again where there are too many."""


@dataclass(frozen=True, slots=True)
class StreamTerms:
    """Bounds of the streams of events."""

    max_streams: int = 16
    keepalive_s: float = 15.0
    """After so long without an event a comment is sent, and the session is looked at again."""
    write_timeout_s: float = 30.0
    """How long one event may wait for a page that does not read."""


class Streams:
    """The open streams."""

    def __init__(self, terms: StreamTerms) -> None:
        self._terms = terms
        self._open: dict[asyncio.Event, str | None] = {}
        self._ended = False

    def end(self) -> None:
        """End all of them, and take no more."""
        self._ended = True
        for ended in self._open:
            ended.set()

    def end_of(self, token: str | None) -> None:
        """End those of one session."""
        for ended, whose in self._open.items():
            if whose == token:
                ended.set()

    async def run(
        self,
        request: web.BaseRequest,
        events: AsyncIterator[Any],
        id_: str,
        token: str | None,
        lasts: Callable[[], Awaitable[object]],
    ) -> web.StreamResponse:
        """Send ``events`` as they come.

        Args:
            token: of the session, see ``end_of``.
            lasts: raises NodeError when the session is over; asked now and then.

        Raises RateLimitExceeded, ServerDraining, ConnectionError when the page is gone or does not
        read.
        """
        if self._ended:
            await _aclose(events)
            raise ServerDraining
        if len(self._open) >= self._terms.max_streams:
            await _aclose(events)
            raise RateLimitExceeded("too many streams at once", retry_after_s=RETRY_S)
        ended = asyncio.Event()
        self._open[ended] = token
        end = asyncio.create_task(ended.wait())
        following: asyncio.Future[Any] = asyncio.ensure_future(_next(events))
        try:
            response = _response(id_)
            await self._write(response.prepare(request))
            await self._write(response.write(b": \n\n"))  # the page knows that it is connected
            loop = asyncio.get_running_loop()
            checked_at = loop.time()
            while True:
                wait_s = max(0.0, checked_at + self._terms.keepalive_s - loop.time())
                await asyncio.wait(
                    {following, end}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED
                )
                if end.done():
                    break
                if following.done():
                    try:
                        event = following.result()
                    except NodeError as error:
                        await self._write(response.write(_error_event(error, id_)))
                        break
                    except Exception:
                        log.exception("admin_stream_failed", request_id=id_, path=request.path)
                        await self._write(response.write(_error_event(InternalError(), id_)))
                        break
                    if event is _END:
                        break
                    await self._write(response.write(b"data: %b\n\n" % dump(event)))
                    following = asyncio.ensure_future(_next(events))
                if loop.time() - checked_at >= self._terms.keepalive_s:
                    checked_at = loop.time()
                    try:
                        await lasts()
                    except NodeError:
                        break
                    await self._write(response.write(b": keep-alive\n\n"))
            await self._write(response.write_eof())
            return response
        finally:
            del self._open[ended]
            for task in (end, following):
                task.cancel()
            await asyncio.gather(end, following, return_exceptions=True)
            await _aclose(events)

    async def _write(self, writing: Any) -> None:
        """Raises ConnectionError when the page is gone or does not read."""
        try:
            async with asyncio.timeout(self._terms.write_timeout_s):
                await writing
        except TimeoutError:
            raise ConnectionResetError("the page does not read") from None


def dump(document: Any) -> bytes:
    """As JSON on one line, whatever others have said in it."""
    try:
        return orjson.dumps(document)
    except TypeError:  # what only the standard library can write: a huge integer, half a character
        return json.dumps(document, default=str).encode()


_END = object()


async def _next(events: AsyncIterator[Any]) -> Any:
    return await anext(events, _END)


async def _aclose(events: AsyncIterator[Any]) -> None:
    aclose = getattr(events, "aclose", None)
    if aclose is not None:
        with contextlib.suppress(Exception):
            await aclose()


def _error_event(error: NodeError, id_: str) -> bytes:
    return b"event: error\ndata: %b\n\n" % error.body(id_)


def _response(id_: str) -> web.StreamResponse:
    headers = common_headers(id_) | {
        "content-type": "text/event-stream",
        "cache-control": "no-store",
        # proxies would otherwise collect the events before they pass them on
        "x-accel-buffering": "no",
    }
    return web.StreamResponse(headers=headers)
