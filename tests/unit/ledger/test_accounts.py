"""Promise: a hold is settled or released once, and nobody spends what is not theirs."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.core.accounts import HoldRequest, key_hash
from node.core.money import Msat
from node.core.pricing import Price
from node.core.usage import Usage
from node.errors import IdempotencyInProgress, InsufficientBalance, Interrupted, InvalidApiKey
from node.ledger.accounts import SqliteLedger
from node.ledger.books import Book, account_discrepancies, sum_books, transfer
from node.ledger.database import Database

PRICE = Price(Msat(1), Msat(2), Msat(3))
USAGE = Usage(10, 20)
ACCOUNT = 100


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path / "node.db")
    yield opened
    assert await opened.read(account_discrepancies) == []
    await opened.close()


@pytest.fixture
async def ledger(database: Database) -> SqliteLedger:
    """A ledger with one account of 10,000 msat, found by the key ``sk-a``."""

    def work(conn: sqlite3.Connection) -> None:
        conn.execute(
            "INSERT INTO accounts (id, kind, mint, unit, created_at)"
            " VALUES (100, 'key', 'https://m', 'sat', 0)"
        )
        conn.execute("INSERT INTO api_keys VALUES (?, 100, 'spend')", (key_hash("sk-a"),))
        transfer(conn, Book.IN, ACCOUNT, 10_000, "test")

    await database.write(work)
    return SqliteLedger(database)


def request(max_cost: int, key: str | None = None) -> HoldRequest:
    return HoldRequest("request", key, "digest", "model", PRICE, Msat(max_cost))


async def test_keys_are_found_by_their_hash_only(ledger: SqliteLedger) -> None:
    account = await ledger.account("sk-a")
    assert (account.id, account.role, account.funded) == (ACCOUNT, "spend", True)
    assert await ledger.account("sk-a") == account
    for wrong in ("sk-b", key_hash("sk-a"), ""):
        with pytest.raises(InvalidApiKey):
            await ledger.account(wrong)


async def test_a_hold_freezes_and_settling_charges_the_cost_only(
    ledger: SqliteLedger, database: Database
) -> None:
    hold = await ledger.hold(ACCOUNT, request(4_000))
    balance = await ledger.balance(ACCOUNT)
    assert (balance.balance, balance.held, balance.free) == (10_000, 4_000, 6_000)
    assert await ledger.settle(hold, Msat(1_234), USAGE) == 1_234
    balance = await ledger.balance(ACCOUNT)
    assert (balance.balance, balance.held) == (8_766, 0)
    assert (await database.read(sum_books)).revenue_msat == 1_234


async def test_the_first_end_of_a_hold_stands(ledger: SqliteLedger) -> None:
    hold = await ledger.hold(ACCOUNT, request(4_000))
    results = await asyncio.gather(
        ledger.settle(hold, Msat(1_000), USAGE),
        ledger.settle(hold, Msat(2_000), USAGE),
        ledger.release(hold),
    )
    assert results[:2] == [1_000, 1_000]
    assert (await ledger.balance(ACCOUNT)).balance == 9_000
    other = await ledger.hold(ACCOUNT, request(4_000))
    await ledger.release(other)
    assert await ledger.settle(other, Msat(500), USAGE) == 0
    assert (await ledger.balance(ACCOUNT)).balance == 9_000


async def test_no_more_than_the_hold_is_charged(ledger: SqliteLedger) -> None:
    hold = await ledger.hold(ACCOUNT, request(100))
    assert await ledger.settle(hold, Msat(5_000), USAGE) == 100


async def test_thirty_requests_at_once_never_hold_more_than_there_is(
    ledger: SqliteLedger,
) -> None:
    results = await asyncio.gather(
        *(ledger.hold(ACCOUNT, request(900)) for _ in range(30)), return_exceptions=True
    )
    holds = [result for result in results if isinstance(result, int)]
    assert len(holds) == 11
    assert all(isinstance(r, InsufficientBalance) for r in results if not isinstance(r, int))
    assert (await ledger.balance(ACCOUNT)).free == 100


async def test_a_request_key_runs_once(ledger: SqliteLedger) -> None:
    hold = await ledger.hold(ACCOUNT, request(100, "k"))
    with pytest.raises(IdempotencyInProgress):
        await ledger.hold(ACCOUNT, request(100, "k"))
    await ledger.release(hold)
    again = await ledger.hold(ACCOUNT, request(100, "k"))
    await ledger.settle(again, Msat(10), USAGE)
    with pytest.raises(Interrupted):
        await ledger.hold(ACCOUNT, request(100, "k"))
    assert (await ledger.balance(ACCOUNT)).balance == 9_990


async def test_what_a_dead_process_held_is_released_at_the_next_start(
    ledger: SqliteLedger,
) -> None:
    await ledger.hold(ACCOUNT, request(100))
    settled = await ledger.hold(ACCOUNT, request(200))
    await ledger.settle(settled, Msat(50), USAGE)
    await ledger.hold(ACCOUNT, request(300, "k"))
    assert await ledger.release_all() == 2
    assert await ledger.release_all() == 0
    balance = await ledger.balance(ACCOUNT)
    assert (balance.balance, balance.held) == (9_950, 0)
