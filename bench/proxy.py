"""The yardstick: the least an aiohttp gateway can do. ``python -m bench.proxy PORT UPSTREAM``.

One process, one event loop (uvloop, as the node's), one client session. It passes the request on
and the answer back as it comes; it checks, counts, stores and logs nothing.
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import uvloop
from aiohttp import web

_PASSED = ("content-type", "content-length")


class Proxy:
    """Passes everything to ``upstream``."""

    def __init__(self, upstream: str, session: aiohttp.ClientSession) -> None:
        self._upstream = upstream
        self._session = session

    async def handle(self, request: web.Request) -> web.StreamResponse:
        async with self._session.request(
            request.method,
            self._upstream + request.path_qs,
            data=await request.read(),
            headers={"content-type": request.headers.get("content-type", "application/json")},
        ) as answer:
            headers = {name: answer.headers[name] for name in _PASSED if name in answer.headers}
            response = web.StreamResponse(status=answer.status, headers=headers)
            await response.prepare(request)
            async for data in answer.content.iter_any():
                await response.write(data)
            await response.write_eof()
            return response


async def serve(port: int, upstream: str) -> None:
    """Serve on loopback until the process is ended."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", Proxy(upstream, session).handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as main:
        main.run(serve(int(sys.argv[1]), sys.argv[2]))
