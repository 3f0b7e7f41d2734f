"""Promise: a spending is written down before its token exists, and ends only once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node.core.money import Msat
from node.core.pricing import Price
from node.gateway.asked import MAX_KEPT_BYTES, Asked
from node.gateway.journal import Journal, Place, Record, Spending
from node.ledger.database import Database, StorageError

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


def asked(**changes: Any) -> Asked:
    price = Price(Msat(10), Msat(20), reasoning_per_mtok=Msat(30))
    plain = Asked("/v1/chat/completions", {"accept": "x"}, b"what was asked", price, "nsec1secret")
    return replace(plain, **changes)


async def test_what_was_asked_is_kept_until_the_money_is_back(database: Database) -> None:
    journal = await Journal.open(database)
    for name, end in (("a", "settled"), ("b", "reclaimed"), ("c", "void")):
        await journal.begin(spending(name), asked())
        assert await journal.asked(name) == asked()
        await journal.move(name, end)  # type: ignore[arg-type]
        assert await journal.asked(name) is None
    await journal.begin(spending("d"), asked())
    await journal.move("d", "lost")
    assert await journal.asked("d") == asked()
    assert await journal.prune(-1) == 0
    assert "secret" not in repr(asked())
    assert "what was asked" not in repr(asked())


async def test_of_a_named_request_its_name_is_kept_a_while(database: Database) -> None:
    journal = await Journal.open(database)
    for id_ in ("a", "b"):
        await journal.begin(spending(id_), asked(request_key="name"))
    assert [s.id for s in await journal.named("name")] == ["b", "a"]
    await journal.move("a", "settled")
    forgotten = await journal.asked("a")
    assert forgotten == asked(request_key="name", body=None, secret="")
    assert forgotten is not None
    assert not forgotten.repeatable
    assert await journal.prune(60) == 0
    assert await journal.prune(-1) == 1
    assert [s.id for s in await journal.named("name")] == ["b"]
    assert await journal.named("other") == []


async def test_over_http_nothing_is_kept_of_what_was_asked(database: Database) -> None:
    journal = await Journal.open(database)
    await journal.begin(spending("a"), asked(secret=""))
    assert await journal.asked("a") is None
    await journal.begin(spending("b"), asked(secret="", request_key="name"))
    assert await journal.asked("b") == asked(secret="", request_key="name", body=None)


async def test_what_is_too_long_is_not_kept(database: Database) -> None:
    journal = await Journal.open(database)
    await journal.begin(spending(), asked(body=random.Random(1).randbytes(MAX_KEPT_BYTES + 1)))
    found = await journal.asked("s")
    assert found is not None
    assert (found.body, found.repeatable) == (None, False)


async def test_a_wallet_of_before_is_brought_up_to_date(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "wallet.db")
    await (await Journal.open(database)).begin(spending())
    for statement in (
        "DROP TABLE gateway_requests",
        "DROP INDEX gateway_spendings_operation",
        "ALTER TABLE gateway_spendings DROP COLUMN operation",
        "UPDATE gateway_schema SET version = 1",
    ):
        await database.write(lambda conn, text=statement: conn.execute(text))  # type: ignore[misc]
    journal = await Journal.open(database)
    assert (await journal.spending("s")).state == "begun"
    assert await journal.asked("s") is None
    await database.close()


async def test_a_wallet_of_a_newer_program_is_left_alone(database: Database) -> None:
    await Journal.open(database)
    await database.write(lambda conn: conn.execute("UPDATE gateway_schema SET version = 99"))
    with pytest.raises(StorageError, match="newer"):
        await Journal.open(database)
    rows = await database.read(
        lambda conn: conn.execute("SELECT version FROM gateway_schema").fetchall()
    )
    assert [row["version"] for row in rows] == [99]
