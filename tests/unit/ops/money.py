"""A small ledger on disk, with money in it and no mint."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from node.ledger.books import Book, transfer
from node.ledger.database import Database

MINT = "https://mint.example.com"


async def make_ledger(path: Path, *, owed_sat: int = 50, earned_sat: int = 14) -> Path:
    """A closed database whose books are right: one client's account and the node's earnings."""
    database = await Database.open(path)

    def fill(conn: sqlite3.Connection) -> None:
        conn.execute("INSERT INTO meta VALUES ('mnemonic', 'abandon abandon about')")
        conn.execute(
            "INSERT INTO accounts (id, kind, mint, unit, created_at) VALUES (100, 'key', ?, 'sat',"
            " 0)",
            (MINT,),
        )
        transfer(conn, Book.IN, 100, (owed_sat + earned_sat) * 1000, "op:a")
        transfer(conn, 100, Book.REVENUE, earned_sat * 1000, "hold:1")
        add_coin(conn, "aa", owed_sat + earned_sat)

    await database.write(fill)
    await database.close()
    return path


def add_coin(
    conn: sqlite3.Connection,
    y: str,
    amount: int,
    state: str = "unspent",
    *,
    operation_id: str = "a",
    mint: str = MINT,
) -> None:
    """A coin of ours."""
    conn.execute(
        "INSERT INTO proofs (y, mint, unit, keyset_id, amount, secret, c, state, operation_id,"
        " created_at) VALUES (?, ?, 'sat', '00ff', ?, 'very-secret', 'c', ?, ?, 0)",
        (y, mint, amount, state, operation_id),
    )


def change(path: Path, *statements: str) -> None:
    """Change the file behind everybody's back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
