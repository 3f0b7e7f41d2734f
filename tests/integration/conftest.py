"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from node.ecash.circuit import Circuit, GuardedMint
from node.ecash.crypto import mnemonic_to_seed, new_mnemonic
from node.ecash.gate import PaymentTerms
from node.ecash.keysets import AcceptedMint
from node.ecash.lightning import Lightning
from node.ecash.mint import MintClient
from node.ecash.token import serialize_token
from node.ecash.wallet import Wallet
from node.ledger.accounts import SqliteLedger
from node.ledger.database import Database
from node.ledger.lightning import SqliteLightningStore
from node.ledger.wallet import SqliteWalletStore
from tests.integration.bench import Bench, OpenBench


@pytest.fixture
async def open_bench(
    tmp_path: Path, http_session: aiohttp.ClientSession
) -> AsyncIterator[OpenBench]:
    """Opens the test's wallet at mints; again: as a new process would find it.

    ``cooldown_s`` guards the mints with circuits.
    """
    async with AsyncExitStack() as stack:
        opened: list[Database] = []

        async def open_it(
            *urls: str,
            timeout_s: float = 2.0,
            units: tuple[str, ...] = ("sat",),
            cooldown_s: float | None = None,
            terms: PaymentTerms | None = None,
            **accepted: Any,
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
                if cooldown_s is not None:
                    circuit = Circuit(url, cooldown_s=cooldown_s)
                    client = GuardedMint(http_session, url, circuit=circuit, timeout_s=timeout_s)
                    accepted["circuit"] = circuit
                mints[client.url] = AcceptedMint(client, units, **accepted)
            wallet = Wallet(
                store, mints, seed, wait_s=10 * timeout_s, terms=terms or PaymentTerms()
            )
            stack.push_async_callback(wallet.close, 0.1)
            invoices = SqliteLightningStore(database, store)
            lightning = Lightning(wallet, store, invoices, mints, seed)
            await wallet.start()
            return Bench(database, SqliteLedger(database), store, wallet, invoices, lightning)

        yield open_it
