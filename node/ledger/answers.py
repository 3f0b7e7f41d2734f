"""Answers kept for ``Idempotency-Key``: asked again, a paid request gives what it gave."""

from __future__ import annotations

import time

from node.core.exchange import StoredAnswer
from node.core.money import Msat
from node.ledger.database import Database


class SqliteAnswers:
    """Implements ``node.ports.AnswerStore``."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def keep(self, hold_id: int, key: str, digest: str, answer: StoredAnswer) -> None:
        """Store the answer that a settled hold paid for; the first one stays."""
        await self._db.write(
            lambda conn: conn.execute(
                "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    hold_id,
                    key,
                    digest,
                    answer.status,
                    answer.content_type,
                    answer.body,
                    answer.cost,
                    int(time.time()),
                ),
            )
        )

    async def find(self, hold_id: int, key: str, digest: str) -> StoredAnswer | None:
        """What was stored for exactly this request, if anything."""
        row = await self._db.read(
            lambda conn: conn.execute(
                "SELECT * FROM answers WHERE hold_id = ? AND request_key = ? AND digest = ?",
                (hold_id, key, digest),
            ).fetchone()
        )
        if row is None:
            return None
        return StoredAnswer(row["status"], row["content_type"], row["body"], Msat(row["cost_msat"]))

    async def prune(self, older_than_s: int) -> int:
        """Forget what is older; returns how many."""
        limit = int(time.time()) - older_than_s
        return await self._db.write(
            lambda conn: conn.execute("DELETE FROM answers WHERE created_at < ?", (limit,)).rowcount
        )
