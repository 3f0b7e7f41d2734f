"""Promise: one writer, nothing half done, nothing of one caller in another's way."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from pathlib import Path

import pytest

from node.ledger.database import CHECKPOINT_EVERY, QUICK_AT_ONCE, Database, StorageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "node.db"


def add(key: str) -> object:
    def work(conn: sqlite3.Connection) -> str:
        conn.execute("INSERT INTO meta VALUES (?, '')", (key,))
        return key

    return work


def keys(conn: sqlite3.Connection) -> list[str]:
    return [row["key"] for row in conn.execute("SELECT key FROM meta ORDER BY key")]


async def test_what_was_written_is_there_after_opening_again(path: Path) -> None:
    database = await Database.open(path)
    assert await database.write(add("a")) == "a"
    await database.close()
    database = await Database.open(path)
    assert await database.read(keys) == ["a"]
    assert await database.read(lambda c: c.execute("PRAGMA journal_mode").fetchone()[0]) == "wal"
    assert await database.write(lambda c: c.execute("PRAGMA synchronous").fetchone()[0]) == 2
    await database.close()


async def test_the_file_is_for_its_owner_only(path: Path) -> None:
    database = await Database.open(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    await database.close()


async def test_a_second_process_is_refused_by_name(path: Path) -> None:
    database = await Database.open(path)
    with pytest.raises(StorageError, match="in use"):
        await Database.open(path)
    await database.close()
    await (await Database.open(path)).close()


@pytest.mark.parametrize("quick", [False, True])
async def test_work_that_raises_undoes_itself_and_nothing_else(path: Path, quick: bool) -> None:
    database = await Database.open(path)

    def bad(conn: sqlite3.Connection) -> None:
        conn.execute("INSERT INTO meta VALUES ('bad', '')")
        raise ValueError("no")

    results = await asyncio.gather(
        database.write(add("a"), quick=quick),
        database.write(bad, quick=quick),
        database.write(add("b"), quick=quick),
        database.write(add("a"), quick=quick),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [str, ValueError, str, sqlite3.IntegrityError]
    assert await database.read(keys) == ["a", "b"]
    await database.close()


@pytest.mark.parametrize("quick", [False, True])
async def test_work_queued_by_a_cancelled_caller_is_done_all_the_same(
    path: Path, quick: bool
) -> None:
    database = await Database.open(path)

    async def caller() -> None:
        await database.write(add("a"), quick=quick)

    task = asyncio.create_task(caller())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await database.write(add("b"))
    assert await database.read(keys) == ["a", "b"]
    await database.close()


async def test_closing_finishes_what_is_queued_and_refuses_what_comes_later(path: Path) -> None:
    database = await Database.open(path)
    waiting = [database.write(add(f"{number:04}")) for number in range(1500)]
    await database.close()
    assert len(await asyncio.gather(*waiting)) == 1500
    with pytest.raises(StorageError, match="closed"):
        database.write(add("late"))


async def test_a_newer_schema_is_refused_with_a_clear_word(path: Path) -> None:
    await (await Database.open(path)).close()
    connection = sqlite3.connect(path)
    current = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(StorageError, match="newer"):
        await Database.open(path)
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {current}")
    connection.close()
    await (await Database.open(path)).close()


async def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database, but somebody's file" * 100)
    with pytest.raises(StorageError):
        await Database.open(path)
    assert path.read_bytes().startswith(b"not a database")


def spoil(conn: sqlite3.Connection) -> None:
    """The commit of its transaction fails."""
    conn.execute("PRAGMA defer_foreign_keys = ON")
    conn.execute("INSERT INTO api_keys VALUES ('h', 12345, 'spend')")


@pytest.mark.parametrize("quick", [False, True])
async def test_a_failed_commit_is_told_to_all_who_waited_and_the_writer_lives_on(
    path: Path, quick: bool
) -> None:
    database = await Database.open(path)
    first = database.write(spoil, quick=quick)
    second = database.write(add("with it"), quick=quick)
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert all(isinstance(result, StorageError) for result in results)
    await database.write(add("after"), quick=quick)
    assert await database.read(keys) == ["after"]
    await database.close()


@pytest.mark.parametrize("quick", [False, True])
async def test_work_that_is_insisted_on_is_done_once_though_a_commit_fails(
    path: Path, quick: bool
) -> None:
    database = await Database.open(path)
    spoiled = database.write(spoil, quick=quick)
    assert await database.insist(add("a"), quick=quick) == "a"
    assert isinstance(spoiled.exception(), StorageError)
    assert await database.read(keys) == ["a"]
    await database.close()


async def test_work_has_run_before_it_is_on_disk_and_may_be_lost(path: Path) -> None:
    database = await Database.open(path)
    loop = asyncio.get_running_loop()
    ran: asyncio.Future[str] = loop.create_future()
    done = database.write(add("a"), quick=True, ran=ran)
    assert await ran == "a"
    assert not done.done()
    assert await done == "a"

    ran = loop.create_future()
    spoiled = database.write(spoil, quick=True)
    done = database.write(add("lost"), quick=True, ran=ran)
    assert await ran == "lost"
    with pytest.raises(StorageError):
        await done
    assert isinstance(spoiled.exception(), StorageError)

    ran = loop.create_future()
    done = database.write(add("a"), quick=True, ran=ran)
    with pytest.raises(sqlite3.IntegrityError):
        await ran
    with pytest.raises(sqlite3.IntegrityError):
        await done
    assert await database.read(keys) == ["a"]
    await database.close()


async def test_the_event_loop_waits_for_no_lock(path: Path) -> None:
    database = await Database.open(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    done = database.write(add("a"), quick=True)
    for _ in range(20):
        await asyncio.sleep(0.001)  # would take BUSY_TIMEOUT_S, and fail
    assert not done.done()
    other.execute("COMMIT")
    other.close()
    assert await done == "a"
    await database.close()


async def test_the_log_is_moved_into_the_file_while_work_goes_on(path: Path) -> None:
    database = await Database.open(path)
    empty = path.stat().st_size
    for start in range(0, CHECKPOINT_EVERY, 100):
        works = (database.write(add(f"{start + n:04}"), quick=True) for n in range(100))
        await asyncio.gather(*works)
    async with asyncio.timeout(20):
        more = 0
        while path.stat().st_size == empty or log_to_move(path):
            await database.write(add(f"more {more}"), quick=True)
            more += 1
            await asyncio.sleep(0.01)
    assert len(await database.read(keys)) == CHECKPOINT_EVERY + more
    await database.close()
    assert not log(path).exists()


def log(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def log_to_move(path: Path) -> bool:
    """Whether the log has not begun anew: it would be as long as its longest."""
    salt = log(path).read_bytes()[16:24]
    first = LOG_SALTS.setdefault(path, salt)
    return salt == first


LOG_SALTS: dict[Path, bytes] = {}
"""The log's first salt; it changes when the log begins anew (SQLite file format, 4.1)."""


async def test_much_quick_work_is_one_transaction(path: Path) -> None:
    database = await Database.open(path)
    names = [f"{number:04}" for number in range(3 * QUICK_AT_ONCE)]
    await asyncio.gather(*(database.write(add(name), quick=True) for name in names))
    assert await database.read(keys) == names
    await database.close()


async def test_a_process_killed_after_the_answer_has_lost_nothing(path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)

        async def work() -> None:
            database = await Database.open(path)
            await asyncio.gather(*(database.write(add(f"{n:03}")) for n in range(100)))
            os.write(writer, b"x")
            os._exit(9)

        try:
            asyncio.new_event_loop().run_until_complete(work())
        finally:
            os._exit(1)
    os.close(writer)
    assert await asyncio.to_thread(os.read, reader, 1) == b"x"
    os.close(reader)
    await asyncio.to_thread(os.waitpid, child, 0)
    database = await Database.open(path)
    assert len(await database.read(keys)) == 100
    await database.close()
