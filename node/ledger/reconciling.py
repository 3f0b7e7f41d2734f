"""What a database from a backup needs before its coins may be used again.

``mark_restored`` is called on the restored file. The mark stays in ``meta`` until the coins of
every mint have been checked (node/ecash/reconcile.py):

    restored ──▶ mint after mint: ``settle`` ──▶ all checked ──▶ mark gone

| in ``settle``                  | proof                  | transfer                              |
|--------------------------------|------------------------|---------------------------------------|
| the mint says spent            | unspent → spent        | REVENUE → LOSS                        |
| the mint says pending          | unspent → parked       |                                       |
| the mint says unspent          | stays, suspect         |                                       |
| signed after the backup, ours  | stored, suspect        | LOSS → CLAIMS                         |

A parked coin (state reserved, by no operation) is ours and out of use until the mint decides. What
is in CLAIMS was paid for something that the backup does not know (node/ledger/claims.py).
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Mapping, Sequence

from node.core.accounts import CounterRange, FoundCoin, Operation, OwnCoin, Settled
from node.core.lightning import OPERATOR
from node.core.money import Msat, to_msat
from node.ledger.books import Book, transfer
from node.ledger.coins import store_loose_coin
from node.ledger.counters import (
    free_ranges,
    next_counter,
    skip,
    unwatch,
    watch_on,
    watched_mints,
    watched_ranges,
)
from node.ledger.database import Database
from node.ledger.issuing import in_transit
from node.ledger.keys import RESTORED_AT
from node.ledger.operations import move
from node.ledger.withdrawals import purse_of

_MARK = "restored"
_PARKED = "parked"
"""``operation_id`` of a coin out of use."""


def mark_restored(connection: sqlite3.Connection) -> None:
    """Let no coin be given out before its mint was asked. Idempotent; the caller commits."""
    now = int(time.time())
    mark = {"at": now, "checked": []}
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_MARK, json.dumps(mark)))
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (RESTORED_AT, str(now)))
    connection.execute("UPDATE proofs SET suspect = 1 WHERE state IN ('unspent', 'reserved')")


def read_mark(connection: sqlite3.Connection) -> tuple[int, frozenset[str]] | None:
    """(unix seconds of the restore, mints checked since); None when nothing is to be checked."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (_MARK,)).fetchone()
    if row is None:
        return None
    mark = json.loads(row[0])
    return int(mark["at"]), frozenset(mark["checked"])


