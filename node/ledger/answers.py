"""Answers kept for ``Idempotency-Key``: asked again, a paid request gives what it gave.

They are compressed, and have a budget in bytes, of each account and in all. When it is used up the
oldest go, of the account first. Who asks again for one that is gone is told so (Interrupted): it
is never run a second time.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from node.core.exchange import StoredAnswer
from node.core.money import Msat
from node.ledger.database import Database

log = structlog.get_logger()

T = TypeVar("T")

MAX_BYTES = 1 << 30
"""Of all answers."""
MAX_ACCOUNT_BYTES = 64 << 20
"""Of the answers of one account."""
ROW_BYTES = 256
"""What an answer takes beside its body."""
SLICE_ANSWERS = 256
SLICE_BYTES = 16 << 20
"""At most so many answers and bytes (one answer more) are dropped in one transaction."""
_LEVEL = 1
_WORTH_A_THREAD_BYTES = 64 << 10
_LEAST_BYTES = 512
"""What is shorter is stored as it is."""

# What can be dropped, the oldest first; the last value of each is how many.
_ANY = "SELECT hold_id, size_bytes FROM answers ORDER BY created_at LIMIT ?"
_OLDER = "SELECT hold_id, size_bytes FROM answers WHERE created_at < ? ORDER BY created_at LIMIT ?"
_OF_ACCOUNT = (
    "SELECT hold_id, size_bytes FROM answers WHERE account_id = ? AND hold_id != ?"
    " ORDER BY created_at LIMIT ?"
)


@dataclass(frozen=True, slots=True)
class _Packed:
    body: bytes
    encoding: str


class SqliteAnswers:
    """Implements ``node.ports.AnswerStore``.

    Args:
        max_bytes: of all answers, compressed.
        max_account_bytes: of those of one account.
    """

    def __init__(
        self,
        database: Database,
        *,
        max_bytes: int = MAX_BYTES,
        max_account_bytes: int = MAX_ACCOUNT_BYTES,
    ) -> None:
        self._db = database
        self._max_bytes = max_bytes
        self._max_account_bytes = max_account_bytes

    async def keep(self, hold_id: int, key: str, digest: str, answer: StoredAnswer) -> None:
        """Store the answer that a settled hold paid for; the first one stays.

        One that is larger than a budget is not stored.
        """
        packed = await _off_the_loop(len(answer.body), _pack, answer.body)
        size_bytes = len(packed.body) + len(key) + ROW_BYTES
        if size_bytes > min(self._max_bytes, self._max_account_bytes):
            return
        now = int(time.time())

        def work(conn: sqlite3.Connection) -> bool:
            (account_id,) = conn.execute(
                "SELECT account_id FROM holds WHERE id = ?", (hold_id,)
            ).fetchone()
            conn.execute(
                "INSERT OR IGNORE INTO answers (hold_id, request_key, digest, status, content_type,"
                " body, cost_msat, created_at, account_id, size_bytes, encoding)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    hold_id,
                    key,
                    digest,
                    answer.status,
                    answer.content_type,
                    packed.body,
                    answer.cost,
                    now,
                    account_id,
                    size_bytes,
                    packed.encoding,
                ),
            )
            return self._shrink(conn, account_id, hold_id)

        if await self._db.write(work):
            await self._shrink_all()

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
        body = row["body"]
        if row["encoding"] == "zlib":
            try:
                body = await _off_the_loop(len(body), zlib.decompress, body)
            except zlib.error:
                log.error("stored_answer_damaged", hold_id=hold_id)
                return None
        return StoredAnswer(row["status"], row["content_type"], body, Msat(row["cost_msat"]))

    async def prune(self, older_than_s: int) -> int:
        """Forget what is older, and what is above the budget of all; returns how many."""
        limit = int(time.time()) - older_than_s
        forgotten = 0

        def work(conn: sqlite3.Connection) -> int:
            return _drop_oldest(conn, _OLDER, (limit,), SLICE_BYTES)

        while dropped := await self._db.write(work):
            forgotten += dropped
        return forgotten + await self._shrink_all()

    async def _shrink_all(self) -> int:
        """Bring the sum of all within the budget, a slice at a time; returns how many went."""
        forgotten = 0

        def work(conn: sqlite3.Connection) -> int:
            above = _sum(conn, 0) - self._max_bytes
            return _drop_oldest(conn, _ANY, (), above) if above > 0 else 0

        while dropped := await self._db.write(work):
            forgotten += dropped
        return forgotten

    def _shrink(self, conn: sqlite3.Connection, account_id: int, kept: int) -> bool:
        """Drop what is above the account's budget, but not ``kept``; says whether all together
        are above theirs."""
        above = _sum(conn, account_id) - self._max_account_bytes
        if above > 0:
            # What a slice leaves above the budget goes with the account's next answer.
            _drop_oldest(conn, _OF_ACCOUNT, (account_id, kept), above)
        return _sum(conn, 0) > self._max_bytes


def _sum(conn: sqlite3.Connection, account_id: int) -> int:
    row = conn.execute(
        "SELECT size_bytes FROM answer_sums WHERE account_id = ?", (account_id,)
    ).fetchone()
    return int(row[0]) if row is not None else 0


def _drop_oldest(
    conn: sqlite3.Connection, query: str, values: tuple[int, ...], size_bytes: int
) -> int:
    """Drop the oldest until ``size_bytes`` are free or a slice is full; returns how many."""
    ids: list[tuple[int]] = []
    left = min(size_bytes, SLICE_BYTES)
    rows = conn.execute(query, (*values, SLICE_ANSWERS))
    for hold_id, size in rows:
        if left <= 0:
            break
        left -= size
        ids.append((hold_id,))
    rows.close()
    conn.executemany("DELETE FROM answers WHERE hold_id = ?", ids)
    return len(ids)


def _pack(body: bytes) -> _Packed:
    if len(body) >= _LEAST_BYTES:
        packed = zlib.compress(body, _LEVEL)
        if len(packed) < len(body):
            return _Packed(packed, "zlib")
    return _Packed(body, "")


async def _off_the_loop(size_bytes: int, work: Callable[[bytes], T], data: bytes) -> T:
    """``work(data)``; in a thread when ``size_bytes`` say that it takes long."""
    if size_bytes < _WORTH_A_THREAD_BYTES:
        return work(data)
    return await asyncio.to_thread(work, data)
