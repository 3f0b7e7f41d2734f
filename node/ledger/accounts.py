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
| the limit of a child key        | LimitExceeded, nothing changes (``node.ledger.keys``)      |
| key or account past its date    | KeyExpired, nothing changes                                |
| same request key, other digest  | IdempotencyConflict                                        |
| same request key, still held    | IdempotencyInProgress: it runs now                         |
| same request key, settled       | Answered: charged once, not again                          |
| settled or released twice       | the first outcome stands                                   |
| cost above the hold             | the hold is charged, no more                               |
| commit of settle fails          | tried again until it succeeds                              |
| process dies                    | ``release_all`` at the next start; nothing was charged     |
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import sqlite3
import time
from collections.abc import Callable
from typing import cast

from node.core.accounts import Account, Balance, HoldRequest, Role, key_hash
from node.core.keys import Terms
from node.core.money import Msat
from node.core.pricing import Price
from node.core.usage import Usage
from node.errors import (
    Answered,
    IdempotencyConflict,
    IdempotencyInProgress,
    InsufficientBalance,
    InvalidApiKey,
)
from node.ledger.books import Book, enter
from node.ledger.database import Database
from node.ledger.keys import check_terms, end_hold_of_child, hold_of_child, read_terms

MAX_CACHED_KEYS = 100_000
"""API keys remembered in memory, so that authentication needs no database."""


class SqliteLedger:
    """Implements ``node.ports.Ledger``."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        """``clock``: unix seconds."""
        self._db = database
        self._clock = clock
        self._keys: dict[str, Account] = {}
        self._forgotten = 0

    async def account(self, key: str, role: Role = "spend") -> Account:
        """Whose key of that role this is; a child key is found as a spend key.

        Raises InvalidApiKey; also when the token behind it was refused. A key that has expired
        is known all the same: it says so itself.
        """
        hashed = key_hash(key, role)
        known = self._keys.get(hashed)
        if known is not None:
            return known
        forgotten = self._forgotten
        row = await self._db.read(lambda conn: _find(conn, hashed))
        if row is None or not (row["funded"] or row["coming"]):
            raise InvalidApiKey
        dates = [date for date in (row["expires_at"], row["child_expires_at"]) if date is not None]
        account = Account(
            row["account_id"],
            cast("Role", row["role"]),
            bool(row["funded"]),
            child_id=row["child_id"],
            expires_at=min(dates, default=None),
        )
        # A funded account's own keys can never be taken back. A child key can, perhaps while
        # it was being read.
        if account.funded and forgotten == self._forgotten:
            if len(self._keys) >= MAX_CACHED_KEYS:
                self._keys.pop(next(iter(self._keys)))
            self._keys[hashed] = account
        return account

    def forget(self, hashed: str) -> None:
        """A key was revoked: do not find it without asking the database."""
        self._forgotten += 1
        self._keys.pop(hashed, None)

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

    async def terms(self, account_id: int) -> Terms:
        """What the account was opened with."""
        return await self._db.read(lambda conn: read_terms(conn, account_id))

    def hold(
        self, account_id: int, request: HoldRequest, ran: asyncio.Future[int] | None = None
    ) -> asyncio.Future[int]:
        """Set ``request.max_cost`` aside; resolves to the hold's id.

        ``ran`` resolves earlier: the money is set aside and only not yet on disk.

        Raises InsufficientBalance, LimitExceeded, KeyExpired, IdempotencyInProgress, Answered,
        IdempotencyConflict (see the table above).
        """
        now = int(self._clock())
        return self._db.write(
            lambda conn: open_hold(conn, account_id, request, now), quick=True, ran=ran
        )

    def settle(self, hold_id: int, cost: Msat, usage: Usage) -> asyncio.Future[Msat]:
        """Charge ``cost`` and free the rest; resolves to what was charged."""
        return self._db.insist(
            lambda conn: settle_hold(conn, hold_id, cost, usage, int(self._clock())), quick=True
        )

    def release(self, hold_id: int) -> asyncio.Future[None]:
        """Free the whole hold."""
        return self._db.insist(
            lambda conn: release_hold(conn, hold_id, int(self._clock())), quick=True
        )

    async def release_all(self) -> int:
        """Free the holds a dead process left; returns how many. Call before serving."""
        now = int(self._clock())

        def work(conn: sqlite3.Connection) -> int:
            ids = [row["id"] for row in conn.execute("SELECT id FROM holds WHERE state = 'held'")]
            for hold_id in ids:
                release_hold(conn, hold_id, now)
            return len(ids)

        return await self._db.write(work)


def _find(conn: sqlite3.Connection, hashed: str) -> sqlite3.Row | None:
    return cast(
        "sqlite3.Row | None",
        conn.execute(
            "SELECT k.account_id, role, t.expires_at, c.id AS child_id,"
            " c.expires_at AS child_expires_at, EXISTS (SELECT 1 FROM transfers"
            " WHERE destination = k.account_id) AS funded, EXISTS (SELECT 1 FROM operations o"
            " WHERE o.account_id = k.account_id AND state = 'intent') AS coming"
            " FROM api_keys k LEFT JOIN account_terms t ON t.account_id = k.account_id"
            " LEFT JOIN child_keys c ON c.hash = k.hash WHERE k.hash = ?",
            (hashed,),
        ).fetchone(),
    )


def read_balance(conn: sqlite3.Connection, account_id: int) -> Balance:
    """The account's balance as this connection sees it."""
    row = conn.execute(
        "SELECT balance_msat, held_msat, mint, unit FROM accounts WHERE id = ?", (account_id,)
    ).fetchone()
    return Balance(Msat(row["balance_msat"]), Msat(row["held_msat"]), row["mint"], row["unit"])


