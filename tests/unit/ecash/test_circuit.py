"""Promise: a mint that does not answer is left alone, tried gently, and trusted again slowly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest
from aiohttp import web

from node.core.ecash import Proof
from node.ecash.batching import MAX_IN_FLIGHT, SwapQueue
from node.ecash.circuit import Circuit, CircuitOpen, GuardedMint
from node.ecash.errors import MintOffline, MintRejected, MintUnknown
from node.ecash.failures import FOREIGN_S, TTL_S, FailureMemory
from node.ecash.mint import MintClient
from node.errors import TokenAlreadySpent, TokenMalformed
from tests.unit.ecash.strategies import POINTS


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def state(circuit: Circuit) -> str:
    return circuit.state


def fail(circuit: Circuit, times: int = 1) -> None:
    for _ in range(times):
        with suppress(MintUnknown), circuit.call(clears=True):
            raise MintUnknown("no answer")


def answer(circuit: Circuit, *, clears: bool = True) -> None:
    with circuit.call(clears=clears):
        pass


def test_it_opens_after_failures_in_a_row_and_closes_after_an_answer() -> None:
    clock = Clock()
    circuit = Circuit(threshold=3, cooldown_s=5, clock=clock)
    fail(circuit, 2)
    answer(circuit)
    fail(circuit, 2)
    assert state(circuit) == "closed"
    fail(circuit)
    assert (state(circuit), circuit.retry_after_s) == ("open", 5)
    with pytest.raises(CircuitOpen):
        answer(circuit)
    clock.now += 4.9
    assert circuit.retry_after_s == 1
    clock.now += 0.1
    assert state(circuit) == "half-open"
    answer(circuit)
    assert state(circuit) == "closed"


def test_a_refusal_is_an_answer() -> None:
    circuit = Circuit(threshold=2)
    for _ in range(5):
        fail(circuit)
        with pytest.raises(MintRejected), circuit.call(clears=True):
            raise MintRejected(400, 11001, "spent")
    assert state(circuit) == "closed"


def test_each_failed_probe_waits_longer_up_to_a_bound() -> None:
    clock = Clock()
    circuit = Circuit(threshold=1, cooldown_s=5, max_cooldown_s=15, clock=clock)
    waits = []
    for _ in range(4):
        fail(circuit)
        waits.append(circuit.retry_after_s)
        clock.now += circuit.retry_after_s
    assert waits == [5, 10, 15, 15]
    answer(circuit)
    fail(circuit)
    assert circuit.retry_after_s == 5


def test_one_probe_at_a_time_and_a_cancelled_one_gives_its_turn_back() -> None:
    clock = Clock()
    circuit = Circuit(threshold=1, cooldown_s=5, clock=clock)
    fail(circuit)
    clock.now += 5
    with pytest.raises(asyncio.CancelledError), circuit.call(clears=True):
        with pytest.raises(CircuitOpen):
            circuit.check()
        raise asyncio.CancelledError
    assert state(circuit) == "half-open"
    answer(circuit)
    assert state(circuit) == "closed"


def test_a_get_closes_it_but_the_next_failure_opens_it_again_for_longer() -> None:
    clock = Clock()
    circuit = Circuit(threshold=3, cooldown_s=5, clock=clock)
    fail(circuit, 3)
    clock.now += 5
    answer(circuit, clears=False)
    assert state(circuit) == "closed"
    fail(circuit)
    assert (state(circuit), circuit.retry_after_s) == ("open", 10)


def test_what_began_before_it_opened_does_not_prolong_it() -> None:
    clock = Clock()
    circuit = Circuit(threshold=1, cooldown_s=5, clock=clock)
    with suppress(MintUnknown), circuit.call(clears=True):
        fail(circuit)
        clock.now += 3
        raise MintUnknown("late")
    assert circuit.retry_after_s == 2


def test_a_slow_payment_is_no_failure_but_no_connection_is() -> None:
    circuit = Circuit(threshold=1)
    with pytest.raises(MintUnknown), circuit.call(clears=True, patient=True):
        raise MintUnknown("no answer in time")
    assert state(circuit) == "closed"
    with pytest.raises(MintOffline), circuit.call(clears=True, patient=True):
        raise MintOffline("no connection")
    assert state(circuit) == "open"


@asynccontextmanager
async def mint_that_answers(status: int) -> AsyncIterator[tuple[GuardedMint, list[str]]]:
    """A guarded client of a server that answers everything with ``status``, and what it saw."""
    seen: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.json_response({"detail": "no"}, status=status)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield GuardedMint(session, url, circuit=Circuit(threshold=2, cooldown_s=60)), seen
    await runner.cleanup()


async def test_a_guarded_mint_that_fails_is_asked_no_more() -> None:
    async with mint_that_answers(503) as (mint, seen):
        for _ in range(2):
            with pytest.raises(MintUnknown):
                await mint.keysets()
        for _ in range(3):
            with pytest.raises(MintOffline):
                await mint.swap(b'{"inputs":[],"outputs":[]}')
        assert seen == ["/v1/keysets", "/v1/keysets"]


async def test_a_guarded_mint_that_refuses_is_asked_again() -> None:
    async with mint_that_answers(400) as (mint, seen):
        for _ in range(4):
            with pytest.raises(MintRejected):
                await mint.keysets()
        assert len(seen) == 4


async def test_a_swap_whose_turn_does_not_come_was_never_sent() -> None:
    arrived, go = asyncio.Event(), asyncio.Event()
    seen = 0

    async def handle(request: web.Request) -> web.Response:
        nonlocal seen
        seen += 1
        if seen == MAX_IN_FLIGHT:
            arrived.set()
        await go.wait()
        return web.json_response({"signatures": []})

    app = web.Application()
    app.router.add_post("/v1/swap", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as session:
        mint = MintClient(session, f"http://127.0.0.1:{runner.addresses[0][1]}")
        queue = SwapQueue(mint, max_wait_s=0.2)
        swaps = [
            asyncio.create_task(queue.swap(coins(), [], fee_ppk=0, alone=True))
            for _ in range(MAX_IN_FLIGHT)
        ]
        await arrived.wait()
        with pytest.raises(MintOffline):
            await queue.swap(coins(), [], fee_ppk=0, alone=False)
        go.set()
        assert await asyncio.gather(*swaps) == [[]] * MAX_IN_FLIGHT
        assert await queue.swap(coins(), [], fee_ppk=0, alone=False) == []
        assert seen == MAX_IN_FLIGHT + 1
    await runner.cleanup()


def coins(witness: str | None = None, secret: str = "s") -> list[Proof]:
    return [Proof("00" + "1" * 14, 4, secret, POINTS[0], witness)]


LOCKED = '["P2PK",{"nonce":"n","data":"x"}]'


def test_what_is_terminal_is_remembered_for_a_while() -> None:
    clock = Clock()
    memory = FailureMemory(clock=clock)
    memory.check(coins())
    memory.spent(coins())
    memory.refused(coins(secret="forged"), 10001)
    memory.foreign(coins(secret="foreign"), TokenMalformed("no such keyset"))
    with pytest.raises(TokenAlreadySpent):
        memory.check(coins())
    with pytest.raises(TokenMalformed, match="the mint refuses"):
        memory.check(coins(secret="forged"))
    with pytest.raises(TokenMalformed, match="no such keyset"):
        memory.check(coins(secret="foreign"))
    clock.now += FOREIGN_S
    memory.check(coins(secret="foreign"))
    clock.now += TTL_S
    memory.check(coins())
    memory.check(coins(secret="forged"))
    assert len(memory) == 0


def test_what_could_become_good_is_not_remembered() -> None:
    memory = FailureMemory()
    for code in (0, None, 11000, 11002, 12002):
        memory.refused(coins(), code)
    memory.refused(coins(secret=LOCKED), 10001)
    assert len(memory) == 0


def test_another_witness_is_another_token_and_salvage_clears() -> None:
    memory = FailureMemory()
    memory.spent(coins("a"))
    memory.check(coins("b"))
    memory.check(coins())
    memory.forget(coins("a"))
    memory.check(coins("a"))


def test_the_memory_is_bounded() -> None:
    memory = FailureMemory(limit=3)
    for number in range(5):
        memory.spent(coins(secret=str(number)))
    assert len(memory) == 3
    memory.check(coins(secret="1"))
    with pytest.raises(TokenAlreadySpent):
        memory.check(coins(secret="4"))
