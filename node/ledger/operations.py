"""Rows of the journal: operations, the claims they hold, and the accounts they open."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from node.core.accounts import NewAccount, Operation, Output
from node.core.ecash import Dleq, Proof
from node.errors import InvalidValue, TokenAlreadySpent
from node.ledger.books import FIRST_ACCOUNT


def _proof_from(data: dict[str, Any]) -> Proof:
    dleq = data.pop("dleq")
    return Proof(**data, dleq=None if dleq is None else Dleq(**dleq))


def insert_operation(
    conn: sqlite3.Connection, operation: Operation, request_key: str | None
) -> None:
    """Write a new operation; ``request_key`` names it among those of its account."""
    now = int(time.time())
    conn.execute(
        "INSERT INTO operations (id, kind, state, account_id, request_key, mint, unit, amount,"
        " fee, inputs, outputs, token, created_at, updated_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            operation.id,
            operation.kind,
            operation.state,
            operation.account_id,
            request_key,
            operation.mint,
            operation.unit,
            operation.amount,
            operation.fee,
            json.dumps([asdict(proof) for proof in operation.inputs]),
            json.dumps([asdict(output) for output in operation.outputs]),
            operation.token,
            now,
            now,
        ),
    )


def operation_from(row: sqlite3.Row) -> Operation:
    """The operation of a row."""
    return Operation(
        id=row["id"],
        kind=row["kind"],
        state=row["state"],
        account_id=row["account_id"],
        mint=row["mint"],
        unit=row["unit"],
        amount=row["amount"],
        fee=row["fee"],
        inputs=tuple(_proof_from(item) for item in json.loads(row["inputs"])),
        outputs=tuple(Output(**item) for item in json.loads(row["outputs"])),
        token=row["token"],
        error=row["error"],
        attempts=row["attempts"],
    )


def load_operation(conn: sqlite3.Connection, operation_id: str) -> Operation:
    """One operation as this connection sees it."""
    return operation_from(
        conn.execute("SELECT * FROM operations WHERE id = ?", (operation_id,)).fetchone()
    )


def move(conn: sqlite3.Connection, operation_id: str, state: str) -> bool:
    """intent → ``state``; False when it had left intent before."""
    cursor = conn.execute(
        "UPDATE operations SET state = ?, updated_at = ? WHERE id = ? AND state = 'intent'",
        (state, int(time.time()), operation_id),
    )
    return cursor.rowcount == 1


def claimed(
    conn: sqlite3.Connection, ys: Sequence[str], into: NewAccount | int
) -> Operation | None:
    """The operation that owns exactly these coins for this very purpose, if there is one."""
    marks = ", ".join("?" * len(ys))
    claims = conn.execute(
        f"SELECT operation_id, COUNT(*) AS n FROM receive_inputs WHERE y IN ({marks})"  # noqa: S608
        " GROUP BY operation_id",
        tuple(ys),
    ).fetchall()
    if not claims:
        return None
    if len(claims) == 1 and claims[0]["n"] == len(ys):
        operation = load_operation(conn, claims[0]["operation_id"])
        if len(operation.inputs) == len(ys):
            if isinstance(into, int):
                same = operation.account_id == into
            else:
                owned = {
                    (row["hash"], row["role"])
                    for row in conn.execute(
                        "SELECT hash, role FROM api_keys WHERE account_id = ?",
                        (operation.account_id,),
                    )
                }
                same = owned >= set(into.keys.items())
            if same:
                return operation
    raise TokenAlreadySpent


def open_account(conn: sqlite3.Connection, new: NewAccount, mint: str, unit: str) -> int:
    """Open an account and register its keys. Raises InvalidValue when a key is taken."""
    for hashed in (*new.keys, *new.aliases):
        if conn.execute("SELECT 1 FROM api_keys WHERE hash = ?", (hashed,)).fetchone():
            raise InvalidValue("this key cannot be used; choose another")
    row = conn.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM accounts").fetchone()
    account_id = max(FIRST_ACCOUNT, int(row[0]))
    conn.execute(
        "INSERT INTO accounts (id, kind, mint, unit, created_at) VALUES (?, ?, ?, ?, ?)",
        (account_id, new.kind, mint, unit, int(time.time())),
    )
    conn.executemany(
        "INSERT INTO api_keys VALUES (?, ?, ?)",
        [(hashed, account_id, role) for hashed, role in new.keys.items()]
        + [(hashed, account_id, "spend") for hashed in new.aliases],
    )
    return account_id


def forget_unfunded(conn: sqlite3.Connection, account_id: int) -> None:
    """Forget the keys of an account that never got any money: its token was refused."""
    funded = conn.execute(
        "SELECT 1 FROM transfers WHERE destination = ?1 UNION ALL"
        " SELECT 1 FROM operations WHERE account_id = ?1 AND state = 'intent' LIMIT 1",
        (account_id,),
    ).fetchone()
    if funded is None:
        conn.execute("DELETE FROM api_keys WHERE account_id = ?", (account_id,))
        conn.execute("UPDATE accounts SET state = 'closed' WHERE id = ?", (account_id,))
