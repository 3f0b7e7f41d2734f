"""Promise: no key spends more than its limit or after its date, however many ask at once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.accounts import HoldRequest, NewAccount, key_hash
from node.core.keys import ChildKey, ChildTerms, NewChildren, Reset, Terms, period_start
from node.core.money import Msat
from node.core.pricing import Price
from node.core.usage import Usage
from node.errors import (
    IdempotencyConflict,
    InsufficientBalance,
    InvalidApiKey,
    InvalidValue,
    KeyExpired,
    LimitExceeded,
    NodeError,
    NotFound,
)
from node.ledger.accounts import SqliteLedger
from node.ledger.books import Book, account_discrepancies, transfer
from node.ledger.database import Database
from node.ledger.keys import SqliteKeys, child_discrepancies
from node.ledger.operations import open_account

PRICE = Price(Msat(1), Msat(2), Msat(3))
USAGE = Usage(10, 20)
NOON = int(datetime(2026, 3, 31, 12, tzinfo=UTC).timestamp())  # a Tuesday
DAY_S = 86_400


class Bank:
    """A ledger and its keys under a clock of its own, with one account of 10,000 msat."""

    def __init__(self, database: Database) -> None:
        self.now = float(NOON)
        self.database = database
        self.ledger = SqliteLedger(database, clock=lambda: self.now)
        self.keys = SqliteKeys(
            database, self.ledger.forget, max_children=60, clock=lambda: self.now
        )
        self.account = 0

    async def open(self, terms: Terms = Terms(), name: str = "parent") -> int:  # noqa: B008
        def work(conn: sqlite3.Connection) -> int:
            new = NewAccount("key", {key_hash(f"sk-{name}"): "spend"}, terms=terms)
            account = open_account(conn, new, "https://m", "sat")
            transfer(conn, Book.IN, account, 10_000, "test")
            return account

        return await self.database.write(work)

    async def child(
        self,
        limit: int | None = None,
        reset: Reset | None = None,
        *,
        count: int = 1,
        cost: int = 0,
        expires_at: int | None = None,
        request_key: str | None = None,
        prefix: str = "child",
    ) -> list[ChildKey]:
        terms = ChildTerms(None if limit is None else Msat(limit), reset, expires_at)
        new = NewChildren(
            names=tuple(f"{prefix}-{n}" for n in range(count)),
            hash_of=lambda name: key_hash(f"sk-{name}"),
            parent="parent",
            terms=terms,
            cost=Msat(cost),
            request_key=request_key,
        )
        return await self.keys.create(self.account, new)

    def hold(
        self, max_cost: int, child: ChildKey | None = None, key: str | None = None
    ) -> asyncio.Future[int]:
        child_id = None if child is None else child.id
        request = HoldRequest("r", key, "", "model", PRICE, Msat(max_cost), child_id)
        return self.ledger.hold(self.account, request)

    async def spend(self, cost: int, child: ChildKey | None = None) -> None:
        await self.ledger.settle(await self.hold(cost, child), Msat(cost), USAGE)

    async def check(self) -> None:
        assert await self.database.read(account_discrepancies) == []
        assert await self.database.read(child_discrepancies) == []


@pytest.fixture
async def bank(tmp_path: Path) -> AsyncIterator[Bank]:
    bank = Bank(await Database.open(tmp_path / "node.db"))
    bank.account = await bank.open()
    yield bank
    await bank.check()
    await bank.database.close()


async def test_a_child_key_is_found_and_spends_its_parents_money(bank: Bank) -> None:
    (child,) = await bank.child()
    account = await bank.ledger.account("sk-child-0")
    assert (account.id, account.role, account.child_id) == (bank.account, "child", child.id)
    await bank.spend(400, child)
    await bank.spend(30)
    assert (await bank.ledger.balance(bank.account)).balance == 9_570
    spending = await bank.keys.spending(bank.account)
    assert {who: (part.requests, part.spent) for who, part in spending.items()} == {
        None: (1, 30),
        child.id: (1, 400),
    }


async def test_thirty_requests_at_once_exceed_neither_limit_nor_balance(bank: Bank) -> None:
    first, second = await bank.child(2_000, count=2)
    asked = [bank.hold(300, who) for _ in range(30) for who in (first, second, None)]
    results = await asyncio.gather(*asked, return_exceptions=True)
    held = [result for result in results if isinstance(result, int)]
    refused = {type(result) for result in results if not isinstance(result, int)}
    assert refused == {LimitExceeded, InsufficientBalance}
    for child in (first, second):
        now = await bank.keys.child(child.id)
        assert (now.held, now.spent) == (1_800, 0)
    assert len(held) == 33  # 6 + 6 + 21: 9,900 of 10,000
    await bank.check()
    for number, hold in enumerate(held):
        if number % 2:
            await bank.ledger.settle(hold, Msat(250), USAGE)
        else:
            await bank.ledger.release(hold)
    await bank.check()


async def test_what_running_requests_may_cost_counts_until_they_cost_less(bank: Bank) -> None:
    (child,) = await bank.child(1_000)
    hold = await bank.hold(800, child)
    with pytest.raises(LimitExceeded, match="200 msat"):
        await bank.hold(201, child)
    assert (await bank.keys.child(child.id)).left == 200
    await bank.ledger.settle(hold, Msat(300), USAGE)
    assert (await bank.keys.child(child.id)).left == 700
    await bank.ledger.release(await bank.hold(700, child))
    assert (await bank.keys.child(child.id)).left == 700


async def test_a_refused_hold_takes_nothing_of_the_limit(bank: Bank) -> None:
    (child,) = await bank.child(50_000)
    with pytest.raises(InsufficientBalance):
        await bank.hold(10_001, child)
    assert (await bank.keys.child(child.id)).held == 0


@pytest.mark.parametrize(
    ("reset", "same", "later"),
    [
        ("daily", NOON + DAY_S // 2 - 1, NOON + DAY_S // 2),
        ("weekly", NOON + 5 * DAY_S, NOON + 6 * DAY_S),  # Sunday, Monday
        ("monthly", NOON + DAY_S // 2 - 1, NOON + DAY_S // 2),  # 31 March, 1 April
        (None, NOON + DAY_S, None),
    ],
)
async def test_a_limit_begins_anew_with_its_period(
    bank: Bank, reset: Reset | None, same: int, later: int | None
) -> None:
    (child,) = await bank.child(1_000, reset)
    await bank.spend(900, child)
    bank.now = same
    with pytest.raises(LimitExceeded):
        await bank.hold(101, child)
    if later is None:
        return
    bank.now = later
    assert (await bank.keys.child(child.id)).left == 1_000
    await bank.spend(1_000, child)
    bank.now = same  # a clock that is set back gives nothing away
    with pytest.raises(LimitExceeded):
        await bank.hold(1, child)


async def test_what_runs_over_midnight_counts_on_the_day_it_is_settled(bank: Bank) -> None:
    (child,) = await bank.child(1_000, "daily")
    hold = await bank.hold(600, child)
    bank.now += DAY_S
    with pytest.raises(LimitExceeded):
        await bank.hold(401, child)
    await bank.ledger.settle(hold, Msat(500), USAGE)
    assert (await bank.keys.child(child.id)).left == 500


@given(st.integers(0, 2**33), st.integers(0, 40 * DAY_S), st.sampled_from(["daily", "weekly"]))
def test_periods_have_no_gaps(moment: int, further: int, reset: Reset) -> None:
    length = DAY_S if reset == "daily" else 7 * DAY_S
    start = period_start(reset, moment)
    assert start <= moment < start + length
    assert (period_start(reset, moment + further) - start) % length == 0


async def test_the_parent_can_let_a_limit_begin_anew(bank: Bank) -> None:
    (child,) = await bank.child(1_000)
    await bank.spend(1_000, child)
    bank.now += 10
    await bank.keys.reset(bank.account, key_hash("sk-child-0"))
    await bank.spend(900, child)
    assert (await bank.keys.child(child.id)).spent == 900
    assert (await bank.keys.spending(bank.account))[child.id].spent == 1_900
    other = await bank.open(name="other")
    for wrong, hashed in ((other, "sk-child-0"), (bank.account, "sk-parent")):
        with pytest.raises(NotFound):
            await bank.keys.reset(wrong, key_hash(hashed))
        with pytest.raises(NotFound):
            await bank.keys.revoke(wrong, key_hash(hashed))


async def test_a_revoked_key_is_known_no_more_even_to_who_read_it_before(bank: Bank) -> None:
    (child,) = await bank.child(1_000)
    assert (await bank.ledger.account("sk-child-0")).child_id == child.id
    running = await bank.hold(500, child)
    await bank.keys.revoke(bank.account, key_hash("sk-child-0"))
    await bank.keys.revoke(bank.account, key_hash("sk-child-0"))
    with pytest.raises(InvalidApiKey):
        await bank.ledger.account("sk-child-0")
    with pytest.raises(InvalidApiKey):
        await bank.hold(1, child)
    assert await bank.keys.children(bank.account) == []
    await bank.ledger.settle(running, Msat(400), USAGE)
    assert (await bank.keys.spending(bank.account))[child.id].spent == 400


async def test_a_key_revoked_while_it_is_looked_up_is_not_remembered(bank: Bank) -> None:
    await bank.child()
    reading = asyncio.create_task(bank.ledger.account("sk-child-0"))
    await asyncio.sleep(0)
    await bank.keys.revoke(bank.account, key_hash("sk-child-0"))
    await asyncio.gather(reading, return_exceptions=True)
    with pytest.raises(InvalidApiKey):
        await bank.ledger.account("sk-child-0")


async def test_an_expired_child_key_spends_nothing_and_its_parent_goes_on(bank: Bank) -> None:
    (child,) = await bank.child(expires_at=NOON + 10)
    await bank.spend(10, child)
    bank.now += 10
    with pytest.raises(KeyExpired):
        await bank.hold(10, child)
    assert (await bank.ledger.account("sk-child-0")).expired(bank.now)
    await bank.spend(10)


async def test_an_expired_account_spends_nothing_by_any_key(bank: Bank) -> None:
    bank.account = await bank.open(Terms(NOON + 10, "me@example.com"), "mortal")
    (child,) = await bank.child(expires_at=NOON + 99)
    assert (await bank.ledger.account("sk-child-0")).expires_at == NOON + 10
    await bank.spend(10, child)
    running = await bank.hold(100)
    assert await bank.keys.to_refund(9) == []
    bank.now += 10
    for who in (child, None):
        with pytest.raises(KeyExpired):
            await bank.hold(10, who)
    with pytest.raises(KeyExpired):
        await bank.child(prefix="late")
    assert await bank.keys.to_refund(9) == []  # not while a request runs
    await bank.ledger.settle(running, Msat(50), USAGE)
    assert await bank.keys.to_refund(9) == [(bank.account, "me@example.com")]
    assert (await bank.ledger.balance(bank.account)).free == 9_940


async def test_keys_are_paid_for_once(bank: Bank) -> None:
    made = await bank.child(count=3, cost=300, request_key="k")
    again = await bank.child(count=3, cost=300, request_key="k", prefix="again")
    assert [child.id for child in made] == [child.id for child in again]
    assert (await bank.ledger.balance(bank.account)).balance == 9_700
    for other in ({"count": 2}, {"count": 3, "limit": 5}):
        with pytest.raises(IdempotencyConflict):
            await bank.child(**other, request_key="k", prefix="x")  # type: ignore[arg-type]
    with pytest.raises(InsufficientBalance):
        await bank.child(cost=9_701, prefix="dear")
    with pytest.raises(InvalidValue, match="at most 60"):
        await bank.child(count=58, prefix="many")
    assert len(await bank.keys.children(bank.account)) == 3


async def test_keys_that_cannot_all_be_paid_for_are_not_made(bank: Bank) -> None:
    results: list[list[ChildKey] | NodeError] = await asyncio.gather(  # type: ignore[assignment]
        *(bank.child(cost=3_000, prefix=f"p{n}") for n in range(30)), return_exceptions=True
    )
    made = [result for result in results if isinstance(result, list)]
    assert len(made) == 3 == len(await bank.keys.children(bank.account))
    assert (await bank.ledger.balance(bank.account)).balance == 1_000


async def test_the_request_keys_of_two_keys_are_two(bank: Bank) -> None:
    first, second = await bank.child(count=2)
    holds = [await bank.hold(10, who, "same") for who in (None, first, second)]
    assert len(set(holds)) == 3


async def test_holds_of_child_keys_are_freed_after_a_crash(bank: Bank) -> None:
    (child,) = await bank.child(1_000)
    await bank.hold(600, child)
    assert await bank.ledger.release_all() == 1
    assert (await bank.keys.child(child.id)).left == 1_000
