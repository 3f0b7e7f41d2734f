"""What is free for the operator to take: earned, covered by coins, and owed to nobody.

A withdrawal is a ``send`` of account OPERATOR with a request key; it is booked like a payout, from
REVENUE instead of an account and to PAYOUT instead of OUT (``node.ledger.issuing``):

    begin, exact   REVENUE → PAYOUT, coins issued, the token in the outbox, done
    begin, swap    REVENUE → TRANSIT (value and the mint's fee), coins reserved, counters, intent
    finish         TRANSIT → PAYOUT, TRANSIT → REVENUE → OWN_FEES, token, done
    fail           TRANSIT → REVENUE, coins suspect and free; its key may be used again
"""

from __future__ import annotations

import sqlite3

from node.core.accounts import Source
from node.core.lightning import OPERATOR
from node.core.money import Msat, to_msat
from node.ledger.books import Book, sum_books
from node.ledger.coins import stock, worth


def available(conn: sqlite3.Connection) -> int:
    """What is the node's own by the books, and by the coins: the lesser, in msat.

    Without the fees of the swaps under way, which are booked when those end.
    """
    books = sum_books(conn, checkpointed=True)
    fees = conn.execute(
        "SELECT unit, SUM(fee - surcharge) AS total FROM operations"
        " WHERE state = 'intent' AND kind = 'send' GROUP BY unit"
    )
    coming = sum(to_msat(row["total"], row["unit"]) for row in fees)
    return min(books.earned_msat, books.equity_msat) - coming


def unowed(conn: sqlite3.Connection, source: Source) -> Msat:
    """What our coins of a mint and unit are worth beyond what is owed to those who paid there."""
    held = worth(stock(conn, source.mint, source.unit), source.unit)
    owed = conn.execute(
        "SELECT COALESCE(SUM(balance_msat), 0) FROM accounts WHERE mint = ?", (source.mint,)
    ).fetchone()[0]
    return Msat(held - owed)


def purse_of(account_id: int) -> int:
    """The book that a token for the account is paid from."""
    return Book.REVENUE if account_id == OPERATOR else account_id


def sink_of(account_id: int) -> Book:
    """The book of the tokens that were given to the account."""
    return Book.PAYOUT if account_id == OPERATOR else Book.OUT
