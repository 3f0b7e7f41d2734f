"""The events of one exchange into one HTTP response."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import structlog
from aiohttp import web

from node.core.exchange import Chunk, Failed, Receipt, ReplyEvent, Started
from node.errors import InternalError, NodeError

log = structlog.get_logger()

_SERVER = "nodestr"


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
    error: NodeError, request_id: str, receipt: Receipt | None = None
) -> web.Response:
    """The one error body, its hints, and the change when money had come in."""
    headers = common_headers(request_id) | {"content-type": "application/json"}
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
                        live = _LiveResponse(request, event, request_id, write_timeout_s)
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
                case Failed(error=error, receipt=refund) if started is None:
                    return error_response(error, request_id, refund)
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
    return web.Response(status=started.status, body=body, headers=headers)


class _LiveResponse:
    """A response whose bytes leave as they come."""

    def __init__(
        self, request: web.BaseRequest, started: Started, request_id: str, write_timeout_s: float
    ) -> None:
        # proxies would otherwise collect the events before they pass them on
        headers = common_headers(request_id) | {"x-accel-buffering": "no"} | dict(started.headers)
        self.response = web.StreamResponse(status=started.status, headers=headers)
        self._request = request
        self._write_timeout_s = write_timeout_s

    async def start(self) -> None:
        await self.response.prepare(self._request)

    async def write(self, data: bytes) -> None:
        if not data:
            return
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await self.response.write(data)
        except TimeoutError:
            # a client that does not read is a client that has gone
            self.abort()
            raise ConnectionResetError("the client does not read") from None

    def abort(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()
