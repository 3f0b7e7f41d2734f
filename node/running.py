"""A running node and how it ends."""

from __future__ import annotations

import asyncio

import structlog

from discovery.announcer import Announcer
from discovery.nostr.keys import Keys
from node.ecash.wallet import Wallet
from node.ledger.database import Database
from node.ops.health import Health
from node.reload import Reloader
from node.service.dispatch import Dispatcher
from node.service.payers import wind_up
from node.settings import Settings
from node.transport.dm.server import DmServer
from node.transport.http.admin import AdminDoor
from node.transport.http.runner import HttpServer
from node.transport.http.scrape import ScrapeServer

log = structlog.get_logger()

RETRACT_TIMEOUT_S = 5.0
"""How long the relays may take to hear that the announcement is withdrawn."""


class Node:
    """The parts of a running node. ``node.app.running`` makes one."""

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        database: Database,
        dispatcher: Dispatcher,
        health: Health,
        http: HttpServer,
        wallet: Wallet,
        reloader: Reloader,
        admin: AdminDoor,
    ) -> None:
        self.settings = settings
        self.keys = keys
        self.database = database
        self.dispatcher = dispatcher
        self.health = health
        self.http = http
        self.wallet = wallet
        self.reloader = reloader
        self.admin = admin
        self.succeeded = False
        """The listening socket outlives this process."""
        self.metrics: ScrapeServer | None = None
        self.dm: DmServer | None = None
        self.announcer: Announcer | None = None
        self.background: list[asyncio.Task[None]] = []

    async def drain(self) -> None:
        """Refuse what is new and let finish what runs, within the drain timeout.

        If somebody else holds the listening socket, nobody is refused who is connected, and who
        comes waits for the next process.
        """
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self.settings.node.drain_timeout_s
        log.info("draining", timeout_s=self.settings.node.drain_timeout_s)
        self.admin.end_streams()
        if self.succeeded:
            await self.http.hand_over(self.settings.node.drain_timeout_s)
        self.dispatcher.draining = True
        for task in self.background:
            task.cancel()
        await asyncio.gather(*self.background, return_exceptions=True)
        if self.announcer is not None and self.settings.node.retract_on_stop:
            try:
                async with asyncio.timeout(RETRACT_TIMEOUT_S):
                    await self.announcer.retract()
            except TimeoutError:
                log.warning("retract_timed_out")
        finished = await self.dispatcher.drain(max(0.0, ends_at - loop.time()))
        if self.dm is not None:
            await self.dm.stop(max(1.0, ends_at - loop.time()))
        await self.admin.close(max(1.0, ends_at - loop.time()))
        await wind_up(max(1.0, ends_at - loop.time()))
        log.info("drained", finished=finished)
