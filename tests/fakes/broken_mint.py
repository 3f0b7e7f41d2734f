"""A mint that answers whatever a test sets: garbage, errors, silence."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

from aiohttp import web

Behaviour = Callable[[web.Request], Awaitable[web.StreamResponse]]


class BrokenMint:
    """``async with BrokenMint() as mint``: serves ``mint.behaviour`` on every path."""

    def __init__(self) -> None:
        self.behaviour: Behaviour = answer(200, "{}")
        self.requests: list[str] = []
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> BrokenMint:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        return await self.behaviour(request)


def answer(status: int, body: str | bytes, **headers: str) -> Behaviour:
    """Always this answer."""

    async def behave(_: web.Request) -> web.StreamResponse:
        raw = body.encode() if isinstance(body, str) else body
        return web.Response(status=status, body=raw, headers=headers)

    return behave


async def silence(_: web.Request) -> web.StreamResponse:
    """Take the request and never answer."""
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def hang_up(request: web.Request) -> web.StreamResponse:
    """Take the request and close the connection."""
    assert request.transport is not None
    request.transport.close()
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


def cut_short(body: bytes, promised_bytes: int) -> Behaviour:
    """Promise more than comes."""

    async def behave(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {promised_bytes}\r\n\r\n".encode()
        request.transport.write(head + body)
        request.transport.close()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    return behave


def endless(chunk: bytes) -> Behaviour:
    """A body that goes on until the reader has had enough."""

    async def behave(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/json"})
        await response.prepare(request)
        while True:
            await response.write(chunk)

    return behave
