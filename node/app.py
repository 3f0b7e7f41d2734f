"""The composition root: the only place that knows every part of a node.

start    database ─▶ release what a dead process held ─▶ wallet ─▶ after a restore: ask the mints
         ─▶ add up the books ─▶ HTTP ─▶ relays ─▶ ready
run      carriages, announcer, directory, recovery, watchdog, housekeeping, until a signal
stop     not ready ─▶ refuse new, finish what runs ─▶ crossings to mints ─▶ relays ─▶ database
"""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import aiohttp
import structlog

from discovery.announcer import AnnouncementSource, Announcer
from discovery.directory import Directory
from discovery.netguard import NetGuard
from discovery.nostr.keys import Keys
from discovery.nostr.pool import RelayPool
from discovery.offers import ModelOffer
from discovery.probe import Prober
from discovery.registry import Registry
from discovery.snapshot import DirectorySnapshot
from node import __version__
from node.core.catalog import Catalog, Model
from node.core.exchange import Request
from node.core.identity import NodeInfo
from node.core.money import Msat, to_msat
from node.ecash.circuit import Circuit, GuardedMint
from node.ecash.crypto import mnemonic_to_seed, new_mnemonic
from node.ecash.gate import PaymentTerms
from node.ecash.keysets import AcceptedMint
from node.ecash.lightning import Lightning
from node.ecash.lnurl import LnurlPayee
from node.ecash.locks import lock_key
from node.ecash.reconcile import Reconciler
from node.ecash.token import normalize_mint_url, serialize_token
from node.ecash.wallet import Wallet
from node.errors import MintUnreachable, NodeError
from node.ledger.accounts import SqliteLedger
from node.ledger.database import Database
from node.ledger.keys import SqliteKeys
from node.ledger.lightning import SqliteLightningStore
from node.ledger.messages import SqliteMessageLog
from node.ledger.reconciling import SqliteReconcileStore
from node.ledger.transactions import SqliteStatements
from node.ledger.wallet import SqliteWalletStore
from node.ops import sdnotify
from node.ops.health import Health
from node.ops.logging import configure
from node.ops.watchdog import Watchdog
from node.service.accounts import Accounts
from node.service.dispatch import Dispatcher
from node.service.endpoints.lightning import LightningEndpoints
from node.service.endpoints.wallet import WalletEndpoints
from node.service.invoices import InvoiceLimits, Invoices
from node.service.keys import ChildKeys
from node.service.payers import Payer, choose_payer, wind_up
from node.service.payout import Payouts, PayoutTerms
from node.service.pipeline import Pipeline
from node.service.routes import routes
from node.settings import Settings
from node.settings_sections import MintSettings
from node.transport.dm.assembly import AssemblyLimits
from node.transport.dm.limits import DmLimits
from node.transport.dm.server import DmServer
from node.transport.http.runner import HttpServer
from node.transport.http.server import create_app
from node.upstream.client import Deadlines, OpenAIUpstream, UpstreamRouter

log = structlog.get_logger()

RECOVERY_INTERVAL_S = 10.0
"""How often unfinished operations are driven again."""
REFRESH_INTERVAL_S = 3600.0
"""How often the mints are asked for their keysets; after a failure, the recovery interval."""
RELAY_READY_TIMEOUT_S = 3.0
"""How long the start waits for the relays; a node is ready without them too."""
HTTP_CLOSE_S = 2.0
"""How long connections may take to close once their requests are answered."""
RETRACT_TIMEOUT_S = 5.0
"""How long the relays may take to hear that the announcement is withdrawn."""
RECONCILE_TIMEOUT_S = 60.0
"""How long the first start after a restore waits for the mints; it goes on without the others."""
IDLE_REQUEST_S = 600
"""After this, a token that was redeemed for a request which never ran becomes change."""


async def serve(settings: Settings, *, ready: Callable[[], object] | None = None) -> None:
    """Run one node until SIGTERM or SIGINT, then drain.

    Args:
        ready: called once everything is up.

    Raises StorageError when the database cannot be opened, OSError when the address is taken.
    """
    configure(settings.log.level, settings.log.format)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(settings) as node:
        if ready is not None:
            ready()
        log.info("ready", npub=node.keys.npub, http_port=node.http.port, version=__version__)
        watchdog = asyncio.create_task(sdnotify.watchdog())
        try:
            await stop.wait()
        finally:
            watchdog.cancel()
        sdnotify.stopping()
        await node.drain()


