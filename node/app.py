"""The composition root: the only place that knows every part of a node.

start    database ─▶ release what a dead process held ─▶ wallet ─▶ after a restore: ask the mints
         ─▶ add up the books ─▶ HTTP ─▶ relays ─▶ ready
run      carriages, announcer, directory, recovery, watchdog, housekeeping, until a signal
stop     not ready ─▶ refuse new, finish what runs ─▶ crossings to mints ─▶ relays ─▶ database
"""

from __future__ import annotations

import asyncio
import gc
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import aiohttp
import structlog

from discovery.announcer import Announcer
from discovery.netguard import NetGuard
from discovery.snapshot import DirectorySnapshot
from node import __version__
from node.admining import endpoints, open_admin
from node.background import (
    alive,
    cancel,
    housekeep,
    reconcile,
    recover,
    refill,
    refresh,
    spawn,
    unchecked,
)
from node.building import (
    DIRECTORY_FILE,
    announcement,
    dm_limits,
    invoice_limits,
    no_mint,
    node_info,
    open_directory,
    payout_terms,
    rate_limits,
    refund_terms,
    relay_pool,
    trouble,
)
from node.core.catalog import Catalog
from node.core.exchange import Request
from node.core.money import Msat
from node.ecash.lnurl import LnurlPayee
from node.ecash.token import normalize_mint_url
from node.ledger.answers import SqliteAnswers
from node.ledger.keys import SqliteKeys
from node.ledger.messages import SqliteMessageLog
from node.ledger.transactions import SqliteStatements
from node.living import Identity, live_parts, show_relays
from node.market import Market
from node.ops import sdnotify
from node.ops.health import Health
from node.ops.logging import configure
from node.reload import Reloader, reload_on
from node.running import Node
from node.scraping import open_metrics
from node.service.accounts import Accounts
from node.service.buffers import Room
from node.service.dispatch import Dispatcher
from node.service.endpoints.lightning import LightningEndpoints
from node.service.endpoints.wallet import WalletEndpoints
from node.service.invoices import Invoices
from node.service.keys import ChildKeys
from node.service.limits import Limiter
from node.service.payers import Payer, choose_payer
from node.service.payout import Payouts
from node.service.pipeline import Pipeline
from node.service.refunds import Refunds
from node.service.routes import routes
from node.settings import Settings, settings_of
from node.settings_layers import Layers
from node.transport.dm.server import DmServer
from node.transport.http.runner import HttpServer
from node.transport.http.server import create_app
from node.transport.http.site import Site
from node.treasury import open_treasury

log = structlog.get_logger()

RELAY_READY_TIMEOUT_S = 3.0
"""How long the start waits for the relays; a node is ready without them too."""
HTTP_CLOSE_S = 2.0
"""How long connections may take to close once their requests are answered."""
MARKET_READY_TIMEOUT_S = 3.0
"""How long the start waits for lists of models and the exchange rate, if it needs them."""


async def serve(
    settings: Settings,
    sources: Callable[[], Layers],
    *,
    ready: Callable[[], object] | None = None,
) -> None:
    """Run one node until SIGTERM or SIGINT, then drain; SIGHUP reads the settings again.

    Args:
        sources: gives what the settings are made of, anew.
        ready: called once everything is up.

    Raises StorageError when the database cannot be opened, OSError when the address is taken.
    """
    configure(settings.log.level, settings.log.format)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    hang_up = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, hang_up.set)
    async with running(settings, sources, sdnotify.listen_socket()) as node:
        _spare_the_collector()
        if ready is not None:
            ready()
        log.info("ready", npub=node.keys.npub, http_port=node.http.port, version=__version__)
        watchdog = asyncio.create_task(sdnotify.watchdog())
        spawn(node.background, "reload", lambda: reload_on(hang_up, node.reloader))
        try:
            await stop.wait()
        finally:
            watchdog.cancel()
        sdnotify.stopping()
        await node.drain()


