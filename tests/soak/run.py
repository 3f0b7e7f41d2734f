"""The soak: clients, trouble, a node that dies, and at the end the equation.

    what clients put in = what clients hold + the node's coins + fees of the mints + paid out

Every coin is looked at: what a mint has signed and not seen spent is exactly what clients and node
hold, so nothing was lost that nobody misses.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import aiohttp

from node.core.lightning import invoice_hash
from node.core.money import MSAT_PER_SAT
from node.demo.mint import EmbeddedMint
from node.demo.model_server import ModelServer
from node.ecash.payment_request import PaymentRequest
from node.ledger.books import Books, read_books
from tests.soak.actor import Actor
from tests.soak.chaos import ChaosProxy, Killer, fail_at_times, stumble
from tests.soak.client import CHAT, Client
from tests.soak.node import SOURCE, SoakNode
from tests.soak.payee import payee
from tests.soak.pocket import Pocket, Side, open_pocket
from tests.soak.prompts import longest_body
from tests.soak.settling import Settlement, StuckError

FEE_PPK = 100
QUIET_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of it. It ends with whichever of ``operations`` and ``seconds`` is reached first."""

    seed: int
    operations: int = 3000
    seconds: float = 600.0
    actors: int = 8
    alive_s: float = 6.0
    """The node is killed after at most so long."""
    fault_share: float = 0.25
    """How many of the calls to the mint behind the bad line, that move money, meet a fault."""
    settle_timeout_s: float = 90.0
    """How long anything may take once nothing is in its way."""


@dataclass
class Outcome:
    """What happened. ``problems`` is empty when no sat was lost or made."""

    plan: Plan
    operations: int = 0
    kills: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    faults: dict[str, int] = field(default_factory=dict)
    sums: dict[str, int] = field(default_factory=dict)

    def text(self) -> str:
        """For people."""
        lines = [
            f"seed {self.plan.seed}: {self.operations} operations of {self.plan.actors} clients"
            f" in {self.seconds:.0f} s, {self.kills} kills",
            "operations  " + _listed(self.done),
            "faults      " + _listed(self.faults),
            "money       " + _listed(self.sums),
            *(f"PROBLEM     {problem}" for problem in self.problems),
            "nothing lost, nothing made" if not self.problems else f"{len(self.problems)} problems",
        ]
        return "\n".join(lines)


def _listed(counts: dict[str, int] | Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


@dataclass
class World:
    """All of it."""

    plan: Plan
    node: SoakNode
    upstream: ModelServer
    proxy: ChaosProxy
    sides: tuple[Side, ...]
    actors: list[Actor]
    killer: Killer
    session: aiohttp.ClientSession


Mints = tuple[EmbeddedMint, EmbeddedMint]
"""One without fees, one that takes FEE_PPK."""


async def soak(plan: Plan, directory: Path, mints: Mints | None = None) -> Outcome:
    """Run it in ``directory``. Raises only when the test itself is broken.

    Args:
        mints: running ones that nobody else uses meanwhile; by default it starts its own.
    """
    outcome = Outcome(plan)
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # clients hang up
    started = time.monotonic()
    async with _world(plan, directory, mints) as world:
        await _storm(world)
        await _calm(world)
        settlements = await _settle(world, outcome)
        if settlements:
            await _equation(world, settlements, outcome)
        for actor in world.actors:
            outcome.problems += [f"{actor.name}: {text}" for text in actor.pocket.problems]
            outcome.done += actor.done
            outcome.answers += actor.answers
        outcome.operations = outcome.done.total()
        outcome.kills = world.killer.kills
        outcome.faults = {name: count for name, count in world.proxy.met.items() if count}
    outcome.seconds = time.monotonic() - started
    return outcome


def _dice(plan: Plan, name: str) -> random.Random:
    return random.Random(f"{plan.seed} {name}")


@asynccontextmanager
async def _world(plan: Plan, directory: Path, given: Mints | None) -> AsyncIterator[World]:
    dice = partial(_dice, plan)
    async with AsyncExitStack() as stack:
        mints = given or (
            await _mint(stack, directory / "mint-free", 0),
            await _mint(stack, directory / "mint-100ppk", FEE_PPK),
        )
        behind = dice("proxy").randrange(2)
        proxy = ChaosProxy(mints[behind].url, dice("faults"), plan.fault_share)
        await stack.enter_async_context(proxy)
        sides = tuple(
            Side(
                mint,
                proxy.url if number == behind else mint.url,
                FEE_PPK * number,
                _alive(mint),
            )
            for number, mint in enumerate(mints)
        )
        upstream = await stack.enter_async_context(ModelServer())
        address = await stack.enter_async_context(payee())
        urls = (sides[0].node_url, sides[1].node_url)
        reserve_sat = dice("reserve").choice((0, 20))
        node = SoakNode(urls, upstream.url, address, directory / "node", reserve_sat)
        await stack.enter_async_context(node)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        )
        client = Client(session, node.url)
        max_cost = await _max_cost(client)
        killer = Killer(node, dice("kills"), plan.alive_s)
        handed_out: dict[str, str] = {}
        actors = []
        for number in range(plan.actors):
            pocket = await stack.enter_async_context(open_pocket(sides, handed_out))
            name = f"client-{number}"
            actors.append(Actor(name, dice(name), client, pocket, sides, max_cost, killer.up))
        yield World(plan, node, upstream, proxy, sides, actors, killer, session)


