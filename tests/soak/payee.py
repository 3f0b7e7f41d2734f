"""The operator's Lightning address, whose invoices are of no mint's making."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import bolt11
from aiohttp import web


def invoice(amount_msat: int) -> str:
    """A bolt11 invoice signed by nobody in particular."""
    tags = bolt11.Tags()
    tags.add(bolt11.TagChar.payment_hash, secrets.token_hex(32))
    tags.add(bolt11.TagChar.payment_secret, secrets.token_hex(32))
    tags.add(bolt11.TagChar.description, "earnings")
    tags.add(bolt11.TagChar.expire_time, 3600)
    asked = bolt11.Bolt11(
        currency="bc",
        date=int(time.time()),
        tags=tags,
        amount_msat=bolt11.MilliSatoshi(amount_msat),
    )
    return bolt11.encode(asked, secrets.token_hex(32))


@asynccontextmanager
async def payee() -> AsyncIterator[str]:
    """Serves LNURL-pay; gives the Lightning address."""
    base = ""

    async def offer(_: web.Request) -> web.Response:
        return web.json_response(
            {
                "tag": "payRequest",
                "callback": f"{base}/pay",
                "minSendable": 1000,
                "maxSendable": 10**12,
                "metadata": "[]",
            }
        )

    async def pay(request: web.Request) -> web.Response:
        return web.json_response({"pr": invoice(int(request.query["amount"])), "routes": []})

    app = web.Application()
    app.router.add_get("/.well-known/lnurlp/me", offer)
    app.router.add_get("/pay", pay)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield base.replace("http://", "me@")
    finally:
        await runner.cleanup()
