"""Child keys and the terms of accounts.

                 hold: held += max cost            settle: held -= max cost, spent += cost
    limit ────────────────────────────▶ reserved ─────────────────────────────────────────▶ spent
                                          └── release: held -= max cost

| what happens                                  | outcome                                      |
|-----------------------------------------------|----------------------------------------------|
| spent + held + max cost > limit               | LimitExceeded, nothing changes               |
| a new period (UTC day, week, month) begins    | spent is 0 again; what is held still counts  |
| a hold of the last period is settled          | counts in the period in which it is settled  |
| revoked                                       | takes no new hold; those that run are ended  |
| expired (its own date or its account's)       | KeyExpired; withdrawing stays possible       |
| made again under the same request key         | the same keys, paid for once                 |
| the same with other terms or another number   | IdempotencyConflict                          |

The child's row changes in the transaction that changes the account's, so at no moment and in no
order of events do the costs settled in one period exceed the limit.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from typing import cast

from node.core.accounts import HoldRequest
from node.core.keys import (
    ChildKey,
    ChildTerms,
    NewChildren,
    Spending,
    Terms,
    period_start,
)
from node.core.money import Msat
from node.errors import (
    IdempotencyConflict,
    InsufficientBalance,
    InvalidApiKey,
    InvalidValue,
    KeyExpired,
    LimitExceeded,
    NotFound,
)
from node.ledger.books import Book, transfer
from node.ledger.database import Database

MAX_CHILDREN = 1000
"""Live child keys of one account, at most."""
RESTORED_AT = "restored_at"
"""Key in ``meta``: unix seconds at which this database was last restored from a backup."""
_MAX_DOUBLINGS = 20
_ANY = Msat(1)


class SqliteKeys:
    """Implements ``node.ports.KeyStore``.

    Args:
        forget: called with the hash of every key that is revoked, so that no cache knows it.
        clock: unix seconds.
    """

    def __init__(
        self,
        database: Database,
        forget: Callable[[str], None],
        *,
        max_children: int = MAX_CHILDREN,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._db = database
        self._forget = forget
        self._max_children = max_children
        self._clock = clock

    def create(self, account_id: int, new: NewChildren) -> asyncio.Future[list[ChildKey]]:
        """Make child keys and charge for them.

        Raises InsufficientBalance, InvalidValue when the account has too many, KeyExpired,
        IdempotencyConflict.
        """
        return self._db.write(
            lambda conn: create_children(
                conn, account_id, new, self._max_children, int(self._clock())
            )
        )

    async def children(self, account_id: int) -> list[ChildKey]:
        """The account's child keys that are not revoked, oldest first."""
        now = int(self._clock())
        rows = await self._db.read(
            lambda conn: conn.execute(
                "SELECT * FROM child_keys WHERE account_id = ? AND revoked_at IS NULL ORDER BY id",
                (account_id,),
            ).fetchall()
        )
        return [_child_from(row, now) for row in rows]

    async def child(self, child_id: int) -> ChildKey:
        """One child key."""
        now = int(self._clock())
        row = await self._db.read(lambda conn: _row(conn, child_id))
        return _child_from(row, now)

    async def spending(self, account_id: int) -> dict[int | None, Spending]:
        """Child key's id (None: the account's own keys) → what was paid with it so far."""
        rows = await self._db.read(
            lambda conn: conn.execute(
                "SELECT child_id, COUNT(*) AS n, SUM(cost_msat) AS spent FROM holds"
                " WHERE account_id = ? AND state = 'settled' GROUP BY child_id",
                (account_id,),
            ).fetchall()
        )
        return {row["child_id"]: Spending(row["n"], Msat(row["spent"])) for row in rows}

    async def reset(self, account_id: int, hashed: str) -> None:
        """Let a child key's limit begin anew. Raises NotFound."""

        def work(conn: sqlite3.Connection) -> None:
            now = int(self._clock())
            updated = conn.execute(
                "UPDATE child_keys SET spent_msat = 0, period_start = MAX(period_start, ?)"
                " WHERE hash = ? AND account_id = ? AND revoked_at IS NULL",
                (now, hashed, account_id),
            )
            if updated.rowcount != 1:
                raise NotFound("this account has no such child key")

        await self._db.write(work)

    async def revoke(self, account_id: int, hashed: str) -> None:
        """Take a child key back; what it pays for right now is still charged. Raises NotFound.

        Revoking it again does nothing.
        """

        def work(conn: sqlite3.Connection) -> None:
            now = int(self._clock())
            updated = conn.execute(
                "UPDATE child_keys SET revoked_at = COALESCE(revoked_at, ?)"
                " WHERE hash = ? AND account_id = ?",
                (now, hashed, account_id),
            )
            if updated.rowcount != 1:
                raise NotFound("this account has no such child key")
            conn.execute("DELETE FROM api_keys WHERE hash = ?", (hashed,))

        await self._db.write(work)
        self._forget(hashed)

    async def to_refund(self, limit: int, floor: Msat = _ANY) -> list[tuple[int, str]]:
        """(id, refund address) of expired accounts that are to be refunded now.

        Those with ``floor`` msat or more, of which nothing is under way, that were not tried a
        moment ago. Those that had expired when the database came from a backup are left out: a
        refund made after the backup would be made again.
        """
        now = int(self._clock())
        rows = await self._db.read(
            lambda conn: conn.execute(
                "SELECT t.account_id, refund_address FROM account_terms t"
                " JOIN accounts a ON a.id = t.account_id"
                " LEFT JOIN refunds r ON r.account_id = t.account_id"
                " WHERE refund_address IS NOT NULL AND expires_at <= ?1"
                " AND expires_at > COALESCE((SELECT CAST(value AS INTEGER) FROM meta"
                "  WHERE key = ?4), 0)"
                " AND balance_msat >= ?2 AND held_msat = 0 AND COALESCE(r.next_at, 0) <= ?1"
                " AND NOT EXISTS (SELECT 1 FROM operations o"
                "  WHERE o.account_id = t.account_id AND o.state = 'intent')"
                " ORDER BY COALESCE(r.next_at, expires_at) LIMIT ?3",
                (now, floor, limit, RESTORED_AT),
            ).fetchall()
        )
        return [(row["account_id"], row["refund_address"]) for row in rows]

    async def count_try(self, account_id: int, first_s: float, most_s: float) -> None:
        """A refund is tried now; the next one after a pause that doubles with every try.

        Args:
            first_s: the first pause.
            most_s: the longest.
        """

        def work(conn: sqlite3.Connection) -> None:
            row = conn.execute(
                "SELECT tries FROM refunds WHERE account_id = ?", (account_id,)
            ).fetchone()
            tries = 0 if row is None else row["tries"]
            pause_s = min(most_s, first_s * 2 ** min(tries, _MAX_DOUBLINGS))
            next_at = int(self._clock() + pause_s)
            conn.execute(
                "INSERT OR REPLACE INTO refunds VALUES (?, ?, ?)", (account_id, tries + 1, next_at)
            )

        await self._db.write(work)

    async def forget_tries(self, account_id: int) -> None:
        """A refund was made: the next one need not wait."""
        await self._db.write(
            lambda conn: conn.execute("DELETE FROM refunds WHERE account_id = ?", (account_id,))
        )


