"""Promise: a spending is written down before its token exists, and ends only once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.core.money import Msat
from node.gateway.journal import Journal, Place, Record, Spending
from node.ledger.database import Database

PLACE = Place("a" * 64, "d", "name", "https://a.example.com", ("wss://r.example.com",))


def spending(id_: str = "s", amount: int = 5_000) -> Spending:
    return Spending(id_, PLACE, "http", "m", "https://mint.example.com", Msat(amount))


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path / "wallet.db")
    yield opened
    await opened.close()


async def test_what_is_written_is_there_after_a_restart(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "wallet.db")
    journal = await Journal.open(database)
    await journal.add_mints(["https://b.example.com", "https://a.example.com"])
    await journal.begin(spending())
    await journal.move("s", "sent")
    await journal.keep_change("s", "cashuBchange")
    await journal.expect("s", Msat(900))
    journal.note(PLACE.pubkey, Record(served=2, latency_ms=7))
    await database.close()
    database = await Database.open(tmp_path / "wallet.db")
    journal = await Journal.open(database)
    assert await journal.mints() == ["https://b.example.com", "https://a.example.com"]
    found = await journal.spending("s")
    assert (found.place, found.state, found.change) == (PLACE, "sent", "cashuBchange")
    assert (found.amount, found.expected, found.cost) == (5_000, 900, 5_000)
    assert journal.records == {PLACE.pubkey: Record(served=2, latency_ms=7)}
    assert "cashuBchange" not in repr(found)
    await database.close()


async def test_it_ends_only_once(database: Database) -> None:
    journal = await Journal.open(database)
    await journal.begin(spending())
    await journal.move("s", "sent")
    moves = await asyncio.gather(
        journal.move("s", "settled", back=Msat(3_000)), journal.move("s", "reclaimed")
    )
    assert moves == [True, False]
    found = await journal.spending("s")
    assert (found.state, found.back, found.cost, found.change) == ("settled", 3_000, 2_000, "")
    await journal.keep_change("s", "cashuBlate")
    assert (await journal.spending("s")).change == ""


async def test_the_open_ones_and_the_latest(database: Database) -> None:
    journal = await Journal.open(database)
    for name in ("a", "b", "c"):
        await journal.begin(spending(name))
    await journal.move("b", "void")
    assert [s.id for s in await journal.in_states(("begun",))] == ["a", "c"]
    assert [s.id for s in await journal.latest(2)] == ["c", "b"]
    with pytest.raises(KeyError):
        await journal.spending("nobody")
    assert await journal.operation_of("a", 1) is None


async def test_opening_twice_changes_nothing(database: Database) -> None:
    await (await Journal.open(database)).begin(spending())
    assert (await (await Journal.open(database)).spending("s")).state == "begun"
