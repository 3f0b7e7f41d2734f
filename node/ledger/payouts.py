"""Payouts in the database: melt operations, over what the node has earned or an account holds.

    begin ──▶ intent ──▶ done      inputs spent, change stored, TRANSIT → PAYOUT or OUT
                └──────▶ failed    coins back as suspect, TRANSIT → where it came from
                           └─────▶ salvaged  ... it landed late: booked now

The money comes from REVENUE (a payout to the operator) or from an account (the refund of a key
that has expired). An account bears what the payment cost, but never more than was set aside.

| step        | in one transaction                                                             |
|-------------|--------------------------------------------------------------------------------|
| begin melt  | earnings or account checked, source → TRANSIT, coins reserved, counters of the |
|             | blanks, payment hash, intent                                                   |
| finish melt | inputs spent, change, done; TRANSIT → PAYOUT (of an account: → OUT),           |
|             | TRANSIT → REVENUE → OWN_FEES, the rest TRANSIT → source                        |
| fail melt   | coins suspect and free, TRANSIT → source                                       |
| write off   | the same, and the coins that others have spent: REVENUE → LOSS                 |
| salvage     | source → TRANSIT, then as finish; what the account no longer has is a LOSS     |
| late change | coins stored, OWN_FEES → REVENUE, and REVENUE → account what it bore too much  |
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence

from node.core.accounts import Operation, Output, Source
from node.core.denominations import pick_exact
from node.core.ecash import Proof, input_fee
from node.core.lightning import OPERATOR, Melt, MeltRequest, Payable
from node.core.money import Msat, ceil_div, to_msat
from node.errors import InsufficientBalance, InvalidValue, MintLiquidity, Pending
from node.ledger.accounts import read_balance
from node.ledger.books import Book, transfer
from node.ledger.coins import cover, share, spare, stock, store_coins, take, with_counters, worth
from node.ledger.database import Database
from node.ledger.keys import read_terms
from node.ledger.operations import insert_operation, move, operation_from, set_error
from node.ledger.wallet import SqliteWalletStore
from node.ledger.withdrawals import available, purse_of, unowed

Coins = Sequence[tuple[str, Proof]]
"""(Y, proof) of each."""


class SqlitePayoutStore:
    """The melt half of ``node.ports.LightningStore``.

    Args:
        wallet: told when earnings are spent, which it remembers a count of.
    """

    def __init__(self, database: Database, wallet: SqliteWalletStore) -> None:
        self._db = database
        self._wallet = wallet

    def begin_melt(self, request: MeltRequest) -> asyncio.Future[Operation]:
        """Set aside money and coins for a payment and journal it.

        Raises Pending while another one from the same source is under way or may still land,
        InvalidValue for an invoice that was paid or may have been and for a key that has not
        expired, InsufficientBalance beyond the earnings or the balance, MintLiquidity without
        the coins.
        """
        return self._db.write(lambda conn: self._begin_melt(conn, request))

    def _begin_melt(self, conn: sqlite3.Connection, request: MeltRequest) -> Operation:
        _check_order(conn, request)
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
            account_id=request.account_id,
            mint=source.mint,
            unit=source.unit,
            amount=request.amount,
            fee=request.fee_reserve + fee,
            inputs=tuple(inputs),
            outputs=outputs,
            quote=request.quote,
        )
        aside = _set_aside(operation)
        if request.account_id == OPERATOR:
            earned = available(conn) - request.reserve
            if aside > earned:
                raise InsufficientBalance(
                    f"{max(0, earned)} msat have been earned beyond the reserve,"
                    f" {aside} msat are needed"
                )
        else:
            free = read_balance(conn, request.account_id).free
            if aside > free:
                raise InsufficientBalance(f"{free} msat are available, {aside} msat are needed")
        insert_operation(conn, operation, ys, None)
        conn.execute(
            "INSERT INTO payouts (operation_id, payment_hash, destination, expires_at)"
            " VALUES (?, ?, ?, ?)",
            (operation.id, request.payment_hash, request.destination, request.expires_at),
        )
        transfer(conn, _source(operation), Book.TRANSIT, aside, f"op:{operation.id}")
        self._wallet.recount()
        return operation

    def finish_melt(
        self, operation: Operation, change: Coins, missing: int = 0
    ) -> asyncio.Future[None]:
        """The invoice is paid: book it and store the change. Idempotent.

        Args:
            missing: change that may still come, in the mint's unit.
        """

        def work(conn: sqlite3.Connection) -> None:
            if move(conn, operation.id, "done"):
                reference = f"op:{operation.id}"
                aside = _set_aside(operation)
                borne = self._book_melt(conn, operation, change, missing, aside, reference)
                transfer(conn, Book.TRANSIT, _source(operation), aside - borne, reference)

        return self._db.write(work)

    def salvage_melt(
        self, operation: Operation, change: Coins, missing: int = 0
    ) -> asyncio.Future[None]:
        """A payment that had failed here was made after all: book it. Idempotent.

        ``missing`` as for ``finish_melt``. What the account no longer has is the node's loss.
        """

        def work(conn: sqlite3.Connection) -> None:
            if not move(conn, operation.id, "salvaged", of="failed"):
                return
            most = _set_aside(operation)
            if operation.account_id != OPERATOR:
                most = Msat(min(most, read_balance(conn, operation.account_id).free))
            reference = f"late:{operation.id}"
            borne = self._book_melt(conn, operation, change, missing, most, reference)
            transfer(conn, _source(operation), Book.TRANSIT, borne, reference)

        return self._db.write(work)

    def _book_melt(
        self,
        conn: sqlite3.Connection,
        operation: Operation,
        change: Coins,
        missing: int,
        most: Msat,
        reference: str,
    ) -> Msat:
        """Book a payment that was made, out of TRANSIT; what its source has borne of it.

        Args:
            most: how much that may be; what goes beyond it, REVENUE bears.
        """
        conn.execute(
            "UPDATE proofs SET state = 'spent' WHERE state IN ('unspent', 'reserved')"
            " AND y IN (SELECT y FROM operation_inputs WHERE operation_id = ?)",
            (operation.id,),
        )
        store_coins(conn, operation, change, "unspent")
        spent = sum(p.amount for p in operation.inputs) - sum(p.amount for _, p in change)
        cost = to_msat(spent, operation.unit)
        borne = Msat(min(most, cost))
        value = min(borne, operation.value)
        sink = Book.PAYOUT if operation.account_id == OPERATOR else Book.OUT
        transfer(conn, Book.TRANSIT, sink, value, reference)
        transfer(conn, Book.TRANSIT, Book.REVENUE, borne - value, reference)
        transfer(conn, Book.REVENUE, Book.LOSS, operation.value - value, reference)
        transfer(conn, Book.REVENUE, Book.OWN_FEES, cost - operation.value, reference)
        conn.execute(
            "UPDATE payouts SET spent = ?, missing = ?, charged_msat = ?,"
            " paid_at = COALESCE(paid_at, ?) WHERE operation_id = ?",
            (spent, missing, borne, int(time.time()), operation.id),
        )
        self._wallet.recount()
        return borne

    def late_change(self, operation: Operation, coins: Coins) -> asyncio.Future[Msat]:
        """Store change of a payment that came after it was booked; what it is worth.

        Coins that are known already count for nothing, and so do coins that are worth more than
        what is missing. Idempotent.
        """

        def work(conn: sqlite3.Connection) -> Msat:
            new = [
                (y, proof)
                for y, proof in coins
                if conn.execute("SELECT 1 FROM proofs WHERE y = ?", (y,)).fetchone() is None
            ]
            row = conn.execute(
                "SELECT spent, missing, charged_msat FROM payouts WHERE operation_id = ?",
                (operation.id,),
            ).fetchone()
            came = sum(proof.amount for _, proof in new)
            if not 0 < came <= row["missing"]:
                return Msat(0)
            store_coins(conn, operation, new, "unspent")
            spent, charged = row["spent"] - came, row["charged_msat"]
            borne = min(charged, to_msat(spent, operation.unit))
            value = to_msat(came, operation.unit)
            reference = f"late:{operation.id}"
            transfer(conn, Book.OWN_FEES, Book.REVENUE, value, reference)
            if operation.account_id != OPERATOR:
                transfer(conn, Book.REVENUE, operation.account_id, charged - borne, reference)
            conn.execute(
                "UPDATE payouts SET spent = ?, missing = missing - ?, charged_msat = ?"
                " WHERE operation_id = ?",
                (spent, came, borne, operation.id),
            )
            return value

        return self._db.write(work)

    def fail_melt(self, operation: Operation, error: str) -> asyncio.Future[None]:
        """The invoice is not paid and our coins are unspent: undo the intent. Idempotent."""
        return self.write_off_melt(operation, (), error)

    def write_off_melt(
        self, operation: Operation, spent: Sequence[str], error: str
    ) -> asyncio.Future[None]:
        """The invoice is not paid, and somebody else has spent inputs (Y): undo. Idempotent."""

        def work(conn: sqlite3.Connection) -> None:
            if not move(conn, operation.id, "failed"):
                return
            set_error(conn, operation, error)
            reference = f"op:{operation.id}"
            aside = _set_aside(operation)
            transfer(conn, Book.TRANSIT, _source(operation), aside, reference)
            lost = 0
            for y in spent:
                row = conn.execute(
                    "UPDATE proofs SET state = 'spent' WHERE y = ? AND operation_id = ?"
                    " AND state = 'reserved' RETURNING amount",
                    (y, operation.id),
                ).fetchone()
                lost += 0 if row is None else row["amount"]
            transfer(conn, Book.REVENUE, Book.LOSS, to_msat(lost, operation.unit), reference)
            conn.execute(
                "UPDATE proofs SET state = 'unspent', suspect = 1"
                " WHERE operation_id = ? AND state = 'reserved'",
                (operation.id,),
            )
            self._wallet.recount()

        return self._db.write(work)

    # -- questions -------------------------------------------------------------------------

    async def note_paid(self, operation_id: str) -> int:
        """Unix time at which the mint was first seen to say PAID: now, if it is the first time."""

        def work(conn: sqlite3.Connection) -> int:
            row = conn.execute(
                "UPDATE payouts SET paid_at = COALESCE(paid_at, ?) WHERE operation_id = ?"
                " RETURNING paid_at",
                (int(time.time()), operation_id),
            ).fetchone()
            return int(row["paid_at"])

        return await self._db.write(work)

    async def melt(self, operation_id: str) -> Melt:
        """What is known of a payment beside its operation."""
        row = await self._db.read(
            lambda conn: conn.execute(
                "SELECT expires_at, paid_at, missing FROM payouts WHERE operation_id = ?",
                (operation_id,),
            ).fetchone()
        )
        return Melt(row["expires_at"], row["paid_at"], row["missing"])

    async def missing_change(self, since_s: int) -> list[Operation]:
        """Payments made in the last ``since_s`` seconds whose change is not all there."""
        rows = await self._db.read(
            lambda conn: conn.execute(
                "SELECT o.* FROM payouts p JOIN operations o ON o.id = p.operation_id"
                " WHERE p.missing > 0 AND p.paid_at >= ? AND o.state IN ('done', 'salvaged')",
                (int(time.time()) - since_s,),
            ).fetchall()
        )
        return [operation_from(row) for row in rows]

    async def payable(self, source: Source, account_id: int = OPERATOR) -> Payable:
        """What could be paid with one mint's coins.

        Out of earnings: earned, and owed to nobody of that mint. Out of an account: what is free.
        """

        def work(conn: sqlite3.Connection) -> Payable:
            coins = stock(conn, source.mint, source.unit)
            if account_id == OPERATOR:
                most = min(available(conn), unowed(conn, source))
            else:
                balance = read_balance(conn, account_id)
                own = (balance.mint, balance.unit) == (source.mint, source.unit)
                room: Msat | None
                if own:
                    room = share(conn, account_id, source.mint, source.unit)
                else:
                    room = spare(conn, source.mint, source.unit)
                most = min(balance.free, worth(coins, source.unit) if room is None else room)
            free = Msat(max(0, most))
            amount = free // to_msat(1, source.unit)
            found = cover(conn, source, amount, coins)
            fee = _fee_of_all(source, coins) if found is None else found.fee
            return Payable(source.mint, source.unit, free, to_msat(fee, source.unit))

        return await self._db.read(work)


def _check_order(conn: sqlite3.Connection, request: MeltRequest) -> None:
    """Whether this payment may begin, as far as others go. Raises Pending, InvalidValue."""
    if conn.execute(
        "SELECT 1 FROM operations WHERE kind = 'melt' AND state = 'intent' AND account_id = ?",
        (request.account_id,),
    ).fetchone():
        raise Pending("a payout is under way", retry_after_s=30)
    if conn.execute(
        "SELECT 1 FROM payouts p JOIN operations o ON o.id = p.operation_id"
        " WHERE p.payment_hash = ? AND (o.state <> 'failed' OR o.attempts > 0)",
        (request.payment_hash,),
    ).fetchone():
        raise InvalidValue("this invoice was paid, or may have been; make another one")
    if request.account_id == OPERATOR:
        return
    now = int(time.time())
    expires_at = read_terms(conn, request.account_id).expires_at
    if not request.by_owner and (expires_at is None or expires_at > now):
        raise InvalidValue("this key has not expired")
    # What was given up on may be paid as long as its invoice is good: never two at a time.
    good_until = conn.execute(
        "SELECT MAX(p.expires_at) FROM operations o JOIN payouts p ON p.operation_id = o.id"
        " WHERE o.account_id = ? AND o.kind = 'melt' AND o.state = 'failed' AND o.attempts > 0",
        (request.account_id,),
    ).fetchone()[0]
    if good_until is not None and good_until > now:
        raise Pending("an earlier payment may still be made", retry_after_s=good_until - now)


def _source(operation: Operation) -> int:
    """The book that the money comes from."""
    return purse_of(operation.account_id)


def _set_aside(operation: Operation) -> Msat:
    """What a melt under way may cost at most."""
    return to_msat(operation.amount + operation.fee, operation.unit)


def _fee_of_all(source: Source, coins: dict[int, int]) -> int:
    """The most that the mint can take for spending all coins in stock."""
    return ceil_div(max(source.fee_ppk.values(), default=0) * sum(coins.values()), 1000)


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
