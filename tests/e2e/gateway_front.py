"""A server that stands before a node, under its name, and does what an honest one would not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from node.demo.process import free_port
from node.ecash.payment_request import PaymentRequest


class Front:
    """Stands before a node, under its name.

    Attributes:
        let_through: paid answers wait for it.
        answered: set when the node has given one.
        refund: keeps the change, and answers whoever asks for it with this status.
        demand_sat: asks the first payer for so much.
        instead: answers paid requests, and never asks the node.
    """

    def __init__(self, *, refund: int = 0, demand_sat: int = 0) -> None:
        self.refund = refund
        self.demand_sat = demand_sat
        self.instead: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
        self.let_through = asyncio.Event()
        self.let_through.set()
        self.answered = asyncio.Event()
        self.mint = ""
        self.port = free_port()
        self.target = ""

    def announced(self) -> dict[str, dict[str, str]]:
        """What node a has to be told for others to come here."""
        url = f"http://127.0.0.1:{self.port}"
        environment = {
            "NODESTR_HTTP__PUBLIC_URLS": f'["{url}"]',
            "NODESTR_NOSTR__REQUESTS": "false",
        }
        return {"a": environment}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.refund and request.path == "/v1/balance/refund":
            return web.json_response({"error": {"message": "no"}}, status=self.refund)
        if self.instead is not None and request.path == "/v1/chat/completions":
            return await self.instead(request)
        if self.demand_sat and request.path == "/v1/chat/completions":
            asked = PaymentRequest(self.demand_sat, "sat", (self.mint,)).encode()
            self.demand_sat = 0
            return web.json_response({}, status=402, headers={"x-cashu": asked})
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                request.method,
                f"{self.target}{request.path}",
                headers={k: v for k, v in request.headers.items() if k.lower() != "host"},
                data=await request.read(),
            ) as answer,
        ):
            body = await answer.read()
            if request.path == "/v1/chat/completions":
                self.answered.set()
                await self.let_through.wait()
            headers = {"content-type": answer.headers["content-type"]}
            if not self.refund and "x-cashu" in answer.headers:
                headers["x-cashu"] = answer.headers["x-cashu"]
            return web.Response(status=answer.status, body=body, headers=headers)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        try:
            yield
        finally:
            await runner.cleanup()
