"""Promise: a provider that keeps the change, takes more than it announced or asks for more than it
may is noticed, loses no money of ours that it did not take, and is avoided from then on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from node.demo.mint import EmbeddedMint
from node.demo.purse import Purse
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
    shared[1].instead = None
    shared[1].let_through.set()


@pytest_asyncio.fixture(loop_scope="module")
async def thief(mint: EmbeddedMint) -> AsyncIterator[Purse]:
    async with Purse(mint.url) as purse:
        yield purse


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


async def test_who_takes_the_money_and_refuses_is_noticed_and_the_cap_holds_for_all_together(
    world: GatewayWorld, front: Front, thief: Purse, tmp_path: Path
) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        token = request.headers["x-cashu"]
        await thief.receive(token)
        return web.json_response({"error": {"message": f"not {token}"}}, status=500)

    front.instead, front.refund = refuse, 402
    await world.fresh(tmp_path / "one", "--carriage", "http")
    answer = await ask(world)
    assert answer.headers["x-nodestr-provider"] == world.b.keys.npub
    await world.gateway.stop()
    assert (await records(world))[world.a.keys.pubkey].overcharged == 1
    assert "answered 500: not …" in (log := "".join(world.gateway.log()))
    assert "cashu" not in log
    paid, stolen = (await world.gateway.json("wallet", "history"))["spendings"]
    assert (stolen["state"], stolen["back_msat"], stolen["expected_msat"]) == ("settled", 0, 0)
    # enough for either of them, and not for both
    most = str(paid["amount_msat"] // 1000)
    await world.fresh(tmp_path / "two", "--carriage", "http", "--max-price", most)
    assert (await ask(world)).status_code == 502
    assert world.upstreams[1].calls == 0
    await world.gateway.stop()
    (only,) = (await world.gateway.json("wallet", "history"))["spendings"]
    assert only["amount_msat"] == stolen["amount_msat"]


async def test_change_that_came_before_the_answer_broke_off_is_kept(
    world: GatewayWorld, front: Front, thief: Purse, tmp_path: Path
) -> None:
    async def break_off(request: web.Request) -> web.StreamResponse:
        value = await thief.receive(request.headers["x-cashu"])
        change = await thief.send(value - 1)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        said = '{"choices":[{"delta":{"content":"a"}}]}'
        await response.write(f'data: {said}\n\ndata: {{"x_cashu":"{change}"}}\n\n'.encode())
        assert request.transport is not None
        request.transport.close()
        return response

    front.instead, front.refund = break_off, 404
    await world.fresh(tmp_path, "--carriage", "http")
    answer = await ask(world, stream=True)
    assert b"cashuB" not in answer.content
    async with asyncio.timeout(30):
        while await states(world) != ["settled"]:
            await asyncio.sleep(0.05)
    await world.gateway.stop()
    (spending,) = (await world.gateway.json("wallet", "history"))["spendings"]
    assert spending["back_msat"] == spending["amount_msat"] - 1000


@pytest.mark.parametrize("flags", [(), ("--json",)])
async def test_odd_events_are_shown_as_far_as_they_can_be(
    world: GatewayWorld, front: Front, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    events = (
        b'data: 5\n\ndata: {"choices":3}\n\ndata: {"choices":[1,{"delta":{"content":["x"]}}]}\n\n'
        b'data: no json\n\ndata: {"choices":[{"delta":{"content":"so \\u001b[2Jwhat"}}]}\n\n'
        b'data: {"error":{"message":"\\u001b[2Jno"}}\n\n'
    )

    async def odd(request: web.Request) -> web.StreamResponse:
        kind = "application/json" if flags else "text/event-stream"
        return web.Response(body=b"[1]" if flags else events, headers={"content-type": kind})

    front.instead = odd
    await world.fresh(tmp_path, "--carriage", "http", start=False)
    code, out, err = await world.gateway.run(
        "ask", "what", "--provider", world.a.keys.npub, "--carriage", "http", *flags
    )
    assert code == 1, out + err
    assert "Traceback" not in err
    assert "\x1b" not in out + err
    if not flags:
        assert "so [2Jwhat" in out


async def test_who_has_the_money_and_is_slow_is_waited_for(
    world: GatewayWorld, front: Front, tmp_path: Path
) -> None:
    patience = {"NODESTR_GATEWAY__FIRST_BYTE_TIMEOUT_S": "12"}  # looks at the token after 2
    await world.fresh(tmp_path, "--carriage", "http", environment=patience)
    front.answered.clear()
    front.let_through.clear()
    asking = asyncio.create_task(ask(world))
    await asyncio.wait_for(front.answered.wait(), 30)
    await asyncio.sleep(2.5)
    front.let_through.set()
    assert (await asking).headers["x-nodestr-provider"] == world.a.keys.npub
    await world.gateway.stop()
    await world.assert_conserved()
    assert await states(world) == ["settled"]
