"""What is killed: an invoice becoming a balance, a payout, a refund; see ``kill_scenarios``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from node.core.accounts import HoldRequest
from node.core.keys import Terms
from node.core.lightning import PayRequest
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
from node.ledger.keys import SqliteKeys, store_terms
from node.ledger.lightning import SqliteLightningStore
from node.ledger.wallet import SqliteWalletStore
from node.service.invoices import InvoiceLimits, Invoices
from node.service.refunds import Refunds, RefundTerms
from tests.integration import kill_scenarios
from tests.integration.bench import PRICE, Bench


class _Payee:
    """Has one invoice."""

    def __init__(self, request: PayRequest) -> None:
        self._request = request

    def check(self, destination: str) -> None:
        raise NotImplementedError

    async def invoice(self, destination: str, amount: Msat, *, or_less: bool = False) -> PayRequest:
        assert self._request.amount <= amount
        await asyncio.sleep(0)
        return self._request


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
    """An invoice, found paid; most of it charged; a payout; the refund of the rest."""
    async with parts(task) as (bench, invoices):
        made = await invoices.create(300, "peer", None)
        (Path(task["directory"]) / "invoice").write_text(made.invoice_id)
        await bench.lightning.collect(made.invoice)
        request = HoldRequest("r", None, "", "m", PRICE, Msat(200_000))
        hold = await bench.ledger.hold(made.invoice.account_id, request)
        await bench.ledger.settle(hold, Msat(200_000), Usage(1, 1))
        payable = (await bench.lightning.payable())[0]
        invoice = bench.lightning.read(task["tokens"][0])
        await bench.lightning.pay(invoice, "test", payable, max_fee=Msat(10_000))
        keys = SqliteKeys(bench.database, lambda _: None)
        await bench.database.write(
            lambda conn: store_terms(conn, made.invoice.account_id, Terms(1, "me@example.com"))
        )
        payee = _Payee(bench.lightning.read(task["tokens"][1]))
        await Refunds(bench.lightning, payee, keys, RefundTerms()).once()


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
            "issued_msat": books.issued_msat,
            "open_msat": books.open_msat,
            "lost_msat": books.loss_msat,
            "transit_msat": books.transit_msat,
            "left_open": books.holds_open + books.operations_open,
            "coins": coins,
        }


if __name__ == "__main__":
    kill_scenarios.play = play
    kill_scenarios.settle = settle
    kill_scenarios.main()
