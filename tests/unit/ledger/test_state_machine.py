"""Promise: whatever happens in whatever order, nothing is lost, made, given twice or overspent."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from node.core import denominations
from node.core.accounts import HoldRequest, IssueRequest, NewAccount, Operation, Source
from node.core.denominations import split
from node.core.ecash import Keyset, Proof, Token
from node.core.keys import RESETS, ChildTerms, NewChildren, Reset, Terms
from node.core.lightning import OPERATOR
from node.core.money import Msat
from node.core.pricing import Price
from node.core.usage import Usage
from node.errors import (
    IdempotencyConflict,
    IdempotencyInProgress,
    InsufficientBalance,
    Interrupted,
    InvalidApiKey,
    KeyExpired,
    LimitExceeded,
    MintLiquidity,
    NodeError,
    TokenAlreadySpent,
)
from node.ledger.accounts import SqliteLedger
from node.ledger.books import account_discrepancies, sum_books
from node.ledger.database import Database
from node.ledger.keys import SqliteKeys, child_discrepancies
from node.ledger.wallet import SqliteWalletStore

T = TypeVar("T")

MINT = "https://mint.example.com"
START = int(datetime(2026, 12, 29, 20, tzinfo=UTC).timestamp())
PRICE = Price(Msat(1), Msat(2), Msat(3))
USAGE = Usage(1, 1)

SATS = st.integers(1, 300)
PICK = st.sampled_from(range(12))
"""Which of the things there are, modulo how many."""


@dataclass
class Child:
    """What the machine knows of a child key, kept apart from the ledger's own counters."""

    id: int
    account: int
    terms: ChildTerms
    revoked: bool = False
    resets: int = 0
    spent: dict[tuple[object, ...], int] = field(default_factory=lambda: defaultdict(int))

    def settled(self, cost: int, now: float) -> None:
        moment = datetime.fromtimestamp(now, UTC)
        period: tuple[object, ...] = {
            "daily": (moment.date(),),
            "weekly": tuple(moment.isocalendar())[:2],
            "monthly": (moment.year, moment.month),
            None: (),
        }[self.terms.reset]
        self.spent[(self.resets, *period)] += cost


