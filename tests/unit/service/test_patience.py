"""A slow model server costs the client neither its connection nor, when it fails, its money."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace

import orjson
import pytest

from node.core.catalog import Catalog
from node.core.exchange import Carriage, Chunk, Failed, Receipt, ReplyEvent, Request, Started
from node.errors import NodeError, UpstreamFailed
from node.ports import UpstreamCall, UpstreamReply
from node.service.inference.chat import prepare_chat
from node.service.inference.images import prepare_image
from node.service.payers import Payer
from node.service.pipeline import Pipeline
from tests.unit.service.test_stopping import MODEL, WAIT_S, Purse


class Slow:
    """Begins to answer, or fails, when told to."""

    backend = MODEL.backends[0]
    resumable = False
    status = 200
    content_type = "text/event-stream"

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.go = asyncio.Event()
        self.failure: NodeError | None = None
        self.closed = 0
        self.cancelled = False

    async def open(self, call: UpstreamCall) -> UpstreamReply:
        self.asked.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.failure is not None:
            raise self.failure
        return self

    async def chunks(self) -> AsyncIterator[bytes]:
        yield b'data: {"choices":[{"delta":{"content":"all"}}]}\n\ndata: [DONE]\n\n'

    async def close(self) -> None:
        self.closed += 1


class SlowWhole(Slow):
    """Does not stream though it is asked to."""

    content_type = "application/json"

    async def chunks(self) -> AsyncIterator[bytes]:
        yield b'{"created":1,"data":[{"b64_json":"AAAA"}]}'


def run(
    slow: Slow, purse: Purse, *, carriage: Carriage = "http", stream: bool = True
) -> AsyncGenerator[ReplyEvent, None]:
    async def choose(_: Request) -> Payer:
        return purse

    pipeline = Pipeline(Catalog([MODEL]), choose, slow, lambda _: None, patience_s=0.01)
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}], "stream": stream}
    request = Request(
        "r",
        "POST",
        "/v1/chat/completions",
        {},
        orjson.dumps(body),
        carriage=carriage,
    )
    return pipeline.run(request, prepare_chat)


async def rest(events: AsyncIterator[ReplyEvent]) -> list[ReplyEvent]:
    async with asyncio.timeout(WAIT_S):
        return [event async for event in events]


async def test_a_live_stream_begins_before_the_model_server_does() -> None:
    slow, purse = Slow(), Purse()
    events = run(slow, purse)
    async with asyncio.timeout(WAIT_S):
        first = await anext(events)
    assert isinstance(first, Started)
    assert (first.live, first.headers["content-type"]) == (True, "text/event-stream")
    slow.go.set()
    *chunks, receipt = await rest(events)
    assert b"all" in b"".join(chunk.data for chunk in chunks if isinstance(chunk, Chunk))
    assert isinstance(receipt, Receipt)
    assert (purse.ends, slow.closed) == (["settled"], 1)


async def test_what_may_be_no_stream_does_not_begin_as_one() -> None:
    slow, purse = SlowWhole(), Purse()

    async def choose(_: Request) -> Payer:
        return purse

    model = replace(MODEL, endpoints=("images",))
    pipeline = Pipeline(Catalog([model]), choose, slow, lambda _: None, patience_s=0.01)
    body = orjson.dumps({"model": "m", "prompt": "x", "stream": True})
    request = Request("r", "POST", "/v1/images/generations", {}, body, carriage="http")
    events = pipeline.run(request, prepare_image)
    first = asyncio.ensure_future(anext(events))
    await asyncio.wait_for(slow.asked.wait(), WAIT_S)
    await asyncio.sleep(0.05)
    assert not first.done()
    slow.go.set()
    started = await asyncio.wait_for(first, WAIT_S)
    assert isinstance(started, Started)
    assert started.headers["content-type"] == "application/json"
    chunk, _ = await rest(events)
    assert isinstance(chunk, Chunk)
    assert orjson.loads(chunk.data)["data"] == [{"b64_json": "AAAA"}]


async def test_a_failure_after_that_is_an_event_and_costs_nothing() -> None:
    slow, purse = Slow(), Purse()
    events = run(slow, purse)
    async with asyncio.timeout(WAIT_S):
        assert isinstance(await anext(events), Started)
    slow.failure = UpstreamFailed()
    slow.go.set()
    chunk, receipt = await rest(events)
    assert isinstance(chunk, Chunk)
    assert orjson.loads(chunk.data[6:])["error"]["code"] == "upstream_error"
    assert isinstance(receipt, Receipt)
    assert (receipt.cost, purse.ends) == (0, ["released"])


async def test_the_money_comes_first() -> None:
    """Nothing reaches a client whose token is still at its mint."""
    slow, purse = Slow(), Purse()
    secured = asyncio.Event()

    async def wait() -> None:
        await secured.wait()

    purse.secured = wait  # type: ignore[method-assign]
    events = run(slow, purse)
    first = asyncio.ensure_future(anext(events))
    await asyncio.wait_for(slow.asked.wait(), WAIT_S)
    await asyncio.sleep(0.05)
    assert not first.done()
    secured.set()
    assert isinstance(await asyncio.wait_for(first, WAIT_S), Started)
    slow.go.set()
    await rest(events)


async def test_a_client_that_leaves_meanwhile_stops_the_model_server() -> None:
    slow, purse = Slow(), Purse()
    events = run(slow, purse)
    async with asyncio.timeout(WAIT_S):
        assert isinstance(await anext(events), Started)
        await events.aclose()
    assert slow.cancelled
    assert purse.ends == ["settled"]  # its work on the prompt, as ever


@pytest.mark.parametrize("how", [{"carriage": "nostr"}, {"stream": False}])
async def test_others_wait(how: dict[str, object]) -> None:
    slow, purse = Slow(), Purse()
    slow.failure = UpstreamFailed()
    events = run(slow, purse, **how)  # type: ignore[arg-type]
    first = asyncio.ensure_future(anext(events))
    await asyncio.wait_for(slow.asked.wait(), WAIT_S)
    await asyncio.sleep(0.05)
    assert not first.done()
    slow.go.set()
    assert isinstance(await asyncio.wait_for(first, WAIT_S), Failed)
    await rest(events)
