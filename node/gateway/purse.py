"""A person's wallet: the node's own wallet and books, with one account, in a database of its own.

All money is one account, the purse. Tokens come in by ``receive``, leave by ``send`` or to pay a
provider, and a Lightning invoice fills it. Whatever a crash leaves behind is in the journals of
``node.ledger`` and ``node.gateway.journal``.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp

from node.background import cancel, recover, spawn
from node.building import accepted_mint
from node.core.accounts import Balance, HoldRequest, NewAccount, Operation, key_hash
from node.core.ecash import Token
from node.core.lightning import FeeLimit
from node.core.money import MSAT_PER_SAT, Msat, to_msat
from node.core.usage import Usage
from node.ecash.crypto import hash_to_curve_hex, mnemonic_to_seed, new_mnemonic
from node.ecash.keysets import AcceptedMint
from node.ecash.lightning import Lightning
from node.ecash.mint import MintError
from node.ecash.token import normalize_mint_url, parse_token, serialize_token
from node.ecash.wallet import Wallet
from node.errors import InsufficientBalance, InvalidValue, MintUnreachable
from node.gateway.journal import Journal
from node.ledger.accounts import SqliteLedger
from node.ledger.answers import SqliteAnswers
from node.ledger.books import Books, sum_books
from node.ledger.database import Database
from node.ledger.lightning import SqliteLightningStore
from node.ledger.operations import open_account
from node.ledger.wallet import SqliteWalletStore
from node.service.invoices import Created, InvoiceLimits, Invoices
from node.settings_sections import MintSettings

_KEY_NAME = "purse_key"
CLOSE_TIMEOUT_S = 5.0
SPARE_COINS = 4
"""Coins that a token may have beyond the fewest; the mint's fee for them is sent along."""
MOVE_FEE = FeeLimit()
"""The most that Lightning may cost when money is moved between mints."""
_POLL_S = 0.5
_PEER = "purse"


@dataclass(frozen=True, slots=True)
class Funds:
    """What the purse has, in msat."""

    balance: Msat
    """What can be spent, fees of the mints aside."""
    under_way: Msat
    """Value of tokens that are with providers."""
    by_mint: Mapping[str, Msat]


