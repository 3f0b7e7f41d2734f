"""Parts of a paid chat, each in a loop of its own, in µs of CPU: steady on a busy machine too."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TextIO

import aiohttp
import structlog
import uvloop

from bench import plan, stub
from node.core.accounts import HoldRequest
from node.core.money import Msat
from node.core.pricing import Price
from node.core.sse import SseSplitter
from node.core.usage import Usage
from node.ledger.accounts import SqliteLedger
from node.ledger.database import Database
from node.ops import logging

_TRIES = 5
"""The best counts: what disturbs only adds."""
_EVENTS = 40
_ACCOUNT_ID = 1_000_000
_PRICE = Price(Msat(5_000_000), Msat(20_000_000), Msat(100))

Line = tuple[str, float]


def measure(seconds: float) -> list[Line]:
    """(what, µs) of each part; each takes about ``seconds``."""
    with tempfile.TemporaryDirectory(prefix="nodestr-bench-") as directory:
        lines = [*_logged(Path(directory), seconds), *_split(seconds)]
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            lines += runner.run(_waited(Path(directory), seconds))
    return lines


def show(out: TextIO, lines: list[Line]) -> None:
    """One a line."""
    out.writelines(f"{cost_us:9.1f} µs  {what}\n" for what, cost_us in lines)


def _logged(directory: Path, seconds: float) -> list[Line]:
    with (directory / "log").open("w") as sink:
        logging.configure("info", "json", stream=sink)
        log = structlog.get_logger("bench").bind()  # as the dispatcher has it

        def line() -> None:
            log.info(
                "request",
                request_id="0123456789abcdef" * 2,
                carriage="http",
                method="POST",
                path="/v1/chat/completions",
                status=200,
                code="",
                cost_msat=500,
                duration_ms=1.5,
            )

        found = _cost_us(line, seconds)
        logging.configure("error")
    return [("the log line of a request", found)]


def _split(seconds: float) -> list[Line]:
    def first() -> None:
        SseSplitter().feed_raw(stub.WORD * _EVENTS)

    cost = _cost_us(first, seconds)
    return [(f"cut {_EVENTS} events of {len(stub.WORD)} bytes out of a stream", cost)]


async def _waited(directory: Path, seconds: float) -> list[Line]:
    async def nothing() -> None:
        pass

    async def deadline() -> None:
        async with asyncio.timeout(10):
            await nothing()

    lines = [("a deadline (asyncio.timeout)", await _wait_cost_us(deadline, seconds))]
    async with _model_server() as url, aiohttp.ClientSession() as session:
        body = plan.body("chat").encode()

        async def ask() -> None:
            async with session.post(url, data=body) as response:
                await response.read()

        lines.append(("aiohttp's client, with the stub's 12", await _wait_cost_us(ask, seconds)))
    database = await Database.open(directory / "node.db")
    try:
        await _open_account(database)
        ledger = SqliteLedger(database)

        async def pay() -> None:
            request = HoldRequest(
                request_id="r",
                request_key=None,
                digest="",
                model=plan.MODEL,
                price=_PRICE,
                max_cost=Msat(1000),
            )
            hold_id = await ledger.hold(_ACCOUNT_ID, request)
            await ledger.settle(hold_id, Msat(500), Usage(24, 15))

        for clients in (1, 16, 64):
            cost = await _wait_cost_us(pay, seconds, clients=clients)
            lines.append((f"hold and settle, {clients} at a time, both threads", cost))
    finally:
        await database.close()
    return lines


@asynccontextmanager
async def _model_server() -> AsyncGenerator[str, None]:
    server = await asyncio.get_running_loop().create_server(stub.Connection, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat/completions"


async def _open_account(database: Database) -> None:
    await database.write(
        lambda connection: connection.execute(
            "INSERT INTO accounts"
            " (id, kind, balance_msat, held_msat, mint, unit, state, created_at)"
            " VALUES (?, 'key', 1000000000000, 0, '', 'sat', 'open', 1)",
            (_ACCOUNT_ID,),
        )
    )


def _cost_us(work: Callable[[], object], seconds: float) -> float:
    costs = []
    for _ in range(_TRIES):
        ends_at, count, began = time.monotonic() + seconds / _TRIES, 0, time.process_time()
        while not count or time.monotonic() < ends_at:  # who is kept waiting measures once
            for _ in range(10):
                work()
            count += 10
        costs.append((time.process_time() - began) / count)
    return min(costs) * 1e6


async def _wait_cost_us(
    work: Callable[[], Awaitable[object]], seconds: float, *, clients: int = 1
) -> float:
    async def client(ends_at: float) -> int:
        count = 0
        while not count or time.monotonic() < ends_at:
            await work()
            count += 1
        return count

    costs = []
    for _ in range(_TRIES):
        began = time.process_time()
        ends_at = time.monotonic() + seconds / _TRIES
        counts = await asyncio.gather(*(client(ends_at) for _ in range(clients)))
        costs.append((time.process_time() - began) / sum(counts))
    return min(costs) * 1e6
