"""A wallet over a real database, opened and reopened as after a crash."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from node.core.accounts import NewAccount, Operation
from node.core.money import Msat
from node.core.pricing import Price
from node.demo.purse import Purse
from node.ecash.lightning import Lightning
from node.ecash.token import parse_token, serialize_token
from node.ecash.wallet import Wallet
from node.ledger.accounts import SqliteLedger
from node.ledger.books import Books, account_discrepancies, stranded_in_transit, sum_books
from node.ledger.database import Database
from node.ledger.lightning import SqliteLightningStore
from node.ledger.wallet import SqliteWalletStore

PRICE = Price(Msat(1_000_000), Msat(2_000_000))


@dataclass
class Bench:
    """A wallet over a real database, and what it takes to look inside."""

    database: Database
    ledger: SqliteLedger
    store: SqliteWalletStore
    wallet: Wallet
    invoices: SqliteLightningStore
    lightning: Lightning

    async def receive(self, text: str, into: NewAccount | int, *, at_least: int = 0) -> Operation:
        """Accept a token and redeem it, as a service does."""
        return await self.wallet.receive(self.wallet.accept(text), into, at_least=Msat(at_least))

    async def books(self) -> Books:
        """The books, checked."""
        assert await self.database.read(account_discrepancies) == []
        assert await self.database.read(stranded_in_transit) == []
        books = await self.database.read(sum_books)
        assert books.problems() == []
        return books


OpenBench = Callable[..., Awaitable[Bench]]


def new_account(name: str) -> NewAccount:
    """An account whose key's hash is ``name``."""
    return NewAccount("key", {name: "spend"})


async def fill_with_one_coin(bench: Bench, client: Purse, url: str, amount: int) -> int:
    """An account of ``amount`` (a power of two) whose only coin in the inventory is one big one.

    Small coins are given out first, so that the next issue needs a swap.
    """
    token = serialize_token(url, "sat", parse_token(await client.fund(amount)).proofs)
    other = serialize_token(url, "sat", parse_token(await client.fund(amount * 2 - 1)).proofs)
    account = (await bench.receive(token, new_account("big"))).account_id
    waste = (await bench.receive(other, new_account("waste"))).account_id
    while True:
        stock = {
            row["amount"]: row["n"]
            for row in await bench.database.read(
                lambda conn: conn.execute(
                    "SELECT amount, COUNT(*) AS n FROM proofs WHERE state = 'unspent'"
                    " GROUP BY amount"
                ).fetchall()
            )
        }
        small = [d for d in stock if d < amount // 2]
        if not small:
            return account
        await bench.wallet.issue(waste, Msat(small[0] * 1000))
