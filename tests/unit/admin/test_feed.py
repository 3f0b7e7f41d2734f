"""Promise: the feed has the last requests and streams the next, and is bounded."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from node.admin.feed import MAX_REQUESTS, Feed
from node.admin.ring import Ring
from node.core.exchange import Chunk, Receipt, Request, Started
from node.core.money import Msat
from node.core.usage import Usage
from node.errors import RateLimitExceeded
from node.service.dispatch import Dispatcher, Reply, Route
from tests.unit.admin.office import open_office


def serve(feed: Feed, number: int) -> None:
    feed.served(
        "/v1/chat/completions",
        "dm",
        200,
        "",
        Receipt(cost=Msat(number), usage=Usage(3, 4)),
        0.25,
        0.125,
        f"request-{number}",
        "m",
    )


async def test_the_last_requests_newest_first(tmp_path: Path) -> None:
    async with open_office(tmp_path) as office:
        for number in range(MAX_REQUESTS + 5):
            serve(office.parts.feed, number)
        requests = (await office.get("/requests", limit="999"))["requests"]
        assert len(requests) == MAX_REQUESTS
        newest = requests[0]
        assert newest == {
            "request_id": f"request-{MAX_REQUESTS + 4}",
            "at": newest["at"],
            "endpoint": "/v1/chat/completions",
            "model": "m",
            "carriage": "dm",
            "status": 200,
            "code": "",
            "cost_msat": MAX_REQUESTS + 4,
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "duration_s": 0.25,
            "first_byte_s": 0.125,
        }
        assert len((await office.get("/requests"))["requests"]) == 50


async def test_a_stream_has_what_comes_after_it_began(tmp_path: Path) -> None:
    async with open_office(tmp_path) as office:
        serve(office.parts.feed, 1)
        stream = office.follow("/requests/stream")
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        serve(office.parts.feed, 2)
        serve(office.parts.feed, 3)
        assert (await first)["request_id"] == "request-2"
        assert (await anext(stream))["request_id"] == "request-3"
        last = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        office.parts.feed.ring.close()
        with pytest.raises(StopAsyncIteration):
            await last


async def test_the_dispatcher_tells_the_feed() -> None:
    async def answer(request: Request, parameters: object) -> Reply:
        del parameters
        request.notes["model"] = "org/small"
        return Reply({})

    feed = Feed(clock=lambda: 12.0)
    dispatcher = Dispatcher([Route("GET", "/v1/x", "", plain=answer)])
    dispatcher.observers.append(feed)
    events = [
        event async for event in dispatcher.handle(Request("id-1", "GET", "/v1/x", {}, peer="p"))
    ]
    assert [type(event) for event in events] == [Started, Chunk, Receipt]
    (item,) = feed.ring.last(9)
    assert (item.request_id, item.model, item.status, item.at) == ("id-1", "org/small", 200, 12.0)
    assert item.cost_msat is None


async def test_whoever_is_slow_misses_the_oldest() -> None:
    ring: Ring[int] = Ring(2, max_waiting=3)
    stream = ring.follow()
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    for number in range(10):
        ring.add(number)
    assert [await first, await anext(stream), await anext(stream)] == [7, 8, 9]
    assert ring.last(9) == [9, 8]


async def test_only_so_many_follow_and_who_leaves_makes_room() -> None:
    ring: Ring[int] = Ring(2, max_followers=1)
    stream = ring.follow()
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    with pytest.raises(RateLimitExceeded):
        await anext(ring.follow())
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    again = asyncio.ensure_future(anext(ring.follow()))
    await asyncio.sleep(0)
    ring.add(5)
    assert await again == 5


async def test_other_threads_may_add() -> None:
    ring: Ring[int] = Ring(1000, max_waiting=1000)
    stream = ring.follow()
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)

    def add() -> None:
        for _ in range(100):
            ring.add(1)

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    total = await first
    async with asyncio.timeout(30):
        while total < 300:
            total += await anext(stream)
    for thread in threads:
        thread.join()
