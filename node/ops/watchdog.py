"""Adds the books up again and again, and says when the coins do not cover what clients are owed.

| what it finds                            | log (error)       | /health/ready     | solvent |
|------------------------------------------|-------------------|-------------------|---------|
| books add up, coins ≥ debts              | -                 | ok                | yes     |
| books add up, coins < debts              | insolvent         | insolvent         | no      |
| books do not add up                      | books_wrong       | books wrong       | no      |
| no sum for STALE_INTERVALS, or not yet   | background task   | books not checked | no      |

Without ``solvent`` no payout to the operator is made. A node that is not ready gets no new clients
from whatever stands in front of it, so no new money comes in; those it has can go on and withdraw.

Summing never waits for the writer and never lets it wait: it reads on a connection and a thread of
its own, from sums that are stored every time and cost the writer a few milliseconds.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from node.ledger.books import Books, checkpoint, read_books
from node.ledger.database import Database

log = structlog.get_logger()

CHUNK = 20_000
"""Transfers added to the stored sums in one transaction."""
STALE_INTERVALS = 3
"""After so many intervals without a sum, the last one is no longer believed."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at the books, for the health check and for metrics."""

    books: Books
    problems: tuple[str, ...]
    """Where they do not add up."""
    took_s: float
    read_at: float
    """On the monotonic clock."""

    @property
    def solvent(self) -> bool:
        """The books are right, and the coins cover what clients are owed."""
        return not self.problems and self.books.solvent


class Watchdog:
    """Watches the books of one database.

    Args:
        path: of ``database``, which may be in use by this process.
        interval_s: between two looks.
    """

    def __init__(self, database: Database, path: Path, *, interval_s: float = 60.0) -> None:
        self._database = database
        self._path = path
        self._interval_s = interval_s
        self.last: Reading | None = None
        """The newest reading."""

    @property
    def solvent(self) -> bool:
        """Whether money may be taken out of the node: a recent reading says so."""
        return self.problem() is None

    def problem(self) -> str | None:
        """What is wrong, in a few public words; None when nothing is."""
        reading = self.last
        if reading is None:
            return "books not checked"
        if time.monotonic() - reading.read_at > STALE_INTERVALS * self._interval_s:
            return "books not checked"
        if reading.problems:
            return "books wrong"
        return None if reading.books.solvent else "insolvent"

    async def check(self) -> Reading:
        """Add the books up now. Raises StorageError, sqlite3.Error."""
        started = time.monotonic()
        while await self._database.write(lambda conn: checkpoint(conn, CHUNK)):
            pass
        books = await asyncio.to_thread(read_books, self._path, checkpointed=True)
        now = time.monotonic()
        reading = Reading(books, tuple(books.problems()), now - started, now)
        before, self.last = self.last, reading
        if reading.problems:
            log.error("books_wrong", problems=reading.problems, hint=_HINT)
        elif not books.solvent:
            log.error(
                "insolvent",
                coins_msat=books.proofs_msat,
                owed_msat=books.liabilities_msat,
                missing_msat=-books.equity_msat,
                hint=_HINT,
            )
        elif before is not None and not before.solvent:
            log.warning("solvent_again", equity_msat=books.equity_msat)
        return reading

    async def run(self) -> None:
        """Look at every interval, for ever."""
        while True:
            await asyncio.sleep(self._interval_s)
            await self.check()


_HINT = "payouts have stopped; run 'nodestr check --online' to see what is missing"
