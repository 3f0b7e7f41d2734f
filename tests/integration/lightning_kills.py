"""What is killed: an invoice becoming a balance, and a payout; see ``kill_scenarios``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from node.core.accounts import HoldRequest
from node.core.money import Msat
from node.core.usage import Usage
from node.ecash.crypto import mnemonic_to_seed, new_mnemonic
from node.ecash.keysets import AcceptedMint
from node.ecash.lightning import Lightning
from node.ecash.mint import MintClient
from node.ecash.token import serialize_token
from node.ecash.wallet import Wallet
from node.ledger.accounts import SqliteLedger
from node.ledger.books import account_discrepancies, sum_books
from node.ledger.database import Database
from node.ledger.lightning import SqliteLightningStore
from node.ledger.wallet import SqliteWalletStore
from node.service.invoices import InvoiceLimits, Invoices
from tests.integration import kill_scenarios
from tests.integration.bench import PRICE, Bench


@asynccontextmanager
async def parts(task: dict[str, Any]) -> AsyncIterator[tuple[Bench, Invoices]]:
    """Opened as ``node.app`` does it."""
    database = await Database.open(Path(task["directory"]) / "node.db")
    async with aiohttp.ClientSession() as session:
        ledger = SqliteLedger(database)
        store = SqliteWalletStore(database, serialize_token)
        await ledger.release_all()
        client = MintClient(session, task["mint"], timeout_s=10)
        mints = {client.url: AcceptedMint(client)}
        seed = mnemonic_to_seed(await store.secret("mnemonic", new_mnemonic))
        wallet = Wallet(store, mints, seed)
        invoice_store = SqliteLightningStore(database, store)
        lightning = Lightning(wallet, store, invoice_store, mints, seed)
        await wallet.start()
        invoices = Invoices(lightning, invoice_store, ledger, b"k" * 32, InvoiceLimits())
        yield Bench(database, ledger, store, wallet, invoice_store, lightning), invoices
        await wallet.close(1.0)
    await database.close()


async def play(task: dict[str, Any]) -> None:
    """An invoice, found paid; most of it charged; a payout."""
    async with parts(task) as (bench, invoices):
        made = await invoices.create(300, "peer", None)
        (Path(task["directory"]) / "invoice").write_text(made.invoice_id)
        await bench.lightning.collect(made.invoice)
        request = HoldRequest("r", None, "", "m", PRICE, Msat(200_000))
        hold = await bench.ledger.hold(made.invoice.account_id, request)
        await bench.ledger.settle(hold, Msat(200_000), Usage(1, 1))
        payable = (await bench.lightning.payable())[0]
        invoice = bench.lightning.read(task["tokens"][0])
        await bench.lightning.pay(invoice, "test", payable, max_fee=Msat(10_000), reserve=Msat(0))


async def settle(task: dict[str, Any]) -> dict[str, Any]:
    """After the kill: start again, recover, watch the invoices; then what there is."""
    async with parts(task) as (bench, invoices):
        told = Path(task["directory"]) / "invoice"
        status = ""
        async with asyncio.timeout(40):
            while await bench.wallet.recover():
                await asyncio.sleep(0.05)
            if told.exists():
                while (status := (await invoices.status(told.read_text())).status) != "paid":
                    await invoices.look()
                    await asyncio.sleep(0.05)
        books = await bench.database.read(sum_books)
        coins = await bench.database.read(
            lambda conn: [
                row["y"] for row in conn.execute("SELECT y FROM proofs WHERE state = 'unspent'")
            ]
        )
        return {
            "problems": books.problems() + await bench.database.read(account_discrepancies),
            "status": status,
            "received_msat": books.received_msat,
            "payouts_msat": books.payouts_msat,
            "transit_msat": books.transit_msat,
            "left_open": books.holds_open + books.operations_open,
            "coins": coins,
        }


if __name__ == "__main__":
    kill_scenarios.play = play
    kill_scenarios.settle = settle
    kill_scenarios.main()
