"""The books as CSV, for an accountant: what came in, what was charged, what was paid out.

Rows hold numbers of accounts, never keys, tokens, secrets of coins or invoices. Amounts are msat
unless the column says otherwise, times are UTC. Reads one moment of the database, which a running
node may have open.
"""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TextIO

from node.core.lightning import OPERATOR
from node.core.money import to_msat
from node.ledger.books import FIRST_ACCOUNT, Book, open_read_only

Kind = Literal["transactions", "charges", "payouts"]

COLUMNS: dict[Kind, tuple[str, ...]] = {
    "transactions": (
        "time", "id", "from", "to", "amount_msat", "account", "belongs_to", "request_id", "model",
    ),
    "charges": (
        "time", "id", "account", "model", "prompt_tokens", "completion_tokens", "counted_by",
        "held_msat", "charged_msat", "request_id",
    ),
    "payouts": (
        "time", "id", "state", "purpose", "mint", "destination", "amount_msat", "payment_hash",
    ),
}  # fmt: skip
"""Their columns, in order."""

_TRANSACTIONS = """
SELECT t.id, t.source, t.destination, t.amount_msat, t.created_at, t.reference,
       h.request_id, h.model
FROM transfers t LEFT JOIN holds h
  ON h.id = CASE WHEN t.reference LIKE 'hold:%' THEN CAST(substr(t.reference, 6) AS INTEGER) END
WHERE t.created_at >= ? AND t.created_at < ? ORDER BY t.id
"""
_CHARGES = """
SELECT * FROM holds WHERE state = 'settled' AND closed_at >= ? AND closed_at < ?
ORDER BY closed_at, id
"""
_PAYOUTS = f"""
SELECT o.rowid AS number, o.kind, o.state, o.account_id, o.mint, o.unit, o.amount, o.created_at,
       p.destination, p.payment_hash
FROM operations o LEFT JOIN payouts p ON p.operation_id = o.id
WHERE (p.operation_id IS NOT NULL
       OR o.kind = 'send' AND o.account_id = {OPERATOR} AND o.request_key IS NOT NULL)
  AND o.created_at >= ? AND o.created_at < ? ORDER BY o.created_at, o.rowid
"""  # noqa: S608  a number of our own


def export(database: Path, kind: Kind, begin: int, end: int, out: TextIO) -> int:
    """Write ``kind`` of ``[begin, end)`` (unix seconds) as CSV; returns the number of rows.

    Raises sqlite3.Error when it is no database of a node, or there is none.
    """
    count = 0
    writer = csv.writer(out, lineterminator="\n")
    with closing(open_read_only(database)) as connection:
        connection.execute("BEGIN")
        rows = _ROWS[kind](connection, begin, end)
        writer.writerow(COLUMNS[kind])
        for row in rows:
            writer.writerow([_cell(value) for value in row])
            count += 1
    return count


def _transactions(connection: sqlite3.Connection, begin: int, end: int) -> Iterator[list[object]]:
    for row in connection.execute(_TRANSACTIONS, (begin, end)):
        books = (row["source"], row["destination"])
        account = next((book for book in books if book >= FIRST_ACCOUNT), None)
        yield [
            _time(row["created_at"]), row["id"], _book(row["source"]), _book(row["destination"]),
            row["amount_msat"], account, row["reference"].partition(":")[0],
            row["request_id"], row["model"],
        ]  # fmt: skip


def _charges(connection: sqlite3.Connection, begin: int, end: int) -> Iterator[list[object]]:
    for row in connection.execute(_CHARGES, (begin, end)):
        yield [
            _time(row["closed_at"]), row["id"], row["account_id"], row["model"],
            row["prompt_tokens"], row["completion_tokens"], row["usage_source"],
            row["max_cost_msat"], row["cost_msat"], row["request_id"],
        ]  # fmt: skip


def _payouts(connection: sqlite3.Connection, begin: int, end: int) -> Iterator[list[object]]:
    for row in connection.execute(_PAYOUTS, (begin, end)):
        yield [
            _time(row["created_at"]), row["number"], row["state"],
            _purpose(row), row["mint"], row["destination"] or "token",
            to_msat(row["amount"], row["unit"]), row["payment_hash"],
        ]  # fmt: skip


def _purpose(row: sqlite3.Row) -> str:
    """withdrawal: a token that the operator took out of the earnings."""
    if row["kind"] == "send":
        return "withdrawal"
    return "refund" if row["account_id"] else "payout"


_ROWS = {"transactions": _transactions, "charges": _charges, "payouts": _payouts}


def _book(number: int) -> str:
    return "account" if number >= FIRST_ACCOUNT else Book(number).name.lower()


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _cell(value: object) -> object:
    """A text that a spreadsheet would take for a formula is quoted as it wants: a client chooses
    the request id."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value