def restored_at(connection: sqlite3.Connection) -> int | None:
    """When the database was last put back from a backup, in unix seconds; None: never."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (RESTORED_AT,)).fetchone()
    return None if row is None else int(row[0])


def own_coins(connection: sqlite3.Connection, mint: str) -> list[OwnCoin]:
    """Our coins of a mint that no operation is using: unspent, and parked."""
    rows = connection.execute(
        "SELECT y, unit, amount, state FROM proofs WHERE mint = ?1 AND state = 'unspent'"
        " UNION ALL SELECT y, unit, amount, state FROM proofs WHERE mint = ?1"
        " AND state = 'reserved' AND operation_id = ?2",
        (mint, _PARKED),
    )
    return [
        OwnCoin(y, to_msat(amount, unit), state == "reserved") for y, unit, amount, state in rows
    ]


def parked_mints(connection: sqlite3.Connection) -> list[str]:
    """Mints that have parked coins of ours."""
    rows = connection.execute(
        "SELECT DISTINCT mint FROM proofs WHERE state = 'reserved' AND operation_id = ?", (_PARKED,)
    )
    return [row[0] for row in rows]


def write_off(
    connection: sqlite3.Connection, operation: Operation, spent: Sequence[str], error: str
) -> None:
    """Undo a send of which ``spent`` inputs were spent by somebody else. Idempotent.

    TRANSIT → account, REVENUE → LOSS; the other inputs are free again, suspect.
    """
    if not move(connection, operation.id, "failed"):
        return
    connection.execute(
        "UPDATE operations SET error = ?, request_key = NULL WHERE id = ?", (error, operation.id)
    )
    connection.execute(
        "UPDATE proofs SET state = 'unspent', suspect = 1"
        " WHERE operation_id = ? AND state = 'reserved'",
        (operation.id,),
    )
    reference = f"op:{operation.id}"
    purse = purse_of(operation.account_id)
    transfer(connection, Book.TRANSIT, purse, in_transit(operation), reference)
    if operation.account_id != OPERATOR:
        connection.execute(
            "UPDATE accounts SET state = 'open' WHERE id = ?", (operation.account_id,)
        )
    lost = _change(connection, spent, "state = 'spent'")
    transfer(connection, Book.REVENUE, Book.LOSS, lost, reference)


class SqliteReconcileStore:
    """Implements ``node.ports.ReconcileStore``."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def unchecked(self, mints: Collection[str]) -> list[str]:
        """Those of ``mints`` whose coins are not yet checked since the restore."""
        mark = await self._db.read(read_mark)
        return [] if mark is None else [mint for mint in mints if mint not in mark[1]]

    async def finish(self, mints: Collection[str]) -> bool:
        """Take the mark away once ``mints`` and every mint of our coins are checked; whether it
        is gone."""

        def work(conn: sqlite3.Connection) -> bool:
            mark = read_mark(conn)
            if mark is None:
                return True
            rows = conn.execute(
                "SELECT DISTINCT mint FROM proofs WHERE state IN ('unspent', 'reserved')"
            )
            if not {*mints, *(row["mint"] for row in rows)} <= mark[1]:
                return False
            conn.execute("DELETE FROM meta WHERE key = ?", (_MARK,))
            return True

        return await self._db.write(work)

    async def parked(self) -> list[str]:
        """Mints that have parked coins of ours."""
        return await self._db.read(parked_mints)

    async def coins(self, mint: str) -> list[OwnCoin]:
        """Our coins of a mint that no operation is using."""
        return await self._db.read(lambda conn: own_coins(conn, mint))

    async def counter(self, keyset_id: str) -> int:
        """The first counter of a keyset above all that this database has used."""
        return await self._db.read(lambda conn: next_counter(conn, keyset_id))

    async def free(self, keyset_id: str) -> list[CounterRange]:
        """The counters below it that this database would use again."""
        return await self._db.read(lambda conn: free_ranges(conn, keyset_id))

    async def watched(self) -> list[str]:
        """Mints of which counters are watched: they may have signed what no row tells of."""
        return await self._db.read(watched_mints)

    async def ranges(self, mint: str) -> list[CounterRange]:
        """The counters of a mint that are watched."""
        return await self._db.read(lambda conn: watched_ranges(conn, mint))

    async def unknown(self, ys: Collection[str]) -> set[str]:
        """Those of the coins (by Y) that no row tells of."""

        def work(conn: sqlite3.Connection) -> set[str]:
            found = "SELECT 1 FROM proofs WHERE y = ?"
            return {y for y in ys if conn.execute(found, (y,)).fetchone() is None}

        return await self._db.read(work)

    async def settle(
        self,
        mint: str,
        *,
        spent: Sequence[str] = (),
        pending: Sequence[str] = (),
        unspent: Sequence[str] = (),
        found: Sequence[FoundCoin] = (),
        counters: Mapping[str, int] | None = None,
        watch_s: int = 0,
        looked_at: Sequence[CounterRange] = (),
    ) -> Settled:
        """Book what a mint said of our coins (by Y), in one transaction; the table above.

        Args:
            counters: keyset id → the counter to go on with; those that are skipped are watched.
                None: some of the mint's coins were asked for again, which does not make the mint
                checked.
            watch_s: how long to watch from now on; 0: nothing is to be expected any more.
            looked_at: watched counters of which all that was found is in ``found``; their watch
                ends if its time is over.

        A coin that an operation has taken meanwhile is left to that operation.
        """
        now = int(time.time())

        def work(conn: sqlite3.Connection) -> Settled:
            lost = _change(conn, spent, "state = 'spent'")
            _change(conn, pending, f"state = 'reserved', operation_id = '{_PARKED}'")
            _change(conn, unspent, "state = 'unspent', suspect = 1")
            gained = 0
            for coin in found:
                if store_loose_coin(conn, mint, coin):
                    gained += to_msat(coin.proof.amount, coin.unit)
            transfer(conn, Book.REVENUE, Book.LOSS, lost, f"restore:{mint}")
            transfer(conn, Book.LOSS, Book.CLAIMS, gained, f"restore:{mint}")
            if counters is not None:
                for keyset_id, first in counters.items():
                    skip(conn, mint, keyset_id, first, now + watch_s)
                _check_off(conn, mint)
            if watch_s:
                watch_on(conn, mint, now + watch_s)
            unwatch(conn, looked_at, now)
            return Settled(Msat(lost), Msat(gained))

        return await self._db.write(work)


def _change(conn: sqlite3.Connection, ys: Sequence[str], assignment: str) -> int:
    """Assign to those of the coins that no operation has; what they are worth in msat."""
    worth = 0
    for y in ys:
        row = conn.execute(
            f"UPDATE proofs SET {assignment} WHERE y = ? AND (state = 'unspent'"  # noqa: S608
            " OR (state = 'reserved' AND operation_id = ?)) RETURNING amount, unit",
            (y, _PARKED),
        ).fetchone()
        if row is not None:
            worth += to_msat(row["amount"], row["unit"])
    return worth


def _check_off(conn: sqlite3.Connection, mint: str) -> None:
    """Note that the mint is checked, if there is a mark."""
    mark = read_mark(conn)
    if mark is not None:
        value = json.dumps({"at": mark[0], "checked": sorted(mark[1] | {mint})})
        conn.execute("UPDATE meta SET value = ? WHERE key = ?", (value, _MARK))