def open_hold(conn: sqlite3.Connection, account_id: int, request: HoldRequest, now: int) -> int:
    """See ``SqliteLedger.hold``. ``now``: unix seconds."""
    request_key = request.request_key
    if request_key is not None:
        if request.child_id is not None:  # keys of one account know nothing of each other
            request_key = f"child {request.child_id}\n{request_key}"
        row = conn.execute(
            "SELECT id, state, request_digest FROM holds WHERE account_id = ? AND request_key = ?",
            (account_id, request_key),
        ).fetchone()
        if row is not None:
            if row["request_digest"] != request.digest:
                raise IdempotencyConflict
            if row["state"] == "held":
                raise IdempotencyInProgress(retry_after_s=2)
            if row["state"] == "settled":
                raise Answered(row["id"])
            conn.execute(
                "UPDATE holds SET request_key = NULL WHERE account_id = ? AND request_key = ?",
                (account_id, request_key),
            )
    check_terms(conn, account_id, now)
    hold_of_child(conn, account_id, request, now)
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
        " max_cost_msat, state, created_at, child_id)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, 'held', ?, ?)",
        (
            account_id,
            request_key,
            request.digest,
            request.request_id,
            request.model,
            _price_text(request.price),
            request.max_cost,
            now,
            request.child_id,
        ),
    )
    return cast("int", cursor.lastrowid)


@functools.lru_cache(maxsize=1024)
def _price_text(price: Price) -> str:
    return json.dumps(dataclasses.asdict(price))


def settle_hold(
    conn: sqlite3.Connection, hold_id: int, cost: Msat, usage: Usage, now: int | None = None
) -> Msat:
    """See ``SqliteLedger.settle``. ``now``: unix seconds; by default the present."""
    now = int(time.time()) if now is None else now
    row = conn.execute(
        "UPDATE holds SET state = 'settled', cost_msat = min(?, max_cost_msat),"
        " prompt_tokens = ?, completion_tokens = ?, usage_source = ?, closed_at = ?"
        " WHERE id = ? AND state = 'held'"
        " RETURNING account_id, child_id, max_cost_msat, cost_msat",
        (cost, usage.prompt_tokens, usage.completion_tokens, usage.source, now, hold_id),
    ).fetchone()
    if row is None:
        closed = conn.execute("SELECT cost_msat FROM holds WHERE id = ?", (hold_id,)).fetchone()
        return Msat(closed["cost_msat"])
    account_id, child_id, held, charged = row
    end_hold_of_child(conn, child_id, held, charged, now)
    conn.execute(
        "UPDATE accounts SET held_msat = held_msat - ?, balance_msat = balance_msat - ?"
        " WHERE id = ?",
        (held, charged, account_id),
    )
    if charged:
        enter(conn, account_id, Book.REVENUE, charged, f"hold:{hold_id}")
    return Msat(charged)


def release_hold(conn: sqlite3.Connection, hold_id: int, now: int | None = None) -> None:
    """See ``SqliteLedger.release``. ``now``: unix seconds; by default the present."""
    now = int(time.time()) if now is None else now
    row = conn.execute(
        "UPDATE holds SET state = 'released', closed_at = ? WHERE id = ? AND state = 'held'"
        " RETURNING account_id, child_id, max_cost_msat",
        (now, hold_id),
    ).fetchone()
    if row is not None:
        account_id, child_id, held = row
        end_hold_of_child(conn, child_id, held, 0, now)
        conn.execute(
            "UPDATE accounts SET held_msat = held_msat - ? WHERE id = ?", (held, account_id)
        )
