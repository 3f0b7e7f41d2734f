"""Promise: a provider that keeps the change, takes more than it announced or asks for more than it
may is noticed, loses no money of ours that it did not take, and is avoided from then on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from node.demo.mint import EmbeddedMint
from tests.e2e.gateway_front import Front
from tests.e2e.gateway_world import GatewayWorld, ask, open_gateway_world, records, states

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    mint: EmbeddedMint, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[GatewayWorld, Front]]:
    """Node a is reached through a front."""
    front = Front()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(front.serving())
        world = await open_gateway_world(
            stack, mint, tmp_path_factory.mktemp("world"), node_environment=front.announced()
        )
        front.target, front.mint = world.a.url, mint.url
        yield world, front


@pytest_asyncio.fixture(loop_scope="module")
async def front(shared: tuple[GatewayWorld, Front]) -> AsyncIterator[Front]:
    yield shared[1]
    await shared[0].gateway.stop()
    shared[1].refund = shared[1].demand_sat = 0


@pytest.fixture
def world(shared: tuple[GatewayWorld, Front]) -> GatewayWorld:
    return shared[0]


@pytest.mark.parametrize(("refund", "state"), [(402, "settled"), (404, "lost")])
async def test_a_provider_that_keeps_the_change_is_noticed(
    world: GatewayWorld, front: Front, tmp_path: Path, refund: int, state: str
) -> None:
    front.refund = refund
    await world.fresh(
        tmp_path,
        "--carriage",
        "http",
        sat=500,
        environment={"NODESTR_GATEWAY__LOST_AFTER_S": "0.01"},
    )
    first = await ask(world)
    assert first.headers["x-nodestr-provider"] == world.a.keys.npub
    async with asyncio.timeout(30):
        while await states(world) != [state]:
            await asyncio.sleep(0.05)
    await world.gateway.stop()
    assert (await records(world))[world.a.keys.pubkey].overcharged == 1
    (spending,) = (await world.gateway.json("wallet", "history"))["spendings"]
    assert spending["state"] == state
    assert spending["amount_msat"] > spending["expected_msat"] + 1000
    assert spending["back_msat"] == 0
    # the other one asks for twenty times as much, and another process asks
    await world.start()
    for _ in range(3):
        answer = await ask(world, max_tokens=1)
        assert answer.headers["x-nodestr-provider"] == world.b.keys.npub


@pytest.mark.parametrize(("demand_sat", "served_by_a"), [(12, True), (150, False)])
async def test_a_provider_that_wants_more_gets_a_little_more_once(
    world: GatewayWorld, front: Front, tmp_path: Path, demand_sat: int, served_by_a: bool
) -> None:
    front.demand_sat = demand_sat
    await world.fresh(tmp_path, "--carriage", "http")
    answer = await ask(world)
    assert answer.status_code == 200, answer.text
    served_by = world.a if served_by_a else world.b
    assert answer.headers["x-nodestr-provider"] == served_by.keys.npub
    await world.gateway.stop()
    await world.assert_conserved()
    second, first = (await world.gateway.json("wallet", "history"))["spendings"]
    assert (first["state"], first["back_msat"]) == ("reclaimed", first["amount_msat"])
    assert second["state"] == "settled"
    if served_by_a:
        assert second["amount_msat"] == demand_sat * 1000
