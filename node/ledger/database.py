"""One SQLite database, one writer that group-commits.

Work is a plain function over ``sqlite3.Connection``. Whatever waits goes into one transaction,
each piece in its own savepoint, so that a request waits for its commit and never for a lock,
and one refused piece takes nothing else with it. Work is queued the moment ``write`` is called:
a caller that is cancelled afterwards no longer changes whether it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, cast

import aiosqlite

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
_Queued = tuple[Work[Any], "asyncio.Future[Any]"]

MAX_BATCH = 512
"""Pieces of work in one transaction, at most."""
RETRY_S = 0.5
"""Pause before a commit that failed is tried again, for work that is insisted on."""
BUSY_TIMEOUT_S = 10.0
"""How long SQLite waits for an outside reader's lock (a backup tool, say)."""


class StorageError(Exception):
    """The database refused, is damaged, is newer than this program, or is in use."""


class _Connection(aiosqlite.Connection):
    """aiosqlite's thread, given a whole function at a time instead of a statement."""

    async def call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        return cast("T", await self._execute(function, self._conn))  # type: ignore[no-untyped-call]


def _connect(path: Path, *, read_only: bool) -> _Connection:
    def connector() -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        if read_only:
            connection.execute("PRAGMA query_only = ON")
        else:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        return connection

    return _Connection(connector, 64)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema to this program's version.

    Raises StorageError when the database was written by a newer program.
    """
    folder = resources.files("node.ledger") / "migrations"
    scripts = sorted(
        (item for item in folder.iterdir() if item.name.endswith(".sql")), key=lambda i: i.name
    )
    done = connection.execute("PRAGMA user_version").fetchone()[0]
    if done > len(scripts):
        raise StorageError(
            f"the database has schema {done}, this program knows {len(scripts)}: use a newer one"
        )
    for number, script in enumerate(scripts[done:], start=done + 1):
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{script.read_text()}\nPRAGMA user_version = {number};\nCOMMIT;"
        )


class Database:
    """The open database. Make one with ``await Database.open(path)``."""

    def __init__(self, writer: _Connection, reader: _Connection, lock_fd: int) -> None:
        self._writer = writer
        self._reader = reader
        self._lock_fd = lock_fd
        self._queue: asyncio.Queue[_Queued | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._run(), name="database-writer")
        self._closed = False

    @classmethod
    async def open(cls, path: Path) -> Database:
        """Open or create the database at ``path`` (mode 0600) and migrate it.

        Raises StorageError when another process has it open or it cannot be used.
        """
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        lock_fd = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock_fd)
            raise StorageError(f"{path} is in use by another process") from None
        opened: list[_Connection] = []
        try:
            for read_only in (False, True):
                connection = _connect(path, read_only=read_only)
                await connection
                opened.append(connection)
                if not read_only:
                    await connection.call(migrate)
        except BaseException as error:
            for connection in opened:
                await connection.close()
            os.close(lock_fd)
            if isinstance(error, sqlite3.Error):
                raise StorageError(f"{path}: {error}") from error
            raise
        return cls(opened[0], opened[1], lock_fd)

    def write(self, work: Work[T]) -> asyncio.Future[T]:
        """Queue ``work``; the future resolves when its transaction is on disk.

        What ``work`` raises undoes its own changes only and is raised to the caller. Raises
        StorageError when the commit itself fails.
        """
        if self._closed:
            raise StorageError("the database is closed")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((work, future))
        return future

    def insist(self, work: Work[T]) -> asyncio.Future[T]:
        """``write``, and again for as long as the commit fails and the database is open.

        For what must happen whoever waits for it: settling, releasing.
        """
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def attempt() -> None:
            if self._closed:
                if not result.done():
                    result.set_exception(StorageError("the database is closed"))
                return
            self.write(work).add_done_callback(finished)

        def finished(done: asyncio.Future[T]) -> None:
            error = done.exception()
            if isinstance(error, StorageError):
                asyncio.get_running_loop().call_later(RETRY_S, attempt)
            elif not result.done():
                if error is not None:
                    result.set_exception(error)
                else:
                    result.set_result(done.result())

        attempt()
        return result

    async def read(self, work: Work[T]) -> T:
        """Run ``work`` on the reading connection; it sees what has been committed."""
        return await self._reader.call(work)

    async def close(self) -> None:
        """Finish what is queued, then close. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._queue.put_nowait(None)
        await self._task
        await self._writer.close()
        await self._reader.close()
        os.close(self._lock_fd)

    async def _run(self) -> None:
        while (first := await self._queue.get()) is not None:
            batch = [first]
            last = False
            while len(batch) < MAX_BATCH and not self._queue.empty():
                item = self._queue.get_nowait()
                if item is None:
                    last = True
                    break
                batch.append(item)
            works = [work for work, _ in batch]
            try:
                results = await self._writer.call(partial(_commit, works))
            except Exception as error:  # a commit that failed must not end the writer
                failure = StorageError(f"commit failed: {error}")
                failure.__cause__ = error
                results = [(None, failure)] * len(batch)
            for (_, future), (value, raised) in zip(batch, results, strict=True):
                if future.done():
                    continue
                if raised is not None:
                    future.set_exception(raised)
                else:
                    future.set_result(value)
            if last:
                return


def _commit(
    works: list[Work[Any]], connection: sqlite3.Connection
) -> list[tuple[Any, BaseException | None]]:
    results: list[tuple[Any, BaseException | None]] = []
    connection.execute("BEGIN IMMEDIATE")
    try:
        for work in works:
            connection.execute("SAVEPOINT work")
            try:
                results.append((work(connection), None))
            except Exception as error:  # belongs to this caller alone
                connection.execute("ROLLBACK TO work")
                results.append((None, error))
            connection.execute("RELEASE work")
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    return results