class Node:
    """The parts of a running node. Make one with ``running``."""

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        database: Database,
        dispatcher: Dispatcher,
        health: Health,
        http: HttpServer,
        wallet: Wallet,
    ) -> None:
        self.settings = settings
        self.keys = keys
        self.database = database
        self.dispatcher = dispatcher
        self.health = health
        self.http = http
        self.wallet = wallet
        self.dm: DmServer | None = None
        self.announcer: Announcer | None = None
        self.background: list[asyncio.Task[None]] = []

    async def drain(self) -> None:
        """Refuse what is new and let finish what runs, within the drain timeout."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self.settings.node.drain_timeout_s
        log.info("draining", timeout_s=self.settings.node.drain_timeout_s)
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
        await wind_up(max(1.0, ends_at - loop.time()))
        log.info("drained", finished=finished)


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Node]:
    """A node that serves while the context lasts."""
    keys = settings.keys()
    catalog = settings.catalog()
    async with AsyncExitStack() as stack:
        database = await Database.open(settings.node.database)
        stack.push_async_callback(database.close)
        ledger = SqliteLedger(database)
        store = SqliteWalletStore(database, serialize_token)
        messages = SqliteMessageLog(database)
        released = await ledger.release_all()
        if released:
            log.warning("holds_released", count=released)

        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
            )
        )
        mints = {mint.url: accepted_mint(mint, session) for mint in settings.mints}
        seed = mnemonic_to_seed(await store.secret("mnemonic", new_mnemonic))
        wallet = Wallet(
            store,
            mints,
            seed,
            terms=PaymentTerms(keys, settings.payments.lock, settings.payments.request_format),
        )
        invoice_store = SqliteLightningStore(database, store)
        lightning = Lightning(wallet, store, invoice_store, mints, seed)
        await wallet.start()
        stack.push_async_callback(wallet.close, 5.0)
        reconciler = wallet.reconciler(SqliteReconcileStore(database))
        await _check_restored(wallet, reconciler)
        watchdog = Watchdog(
            database, settings.node.database, interval_s=settings.ledger.watchdog_interval_s
        )
        await watchdog.check()

        key_secret = bytes.fromhex(await store.secret("key_secret", lambda: secrets.token_hex(32)))
        accounts = Accounts(ledger, wallet, store, key_secret)
        invoices = Invoices(lightning, invoice_store, ledger, key_secret, _invoice_limits(settings))
        upstream = UpstreamRouter(
            {
                item.name: OpenAIUpstream(
                    item.name,
                    session,
                    item.base_url,
                    api_key=item.api_key.resolve() if item.api_key else None,
                    deadlines=Deadlines(
                        connect_s=item.connect_timeout_s,
                        first_byte_s=item.first_byte_timeout_s,
                        chunk_s=item.chunk_timeout_s,
                    ),
                )
                for item in settings.upstreams
            }
        )

        async def payer_of(request: Request) -> Payer:
            return await choose_payer(request, accounts, ledger, wallet)

        pool, directory = None, None
        guard = NetGuard(allow_private=settings.discovery.allow_private_addresses)
        stack.callback(guard.close)
        if settings.nostr.relays:
            pool = await stack.enter_async_context(_pool(settings, keys, guard))
            if settings.discovery.enabled:
                directory = await _directory(settings, keys, guard, pool, stack)
        snapshot = directory.snapshot if directory else DirectorySnapshot
        info = _info(settings, keys)
        dispatcher = Dispatcher(
            routes(
                Pipeline(catalog, payer_of, upstream, wallet.payment_request),
                WalletEndpoints(
                    accounts,
                    ChildKeys(
                        SqliteKeys(database, ledger.forget),
                        key_secret,
                        Msat(settings.ledger.child_key_cost_msat),
                    ),
                    SqliteStatements(database),
                    frozenset(mints),
                    normalize_mint_url,
                ),
                catalog,
                lambda: info,
                snapshot,
                LightningEndpoints(invoices, accounts),
            )
        )
        health = Health()
        health.add("database", lambda: _alive(database))
        health.add("solvency", watchdog.problem)
        health.add("restore", lambda: _unchecked(reconciler), detail=True)
        health.add("draining", lambda: "draining" if dispatcher.draining else None)
        circuits = wallet.circuits()
        health.add("mints", lambda: _no_mint(circuits.values()))
        for url, circuit in circuits.items():
            health.add(f"mint {url}", partial(_trouble, circuit), detail=True)
        http = HttpServer(
            create_app(
                dispatcher,
                max_body_bytes=settings.http.max_body_bytes,
                max_buffered_bytes=settings.http.max_buffered_bytes,
                body_timeout_s=settings.http.body_timeout_s,
                health=health,
            ),
            host=settings.http.host,
            port=settings.http.port,
            keepalive_timeout_s=settings.http.keepalive_timeout_s,
            drain_timeout_s=HTTP_CLOSE_S,
        )
        node = Node(settings, keys, database, dispatcher, health, http, wallet)
        stack.push_async_callback(_cancel, node.background)
        _spawn(node, "recovery", lambda: _recover(wallet, store))
        _spawn(node, "reconciliation", lambda: _reconcile(reconciler))
        _spawn(node, "watchdog", watchdog.run)
        _spawn(node, "invoices", invoices.run)
        if settings.payout.address:
            payee = await stack.enter_async_context(
                LnurlPayee(guard, allow_http=settings.discovery.allow_private_addresses)
            )
            payouts = Payouts(lightning, payee, payout_terms(settings), watchdog.problem)
            _spawn(node, "payouts", payouts.run)
        _spawn(node, "housekeeping", lambda: _housekeep(settings, messages))
        for url in mints:
            _spawn(node, f"keysets {url}", lambda url=url: _refresh(wallet, url))  # type: ignore[misc]
        if pool is not None:
            if settings.nostr.requests:
                node.dm = DmServer(
                    pool,
                    keys,
                    dispatcher,
                    messages,
                    load_healthy=messages.load_healthy,
                    store_healthy=messages.store_healthy,
                    limits=_dm_limits(settings),
                )
                await node.dm.start()
                stack.push_async_callback(node.dm.stop, 0.1)
            if directory is not None:
                _spawn(node, "directory", directory.run)
            if settings.node.announce:
                source = _announcement(settings, info, catalog, pool)
                interval_s = settings.node.announce_interval_s
                node.announcer = Announcer(
                    pool,
                    keys,
                    lambda: source,
                    heartbeat_s=(0.5 * interval_s, 1.5 * interval_s),
                )
                _spawn(node, "announcer", node.announcer.run)
        await http.start()
        stack.push_async_callback(http.stop)
        if node.dm is not None:
            # An ephemeral request sent before a relay knows our subscription is lost.
            await node.dm.ready(RELAY_READY_TIMEOUT_S)
        yield node


# -- parts ---------------------------------------------------------------------------------


def accepted_mint(mint: MintSettings, session: aiohttp.ClientSession) -> AcceptedMint:
    client = GuardedMint(session, mint.url, timeout_s=mint.timeout_s)
    return AcceptedMint(
        client,
        mint.units,
        circuit=client.circuit,
        max_balance=to_msat(mint.max_balance_sat, "sat") if mint.max_balance_sat else None,
        require_dleq=mint.require_dleq,
    )


def _invoice_limits(settings: Settings) -> InvoiceLimits:
    wanted = settings.lightning
    return InvoiceLimits(
        min_sat=wanted.min_sat,
        max_sat=wanted.max_sat,
        max_open=wanted.max_open,
        max_open_per_peer=wanted.max_open_per_peer,
        expiry_s=int(wanted.expiry_s),
        grace_s=int(wanted.grace_s),
    )


def payout_terms(settings: Settings) -> PayoutTerms:
    """When and how much is paid out."""
    wanted = settings.payout
    return PayoutTerms(
        address=wanted.address or None,
        floor=to_msat(wanted.floor_sat, "sat"),
        cap=to_msat(wanted.cap_sat, "sat"),
        reserve=to_msat(wanted.reserve_sat, "sat"),
        max_fee_ppm=wanted.max_fee_ppm,
        max_fee_base=to_msat(wanted.max_fee_base_sat, "sat"),
        interval_s=wanted.interval_s,
    )


def _trouble(circuit: Circuit) -> str | None:
    return None if circuit.state == "closed" else "does not answer"


def _no_mint(circuits: Collection[Circuit]) -> str | None:
    """Without any mint no client can pay with a token. A node may have none at all."""
    return "no mint answers" if circuits and all(map(_trouble, circuits)) else None


def _pool(settings: Settings, keys: Keys, guard: NetGuard) -> RelayPool:
    """The operator's relays; others, named by clients, go through the guard."""

    async def check(url: str) -> list[str] | None:
        return None if url in pool.urls else await guard.check_relay_url(url)

    pool = RelayPool(
        settings.nostr.relays,
        keys=keys,
        guard=check,
        connect_timeout_s=settings.nostr.connect_timeout_s,
        ok_timeout_s=settings.nostr.ok_timeout_s,
    )
    return pool


