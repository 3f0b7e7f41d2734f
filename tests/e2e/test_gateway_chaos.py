"""Promise: a gateway, a node and a relay killed in turn during many requests: nothing is
charged twice and no sat is lost."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from node.demo.mint import EmbeddedMint
from tests.e2e.gateway_world import CHAT, GatewayWorld, open_gateway_world

SOAK = bool(os.environ.get("NODESTR_SOAK"))
REQUESTS = 100 if SOAK else 25
AT_ONCE = 8


@pytest.mark.timeout(300)
@pytest.mark.parametrize("carriage", ["http", "nostr"] if SOAK else ["nostr"])
async def test_requests_among_kills(mint: EmbeddedMint, tmp_path: Path, carriage: str) -> None:
    async with AsyncExitStack() as stack:
        world = await open_gateway_world(stack, mint, tmp_path, "--carriage", carriage)
        await world.fund(2000)
        await world.start()
        answered = await requests_among_kills(world)
        async with asyncio.timeout(90):  # what still runs at a provider is told later
            while (await world.gateway.json("wallet", "balance"))["under_way_msat"]:
                await asyncio.sleep(1)
        await world.gateway.stop()
        await world.assert_conserved()
        calls = sum(upstream.calls for upstream in world.upstreams)
        assert answered <= calls
        assert answered > REQUESTS // 2


async def requests_among_kills(world: GatewayWorld) -> int:
    """How many requests were answered."""
    left = iter(range(REQUESTS))
    answered = 0

    async def worker() -> None:
        nonlocal answered
        async with httpx.AsyncClient(base_url=world.gateway.url, timeout=60) as http:
            for number in left:
                body = {**CHAT, "max_tokens": 10, "stream": number % 2 == 0}
                while True:  # as a program would: the gateway may be on its way up
                    try:
                        answer = await http.post("/v1/chat/completions", json=body)
                    except httpx.ConnectError:
                        await asyncio.sleep(0.2)
                        continue
                    except httpx.HTTPError:
                        break
                    answered += answer.status_code == 200 and b'"error"' not in answer.content
                    break

    async def killer() -> None:
        chance = random.Random(5)
        while True:
            for victim in chance.sample(["gateway", "node", "relay"], 3):
                await asyncio.sleep(chance.uniform(0.3, 1.0))
                match victim:
                    case "gateway":
                        world.gateway.kill()
                        await world.gateway.start()
                    case "node":
                        world.a.kill()
                        await world.a.start()
                    case "relay":
                        await world.relays[0].stop()
                        await asyncio.sleep(0.5)
                        await world.relays[0].start()

    workers = asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    killing = asyncio.create_task(killer())
    done, _ = await asyncio.wait({workers, killing}, return_when=asyncio.FIRST_COMPLETED)
    killing.cancel()
    for task in done:
        task.result()
    await asyncio.gather(killing, return_exceptions=True)
    if world.gateway.child is None or not world.gateway.child.running():
        await world.gateway.start()
    await world.gateway.ready()
    if world.a.pid is None:
        await world.a.start()
    return answered
