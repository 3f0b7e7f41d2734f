"""Rows of the journal: operations, the claims they hold, and the accounts they open."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from node.core.accounts import NewAccount, Operation, Output
from node.core.ecash import Dleq, Proof, Token
from node.errors import InvalidValue, TokenAlreadySpent
from node.ledger.books import FIRST_ACCOUNT
from node.ledger.keys import store_terms


def _proof_row(proof: Proof) -> dict[str, Any]:
    dleq = proof.dleq
    return {
        "keyset_id": proof.keyset_id,
        "amount": proof.amount,
        "secret": proof.secret,
        "c": proof.c,
        "witness": proof.witness,
        "dleq": None if dleq is None else {"e": dleq.e, "s": dleq.s, "r": dleq.r},
    }


def _output_row(output: Output) -> dict[str, Any]:
    return {
        "amount": output.amount,
        "keyset_id": output.keyset_id,
        "counter": output.counter,
        "keep": output.keep,
    }


def _proof_from(data: dict[str, Any]) -> Proof:
    dleq = data.pop("dleq")
    return Proof(**data, dleq=None if dleq is None else Dleq(**dleq))


def insert_operation(
    conn: sqlite3.Connection, operation: Operation, ys: Sequence[str], request_key: str | None
) -> None:
    """Write a new operation.

    Args:
        ys: NUT-00 Y of its inputs.
        request_key: names it among those of its account.
    """
    now = int(time.time())
    conn.execute(
        "INSERT INTO operations (id, kind, state, account_id, request_key, mint, unit, amount,"
        " fee, surcharge, inputs, outputs, token, created_at, unknown_at, quote)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
            operation.surcharge,
            json.dumps([_proof_row(proof) for proof in operation.inputs]),
            json.dumps([_output_row(output) for output in operation.outputs]),
            operation.token,
            now,
            now,
            operation.quote,
        ),
    )
    conn.executemany("INSERT INTO operation_inputs VALUES (?, ?)", [(y, operation.id) for y in ys])


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
        unknown_at=row["unknown_at"],
        surcharge=row["surcharge"],
        quote=row["quote"],
    )


def load_operation(conn: sqlite3.Connection, operation_id: str) -> Operation:
    """One operation as this connection sees it."""
    return operation_from(
        conn.execute("SELECT * FROM operations WHERE id = ?", (operation_id,)).fetchone()
    )


def ended_sharing(conn: sqlite3.Connection, operation_id: str) -> list[Operation]:
    """Operations that had failed when this one began, and have an input in common with it.

    Those that gave coins of ours out without a swap are none of them.
    """
    rows = conn.execute(
        "SELECT DISTINCT o.* FROM operation_inputs mine"
        " JOIN operation_inputs theirs ON theirs.y = mine.y"
        " JOIN operations o ON o.id = theirs.operation_id"
        " WHERE mine.operation_id = ?1 AND o.id <> ?1 AND o.state <> 'intent'"
        " AND o.inputs <> '[]'",
        (operation_id,),
    ).fetchall()
    return [operation_from(row) for row in rows]


def move(conn: sqlite3.Connection, operation_id: str, to: str, *, of: str = "intent") -> bool:
    """Change the state from ``of`` to ``to``; False when it was another."""
    cursor = conn.execute(
        "UPDATE operations SET state = ?1,"
        " failed_at = CASE WHEN ?1 = 'failed' THEN ?4 ELSE failed_at END"
        " WHERE id = ?2 AND state = ?3",
        (to, operation_id, of, int(time.time())),
    )
    return cursor.rowcount == 1


def set_error(conn: sqlite3.Connection, operation: Operation, error: str) -> None:
    """Note what a failed operation failed of."""
    conn.execute("UPDATE operations SET error = ? WHERE id = ?", (error, operation.id))


def claimed(
    conn: sqlite3.Connection, token: Token, ys: Sequence[str], into: NewAccount | int
) -> Operation | None:
    """The live operation that owns exactly these coins for this very purpose, if there is one.

    The coins must be the same to the last signature: a locked coin without its witness proves
    nothing. Coins that we gave out belong to whoever has them, and may come back as payment.
    Raises TokenAlreadySpent when one is in any other operation.
    """
    marks = ", ".join("?" * len(ys))
    claims = conn.execute(
        "SELECT DISTINCT operation_id FROM operation_inputs i"  # noqa: S608
        f" JOIN operations o ON o.id = i.operation_id WHERE i.y IN ({marks})"
        " AND o.state <> 'failed' AND NOT EXISTS (SELECT 1 FROM proofs p"
        " WHERE p.y = i.y AND p.operation_id = o.id AND p.state = 'issued')",
        tuple(ys),
    ).fetchall()
    if not claims:
        return None
    if len(claims) == 1:
        operation = load_operation(conn, claims[0]["operation_id"])
        if operation.kind == "receive" and _identity(operation.inputs) == _identity(token.proofs):
            if isinstance(into, int):
                same = operation.account_id == into
            else:
                same = _keys_of(conn, operation.account_id) >= set(into.keys.items())
            if same:
                return operation
    raise TokenAlreadySpent


def _identity(proofs: Sequence[Proof]) -> set[tuple[object, ...]]:
    return {(p.keyset_id, p.amount, p.secret, p.c, p.witness) for p in proofs}


def _keys_of(conn: sqlite3.Connection, account_id: int) -> set[tuple[str, str]]:
    rows = conn.execute("SELECT hash, role FROM api_keys WHERE account_id = ?", (account_id,))
    return {(row["hash"], row["role"]) for row in rows}


def open_account(conn: sqlite3.Connection, new: NewAccount, mint: str, unit: str) -> int:
    """Open an account and register its keys; takes up one whose token was refused before.

    Raises InvalidValue when a key belongs to another account.
    """
    hashes = (*new.keys, *new.aliases)
    owners = set()
    for hashed in hashes:
        row = conn.execute("SELECT account_id FROM api_keys WHERE hash = ?", (hashed,)).fetchone()
        if row is not None:
            owners.add(row["account_id"])
    if not owners:
        row = conn.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM accounts").fetchone()
        account_id = max(FIRST_ACCOUNT, int(row[0]))
        conn.execute(
            "INSERT INTO accounts (id, kind, mint, unit, created_at) VALUES (?, ?, ?, ?, ?)",
            (account_id, new.kind, mint, unit, int(time.time())),
        )
    else:
        account_id = owners.pop()
        if owners or not _abandoned(conn, account_id, new.kind):
            raise InvalidValue("this key cannot be used; choose another")
        conn.execute("DELETE FROM api_keys WHERE account_id = ?", (account_id,))
        conn.execute(
            "UPDATE accounts SET mint = ?, unit = ?, created_at = ? WHERE id = ?",
            (mint, unit, int(time.time()), account_id),
        )
    store_terms(conn, account_id, new.terms)
    roles = {**dict.fromkeys(new.aliases, "spend"), **new.keys}
    conn.executemany(
        "INSERT INTO api_keys VALUES (?, ?, ?)",
        [(hashed, account_id, role) for hashed, role in roles.items()],
    )
    return account_id


def calls_under_way(conn: sqlite3.Connection) -> int:
    """Calls that will want change: being redeemed, or held for."""
    row = conn.execute(
        "SELECT (SELECT COUNT(*) FROM operations WHERE state = 'intent')"
        " + (SELECT COUNT(*) FROM holds WHERE state = 'held')"
    ).fetchone()
    return int(row[0])


def _abandoned(conn: sqlite3.Connection, account_id: int, kind: str) -> bool:
    """Whether no money ever reached the account and none is under way to it."""
    row = conn.execute(
        "SELECT kind = ?2 AND NOT EXISTS (SELECT 1 FROM transfers WHERE destination = ?1)"
        " AND NOT EXISTS (SELECT 1 FROM operations WHERE account_id = ?1 AND state = 'intent')"
        " FROM accounts WHERE id = ?1",
        (account_id, kind),
    ).fetchone()
    return bool(row[0])