async def _directory(
    settings: Settings, keys: Keys, guard: NetGuard, pool: RelayPool, stack: AsyncExitStack
) -> Directory:
    wanted = settings.discovery
    probe = None
    if wanted.probe:
        prober = await stack.enter_async_context(Prober(guard, timeout_s=wanted.probe_timeout_s))
        probe = prober.probe
    return Directory(
        pool,
        probe=probe,
        own_pubkey=keys.pubkey,
        registry=Registry(max_entries=wanted.max_providers),
        poll_s=(wanted.poll_interval_s, 2 * wanted.poll_interval_s),
        reprobe_s=wanted.probe_interval_s,
        probe_concurrency=wanted.probe_concurrency,
    )


def _info(settings: Settings, keys: Keys) -> NodeInfo:
    nostr = settings.nostr
    return NodeInfo(
        name=settings.node.name,
        about=settings.node.about,
        version=__version__,
        npub=keys.npub,
        mints=tuple(mint.url for mint in settings.mints),
        pubkey_lock=lock_key(keys.pubkey),
        http_urls=settings.http.public_urls,
        onion_url=settings.http.onion_url,
        relays=nostr.relays if nostr.requests else (),
    )


def _announcement(
    settings: Settings, info: NodeInfo, catalog: Catalog, pool: RelayPool
) -> AnnouncementSource:
    onion = (info.onion_url,) if info.onion_url else ()
    return AnnouncementSource(
        name=info.name,
        about=info.about,
        urls=(*info.http_urls, *onion),
        mints=info.mints,
        pubkey_lock=info.pubkey_lock,
        version=info.version,
        relays=pool.urls if settings.nostr.requests else (),
        wraps=info.wraps,
        http=("80", "81", "frames-v1") if settings.nostr.requests else (),
        offers=tuple(_offer(model) for model in catalog),
        d=settings.node.d,
    )


