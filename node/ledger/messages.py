"""The log of requests over Nostr: each (sender, id) runs once, its answer is kept for replay."""

from __future__ import annotations

import json
import sqlite3
import time

from node.ledger.database import Database
from node.ports import MessageRecord, StoredReply


class SqliteMessageLog:
    """Implements ``node.ports.MessageLog``."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def begin(self, sender: str, message_id: str, digest: str) -> MessageRecord:
        """Store (sender, id, digest) or tell what was stored before."""

        def work(conn: sqlite3.Connection) -> MessageRecord:
            row = conn.execute(
                "SELECT * FROM messages WHERE sender = ? AND id = ?", (sender, message_id)
            ).fetchone()
            if row is None:
                conn.execute(
                    "INSERT INTO messages (sender, id, digest, created_at) VALUES (?, ?, ?, ?)",
                    (sender, message_id, digest, int(time.time())),
                )
                return MessageRecord("new")
            if row["digest"] != digest:
                return MessageRecord("conflict")
            if row["status"] is None:
                return MessageRecord("started")
            return MessageRecord(
                "done",
                StoredReply(
                    status=row["status"],
                    headers=json.loads(row["headers"]),
                    body=row["body"],
                    trailers=json.loads(row["trailers"]),
                ),
            )

        return await self._db.write(work)

    async def finish(self, sender: str, message_id: str, reply: StoredReply) -> None:
        """Keep the answer."""
        await self._db.write(
            lambda conn: conn.execute(
                "UPDATE messages SET status = ?, headers = ?, body = ?, trailers = ?"
                " WHERE sender = ? AND id = ?",
                (
                    reply.status,
                    json.dumps(dict(reply.headers)),
                    reply.body,
                    json.dumps(dict(reply.trailers)),
                    sender,
                    message_id,
                ),
            )
        )

    async def prune(self, older_than_s: int) -> int:
        """Forget messages older than that; returns how many."""
        limit = int(time.time()) - older_than_s
        return await self._db.write(
            lambda conn: (
                conn.execute("DELETE FROM messages WHERE created_at < ?", (limit,)).rowcount
            )
        )

    async def load_healthy(self) -> int | None:
        """The last moment (unix seconds) at which every relay was connected, if one was stored."""
        row = await self._db.read(
            lambda conn: conn.execute(
                "SELECT value FROM meta WHERE key = 'relays_healthy_at'"
            ).fetchone()
        )
        return None if row is None else int(row["value"])

    async def store_healthy(self, moment: int) -> None:
        """Keep that moment over a restart."""
        await self._db.write(
            lambda conn: conn.execute(
                "INSERT OR REPLACE INTO meta VALUES ('relays_healthy_at', ?)", (str(moment),)
            )
        )
