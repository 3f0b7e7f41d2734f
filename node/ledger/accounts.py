"""Accounts and holds.

                 hold                 settle
    (nothing) ─────────▶ held ──────────────────▶ settled     cost moves to REVENUE
                          │  ▲
                  release │  │ hold again under the same request key
                          ▼  │
                        released                              nothing moves

| what happens                    | outcome                                                    |
|---------------------------------|------------------------------------------------------------|
| balance - held < max cost       | InsufficientBalance, nothing changes                       |
| same request key, other digest  | IdempotencyConflict                                        |
| same request key, still held    | Pending: it runs now                                       |
| same request key, settled       | Interrupted: charged once, not again                       |
| settled or released twice       | the first outcome stands                                   |
| cost above the hold             | the hold is charged, no more                               |
| commit of settle fails          | tried again until it succeeds                              |
| process dies                    | ``release_all`` at the next start; nothing was charged     |
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sqlite3
import time
from typing import cast

from node.core.accounts import Account, Balance, HoldRequest, Role, key_hash
from node.core.money import Msat
from node.core.usage import Usage
from node.errors import (
    IdempotencyConflict,
    InsufficientBalance,
    Interrupted,
    InvalidApiKey,
    Pending,
)
from node.ledger.books import Book, transfer
from node.ledger.database import Database

MAX_CACHED_KEYS = 100_000
"""API keys remembered in memory, so that authentication needs no database."""


class SqliteLedger:
    """Implements ``node.ports.Ledger``."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._keys: dict[str, Account] = {}

    async def account(self, key: str, role: Role = "spend") -> Account:
        """Whose key of that role this is.

        Raises InvalidApiKey; also when the token behind it was refused.
        """
        hashed = key_hash(key, role)
        known = self._keys.get(hashed)
        if known is not None:
            return known
        row = await self._db.read(
            lambda conn: conn.execute(
                "SELECT account_id, role, EXISTS (SELECT 1 FROM transfers"
                " WHERE destination = k.account_id) AS funded, EXISTS (SELECT 1 FROM operations o"
                " WHERE o.account_id = k.account_id AND state = 'intent') AS coming"
                " FROM api_keys k WHERE hash = ?",
                (hashed,),
            ).fetchone()
        )
        if row is None or not (row["funded"] or row["coming"]):
            raise InvalidApiKey
        account = Account(row["account_id"], cast("Role", row["role"]), bool(row["funded"]))
        if account.funded:  # only then can its keys never be taken back
            if len(self._keys) >= MAX_CACHED_KEYS:
                self._keys.pop(next(iter(self._keys)))
            self._keys[hashed] = account
        return account

    async def has_admin_key(self, account_id: int) -> bool:
        """Whether only an admin key may take money out of this account."""
        return await self._db.read(
            lambda conn: (
                conn.execute(
                    "SELECT 1 FROM api_keys WHERE account_id = ? AND role = 'admin'",
                    (account_id,),
                ).fetchone()
                is not None
            )
        )

    async def balance(self, account_id: int) -> Balance:
        """What the account owns, in msat."""
        return await self._db.read(lambda conn: read_balance(conn, account_id))

    def hold(self, account_id: int, request: HoldRequest) -> asyncio.Future[int]:
        """Set ``request.max_cost`` aside; resolves to the hold's id.

        Raises InsufficientBalance, Pending, Interrupted (see the table above).
        """
        return self._db.write(lambda conn: open_hold(conn, account_id, request))

    def settle(self, hold_id: int, cost: Msat, usage: Usage) -> asyncio.Future[Msat]:
        """Charge ``cost`` and free the rest; resolves to what was charged."""
        return self._db.insist(lambda conn: settle_hold(conn, hold_id, cost, usage))

    def release(self, hold_id: int) -> asyncio.Future[None]:
        """Free the whole hold."""
        return self._db.insist(lambda conn: release_hold(conn, hold_id))

    async def release_all(self) -> int:
        """Free the holds a dead process left; returns how many. Call before serving."""

        def work(conn: sqlite3.Connection) -> int:
            ids = [row["id"] for row in conn.execute("SELECT id FROM holds WHERE state = 'held'")]
            for hold_id in ids:
                release_hold(conn, hold_id)
            return len(ids)

        return await self._db.write(work)


