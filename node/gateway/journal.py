"""The journal of what was paid to providers: every token is here before it leaves.

    begun ──▶ sent ──▶ settled       the change is back (or there was none to come)
      │         ├────▶ reclaiming ─▶ reclaimed     nobody had redeemed it: taken back whole
      │         └────▶ lost          spent, and no change to be had; shown, and asked for again
      └──▶ void                      no token was made: nothing left the purse

It lives in the database of the wallet, which is the node's own (``node.ledger.database``), with
tables of its own beside the ledger's. What a provider was like to deal with is kept here too.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, cast

from node.core.money import Msat
from node.gateway import asked as requests
from node.gateway.asked import Asked
from node.ledger.database import Database, StorageError

State: TypeAlias = Literal["begun", "sent", "settled", "reclaiming", "reclaimed", "lost", "void"]
OPEN: tuple[State, ...] = ("begun", "sent", "reclaiming")
"""States in which money is under way."""
_BACK: tuple[State, ...] = ("settled", "reclaimed", "void")

_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE gateway_mints (url TEXT PRIMARY KEY, added_at INTEGER NOT NULL) STRICT",
        """CREATE TABLE gateway_spendings (
            id TEXT PRIMARY KEY,
            state TEXT NOT NULL,
            pubkey TEXT NOT NULL,
            d TEXT NOT NULL,
            name TEXT NOT NULL,
            url TEXT NOT NULL,
            relays TEXT NOT NULL,
            carriage TEXT NOT NULL,
            model TEXT NOT NULL,
            mint TEXT NOT NULL,
            amount_msat INTEGER NOT NULL,
            back_msat INTEGER NOT NULL DEFAULT 0,
            expected_msat INTEGER,
            change TEXT NOT NULL DEFAULT '',
            note TEXT NOT NULL DEFAULT '',
            created_at INTEGER NOT NULL,
            updated_at INTEGER NOT NULL
        ) STRICT""",
        "CREATE INDEX gateway_spendings_open ON gateway_spendings (state, created_at)",
        """CREATE TABLE gateway_records (
            pubkey TEXT PRIMARY KEY,
            served INTEGER NOT NULL,
            failed INTEGER NOT NULL,
            failed_in_a_row INTEGER NOT NULL,
            overcharged INTEGER NOT NULL,
            latency_ms INTEGER,
            failed_at INTEGER NOT NULL
        ) STRICT""",
    ),
    requests.MIGRATION,
    (
        "ALTER TABLE gateway_spendings ADD COLUMN operation TEXT",
        "CREATE UNIQUE INDEX gateway_spendings_operation ON gateway_spendings (operation)",
    ),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a provider is reached."""

    pubkey: str
    """Hex."""
    d: str
    name: str
    url: str
    """Without ``/v1``; empty when it is reached over relays only."""
    relays: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Spending:
    """One token that pays, or paid, a provider. Times are unix seconds."""

    id: str
    """Also the request key under which the token was issued."""
    place: Place
    carriage: str
    model: str
    mint: str
    amount: Msat
    """Face value of the token."""
    state: State = "begun"
    back: Msat = Msat(0)
    """What came back: change, or the token itself."""
    expected: Msat | None = None
    """What the call should have cost at the announced price; None when that is not known."""
    change: str = field(default="", repr=False)
    """The change as the provider gave it; empty once it is in the purse."""
    note: str = ""
    created_at: int = 0
    updated_at: int = 0

    @property
    def cost(self) -> Msat:
        """What is gone, fees of the mint included."""
        return Msat(self.amount - self.back)


@dataclass(frozen=True, slots=True)
class Record:
    """How it was to deal with a provider so far."""

    served: int = 0
    failed: int = 0
    failed_in_a_row: int = 0
    overcharged: int = 0
    latency_ms: int | None = None
    """From the request to the first byte; the mean, in which the latest counts most."""
    failed_at: int = 0


