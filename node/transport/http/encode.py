"""The events of one exchange into one HTTP response.

Answers are written by hand over aiohttp's connection, a head with its body in one write and each
piece of a stream in one: its response objects took 50 µs an answer and 8 µs a piece. Errors,
which are rare, go through them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import time
from collections.abc import AsyncGenerator, Mapping
from email.utils import formatdate
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

import structlog
from aiohttp import HttpVersion11, web

from node.core.exchange import Chunk, Receipt, ReplyEvent, Started
from node.errors import InternalError, NodeError
from node.transport.http import cors

log = structlog.get_logger()

_SERVER = "nodestr"
_KEEP_ALIVE = b": keep-alive\n\n"
KEEPALIVE_S = 15.0
"""Silence in a stream of events after which a comment is sent."""
MIN_COMPRESSED_BYTES = 4096
"""Shorter answers are not worth the time."""
_REASONS = {status.value: status.phrase for status in HTTPStatus}
_BODYLESS = (204, 304)


def common_headers(request_id: str, path: str = "") -> dict[str, str]:
    """What every response carries; with a path, also what lets pages read it."""
    return {
        "server": _SERVER,
        "x-request-id": request_id,
        "x-routstr-request-id": request_id,
        "x-content-type-options": "nosniff",
        **cors.answer_headers(path),
    }


def json_response(status: int, document: Mapping[str, Any], request_id: str) -> web.Response:
    """A response that no exchange stands behind."""
    headers = common_headers(request_id) | {"content-type": "application/json"}
    return web.Response(status=status, body=json.dumps(document).encode(), headers=headers)


def error_response(
    error: NodeError,
    request_id: str,
    receipt: Receipt | None = None,
    more: Mapping[str, str] = MappingProxyType({}),
    path: str = "",
) -> web.Response:
    """The one error body, its hints, and the change when money had come in."""
    headers = common_headers(request_id, path) | {"content-type": "application/json"} | dict(more)
    headers |= error.headers()
    if receipt is not None:
        headers |= receipt_headers(receipt)
    return web.Response(status=error.status, body=error.body(request_id), headers=headers)


def receipt_headers(receipt: Receipt) -> dict[str, str]:
    """Cost, change and dust as headers."""
    headers: dict[str, str] = {}
    if receipt.cost is not None:
        headers["x-routstr-cost-msats"] = str(int(receipt.cost))
    if receipt.change is not None:
        headers["x-cashu"] = receipt.change
    if receipt.dust:
        headers["x-cashu-dust-msats"] = str(int(receipt.dust))
    return headers


async def respond(
    request: web.BaseRequest,
    events: AsyncGenerator[ReplyEvent, None],
    request_id: str,
    *,
    write_timeout_s: float,
    keepalive_s: float = KEEPALIVE_S,
) -> web.StreamResponse:
    """Drive ``events`` to their end, whatever happens, and give the response.

    A live answer is written as it comes; any other waits for its receipt, which goes into the
    headers. Both are on their way before the generator goes on to its end: what it does there
    is for answers that were sent. A client that hangs up cancels this task, and the generator
    with it.
    """
    wire = _Wire(request, write_timeout_s)
    live: _LiveAnswer | None = None
    whole: web.StreamResponse | None = None
    try:
        started: Started | None = None
        body: list[bytes] = []
        async for event in events:
            if isinstance(event, Chunk):  # first, because most are
                if live is not None:
                    await live.write(event.data)
                else:
                    body.append(event.data)
            elif isinstance(event, Started):
                started = event
                if event.live:
                    live = _LiveAnswer(wire, keepalive_s)
                    live.start(event, request_id)
            elif isinstance(event, Receipt):
                if live is None and started is not None:
                    whole = await _send(wire, started, b"".join(body), event, request_id)
            elif started is None:
                return error_response(
                    event.error, request_id, event.receipt, event.headers, request.path
                )
            else:
                raise event.error
        if live is not None:
            whole = live.finish()
        if whole is None:
            raise RuntimeError("an exchange without an end")
        return whole
    except ConnectionError:
        raise
    except Exception:
        log.exception("http_exchange_failed", request_id=request_id)
        if whole is not None:
            return whole
        if live is not None:
            # the status is gone; only a broken connection says that the answer is not whole
            wire.abort()
            raise ConnectionResetError from None
        return error_response(InternalError(), request_id, path=request.path)
    finally:
        if live is not None:
            live.end()
        await events.aclose()


async def _send(
    wire: _Wire, started: Started, body: bytes, receipt: Receipt, request_id: str
) -> web.StreamResponse:
    """Write a whole answer. Raises ConnectionError when the client is gone or does not read."""
    request = wire.request
    headers = common_headers(request_id, request.path)
    headers |= started.headers
    headers |= receipt_headers(receipt)
    if receipt.cost is None and len(body) >= MIN_COMPRESSED_BYTES:
        # what costs nothing and is long is a list of models or nodes; answers leave as they are
        headers["vary"] = "Accept-Encoding"
        response = web.Response(status=started.status, body=body, headers=headers)
        response.enable_compression()
        try:
            async with asyncio.timeout(wire.write_timeout_s):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            wire.abort()
            raise ConnectionResetError("the client does not read") from None
        return response
    if started.status in _BODYLESS:
        body = b""
    elif request.method != "HEAD":
        headers["content-length"] = str(len(body))
    elif body:
        headers["content-length"], body = str(len(body)), b""
    head = wire.head(started.status, headers, stays=request.keep_alive)
    if len(body) <= _PIECE_BYTES:
        wire.put(head + body)
        await wire.drain()
    else:
        await wire.put_long(head, body)
    return _SENT if request.keep_alive else _LAST


class _Sent(web.StreamResponse):
    """Stands for an answer that is written: aiohttp asks it whether the connection stays."""

    def __init__(self, *, stays: bool) -> None:
        super().__init__()
        self._stays = stays

    @property
    def keep_alive(self) -> bool:
        return self._stays

    async def prepare(self, request: web.BaseRequest) -> None:
        return

    async def write_eof(self, data: bytes = b"") -> None:
        return


_PIECE_BYTES = 1 << 18
"""Of an answer in one piece, written at once."""
_SENT = _Sent(stays=True)
_LAST = _Sent(stays=False)


class _Wire:
    """One client's connection as its answer is written."""

    __slots__ = ("_protocol", "_writer", "request", "write_timeout_s")

    def __init__(self, request: web.BaseRequest, write_timeout_s: float) -> None:
        self.request = request
        self.write_timeout_s = write_timeout_s
        self._protocol = request.protocol
        self._writer = request.writer

    @property
    def is_current(self) -> bool:
        """HTTP/1.1, which has chunks, and connections that stay unless somebody says otherwise."""
        return self.request.version >= HttpVersion11

    @property
    def is_full(self) -> bool:
        """The client has not read what was written before."""
        return self._protocol.writing_paused

    def head(self, status: int, headers: Mapping[str, str], *, stays: bool) -> bytes:
        """The head of an answer. Raises ValueError for what would break out of a header."""
        version, connection = 1, "" if stays else "connection: close\r\n"
        if not self.is_current:
            version, connection = 0, "connection: keep-alive\r\n" if stays else ""
        fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if not fields.count("\n") == fields.count("\r") == len(headers) or "\0" in fields:
            raise ValueError("a header of the answer has a line end in it")
        return (
            f"HTTP/1.{version} {status} {_REASONS.get(status, '')}\r\n"
            f"{fields}date: {_date(int(time.time()))}\r\n{connection}\r\n"
        ).encode()

    def put(self, data: bytes) -> None:
        """Write at once. Raises ConnectionError when the client is gone."""
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        self._writer.output_size += len(data)  # tells ``_Connection`` that an answer has begun
        transport.write(data)

    async def put_long(self, head: bytes, body: bytes) -> None:
        """Write piece by piece, so that the transport keeps no copy of the whole.

        Takes as long as ``drain`` may. Raises ConnectionError as both do.
        """
        try:
            async with asyncio.timeout(self.write_timeout_s):
                self.put(head)
                for at in range(0, len(body), _PIECE_BYTES):
                    self.put(body[at : at + _PIECE_BYTES])
                    await asyncio.sleep(0)  # others get a turn though this client reads fast
                    await self._writer.drain()
        except TimeoutError:
            self.abort()
            raise ConnectionResetError("the client does not read") from None

    async def drain(self) -> None:
        """Wait until there is room again, when there is none.

        Raises ConnectionError when the client is gone, or does not read: that is the same.
        """
        if not self._protocol.writing_paused:
            return
        try:
            async with asyncio.timeout(self.write_timeout_s):
                await self._writer.drain()
        except TimeoutError:
            self.abort()
            raise ConnectionResetError("the client does not read") from None

    def abort(self) -> None:
        if self._protocol.transport is not None:
            self._protocol.transport.abort()


