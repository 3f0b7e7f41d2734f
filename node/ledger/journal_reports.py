"""What the operator is shown of the journal: crossings under way, and earnings taken out.

Reports as in ``node.ledger.reports``; never inputs, outputs or tokens.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from node.core.lightning import OPERATOR
from node.core.money import Msat, to_msat
from node.ledger.reports import Cursor, one_of


@dataclass(frozen=True, slots=True)
class OpenOperation:
    """A crossing to a mint that is not finished."""

    id: str
    kind: str
    mint: str
    unit: str
    amount: int
    state: str
    attempts: int
    created_at: int
    error: str | None
    account_id: int | None
    """None: the node's own."""

    @property
    def amount_msat(self) -> Msat:
        return to_msat(self.amount, self.unit)


def open_operations(connection: sqlite3.Connection, limit: int) -> tuple[list[OpenOperation], int]:
    """(the oldest ``limit`` that are not finished, how many there are)."""
    rows = connection.execute(
        "SELECT id, kind, mint, unit, amount, state, attempts, created_at, error, account_id"
        " FROM operations WHERE state = 'intent' ORDER BY created_at, id LIMIT ?",
        (limit,),
    )
    found = [
        OpenOperation(**{**dict(row), "account_id": row["account_id"] or None}) for row in rows
    ]
    count = connection.execute("SELECT COUNT(*) FROM operations WHERE state = 'intent'").fetchone()[
        0
    ]
    return found, int(count)


@dataclass(frozen=True, slots=True)
class PaymentRow:
    """Earnings that went to the operator, or are on their way."""

    id: str
    state: str
    """intent, done, failed or salvaged."""
    amount_msat: int
    fee_msat: int | None
    """What it cost on top; None: not known yet."""
    mint: str
    created_at: int
    idempotency_key: str | None = None
    """Of a withdrawal: asking with it again gives its token."""
    destination: str | None = None
    """Of a payout."""
    error: str | None = None


def withdrawals(
    connection: sqlite3.Connection, cursor: Cursor | None, limit: int
) -> tuple[list[PaymentRow], Cursor | None]:
    """Tokens made for the operator, the newest first, without the tokens.

    Raises ValueError for a cursor of something else.
    """
    rows = connection.execute(
        "SELECT rowid AS position, id, state, amount, fee, unit, mint, created_at, request_key"
        " FROM operations WHERE account_id = ? AND kind = 'send' AND request_key IS NOT NULL"
        " AND rowid < ? ORDER BY rowid DESC LIMIT ?",
        (OPERATOR, one_of(cursor), limit + 1),
    ).fetchall()
    found = [
        PaymentRow(
            id=row["id"],
            state=row["state"],
            amount_msat=to_msat(row["amount"], row["unit"]),
            fee_msat=to_msat(row["fee"], row["unit"]),
            mint=row["mint"],
            created_at=row["created_at"],
            idempotency_key=row["request_key"],
        )
        for row in rows[:limit]
    ]
    return found, (rows[limit - 1]["position"],) if len(rows) > limit else None


def withdrawal_known(connection: sqlite3.Connection, key: str) -> bool:
    """Whether a token was begun under that key, and has not failed."""
    row = connection.execute(
        "SELECT 1 FROM operations WHERE account_id = ? AND kind = 'send' AND request_key = ?",
        (OPERATOR, key),
    ).fetchone()
    return row is not None


_PAYOUTS = """
SELECT o.rowid AS position, o.id, o.state, o.amount, o.unit, o.mint, o.created_at, o.error,
       p.destination, p.spent
FROM operations o JOIN payouts p ON p.operation_id = o.id
WHERE o.account_id = ? AND o.kind = 'melt' AND o.rowid < ? ORDER BY o.rowid DESC LIMIT ?
"""


def payouts(
    connection: sqlite3.Connection, cursor: Cursor | None, limit: int
) -> tuple[list[PaymentRow], Cursor | None]:
    """What was paid to the operator over Lightning, the newest first.

    Raises ValueError for a cursor of something else.
    """
    rows = connection.execute(_PAYOUTS, (OPERATOR, one_of(cursor), limit + 1)).fetchall()
    found = [_payout(row) for row in rows[:limit]]
    return found, (rows[limit - 1]["position"],) if len(rows) > limit else None


def payout(connection: sqlite3.Connection, operation_id: str) -> PaymentRow | None:
    """One of them."""
    row = connection.execute(
        "SELECT o.id, o.state, o.amount, o.unit, o.mint, o.created_at, o.error, p.destination,"
        " p.spent FROM operations o JOIN payouts p ON p.operation_id = o.id WHERE o.id = ?",
        (operation_id,),
    ).fetchone()
    return None if row is None else _payout(row)


def _payout(row: sqlite3.Row) -> PaymentRow:
    paid = row["state"] in ("done", "salvaged")
    return PaymentRow(
        id=row["id"],
        state=row["state"],
        amount_msat=to_msat(row["amount"], row["unit"]),
        fee_msat=to_msat(row["spent"] - row["amount"], row["unit"]) if paid else None,
        mint=row["mint"],
        created_at=row["created_at"],
        destination=row["destination"],
        error=row["error"],
    )


def open_payout(connection: sqlite3.Connection) -> str | None:
    """The payout to the operator that is under way."""
    row = connection.execute(
        "SELECT id FROM operations WHERE state = 'intent' AND kind = 'melt' AND account_id = ?",
        (OPERATOR,),
    ).fetchone()
    return None if row is None else str(row["id"])
