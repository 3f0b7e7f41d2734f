"""What the directory knows, in a SQLite file of its own, so that a restart answers at once.

Nothing of value is in it: relays and probes would say it all again. So a file that is damaged or
of another version is put away and begun anew, and what is found in it is believed unseen.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, TypeAlias

import aiosqlite
import structlog

log = structlog.get_logger()

VERSION: Final = 2
"""Of the file and of the documents in it."""
DEFAULT_BATCH: Final = 200
_NOT_THE_FILES_FAULT: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)
_SCHEMA = """
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
CREATE TABLE records (
    kind TEXT NOT NULL, key TEXT NOT NULL, document BLOB NOT NULL, PRIMARY KEY (kind, key)
) WITHOUT ROWID;
"""

RecordKey: TypeAlias = tuple[str, str]
"""Kind and key of a record."""


class DirectoryStore:
    """Documents by kind and key. Make one with ``open``; ``async with`` closes it.

    Raises OSError for a file that cannot be made, sqlite3.Error later for one that is lost.
    """

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, path: Path) -> DirectoryStore:
        """Open the file, 0600; make it, or make it anew when it cannot be read.

        Raises OSError when there is no room for it, or another process holds it.
        """
        try:
            return cls(await _connect(path))
        except sqlite3.Error as error:
            # the code may be an extended one
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_THE_FILES_FAULT:
                raise OSError(f"{path} cannot be used now: {error}") from None
            log.warning("directory_file_renewed", reason=type(error).__name__)
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        try:
            return cls(await _connect(path))
        except sqlite3.Error as error:
            raise OSError(f"{path} cannot be used: {error}") from None

    async def __aenter__(self) -> DirectoryStore:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the file. Idempotent."""
        with contextlib.suppress(sqlite3.Error, ValueError):
            await self._connection.close()

    async def records(self, kind: str, batch: int = DEFAULT_BATCH) -> AsyncIterator[list[Record]]:
        """All records of a kind, in batches of key and document."""
        query = "SELECT key, document FROM records WHERE kind = ?"
        async with self._connection.execute(query, (kind,)) as cursor:
            while rows := await cursor.fetchmany(batch):
                yield [
                    (str(key), document if isinstance(document, bytes) else b"")
                    for key, document in rows
                ]

    async def save(self, changes: Mapping[RecordKey, bytes | None]) -> None:
        """Write the documents and remove those that are None, in one transaction."""
        gone = [key for key, document in changes.items() if document is None]
        kept = [(*key, document) for key, document in changes.items() if document is not None]
        await self._connection.executemany("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", kept)
        await self._connection.executemany("DELETE FROM records WHERE kind = ? AND key = ?", gone)
        await self._connection.commit()
        if gone:
            await self._connection.execute("PRAGMA incremental_vacuum(1000)")


Record: TypeAlias = tuple[str, bytes]
"""Key and document."""


async def _connect(path: Path) -> aiosqlite.Connection:
    await asyncio.to_thread(path.touch, mode=0o600, exist_ok=True)
    connection = await aiosqlite.connect(path)
    try:
        await connection.execute("PRAGMA synchronous = NORMAL")
        async with connection.execute("PRAGMA user_version") as cursor:
            row = await cursor.fetchone()
        version = row[0] if row else 0
        if version == 0:
            await connection.executescript(_SCHEMA)
            await connection.execute(f"PRAGMA user_version = {VERSION}")
            await connection.commit()
        elif version != VERSION:
            raise sqlite3.DatabaseError("another version")
        else:
            # what is broken further in would fail each time it is read or written
            async with connection.execute("PRAGMA quick_check(1)") as cursor:
                if tuple(await cursor.fetchone() or ()) != ("ok",):
                    raise sqlite3.DatabaseError("damaged")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            await asyncio.shield(connection.close())
        raise
    return connection