def _offer(model: Model) -> ModelOffer:
    return ModelOffer(
        id=model.id,
        name=model.name,
        input_per_mtok=model.price.input_per_mtok,
        output_per_mtok=model.price.output_per_mtok,
        per_request=model.price.per_request,
        context=model.context_length,
        max_output=model.max_output_tokens,
        modalities=model.modalities,
        endpoints=model.endpoints,
    )


def _dm_limits(settings: Settings) -> DmLimits:
    nostr = settings.nostr
    return DmLimits(
        assembly=AssemblyLimits(
            max_request_bytes=nostr.max_body_bytes,
            max_sender_requests=nostr.assembly_max_per_sender,
            max_sender_bytes=nostr.assembly_max_bytes_per_sender,
            max_bytes=nostr.assembly_max_bytes,
            deadline_s=nostr.assembly_timeout_s,
        ),
        max_running=nostr.max_concurrent_requests,
        max_running_per_sender=nostr.max_concurrent_per_sender,
        unpaid_per_minute=nostr.free_requests_per_minute,
        stored_change=nostr.stored_change,
    )


# -- background ----------------------------------------------------------------------------


def _spawn(node: Node, name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run ``run`` in the background for ever; what ends with an error starts again."""

    async def forever() -> None:
        while True:
            try:
                await run()
                return
            except Exception:
                log.exception("background_task_failed", task=name)
                await asyncio.sleep(RECOVERY_INTERVAL_S)

    node.background.append(asyncio.create_task(forever(), name=name))


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _recover(wallet: Wallet, store: SqliteWalletStore) -> None:
    """Finish what crashed or was left unknown; give back what nobody uses."""
    while True:
        await wallet.recover()
        for account_id in await store.idle_request_accounts(IDLE_REQUEST_S):
            try:
                await wallet.close_idle(account_id)
            except NodeError as error:
                log.info("idle_request_kept", account=account_id, reason=str(error))
        await asyncio.sleep(RECOVERY_INTERVAL_S)


async def _check_restored(wallet: Wallet, reconciler: Reconciler) -> None:
    """After a restore: ask the mints about our coins before anybody is served."""
    unchecked = await reconciler.begin()
    if not unchecked:
        return
    log.warning("database_restored", unchecked=unchecked)
    try:
        async with asyncio.timeout(RECONCILE_TIMEOUT_S):
            await wallet.recover()
            await reconciler.run()
    except TimeoutError:
        log.warning("mints_not_checked_in_time", hint="those stay out of use until they are")


def _unchecked(reconciler: Reconciler) -> str | None:
    return "mints not checked yet" if reconciler.waiting else None


async def _reconcile(reconciler: Reconciler) -> None:
    """Until every mint is checked and no coin is parked."""
    while True:
        if not await reconciler.run():
            return
        await asyncio.sleep(RECOVERY_INTERVAL_S)


async def _refresh(wallet: Wallet, mint: str) -> None:
    while True:
        pause_s = REFRESH_INTERVAL_S
        try:
            await wallet.refresh(mint)
        except MintUnreachable as error:
            pause_s = RECOVERY_INTERVAL_S
            log.warning("mint_unreachable", mint=mint, reason=error.private)
        await asyncio.sleep(pause_s)


async def _housekeep(settings: Settings, messages: SqliteMessageLog) -> None:
    while True:
        await messages.prune(int(settings.ledger.reply_keep_s))
        await asyncio.sleep(REFRESH_INTERVAL_S)


async def _alive(database: Database) -> str | None:
    await database.read(lambda conn: conn.execute("SELECT 1").fetchone())
    return None
