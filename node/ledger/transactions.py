"""Statements of accounts, read from the books, the journal and the holds.

    pending   coins under way to the account (intents) and running requests (holds)
    done      every transfer of the account, the newest first

A line that is settled between two pages moves to the head of what is done: a client that reads
from the top sees every line at least once, and knows it by its id. Each page is two bounded
queries over indexes, whatever the account's history.
"""

from __future__ import annotations

import sqlite3
from typing import cast

from node.core.money import Msat, to_msat
from node.core.transactions import Page, Position, Transaction
from node.ledger.database import Database

_LAST = 1 << 62
"""Above every row id and every time."""

_PENDING = """
SELECT * FROM (
  SELECT created_at, rowid * 2 AS position, 'operation' AS what, id, kind, mint, unit, amount, fee,
         NULL AS request_id, NULL AS model
  FROM operations
  WHERE account_id = :account AND state = 'intent' AND kind NOT IN ('send', 'melt')
    AND (created_at, rowid * 2) < (:moment, :id)
  ORDER BY created_at DESC, rowid DESC LIMIT :limit)
UNION ALL SELECT * FROM (
  SELECT created_at, id * 2 + 1, 'hold', id, '', '', 'msat', max_cost_msat, 0, request_id, model
  FROM holds
  WHERE account_id = :account AND state = 'held' AND (created_at, id * 2 + 1) < (:moment, :id)
  ORDER BY created_at DESC, id DESC LIMIT :limit)
ORDER BY created_at DESC, position DESC LIMIT :limit
"""

_DONE = """
SELECT t.*, o.id AS operation_id, o.kind, o.state, o.mint, o.token, o.delivered,
       h.id AS hold_id, h.request_id, h.model, h.prompt_tokens, h.completion_tokens,
       a.kind AS account_kind
FROM (
  SELECT * FROM (SELECT * FROM transfers WHERE source = :account AND id < :id
                 ORDER BY id DESC LIMIT :limit)
  UNION ALL
  SELECT * FROM (SELECT * FROM transfers WHERE destination = :account AND id < :id
                 ORDER BY id DESC LIMIT :limit)
  ORDER BY id DESC LIMIT :limit) t
JOIN accounts a ON a.id = :account
LEFT JOIN operations o
  ON o.id = CASE WHEN t.reference LIKE 'op:%' THEN substr(t.reference, 4) END
LEFT JOIN holds h
  ON h.id = CASE WHEN t.reference LIKE 'hold:%' THEN CAST(substr(t.reference, 6) AS INTEGER) END
ORDER BY t.id DESC
"""


class SqliteStatements:
    """Implements ``node.ports.Statements``."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def page(self, account_id: int, after: Position | None, limit: int) -> Page:
        """At most ``limit`` (1 or more) lines of the account's statement, those after ``after``.

        Tokens of withdrawals are in it: they are for whom may withdraw only.
        """
        return await self._db.read(lambda conn: read_page(conn, account_id, after, limit))

    async def paid_for(self, account_id: int, request_id: str) -> bool:
        """Whether this account paid, or pays, for the request of that id."""
        return await self._db.read(
            lambda conn: (
                conn.execute(
                    "SELECT 1 FROM holds WHERE account_id = ? AND request_id = ? LIMIT 1",
                    (account_id, request_id),
                ).fetchone()
                is not None
            )
        )


def read_page(
    conn: sqlite3.Connection, account_id: int, after: Position | None, limit: int
) -> Page:
    """See ``SqliteStatements.page``."""
    first = conn.execute(
        "SELECT MIN(id) FROM transfers WHERE destination = ?", (account_id,)
    ).fetchone()[0]
    lines: list[Transaction] = []
    position = after
    if after is None or after.moment is not None:
        rows = conn.execute(
            _PENDING,
            {
                "account": account_id,
                "moment": _LAST if after is None else after.moment,
                "id": _LAST if after is None else after.id,
                "limit": limit,
            },
        ).fetchall()
        lines = [_pending(row, first=first is None) for row in rows]
        if len(rows) == limit:
            return Page(tuple(lines), Position(rows[-1]["position"], rows[-1]["created_at"]))
        position = None
    wanted = limit - len(lines)
    rows = conn.execute(
        _DONE,
        {
            "account": account_id,
            "id": _LAST if position is None else position.id,
            "limit": wanted + 1,
        },
    ).fetchall()
    lines += [_done(row, account_id, first) for row in rows[:wanted]]
    return Page(tuple(lines), Position(rows[wanted - 1]["id"]) if len(rows) > wanted else None)


def _pending(row: sqlite3.Row, *, first: bool) -> Transaction:
    if row["what"] == "hold":
        return Transaction(
            id=f"charge-{row['id']}",
            type="charge",
            state="pending",
            amount=Msat(-row["amount"]),
            created_at=row["created_at"],
            request_id=row["request_id"],
            model=row["model"],
        )
    return Transaction(
        id=f"{_incoming(first)}-{row['id']}",
        type=_incoming(first),
        state="pending",
        amount=to_msat(row["amount"] - row["fee"], row["unit"]),
        created_at=row["created_at"],
        mint=row["mint"],
    )


def _done(row: sqlite3.Row, account_id: int, first: int | None) -> Transaction:
    incoming = row["destination"] == account_id
    amount = Msat(row["amount_msat"] if incoming else -row["amount_msat"])
    if row["hold_id"] is not None:
        return Transaction(
            id=f"charge-{row['hold_id']}",
            type="charge",
            state="done",
            amount=amount,
            created_at=row["created_at"],
            request_id=row["request_id"],
            model=row["model"],
            prompt_tokens=row["prompt_tokens"],
            completion_tokens=row["completion_tokens"],
        )
    if row["operation_id"] is not None:
        return _crossing(row, amount, incoming, first)
    late = "reversal" if incoming else "refund"
    credit = _incoming(row["id"] == first)
    names = {"keys": "fee", "close": "dust", "late": late, "credit": credit}
    type_ = names.get(row["reference"].partition(":")[0], "other")
    return Transaction(f"{type_}-{row['id']}", type_, "done", amount, row["created_at"])


def _crossing(row: sqlite3.Row, amount: Msat, incoming: bool, first: int | None) -> Transaction:
    state = "done"
    token = None
    if row["kind"] in ("receive", "mint"):
        type_ = _incoming(row["id"] == first)
    elif incoming:
        type_ = "reversal"
    else:
        type_ = "change" if row["account_kind"] == "request" else "withdrawal"
        if row["kind"] == "melt":
            type_ = "refund"
        state = {"intent": "pending", "done": "done"}.get(row["state"], "failed")
        token = cast("str | None", row["token"])
    return Transaction(
        id=f"{type_}-{row['operation_id']}",
        type=type_,
        state=state,
        amount=amount,
        created_at=row["created_at"],
        mint=row["mint"],
        token=token,
        operation_id=row["operation_id"] if token and not row["delivered"] else None,
    )


def _incoming(first: bool) -> str:
    return "deposit" if first else "topup"
