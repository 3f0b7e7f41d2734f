"""A generation told to stop ends at once and in order: what was seen is charged, the receipt comes.

And a stop never is what ends a wait when nobody asked for one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import orjson
import pytest

from node.core.accounts import HoldRequest
from node.core.catalog import Backend, Catalog, Model
from node.core.exchange import Chunk, Failed, Receipt, ReplyEvent, Request, Started
from node.core.money import Msat
from node.core.pricing import Price
from node.core.usage import Usage
from node.demo.model_server import ModelServer
from node.ports import Upstream, UpstreamCall
from node.service.inference.chat import prepare_chat
from node.service.payers import Payer
from node.service.pipeline import Pipeline
from node.service.stopping import Stopped, StopScope
from node.upstream.lane import Lane
from node.upstream.router import UpstreamRouter
from node.upstream.server import UpstreamServer

PRICE = Price(Msat(1_000_000), Msat(2_000_000))
MODEL = Model("m", (Backend("u", PRICE, "demo"),), 1000, 64)
WAIT_S = 10.0


class Purse:
    """A payer of unlimited means that keeps what it was told."""

    live = True
    limit_key = ""
    refused: asyncio.Event | None = None

    def __init__(self) -> None:
        self.held = asyncio.Event()
        self.let = asyncio.Event()
        self.let.set()
        self.ends: list[str] = []

    async def begin(self, request: HoldRequest) -> None:
        self.held.set()
        await self.let.wait()

    async def secured(self) -> None:
        return

    async def settle(self, cost: Msat, usage: Usage) -> Receipt:
        self.ends.append("settled")
        return Receipt(cost=cost, usage=usage, change="cashuBchange")

    async def release(self) -> Receipt:
        self.ends.append("released")
        return Receipt(cost=Msat(0), change="cashuBall")

    async def hold_id(self) -> int:
        return 1


class Call:
    """One call to the pipeline, read in the background."""

    def __init__(self, pipeline: Pipeline, **fields: object) -> None:
        self.stop = asyncio.Event()
        body = {"model": "m", "messages": [{"role": "user", "content": "say it"}], **fields}
        self.events: list[ReplyEvent] = []
        self.news = asyncio.Event()
        request = Request(
            "r", "POST", "/v1/chat/completions", {}, orjson.dumps(body), stop=self.stop
        )
        self.task = asyncio.create_task(self._read(pipeline, request))

    async def _read(self, pipeline: Pipeline, request: Request) -> None:
        async for event in pipeline.run(request, prepare_chat):
            self.events.append(event)
            self.news.set()

    async def ended(self) -> list[ReplyEvent]:
        async with asyncio.timeout(WAIT_S):
            await self.task
        return self.events

    @property
    def body(self) -> bytes:
        return b"".join(event.data for event in self.events if isinstance(event, Chunk))


def pipeline_to(upstream: Upstream, purse: Purse) -> Pipeline:
    async def choose(_: Request) -> Payer:
        return purse

    return Pipeline(Catalog([MODEL]), choose, upstream, lambda _: None)


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


@pytest.fixture
def purse() -> Purse:
    return Purse()


@pytest.fixture
async def pipeline(server: ModelServer, purse: Purse) -> AsyncIterator[Pipeline]:
    async with aiohttp.ClientSession() as session:
        router = UpstreamRouter([Lane(UpstreamServer("u", session, server.url))])
        yield pipeline_to(router, purse)


async def within(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), WAIT_S)


async def test_in_the_middle_of_a_stream(
    server: ModelServer, purse: Purse, pipeline: Pipeline
) -> None:
    server.fault = "stall"
    call = Call(pipeline, stream=True, stream_options={"include_usage": True})
    await within(call.news)
    call.stop.set()
    first, *_, last = await call.ended()
    await within(server.disconnected)
    assert first == Started(
        200, {"content-type": "text/event-stream", "cache-control": "no-store"}, live=True
    )
    assert isinstance(last, Receipt)
    assert last.usage is not None
    assert 0 < last.usage.completion_tokens < server.words
    assert last.change == "cashuBchange"
    *_, tail = call.body.strip().split(b"\n\n")
    assert orjson.loads(tail.removeprefix(b"data: "))["usage"]["cost"] == last.cost
    assert b"[DONE]" not in call.body
    assert b'"error"' not in call.body
    assert purse.ends == ["settled"]


@pytest.mark.parametrize("stream", [True, False])
async def test_while_the_model_server_is_silent(
    server: ModelServer, purse: Purse, pipeline: Pipeline, stream: bool
) -> None:
    server.fault = "hang"
    call = Call(pipeline, stream=stream)
    await within(server.called)
    call.stop.set()
    events = await call.ended()
    await within(server.disconnected)
    if stream:
        assert [type(event) for event in events] == [Started, Chunk, Receipt]
        assert call.body == b""
        receipt = events[-1]
    else:
        (failed,) = events
        assert isinstance(failed, Failed)
        assert failed.error.code == "interrupted"
        receipt = failed.receipt
    assert isinstance(receipt, Receipt)
    assert receipt.usage is not None
    assert receipt.usage.completion_tokens == 0
    assert receipt.cost  # the prompt was worked on
    assert purse.ends == ["settled"]


async def test_before_the_model_server_is_asked_nothing_is_charged(
    server: ModelServer, purse: Purse, pipeline: Pipeline
) -> None:
    purse.let.clear()
    call = Call(pipeline, stream=True)
    await within(purse.held)
    call.stop.set()
    purse.let.set()
    events = await call.ended()
    assert events[-1] == Receipt(cost=Msat(0), change="cashuBall")
    assert (purse.ends, server.calls) == (["released"], 0)


class Lingering:
    """A model server that has said everything and does not hang up."""

    backend = MODEL.backends[0]
    resumable = False
    status = 200
    content_type = "text/event-stream"

    def __init__(self) -> None:
        self.said = asyncio.Event()

    async def open(self, call: UpstreamCall) -> Lingering:
        return self

    async def chunks(self) -> AsyncIterator[bytes]:
        yield b'data: {"choices":[{"delta":{"content":"all"}}]}\n\ndata: [DONE]\n\n'
        self.said.set()
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


async def test_an_answer_that_is_whole_stays_whole(purse: Purse) -> None:
    upstream = Lingering()
    call = Call(pipeline_to(upstream, purse), stream=True)
    await within(upstream.said)
    call.stop.set()
    assert isinstance((await call.ended())[-1], Receipt)
    assert call.body.endswith(b"data: [DONE]\n\n")
    assert purse.ends == ["settled"]


async def test_a_client_that_is_gone_is_still_charged_without_a_receipt(
    server: ModelServer, purse: Purse, pipeline: Pipeline
) -> None:
    server.fault = "stall"
    call = Call(pipeline, stream=True)
    await within(call.news)
    call.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.task
    assert purse.ends == ["settled"]
    assert not isinstance(call.events[-1], Receipt)


async def test_scope_passes_everything_else_through() -> None:
    signal = asyncio.Event()
    scope = StopScope(signal)
    with pytest.raises(TimeoutError):
        async with scope:
            raise TimeoutError
    with pytest.raises(TimeoutError):
        async with scope, asyncio.timeout(0):
            await asyncio.Event().wait()
    asyncio.get_running_loop().call_soon(signal.set)
    with pytest.raises(Stopped):
        async with scope:
            await asyncio.wait_for(asyncio.Event().wait(), WAIT_S)
    with pytest.raises(Stopped):
        async with scope:
            pytest.fail("entered after the signal")
    scope.close()
    async with StopScope(None):
        await asyncio.sleep(0)
