"""Promise: stored answers come back as they were, and take no more room than they may."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import AsyncIterator, Callable
from importlib import resources
from pathlib import Path

import pytest

from node.core.accounts import HoldRequest
from node.core.exchange import StoredAnswer
from node.core.money import Msat
from node.core.pricing import Price
from node.ledger import answers as module
from node.ledger.accounts import SqliteLedger
from node.ledger.answers import SqliteAnswers
from node.ledger.books import Book, transfer
from node.ledger.database import Database

NOISE = random.Random(8)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path / "node.db")

    def work(conn: sqlite3.Connection) -> None:
        for account in (100, 101, 102):
            conn.execute(
                "INSERT INTO accounts (id, kind, mint, unit, created_at)"
                " VALUES (?, 'key', 'https://m', 'sat', 0)",
                (account,),
            )
            transfer(conn, Book.IN, account, 10_000, "test")

    await opened.write(work)
    yield opened
    assert await opened.read(sums) == await opened.read(added_up)
    await opened.close()


def sums(conn: sqlite3.Connection) -> dict[int, int]:
    return dict(conn.execute("SELECT account_id, size_bytes FROM answer_sums").fetchall())


def added_up(conn: sqlite3.Connection) -> dict[int, int]:
    rows = conn.execute("SELECT account_id, SUM(size_bytes) FROM answers GROUP BY account_id")
    found = dict(rows.fetchall())
    return found | {0: sum(found.values())}


def stored(conn: sqlite3.Connection) -> set[int]:
    return {row[0] for row in conn.execute("SELECT hold_id FROM answers")}


async def hold(database: Database, account: int = 100) -> int:
    request = HoldRequest("r", None, "", "m", Price(Msat(1)), Msat(1))
    return await SqliteLedger(database).hold(account, request)


def noise(size: int) -> StoredAnswer:
    return StoredAnswer(200, "text/plain", NOISE.randbytes(size), Msat(5))


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets each call be later than the one before."""
    now = [1000.0]

    def clock() -> float:
        now[0] += 1
        return now[0]

    monkeypatch.setattr("node.ledger.answers.time.time", clock)


@pytest.mark.parametrize("body", [b"", b"short", b"a" * 1_000_000, NOISE.randbytes(300_000)])
async def test_an_answer_comes_back(database: Database, body: bytes) -> None:
    answers = SqliteAnswers(database)
    number = await hold(database)
    answer = StoredAnswer(201, "application/json", body, Msat(7))
    await answers.keep(number, "k", "d", answer)
    await answers.keep(number, "k", "d", noise(10))  # the first one stays
    assert await answers.find(number, "k", "d") == answer
    assert await answers.find(number, "k", "other") is None
    size = await database.read(lambda conn: sums(conn)[0])
    assert size <= len(body) + 1024
    if body == b"a" * 1_000_000:
        assert size < 20_000


@pytest.mark.usefixtures("moments")
async def test_the_oldest_of_the_account_go_first(database: Database) -> None:
    answers = SqliteAnswers(database, max_bytes=1 << 20, max_account_bytes=40_000)
    of_another = await hold(database, 101)
    await answers.keep(of_another, "k", "d", noise(10_000))
    numbers = [await hold(database) for _ in range(10)]
    for number in numbers:
        await answers.keep(number, "k", "d", noise(10_000))
        assert (await database.read(sums))[100] <= 40_000
    assert await database.read(stored) == {of_another, *numbers[-3:]}
    assert await answers.find(numbers[0], "k", "d") is None


@pytest.mark.usefixtures("moments")
async def test_the_oldest_of_all_go_next(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLICE_ANSWERS", 2)
    numbers = [await hold(database, 100 + n % 3) for n in range(12)]
    roomy = SqliteAnswers(database)
    for number in numbers[:9]:
        await roomy.keep(number, "k", "d", noise(10_000))
    answers = SqliteAnswers(database, max_bytes=40_000, max_account_bytes=40_000)
    for number in numbers[9:]:  # the first of them makes room for all that was there before
        await answers.keep(number, "k", "d", noise(10_000))
        assert (await database.read(sums))[0] <= 40_000
    assert await database.read(stored) == set(numbers[-3:])


async def test_what_exceeds_a_budget_by_itself_is_not_kept(database: Database) -> None:
    answers = SqliteAnswers(database, max_bytes=1 << 20, max_account_bytes=5000)
    first, second = await hold(database), await hold(database)
    await answers.keep(first, "k", "d", noise(1000))
    await answers.keep(second, "k", "d", noise(10_000))
    assert await database.read(stored) == {first}


@pytest.mark.usefixtures("moments")
async def test_pruning_is_done_in_slices(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLICE_BYTES", 15_000)
    answers = SqliteAnswers(database)
    numbers = [await hold(database) for _ in range(7)]
    for number in numbers:
        await answers.keep(number, "k", "d", noise(10_000))
    most = 0
    write = database.write

    def watched(work: Callable[[sqlite3.Connection], int], **fields: object) -> object:
        def counted(conn: sqlite3.Connection) -> int:
            nonlocal most
            dropped = work(conn)
            most = max(most, dropped)
            return dropped

        return write(counted, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(database, "write", watched)
    # six of them are older than that at the moment of asking
    assert await answers.prune(1) == 6
    assert most == 2
    assert await database.read(stored) == {numbers[-1]}


async def test_a_damaged_body_is_none(database: Database) -> None:
    answers = SqliteAnswers(database)
    number = await hold(database)
    await answers.keep(number, "k", "d", StoredAnswer(200, "text/plain", b"a" * 9000))
    await database.write(lambda conn: conn.execute("UPDATE answers SET body = x'00'"))
    assert await answers.find(number, "k", "d") is None


async def test_answers_of_before_are_counted(tmp_path: Path) -> None:
    """The schema is brought up with answers in it, each of which stays readable."""
    connection = sqlite3.connect(tmp_path / "node.db", isolation_level=None)
    scripts = sorted(
        (resources.files("node.ledger") / "migrations").iterdir(), key=lambda item: item.name
    )
    before = [item for item in scripts if item.name[:4].isdigit() and item.name[:4] <= "0008"]
    for number, script in enumerate(before, start=1):
        connection.executescript(f"{script.read_text()}\nPRAGMA user_version = {number};")
    connection.executescript(
        "INSERT INTO accounts (id, kind, mint, unit, created_at)"
        " VALUES (100, 'key', 'https://m', 'sat', 0);"
        "INSERT INTO holds (id, account_id, request_digest, request_id, model, price,"
        " max_cost_msat, state, created_at) VALUES (7, 100, '', 'r', 'm', '{}', 1, 'settled', 0);"
        "INSERT INTO answers VALUES (7, 'k', 'd', 200, 'text/plain', x'616263', 5, 1000);"
    )
    connection.close()
    database = await Database.open(tmp_path / "node.db")
    try:
        answers = SqliteAnswers(database)
        found = await answers.find(7, "k", "d")
        assert found == StoredAnswer(200, "text/plain", b"abc", Msat(5))
        assert await database.read(sums) == {0: 259, 100: 259}
        assert await answers.prune(10) == 1
        assert await database.read(sums) == {0: 0}
    finally:
        await database.close()
