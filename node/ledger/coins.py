"""Rows of the inventory: coins, denominations in stock, NUT-13 counters."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from node.core.accounts import Operation, Output, Source
from node.core.denominations import pick_covering
from node.core.ecash import Dleq, Proof
from node.core.money import ceil_div


def with_counters(
    conn: sqlite3.Connection, keyset_id: str, amounts: Sequence[tuple[int, bool]]
) -> tuple[Output, ...]:
    """Outputs for (amount, keep) with fresh counters of a keyset."""
    row = conn.execute("SELECT next FROM counters WHERE keyset_id = ?", (keyset_id,)).fetchone()
    first = 0 if row is None else int(row["next"])
    conn.execute("INSERT OR REPLACE INTO counters VALUES (?, ?)", (keyset_id, first + len(amounts)))
    return tuple(
        Output(amount, keyset_id, first + index, keep)
        for index, (amount, keep) in enumerate(amounts)
    )


def stock(conn: sqlite3.Connection, mint: str, unit: str) -> dict[int, int]:
    """Denomination → unspent coins held."""
    return {
        row["amount"]: row["n"]
        for row in conn.execute(
            "SELECT amount, COUNT(*) AS n FROM proofs"
            " WHERE mint = ? AND unit = ? AND state = 'unspent' GROUP BY amount",
            (mint, unit),
        )
    }


def cover(
    conn: sqlite3.Connection, source: Source, amount: int, stock: Mapping[int, int]
) -> tuple[dict[int, int] | None, int]:
    """Coins worth ``amount`` and the fee for swapping them; (None, 0) when there are too few."""
    fee = 0
    while True:
        picked = pick_covering(amount + fee, stock)
        if picked is None:
            return None, 0
        coins = _coins(conn, source, picked)
        needed = ceil_div(sum(source.fee_ppk.get(row["keyset_id"], 0) for row in coins), 1000)
        if sum(row["amount"] for row in coins) >= amount + needed:
            return picked, needed
        fee = needed


def _coins(
    conn: sqlite3.Connection, source: Source, picked: Mapping[int, int]
) -> list[sqlite3.Row]:
    rows: list[sqlite3.Row] = []
    for denomination, count in sorted(picked.items()):
        rows += conn.execute(
            "SELECT * FROM proofs WHERE mint = ? AND unit = ? AND amount = ?"
            " AND state = 'unspent' ORDER BY created_at, y LIMIT ?",
            (source.mint, source.unit, denomination, count),
        ).fetchall()
    return rows


def take(
    conn: sqlite3.Connection,
    source: Source,
    picked: Mapping[int, int],
    operation_id: str,
    state: str,
) -> list[Proof]:
    """Take the picked coins out of the inventory for an operation."""
    rows = _coins(conn, source, picked)
    conn.executemany(
        "UPDATE proofs SET state = ?, operation_id = ? WHERE y = ?",
        [(state, operation_id, row["y"]) for row in rows],
    )
    return [
        Proof(
            keyset_id=row["keyset_id"],
            amount=row["amount"],
            secret=row["secret"],
            c=row["c"],
            dleq=Dleq(**json.loads(row["dleq"])) if row["dleq"] else None,
        )
        for row in rows
    ]


def store_coins(
    conn: sqlite3.Connection,
    operation: Operation,
    coins: Sequence[tuple[str, Proof]],
    state: str,
) -> None:
    """Add coins (Y, proof) that an operation made."""
    now = int(time.time())
    conn.executemany(
        "INSERT INTO proofs (y, mint, unit, keyset_id, amount, secret, c, dleq, state,"
        " operation_id, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                y,
                operation.mint,
                operation.unit,
                proof.keyset_id,
                proof.amount,
                proof.secret,
                proof.c,
                "" if proof.dleq is None else json.dumps(asdict(proof.dleq)),
                state,
                operation.id,
                now,
            )
            for y, proof in coins
        ],
    )
