"""A call is served by the best upstream that can, and nobody notices those that could not."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest

from node.core.catalog import Backend, Model
from node.core.money import Msat
from node.core.pricing import Price
from node.core.usage import Usage
from node.demo.model_server import ModelServer
from node.errors import (
    ContextLengthExceeded,
    InvalidValue,
    NodeError,
    RateLimitExceeded,
    UpstreamFailed,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from node.ports import UpstreamCall, UpstreamReply
from node.service.inference.call import JsonPayload
from node.upstream import lane as lanes
from node.upstream.lane import Lane
from node.upstream.router import Routing, UpstreamRouter
from node.upstream.server import Deadlines, UpstreamServer

CHEAP, DEAR = Price(Msat(1_000), Msat(1_000)), Price(Msat(9_000), Msat(9_000))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def call(*backends: Backend, stream: bool = False, endpoint: str = "chat") -> UpstreamCall:
    model = Model("m", backends, 1000, 100)
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": stream}
    return UpstreamCall(
        model,
        endpoint,
        "/chat/completions",
        JsonPayload(body, model),
        "req-1",
        ("text/event-stream",) if stream else ("application/json",),
    )


async def read(reply: UpstreamReply) -> bytes:
    try:
        return b"".join([data async for data in reply.chunks()])
    finally:
        await reply.close()


class Town:
    """Model servers a, b, … and the router over them."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        servers: list[ModelServer],
        patience_s: float = 60.0,
        **routing: Any,
    ) -> None:
        """``patience_s``: how long a may take to begin."""
        self.a, self.b = servers[0], servers[-1]
        self.clock = Clock()
        self.lanes = [
            Lane(
                UpstreamServer(
                    name,
                    session,
                    server.url,
                    deadlines=Deadlines(
                        first_byte_s=patience_s if name == "a" else 60.0,
                        whole_s=patience_s if name == "a" else 60.0,
                    ),
                ),
                max_concurrency=1,
                clock=self.clock,
            )
            for name, server in zip("abc", servers, strict=False)
        ]
        self.router = UpstreamRouter(self.lanes, Routing(**routing))

    async def ask(self, *backends: Backend, **options: Any) -> UpstreamReply:
        async with asyncio.timeout(60):
            return await self.router.open(call(*backends, **options))

    async def served_by(self, *backends: Backend, **options: Any) -> str:
        reply = await self.ask(*backends, **options)
        await read(reply)
        return reply.backend.upstream

    async def failure(self, *backends: Backend, **options: Any) -> NodeError:
        with pytest.raises(NodeError) as caught:
            await self.ask(*backends, **options)
        return caught.value

    def busy(self) -> list[int]:
        return [state.running for state in self.router.states()]


Build = Callable[..., Town]


@pytest.fixture
async def town() -> AsyncIterator[Build]:
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        servers = [await stack.enter_async_context(ModelServer()) for _ in range(2)]
        built: list[Town] = []

        def build(**routing: Any) -> Town:
            built.append(Town(session, servers, **routing))
            return built[-1]

        yield build
        for one in built:
            assert one.busy() == [0] * len(one.lanes), "a slot leaked"
            assert one.router.waiting == 0
            assert [lane.slots.waiting for lane in one.lanes] == [0] * len(one.lanes)


A, B = Backend("a", CHEAP, "demo"), Backend("b", DEAR, "demo")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fault",
    ["status-401", "status-404", "status-429", "status-500", "status-503", "drop", "hang",
     "garbage"],
)  # fmt: skip
async def test_the_next_one_serves(town: Build, fault: str, stream: bool) -> None:
    world = town(patience_s=0.3 if fault == "hang" else 60.0)
    world.a.fault = fault
    if fault == "hang" and not stream:  # it may have been at work: once is enough to pay for
        with pytest.raises(UpstreamTimeout):
            await world.ask(A, B)
        assert (world.a.calls, world.b.calls) == (1, 0)
        return
    reply = await world.ask(A, B, stream=stream)
    assert reply.backend == B
    assert b"You" in await read(reply)
    assert (world.a.calls, world.b.calls) == (1, 1)
    assert world.busy() == [0, 0]


async def test_the_price_is_of_the_one_that_served_and_no_more_than_announced(
    town: Build,
) -> None:
    world = town()
    world.a.fault = "status-500"
    model = call(A, B).model
    reply = await world.ask(A, B)
    await reply.close()
    usage = Usage(1_000, 1_000)
    assert reply.backend.price.cost(usage) == DEAR.cost(usage)
    assert model.price.most(usage) >= max(p.cost(usage) for p in (CHEAP, DEAR))


