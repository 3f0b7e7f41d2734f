"""The wallet of a node that does not run, opened for one command."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import aiohttp

from node.building import accepted_mint
from node.ecash.crypto import mnemonic_to_seed, new_mnemonic
from node.ecash.gate import PaymentTerms
from node.ecash.lightning import Lightning
from node.ecash.token import serialize_token
from node.ecash.wallet import Wallet
from node.ledger.database import Database, StorageError
from node.ledger.lightning import SqliteLightningStore
from node.ledger.reconciling import SqliteReconcileStore
from node.ledger.wallet import SqliteWalletStore
from node.settings import Settings


class NodeRuns(Exception):
    """A node has the database open."""


class NotReady(Exception):
    """The database cannot be worked with yet. The text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class StoppedNode:
    """What a command works with."""

    database: Database
    store: SqliteWalletStore
    wallet: Wallet
    lightning: Lightning


@asynccontextmanager
async def stopped_database(settings: Settings) -> AsyncIterator[Database]:
    """The database alone; no node starts while it is open. Raises NodeRuns, StorageError."""
    try:
        database = await Database.open(settings.node.database)
    except StorageError as error:
        if "in use" not in str(error):
            raise
        raise NodeRuns from None
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def stopped_node(settings: Settings) -> AsyncIterator[StoppedNode]:
    """The wallet, as a node that starts has it; no node starts while it is open.

    Raises NodeRuns, NotReady, StorageError.
    """
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(stopped_database(settings))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        )
        store = SqliteWalletStore(database, serialize_token)
        mints = {mint.url: accepted_mint(mint, session) for mint in settings.mints}
        seed = mnemonic_to_seed(await store.secret("mnemonic", new_mnemonic))
        wallet = Wallet(store, mints, seed, terms=PaymentTerms(settings.keys()))
        lightning = Lightning(wallet, store, SqliteLightningStore(database, store), mints, seed)
        await wallet.start()
        stack.push_async_callback(wallet.close, 5.0)
        if await wallet.reconciler(SqliteReconcileStore(database)).begin():
            raise NotReady("the database is from a backup: let the node run once first")
        yield StoppedNode(database, store, wallet, lightning)