@functools.lru_cache(maxsize=1)
def _date(now: int) -> str:
    return formatdate(now, usegmt=True)


class _LiveAnswer:
    """An answer whose bytes leave as they come."""

    def __init__(self, wire: _Wire, keepalive_s: float) -> None:
        self._wire = wire
        self._keepalive_s = keepalive_s
        self._loop = asyncio.get_running_loop()
        self._written_at = self._loop.time()
        self._chunked = wire.is_current
        self._stays = self._chunked and wire.request.keep_alive
        self._timer: asyncio.TimerHandle | None = None

    def start(self, started: Started, request_id: str) -> None:
        headers = common_headers(request_id, self._wire.request.path)
        # proxies would otherwise collect the events before they pass them on
        headers["x-accel-buffering"] = "no"
        headers |= started.headers
        if self._chunked:
            headers["transfer-encoding"] = "chunked"
        self._wire.put(self._wire.head(started.status, headers, stays=self._stays))
        if headers.get("content-type", "").startswith("text/event-stream"):
            self._timer = self._loop.call_later(self._keepalive_s, self._keep_alive)

    async def write(self, data: bytes) -> None:
        if not data:
            return
        self._written_at = self._loop.time()
        self._put(data)
        if self._wire.is_full:
            await self._wire.drain()

    def finish(self) -> web.StreamResponse:
        """Write the end of the body."""
        if self._chunked:
            self._wire.put(b"0\r\n\r\n")
        return _SENT if self._stays else _LAST

    def end(self) -> None:
        """No more comments; also when the request was cancelled. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _put(self, data: bytes) -> None:
        self._wire.put(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def _keep_alive(self) -> None:
        """A comment when nothing else was said for a while; chunks end where events end."""
        quiet_s = self._loop.time() - self._written_at
        if quiet_s >= self._keepalive_s:
            quiet_s = 0.0
            if not self._wire.is_full:
                with contextlib.suppress(ConnectionError):  # the next chunk will find out
                    self._put(_KEEP_ALIVE)
                self._written_at = self._loop.time()
        self._timer = self._loop.call_later(self._keepalive_s - quiet_s, self._keep_alive)
