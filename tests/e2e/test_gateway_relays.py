"""Promise: nodes that have no URL are bought from over relays alone, and a gateway that is killed
at any step of it gets its money back over relays alone, also of nodes that know nothing but the
repetition of a request."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from discovery.netguard import NetGuard
from node.demo.mint import EmbeddedMint
from node.gateway.carriage import Answer, CarriageError, NostrCarriage
from node.gateway.journal import Place
from node.gateway.purse import open_purse
from node.gateway.till import Till
from tests.e2e.gateway_world import GatewayWorld, ask, killed_while, open_gateway_world

pytestmark = pytest.mark.asyncio(loop_scope="module")
NO_URL = {"NODESTR_HTTP__PUBLIC_URLS": "[]"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    mint: EmbeddedMint, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[GatewayWorld]:
    async with AsyncExitStack() as stack:
        yield await open_gateway_world(
            stack,
            mint,
            tmp_path_factory.mktemp("world"),
            node_environment={"a": NO_URL, "b": NO_URL},
        )


@pytest_asyncio.fixture(loop_scope="module")
async def world(shared: GatewayWorld, tmp_path: Path) -> AsyncIterator[GatewayWorld]:
    await shared.fresh(tmp_path)
    yield shared
    await shared.gateway.stop()
    await shared.assert_conserved()


@pytest.mark.parametrize("moment", ["paying", "working", "streaming", "after"])
async def test_a_gateway_killed_at_any_step_loses_nothing(world: GatewayWorld, moment: str) -> None:
    await killed_while(world, moment)
    kept = "SELECT COUNT(*) FROM gateway_requests"
    connection = sqlite3.connect(f"file:{world.gateway.wallet}?mode=ro", uri=True)
    assert connection.execute(kept).fetchone() == (0,)
    connection.close()


class Repeating:
    """The way to a node that does not know the endpoints for change."""

    def __init__(self, carriage: NostrCarriage) -> None:
        self._carriage = carriage

    async def secret(self, place: Place) -> str:
        return await self._carriage.secret(place)

    async def open(
        self, place: Place, method: str, path: str, *arguments: Any, **options: Any
    ) -> Answer:
        if path != "/v1/chat/completions":
            raise CarriageError("there is nothing here")
        return await self._carriage.open(place, method, path, *arguments, **options)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_same_request_again_brings_the_change(world: GatewayWorld, stream: bool) -> None:
    world.upstreams[0].delay_s = 0.1
    asking = asyncio.create_task(ask(world, stream=stream))
    await asyncio.wait_for(world.upstreams[0].called.wait(), 20)
    world.gateway.kill()
    await asyncio.gather(asking, return_exceptions=True)
    await world.earned()  # it has answered
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        purse = await stack.enter_async_context(open_purse(world.gateway.wallet, session))
        guard = NetGuard(allow_private=True)
        stack.callback(guard.close)
        nostr = await stack.enter_async_context(NostrCarriage(world.gateway.relays, guard))
        (spending,) = await Till(purse, {"nostr": Repeating(nostr)}, 60).recover_all()
        assert spending.state == "settled"
        assert spending.back > 0
    assert world.upstreams[0].calls == 1
