"""One SQLite database, one writer that group-commits.

Work is a plain function over ``sqlite3.Connection``. Whatever waits goes into one transaction,
each piece in its own savepoint, so that a request waits for its commit and never for a lock,
and one refused piece takes nothing else with it. Work is queued the moment ``write`` is called:
a caller that is cancelled afterwards no longer changes whether it runs.

Quick work (a few statements that find their rows by key) runs on the event loop itself, and only
its commit in the writer's thread: there, each statement would wait for the interpreter lock while
the loop is busy, up to 5 ms. Where the event loop would have to wait for a lock of somebody else's,
the thread does.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import aiosqlite

from node.ledger.migrating import StorageError, prepare

__all__ = ["Database", "StorageError", "Work"]

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
_Outcome = tuple[Any, BaseException | None]

MAX_BATCH = 512
"""Pieces of work in one transaction, at most."""
QUICK_AT_ONCE = 32
"""Pieces of quick work before the event loop gets a turn: 1 to 2 ms."""
CHECKPOINT_EVERY = 1_000
"""Pieces of work after which the write-ahead log is moved into the database file: 4 to 20 MB."""
MAX_LOG_PAGES = 16_384
"""Of the log, 64 MiB: when moving cannot keep up, SQLite does it itself and all wait for it."""
RETRY_S = 0.5
"""Pause before a commit that failed is tried again, for work that is insisted on."""
BUSY_TIMEOUT_S = 10.0
"""How long SQLite waits for an outside reader's lock (a backup tool, say)."""


@dataclass(frozen=True, slots=True)
class _Queued:
    work: Work[Any]
    done: asyncio.Future[Any]
    """Once it is on disk."""
    ran: asyncio.Future[Any] | None = None
    quick: bool = False
    insisted: bool = False


