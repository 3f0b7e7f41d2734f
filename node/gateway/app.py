"""The composition root of the gateway: a node turned around.

    program ──HTTP──▶ Dispatcher ─▶ Pipeline ─▶ Purchase ──HTTP or Nostr──▶ a provider
                                                   └─▶ Till ─▶ Purse (the wallet) ⇄ mints
    relays ─▶ Directory ─▶ Shop (offers) ─▶ Catalog

Everything but Purchase, Till and Shop is the node's own: the HTTP server, the reading and bounding
of requests, the metering, the wallet, the directory and the client.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from uuid import uuid4

import aiohttp
import structlog

from discovery.directory import Directory
from discovery.netguard import NetGuard
from discovery.nostr.keys import Keys
from discovery.nostr.pool import RelayPool
from node import __version__
from node.background import cancel, refill, spawn
from node.building import DIRECTORY_FILE, open_directory
from node.core.catalog import Catalog
from node.core.exchange import ReplyEvent, Request
from node.gateway.carriage import Carriage, HttpCarriage, NostrCarriage
from node.gateway.desk import Desk, OpenDesk, note_file
from node.gateway.purchase import Purchase
from node.gateway.purse import Purse, open_purse
from node.gateway.settings import GatewaySettings
from node.gateway.shop import Bought, Market, Shop
from node.gateway.till import Till
from node.ops.health import Health
from node.ops.logging import configure
from node.service.dispatch import Dispatcher, Reply, Route
from node.service.endpoints.catalogue import model_document, models_document
from node.service.endpoints.providers import get_provider, list_providers
from node.service.inference.call import Prepare
from node.service.inference.chat import prepare_chat
from node.service.limits import Limiter, RateLimits
from node.service.pipeline import Pipeline
from node.service.routes import PAID
from node.settings_sections import DiscoverySettings
from node.settings_types import SettingsError, is_loopback
from node.transport.http.local import local_only
from node.transport.http.runner import HttpServer
from node.transport.http.server import create_app

log = structlog.get_logger()

WIND_UP_S = 10.0
"""How long the end waits for money that is on its way back."""
DRAIN_S = 20.0
REFILL_INTERVAL_S = 5.0
ANSWER_KEEP_S = 86_400
"""How long a program that asks the same again under its key gets the same answer."""
HOUSEKEEPING_INTERVAL_S = 3_600.0
_NO_LIMITS = RateLimits(per_minute=0, per_hour=0, per_day=0, max_concurrent=0)


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts of a running gateway. Make one with ``running``."""

    purse: Purse
    till: Till
    shop: Shop
    dispatcher: Dispatcher
    desk: OpenDesk


@asynccontextmanager
async def running(
    settings: GatewaySettings,
    *,
    until_sold: str | None = None,
    on_bought: Callable[[Bought], None] | None = None,
) -> AsyncIterator[Gateway]:
    """A gateway without its HTTP server.

    Args:
        until_sold: wait, at most ``find_timeout_s``, until somebody sells this model; empty:
            any; None: do not wait.
        on_bought: told of every request that was answered.

    Raises StorageError when another process has the wallet open.
    """
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        )
        purse = await stack.enter_async_context(open_purse(settings.database, session))
        note_file(settings.database).unlink(missing_ok=True)  # of a gateway that was killed
        guard = NetGuard(allow_private=settings.allow_private_addresses)
        stack.callback(guard.close)
        carriages = await open_carriages(settings, guard, stack)
        pool = await stack.enter_async_context(RelayPool(settings.relays, keys=Keys.generate()))
        file = settings.database.with_name(DIRECTORY_FILE)
        directory = await open_directory(DiscoverySettings(), file, guard, pool, stack)
        till = Till(
            purse,
            carriages,
            settings.lost_after_s,
            lambda s: shop.overcharged(s.place.pubkey, s.cost, s.expected),
        )
        catalog = Market()
        shop = Shop(settings, purse.journal, directory, carriages, catalog, on_bought=on_bought)
        stack.push_async_callback(till.wind_up, WIND_UP_S)
        tasks: list[asyncio.Task[None]] = []
        stack.push_async_callback(cancel, tasks)
        spawn(tasks, "directory", directory.run)
        spawn(tasks, "offers", shop.run)
        spawn(tasks, "spendings", lambda: till.run(settings.recover_interval_s))
        spawn(tasks, "housekeeping", lambda: _housekeep(purse))
        spawn(tasks, "refill", lambda: refill(purse.wallet, REFILL_INTERVAL_S))
        if until_sold is not None:
            await shop.until(
                lambda: shop.sells(until_sold) and shop.settled(), settings.find_timeout_s
            )
        desk = OpenDesk(Desk(purse, till))
        routes = [*_routes(shop, till, directory, catalog), desk.route()]
        yield Gateway(purse, till, shop, Dispatcher(routes, Limiter(_NO_LIMITS)), desk)


