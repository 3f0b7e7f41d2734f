"""Sessions of the operator in the database: digests only, so that a copy of it opens nothing."""

from __future__ import annotations

import sqlite3

from node.ledger.database import Database


class SqliteAdminSessions:
    """Implements ``node.admin.sessions.SessionStore``."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def add(self, digest: bytes, password: bytes, now: int, *, most: int) -> None:
        """Keep a new session; of more than ``most`` those used longest ago are forgotten."""

        def work(conn: sqlite3.Connection) -> None:
            conn.execute(
                "INSERT INTO admin_sessions VALUES (?, ?, ?, ?)", (digest, password, now, now)
            )
            conn.execute(
                "DELETE FROM admin_sessions WHERE digest != ? AND digest NOT IN (SELECT digest"
                " FROM admin_sessions WHERE digest != ? ORDER BY used_at DESC, digest LIMIT ?)",
                (digest, digest, most - 1),
            )

        await self._db.write(work)

    async def find(self, digest: bytes) -> tuple[bytes, int, int] | None:
        """(fingerprint of the password, created at, used at)"""
        row = await self._db.read(
            lambda conn: conn.execute(
                "SELECT password, created_at, used_at FROM admin_sessions WHERE digest = ?",
                (digest,),
            ).fetchone()
        )
        return None if row is None else (row["password"], row["created_at"], row["used_at"])

    async def touch(self, digest: bytes, now: int) -> None:
        """It was used now."""
        await self._db.write(
            lambda conn: conn.execute(
                "UPDATE admin_sessions SET used_at = ? WHERE digest = ?", (now, digest)
            )
        )

    async def remove(self, digest: bytes) -> None:
        """Forget it."""
        await self._db.write(
            lambda conn: conn.execute("DELETE FROM admin_sessions WHERE digest = ?", (digest,))
        )

    async def prune(self, *, created_before: int, used_before: int) -> None:
        """Forget those that were made or last used before."""
        await self._db.write(
            lambda conn: conn.execute(
                "DELETE FROM admin_sessions WHERE created_at <= ? OR used_at <= ?",
                (created_before, used_before),
            )
        )