class _Connection(aiosqlite.Connection):
    """aiosqlite's thread, given a whole function at a time instead of a statement."""

    async def call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        return cast("T", await self._execute(function, self._conn))  # type: ignore[no-untyped-call]

    def call_here(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """On the caller's thread; only while no ``call`` is under way."""
        return function(self._conn)


def _connect(path: Path, *, read_only: bool) -> _Connection:
    def connector() -> sqlite3.Connection:
        connection = sqlite3.connect(
            path, isolation_level=None, timeout=BUSY_TIMEOUT_S, check_same_thread=False
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        if read_only:
            connection.execute("PRAGMA query_only = ON")
        else:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {MAX_LOG_PAGES}")
        return connection

    return _Connection(connector, 64)


class Database:
    """The open database. Make one with ``await Database.open(path)``."""

    def __init__(self, path: Path, writer: _Connection, reader: _Connection, lock_fd: int) -> None:
        self._path = path
        self._writer = writer
        self._reader = reader
        self._lock_fd = lock_fd
        self._queue: asyncio.Queue[_Queued | None] = asyncio.Queue()
        self._not_moved = 0
        """Pieces of work since the log was last moved."""
        self._moving: asyncio.Task[None] | None = None
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
                    await connection.call(partial(prepare, path))
                    await connection.call(partial(_wait_for_locks, timeout_s=0.0))
        except BaseException as error:
            for connection in opened:
                await connection.close()
            os.close(lock_fd)
            if isinstance(error, sqlite3.Error):
                raise StorageError(f"{path}: {error}") from error
            raise
        return cls(path, opened[0], opened[1], lock_fd)

    def write(
        self,
        work: Work[T],
        *,
        quick: bool = False,
        ran: asyncio.Future[T] | None = None,
    ) -> asyncio.Future[T]:
        """Queue ``work``; the future resolves when its transaction is on disk.

        What ``work`` raises undoes its own changes only and is raised to the caller. Raises
        StorageError when the commit itself fails.

        Args:
            quick: run it on the event loop: it takes 0.1 ms at most and reads what is in memory.
            ran: resolves with what ``work`` returned, or raised, as soon as it has run. All work
                that follows sees it as done, and yet the commit may still fail.
        """
        if self._closed:
            raise StorageError("the database is closed")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Queued(work, future, ran, quick))
        return future

    def insist(self, work: Work[T], *, quick: bool = False) -> asyncio.Future[T]:
        """``write``, and again for as long as the commit fails and the database is open.

        For what must happen whoever waits for it: settling, releasing.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._again(_Queued(work, future, quick=quick, insisted=True))
        return future

    def _again(self, item: _Queued) -> None:
        if self._closed:
            _tell(item.done, (None, StorageError("the database is closed")))
        else:
            self._queue.put_nowait(item)

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
        if self._moving is not None:
            await self._moving
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
            try:
                outcomes = await self._transact(batch)
            except Exception as error:  # a commit that failed must not end the writer
                self._failed(batch, error)
            else:
                for item, outcome in zip(batch, outcomes, strict=True):
                    if item.ran is not None:
                        _tell(item.ran, outcome)
                    _tell(item.done, outcome)
            if last:
                return
            await self._tidy(len(batch))

    async def _tidy(self, done: int) -> None:
        """Move the log into the database file now and then, and let nobody wait for it.

        Most of it is moved on a connection of its own while work goes on. The little that has come
        meanwhile is moved here, with which the log is empty and begins anew.
        """
        self._not_moved += done
        if self._moving is not None and self._moving.done():
            self._moving = None
            await self._writer.call(_move_log)
        elif self._moving is None and self._not_moved >= CHECKPOINT_EVERY:
            self._not_moved = 0
            moving = asyncio.to_thread(_move_log_apart, self._path)
            self._moving = asyncio.create_task(moving, name="database-log")

    def _failed(self, batch: list[_Queued], error: Exception) -> None:
        failure = StorageError(f"commit failed: {error}")
        failure.__cause__ = error
        for item in batch:
            if item.insisted:
                asyncio.get_running_loop().call_later(RETRY_S, self._again, item)
                continue
            if item.ran is not None:
                _tell(item.ran, (None, failure))
            _tell(item.done, (None, failure))

    async def _transact(self, batch: list[_Queued]) -> list[_Outcome]:
        """What each piece of work gave or raised, once all of it is on disk."""
        works = [item.work for item in batch]
        if not all(item.quick for item in batch):
            return await self._writer.call(partial(_commit, works))
        try:
            self._writer.call_here(_begin)
        except sqlite3.OperationalError:  # somebody else writes: wait for him in the thread
            await self._writer.call(_begin_patiently)
        outcomes: list[_Outcome] = []
        try:
            for start in range(0, len(works), QUICK_AT_ONCE):
                if start:
                    await asyncio.sleep(0)
                some = works[start : start + QUICK_AT_ONCE]
                outcomes += self._writer.call_here(partial(_outcomes, some))
        except BaseException:
            self._writer.call_here(_roll_back)
            raise
        for item, outcome in zip(batch, outcomes, strict=True):
            if item.ran is not None:
                _tell(item.ran, outcome)
        await self._writer.call(_end)
        return outcomes


def _tell(future: asyncio.Future[Any], outcome: _Outcome) -> None:
    if future.done():  # whoever waited is gone, or was told before
        return
    value, error = outcome
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)


def _move_log(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):  # the next one finds more to move
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")


def _move_log_apart(path: Path) -> None:
    with contextlib.suppress(sqlite3.Error):
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            _move_log(connection)
        finally:
            connection.close()


def _begin(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")


def _begin_patiently(connection: sqlite3.Connection) -> None:
    _wait_for_locks(connection, BUSY_TIMEOUT_S)
    try:
        _begin(connection)
    finally:
        _wait_for_locks(connection, 0.0)


def _wait_for_locks(connection: sqlite3.Connection, timeout_s: float) -> None:
    connection.execute(f"PRAGMA busy_timeout = {round(timeout_s * 1000)}")


def _outcomes(works: list[Work[Any]], connection: sqlite3.Connection) -> list[_Outcome]:
    """Run each piece of work in a savepoint of its own, within an open transaction."""
    outcomes: list[_Outcome] = []
    for work in works:
        connection.execute("SAVEPOINT work")
        try:
            outcomes.append((work(connection), None))
        except Exception as error:  # belongs to this caller alone
            connection.execute("ROLLBACK TO work")
            outcomes.append((None, error))
        connection.execute("RELEASE work")
    return outcomes


def _end(connection: sqlite3.Connection) -> None:
    try:
        connection.execute("COMMIT")
    except BaseException:
        _roll_back(connection)
        raise


def _roll_back(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        connection.execute("ROLLBACK")


def _commit(works: list[Work[Any]], connection: sqlite3.Connection) -> list[_Outcome]:
    _begin_patiently(connection)
    try:
        outcomes = _outcomes(works, connection)
    except BaseException:
        _roll_back(connection)
        raise
    _end(connection)
    return outcomes
