"""Promise: a provider that listens on other relays than ours is reached there, through the guard,
and what is lost on the way is one kind of error."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from discovery.netguard import NetGuard
from node.demo.relay import EmbeddedRelay
from node.gateway.carriage import CarriageError, HttpCarriage, NostrCarriage, read_all
from node.gateway.journal import Place
from tests.e2e.conftest import World


def place(world: World, **changes: object) -> Place:
    values = {
        "pubkey": world.node.keys.pubkey,
        "d": "d",
        "name": "node",
        "url": world.node.url,
        "relays": (world.relay.url,),
    }
    return Place(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
async def other_relay() -> AsyncIterator[EmbeddedRelay]:
    async with EmbeddedRelay() as relay:
        yield relay


async def models(carriage: HttpCarriage | NostrCarriage, where: Place) -> list[str]:
    answer = await carriage.open(where, "GET", "/v1/models", {"accept": "application/json"}, b"")
    assert answer.status == 200
    body = json.loads(await read_all(answer, 1 << 20))
    return [model["id"] for model in body["data"]]


async def test_relays_of_the_provider_are_used(world: World, other_relay: EmbeddedRelay) -> None:
    async with AsyncExitStack() as stack:
        guard = NetGuard(allow_private=True)
        stack.callback(guard.close)
        ours = await stack.enter_async_context(NostrCarriage([other_relay.url], guard))
        assert await models(ours, place(world)) == ["demo"]
        with pytest.raises(CarriageError):
            await models(ours, place(world, relays=()))


async def test_relays_and_urls_inside_are_not_dialled(
    world: World, other_relay: EmbeddedRelay
) -> None:
    async with AsyncExitStack() as stack:
        guard = NetGuard()
        stack.callback(guard.close)
        nostr = await stack.enter_async_context(
            NostrCarriage([other_relay.url], guard, answer_s=1.0)
        )
        http = await stack.enter_async_context(HttpCarriage(guard))
        for carriage in (nostr, http):
            with pytest.raises(CarriageError):
                await models(carriage, place(world))
        # our own relays are the person's choice
        with pytest.raises(CarriageError):
            await models(nostr, place(world, relays=(other_relay.url,), pubkey="0" * 63 + "1"))


async def test_over_http(world: World) -> None:
    async with AsyncExitStack() as stack:
        guard = NetGuard(allow_private=True)
        stack.callback(guard.close)
        http = await stack.enter_async_context(HttpCarriage(guard))
        assert await models(http, place(world)) == ["demo"]
        for url in ("", "http://127.0.0.1:1", "ftp://127.0.0.1"):
            with pytest.raises(CarriageError):
                await models(http, place(world, url=url))
        answer = await http.open(place(world), "GET", "/v1/models", {}, b"")
        with pytest.raises(CarriageError):
            await read_all(answer, 10)
