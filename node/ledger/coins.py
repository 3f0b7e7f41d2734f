"""Rows of the inventory: coins, and the denominations in stock."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from node.core.accounts import FoundCoin, Operation, Output, Source
from node.core.denominations import pick_covering
from node.core.ecash import Dleq, Proof
from node.core.money import Msat, ceil_div, to_msat
from node.ledger.counters import allocate

_MIXED = (
    "EXISTS (SELECT 1 FROM operations o WHERE o.account_id = a.id"
    " AND o.kind IN ('receive', 'mint') AND (o.mint <> a.mint OR o.unit <> a.unit))"
)
"""Whether account ``a`` was topped up with coins of another mint than it was opened with."""


def exposure(conn: sqlite3.Connection, mint: str) -> Msat:
    """What we would lose with the mint: our coins of it, and the tokens that become such coins."""
    rows = conn.execute(
        "SELECT unit, SUM(amount) AS total FROM ("
        " SELECT unit, amount FROM proofs WHERE mint = ?1 AND state = 'unspent'"
        " UNION ALL SELECT unit, amount FROM proofs WHERE mint = ?1 AND state = 'reserved'"
        " UNION ALL SELECT unit, amount - fee FROM operations"
        "  WHERE mint = ?1 AND kind IN ('receive', 'mint') AND state = 'intent')"
        " GROUP BY unit",
        (mint,),
    )
    return Msat(sum(to_msat(row["total"], row["unit"]) for row in rows))


@dataclass(frozen=True, slots=True)
class Cover:
    """Coins that cover an amount and the fee for swapping them."""

    picked: Mapping[int, int]
    fee: int


def with_counters(
    conn: sqlite3.Connection, keyset_id: str, amounts: Sequence[tuple[int, bool]]
) -> tuple[Output, ...]:
    """Outputs for (amount, keep) with counters of a keyset that were never used."""
    counters = allocate(conn, keyset_id, len(amounts))
    return tuple(
        Output(amount, keyset_id, counter, keep)
        for counter, (amount, keep) in zip(counters, amounts, strict=True)
    )


def stock(
    conn: sqlite3.Connection, mint: str, unit: str, *, suspect: bool = True
) -> dict[int, int]:
    """Denomination → unspent coins held; without the suspect ones if asked for."""
    return {
        row["amount"]: row["n"]
        for row in conn.execute(
            "SELECT amount, COUNT(*) AS n FROM proofs"
            " WHERE mint = ? AND unit = ? AND state = 'unspent' AND suspect <= ? GROUP BY amount",
            (mint, unit, int(suspect)),
        )
    }


def worth(coins: Mapping[int, int], unit: str) -> Msat:
    """What denomination → count amounts to."""
    return to_msat(sum(amount * count for amount, count in coins.items()), unit)


def spare(conn: sqlite3.Connection, mint: str, unit: str) -> Msat:
    """What our sound coins there are worth beyond the balances of those who paid with such coins.

    Only that may go to others: whose coins are given away cannot be given change.
    """
    held = worth(stock(conn, mint, unit, suspect=False), unit)
    row = conn.execute(
        "SELECT COALESCE(SUM(balance_msat), 0) AS owed FROM accounts"
        " WHERE mint = ? AND unit = ? AND balance_msat > 0",
        (mint, unit),
    ).fetchone()
    return Msat(held - row["owed"])


def share(conn: sqlite3.Connection, account_id: int, mint: str, unit: str) -> Msat | None:
    """What an account may take of our coins of the mint that it was opened with; None: all.

    One that was topped up with coins of other mints leaves what is owed to those who have paid
    with coins of this mint alone: they can be paid with no others, it can.
    """
    mixed = conn.execute(f"SELECT {_MIXED} FROM accounts a WHERE id = ?", (account_id,))  # noqa: S608
    if not mixed.fetchone()[0]:
        return None
    held = worth(stock(conn, mint, unit, suspect=False), unit)
    owed = conn.execute(
        "SELECT COALESCE(SUM(balance_msat), 0) FROM accounts a"  # noqa: S608
        f" WHERE mint = ? AND unit = ? AND balance_msat > 0 AND NOT {_MIXED}",
        (mint, unit),
    )
    return Msat(held - owed.fetchone()[0])


def cover(
    conn: sqlite3.Connection, source: Source, amount: int, held: Mapping[int, int]
) -> Cover | None:
    """Coins worth ``amount`` and their fee; None when there are too few."""
    fee = 0
    while True:
        picked = pick_covering(amount + fee, held)
        if picked is None:
            return None
        needed = swap_fee(conn, source, picked)
        if sum(d * count for d, count in picked.items()) >= amount + needed:
            return Cover(picked, needed)
        fee = needed


def swap_fee(conn: sqlite3.Connection, source: Source, picked: Mapping[int, int]) -> int:
    """What the mint takes for swapping the picked coins (NUT-02), in its unit."""
    rows = _rows(conn, source, picked, suspect=True)
    return ceil_div(sum(source.fee_ppk.get(row["keyset_id"], 0) for row in rows), 1000)


def take(
    conn: sqlite3.Connection,
    source: Source,
    picked: Mapping[int, int],
    operation_id: str,
    state: str,
) -> tuple[list[str], list[Proof]]:
    """Take the picked coins out of the inventory for an operation; their Ys and proofs.

    Suspect coins go only into swaps (state ``reserved``), and go first.
    """
    rows = _rows(conn, source, picked, suspect=state == "reserved")
    conn.executemany(
        "UPDATE proofs SET state = ?, operation_id = ? WHERE y = ?",
        [(state, operation_id, row["y"]) for row in rows],
    )
    return [row["y"] for row in rows], [
        Proof(
            keyset_id=row["keyset_id"],
            amount=row["amount"],
            secret=row["secret"],
            c=row["c"],
            dleq=Dleq(**json.loads(row["dleq"])) if row["dleq"] else None,
        )
        for row in rows
    ]


def _rows(
    conn: sqlite3.Connection, source: Source, picked: Mapping[int, int], *, suspect: bool
) -> list[sqlite3.Row]:
    rows: list[sqlite3.Row] = []
    for denomination, count in sorted(picked.items()):
        rows += conn.execute(
            "SELECT * FROM proofs WHERE mint = ? AND unit = ? AND amount = ?"
            " AND state = 'unspent' AND suspect <= ? ORDER BY suspect DESC, created_at, y LIMIT ?",
            (source.mint, source.unit, denomination, int(suspect), count),
        ).fetchall()
    return rows


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
                _dleq(proof),
                state,
                operation.id,
                now,
            )
            for y, proof in coins
        ],
    )


def _dleq(proof: Proof) -> str:
    """As the column holds it."""
    dleq = proof.dleq
    return "" if dleq is None else json.dumps({"e": dleq.e, "s": dleq.s, "r": dleq.r})


def store_loose_coin(conn: sqlite3.Connection, mint: str, coin: FoundCoin) -> bool:
    """Add a coin of ours that no operation in this database made, as a suspect one.

    False when the database has it already.
    """
    proof = coin.proof
    cursor = conn.execute(
        "INSERT OR IGNORE INTO proofs (y, mint, unit, keyset_id, amount, secret, c, dleq, state,"
        " suspect, operation_id, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'unspent', 1, ?, ?)",
        (
            coin.y,
            mint,
            coin.unit,
            proof.keyset_id,
            proof.amount,
            proof.secret,
            proof.c,
            _dleq(proof),
            "found",
            int(time.time()),
        ),
    )
    return cursor.rowcount == 1