class Money(RuleBasedStateMachine):
    """A ledger, and a mint that remembers which coins were spent."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stock = denominations.STOCK
        denominations.STOCK = 0  # a poor inventory: giving out often takes a swap
        self.folder = Path(tempfile.mkdtemp())
        self.now = float(START)
        self.numbers = iter(range(1, 1 << 30))
        self.accounts: list[int] = []
        self.requests: list[int] = []
        self.children: list[Child] = []
        self.holds: dict[int, tuple[int, Child | None]] = {}
        self.closed_holds: list[int] = []
        self.operations: dict[str, Operation] = {}
        self.inputs: dict[str, tuple[str, ...]] = {}
        self.offers: dict[str, tuple[Token, list[str], int, NewAccount | int]] = {}
        self.spent: set[str] = set()
        self.received = self.issued = 0

    @initialize(fee_ppk=st.sampled_from([0, 100, 1000]))
    def open(self, fee_ppk: int) -> None:
        keyset = Keyset("00" * 8, "sat", True, fee_ppk, {1 << n: "02" for n in range(20)})
        self.source = Source(MINT, "sat", keyset, {keyset.id: fee_ppk})
        self.keyset, self.fee_ppk = keyset, fee_ppk
        self.run(self.start())
        for sats in (512, 64):
            self.open_account(sats, None)
            self.make_child(len(self.accounts) - 1, sats * 100, "daily", None, 0)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    async def start(self) -> None:
        self.database = await Database.open(self.folder / "node.db")
        self.ledger = SqliteLedger(self.database, clock=lambda: self.now)
        self.keys = SqliteKeys(self.database, self.ledger.forget, clock=lambda: self.now)
        self.store = SqliteWalletStore(
            self.database, lambda _mint, _unit, proofs: json.dumps([p.secret for p in proofs])
        )

    def teardown(self) -> None:
        if hasattr(self, "database"):
            self.run(self.database.close())
        self.loop.close()
        denominations.STOCK = self.stock
        shutil.rmtree(self.folder)

    # -- the mint ----------------------------------------------------------------------------

    def coins(self, operation: Operation, *, keep: bool | None = None) -> list[tuple[str, Proof]]:
        return [
            (f"y{o.counter}", Proof(o.keyset_id, o.amount, f"y{o.counter}", "02"))
            for o in operation.outputs
            if keep is None or o.keep is keep
        ]

    def known(self, operation: Operation) -> None:
        self.operations[operation.id] = operation
        if operation.id not in self.inputs:
            self.inputs[operation.id] = tuple(p.secret for p in operation.inputs)

    def take(self, operation: Operation) -> bool:
        """Whether the mint makes the swap: it does when no input was spent before."""
        inputs = set(self.inputs[operation.id])
        if inputs & self.spent:
            return False
        self.spent |= inputs
        return True

    async def reload(self, operation: Operation) -> Operation:
        self.operations[operation.id] = await self.store.operation(operation.id)
        return self.operations[operation.id]

    async def attempt(self, awaitable: Awaitable[T], *expected: type[NodeError]) -> T | None:
        try:
            return await awaitable
        except expected:
            return None

    def of_state(self, *states: str) -> list[Operation]:
        return [o for o in self.operations.values() if o.state in states]

    # -- money in ----------------------------------------------------------------------------

    def offer(self, sats: int, into: NewAccount | int) -> Operation | None:
        name = f"t{next(self.numbers)}"
        proofs = tuple(
            Proof(self.keyset.id, amount, f"{name}-{amount}", "02") for amount in split(sats)
        )
        fee = -(-len(proofs) * self.fee_ppk // 1000)
        if fee >= sats:
            return None  # the wallet refuses it before the ledger is asked
        token = Token(MINT, "sat", proofs)
        ys = [proof.secret for proof in proofs]
        operation = self.do(
            lambda: self.store.begin_receive(name, token, ys, fee, self.keyset, into)
        )
        self.offers[name] = (token, ys, fee, into)
        self.known(operation)
        return operation

    def do(self, make: Callable[[], Awaitable[T]]) -> T:
        """Wait for what ``make`` makes, which needs a running loop to be made."""

        async def work() -> T:
            return await make()

        return self.run(work())

    @rule(sats=SATS, lives_s=st.sampled_from([None, None, None, 100_000]))
    def open_account(self, sats: int, lives_s: int | None) -> None:
        terms = Terms(None if lives_s is None else int(self.now) + lives_s)
        new = NewAccount("key", {f"key{next(self.numbers)}": "spend"}, terms=terms)
        operation = self.offer(sats, new)
        if operation is not None:
            self.accounts.append(operation.account_id)
            self.finish_one(operation)

    @precondition(lambda self: self.accounts)
    @rule(sats=SATS, which=PICK)
    def begin_topup(self, sats: int, which: int) -> None:
        self.offer(sats, self.accounts[which % len(self.accounts)])

    @precondition(lambda self: self.offers)
    @rule(which=PICK)
    def offer_again(self, which: int) -> None:
        """The same token for the same purpose finds its operation; for another it is spent."""
        name = list(self.offers)[which % len(self.offers)]
        token, ys, fee, into = self.offers[name]
        known = self.operations[name]
        if known.state == "failed":
            return
        again = self.do(
            lambda: self.store.begin_receive(f"x{name}", token, ys, fee, self.keyset, into)
        )
        assert again.id == name
        other = NewAccount("key", {"thief": "spend"})
        try:
            self.do(
                lambda: self.store.begin_receive(f"z{name}", token, ys, fee, self.keyset, other)
            )
        except TokenAlreadySpent:
            return
        raise AssertionError("a token was taken for two purposes")

    # -- crossings end -----------------------------------------------------------------------

    def finish_one(self, operation: Operation) -> None:
        self.run(self.settle_crossing(operation))

    async def settle_crossing(self, operation: Operation) -> None:
        if not self.take(operation):
            await self.store.fail(operation, "token_already_spent")
        elif operation.kind == "receive":
            await self.store.finish_receive(operation, self.coins(operation))
            self.received += operation.value
        else:
            kept, issued = (self.coins(operation, keep=keep) for keep in (True, False))
            await self.store.finish_send(operation, kept, issued)
            if operation.account_id != OPERATOR:
                self.issued += operation.value
        await self.reload(operation)

    @precondition(lambda self: self.of_state("intent"))
    @rule(which=PICK)
    def finish(self, which: int) -> None:
        intents = self.of_state("intent")
        self.finish_one(intents[which % len(intents)])

    @precondition(lambda self: self.of_state("intent"))
    @rule(which=PICK)
    def fail(self, which: int) -> None:
        intents = self.of_state("intent")
        self.fail_one(intents[which % len(intents)])

    def fail_one(self, operation: Operation) -> None:
        self.do(lambda: self.store.fail(operation, "mint_unreachable"))
        self.run(self.reload(operation))

    @precondition(lambda self: self.of_state("failed"))
    @rule(which=PICK)
    def land_late(self, which: int) -> None:
        failed = self.of_state("failed")
        self.land_one(failed[which % len(failed)])

    def land_one(self, operation: Operation) -> None:
        if not self.take(operation):
            return
        self.do(lambda: self.store.salvage(operation, self.coins(operation)))
        if operation.kind == "receive":
            self.received += operation.value
        self.run(self.reload(operation))

    @precondition(lambda self: self.of_state("done", "salvaged"))
    @rule(which=PICK)
    def repeat(self, which: int) -> None:
        """What has ended stays as it is."""
        ended = self.of_state("done", "salvaged")
        operation = self.run(self.reload(ended[which % len(ended)]))

        async def again() -> None:
            await self.store.fail(operation, "mint_unreachable")
            await self.store.salvage(operation, self.coins(operation))
            if operation.kind == "receive":
                await self.store.finish_receive(operation, self.coins(operation))
            else:
                await self.store.finish_send(operation, [], [])

        before = self.run(self.database.read(sum_books))
        self.run(again())
        assert self.run(self.reload(operation)) == operation
        assert self.run(self.database.read(sum_books)) == before

    # -- money out ---------------------------------------------------------------------------

    async def send(self, account: int, sats: int | None, key: str | None) -> None:
        request = IssueRequest(
            f"s{next(self.numbers)}", account, None if sats is None else Msat(sats * 1000), key
        )
        operation = await self.attempt(
            self.store.begin_send(request, [self.source]),
            InsufficientBalance,
            MintLiquidity,
            IdempotencyConflict,
        )
        if operation is not None:
            if operation.id == request.operation_id and operation.state == "done":
                self.issued += operation.value
            self.known(operation)

    @rule(end=st.sampled_from(["done", "failed", "late", "open"]))
    def refill(self, end: str) -> None:
        """Coins of ours for other coins of ours."""
        denominations.STOCK = 2
        operation = self.do(lambda: self.store.begin_refill(f"r{next(self.numbers)}", self.source))
        denominations.STOCK = 0
        if operation is None:
            return
        self.known(operation)
        if end == "done":
            self.finish_one(operation)
        elif end != "open":
            self.fail_one(operation)
            if end == "late":
                self.land_one(self.operations[operation.id])

    @precondition(lambda self: self.accounts)
    @rule(
        which=PICK,
        sats=st.none() | st.integers(1, 40),
        key=st.sampled_from([None, None, "a", "b"]),
        end=st.sampled_from(["done", "failed", "late", "open"]),
    )
    def withdraw(self, which: int, sats: int | None, key: str | None, end: str) -> None:
        self.run(self.send(self.accounts[which % len(self.accounts)], sats, key))
        intents = [o for o in self.of_state("intent") if o.kind == "send"]
        if intents and end == "done":
            self.finish_one(intents[-1])
        elif intents and end != "open":
            self.fail_one(intents[-1])
            if end == "late":
                self.land_one(self.operations[intents[-1].id])

    # -- requests ----------------------------------------------------------------------------

    def payer(self, which: int) -> tuple[int, Child | None]:
        payers: list[tuple[int, Child | None]] = [(account, None) for account in self.accounts]
        payers += [(child.account, child) for child in self.children]
        return payers[which % len(payers)]

    async def hold_one(self, which: int, max_cost: int, key: str | None = None) -> None:
        account, child = self.payer(which)
        request = HoldRequest(
            "r", key, "d", "model", PRICE, Msat(max_cost), None if child is None else child.id
        )
        hold = await self.attempt(
            self.ledger.hold(account, request),
            InsufficientBalance,
            LimitExceeded,
            KeyExpired,
            InvalidApiKey,
            IdempotencyInProgress,
            Interrupted,
        )
        if hold is not None:
            assert child is None or not child.revoked
            self.holds[hold] = (max_cost, child)

    async def end_one(self, hold: int, cost: int | None) -> None:
        max_cost, child = self.holds.pop(hold)
        self.closed_holds.append(hold)
        if cost is None:
            await self.ledger.release(hold)
            return
        charged = await self.ledger.settle(hold, Msat(cost), USAGE)
        assert charged == min(cost, max_cost)
        if child is not None:
            child.settled(charged, self.now)

    @precondition(lambda self: self.accounts)
    @rule(which=PICK, cost=st.integers(0, 60_000), key=st.sampled_from([None, None, "a", "b"]))
    def hold(self, which: int, cost: int, key: str | None) -> None:
        self.run(self.hold_one(which, cost, key))

    @precondition(lambda self: self.holds)
    @rule(which=PICK, cost=st.none() | st.integers(0, 70_000))
    def end(self, which: int, cost: int | None) -> None:
        self.run(self.end_one(list(self.holds)[which % len(self.holds)], cost))

    @precondition(lambda self: self.children)
    @rule(costs=st.lists(st.tuples(PICK, st.integers(0, 20_000)), min_size=1, max_size=8))
    def children_pay(self, costs: list[tuple[int, int]]) -> None:
        async def pay() -> None:
            before = set(self.holds)
            holds = (self.hold_one(len(self.accounts) + which, cost) for which, cost in costs)
            await asyncio.gather(*holds)
            await asyncio.gather(
                *(self.end_one(hold, self.holds[hold][0]) for hold in set(self.holds) - before)
            )

        self.run(pay())

    @precondition(lambda self: self.closed_holds)
    @rule(which=PICK)
    def end_again(self, which: int) -> None:
        hold = self.closed_holds[which % len(self.closed_holds)]
        self.do(lambda: self.ledger.release(hold))
        self.do(lambda: self.ledger.settle(hold, Msat(1), USAGE))

    @precondition(lambda self: self.accounts)
    @rule(
        asked=st.lists(st.tuples(PICK, st.integers(0, 40_000)), min_size=2, max_size=12),
        ended=st.lists(st.none() | st.integers(0, 40_000), max_size=5),
        sent=st.lists(st.tuples(PICK, st.none() | SATS), max_size=5),
    )
    def all_at_once(
        self,
        asked: list[tuple[int, int]],
        ended: list[int | None],
        sent: list[tuple[int, int | None]],
    ) -> None:
        works: list[Coroutine[Any, Any, None]] = [self.hold_one(*hold) for hold in asked]
        works += [
            self.end_one(hold, cost) for hold, cost in zip(list(self.holds), ended, strict=False)
        ]
        works += [
            self.send(self.accounts[which % len(self.accounts)], sats, None) for which, sats in sent
        ]
        works += [self.settle_crossing(operation) for operation in self.of_state("intent")[:3]]

        async def together() -> None:
            await asyncio.gather(*works)

        self.run(together())

    @rule(sats=SATS, cost=st.none() | st.integers(0, 400_000))
    def pay_with_a_token(self, sats: int, cost: int | None) -> None:
        new = NewAccount("request", {f"req{next(self.numbers)}": "request"})
        operation = self.offer(sats, new)
        if operation is None:
            return
        self.finish_one(operation)
        account = operation.account_id
        self.requests.append(account)

        async def pay() -> None:
            free = (await self.ledger.balance(account)).free
            request = HoldRequest("r", "x-cashu", "", "model", PRICE, free)
            hold = await self.ledger.hold(account, request)
            usage = None if cost is None else USAGE
            closed = await self.store.settle_and_close(
                f"c{next(self.numbers)}", hold, Msat(cost or 0), usage, [self.source]
            )
            self.note_change(closed.change)

        self.run(pay())

    @precondition(lambda self: self.requests)
    @rule(which=PICK)
    def look_for_change(self, which: int) -> None:
        account = self.requests[which % len(self.requests)]
        state, _ = self.run(self.store.account_state(account))
        if state == "open":
            name = f"c{next(self.numbers)}"
            closed = self.do(lambda: self.store.close_idle(name, account, [self.source]))
            self.note_change(closed.change)

    def note_change(self, change: Operation | None) -> None:
        if change is not None and change.id not in self.operations:
            self.known(change)
            if change.state == "done":
                self.issued += change.value

    # -- child keys --------------------------------------------------------------------------

    @precondition(lambda self: self.accounts)
    @rule(
        which=PICK,
        limit=st.none() | st.integers(0, 100_000),
        reset=st.sampled_from([None, *RESETS]),
        lives_s=st.sampled_from([None, None, 200_000]),
        cost=st.sampled_from([0, 0, 700]),
    )
    def make_child(
        self, which: int, limit: int | None, reset: Reset | None, lives_s: int | None, cost: int
    ) -> None:
        account = self.accounts[which % len(self.accounts)]
        expires_at = None if lives_s is None else int(self.now) + lives_s
        terms = ChildTerms(None if limit is None else Msat(limit), reset, expires_at)
        name = f"n{next(self.numbers)}"
        new = NewChildren((name,), lambda name: f"hash-{name}", "", terms, Msat(cost))
        made = self.do(
            lambda: self.attempt(self.keys.create(account, new), InsufficientBalance, KeyExpired)
        )
        for child in made or ():
            self.children.append(Child(child.id, account, terms))

    @precondition(lambda self: self.children)
    @rule(which=PICK, revoke=st.booleans())
    def change_child(self, which: int, revoke: bool) -> None:
        child = self.children[which % len(self.children)]
        if child.revoked:
            return
        hashed = f"hash-{self.run(self.keys.child(child.id)).name}"
        if revoke:
            self.run(self.keys.revoke(child.account, hashed))
            child.revoked = True
        else:
            self.run(self.keys.reset(child.account, hashed))
            child.resets += 1

    @rule(seconds=st.sampled_from([1, 3_600, 86_400, 7 * 86_400]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def crash(self) -> None:
        self.run(self.database.close())
        self.run(self.start())
        assert self.run(self.ledger.release_all()) == len(self.holds)
        self.closed_holds += self.holds
        self.holds.clear()

    # -- what must hold ----------------------------------------------------------------------

    @invariant()
    def the_books_add_up(self) -> None:
        if not hasattr(self, "database"):
            return
        books = self.run(self.database.read(sum_books))
        assert books.problems() == []
        assert self.run(self.database.read(account_discrepancies)) == []
        assert self.run(self.database.read(child_discrepancies)) == []
        assert (books.received_msat, books.issued_msat) == (self.received, self.issued)
        assert books.holds_open == len(self.holds)
        leaving = [
            o for o in self.of_state("intent") if o.kind == "send" and o.account_id != OPERATOR
        ]
        assert books.transit_msat == sum(o.value + o.surcharge * 1000 for o in leaving)

    @invariant()
    def no_coin_is_given_twice_or_kept_after_it_was_spent(self) -> None:
        given: list[str] = []
        for operation in self.operations.values():
            if operation.token is not None:
                given += json.loads(operation.token)
        assert len(given) == len(set(given))
        assert not set(given) & self.spent
        if hasattr(self, "database"):
            rows = self.run(
                self.database.read(
                    lambda conn: conn.execute(
                        "SELECT y FROM proofs WHERE state IN ('unspent', 'reserved')"
                    ).fetchall()
                )
            )
            assert not {row["y"] for row in rows} & (self.spent | set(given))

    @invariant()
    def no_child_key_spent_more_than_its_limit_in_a_period(self) -> None:
        for child in self.children:
            if child.terms.limit is not None:
                assert all(spent <= child.terms.limit for spent in child.spent.values())


TestMoney = Money.TestCase
TestMoney.settings = settings(
    max_examples=50,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
