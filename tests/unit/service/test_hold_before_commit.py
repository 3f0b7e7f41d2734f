"""A call begins before its hold is on disk; should that fail, nobody is charged and nothing stays
set aside."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from node.core.accounts import Account, HoldRequest
from node.core.money import Msat
from node.core.pricing import Price
from node.core.usage import Usage
from node.errors import InsufficientBalance
from node.ledger.accounts import SqliteLedger
from node.ledger.books import Book, account_discrepancies, transfer
from node.ledger.database import Database
from node.service.payers import AccountPayer, Refused, wind_up

ACCOUNT = 100
USAGE = Usage(10, 20)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path / "node.db")

    def work(conn: sqlite3.Connection) -> None:
        conn.execute(
            "INSERT INTO accounts (id, kind, mint, unit, created_at)"
            " VALUES (100, 'key', 'https://m', 'sat', 0)"
        )
        transfer(conn, Book.IN, ACCOUNT, 10_000, "test")

    await opened.write(work)
    yield opened
    await wind_up(1.0)
    assert await opened.read(account_discrepancies) == []
    await opened.close()


def payer(database: Database) -> AccountPayer:
    who = Account(ACCOUNT, "spend", funded=True)
    return AccountPayer(who, cast("Any", None), SqliteLedger(database))


def request(max_cost: int = 1000) -> HoldRequest:
    price = Price(Msat(1), Msat(2), Msat(3))
    return HoldRequest("request", None, "", "model", price, Msat(max_cost))


def spoil(conn: sqlite3.Connection) -> None:
    """The commit of its transaction fails."""
    conn.execute("PRAGMA defer_foreign_keys = ON")
    conn.execute("INSERT INTO api_keys VALUES ('h', 12345, 'spend')")


async def money(database: Database) -> tuple[int, int]:
    await database.write(lambda conn: None)  # what was queued before is done
    balance = await SqliteLedger(database).balance(ACCOUNT)
    return int(balance.balance), int(balance.held)


async def begun_and_lost(database: Database) -> AccountPayer:
    lost = payer(database)
    spoiled = database.write(spoil, quick=True)
    await lost.begin(request())
    await asyncio.wait({spoiled})
    assert spoiled.exception() is not None
    return lost


async def test_a_call_begins_before_its_hold_is_on_disk(database: Database) -> None:
    quick = payer(database)
    before = database.write(lambda conn: None, quick=True)
    await quick.begin(request())
    assert not before.done()
    await quick.secured()
    assert before.done()
    assert await money(database) == (10_000, 1000)
    assert (await quick.settle(Msat(300), USAGE)).cost == 300
    assert await money(database) == (9_700, 0)


async def test_who_cannot_pay_is_told_before_the_call(database: Database) -> None:
    with pytest.raises(InsufficientBalance):
        await payer(database).begin(request(10_001))
    assert await money(database) == (10_000, 0)


async def test_nothing_reaches_the_client_and_nothing_is_charged_when_it_is_lost(
    database: Database,
) -> None:
    lost = await begun_and_lost(database)
    other = payer(database)  # the database gives it the same number
    await other.begin(request(50))
    await other.secured()
    with pytest.raises(Refused) as refused:
        await lost.secured()
    assert (refused.value.error.status, refused.value.receipt.cost) == (500, 0)
    with pytest.raises(Refused):
        await lost.settle(Msat(40), USAGE)
    with pytest.raises(Refused):
        await lost.release()
    assert await money(database) == (10_000, 50)
    await other.release()


@pytest.mark.parametrize(("settles", "left"), [(True, 9_700), (False, 10_000)])
async def test_who_hangs_up_before_it_is_on_disk_leaves_nothing_set_aside(
    database: Database, settles: bool, left: int
) -> None:
    gone = payer(database)
    await gone.begin(request())
    closing = asyncio.ensure_future(gone.settle(Msat(300), USAGE) if settles else gone.release())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await wind_up(5.0)
    assert await money(database) == (left, 0)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
async def test_who_hangs_up_while_it_is_set_aside_leaves_nothing_set_aside(
    database: Database, turns: int
) -> None:
    beginning = asyncio.ensure_future(payer(database).begin(request()))
    for _ in range(turns):
        await asyncio.sleep(0)
    if not beginning.cancel():
        return  # it had begun: see above
    with pytest.raises(asyncio.CancelledError):
        await beginning
    await money(database)
    assert await money(database) == (10_000, 0)
