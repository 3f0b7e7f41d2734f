"""Promise: a statement shows every movement once, in order, and adds up to the balance."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.core.accounts import HoldRequest, IssueRequest, NewAccount, Operation, Source
from node.core.ecash import Keyset, Proof, Token
from node.core.money import Msat
from node.core.pricing import Price
from node.core.transactions import Position, Transaction
from node.core.usage import Usage
from node.ledger.accounts import SqliteLedger
from node.ledger.database import Database
from node.ledger.transactions import SqliteStatements, read_page
from node.ledger.wallet import SqliteWalletStore

MINT = "https://mint.example.com"
KEYSET = Keyset("00" * 8, "sat", True, 0, {1 << n: "02" for n in range(20)})
SOURCE = Source(MINT, "sat", KEYSET, {KEYSET.id: 0})
PRICE = Price(Msat(1), Msat(2), Msat(3))


class Desk:
    """A store with made-up coins, and the statement of its one account."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.ledger = SqliteLedger(database)
        self.store = SqliteWalletStore(database, lambda mint, unit, proofs: f"token-{len(proofs)}")
        self.statements = SqliteStatements(database)
        self.account = 0
        self._number = 0

    def coins(self, operation: Operation, keep: bool) -> list[tuple[str, Proof]]:
        return [
            (f"y{o.counter}", Proof(o.keyset_id, o.amount, f"s{o.counter}", "02"))
            for o in operation.outputs
            if o.keep is keep
        ]

    async def begin_receive(self, amount: int, into: NewAccount | int) -> Operation:
        self._number += 1
        name = f"in{self._number}"
        token = Token(MINT, "sat", (Proof(KEYSET.id, amount, name, "02"),))
        return await self.store.begin_receive(name, token, [name], 0, KEYSET, into)

    async def receive(self, amount: int, into: NewAccount | int) -> Operation:
        operation = await self.begin_receive(amount, into)
        await self.store.finish_receive(operation, self.coins(operation, keep=True))
        return operation

    async def begin_send(self, amount: int) -> Operation:
        self._number += 1
        request = IssueRequest(f"out{self._number}", self.account, Msat(amount * 1000), None)
        return await self.store.begin_send(request, [SOURCE])

    async def charge(self, cost: int, request_id: str) -> None:
        hold = await self.hold(cost, request_id)
        await self.ledger.settle(hold, Msat(cost), Usage(7, 8))

    async def hold(self, cost: int, request_id: str) -> int:
        request = HoldRequest(request_id, None, "", "model", PRICE, Msat(cost))
        return await self.ledger.hold(self.account, request)

    async def all(self, limit: int = 200) -> list[Transaction]:
        lines: list[Transaction] = []
        after: Position | None = None
        while True:
            page = await self.statements.page(self.account, after, limit)
            assert len(page.lines) <= limit
            lines += page.lines
            if page.next is None:
                return lines
            after = page.next


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    desk = Desk(await Database.open(tmp_path / "node.db"))
    operation = await desk.receive(100, NewAccount("key", {"hash": "spend"}))
    desk.account = operation.account_id
    yield desk
    lines = await desk.all()
    balance = await desk.ledger.balance(desk.account)
    moved = sum(
        line.amount for line in lines if line.state != "pending" or line.type == "withdrawal"
    )
    assert moved == balance.balance
    assert len({line.id for line in lines}) == len(lines)
    await desk.database.close()


async def test_every_kind_of_movement_is_a_line_of_its_own(desk: Desk) -> None:
    await desk.charge(1_234, "req-1")
    await desk.receive(7, desk.account)
    given = await desk.begin_send(3)
    assert given.state == "done"
    lines = await desk.all()
    assert [(line.type, line.state, line.amount) for line in lines] == [
        ("withdrawal", "done", -3_000),
        ("topup", "done", 7_000),
        ("charge", "done", -1_234),
        ("deposit", "done", 100_000),
    ]
    withdrawal, _, charge, deposit = lines
    assert (withdrawal.token, withdrawal.operation_id) == (given.token, given.id)
    assert (charge.request_id, charge.model) == ("req-1", "model")
    assert (charge.prompt_tokens, charge.completion_tokens) == (7, 8)
    assert deposit.mint == MINT
    await desk.store.mark_delivered(given.id)
    assert (await desk.all())[0].operation_id is None