@pytest.mark.parametrize(
    ("fault", "kind"), [("status-400", InvalidValue), ("context", ContextLengthExceeded)]
)
async def test_the_clients_own_mistake_is_not_tried_elsewhere(
    town: Build, fault: str, kind: type[NodeError]
) -> None:
    world = town()
    world.a.fault = fault
    assert type(await world.failure(A, B)) is kind
    assert world.b.calls == 0


async def test_the_most_helpful_error_when_all_fail(town: Build) -> None:
    world = town()
    world.a.fault, world.b.fault = "status-500", "status-429"
    error = await world.failure(A, B)
    assert isinstance(error, RateLimitExceeded)
    assert error.retry_after_s == 7
    world = town(patience_s=0.3)
    world.a.fault, world.b.fault = "hang", "status-500"
    assert isinstance(await world.failure(A, B), UpstreamTimeout)
    world = town()
    world.a.fault, world.b.fault = "status-404", "status-500"
    assert type(await world.failure(A, B)) is UpstreamFailed
    world = town()
    world.a.fault = world.b.fault = "status-404"
    assert isinstance(await world.failure(A, B), InvalidValue)


async def test_after_the_first_byte_there_is_no_way_back(town: Build) -> None:
    world = town()
    world.a.fault = "cut"
    reply = await world.ask(A, B, stream=True)
    with pytest.raises(UpstreamFailed):
        await read(reply)
    assert world.b.calls == 0


async def test_not_more_attempts_than_allowed(town: Build) -> None:
    world = town(max_attempts=1)
    world.a.fault = "status-500"
    assert type(await world.failure(A, B)) is UpstreamFailed
    assert world.b.calls == 0


# Order


async def test_by_priority_then_by_price(town: Build) -> None:
    world = town()
    assert await world.served_by(B, A) == "a"
    first = Backend("b", DEAR, "demo", priority=-1)
    assert await world.served_by(A, first) == "b"


async def test_by_weight(town: Build) -> None:
    world = town(strategy="weighted")
    backends = (Backend("a", CHEAP, "demo", weight=1), Backend("b", DEAR, "demo", weight=9))
    firsts = Counter(world.router._order(call(*backends))[0][1].upstream for _ in range(2_000))
    assert 100 < firsts["a"] < 320
    last = Backend("b", DEAR, "demo", priority=1, weight=1_000_000)
    assert await world.served_by(backends[0], last) == "a"


async def test_an_endpoint_that_no_upstream_has(town: Build) -> None:
    world = town()
    assert type(await world.failure(A, endpoint="messages")) is UpstreamFailed
    assert type(await world.failure(Backend("nobody", CHEAP, "demo"))) is UpstreamFailed
    assert (world.a.calls, world.b.calls) == (0, 0)


# Concurrency


async def test_a_full_one_is_passed_over(town: Build) -> None:
    world = town()
    held = await world.ask(A, B)
    assert held.backend == A
    assert await world.served_by(A, B) == "b"
    await held.close()
    await held.close()
    assert world.busy() == [0, 0]
    assert await world.served_by(A, B) == "a"


async def test_when_all_are_full_the_first_free_place_is_taken(town: Build) -> None:
    world = town(queue_timeout_s=10)
    held = [await world.ask(A, B) for _ in range(2)]
    waiter = asyncio.create_task(world.ask(A, B))
    while not world.router.waiting:
        await asyncio.sleep(0)
    await held[1].close()
    reply = await waiter
    assert reply.backend == B
    await reply.close()
    await held[0].close()


async def test_who_waits_in_vain_is_told_when_to_come_back(town: Build) -> None:
    world = town(queue_timeout_s=0.02)
    held = [await world.ask(A, B) for _ in range(2)]
    error = await world.failure(A, B)
    assert isinstance(error, UpstreamUnavailable)
    assert (error.status, error.headers()["retry-after"]) == (503, "2")
    for reply in held:
        await reply.close()


async def test_only_so_many_wait(town: Build) -> None:
    world = town(queue_timeout_s=10, max_waiting=1)
    held = await world.ask(A)
    waiter = asyncio.create_task(world.ask(A))
    while not world.router.waiting:
        await asyncio.sleep(0)
    assert isinstance(await world.failure(A), UpstreamUnavailable)
    await held.close()
    await (await waiter).close()


async def test_who_goes_away_while_waiting_leaves_nothing(town: Build) -> None:
    world = town(queue_timeout_s=10)
    held = await world.ask(A)
    waiters = [asyncio.create_task(world.ask(A)) for _ in range(3)]
    while world.router.waiting < 3:
        await asyncio.sleep(0)
    waiters[0].cancel()
    await held.close()  # the place goes to the second, who leaves at the same moment
    waiters[1].cancel()
    reply = await waiters[2]
    await reply.close()
    await asyncio.gather(*waiters, return_exceptions=True)


