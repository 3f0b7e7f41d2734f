"""What a database from a backup needs before its coins may be used again.

``mark_restored`` is called on the restored file. The mark stays in ``meta`` until the coins of
every mint have been checked (node/ecash/reconcile.py):

    restored ──▶ mint after mint: ``settle`` ──▶ all checked ──▶ mark gone

| in ``settle``                  | proof                  | transfer                              |
|--------------------------------|------------------------|---------------------------------------|
| the mint says spent            | unspent → spent        | REVENUE → LOSS                        |
| the mint says pending          | unspent → parked       |                                       |
| the mint says unspent          | stays, suspect         |                                       |
| signed after the backup, ours  | stored, suspect        | LOSS → REVENUE                        |

A parked coin (state reserved, by no operation) is ours and out of use until the mint decides.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Mapping, Sequence

from node.core.accounts import FoundCoin, Operation, OwnCoin, Settled
from node.core.money import Msat, to_msat
from node.ledger.books import Book, transfer
from node.ledger.coins import advance_counter, next_counter, store_loose_coin
from node.ledger.database import Database
from node.ledger.issuing import in_transit
from node.ledger.operations import move

_MARK = "restored"
_PARKED = "parked"
"""``operation_id`` of a coin out of use."""


def mark_restored(connection: sqlite3.Connection) -> None:
    """Let no coin be given out before its mint was asked. Idempotent; the caller commits."""
    mark = {"at": int(time.time()), "checked": []}
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_MARK, json.dumps(mark)))
    connection.execute("UPDATE proofs SET suspect = 1 WHERE state IN ('unspent', 'reserved')")


def read_mark(connection: sqlite3.Connection) -> tuple[int, frozenset[str]] | None:
    """(unix seconds of the restore, mints checked since); None when nothing is to be checked."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (_MARK,)).fetchone()
    if row is None:
        return None
    mark = json.loads(row[0])
    return int(mark["at"]), frozenset(mark["checked"])


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
    transfer(connection, Book.TRANSIT, operation.account_id, in_transit(operation), reference)
    connection.execute("UPDATE accounts SET state = 'open' WHERE id = ?", (operation.account_id,))
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
        """The first counter of a keyset that this database has not used."""
        return await self._db.read(lambda conn: next_counter(conn, keyset_id))

    async def settle(
        self,
        mint: str,
        *,
        spent: Sequence[str] = (),
        pending: Sequence[str] = (),
        unspent: Sequence[str] = (),
        found: Sequence[FoundCoin] = (),
        counters: Mapping[str, int] | None = None,
    ) -> Settled:
        """Book what a mint said of our coins (by Y), in one transaction; the table above.

        Args:
            counters: keyset id → first counter never used; None: some of the mint's coins were
                asked for again, which does not make the mint checked.

        A coin that an operation has taken meanwhile is left to that operation.
        """

        def work(conn: sqlite3.Connection) -> Settled:
            lost = _change(conn, spent, "state = 'spent'")
            _change(conn, pending, f"state = 'reserved', operation_id = '{_PARKED}'")
            _change(conn, unspent, "state = 'unspent', suspect = 1")
            gained = 0
            for coin in found:
                if store_loose_coin(conn, mint, coin):
                    gained += to_msat(coin.proof.amount, coin.unit)
            transfer(conn, Book.REVENUE, Book.LOSS, lost, f"restore:{mint}")
            transfer(conn, Book.LOSS, Book.REVENUE, gained, f"restore:{mint}")
            if counters is not None:
                for keyset_id, first in counters.items():
                    advance_counter(conn, keyset_id, first)
                _check_off(conn, mint)
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
