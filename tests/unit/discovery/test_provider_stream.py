"""The stream tells every change that fits its filters, once, and ends with the directory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import orjson
import pytest

from discovery.directory import Directory
from discovery.nostr.pool import RelayPool
from node.core.exchange import Chunk, Receipt, Request, Started
from node.errors import InvalidValue, NodeError, NotFound, RateLimitExceeded
from node.service.endpoints.provider_stream import ProviderStream
from tests.unit.discovery.test_directory import NOW, A, B, Clock, pages, provider


def asks(**options: Any) -> Request:
    return Request("id", "GET", "/v1/providers/stream", {}, **{"peer": "1.2.3.4", **options})


class Listener:
    """Reads a stream as a client does."""

    def __init__(self, streams: ProviderStream, request: Request) -> None:
        self.events = streams.stream(request)

    async def next(self) -> tuple[str, Any]:
        async with asyncio.timeout(10):
            event = await anext(self.events)
        assert isinstance(event, Chunk)
        kind, id_, data, *end = event.data.split(b"\n")
        assert id_.startswith(b"id: ")
        assert end == [b"", b""]
        return kind.removeprefix(b"event: ").decode(), orjson.loads(data.removeprefix(b"data: "))


@asynccontextmanager
async def listening(
    directory: Directory, request: Request | None = None
) -> AsyncIterator[Listener]:
    streams = ProviderStream(directory, pause_s=0.0)
    listener = Listener(streams, request or asks())
    async with aclosing(listener.events):
        started = await anext(listener.events)
        assert isinstance(started, Started)
        assert (started.live, started.headers["content-type"]) == (True, "text/event-stream")
        yield listener


@pytest.fixture
def directory() -> Directory:
    return Directory(RelayPool([]), probe=None, clock=Clock())


async def test_changes_are_told(directory: Directory) -> None:
    directory.offer(provider(A, name="a"))
    directory.rebuild()
    async with listening(directory) as listener:
        kind, ready = await listener.next()
        assert (kind, ready) == ("ready", {"etag": directory.snapshot().etag, "providers": 1})
        directory.offer(provider(B, name="b"))
        directory.rebuild()
        kind, item = await listener.next()
        assert (kind, item["name"], item["pubkey"]) == ("provider", "b", B.pubkey)
        directory.offer(provider(A, NOW + 1, name="renamed"))
        directory.rebuild()
        assert (await listener.next())[1]["name"] == "renamed"
        directory.offer(provider(B, NOW + 2, expires_at=NOW))
        directory.rebuild()
        kind, gone = await listener.next()
        assert (kind, gone["pubkey"], gone["id"]) == ("removed", B.pubkey, "d")


async def test_who_no_longer_fits_the_filter_is_removed(directory: Directory) -> None:
    directory.offer(provider(A))
    directory.offer(pages(A, "wanted")[0])
    directory.rebuild()
    async with listening(directory, asks(query={"model": "wanted"})) as listener:
        assert (await listener.next())[0] == "ready"
        directory.offer(provider(B))
        directory.offer(pages(A, "other", at=NOW + 1)[0])
        directory.rebuild()
        kind, gone = await listener.next()
        assert (kind, gone["pubkey"]) == ("removed", A.pubkey)


async def test_a_change_between_two_looks_is_not_lost(directory: Directory) -> None:
    async with listening(directory) as listener:
        assert (await listener.next())[0] == "ready"
        for keys in (A, B):
            directory.offer(provider(keys))
            directory.rebuild()
        seen = {(await listener.next())[1]["pubkey"] for _ in range(2)}
        assert seen == {A.pubkey, B.pubkey}


async def test_it_ends_with_the_directory_and_after_its_lifetime(directory: Directory) -> None:
    task = asyncio.create_task(directory.run())
    await asyncio.sleep(0)
    async with listening(directory) as listener:
        await listener.next()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        async with asyncio.timeout(10):
            assert isinstance(await anext(listener.events), Receipt)
    other = Directory(RelayPool([]), probe=None)
    streams = ProviderStream(other, lifetime_s=0.01)
    async with asyncio.timeout(10):
        kinds = [type(event) async for event in streams.stream(asks())]
    assert kinds == [Started, Chunk, Receipt]


async def test_head_has_no_body(directory: Directory) -> None:
    streams = ProviderStream(directory)
    request = Request("id", "HEAD", "/v1/providers/stream", {})
    assert [type(event) async for event in streams.stream(request)] == [Started, Receipt]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda d: ProviderStream(None).stream(asks()), NotFound),
        (lambda d: ProviderStream(d).stream(asks(carriage="nostr")), InvalidValue),
        (lambda d: ProviderStream(d).stream(asks(query={"verified": "x"})), InvalidValue),
        (lambda d: ProviderStream(d, max_streams=0).stream(asks()), RateLimitExceeded),
    ],
)
async def test_refused_before_the_first_byte(
    directory: Directory, wrong: Callable[[Directory], Any], error: type[NodeError]
) -> None:
    with pytest.raises(error):
        await anext(wrong(directory))


async def test_one_address_holds_few_streams_and_gives_them_back(directory: Directory) -> None:
    streams = ProviderStream(directory, max_per_peer=2)
    held = [streams.stream(asks()) for _ in range(2)]
    for stream in held:
        await anext(stream)
    with pytest.raises(RateLimitExceeded):
        await anext(streams.stream(asks()))
    async with aclosing(streams.stream(asks(peer="5.6.7.8"))) as other:
        assert isinstance(await anext(other), Started)
    for stream in held:
        await stream.aclose()
    async with aclosing(streams.stream(asks())) as again:
        assert isinstance(await anext(again), Started)