async def test_a_cancelled_open_frees_its_place_and_hangs_up(town: Build) -> None:
    world = town()
    world.a.fault = "hang"
    task = asyncio.create_task(world.ask(A))
    async with asyncio.timeout(5):
        await world.a.called.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await world.a.disconnected.wait()
    assert world.busy() == [0, 0]


async def test_an_abandoned_attempt_is_hung_up_at_once(town: Build) -> None:
    world = town(patience_s=0.3)
    world.a.fault = "hang"
    reply = await world.ask(A, B, stream=True)
    async with asyncio.timeout(5):
        await world.a.disconnected.wait()
    await reply.close()


async def test_after_a_storm_nothing_is_left() -> None:
    rng = random.Random(4)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        servers = [await stack.enter_async_context(ModelServer(words=3)) for _ in range(3)]
        way = [
            Lane(
                UpstreamServer(
                    name, session, server.url, deadlines=Deadlines(first_byte_s=1.0, whole_s=1.0)
                ),
                max_concurrency=3,
            )
            for name, server in zip("abc", servers, strict=True)
        ]
        router = UpstreamRouter(way, Routing(strategy="weighted", queue_timeout_s=0.2))
        faults = [
            "",
            "",
            "",
            "#hang",
            "#drop",
            "#cut",
            "#status-500",
            "#status-400",
            "#error-event",
        ]
        outcomes: Counter[str] = Counter()

        async def client() -> None:
            backends = [Backend(n, CHEAP, f"demo{rng.choice(faults)}") for n in "abc"]
            try:
                async with asyncio.timeout(rng.choice([0.02, 0.1, 60.0, 60.0])):
                    reply = await router.open(call(*backends, stream=rng.random() < 0.5))
                    try:
                        async for _ in reply.chunks():
                            if rng.random() < 0.2:
                                break
                    finally:
                        await reply.close()
                outcomes["served"] += 1
            except TimeoutError:
                outcomes["left"] += 1
            except NodeError:
                outcomes["refused"] += 1

        await asyncio.gather(*(client() for _ in range(120)))
        assert set(outcomes) == {"served", "left", "refused"}
        assert [lane.slots.running for lane in way] == [0, 0, 0]
        assert [len(lane.slots._waiting) for lane in way] == [0, 0, 0]
        assert router.waiting == 0
        assert session.connector is not None
        assert not session.connector._acquired


# Circuit and Retry-After


async def test_who_fails_in_a_row_is_left_alone_and_probed(town: Build) -> None:
    world = town()
    world.a.fault = "status-500"
    for _ in range(lanes.THRESHOLD):
        assert await world.served_by(A, B) == "b"
    assert world.router.states()[0].circuit == "open"
    calls = world.a.calls
    assert await world.served_by(A, B) == "b"
    assert world.a.calls == calls, "an open circuit asks nobody"
    error = await world.failure(A)
    assert isinstance(error, UpstreamUnavailable)
    assert error.retry_after_s == lanes.COOLDOWN_S

    world.clock.now += lanes.COOLDOWN_S
    assert await world.served_by(A, B) == "b"  # the probe fails: longer
    assert world.a.calls == calls + 1
    world.clock.now += lanes.COOLDOWN_S
    assert world.router.states()[0].circuit == "open"
    world.clock.now += lanes.COOLDOWN_S
    world.a.fault = None
    assert await world.served_by(A, B) == "a"
    assert world.router.states()[0].circuit == "closed"


async def test_only_one_call_is_the_probe(town: Build) -> None:
    world = town()
    world.a.fault = "status-500"
    for _ in range(lanes.THRESHOLD):
        await world.failure(A)
    world.clock.now += lanes.COOLDOWN_S
    world.a.fault = "hang"
    world.a.called.clear()
    probe = asyncio.create_task(world.ask(A))
    async with asyncio.timeout(5):
        await world.a.called.wait()
    calls = world.a.calls
    assert await world.served_by(A, B) == "b"
    assert world.a.calls == calls
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    world.a.fault = None
    assert await world.served_by(A, B) == "a", "a probe nobody waited for proves nothing"


async def test_clients_cannot_open_the_circuit(town: Build) -> None:
    world = town()
    for fault in ("status-400", "status-404", "status-429", "context"):
        world.a.fault = fault
        for _ in range(lanes.THRESHOLD + 1):
            world.clock.now += 1_000
            await world.failure(A)
    world.a.fault = "cut"
    for _ in range(lanes.THRESHOLD + 1):
        with pytest.raises(UpstreamFailed):
            await read(await world.ask(A))
    assert world.router.states()[0].circuit == "closed"
    forbidden = b"HTTP/1.1 403 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    async with raw(forbidden) as url, aiohttp.ClientSession() as session:
        lane = Lane(UpstreamServer("a", session, url))
        for _ in range(lanes.THRESHOLD + 1):
            with pytest.raises(UpstreamFailed):
                await UpstreamRouter([lane]).open(call(A))
        assert lane.breaker.state == "closed"


