"""Payouts in the database: melt operations over what the node has earned.

    begin ──▶ intent ──▶ done      inputs spent, change stored, TRANSIT → PAYOUT
                └──────▶ failed    coins back as suspect, TRANSIT → REVENUE
                           └─────▶ salvaged  ... it landed late: booked now

| step        | in one transaction                                                             |
|-------------|--------------------------------------------------------------------------------|
| begin melt  | earnings checked, REVENUE → TRANSIT, coins reserved, counters of the blanks,   |
|             | payment hash, intent                                                           |
| finish melt | inputs spent, change, TRANSIT → PAYOUT, OWN_FEES and REVENUE (the rest), done  |
| fail melt   | coins suspect and free, TRANSIT → REVENUE                                      |
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence

from node.core.accounts import Operation, Output
from node.core.denominations import pick_exact
from node.core.ecash import Proof, input_fee
from node.core.lightning import MeltRequest, Payable
from node.core.money import Msat, to_msat
from node.errors import InsufficientBalance, InvalidValue, MintLiquidity, Pending
from node.ledger.books import Book, sum_books, transfer
from node.ledger.coins import cover, stock, store_coins, take, with_counters
from node.ledger.database import Database
from node.ledger.operations import insert_operation, move, set_error
from node.ledger.wallet import SqliteWalletStore

OPERATOR = 0
"""Account that payouts are noted under; it holds nothing."""


class SqlitePayoutStore:
    """The melt half of ``node.ports.LightningStore``.

    Args:
        wallet: told when earnings are spent, which it remembers a count of.
    """

    def __init__(self, database: Database, wallet: SqliteWalletStore) -> None:
        self._db = database
        self._wallet = wallet

    def begin_melt(self, request: MeltRequest) -> asyncio.Future[Operation]:
        """Set aside earnings and coins for a payout and journal it.

        Raises Pending while another payout is under way, InvalidValue for an invoice that was
        paid or may have been, InsufficientBalance beyond the earnings, MintLiquidity without
        the coins.
        """
        return self._db.write(lambda conn: self._begin_melt(conn, request))

    def _begin_melt(self, conn: sqlite3.Connection, request: MeltRequest) -> Operation:
        if conn.execute(
            "SELECT 1 FROM operations WHERE kind = 'melt' AND state = 'intent'"
        ).fetchone():
            raise Pending("a payout is under way", retry_after_s=30)
        if conn.execute(
            "SELECT 1 FROM payouts p JOIN operations o ON o.id = p.operation_id"
            " WHERE p.payment_hash = ? AND (o.state <> 'failed' OR o.attempts > 0)",
            (request.payment_hash,),
        ).fetchone():
            raise InvalidValue("this invoice was paid, or may have been; make another one")
        source = request.source
        ys, inputs = _melt_inputs(conn, request)
        fee = input_fee(inputs, source.fee_ppk)
        paid = sum(proof.amount for proof in inputs)
        if not request.change and paid != request.amount + request.fee_reserve + fee:
            raise MintLiquidity("the mint gives no change and the coins do not fit")
        outputs: tuple[Output, ...] = ()
        if request.change and source.keyset is not None:
            # NUT-08: as many blanks as the largest possible change can need coins
            blanks = (paid - fee - request.amount).bit_length()
            outputs = with_counters(conn, source.keyset.id, [(1, True)] * blanks)
        operation = Operation(
            id=request.operation_id,
            kind="melt",
            state="intent",
            account_id=OPERATOR,
            mint=source.mint,
            unit=source.unit,
            amount=request.amount,
            fee=request.fee_reserve + fee,
            inputs=tuple(inputs),
            outputs=outputs,
            quote=request.quote,
        )
        aside = _set_aside(operation)
        available = _available(conn) - request.reserve
        if aside > available:
            raise InsufficientBalance(
                f"{max(0, available)} msat have been earned beyond the reserve,"
                f" {aside} msat are needed"
            )
        insert_operation(conn, operation, ys, None)
        conn.execute(
            "INSERT INTO payouts VALUES (?, ?, ?)",
            (operation.id, request.payment_hash, request.destination),
        )
        transfer(conn, Book.REVENUE, Book.TRANSIT, aside, f"op:{operation.id}")
        self._wallet.recount()
        return operation

    def finish_melt(
        self, operation: Operation, change: Sequence[tuple[str, Proof]]
    ) -> asyncio.Future[None]:
        """The invoice is paid: book it and store the change. Idempotent."""

        def work(conn: sqlite3.Connection) -> None:
            if not move(conn, operation.id, "done"):
                return
            reference = f"op:{operation.id}"
            transfer(conn, Book.TRANSIT, Book.REVENUE, _set_aside(operation), reference)
            self._book_melt(conn, operation, change)

        return self._db.write(work)

    def salvage_melt(
        self, operation: Operation, change: Sequence[tuple[str, Proof]]
    ) -> asyncio.Future[None]:
        """A payout that had failed here was paid after all: book it. Idempotent."""

        def work(conn: sqlite3.Connection) -> None:
            if move(conn, operation.id, "salvaged", of="failed"):
                self._book_melt(conn, operation, change)

        return self._db.write(work)

    def _book_melt(
        self, conn: sqlite3.Connection, operation: Operation, change: Sequence[tuple[str, Proof]]
    ) -> None:
        conn.execute(
            "UPDATE proofs SET state = 'spent' WHERE state IN ('unspent', 'reserved')"
            " AND y IN (SELECT y FROM operation_inputs WHERE operation_id = ?)",
            (operation.id,),
        )
        store_coins(conn, operation, change, "unspent")
        spent = sum(p.amount for p in operation.inputs) - sum(p.amount for _, p in change)
        reference = f"op:{operation.id}"
        fees = to_msat(spent - operation.amount, operation.unit)
        transfer(conn, Book.REVENUE, Book.PAYOUT, operation.value, reference)
        transfer(conn, Book.REVENUE, Book.OWN_FEES, fees, reference)
        self._wallet.recount()

    def fail_melt(self, operation: Operation, error: str) -> asyncio.Future[None]:
        """The invoice is not paid and our coins are unspent: undo the intent. Idempotent."""

        def work(conn: sqlite3.Connection) -> None:
            if not move(conn, operation.id, "failed"):
                return
            set_error(conn, operation, error)
            conn.execute(
                "UPDATE proofs SET state = 'unspent', suspect = 1"
                " WHERE operation_id = ? AND state = 'reserved'",
                (operation.id,),
            )
            aside = _set_aside(operation)
            transfer(conn, Book.TRANSIT, Book.REVENUE, aside, f"op:{operation.id}")

        return self._db.write(work)

    async def payable(self, mint: str, unit: str) -> Payable:
        """What could be paid out of one mint's coins: earned, and owed to nobody of that mint."""

        def work(conn: sqlite3.Connection) -> Payable:
            held = sum(d * count for d, count in stock(conn, mint, unit).items())
            owed = conn.execute(
                "SELECT COALESCE(SUM(balance_msat), 0) FROM accounts WHERE mint = ?", (mint,)
            ).fetchone()[0]
            own = Msat(min(_available(conn), to_msat(held, unit) - owed))
            return Payable(mint, unit, Msat(max(0, own)))

        return await self._db.read(work)


def _available(conn: sqlite3.Connection) -> int:
    """What is the node's own by the books, and by the coins: the lesser, in msat."""
    books = sum_books(conn, checkpointed=True)
    return min(books.earned_msat, books.equity_msat)


def _set_aside(operation: Operation) -> Msat:
    """What a melt under way may cost at most."""
    return to_msat(operation.amount + operation.fee, operation.unit)


def _melt_inputs(conn: sqlite3.Connection, request: MeltRequest) -> tuple[list[str], list[Proof]]:
    """Reserve coins worth the invoice, the reserve for Lightning and the mint's input fee."""
    source, needed = request.source, request.amount + request.fee_reserve
    held = stock(conn, source.mint, source.unit)
    found = cover(conn, source, needed, held)
    if found is None:
        raise MintLiquidity("this mint does not hold enough coins for the payout")
    picked = found.picked
    if not request.change:
        picked = pick_exact(needed + found.fee, held) or picked
    return take(conn, source, picked, request.operation_id, "reserved")