async def _mint(stack: AsyncExitStack, directory: Path, fee_ppk: int) -> EmbeddedMint:
    return await stack.enter_async_context(EmbeddedMint(directory, input_fee_ppk=fee_ppk))


async def _max_cost(client: Client) -> int:
    """What the node asks for the longest prompt that the clients send, in msat."""
    made = await client.call("POST", "/lightning/invoice", {"amount_sats": 1})
    assert made is not None
    path = f"/lightning/invoice/{made.json()['invoice_id']}/status"
    async with asyncio.timeout(20):
        while True:
            status = await client.call("GET", path)
            if status is not None and status.json().get("api_key"):
                break
            await asyncio.sleep(0.1)
    asked = await client.call("POST", CHAT, longest_body(), key=status.json()["api_key"])
    assert asked is not None
    assert asked.status == 402, asked
    amount = PaymentRequest.decode(asked.headers["X-Cashu"]).amount
    assert amount is not None
    return amount * MSAT_PER_SAT


# -- the storm -----------------------------------------------------------------------------


async def _storm(world: World) -> None:
    plan = world.plan
    ends_at = time.monotonic() + plan.seconds

    def more() -> bool:
        done = sum(actor.done.total() for actor in world.actors)
        return done < plan.operations and time.monotonic() < ends_at

    world.proxy.raging = True
    trouble = [
        asyncio.create_task(world.killer.run()),
        asyncio.create_task(stumble(world.upstream, _dice(plan, "upstream"))),
        asyncio.create_task(fail_at_times(world.proxy, _dice(plan, "outages"))),
    ]

    async def act() -> None:
        await asyncio.gather(*(actor.run(more) for actor in world.actors))

    acting = asyncio.create_task(act())
    try:  # the trouble has no end: whatever is done first is the clients, or broken
        await asyncio.wait({acting, *trouble}, return_when=asyncio.FIRST_COMPLETED)
        for task in trouble:
            if task.done():
                task.result()
    finally:
        for task in (acting, *trouble):
            task.cancel()
        await asyncio.gather(*trouble, return_exceptions=True)
    await acting


async def _calm(world: World) -> None:
    """Everything works again, and the node starts once more: that is when it recovers."""
    await world.proxy.calm()
    await world.killer.strike()


async def _settle(world: World, outcome: Outcome) -> list[Settlement]:
    def surcharges() -> dict[str, int]:
        with closing(sqlite3.connect(f"file:{world.node.database}?mode=ro", uri=True)) as db:
            return {
                token: surcharge * MSAT_PER_SAT
                for token, surcharge in db.execute(
                    "SELECT token, surcharge FROM operations"
                    " WHERE surcharge > 0 AND token IS NOT NULL"
                )
            }

    settlements = [
        Settlement(actor, surcharges, world.plan.settle_timeout_s) for actor in world.actors
    ]
    for result in await asyncio.gather(
        *(settlement.run() for settlement in settlements), return_exceptions=True
    ):
        if isinstance(result, StuckError):
            outcome.problems.append(str(result))
        elif isinstance(result, BaseException):
            raise result
    return [] if outcome.problems else settlements


# -- the equation --------------------------------------------------------------------------