async def open_carriages(
    settings: GatewaySettings, guard: NetGuard, stack: AsyncExitStack
) -> dict[str, Carriage]:
    """Both ways to providers, whichever the settings prefer: change is asked for over either."""
    return {
        "http": await stack.enter_async_context(
            HttpCarriage(
                guard,
                first_byte_s=settings.first_byte_timeout_s,
                answer_s=settings.answer_timeout_s,
            )
        ),
        "nostr": await stack.enter_async_context(
            NostrCarriage(settings.relays, guard, answer_s=settings.answer_timeout_s)
        ),
    }


async def serve(settings: GatewaySettings, *, ready: Callable[[str], object]) -> None:
    """Run the local endpoint until SIGTERM or SIGINT.

    Args:
        ready: called with the base URL once it answers.

    Raises StorageError when another process has the wallet open, OSError when the address is
    taken, SettingsError for an open endpoint without a key.
    """
    configure(settings.log_level)
    key = settings.key.resolve() if settings.key is not None else ""
    if not key and not is_loopback(f"http://{settings.host}"):
        raise SettingsError("gateway.key: whoever reaches that address spends the wallet; set one")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(settings, until_sold="") as gateway:
        health = Health()
        health.add("providers", lambda: None if gateway.shop.sells() else "none found yet")
        app = create_app(
            gateway.dispatcher,
            health=health,
            max_body_bytes=settings.max_body_bytes,
            max_anonymous_body_bytes=settings.max_body_bytes,
        )
        http = HttpServer(
            local_only(
                app,
                hosts=(settings.host, *settings.allowed_hosts),
                origins=settings.allowed_origins,
                key=key,
            ),
            host=settings.host,
            port=settings.port,
            drain_timeout_s=DRAIN_S,
        )
        await http.start()
        try:
            url = f"http://{settings.host}:{http.port}"
            gateway.desk.leave_note(settings.database, url, key)
            ready(f"{url}/v1")
            log.info("gateway_ready", port=http.port, version=__version__)
            await stop.wait()
            await gateway.dispatcher.drain(DRAIN_S)
        finally:
            note_file(settings.database).unlink(missing_ok=True)
            await http.stop()


async def _housekeep(purse: Purse) -> None:
    while True:
        await purse.answers.prune(ANSWER_KEEP_S)
        await purse.journal.prune(ANSWER_KEEP_S)
        await asyncio.sleep(HOUSEKEEPING_INTERVAL_S)


def _routes(shop: Shop, till: Till, directory: Directory, catalog: Catalog) -> list[Route]:
    """What the node answers, of which a person's own programs have any use."""
    limiter = Limiter(_NO_LIMITS)

    def paid(prepare: Prepare) -> Callable[[Request], AsyncGenerator[ReplyEvent, None]]:
        def run(request: Request) -> AsyncGenerator[ReplyEvent, None]:
            # the caller's id means nothing to a provider, and might tell it something
            request = replace(request, request_id=uuid4().hex)
            purchase = Purchase(shop, till, request)

            async def payer(_: Request) -> Purchase:
                return purchase

            pipeline = Pipeline(
                catalog, payer, purchase, lambda _: None, limiter, till.purse.answers
            )
            return pipeline.run(request, purchase.prepared_by(prepare))

        return run

    async def models(_request: Request, _params: Mapping[str, str]) -> Reply:
        return Reply(models_document(catalog))

    async def model(_request: Request, params: Mapping[str, str]) -> Reply:
        return Reply(model_document(catalog.get(params["id"])))

    async def providers(request: Request, _params: Mapping[str, str]) -> Reply:
        return Reply(list_providers(directory.snapshot(), request.query))

    async def provider(_request: Request, params: Mapping[str, str]) -> Reply:
        return Reply(get_provider(directory.snapshot(), params["name"]))

    return [
        Route("POST", "/v1/chat/completions", "Chat", streaming=paid(prepare_chat), bare=True),
        *(
            Route("POST", path, summary, streaming=paid(prepare), bare=bare)
            for path, summary, prepare, bare in PAID
        ),
        Route("GET", "/v1/models", "Models that can be bought, with prices", models),
        Route("GET", "/v1/models/{id:path}", "One model", model),
        Route("GET", "/v1/providers", "Who sells", providers),
        Route("GET", "/v1/providers/{name}", "One of them", provider),
    ]
