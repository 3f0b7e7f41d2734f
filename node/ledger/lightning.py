"""Lightning's half of the database: invoices and mint operations; payouts are in ``payouts``.

    mint      invoice pending ──▶ intent ──▶ done        coins stored, IN → account, invoice paid
                                    └──────▶ failed      the invoice is taken up anew
                                               └───────▶ done       ... it landed late: credited now

| step          | in one transaction                                                           |
|---------------|------------------------------------------------------------------------------|
| open invoice  | the account (new: with its key's hash, unfunded), the invoice                |
| begin mint    | counters, intent, its name on the invoice                                    |
| finish mint   | our new coins, IN → account, invoice paid, done                              |
| fail mint     | the invoice forgets the operation                                            |
| forget        | an invoice nobody paid, with the account it would have opened                |
| after restore | its ecash was taken in a past that was forgotten: node/ledger/claims.py      |
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence

from node.core.accounts import NewAccount, Operation
from node.core.denominations import plan_outputs
from node.core.ecash import Keyset, Proof
from node.core.lightning import Invoice, NewInvoice, Room
from node.core.money import Msat, to_msat
from node.errors import MintFull, RateLimitExceeded
from node.ledger.books import Book, transfer
from node.ledger.claims import credit_invoice
from node.ledger.coins import exposure, stock, store_coins, with_counters
from node.ledger.counters import disown
from node.ledger.operations import (
    insert_operation,
    load_operation,
    move,
    open_account,
    operation_from,
    set_error,
)
from node.ledger.payouts import SqlitePayoutStore

BUSY_RETRY_S = 60
"""What a client is told to wait when it has too many open invoices."""


class SqliteLightningStore(SqlitePayoutStore):
    """Implements ``node.ports.LightningStore``; arguments as for ``SqlitePayoutStore``."""

    # -- invoices --------------------------------------------------------------------------

    async def check_room(self, peer: str, room: Room) -> None:
        """Raise RateLimitExceeded when there are as many unpaid invoices as may be."""
        await self._db.read(lambda conn: _check_room(conn, peer, room))

    def open_invoice(
        self, new: NewInvoice, into: NewAccount | int, room: Room
    ) -> asyncio.Future[Invoice]:
        """Store an invoice, and the account that it is to open; the one that has its hash already.

        Args:
            into: the account it tops up, or the one that it opens.
            room: how many there may be.

        Raises RateLimitExceeded, MintFull when its payment, and those of the other unpaid
        invoices, were more than may be held of the mint.
        """

        def work(conn: sqlite3.Connection) -> Invoice:
            known = conn.execute("SELECT * FROM invoices WHERE hash = ?", (new.hash,)).fetchone()
            if known is not None:
                return _invoice(known)
            _check_room(conn, new.peer, room)
            if new.max_balance is not None and (
                _promised(conn, new.mint) + to_msat(new.amount, new.unit) > new.max_balance
            ):
                raise MintFull("this node holds as much money as it wants to; ask for less")
            account_id = (
                into if isinstance(into, int) else open_account(conn, into, new.mint, new.unit)
            )
            conn.execute(
                "INSERT INTO invoices (hash, account_id, purpose, mint, unit, amount, quote,"
                " bolt11, peer, state, created_at, expires_at, watch_until)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'pending', ?, ?, ?)",
                (
                    new.hash,
                    account_id,
                    new.purpose,
                    new.mint,
                    new.unit,
                    new.amount,
                    new.quote,
                    new.bolt11,
                    new.peer,
                    int(time.time()),
                    new.expires_at,
                    new.watch_until,
                ),
            )
            return _load(conn, new.hash)

        return self._db.write(work)

    async def invoice(self, hashed: str) -> Invoice | None:
        """The invoice whose id has that hash."""
        row = await self._db.read(
            lambda conn: conn.execute("SELECT * FROM invoices WHERE hash = ?", (hashed,)).fetchone()
        )
        return None if row is None else _invoice(row)

    async def pending_invoices(self) -> list[Invoice]:
        """Every invoice that is still watched, oldest first."""
        rows = await self._db.read(
            lambda conn: conn.execute(
                "SELECT * FROM invoices WHERE state = 'pending' ORDER BY created_at"
            ).fetchall()
        )
        return [_invoice(row) for row in rows]

    def forget(self, hashed: str) -> asyncio.Future[None]:
        """Delete an invoice that was never paid, and the account it would have opened."""

        def work(conn: sqlite3.Connection) -> None:
            row = conn.execute(
                "SELECT * FROM invoices i WHERE hash = ? AND state = 'pending'"
                " AND operation_id IS NULL AND NOT EXISTS (SELECT 1 FROM operations o"
                " WHERE o.kind = 'mint' AND o.quote = i.quote AND o.state <> 'failed')",
                (hashed,),
            ).fetchone()
            if row is None:
                return
            conn.execute("DELETE FROM invoices WHERE hash = ?", (hashed,))
            if row["purpose"] == "create":
                _delete_unused(conn, row["account_id"])

        return self._db.write(work)

    async def exposure(self, mint: str) -> Msat:
        """What we would lose with a mint once its unpaid invoices were paid."""
        return await self._db.read(lambda conn: _promised(conn, mint))

    # -- mint ------------------------------------------------------------------------------

    def begin_mint(
        self, operation_id: str, hashed: str, keyset: Keyset
    ) -> asyncio.Future[Operation | None]:
        """Journal taking a paid invoice's ecash; the operation that exists, if one does.

        None when the invoice is gone.
        """

        def work(conn: sqlite3.Connection) -> Operation | None:
            row = conn.execute("SELECT * FROM invoices WHERE hash = ?", (hashed,)).fetchone()
            if row is None:
                return None
            invoice = _invoice(row)
            if invoice.operation_id is not None:
                return load_operation(conn, invoice.operation_id)
            amounts = plan_outputs(invoice.amount, stock(conn, invoice.mint, invoice.unit))
            operation = Operation(
                id=operation_id,
                kind="mint",
                state="intent",
                account_id=invoice.account_id,
                mint=invoice.mint,
                unit=invoice.unit,
                amount=invoice.amount,
                fee=0,
                inputs=(),
                outputs=with_counters(conn, keyset.id, [(amount, True) for amount in amounts]),
                quote=invoice.quote,
            )
            insert_operation(conn, operation, [], None)
            conn.execute(
                "UPDATE invoices SET operation_id = ? WHERE hash = ?", (operation_id, hashed)
            )
            return operation

        return self._db.write(work)

    def finish_mint(
        self, operation: Operation, coins: Sequence[tuple[str, Proof]], *, of: str = "intent"
    ) -> asyncio.Future[None]:
        """Store the coins and credit the account. Idempotent.

        Args:
            of: ``failed`` for an operation that landed after it had been given up.
        """

        def work(conn: sqlite3.Connection) -> None:
            if not move(conn, operation.id, "done", of=of):
                return
            store_coins(conn, operation, coins, "unspent")
            transfer(conn, Book.IN, operation.account_id, operation.value, f"op:{operation.id}")
            conn.execute(
                "UPDATE invoices SET state = 'paid', paid_at = ?, operation_id = ?, peer = ''"
                " WHERE mint = ? AND quote = ?",
                (int(time.time()), operation.id, operation.mint, operation.quote),
            )

        return self._db.write(work)

    def fail_mint(
        self, operation: Operation, error: str, *, used: bool = False
    ) -> asyncio.Future[None]:
        """Nothing came of it: the invoice may be taken up anew. Idempotent.

        Args:
            used: the mint had signed outputs before; then the coins are looked for.
        """

        def work(conn: sqlite3.Connection) -> None:
            if move(conn, operation.id, "failed"):
                if used:
                    disown(conn, operation, int(time.time()))
                set_error(conn, operation, error)
                conn.execute(
                    "UPDATE invoices SET operation_id = NULL"
                    " WHERE operation_id = ? AND state = 'pending'",
                    (operation.id,),
                )

        return self._db.write(work)

    async def ended_mints(self, mint: str, quote: str) -> list[Operation]:
        """Operations over a quote that are under way no more: failed, or done since."""
        rows = await self._db.read(
            lambda conn: conn.execute(
                "SELECT * FROM operations WHERE kind = 'mint' AND state <> 'intent'"
                " AND mint = ? AND quote = ?",
                (mint, quote),
            ).fetchall()
        )
        return [operation_from(row) for row in rows]

    def credit_restored(
        self, mint: str, quote: str, operation: Operation | None, error: str
    ) -> asyncio.Future[bool]:
        """Credit an invoice whose ecash we took before the database was restored from a backup.

        Whether it is paid. Arguments as for ``node.ledger.claims.credit_invoice``.
        """
        operation_id = None if operation is None else operation.id

        def work(conn: sqlite3.Connection) -> bool:
            self._wallet.recount()
            return credit_invoice(conn, mint, quote, operation_id, error)

        return self._db.write(work)


def _promised(conn: sqlite3.Connection, mint: str) -> Msat:
    """What we would lose with a mint once its unpaid invoices were paid: nobody can refuse that."""
    rows = conn.execute(
        "SELECT unit, SUM(amount) AS total FROM invoices WHERE mint = ? AND state = 'pending'"
        " AND operation_id IS NULL AND expires_at > ? GROUP BY unit",
        (mint, int(time.time())),
    ).fetchall()
    unpaid = sum(to_msat(row["total"], row["unit"]) for row in rows)
    return Msat(exposure(conn, mint) + unpaid)


def _check_room(conn: sqlite3.Connection, peer: str, room: Room) -> None:
    row = conn.execute(
        "SELECT COUNT(*) AS n, COALESCE(SUM(peer = ?), 0) AS own FROM invoices"
        " WHERE state = 'pending' AND operation_id IS NULL AND created_at > ?",
        (peer, int(time.time()) - room.within_s),
    ).fetchone()
    if row["own"] >= room.most_of_peer or row["n"] >= room.most:
        raise RateLimitExceeded(
            "too many unpaid invoices; pay one or wait until it expires",
            retry_after_s=BUSY_RETRY_S,
        )


def _delete_unused(conn: sqlite3.Connection, account_id: int) -> None:
    used = conn.execute(
        "SELECT EXISTS (SELECT 1 FROM transfers WHERE destination = ?1)"
        " OR EXISTS (SELECT 1 FROM operations WHERE account_id = ?1)"
        " OR EXISTS (SELECT 1 FROM invoices WHERE account_id = ?1)",
        (account_id,),
    ).fetchone()[0]
    if not used:
        conn.execute("DELETE FROM api_keys WHERE account_id = ?", (account_id,))
        conn.execute("DELETE FROM accounts WHERE id = ?", (account_id,))


def _load(conn: sqlite3.Connection, hashed: str) -> Invoice:
    return _invoice(conn.execute("SELECT * FROM invoices WHERE hash = ?", (hashed,)).fetchone())


def _invoice(row: sqlite3.Row) -> Invoice:
    return Invoice(**{name: row[name] for name in Invoice.__dataclass_fields__})
