"""Promise: whoever asks whether money may leave the node is told no as soon as coins do not cover
debts, books do not add up, or nobody has looked lately; looking stays cheap."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from node.ledger.books import (
    Book,
    checkpoint,
    checkpoint_problems,
    read_books,
    sum_books,
    transfer,
)
from node.ledger.database import Database
from node.ops import watchdog as module
from node.ops.watchdog import Watchdog
from tests.unit.ops.money import add_coin, change, make_ledger


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(await make_ledger(tmp_path / "node.db"))
    yield opened
    await opened.close()


@pytest.fixture
def watchdog(database: Database, tmp_path: Path) -> Watchdog:
    return Watchdog(database, tmp_path / "node.db", interval_s=60)


async def test_nothing_may_leave_before_the_first_look(watchdog: Watchdog) -> None:
    assert not watchdog.solvent
    assert watchdog.problem() == "books not checked"
    reading = await watchdog.check()
    assert watchdog.solvent
    assert watchdog.problem() is None
    assert (reading.books.proofs_msat, reading.books.equity_msat) == (64_000, 14_000)


async def test_less_coins_than_debts_is_an_alarm_until_it_is_over(
    watchdog: Watchdog, database: Database
) -> None:
    def lose(conn: sqlite3.Connection) -> None:
        add_coin(conn, "bb", 20, "spent")
        conn.execute("UPDATE proofs SET amount = 44 WHERE y = 'aa'")
        transfer(conn, Book.REVENUE, Book.LOSS, 20_000, "restore:x")

    await database.write(lose)
    with capture_logs() as logs:
        reading = await watchdog.check()
    assert reading.problems == ()
    assert (watchdog.solvent, watchdog.problem()) == (False, "insolvent")
    (line,) = logs
    assert (line["event"], line["log_level"], line["missing_msat"]) == ("insolvent", "error", 6_000)
    await database.write(lambda conn: transfer(conn, 100, Book.REVENUE, 6_000, "hold:2"))
    with capture_logs() as logs:
        await watchdog.check()
    assert watchdog.solvent
    assert [line["event"] for line in logs] == ["solvent_again"]


async def test_books_that_do_not_add_up_are_an_alarm(
    watchdog: Watchdog, database: Database
) -> None:
    await database.write(lambda conn: conn.execute("UPDATE proofs SET amount = 65"))
    with capture_logs() as logs:
        reading = await watchdog.check()
    assert (reading.solvent, watchdog.problem()) == (False, "books wrong")
    assert [line["event"] for line in logs] == ["books_wrong"]


async def test_an_old_reading_is_not_believed(
    watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = await watchdog.check()
    late = reading.read_at + module.STALE_INTERVALS * 60 + 1
    monkeypatch.setattr("node.ops.watchdog.time.monotonic", lambda: late)
    assert (watchdog.solvent, watchdog.problem()) == (False, "books not checked")


async def test_stored_sums_say_what_all_transfers_say(
    watchdog: Watchdog, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 7)

    def spend(conn: sqlite3.Connection) -> None:
        for number in range(20):
            transfer(conn, 100, Book.REVENUE, 1 + number, f"hold:{number}")

    for _ in range(3):
        await database.write(spend)
        reading = await watchdog.check()
        await database.write(lambda conn: transfer(conn, 100, Book.DUST, 5, "close:100"))
        path = tmp_path / "node.db"
        assert read_books(path, checkpointed=True) == read_books(path)
        assert reading.problems == ()
    assert await database.read(checkpoint_problems) == []
    stored = await database.read(
        lambda conn: conn.execute("SELECT value FROM meta WHERE key = 'book_sums_up_to'").fetchone()
    )
    assert int(stored["value"]) == 64  # the last transfer came after the last look


async def test_only_new_transfers_are_read(database: Database) -> None:
    while await database.write(lambda conn: checkpoint(conn, 1)):
        pass
    read = []

    def trace(conn: sqlite3.Connection) -> None:
        rows = conn.execute(
            "EXPLAIN QUERY PLAN SELECT SUM(amount_msat) FROM transfers WHERE id > 5"
        )
        read.extend(row["detail"] for row in rows)
        conn.execute("UPDATE transfers SET amount_msat = amount_msat + 1")  # unseen: summed before
        books = sum_books(conn, checkpointed=True)
        assert books.problems() == []
        conn.execute("UPDATE transfers SET amount_msat = amount_msat - 1")

    await database.write(trace)
    assert all("rowid>?" in detail for detail in read)


async def test_a_changed_past_is_noticed_by_the_full_check(
    database: Database, tmp_path: Path
) -> None:
    await database.write(lambda conn: checkpoint(conn, 100))
    change(tmp_path / "node.db", "UPDATE transfers SET amount_msat = amount_msat + 1 WHERE id = 2")
    problems = await database.read(checkpoint_problems)
    assert len(problems) == 2
    assert "book 3" in problems[0]
