"""A market to look at: nodes announced on a relay, some of which answer for themselves."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from aiohttp import web

from discovery.announcer import AnnouncementSource, Announcer
from discovery.nostr.keys import Keys
from discovery.nostr.pool import RelayPool
from discovery.offers import ModelOffer

Prices = Mapping[str, tuple[int, int]]
"""By model: msat for a million tokens in and out."""


@dataclass
class Seller:
    """One node. ``answers``: it has a URL, and proves its key there."""

    name: str
    prices: Prices
    about: str = ""
    mints: tuple[str, ...] = ("https://mint.example.com",)
    answers: bool = True
    urls: tuple[str, ...] = ()
    keys: Keys = field(default_factory=Keys.generate)

    def source(self, relay: str) -> AnnouncementSource:
        """What it announces."""
        return AnnouncementSource(
            name=self.name,
            about=self.about,
            urls=self.urls,
            mints=self.mints,
            version="1.0",
            relays=(relay,),
            offers=tuple(
                ModelOffer(model, "", input_per_mtok, output_per_mtok)
                for model, (input_per_mtok, output_per_mtok) in self.prices.items()
            ),
        )


class Sellers:
    """Keeps them on the air; use with ``async with``.

    Each answers on a loopback address of its own, since a host is asked only so often.
    """

    def __init__(self, relay: str) -> None:
        self._relay = relay
        self._stack = AsyncExitStack()
        self._pool = RelayPool([relay])
        self._hosts = 0

    async def __aenter__(self) -> Sellers:
        await self._stack.enter_async_context(self._pool)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def announce(self, seller: Seller) -> Seller:
        """Put it on the air, or tell what has changed about it."""
        if seller.answers and not seller.urls:
            seller.urls = (await self._serve(seller),)
        announcer = Announcer(self._pool, seller.keys, lambda: seller.source(self._relay))
        outcomes = await announcer.publish_once()
        assert all(outcome.ok for outcome in outcomes.values()), outcomes
        return seller

    async def retract(self, seller: Seller) -> None:
        """Take back what was announced last."""
        announcer = Announcer(self._pool, seller.keys, lambda: seller.source(self._relay))
        await announcer.publish_once()
        await announcer.retract()

    async def _serve(self, seller: Seller) -> str:
        async def info(_request: web.Request) -> web.Response:
            return web.json_response({"name": seller.name, "npub": seller.keys.npub})

        app = web.Application()
        app.router.add_get("/v1/info", info)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        self._hosts += 1
        host = f"127.0.1.{self._hosts}"
        site = web.TCPSite(runner, host, 0)
        await site.start()
        return f"http://{host}:{runner.addresses[0][1]}"