def _spare_the_collector() -> None:
    """What a start has built lives as long as the process: the collector need not look at it.

    Without this a full collection goes through some 400,000 objects, 0.1 s in which nobody is
    served. The youngest are looked at after 10,000 allocations instead of 700, as 64 requests
    under way hold more than that, and none of them leaves a cycle behind.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


@asynccontextmanager
async def running(
    settings: Settings, sources: Callable[[], Layers], listener: socket.socket | None = None
) -> AsyncIterator[Node]:
    """A node that serves while the context lasts.

    Args:
        sources: gives what the settings are made of, anew.
        listener: a listening socket, in place of http.host and http.port.
    """
    keys = settings.keys()
    catalog = Catalog()
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
            )
        )
        treasury = await open_treasury(settings, keys, session, stack)
        database, ledger, store = treasury.database, treasury.ledger, treasury.store
        wallet, lightning, watchdog = treasury.wallet, treasury.lightning, treasury.watchdog
        circuits = wallet.circuits()
        messages = SqliteMessageLog(database)
        answers = SqliteAnswers(
            database,
            max_bytes=settings.ledger.max_stored_answers_bytes,
            max_account_bytes=settings.ledger.max_stored_answers_bytes_per_account,
        )
        key_secret = bytes.fromhex(await store.secret("key_secret", lambda: secrets.token_hex(32)))
        guard = NetGuard(allow_private=settings.discovery.allow_private_addresses)
        stack.callback(guard.close)
        payee = await stack.enter_async_context(
            LnurlPayee(guard, allow_http=settings.discovery.allow_private_addresses)
        )
        key_store = SqliteKeys(database, ledger.forget)
        refunds = None
        if settings.refund.enabled:
            terms = refund_terms(settings)
            refunds = Refunds(lightning, payee, key_store, terms, watchdog.problem)
        limiter = Limiter(rate_limits(settings))
        accounts = Accounts(ledger, wallet, store, key_secret, refunds, limiter)
        invoices = Invoices(
            lightning, treasury.invoices, ledger, key_secret, invoice_limits(settings)
        )
        market = Market(settings, session, catalog)

        async def payer_of(request: Request) -> Payer:
            return await choose_payer(request, accounts, ledger, wallet)

        pool, directory = None, None
        if settings.nostr.relays:
            pool = await stack.enter_async_context(relay_pool(settings, keys, guard))
            if settings.discovery.enabled:
                directory = await open_directory(
                    settings.discovery,
                    settings.node.data_dir / DIRECTORY_FILE,
                    guard,
                    pool,
                    stack,
                    own_pubkey=keys.pubkey,
                )
        snapshot = directory.snapshot if directory else DirectorySnapshot
        identity = Identity(node_info(settings, keys))
        dispatcher = Dispatcher(
            routes(
                Pipeline(
                    catalog,
                    payer_of,
                    market.router,
                    wallet.payment_request,
                    limiter,
                    answers,
                    max_stored_bytes=settings.ledger.max_stored_answer_bytes,
                    patience_s=settings.http.stream_keepalive_s,
                    room=Room(settings.limits.max_buffered_answers_bytes),
                ),
                WalletEndpoints(
                    accounts,
                    ChildKeys(
                        key_store,
                        key_secret,
                        Msat(settings.ledger.child_key_cost_msat),
                    ),
                    SqliteStatements(database),
                    frozenset(circuits),
                    normalize_mint_url,
                    refunder=refunds,
                ),
                catalog,
                lambda: identity.info,
                snapshot,
                LightningEndpoints(invoices, accounts),
                directory,
            ),
            limiter,
        )
        health = Health()
        health.add("database", lambda: alive(database))
        health.add("solvency", watchdog.problem)
        health.add("restore", lambda: unchecked(treasury.reconciler), detail=True)
        health.add(
            "draining", lambda: "draining" if dispatcher.draining or http.handing_over else None
        )
        market.add_checks(health)
        health.add("mints", lambda: no_mint(circuits.values()))
        for url, circuit in circuits.items():
            health.add(f"mint {url}", partial(trouble, circuit), detail=True)
        if pool is not None:
            show_relays(pool, health)
        admin = open_admin(settings, database, stack, identity)
        http = HttpServer(
            create_app(
                dispatcher,
                max_body_bytes=settings.http.max_body_bytes,
                max_buffered_bytes=settings.http.max_buffered_bytes,
                body_timeout_s=settings.http.body_timeout_s,
                trusted_proxies=settings.http.trusted_proxies,
                keepalive_s=settings.http.stream_keepalive_s,
                health=health,
                site=Site(pages=settings.http.pages, admin=settings.admin.enabled),
                admin=admin,
            ),
            host=settings.http.host,
            port=settings.http.port,
            sock=listener,
            keepalive_timeout_s=settings.http.keepalive_timeout_s,
            drain_timeout_s=HTTP_CLOSE_S,
        )
        payouts = Payouts(lightning, payee, payout_terms(settings), watchdog.problem)
        reloader = Reloader(
            settings,
            lambda: settings_of(sources()),
            live_parts(
                limiter=limiter,
                market=market,
                identity=identity,
                describe=lambda fresh: node_info(fresh, keys),
                payouts=payouts,
                refunds=refunds,
                pool=pool,
                health=health,
            ),
        )
        node = Node(settings, keys, database, dispatcher, health, http, wallet, reloader, admin)
        node.succeeded = listener is not None
        stack.push_async_callback(cancel, node.background)
        market.start(node.background)
        spawn(node.background, "recovery", lambda: recover(wallet, store))
        spawn(node.background, "reconciliation", lambda: reconcile(treasury.reconciler))
        refill_interval_s = settings.ledger.refill_interval_s
        spawn(node.background, "refill", lambda: refill(wallet, refill_interval_s))
        spawn(node.background, "watchdog", watchdog.run)
        spawn(node.background, "invoices", invoices.run)
        if refunds is not None:
            spawn(node.background, "refunds", refunds.run)
        spawn(node.background, "payouts", payouts.run)
        spawn(node.background, "housekeeping", lambda: housekeep(settings, messages, answers))
        for url in circuits:
            spawn(node.background, f"keysets {url}", lambda url=url: refresh(wallet, url))  # type: ignore[misc]
        if pool is not None:
            if settings.nostr.requests:
                node.dm = DmServer(
                    pool,
                    keys,
                    dispatcher,
                    messages,
                    load_healthy=messages.load_healthy,
                    store_healthy=messages.store_healthy,
                    limits=dm_limits(settings),
                )
                await node.dm.start()
                stack.push_async_callback(node.dm.stop, 0.1)
            if directory is not None:
                spawn(node.background, "directory", directory.run)
            if settings.node.announce:
                relays = pool
                interval_s = settings.node.announce_interval_s
                node.announcer = Announcer(
                    pool,
                    keys,
                    lambda: announcement(settings, identity.info, catalog, relays),
                    heartbeat_s=(0.5 * interval_s, 1.5 * interval_s),
                )
                market.on_change(node.announcer.changed)
                identity.changed = node.announcer.changed
                spawn(node.background, "announcer", node.announcer.run)
        if settings.metrics.enabled:
            node.metrics = await open_metrics(
                settings,
                stack,
                node.background,
                dispatcher=dispatcher,
                health=health,
                watchdog=watchdog,
                mints=circuits,
                upstreams=market.router.states,
                pool=pool,
                providers=lambda: len(snapshot().providers),
                models=lambda: len(catalog),
            )
        admin.serve(
            endpoints(
                reloader,
                sources,
                stack,
                npub=keys.npub,
                dispatcher=dispatcher,
                health=health,
                watchdog=watchdog,
                catalog=catalog,
                market=market,
                providers=lambda: len(snapshot().providers),
                wallet=wallet,
                payouts=payouts,
                pool=pool,
                announcer=node.announcer,
                learnt=directory.learnt if directory else dict,
            )
        )
        await market.complete(MARKET_READY_TIMEOUT_S)
        await http.start()
        stack.push_async_callback(http.stop)
        if node.dm is not None:
            # An ephemeral request sent before a relay knows our subscription is lost.
            await node.dm.ready(RELAY_READY_TIMEOUT_S)
        yield node
