"""A proxy in front of a real mint that loses, delays and spoils answers on demand."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from types import TracebackType
from typing import Any, Literal, TypeAlias

import aiohttp
from aiohttp import web

Fault: TypeAlias = Literal[
    "lose_answer",  # the mint did it, the answer never arrives
    "lose_request",  # the mint never saw it, the connection just drops
    "error_500_after",  # the mint did it, the answer is a 500
    "error_500_before",  # the mint never saw it, the answer is a 500
    "error_429",
    "hang",  # the mint did it, no answer for ever
    "garbage",  # the mint did it, the answer is not JSON
    "wrong_signatures",  # the mint did it, the answer's signatures are of another's making
    "duplicate",  # the mint sees it twice, the second answer is passed on
    "late",  # the connection drops, and the mint sees it only when the test says ``land``
    "refuse",  # the mint never saw it, the answer is a refusal that means nothing
]


_GENERATOR = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"


class MintProxy:
    """``async with MintProxy(mint.url) as proxy``: ``proxy.url`` is the mint, with faults.

    ``faults`` is consumed one per ``POST /v1/swap``, ``mint_faults`` and ``melt_faults`` one per
    ``POST /v1/mint/bolt11`` and ``/v1/melt/bolt11``; None in it passes the call through.
    ``swaps`` counts the swaps that reached the proxy, ``melts`` the melts.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self.faults: deque[Fault | None] = deque()
        self.mint_faults: deque[Fault | None] = deque()
        self.melt_faults: deque[Fault | None] = deque()
        self._faults = {
            "/v1/swap": self.faults,
            "/v1/mint/bolt11": self.mint_faults,
            "/v1/melt/bolt11": self.melt_faults,
        }
        self.swaps = 0
        self.requests = 0
        """Of any kind that reached the proxy."""
        self.melts = 0
        self.vanish_after_swap = False
        """Refuse connections once the next swap is answered, until ``reappear``."""
        self.pending = False
        """Say of every coin that is unspent that it is pending."""
        self.hide_change = False
        """Pay as ever, but show no change, neither with the quote nor to who asks (NUT-09)."""
        self.forget_quotes = False
        """Know no melt quote."""
        self._late: list[tuple[str, bytes]] = []
        self._transports: set[asyncio.Transport] = set()
        self.url = ""

    async def __aenter__(self) -> MintProxy:
        # The mint may close an idle connection just when it is to be used again.
        connector = aiohttp.TCPConnector(force_close=True)
        self._session = aiohttp.ClientSession(auto_decompress=False, connector=connector)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await self._site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"
        return self

    async def vanish(self) -> None:
        """Drop all connections and take no more, until ``reappear``."""
        await self._site.stop()
        assert self._runner.server is not None
        await self._runner.server.shutdown(0.05)

    async def reappear(self) -> None:
        """Take connections again."""
        self._site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await self._site.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def land(self) -> list[int]:
        """Let the mint see what was late; the statuses it answers."""
        late, self._late = self._late, []
        return [(await self._send("POST", path, body))[0] for path, body in late]

    async def _forward(self, request: web.Request, body: bytes) -> tuple[int, bytes]:
        return await self._send(request.method, request.path_qs, body)

    async def _send(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        async with self._session.request(
            method,
            self._target + path,
            data=body or None,
            headers={"content-type": "application/json", "accept-encoding": "identity"},
        ) as answer:
            return answer.status, await answer.read()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.transport is not None:
            self._transports.add(request.transport)
        faults = self._faults.get(request.path)
        fault = faults.popleft() if faults else None
        self.swaps += request.path == "/v1/swap"
        self.requests += 1
        self.melts += request.path == "/v1/melt/bolt11"
        if fault == "late":
            self._late.append((request.path, body))
            return self._drop(request)
        if fault == "refuse":
            return web.json_response({"detail": "database is locked", "code": 0}, status=400)
        if fault in ("lose_request", "error_500_before", "error_429"):
            if fault == "lose_request":
                return self._drop(request)
            return web.json_response({}, status=500 if fault == "error_500_before" else 429)
        if self.forget_quotes and request.path.startswith("/v1/melt/quote/bolt11/"):
            return web.json_response({"detail": "quote not found", "code": 0}, status=400)
        status, answer = await self._forward(request, body)
        if fault == "duplicate":
            status, answer = await self._forward(request, body)
        if fault == "lose_answer":
            return self._drop(request)
        if fault == "error_500_after":
            return web.json_response({}, status=500)
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "garbage":
            answer = b"<html>gateway</html>"
        if self.pending and request.path == "/v1/checkstate":
            answer = answer.replace(b'"UNSPENT"', b'"PENDING"')
        if self.hide_change and request.path.startswith(("/v1/melt", "/v1/restore")):
            answer = _without_change(answer)
        if fault == "wrong_signatures":
            answer = _spoil(answer)
        response = web.Response(status=status, body=answer, content_type="application/json")
        if self.vanish_after_swap and request.path == "/v1/swap":
            self.vanish_after_swap = False
            response.force_close()
            await self._site.stop()
        return response

    @staticmethod
    def _drop(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()


def _without_change(answer: bytes) -> bytes:
    document = json.loads(answer)
    hidden: dict[str, Any] = {"change": None, "outputs": [], "signatures": [], "promises": []}
    return json.dumps(document | {n: v for n, v in hidden.items() if n in document}).encode()


def _spoil(answer: bytes) -> bytes:
    document = json.loads(answer)
    for signature in [*document.get("signatures", []), *(document.get("change") or [])]:
        signature["C_"] = _GENERATOR
    return json.dumps(document).encode()
