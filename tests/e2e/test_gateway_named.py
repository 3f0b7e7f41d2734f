"""Promise: a request with an ``Idempotency-Key`` is bought once, whatever breaks: the same again
gives the same answer, also of another process, and another body under the key is a conflict."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from node.demo.mint import EmbeddedMint
from tests.e2e.gateway_front import Front
from tests.e2e.gateway_world import CHAT, NARROW, GatewayWorld, open_gateway_world, states

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    mint: EmbeddedMint, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[GatewayWorld, Front]]:
    front = Front()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(front.serving())
        announced = front.announced()
        announced["a"] |= {"NODESTR_NOSTR__REQUESTS": "true"}
        world = await open_gateway_world(
            stack, mint, tmp_path_factory.mktemp("world"), node_environment=announced
        )
        front.target, front.mint = world.a.url, mint.url
        yield world, front


@pytest_asyncio.fixture(params=["http", "nostr"], loop_scope="module")
async def world(
    request: pytest.FixtureRequest, shared: tuple[GatewayWorld, Front], tmp_path: Path
) -> AsyncIterator[GatewayWorld]:
    opened, _ = shared
    await opened.fresh(tmp_path, "--carriage", request.param)
    yield opened
    await opened.gateway.stop()
    await opened.assert_conserved()


@pytest_asyncio.fixture(loop_scope="module")
async def front(shared: tuple[GatewayWorld, Front]) -> AsyncIterator[Front]:
    shared[1].answered.clear()
    yield shared[1]
    shared[1].let_through.set()


async def named(world: GatewayWorld, key: str, **more: object) -> httpx.Response:
    body = {**CHAT, **NARROW, **more}
    return await world.gateway.post("/v1/chat/completions", body, **{"Idempotency-Key": key})


def calls(world: GatewayWorld) -> int:
    return sum(upstream.calls for upstream in world.upstreams)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_same_again_is_the_same_answer_and_costs_nothing(
    world: GatewayWorld, stream: bool
) -> None:
    first = await named(world, "one", stream=stream)
    again = await named(world, "one", stream=stream)
    assert first.status_code == again.status_code == 200, first.text
    assert again.content == first.content
    assert again.headers["idempotent-replayed"] == "true"
    assert (calls(world), len(await states(world))) == (1, 1)
    other = await named(world, "two", stream=stream)
    assert other.status_code == 200
    assert (calls(world), len(await states(world))) == (2, 2)


async def test_another_body_is_a_conflict(world: GatewayWorld) -> None:
    assert (await named(world, "one")).status_code == 200
    conflict = await named(world, "one", temperature=0.5)
    assert conflict.status_code == 409
    assert conflict.json()["error"]["code"] == "idempotency_conflict"
    assert calls(world) == 1


async def test_while_the_first_one_runs_the_second_is_told_so(world: GatewayWorld) -> None:
    world.upstreams[0].delay_s = 0.1
    first = asyncio.create_task(named(world, "one", stream=True))
    await asyncio.wait_for(world.upstreams[0].called.wait(), 20)
    second = await named(world, "one", stream=True)
    assert second.status_code == 409
    assert second.json()["error"]["code"] == "idempotency_in_progress"
    assert int(second.headers["retry-after"]) > 0
    answered = await first
    assert (await named(world, "one", stream=True)).content == answered.content
    assert calls(world) == 1


async def test_what_failed_for_nothing_may_be_asked_again(world: GatewayWorld) -> None:
    for upstream in world.upstreams:
        upstream.fault = "status-500"
    assert (await named(world, "one")).status_code == 502
    for upstream in world.upstreams:
        upstream.fault = None
    assert (await named(world, "one")).status_code == 200


async def test_an_answer_that_a_crash_has_cost_is_fetched_where_it_was_bought(
    world: GatewayWorld, front: Front
) -> None:
    front.let_through.clear()  # over HTTP the answer is made, and does not arrive
    world.upstreams[0].delay_s = 0.05
    asking = asyncio.create_task(named(world, "one", stream=True))
    while not world.upstreams[0].chunks_sent:
        await asyncio.sleep(0.01)
    if world.gateway.flags[1] == "http":
        await asyncio.wait_for(front.answered.wait(), 20)
    world.gateway.kill()
    await asyncio.gather(asking, return_exceptions=True)
    front.let_through.set()
    await world.start()
    async with asyncio.timeout(40):
        while (answer := await named(world, "one", stream=True)).status_code == 425:
            await asyncio.sleep(0.2)
    assert answer.status_code == 200, answer.text
    assert answer.content.endswith(b"data: [DONE]\n\n")
    assert b"x_cashu" not in answer.content
    assert answer.headers["x-nodestr-provider"] == world.a.keys.npub
    assert (await named(world, "one", stream=True)).content == answer.content
    assert (calls(world), len(await states(world))) == (1, 1)


@pytest.mark.parametrize("world", ["nostr"], indirect=True)
async def test_while_its_provider_is_gone_it_is_not_bought_elsewhere(world: GatewayWorld) -> None:
    world.upstreams[0].fault = "hang"
    asking = asyncio.create_task(named(world, "one"))
    await asyncio.wait_for(world.upstreams[0].called.wait(), 20)
    world.gateway.kill()
    world.a.kill()
    await asyncio.gather(asking, return_exceptions=True)
    world.upstreams[0].fault = None
    world.gateway.environment = {"NODESTR_GATEWAY__FIRST_BYTE_TIMEOUT_S": "2"}
    await world.gateway.start()
    answer = await named(world, "one")
    assert (answer.status_code, answer.json()["error"]["code"]) == (425, "pending"), answer.text
    assert world.upstreams[1].calls == 0
    await world.a.start()
    async with asyncio.timeout(60):
        while (answer := await named(world, "one")).status_code == 425:
            await asyncio.sleep(0.2)
    # what it had begun it gives back, and then it is bought
    assert answer.status_code == 200, answer.text