async def test_what_is_pending_comes_first_and_keeps_its_id(desk: Desk) -> None:
    hold = await desk.hold(5_000, "req-2")
    topup = await desk.begin_receive(9, desk.account)
    pending = {line.id: line for line in await desk.all() if line.state == "pending"}
    assert {(line.type, line.amount) for line in pending.values()} == {
        ("charge", -5_000),
        ("topup", 9_000),
    }
    await desk.ledger.settle(hold, Msat(4_000), Usage(1, 1))
    await desk.store.finish_receive(topup, desk.coins(topup, keep=True))
    done = {line.id: line for line in await desk.all()}
    assert {done[id_].state for id_ in pending} == {"done"}
    assert {done[id_].amount for id_ in pending} == {-4_000, 9_000}


async def test_a_withdrawal_that_fails_and_its_reversal_cancel_out(desk: Desk) -> None:
    await desk.begin_send(64)  # what is left has no coin for most amounts
    operation = None
    for amount in range(1, 37):
        operation = await desk.begin_send(amount)
        if operation.state == "intent":
            break
    assert operation is not None
    assert operation.state == "intent"
    line = (await desk.all())[0]
    assert (line.type, line.state, line.token) == ("withdrawal", "pending", None)
    await desk.store.fail(operation, "mint_unreachable")
    reversal, failed = (await desk.all())[:2]
    assert (reversal.type, reversal.state) == ("reversal", "done")
    assert (failed.type, failed.state, failed.id) == ("withdrawal", "failed", line.id)
    assert reversal.amount == -failed.amount == operation.value


async def test_pages_of_any_size_hold_the_same_lines_in_the_same_order(desk: Desk) -> None:
    for number in range(12):
        await desk.charge(100 + number, f"req-{number}")
    for number in range(5):
        await desk.hold(10, f"open-{number}")
        await desk.begin_receive(2, desk.account)
    whole = await desk.all()
    assert len(whole) == 1 + 12 + 10
    for limit in (1, 2, 3, 5, 10, 11, 22, 23, 24):
        assert await desk.all(limit) == whole
    assert [line.request_id for line in whole[10:22]] == [f"req-{n}" for n in range(11, -1, -1)]


async def test_nothing_is_missed_when_lines_are_settled_between_pages(desk: Desk) -> None:
    holds = [await desk.hold(10, f"open-{number}") for number in range(6)]
    first = await desk.statements.page(desk.account, None, 4)
    await asyncio.gather(*(desk.ledger.settle(h, Msat(9), Usage(1, 1)) for h in holds))
    seen = {line.id for line in first.lines}
    after = first.next
    while after is not None:
        page = await desk.statements.page(desk.account, after, 4)
        seen |= {line.id for line in page.lines}
        after = page.next
    assert seen == {line.id for line in await desk.all()}


async def test_one_account_sees_nothing_of_another(desk: Desk) -> None:
    other = await desk.receive(50, NewAccount("key", {"other": "spend"}))
    page = await desk.statements.page(other.account_id, None, 200)
    assert [line.type for line in page.lines] == ["deposit"]
    await desk.charge(10, "mine")
    assert await desk.statements.paid_for(desk.account, "mine")
    assert not await desk.statements.paid_for(other.account_id, "mine")


async def test_a_page_costs_the_same_whatever_the_history(desk: Desk) -> None:
    def plans(conn: sqlite3.Connection) -> str:
        seen: list[str] = []
        conn.set_trace_callback(seen.append)
        read_page(conn, desk.account, None, 50)
        conn.set_trace_callback(None)
        assert len(seen) == 3
        return "\n".join(
            row["detail"] for query in seen for row in conn.execute(f"EXPLAIN QUERY PLAN {query}")
        )

    plan = await desk.database.read(plans)
    for scan in ("SCAN transfers", "SCAN holds", "SCAN operations", "SCAN o ", "SCAN h "):
        assert scan not in f"{plan} ", scan
    for index in (
        "transfers_source",
        "transfers_destination",
        "holds_account",
        "operations_account",
    ):
        assert index in plan