async def test_retry_after_is_kept_to_for_that_model_only(town: Build) -> None:
    world = town()
    world.a.fault = "status-429"
    assert await world.served_by(A, B) == "b"
    world.a.fault = None
    assert world.router.states()[0].paused == 1
    assert await world.served_by(A, B) == "b"
    assert world.a.calls == 1
    error = await world.failure(A)
    assert isinstance(error, RateLimitExceeded)
    assert error.retry_after_s == 7
    assert await world.served_by(Backend("a", CHEAP, "other")) == "a"
    world.clock.now += 7
    assert await world.served_by(A, B) == "a"
    assert world.router.states()[0].paused == 0


# What counts as the first byte


@asynccontextmanager
async def raw(answer: bytes) -> AsyncIterator[str]:
    """A server that gives the same bytes to everybody."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
ERROR = b'{"error": {"message": "no room", "code": 503}}'


@pytest.mark.parametrize(
    "answer",
    [
        SSE,
        SSE + b": OPENROUTER PROCESSING\n\n",
        SSE + b": wait\n\n: wait\r\n\r\ndata: " + ERROR + b"\n\n",
        SSE + b"data:" + ERROR + b"\n\n",
        SSE + b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error"}}\n\n',
        SSE + b'data: {"error": "just words"}\n\ndata: [DONE]\n\n',
        JSON,
        JSON + ERROR,
        JSON + b'\n \n{"type":"error","error":{"type":"api_error","message":"x"}}',
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<html>",
        b"HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_an_answer_that_has_not_begun(town: Build, answer: bytes) -> None:
    world = town()
    stream = answer.startswith(SSE)
    async with raw(answer) as url, aiohttp.ClientSession() as session:
        lane = Lane(UpstreamServer("a", session, url))
        router = UpstreamRouter([lane, world.lanes[1]])
        reply = await router.open(call(A, B, stream=stream))
        assert reply.backend == B
        await reply.close()
        with pytest.raises(UpstreamFailed):
            await router.open(call(A, stream=stream))


@pytest.mark.parametrize(
    "body",
    [
        b": keep-alive\n\n: keep-alive\n\ndata: {}\n\n",
        b'data: {"id": "x", "error": null}\n\n',
        b"data: [DONE]\n\n",
    ],
)
async def test_what_has_begun_arrives_byte_by_byte(body: bytes) -> None:
    async with raw(SSE + body) as url, aiohttp.ClientSession() as session:
        reply = await UpstreamRouter([Lane(UpstreamServer("a", session, url))]).open(
            call(A, stream=True)
        )
        assert await read(reply) == body


@pytest.mark.parametrize("head", [SSE.replace(b"event-stream", b"html"), SSE + b"data:" + ERROR])
async def test_what_is_refused_is_not_read_on(head: bytes) -> None:
    gone = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + b"\n\n")
        while await reader.read(65536):
            pass
        gone.set()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        with pytest.raises(UpstreamFailed) as kept:
            await UpstreamServer("a", session, url).open(call(A, stream=True), A)
        async with asyncio.timeout(20):
            await gone.wait()
    assert kept.value.private


async def test_an_error_at_the_start_that_is_the_clients(town: Build) -> None:
    world = town()
    error = {"error": {"message": "temperature is too high", "code": 400, "param": "temperature"}}
    async with (
        raw(SSE + b"data: " + json.dumps(error).encode() + b"\n\n") as url,
        aiohttp.ClientSession() as session,
    ):
        router = UpstreamRouter([Lane(UpstreamServer("a", session, url)), world.lanes[1]])
        with pytest.raises(InvalidValue, match="temperature is too high"):
            await router.open(call(A, B, stream=True))
    assert world.b.calls == 0


async def test_health_and_load_for_the_operator(town: Build) -> None:
    world = town()
    world.a.fault = "status-500"
    reply = await world.ask(A, B)
    a, b = world.router.states()
    assert (a.name, a.failed, a.answered, a.running) == ("a", 1, 0, 0)
    assert "500" in a.last_error
    assert (b.failed, b.answered, b.running, b.max_concurrency) == (0, 1, 1, 1)
    assert world.lanes[1].trouble() == "busy"
    await reply.close()
    assert world.lanes[1].trouble() is None
