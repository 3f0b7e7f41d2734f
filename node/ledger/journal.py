"""What the wallet asks the database: keysets, operations and where they stand, its secrets."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable
from typing import cast

from node.core.accounts import Operation
from node.core.ecash import Keyset
from node.ledger.counters import next_counter
from node.ledger.database import Database
from node.ledger.operations import ended_sharing, load_operation, operation_from


class Journal:
    """The part of ``node.ports.WalletStore`` that moves no money."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def keysets(self, mint: str) -> list[Keyset]:
        """The keysets of ``mint`` as last stored."""
        rows = await self._db.read(
            lambda conn: conn.execute("SELECT * FROM keysets WHERE mint = ?", (mint,)).fetchall()
        )
        return [
            Keyset(
                id=row["id"],
                unit=row["unit"],
                active=bool(row["active"]),
                input_fee_ppk=row["input_fee_ppk"],
                keys={int(amount): key for amount, key in json.loads(row["keys"]).items()},
            )
            for row in rows
        ]

    async def save_keysets(self, mint: str, keysets: Iterable[Keyset]) -> None:
        """Store what a mint lists; keysets it no longer lists are kept, inactive."""
        rows = [
            (mint, k.id, k.unit, int(k.active), k.input_fee_ppk, json.dumps(dict(k.keys)))
            for k in keysets
        ]

        def work(conn: sqlite3.Connection) -> None:
            conn.execute("UPDATE keysets SET active = 0 WHERE mint = ?", (mint,))
            conn.executemany("INSERT OR REPLACE INTO keysets VALUES (?, ?, ?, ?, ?, ?)", rows)

        await self._db.write(work)

    async def ended_sharing(self, operation_id: str) -> list[Operation]:
        """Operations that had failed when this one began, and have an input in common with it.

        One that is not failed any more has landed late.
        """
        return await self._db.read(lambda conn: ended_sharing(conn, operation_id))

    async def failed_unknown(self, since_s: int) -> list[Operation]:
        """Operations whose outcome was once unknown and that failed within ``since_s``."""
        limit = int(time.time()) - since_s
        rows = await self._db.read(
            lambda conn: conn.execute(
                "SELECT * FROM operations WHERE state = 'failed' AND attempts > 0"
                " AND failed_at >= ?",
                (limit,),
            ).fetchall()
        )
        return [operation_from(row) for row in rows]

    async def counter(self, keyset_id: str) -> int:
        """The first counter of a keyset that was never used."""
        return await self._db.read(lambda conn: next_counter(conn, keyset_id))

    async def operation(self, operation_id: str) -> Operation:
        """One operation as it stands."""
        return await self._db.read(lambda conn: load_operation(conn, operation_id))

    async def open_operations(self) -> list[Operation]:
        """Every intent, oldest first: what recovery has to finish."""
        rows = await self._db.read(
            lambda conn: conn.execute(
                "SELECT * FROM operations WHERE state = 'intent' ORDER BY created_at, id"
            ).fetchall()
        )
        return [operation_from(row) for row in rows]

    async def undelivered(self, account_id: int) -> list[Operation]:
        """Tokens that no request key names and no answer carried yet, oldest first."""
        rows = await self._db.read(
            lambda conn: conn.execute(
                "SELECT * FROM operations WHERE account_id = ? AND kind = 'send'"
                " AND state IN ('intent', 'done') AND request_key IS NULL AND NOT delivered"
                " ORDER BY rowid",
                (account_id,),
            ).fetchall()
        )
        return [operation_from(row) for row in rows]

    async def last_send(self, account_id: int) -> Operation | None:
        """The newest token issued, or being issued, from an account."""
        row = await self._db.read(
            lambda conn: conn.execute(
                "SELECT * FROM operations WHERE account_id = ? AND kind = 'send'"
                " AND state IN ('intent', 'done') ORDER BY rowid DESC LIMIT 1",
                (account_id,),
            ).fetchone()
        )
        return None if row is None else operation_from(row)

    async def last_reference(self, account_id: int) -> str:
        """What last moved money of the account: ``op:<id>``, ``hold:<id>`` …; empty if nothing."""
        row = await self._db.read(
            lambda conn: conn.execute(
                "SELECT reference FROM transfers WHERE source = ?1 OR destination = ?1"
                " ORDER BY id DESC LIMIT 1",
                (account_id,),
            ).fetchone()
        )
        return "" if row is None else cast("str", row["reference"])

    async def idle_request_accounts(self, older_than_s: int) -> list[int]:
        """Open pay-per-request accounts with money nobody is using, of at least that age."""
        limit = int(time.time()) - older_than_s
        rows = await self._db.read(
            lambda conn: conn.execute(
                "SELECT id FROM accounts WHERE kind = 'request' AND state = 'open'"
                " AND held_msat = 0 AND balance_msat > 0 AND created_at <= ?",
                (limit,),
            ).fetchall()
        )
        return [row["id"] for row in rows]

    async def account_state(self, account_id: int) -> tuple[str, bool]:
        """(``open`` or ``closed``, whether a hold is open)."""
        row = await self._db.read(
            lambda conn: conn.execute(
                "SELECT state, EXISTS (SELECT 1 FROM holds WHERE account_id = a.id"
                " AND state = 'held') AS held FROM accounts a WHERE id = ?",
                (account_id,),
            ).fetchone()
        )
        return row["state"], bool(row["held"])

    async def secret(self, name: str, make: Callable[[], str]) -> str:
        """A secret kept in the database, made on first use."""

        def work(conn: sqlite3.Connection) -> str:
            conn.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, make()))
            row = conn.execute("SELECT value FROM meta WHERE key = ?", (name,)).fetchone()
            return cast("str", row["value"])

        return await self._db.write(work)