class Purse:
    """Made by ``open_purse``.

    Attributes:
        account_id: the purse; None while there is no mint.
        answers: to requests that programs have named.
    """

    def __init__(
        self,
        database: Database,
        journal: Journal,
        wallet: Wallet,
        ledger: SqliteLedger,
        store: SqliteWalletStore,
        mints: Mapping[str, AcceptedMint],
        invoices: Invoices,
        lightning: Lightning,
        invoice_store: SqliteLightningStore,
        account_id: int | None,
    ) -> None:
        self.journal = journal
        self.wallet = wallet
        self.store = store
        self.account_id = account_id
        self.answers = SqliteAnswers(database)
        self._db = database
        self._ledger = ledger
        self._mints = mints
        self._invoices = invoices
        self._lightning = lightning
        self._invoice_store = invoice_store

    @property
    def mints(self) -> tuple[str, ...]:
        """The mints whose coins it takes, by normalised URL."""
        return tuple(self._mints)

    async def receive(self, text: str) -> Operation:
        """Swap a token into the purse; the same again is the same operation.

        Raises what ``Wallet.accept`` and ``Wallet.receive`` raise.
        """
        return await self.wallet.receive(self.wallet.accept(text.strip()), self._account())

    async def send(
        self, amount: Msat | None, *, mint: str | None = None, request_key: str | None = None
    ) -> Operation:
        """Take a token out; ``amount`` None: all that is there. Raises what ``Wallet.issue``
        raises."""
        return await self.wallet.issue(self._account(), amount, only=mint, request_key=request_key)

    async def not_shown(self) -> list[Operation]:
        """What was taken out by hand and may not have reached its owner, the oldest first."""
        if self.account_id is None:
            return []
        found = await self.store.undelivered(self.account_id)
        return [operation for operation in found if operation.token is not None]

    async def hold(self, request: HoldRequest) -> int | None:
        """Take the name of a named request by a hold of nothing; None when it has no name.

        Raises IdempotencyConflict, IdempotencyInProgress, Answered.
        """
        if request.request_key is None or self.account_id is None:
            return None
        return await self._ledger.hold(self.account_id, replace(request, max_cost=Msat(0)))

    def end_hold(self, hold_id: int, usage: Usage | None) -> Awaitable[object]:
        """Keep the name for the answer that was given, or give it up (None)."""
        if usage is None:
            return self._ledger.release(hold_id)
        return self._ledger.settle(hold_id, Msat(0), usage)

    async def issued(self, spending_id: str) -> Operation | None:
        """The finished or failed operation that made the token of a spending; None when none
        was begun. Raises Pending."""
        found = await self.journal.operation_of(spending_id, self._account())
        if found is None:
            return None
        return await self.wallet.finish(await self.store.operation(found))

    async def spent(self, token: Token) -> bool | None:
        """Whether any coin of a token is spent at its mint (NUT-07); None while one is pending.

        Raises MintUnreachable.
        """
        ys = [hash_to_curve_hex(proof.secret) for proof in token.proofs]
        mint = self._mints.get(token.mint)
        if mint is None:
            raise MintUnreachable("this wallet does not use the mint of that token any more")
        try:
            states = set(await mint.client.check_state(ys))
        except MintError as error:
            raise MintUnreachable(retry_after_s=5, private=str(error)) from error
        if "SPENT" in states:
            return True
        return None if "PENDING" in states else False

    async def funds(self) -> Funds:
        """What is there."""
        balance = Balance(Msat(0), Msat(0), "", "sat")
        if self.account_id is not None:
            balance = await self._ledger.balance(self.account_id)
        return Funds(balance.free, await self._under_way(), await self.stock())

    async def stock(self) -> dict[str, Msat]:
        """Value of the coins in hand by mint; every mint is there."""
        rows = await self._db.read(
            lambda conn: conn.execute(
                "SELECT mint, unit, SUM(amount) AS amount FROM proofs WHERE state = 'unspent'"
                " GROUP BY mint, unit"
            ).fetchall()
        )
        found = dict.fromkeys(self._mints, Msat(0))
        for row in rows:
            if row["mint"] in found:
                found[row["mint"]] = Msat(found[row["mint"]] + to_msat(row["amount"], row["unit"]))
        return found

    async def books(self) -> Books:
        """The books of the wallet, which must add up."""
        return await self._db.read(sum_books)

    async def invoice(self, amount_sat: int, mint: str | None = None) -> Created:
        """A Lightning invoice that fills the purse, with coins of ``mint`` if one is named.

        Raises what ``Invoices.create`` raises.
        """
        return await self._invoices.create(amount_sat, _PEER, self._account(), mint=mint)

    async def collect(self) -> None:
        """Take the coins of invoices that were paid meanwhile; what is not known yet stays."""
        for invoice in await self._invoice_store.pending_invoices():
            await self._lightning.collect(invoice)

    async def move(self, source: str, target: str, amount_sat: int | None) -> Created:
        """Pay an invoice of the mint ``target`` with coins of ``source``; returns the invoice.

        Both halves are in journals before they begin, so that each ends by itself after a crash:
        the payment is made or undone, and what it paid for is collected.

        Args:
            amount_sat: what is to arrive; None: all there is, but for the fees.

        Raises PayoutError when nothing was paid, Pending while that is not known, InvalidValue,
        InsufficientBalance, MintUnreachable, MintLiquidity, RateLimitExceeded.
        """
        account = self._account()
        payable = next(
            (p for p in await self._lightning.payable(account) if p.mint == source), None
        )
        if payable is None or source == target:
            raise InvalidValue("name two mints, the first one with coins in this wallet")
        most = MOVE_FEE.affordable(payable.available - payable.input_fee)
        amount = most if amount_sat is None else Msat(amount_sat * MSAT_PER_SAT)
        if not 0 < amount <= payable.available:
            raise InsufficientBalance(
                f"the wallet holds {payable.available // MSAT_PER_SAT} sat of {source}; with fees"
                f" set aside {most // MSAT_PER_SAT} sat can be moved"
            )
        created = await self.invoice(amount // MSAT_PER_SAT, target)
        await self._lightning.pay(
            self._lightning.read(created.invoice.bolt11),
            f"move to {target}",
            payable,
            max_fee=MOVE_FEE.of(amount),
            account_id=account,
            by_owner=True,
        )
        return created

    async def paid(self, invoice_id: str, timeout_s: float) -> bool:
        """Wait for an invoice to be paid."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            if (await self._invoices.status(invoice_id)).status == "paid":
                return True
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(_POLL_S)

    async def fee_of(self, mint: str, coins: int) -> int:
        """What a mint takes for spending so many coins of its cheapest keyset, in sat.

        Raises MintUnreachable.
        """
        keyset = await self.wallet.active_keyset(mint, "sat")
        return -(-keyset.input_fee_ppk * coins // MSAT_PER_SAT)

    def _account(self) -> int:
        if self.account_id is None:
            raise InsufficientBalance("this wallet is empty; fill it: nodestr wallet receive")
        return self.account_id

    async def _under_way(self) -> Msat:
        open_ones = await self.journal.in_states(("sent", "reclaiming"))
        return Msat(sum(spending.amount for spending in open_ones))


@asynccontextmanager
async def open_purse(
    path: Path,
    session: aiohttp.ClientSession,
    *,
    accept: Collection[str] = (),
    mint_timeout_s: float = 15.0,
) -> AsyncIterator[Purse]:
    """The wallet at ``path``, made when there is none.

    Args:
        accept: URLs of mints to take coins of from now on; ValueError for what is no URL.

    Raises StorageError when another process has it open.
    """
    urls = [normalize_mint_url(url) for url in accept]
    async with AsyncExitStack() as stack:
        database = await Database.open(path)
        stack.push_async_callback(database.close)
        journal = await Journal.open(database)
        await journal.add_mints(urls)
        ledger = SqliteLedger(database)
        await ledger.release_all()
        store = SqliteWalletStore(database, serialize_token)
        mints = {
            url: accepted_mint(MintSettings(url=url, timeout_s=mint_timeout_s), session)
            for url in await journal.mints()
        }
        seed = mnemonic_to_seed(await store.secret("mnemonic", new_mnemonic))
        wallet = Wallet(store, mints, seed)
        invoice_store = SqliteLightningStore(database, store)
        lightning = Lightning(wallet, store, invoice_store, mints, seed)
        await wallet.start()
        stack.push_async_callback(wallet.close, CLOSE_TIMEOUT_S)
        key = await store.secret(_KEY_NAME, lambda: secrets.token_hex(32))
        account_id = None
        if mints:
            hashed, first = key_hash(key), next(iter(mints))
            account_id = await database.write(lambda conn: _account(conn, hashed, first))
        invoices = Invoices(lightning, invoice_store, ledger, key.encode(), InvoiceLimits())
        tasks: list[asyncio.Task[None]] = []
        stack.push_async_callback(cancel, tasks)
        spawn(tasks, "recovery", lambda: recover(wallet, store))
        spawn(tasks, "invoices", invoices.run)
        yield Purse(
            database,
            journal,
            wallet,
            ledger,
            store,
            mints,
            invoices,
            lightning,
            invoice_store,
            account_id,
        )


def _account(conn: sqlite3.Connection, hashed: str, mint: str) -> int:
    """The one account, opened on first use."""
    row = conn.execute("SELECT account_id FROM api_keys WHERE hash = ?", (hashed,)).fetchone()
    if row is not None:
        return int(row["account_id"])
    return open_account(conn, NewAccount("key", {hashed: "spend"}), mint, "sat")


def mint_of(text: str) -> str:
    """The mint of a token. Raises TokenMalformed."""
    return parse_token(text.strip()).mint