def read_balance(conn: sqlite3.Connection, account_id: int) -> Balance:
    """The account's balance as this connection sees it."""
    row = conn.execute(
        "SELECT balance_msat, held_msat, mint, unit FROM accounts WHERE id = ?", (account_id,)
    ).fetchone()
    return Balance(Msat(row["balance_msat"]), Msat(row["held_msat"]), row["mint"], row["unit"])


def open_hold(conn: sqlite3.Connection, account_id: int, request: HoldRequest) -> int:
    """See ``SqliteLedger.hold``."""
    if request.request_key is not None:
        row = conn.execute(
            "SELECT state, request_digest FROM holds WHERE account_id = ? AND request_key = ?",
            (account_id, request.request_key),
        ).fetchone()
        if row is not None:
            if row["request_digest"] != request.digest:
                raise IdempotencyConflict
            if row["state"] == "held":
                raise Pending("this request is being answered now", retry_after_s=2)
            if row["state"] == "settled":
                raise Interrupted("this request was answered and charged; it is not run again")
            conn.execute(
                "UPDATE holds SET request_key = NULL WHERE account_id = ? AND request_key = ?",
                (account_id, request.request_key),
            )
    updated = conn.execute(
        "UPDATE accounts SET held_msat = held_msat + ?1"
        " WHERE id = ?2 AND state = 'open' AND balance_msat - held_msat >= ?1",
        (request.max_cost, account_id),
    )
    if updated.rowcount != 1:
        free = read_balance(conn, account_id).free
        raise InsufficientBalance(
            f"this request may cost up to {request.max_cost} msat, {free} msat are available"
        )
    cursor = conn.execute(
        "INSERT INTO holds (account_id, request_key, request_digest, request_id, model, price,"
        " max_cost_msat, state, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, 'held', ?)",
        (
            account_id,
            request.request_key,
            request.digest,
            request.request_id,
            request.model,
            json.dumps(dataclasses.asdict(request.price)),
            request.max_cost,
            int(time.time()),
        ),
    )
    return cast("int", cursor.lastrowid)


def _close_hold(conn: sqlite3.Connection, hold_id: int) -> sqlite3.Row | None:
    """The hold's row and its money unfrozen; None when it was closed before."""
    row = conn.execute(
        "SELECT account_id, max_cost_msat FROM holds WHERE id = ? AND state = 'held'", (hold_id,)
    ).fetchone()
    if row is not None:
        conn.execute(
            "UPDATE accounts SET held_msat = held_msat - ? WHERE id = ?",
            (row["max_cost_msat"], row["account_id"]),
        )
    return cast("sqlite3.Row | None", row)


def settle_hold(conn: sqlite3.Connection, hold_id: int, cost: Msat, usage: Usage) -> Msat:
    """See ``SqliteLedger.settle``."""
    row = _close_hold(conn, hold_id)
    if row is None:
        closed = conn.execute("SELECT cost_msat FROM holds WHERE id = ?", (hold_id,)).fetchone()
        return Msat(closed["cost_msat"])
    charged = Msat(min(cost, row["max_cost_msat"]))
    conn.execute(
        "UPDATE holds SET state = 'settled', cost_msat = ?, prompt_tokens = ?,"
        " completion_tokens = ?, usage_source = ?, closed_at = ? WHERE id = ?",
        (
            charged,
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.source,
            int(time.time()),
            hold_id,
        ),
    )
    transfer(conn, row["account_id"], Book.REVENUE, charged, f"hold:{hold_id}")
    return charged


def release_hold(conn: sqlite3.Connection, hold_id: int) -> None:
    """See ``SqliteLedger.release``."""
    if _close_hold(conn, hold_id) is not None:
        conn.execute(
            "UPDATE holds SET state = 'released', closed_at = ? WHERE id = ?",
            (int(time.time()), hold_id),
        )
