"""The wallet's half of the database: coins, keysets, counters, and the journal.

    receive     begin ──▶ intent ──▶ done        coins stored and the account credited, at once
                            └──────▶ failed      nothing was ours; the coins may be offered again
                                       └───────▶ done      ... but it landed late: credited now

    send        begin ──▶ done                   the inventory had the coins: no mint needed
                  └─────▶ intent ──▶ done        after a swap
                            └──────▶ failed      money and coins (suspect) are back
                                       └───────▶ salvaged  ... but it landed late: coins ours

    refill      begin ──▶ intent ──▶ …           as a send after a swap; no account, no token

    withdrawal  begin ──▶ …                      a send out of earnings (node/ledger/withdrawals.py)

| step                | in one transaction                                                      |
|---------------------|-------------------------------------------------------------------------|
| begin receive       | account, its key hashes, claim on every coin, counters, intent          |
| finish receive      | our new coins, IN → account and IN → INPUT_FEES, done                   |
| begin send, exact   | account → OUT, coins issued, the token in the outbox, done              |
| begin send, swap    | account → TRANSIT, coins reserved, counters, intent                     |
| finish send         | inputs spent, new coins, TRANSIT → OUT, REVENUE → OWN_FEES, token, done |
| begin refill        | coins reserved, counters, intent: a send of the operator's to ourselves |
| finish refill       | inputs spent, new coins, REVENUE → OWN_FEES, done                       |
| fail                | claims or reservations freed, TRANSIT → account                         |
| salvage             | the coins of a swap that landed after it had failed here                |

The outbox is the ``token`` of a send: stored before anything is sent, so that asking again
under the same request key gives the same token.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import replace

from node.core.accounts import Closed, IssueRequest, NewAccount, Operation, Source
from node.core.denominations import plan_outputs
from node.core.ecash import Keyset, Proof, Token
from node.core.lightning import OPERATOR
from node.core.money import Msat, to_msat
from node.core.usage import Usage
from node.errors import MintFull, NodeError, Pending
from node.ledger.accounts import read_balance, release_hold, settle_hold
from node.ledger.books import Book, transfer
from node.ledger.coins import (
    exposure,
    stock,
    store_coins,
    with_counters,
)
from node.ledger.counters import disown, give_back, skip
from node.ledger.database import Database
from node.ledger.issuing import Issuer, Serialize, in_transit, is_refill
from node.ledger.journal import Journal
from node.ledger.operations import (
    calls_under_way,
    claimed,
    insert_operation,
    load_operation,
    move,
    open_account,
)
from node.ledger.reconciling import write_off
from node.ledger.withdrawals import purse_of, sink_of


class SqliteWalletStore(Journal):
    """Implements ``node.ports.WalletStore``."""

    def __init__(self, database: Database, serialize: Serialize) -> None:
        super().__init__(database)
        self._serialize = serialize
        self._issuer = Issuer(serialize)

    def recount(self) -> None:
        """The node's earnings were spent: count them anew. Call inside the transaction."""
        self._issuer.recount()

    # -- receive ---------------------------------------------------------------------------

    def begin_receive(
        self,
        operation_id: str,
        token: Token,
        ys: Sequence[str],
        fee: int,
        keyset: Keyset,
        into: NewAccount | int,
        *,
        max_balance: Msat | None = None,
        barred: NodeError | None = None,
    ) -> asyncio.Future[Operation]:
        """Claim the token's coins for an account and journal the swap.

        Args:
            operation_id: of the new operation; another id comes back when one exists.
            ys: NUT-00 Y of each proof, in order.
            fee: the mint's input fee, in its unit; below the token's amount.
            keyset: the active keyset of our outputs.
            into: an account's id, or the account to open.
            max_balance: most that our coins of the mint may be worth with the token's.
            barred: why nothing new may begin at the mint; raised unless this has begun before.

        The same token for the same purpose gives the operation that exists. Raises
        TokenAlreadySpent when a coin was offered before for anything else, InvalidValue when a
        key for the new account is taken, MintFull, ``barred``.
        """

        def work(conn: sqlite3.Connection) -> Operation:
            known = claimed(conn, token, ys, into)
            if known is not None:
                return known
            if barred is not None:
                raise barred
            if max_balance is not None and (
                exposure(conn, token.mint) + to_msat(token.amount - fee, token.unit) > max_balance
            ):
                raise MintFull
            account_id = (
                into if isinstance(into, int) else open_account(conn, into, token.mint, token.unit)
            )
            # What the mint makes for nothing can be made when there is time for it.
            calls = None if keyset.input_fee_ppk else calls_under_way(conn)
            held = stock(conn, token.mint, token.unit)
            amounts = plan_outputs(token.amount - fee, held, calls)
            operation = Operation(
                id=operation_id,
                kind="receive",
                state="intent",
                account_id=account_id,
                mint=token.mint,
                unit=token.unit,
                amount=token.amount,
                fee=fee,
                inputs=token.proofs,
                outputs=with_counters(conn, keyset.id, [(amount, True) for amount in amounts]),
            )
            insert_operation(conn, operation, ys, None)
            return operation

        return self._db.write(work)

    def finish_receive(
        self, operation: Operation, coins: Sequence[tuple[str, Proof]]
    ) -> asyncio.Future[Operation]:
        """Store our new coins (Y, proof) and credit the account. Idempotent."""

        def work(conn: sqlite3.Connection) -> Operation:
            if not move(conn, operation.id, "done"):
                return load_operation(conn, operation.id)
            _book_receive(conn, operation, coins)
            return replace(operation, state="done")

        return self._db.write(work)

    # -- send ------------------------------------------------------------------------------

    def begin_send(
        self, request: IssueRequest, sources: Sequence[Source]
    ) -> asyncio.Future[Operation]:
        """Issue a token from the first source that can; done at once, or an intent to swap.

        Raises InsufficientBalance, MintLiquidity, IdempotencyConflict (same request key, other
        amount).
        """
        return self._db.write(lambda conn: self._issuer.issue(conn, request, sources))

    def begin_refill(self, operation_id: str, source: Source) -> asyncio.Future[Operation | None]:
        """Begin to swap large coins for the small ones that change needs; None: no need to, or
        it cannot be done."""
        return self._db.write(lambda conn: self._issuer.refill(conn, operation_id, source))

    def finish_send(
        self,
        operation: Operation,
        kept: Sequence[tuple[str, Proof]],
        issued: Sequence[tuple[str, Proof]],
    ) -> asyncio.Future[Operation]:
        """The swap went through: put the token into the outbox. Idempotent."""

        def work(conn: sqlite3.Connection) -> Operation:
            if move(conn, operation.id, "done"):
                conn.execute(
                    "UPDATE proofs SET state = 'spent' WHERE operation_id = ?"
                    " AND state = 'reserved'",
                    (operation.id,),
                )
                store_coins(conn, operation, kept, "unspent")
                store_coins(conn, operation, issued, "issued")
                reference = f"op:{operation.id}"
                fee = to_msat(operation.fee, operation.unit)
                if is_refill(operation):
                    transfer(conn, Book.REVENUE, Book.OWN_FEES, fee, reference)
                    return load_operation(conn, operation.id)
                token = self._serialize(
                    operation.mint, operation.unit, [proof for _, proof in issued]
                )
                conn.execute("UPDATE operations SET token = ? WHERE id = ?", (token, operation.id))
                surcharge = to_msat(operation.surcharge, operation.unit)
                sink = sink_of(operation.account_id)
                transfer(conn, Book.TRANSIT, sink, operation.value, reference)
                transfer(conn, Book.TRANSIT, Book.REVENUE, surcharge, reference)
                transfer(conn, Book.REVENUE, Book.OWN_FEES, fee, reference)
            return load_operation(conn, operation.id)

        return self._db.write(work)

    def settle_and_close(
        self,
        operation_id: str,
        hold_id: int,
        cost: Msat,
        usage: Usage | None,
        sources: Sequence[Source],
    ) -> asyncio.Future[Closed]:
        """End a pay-per-request account: charge, issue its change, book the dust; one commit.

        ``usage`` None releases the hold instead of settling it. ``operation_id`` is the
        change's, should there be any.
        """

        def work(conn: sqlite3.Connection) -> Closed:
            account_id = conn.execute(
                "SELECT account_id FROM holds WHERE id = ?", (hold_id,)
            ).fetchone()["account_id"]
            charged = Msat(0)
            if usage is None:
                release_hold(conn, hold_id)
            else:
                charged = settle_hold(conn, hold_id, cost, usage)
            return self._issuer.close(conn, operation_id, account_id, charged, sources)

        return self._db.insist(work)

    def close_idle(
        self, operation_id: str, account_id: int, sources: Sequence[Source]
    ) -> asyncio.Future[Closed]:
        """Issue what an unused pay-per-request account holds. Raises Pending while it is used."""

        def work(conn: sqlite3.Connection) -> Closed:
            if read_balance(conn, account_id).held:
                raise Pending("this request is being answered now", retry_after_s=2)
            return self._issuer.close(conn, operation_id, account_id, Msat(0), sources)

        return self._db.write(work)

    # -- both ------------------------------------------------------------------------------

    def fail(
        self, operation: Operation, error: str, *, unused: bool = False, used: bool = False
    ) -> asyncio.Future[None]:
        """The mint refused and nothing moved: undo the intent. Idempotent.

        Args:
            error: code of the error the client is told.
            unused: the mint can never sign the outputs. Then their counters are free again:
                gaps make coins hard to find from the seed.
            used: the mint had signed outputs before. Then the coins are looked for.
        """

        def work(conn: sqlite3.Connection) -> None:
            if not move(conn, operation.id, "failed"):
                return
            if unused and operation.outputs:
                give_back(conn, operation)
            if used:
                disown(conn, operation, int(time.time()))
            conn.execute(
                "UPDATE operations SET error = ?, request_key = NULL WHERE id = ?",
                (error, operation.id),
            )
            if operation.kind == "receive":
                return
            conn.execute(
                "UPDATE proofs SET state = 'unspent', suspect = 1"
                " WHERE operation_id = ? AND state = 'reserved'",
                (operation.id,),
            )
            reference = f"op:{operation.id}"
            back = in_transit(operation)
            transfer(conn, Book.TRANSIT, purse_of(operation.account_id), back, reference)
            if operation.account_id != OPERATOR:
                conn.execute(
                    "UPDATE accounts SET state = 'open' WHERE id = ?", (operation.account_id,)
                )

        return self._db.write(work)

    def write_off(
        self, operation: Operation, spent: Sequence[str], error: str
    ) -> asyncio.Future[None]:
        """Somebody else has spent inputs (Y) of a send: book the loss, undo it. Idempotent."""

        def work(conn: sqlite3.Connection) -> None:
            write_off(conn, operation, spent, error)
            self._issuer.recount()

        return self._db.write(work)

    def salvage(
        self, operation: Operation, coins: Sequence[tuple[str, Proof]]
    ) -> asyncio.Future[None]:
        """A failed operation landed at the mint after all: book what came of it. Idempotent.

        A receive credits its account. A send gave the money back when it failed, so all its
        coins are ours.
        """

        def work(conn: sqlite3.Connection) -> None:
            if operation.kind == "receive":
                if move(conn, operation.id, "done", of="failed"):
                    _book_receive(conn, operation, coins)
                return
            if not move(conn, operation.id, "salvaged", of="failed"):
                return
            conn.execute(
                "UPDATE proofs SET state = 'spent' WHERE state IN ('unspent', 'reserved')"
                " AND y IN (SELECT y FROM operation_inputs WHERE operation_id = ?)",
                (operation.id,),
            )
            store_coins(conn, operation, coins, "unspent")
            fee = to_msat(operation.fee, operation.unit)
            transfer(conn, Book.REVENUE, Book.OWN_FEES, fee, f"op:{operation.id}")

        return self._db.write(work)

    async def skip_counters(self, mint: str, keyset_id: str, to: int) -> None:
        """The mint has signed counters that this database has not used: use none below ``to``.

        What was signed there is looked for; see ``node.ecash.reconcile``.
        """
        await self._db.write(lambda conn: skip(conn, mint, keyset_id, to, int(time.time())))

    async def note_attempt(self, operation_id: str) -> None:
        """A request of the operation may have reached the mint and no answer came."""
        await self._db.write(
            lambda conn: conn.execute(
                "UPDATE operations SET attempts = attempts + 1, unknown_at = ? WHERE id = ?",
                (int(time.time()), operation_id),
            )
        )

    def mark_delivered(self, operation_id: str) -> asyncio.Future[None]:
        """An answer with the operation's token was handed to a carriage."""

        def work(conn: sqlite3.Connection) -> None:
            conn.execute("UPDATE operations SET delivered = 1 WHERE id = ?", (operation_id,))

        return self._db.write(work)


def _book_receive(
    conn: sqlite3.Connection, operation: Operation, coins: Sequence[tuple[str, Proof]]
) -> None:
    store_coins(conn, operation, coins, "unspent")
    reference = f"op:{operation.id}"
    fee = to_msat(operation.fee, operation.unit)
    transfer(conn, Book.IN, Book.INPUT_FEES, fee, reference)
    into = Book.CAPITAL if operation.account_id == OPERATOR else operation.account_id
    transfer(conn, Book.IN, into, operation.credit, reference)