class Journal:
    """Spendings and records. Make one with ``await Journal.open(database)``."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self.records: dict[str, Record] = {}

    @classmethod
    async def open(cls, database: Database) -> Journal:
        """Make or bring up to date the tables, and read the records.

        Raises StorageError when a newer program has written them.
        """
        await database.write(_migrate)
        journal = cls(database)
        rows = await database.read(
            lambda conn: conn.execute("SELECT * FROM gateway_records").fetchall()
        )
        for row in rows:
            values = {name: row[name] for name in Record.__dataclass_fields__}
            journal.records[row["pubkey"]] = Record(**values)
        return journal

    # -- mints -----------------------------------------------------------------------------

    async def mints(self) -> list[str]:
        """The mints whose coins this wallet takes, the first one first."""
        rows = await self._db.read(
            lambda conn: conn.execute(
                "SELECT url FROM gateway_mints ORDER BY added_at, rowid"
            ).fetchall()
        )
        return [row["url"] for row in rows]

    async def add_mints(self, urls: Collection[str]) -> None:
        """Take coins of these mints (normalised URLs) from now on."""
        await self._db.write(
            lambda conn: conn.executemany(
                "INSERT OR IGNORE INTO gateway_mints VALUES (?, ?)",
                [(url, int(time.time())) for url in urls],
            )
        )

    # -- spendings -------------------------------------------------------------------------

    async def begin(self, spending: Spending, asked: Asked | None = None) -> None:
        """Write a spending down, and what is asked for it, before its token is made."""
        now = int(time.time())
        place = spending.place

        def work(conn: sqlite3.Connection) -> None:
            conn.execute(
                "INSERT INTO gateway_spendings (id, state, pubkey, d, name, url, relays, carriage,"
                " model, mint, amount_msat, created_at, updated_at)"
                " VALUES (?, 'begun', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    spending.id,
                    place.pubkey,
                    place.d,
                    place.name,
                    place.url,
                    json.dumps(place.relays),
                    spending.carriage,
                    spending.model,
                    spending.mint,
                    spending.amount,
                    now,
                    now,
                ),
            )
            if asked is not None:
                requests.keep(conn, spending.id, asked)

        await self._db.write(work)

    def move(
        self,
        id_: str,
        to: State,
        *,
        of: Collection[State] = OPEN,
        back: Msat | None = None,
        note: str | None = None,
        operation: str | None = None,
    ) -> asyncio.Future[bool]:
        """Change the state, when it is one of ``of``; resolves to whether it was.

        Args:
            operation: that put ``back`` into the purse. It counts for one spending only, and for
                none that was paid after it; for others nothing changes.
        """

        def work(conn: sqlite3.Connection) -> bool:
            if operation is not None and not _is_new(conn, id_, operation):
                return False
            marks = ", ".join("?" * len(of))
            cursor = conn.execute(
                "UPDATE gateway_spendings SET state = ?, back_msat = COALESCE(?, back_msat),"  # noqa: S608
                " note = COALESCE(?, note), updated_at = ?, operation = COALESCE(?, operation),"
                " change = CASE WHEN ? THEN '' ELSE change END"
                f" WHERE id = ? AND state IN ({marks})",
                (to, back, note, int(time.time()), operation, to == "settled", id_, *of),
            )
            if cursor.rowcount == 1 and to in _BACK:
                requests.forget(conn, id_)
            return cursor.rowcount == 1

        return self._db.insist(work)

    def keep_change(self, id_: str, token: str) -> asyncio.Future[None]:
        """Keep the change a provider gave, until it is in the purse."""

        def work(conn: sqlite3.Connection) -> None:
            conn.execute(
                "UPDATE gateway_spendings SET change = ?, updated_at = ? WHERE id = ?"
                " AND state IN ('sent', 'reclaiming', 'lost')",
                (token, int(time.time()), id_),
            )

        return self._db.insist(work)

    def expect(self, id_: str, cost: Msat) -> asyncio.Future[None]:
        """Note what the call should have cost."""

        def work(conn: sqlite3.Connection) -> None:
            conn.execute("UPDATE gateway_spendings SET expected_msat = ? WHERE id = ?", (cost, id_))

        return self._db.insist(work)

    async def spending(self, id_: str) -> Spending:
        """One of them. Raises KeyError."""
        row = await self._db.read(
            lambda conn: conn.execute(
                "SELECT * FROM gateway_spendings WHERE id = ?", (id_,)
            ).fetchone()
        )
        if row is None:
            raise KeyError(id_)
        return _spending(row)

    async def asked(self, id_: str) -> Asked | None:
        """What the provider was asked, if that is kept."""
        return await self._db.read(lambda conn: requests.find(conn, id_))

    async def named(self, request_key: str) -> list[Spending]:
        """What was spent on the request that the program names so, the newest first."""
        rows = await self._db.read(
            lambda conn: conn.execute(
                "SELECT s.* FROM gateway_spendings s JOIN gateway_requests r ON r.id = s.id"
                " WHERE r.request_key = ? ORDER BY s.created_at DESC, s.rowid DESC",
                (request_key,),
            ).fetchall()
        )
        return [_spending(row) for row in rows]

    async def prune(self, older_than_s: int) -> int:
        """Forget the names of requests that are older and over; returns how many."""
        return await self._db.write(lambda conn: requests.prune(conn, older_than_s))

    async def in_states(self, states: Collection[State]) -> list[Spending]:
        """All in one of these states, the oldest first."""
        marks = ", ".join("?" * len(states))
        rows = await self._db.read(
            lambda conn: conn.execute(
                f"SELECT * FROM gateway_spendings WHERE state IN ({marks})"  # noqa: S608
                " ORDER BY created_at, rowid",
                tuple(states),
            ).fetchall()
        )
        return [_spending(row) for row in rows]

    async def latest(self, limit: int) -> list[Spending]:
        """The last of them, newest first."""
        rows = await self._db.read(
            lambda conn: conn.execute(
                "SELECT * FROM gateway_spendings ORDER BY created_at DESC, rowid DESC LIMIT ?",
                (limit,),
            ).fetchall()
        )
        return [_spending(row) for row in rows]

    async def operation_of(self, id_: str, account_id: int) -> str | None:
        """The operation that made the token of a spending; None when none was begun."""
        row = await self._db.read(
            lambda conn: conn.execute(
                "SELECT id FROM operations WHERE account_id = ? AND kind = 'send'"
                " AND request_key = ?",
                (account_id, id_),
            ).fetchone()
        )
        return None if row is None else cast("str", row["id"])

    # -- records ---------------------------------------------------------------------------

    def note(self, pubkey: str, record: Record) -> None:
        """Keep a provider's record from now on."""
        self.records[pubkey] = record
        self._db.write(
            lambda conn: conn.execute(
                "INSERT OR REPLACE INTO gateway_records VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    pubkey,
                    record.served,
                    record.failed,
                    record.failed_in_a_row,
                    record.overcharged,
                    record.latency_ms,
                    record.failed_at,
                ),
            )
        )


