"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from node.ecash.crypto import mnemonic_to_seed, new_mnemonic
from node.ecash.keysets import AcceptedMint
from node.ecash.mint import MintClient
from node.ecash.token import serialize_token
from node.ecash.wallet import Wallet
from node.ledger.accounts import SqliteLedger
from node.ledger.database import Database
from node.ledger.wallet import SqliteWalletStore
from tests.integration.bench import Bench, OpenBench


@pytest.fixture
async def open_bench(
    tmp_path: Path, http_session: aiohttp.ClientSession
) -> AsyncIterator[OpenBench]:
    """Opens the test's wallet at mints; again: as a new process would find it."""
    async with AsyncExitStack() as stack:
        opened: list[Database] = []

        async def open_it(
            *urls: str, timeout_s: float = 1.0, units: tuple[str, ...] = ("sat",)
        ) -> Bench:
            if opened:
                await opened.pop().close()
            database = await Database.open(tmp_path / "node.db")
            stack.push_async_callback(database.close)
            opened.append(database)
            store = SqliteWalletStore(database, serialize_token)
            seed = mnemonic_to_seed(await store.secret("mnemonic", new_mnemonic))
            mints = {}
            for url in urls:
                client = MintClient(http_session, url, timeout_s=timeout_s)
                mints[client.url] = AcceptedMint(client, units)
            wallet = Wallet(store, mints, seed, wait_s=10 * timeout_s)
            stack.push_async_callback(wallet.close, 0.1)
            await wallet.start()
            return Bench(database, SqliteLedger(database), store, wallet)

        yield open_it
