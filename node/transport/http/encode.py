"""The events of one exchange into one HTTP response."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from types import MappingProxyType
from typing import Any

import structlog
from aiohttp import web

from node.core.exchange import Chunk, Failed, Receipt, ReplyEvent, Started
from node.errors import InternalError, NodeError

log = structlog.get_logger()

_SERVER = "nodestr"
_KEEP_ALIVE = b": keep-alive\n\n"
KEEPALIVE_S = 15.0
"""Silence in a stream of events after which a comment is sent."""
MIN_COMPRESSED_BYTES = 4096
"""Shorter answers are not worth the time."""


def common_headers(request_id: str) -> dict[str, str]:
    """What every response carries."""
    return {
        "server": _SERVER,
        "x-request-id": request_id,
        "x-routstr-request-id": request_id,
        "x-content-type-options": "nosniff",
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
) -> web.Response:
    """The one error body, its hints, and the change when money had come in."""
    headers = common_headers(request_id) | {"content-type": "application/json"} | dict(more)
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
    live: _LiveResponse | None = None
    whole: web.Response | None = None
    try:
        started: Started | None = None
        body: list[bytes] = []
        async for event in events:
            match event:
                case Started():
                    started = event
                    if event.live:
                        live = _LiveResponse(
                            request, event, request_id, write_timeout_s, keepalive_s
                        )
                        await live.start()
                case Chunk(data=data):
                    if live is not None:
                        await live.write(data)
                    else:
                        body.append(data)
                case Receipt() if live is None and started is not None:
                    whole = _whole_response(started, b"".join(body), event, request_id)
                    await _send(request, whole, write_timeout_s)
                case Receipt():
                    pass
                case Failed(error=error, receipt=refund, headers=more) if started is None:
                    return error_response(error, request_id, refund, more)
                case Failed(error=error):
                    raise error
        if live is not None:
            return live.response
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
            live.abort()
            raise ConnectionResetError from None
        return error_response(InternalError(), request_id)
    finally:
        if live is not None:
            live.end()
        await events.aclose()


async def _send(request: web.BaseRequest, response: web.Response, write_timeout_s: float) -> None:
    """Write a whole response. Raises ConnectionError when the client is gone or does not read."""
    try:
        async with asyncio.timeout(write_timeout_s):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        raise ConnectionResetError("the client does not read") from None


def _whole_response(
    started: Started, body: bytes, receipt: Receipt, request_id: str
) -> web.Response:
    headers = common_headers(request_id) | dict(started.headers) | receipt_headers(receipt)
    response = web.Response(status=started.status, body=body, headers=headers)
    if receipt.cost is None and len(body) >= MIN_COMPRESSED_BYTES:
        # what costs nothing and is long is a list of models or nodes; answers leave as they are
        response.headers["vary"] = "Accept-Encoding"
        response.enable_compression()
    return response


_comments: set[asyncio.Task[None]] = set()


class _LiveResponse:
    """A response whose bytes leave as they come."""

    def __init__(
        self,
        request: web.BaseRequest,
        started: Started,
        request_id: str,
        write_timeout_s: float,
        keepalive_s: float,
    ) -> None:
        # proxies would otherwise collect the events before they pass them on
        headers = common_headers(request_id) | {"x-accel-buffering": "no"} | dict(started.headers)
        self.response = web.StreamResponse(status=started.status, headers=headers)
        self._request = request
        self._write_timeout_s = write_timeout_s
        self._keepalive_s = keepalive_s
        self._loop = asyncio.get_running_loop()
        self._written_at = self._loop.time()
        self._writing = False
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        await self.response.prepare(self._request)
        if self.response.headers.get("content-type", "").startswith("text/event-stream"):
            self._timer = self._loop.call_later(self._keepalive_s, self._keep_alive)

    def end(self) -> None:
        """No more comments; also when the request was cancelled. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _keep_alive(self) -> None:
        """A comment when nothing else was said for a while; chunks end where events end."""
        quiet_s = self._loop.time() - self._written_at
        if quiet_s >= self._keepalive_s and not self._writing:
            task = self._loop.create_task(self._comment())
            _comments.add(task)
            task.add_done_callback(_comments.discard)
            quiet_s = 0.0
        wait_s = max(0.0, self._keepalive_s - quiet_s) or self._keepalive_s
        self._timer = self._loop.call_later(wait_s, self._keep_alive)

    async def _comment(self) -> None:
        with contextlib.suppress(ConnectionError):  # the next chunk will find out
            await self.write(_KEEP_ALIVE)

    async def write(self, data: bytes) -> None:
        if not data:
            return
        self._written_at = self._loop.time()
        self._writing = True
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await self.response.write(data)
        except TimeoutError:
            # a client that does not read is a client that has gone
            self.abort()
            raise ConnectionResetError("the client does not read") from None
        finally:
            self._writing = False

    def abort(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()