# -- in a transaction of the caller ----------------------------------------------------------


def store_terms(conn: sqlite3.Connection, account_id: int, terms: Terms) -> None:
    """Write what a new account is opened with; replaces those of a token that was refused."""
    conn.execute("DELETE FROM account_terms WHERE account_id = ?", (account_id,))
    if terms != Terms():
        conn.execute(
            "INSERT INTO account_terms VALUES (?, ?, ?)",
            (account_id, terms.expires_at, terms.refund_address),
        )


def create_children(
    conn: sqlite3.Connection, account_id: int, new: NewChildren, max_children: int, now: int
) -> list[ChildKey]:
    """See ``SqliteKeys.create``."""
    if new.request_key is not None:
        rows = conn.execute(
            "SELECT * FROM child_keys WHERE account_id = ? AND request_key = ? ORDER BY id",
            (account_id, new.request_key),
        ).fetchall()
        if rows:
            known = [_child_from(row, now) for row in rows]
            if len(known) != len(new.names) or known[0].terms != new.terms:
                raise IdempotencyConflict
            return known
    check_terms(conn, account_id, now)
    live = conn.execute(
        "SELECT COUNT(*) FROM child_keys WHERE account_id = ? AND revoked_at IS NULL",
        (account_id,),
    ).fetchone()[0]
    if live + len(new.names) > max_children:
        raise InvalidValue(f"an account has at most {max_children} child keys", param="count")
    free = conn.execute(
        "SELECT balance_msat - held_msat FROM accounts WHERE id = ?", (account_id,)
    ).fetchone()[0]
    if free < new.cost:
        raise InsufficientBalance(f"these keys cost {new.cost} msat, {free} msat are available")
    made = []
    for name in new.names:
        hashed = new.hash_of(name)
        cursor = conn.execute(
            "INSERT INTO child_keys (account_id, name, hash, parent, request_key, limit_msat,"
            " reset, expires_at, period_start, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                account_id,
                name,
                hashed,
                new.parent,
                new.request_key,
                new.terms.limit,
                new.terms.reset,
                new.terms.expires_at,
                period_start(new.terms.reset, now),
                now,
            ),
        )
        conn.execute("INSERT INTO api_keys VALUES (?, ?, 'child')", (hashed, account_id))
        child_id = cast("int", cursor.lastrowid)
        made.append(ChildKey(child_id, name, new.parent, new.terms, Msat(0), Msat(0)))
    transfer(conn, account_id, Book.REVENUE, new.cost, f"keys:{made[0].id}")
    return made


