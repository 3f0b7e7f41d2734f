"""``GET /metrics`` on an address of its own, which is never the public one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

log = structlog.get_logger()

MAX_HEADER_BYTES = 8 << 10


class ScrapeServer:
    """Serves what ``render`` gives; everything else is 404.

    Args:
        port: 0 takes a free one; see ``port`` after ``start``.
        content_type: of what is rendered.
    """

    def __init__(
        self, render: Callable[[], Awaitable[bytes]], *, host: str, port: int, content_type: str
    ) -> None:
        self._render = render
        self._host, self._port = host, port
        self._content_type = content_type
        app = web.Application(client_max_size=0)
        app.router.add_get("/metrics", self._answer)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=1.0,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )

    async def start(self) -> None:
        """Bind and serve. Raises OSError when the address cannot be bound."""
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()
        log.info("metrics_listening", host=self._host, port=self.port)

    async def stop(self) -> None:
        """Take no more connections, end those there are."""
        await self._runner.cleanup()

    @property
    def port(self) -> int:
        """The bound port; 0 when not started."""
        return int(self._runner.addresses[0][1]) if self._runner.addresses else 0

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            text = await self._render()
        except Exception as error:
            log.error("scrape_failed", error=type(error).__name__)
            return web.Response(status=503, text="the node cannot be read now; see its log\n")
        headers = {"content-type": self._content_type, "cache-control": "no-store"}
        return web.Response(body=text, headers=headers)
