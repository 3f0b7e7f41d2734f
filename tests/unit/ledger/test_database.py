"""Promise: one writer, nothing half done, nothing of one caller in another's way."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from pathlib import Path

import pytest

from node.ledger.database import Database, StorageError


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


async def test_work_that_raises_undoes_itself_and_nothing_else(path: Path) -> None:
    database = await Database.open(path)

    def bad(conn: sqlite3.Connection) -> None:
        conn.execute("INSERT INTO meta VALUES ('bad', '')")
        raise ValueError("no")

    results = await asyncio.gather(
        database.write(add("a")),
        database.write(bad),
        database.write(add("b")),
        database.write(add("a")),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [str, ValueError, str, sqlite3.IntegrityError]
    assert await database.read(keys) == ["a", "b"]
    await database.close()


async def test_work_queued_by_a_cancelled_caller_is_done_all_the_same(path: Path) -> None:
    database = await Database.open(path)

    async def caller() -> None:
        await database.write(add("a"))

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


async def test_a_failed_commit_is_told_to_all_who_waited_and_the_writer_lives_on(
    path: Path,
) -> None:
    database = await Database.open(path)

    def spoil(conn: sqlite3.Connection) -> None:
        conn.execute("PRAGMA defer_foreign_keys = ON")
        conn.execute("INSERT INTO api_keys VALUES ('h', 12345, 'spend')")

    first, second = database.write(spoil), database.write(add("with it"))
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert all(isinstance(result, StorageError) for result in results)
    await database.write(add("after"))
    assert await database.read(keys) == ["after"]
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
