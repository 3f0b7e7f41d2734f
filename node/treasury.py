"""Where a node keeps money: database, ledger, coins, mints, and who watches over them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp
import structlog

from discovery.nostr.keys import Keys
from node.background import check_restored
from node.building import accepted_mint
from node.ecash.crypto import mnemonic_to_seed, new_mnemonic
from node.ecash.gate import PaymentTerms
from node.ecash.lightning import Lightning
from node.ecash.reconcile import Reconciler
from node.ecash.token import serialize_token
from node.ecash.wallet import Wallet
from node.ledger.accounts import SqliteLedger
from node.ledger.database import Database
from node.ledger.lightning import SqliteLightningStore
from node.ledger.reconciling import SqliteReconcileStore
from node.ledger.wallet import SqliteWalletStore
from node.ops.watchdog import Watchdog
from node.settings import Settings

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Treasury:
    """The open database and what stands on it."""

    database: Database
    ledger: SqliteLedger
    store: SqliteWalletStore
    wallet: Wallet
    invoices: SqliteLightningStore
    lightning: Lightning
    reconciler: Reconciler
    watchdog: Watchdog


async def open_treasury(
    settings: Settings, keys: Keys, session: aiohttp.ClientSession, stack: AsyncExitStack
) -> Treasury:
    """Open the database, release what a dead process held, ask the mints after a restore, and add
    up the books; all is closed with ``stack``.

    Raises StorageError.
    """
    database = await Database.open(settings.node.database)
    stack.push_async_callback(database.close)
    ledger = SqliteLedger(database)
    store = SqliteWalletStore(database, serialize_token)
    released = await ledger.release_all()
    if released:
        log.warning("holds_released", count=released)
    mints = {mint.url: accepted_mint(mint, session) for mint in settings.mints}
    seed = mnemonic_to_seed(await store.secret("mnemonic", new_mnemonic))
    wallet = Wallet(
        store,
        mints,
        seed,
        terms=PaymentTerms(keys, settings.payments.lock, settings.payments.request_format),
    )
    invoices = SqliteLightningStore(database, store)
    lightning = Lightning(wallet, store, invoices, mints, seed)
    await wallet.start()
    stack.push_async_callback(wallet.close, 5.0)
    reconciler = wallet.reconciler(
        SqliteReconcileStore(database), settings.ledger.restore_gap_counters
    )
    await check_restored(wallet, reconciler)
    watchdog = Watchdog(
        database, settings.node.database, interval_s=settings.ledger.watchdog_interval_s
    )
    await watchdog.check()
    return Treasury(database, ledger, store, wallet, invoices, lightning, reconciler, watchdog)