async def _equation(world: World, settlements: Sequence[Settlement], outcome: Outcome) -> None:
    problems = outcome.problems
    books = await _quiet(world.node.database)
    if books.operations_open or books.holds_open:
        problems.append(f"{books.operations_open} operations, {books.holds_open} holds still open")
    await world.node.stop()
    code, said = await _nodestr(world.node, "check", "--online")
    if code:
        problems.append(f"nodestr check says {code}:\n{said}")
    books = read_books(world.node.database)
    pockets = [actor.pocket for actor in world.actors]
    lost_bills, bills = _invoices(world)
    put_in = sum(pocket.put_in for pocket in pockets) * MSAT_PER_SAT + lost_bills + bills
    held = sum(pocket.held(side) for pocket in pockets for side in world.sides) * MSAT_PER_SAT
    kept = sum(pocket.kept_by_mints for pocket in pockets) * MSAT_PER_SAT
    fees = kept + books.input_fees_msat + books.own_fees_msat
    outcome.sums = {
        "put in": put_in,
        "held by clients": held,
        "node's coins": books.proofs_msat,
        "fees": fees,
        "of them the node's own": books.own_fees_msat,
        "paid out": books.payouts_msat,
        "charged": books.revenue_msat,
        "surcharges": _surcharged(world.node.database),
        "owed to clients": books.open_msat,
    }
    right = held + books.proofs_msat + fees + books.payouts_msat
    if put_in != right:
        problems.append(f"put in {put_in} msat, accounted for {right} msat")
    for side in world.sides:
        _circulation(world, side, pockets, problems)
    for pocket in pockets:
        if not await pocket.unspent():
            problems.append("a token that a client holds is spent")
    problems += _owed(settlements, books, lost_bills)
    if books.loss_msat:
        problems.append(f"the node booked a loss of {books.loss_msat} msat")
    if not books.solvent:
        problems.append(f"insolvent: {books.equity_msat} msat")


async def _quiet(database: Path) -> Books:
    ends_at = time.monotonic() + QUIET_TIMEOUT_S
    while True:
        books = read_books(database)
        quiet = not books.operations_open and not books.holds_open
        if quiet or time.monotonic() > ends_at:
            return books
        await asyncio.sleep(0.2)


async def _nodestr(node: SoakNode, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "node", *arguments, "--config", str(node.config_file),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 120)
    return process.returncode or 0, out.decode()


def _invoices(world: World) -> tuple[int, int]:
    """(paid invoices whose answer was lost, those that clients know), in msat."""
    known = {invoice_hash(bill.invoice_id) for actor in world.actors for bill in actor.bills}
    lost = ours = 0
    with closing(sqlite3.connect(world.node.database)) as db:
        for hashed, amount in db.execute("SELECT hash, amount FROM invoices WHERE state = 'paid'"):
            if hashed in known:
                ours += amount * MSAT_PER_SAT
            else:
                lost += amount * MSAT_PER_SAT
    return lost, ours


def _surcharged(database: Path) -> int:
    with closing(sqlite3.connect(database)) as db:
        query = "SELECT COALESCE(SUM(surcharge), 0) FROM operations WHERE state = 'done'"
        return int(db.execute(query).fetchone()[0]) * MSAT_PER_SAT


def _circulation(world: World, side: Side, pockets: Sequence[Pocket], problems: list[str]) -> None:
    """What the mint has signed and not seen spent is what we and the node hold, to the coin."""
    with closing(sqlite3.connect(world.node.database)) as db:
        mine = db.execute(
            "SELECT COALESCE(SUM(amount), 0) FROM proofs"
            " WHERE mint = ? AND state IN ('unspent', 'reserved')",
            (side.node_url,),
        ).fetchone()[0]
    alive = _alive(side.mint) - side.alive_before
    held = sum(pocket.held(side) for pocket in pockets)
    if alive != held + mine:
        problems.append(
            f"mint with {side.fee_ppk} ppk: {alive} sat are alive, clients hold {held} and the"
            f" node {mine}"
        )


def _alive(mint: EmbeddedMint) -> int:
    """What the mint has signed and not seen spent, in sat."""
    (file,) = (mint.directory / "database").glob("**/*.sqlite3")
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        signed = db.execute("SELECT SUM(amount) FROM promises WHERE c_ IS NOT NULL").fetchone()[0]
        spent = db.execute("SELECT SUM(amount) FROM proofs_used").fetchone()[0]
    return (signed or 0) - (spent or 0)


def _owed(settlements: Sequence[Settlement], books: Books, lost_bills: int) -> list[str]:
    """What the node still owes must be what nobody could collect."""
    problems = []
    gifts = sum(gift for settlement in settlements for gift in settlement.gifts)
    residue = sum(settlement.residue_msat for settlement in settlements)
    orphans = lost_bills - gifts
    if books.open_msat != residue + orphans:
        problems.append(
            f"the node owes {books.open_msat} msat: {residue} are less than a coin, {orphans} were"
            " paid on invoices that nobody knows"
        )
    if gifts < 0 or orphans < 0:
        problems.append(f"{gifts} msat were credited, {lost_bills} came in on unknown invoices")
    return problems


def report_answers(outcome: Outcome) -> str:
    """What the node said how often, as JSON."""
    return json.dumps(dict(sorted(outcome.answers.items())), indent=1)