def read_terms(conn: sqlite3.Connection, account_id: int) -> Terms:
    """What the account was opened with."""
    row = conn.execute(
        "SELECT expires_at, refund_address FROM account_terms WHERE account_id = ?", (account_id,)
    ).fetchone()
    return Terms() if row is None else Terms(row["expires_at"], row["refund_address"])


def check_terms(conn: sqlite3.Connection, account_id: int, now: int) -> None:
    """Raise KeyExpired when the account may no longer spend."""
    expires_at = read_terms(conn, account_id).expires_at
    if expires_at is not None and expires_at <= now:
        raise KeyExpired


def hold_of_child(
    conn: sqlite3.Connection, account_id: int, request: HoldRequest, now: int
) -> None:
    """Set the request's max cost aside within the limit of the child key that pays, if one does.

    Raises LimitExceeded, KeyExpired, InvalidApiKey when it was revoked.
    """
    if request.child_id is None:
        return
    row = _row(conn, request.child_id)
    if row is None or row["revoked_at"] is not None or row["account_id"] != account_id:
        raise InvalidApiKey
    if row["expires_at"] is not None and row["expires_at"] <= now:
        raise KeyExpired
    start, spent = _period(row, now)
    held = row["held_msat"] + request.max_cost
    if row["limit_msat"] is not None and spent + held > row["limit_msat"]:
        left = max(0, row["limit_msat"] - spent - row["held_msat"])
        raise LimitExceeded(
            f"this request may cost up to {request.max_cost} msat, the limit of this key leaves"
            f" {left} msat"
        )
    _store(conn, request.child_id, start, spent, held)


def end_hold_of_child(
    conn: sqlite3.Connection, child_id: int | None, held: int, cost: int, now: int
) -> None:
    """Free what a child key's hold had set aside, and count what it cost."""
    if child_id is None:
        return
    row = _row(conn, child_id)
    start, spent = _period(row, now)
    _store(conn, child_id, start, spent + cost, row["held_msat"] - held)


def child_discrepancies(conn: sqlite3.Connection) -> list[str]:
    """Child keys whose counters differ from their holds, or that exceed their limit."""
    rows = conn.execute(
        "SELECT c.*,"
        " (SELECT COALESCE(SUM(max_cost_msat), 0) FROM holds h WHERE h.account_id = c.account_id"
        "  AND h.child_id = c.id AND state = 'held') AS holding,"
        " (SELECT COALESCE(SUM(cost_msat), 0) FROM holds h WHERE h.account_id = c.account_id"
        "  AND h.child_id = c.id AND state = 'settled' AND closed_at >= period_start) AS most"
        " FROM child_keys c"
    )
    return [
        f"child key {row['id']}: held {row['held_msat']} msat, holds say {row['holding']};"
        f" spent {row['spent_msat']} msat, holds say at most {row['most']};"
        f" limit {row['limit_msat']}"
        for row in rows
        if row["held_msat"] != row["holding"]
        or row["spent_msat"] > row["most"]
        or (
            row["limit_msat"] is not None
            and row["spent_msat"] + row["held_msat"] > row["limit_msat"]
        )
    ]


def _row(conn: sqlite3.Connection, child_id: int) -> sqlite3.Row:
    return cast(
        "sqlite3.Row",
        conn.execute("SELECT * FROM child_keys WHERE id = ?", (child_id,)).fetchone(),
    )


def _period(row: sqlite3.Row, now: int) -> tuple[int, int]:
    """(when the present period began, what was spent in it). A clock set back changes neither."""
    start = period_start(row["reset"], now)
    if start <= row["period_start"]:
        return row["period_start"], row["spent_msat"]
    return start, 0


def _store(conn: sqlite3.Connection, child_id: int, start: int, spent: int, held: int) -> None:
    conn.execute(
        "UPDATE child_keys SET period_start = ?, spent_msat = ?, held_msat = ? WHERE id = ?",
        (start, spent, held, child_id),
    )


def _child_from(row: sqlite3.Row, now: int) -> ChildKey:
    return ChildKey(
        id=row["id"],
        name=row["name"],
        parent=row["parent"],
        terms=ChildTerms(row["limit_msat"], row["reset"], row["expires_at"]),
        spent=Msat(_period(row, now)[1]),
        held=Msat(row["held_msat"]),
    )