def _is_new(conn: sqlite3.Connection, id_: str, operation: str) -> bool:
    """Whether what an operation brought is this spending's: the wallet takes a token once, and
    answers whoever brings it again as it did before."""
    return (
        conn.execute(
            "SELECT 1 FROM operations WHERE id = ?1"
            " AND rowid > (SELECT rowid FROM operations WHERE kind = 'send' AND request_key = ?2)"
            " AND NOT EXISTS (SELECT 1 FROM gateway_spendings WHERE operation = ?1 AND id <> ?2)",
            (operation, id_),
        ).fetchone()
        is not None
    )


def _migrate(conn: sqlite3.Connection) -> None:
    conn.execute("CREATE TABLE IF NOT EXISTS gateway_schema (version INTEGER NOT NULL) STRICT")
    row = conn.execute("SELECT version FROM gateway_schema").fetchone()
    if row is None:
        conn.execute("INSERT INTO gateway_schema VALUES (0)")
    done = 0 if row is None else int(row["version"])
    if done > len(_MIGRATIONS):
        raise StorageError(
            "the wallet was written by a newer nodestr and is left as it is: install that version"
            " again"
        )
    for statements in _MIGRATIONS[done:]:
        for statement in statements:
            conn.execute(statement)
    conn.execute("UPDATE gateway_schema SET version = ?", (len(_MIGRATIONS),))


def _spending(row: sqlite3.Row) -> Spending:
    return Spending(
        id=row["id"],
        place=Place(
            row["pubkey"], row["d"], row["name"], row["url"], tuple(json.loads(row["relays"]))
        ),
        carriage=row["carriage"],
        model=row["model"],
        mint=row["mint"],
        amount=Msat(row["amount_msat"]),
        state=row["state"],
        back=Msat(row["back_msat"]),
        expected=None if row["expected_msat"] is None else Msat(row["expected_msat"]),
        change=row["change"],
        note=row["note"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
