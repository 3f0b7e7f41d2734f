"""Promise: a node killed at any moment of a paid request loses no sat and makes none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from node.demo.mint import EmbeddedMint
from node.ecash.token import parse_token, serialize_token
from tests.e2e.conftest import BODY, OpenWorld, World
from tests.fakes.mint_proxy import Fault, MintProxy


@pytest.fixture
async def proxy(mint: EmbeddedMint) -> AsyncIterator[MintProxy]:
    async with MintProxy(mint.url) as running:
        yield running


class Payer:
    """A client of a node that knows the mint by the proxy's address."""

    def __init__(self, world: World, proxy: MintProxy) -> None:
        self.world = world
        self.proxy = proxy
        self.paid = 0
        self.back = 0

    async def token(self, amount: int) -> str:
        token = parse_token(await self.world.purse.fund(amount))
        self.paid += amount
        return serialize_token(self.proxy.url, "sat", token.proofs)

    async def take(self, token: str) -> int:
        real = serialize_token(self.world.mint.url, "sat", parse_token(token).proofs)
        received = await self.world.purse.receive(real)
        self.back += received
        return received

    async def ask(
        self, token: str, *, stream: bool = False, timeout_s: float = 60
    ) -> httpx.Response:
        async with httpx.AsyncClient(timeout=timeout_s) as http:
            return await http.post(
                f"{self.world.node.url}/v1/chat/completions",
                headers={"X-Cashu": token},
                json={**BODY, "stream": stream},
            )

    async def ask_until_known(self, token: str) -> httpx.Response:
        """Ask again as long as the node says the outcome is not known yet."""
        async with asyncio.timeout(40):
            while (answer := await self.ask(token)).status_code == 425:
                await asyncio.sleep(0.3)
        return answer

    async def look_up(self, token: str) -> httpx.Response:
        async with asyncio.timeout(40), httpx.AsyncClient(timeout=60) as http:
            while True:
                answer = await http.post(
                    f"{self.world.node.url}/v1/balance/refund", headers={"X-Cashu": token}
                )
                if answer.status_code != 425:
                    return answer
                await asyncio.sleep(0.3)

    async def assert_conserved(self) -> None:
        """paid in = come back + kept by the node, and the node's coins are real."""
        books = await self.world.quiet_books()
        kept = books.revenue_msat + books.dust_msat + books.open_msat
        assert self.paid * 1000 == self.back * 1000 + kept
        assert books.received_msat == self.paid * 1000
        await self.world.assert_coins_are_real()


async def kill_and_restart(world: World) -> None:
    world.node.kill()
    await world.node.start()


async def killed_answer(task: asyncio.Task[httpx.Response]) -> None:
    with pytest.raises(httpx.HTTPError):
        await task


@pytest.mark.parametrize("fault", ["hang", None])
async def test_killed_while_the_token_is_being_redeemed(
    fault: Fault | None, open_world: OpenWorld, proxy: MintProxy
) -> None:
    world = await open_world(mint_url=proxy.url)
    payer = Payer(world, proxy)
    token = await payer.token(40)
    proxy.faults.append(fault)
    asking = asyncio.create_task(payer.ask(token))
    async with asyncio.timeout(10):
        while proxy.swaps == 0:
            await asyncio.sleep(0.002)
    await kill_and_restart(world)
    await asyncio.wait({asking})
    answer = await payer.ask_until_known(token)
    if asking.exception() is None:  # it was faster than the kill
        assert answer.json()["error"]["code"] == "token_already_spent"
    else:
        assert answer.status_code == 200
    await payer.take(answer.headers["x-cashu"])
    await payer.assert_conserved()


@pytest.mark.parametrize("stream", [False, True])
async def test_killed_while_the_model_server_works(
    stream: bool, open_world: OpenWorld, proxy: MintProxy
) -> None:
    world = await open_world(mint_url=proxy.url)
    payer = Payer(world, proxy)
    world.upstream.fault = "stall" if stream else "hang"
    token = await payer.token(40)
    asking = asyncio.create_task(payer.ask(token, stream=stream))
    await asyncio.wait_for(world.upstream.called.wait(), 10)
    await kill_and_restart(world)
    await killed_answer(asking)
    world.upstream.fault = None
    assert (await world.quiet_books()).revenue_msat == 0
    answer = await payer.look_up(token)  # nothing was served: all of it comes back
    assert await payer.take(answer.json()["token"]) == 40
    again = await payer.ask(token)
    assert again.json()["error"]["code"] == "token_already_spent"
    await payer.assert_conserved()


async def test_killed_while_the_model_server_works_then_asked_again(
    open_world: OpenWorld, proxy: MintProxy
) -> None:
    world = await open_world(mint_url=proxy.url)
    payer = Payer(world, proxy)
    world.upstream.fault = "hang"
    token = await payer.token(40)
    asking = asyncio.create_task(payer.ask(token))
    await asyncio.wait_for(world.upstream.called.wait(), 10)
    await kill_and_restart(world)
    await killed_answer(asking)
    world.upstream.fault = None
    answer = await payer.ask(token)
    assert answer.status_code == 200
    cost = int(answer.headers["x-routstr-cost-msats"])
    assert await payer.take(answer.headers["x-cashu"]) == (40_000 - cost) // 1000
    await payer.assert_conserved()


async def test_killed_in_the_middle_of_a_stream_paid_by_key(
    open_world: OpenWorld, proxy: MintProxy
) -> None:
    world = await open_world(mint_url=proxy.url)
    payer = Payer(world, proxy)
    world.upstream.delay_s = 0.1
    token = await payer.token(40)
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(timeout=30) as http:
        with pytest.raises(httpx.HTTPError):
            async with http.stream(
                "POST",
                f"{world.node.url}/v1/chat/completions",
                headers=headers,
                json={**BODY, "stream": True},
            ) as answer:
                async for _ in answer.aiter_bytes():
                    world.node.kill()
        await world.node.start()
        books = await world.quiet_books()
        assert (books.open_msat, books.held_msat) == (40_000, 0)
        refund = await http.post(f"{world.node.url}/v1/balance/refund", headers=headers)
    assert await payer.take(refund.json()["token"]) == 40
    await payer.assert_conserved()


@pytest.mark.parametrize("moment_s", [0.0, 0.004, 0.008, 0.015, 0.03, 0.06])
async def test_killed_at_an_arbitrary_moment_of_many_requests(
    moment_s: float, open_world: OpenWorld, proxy: MintProxy
) -> None:
    world = await open_world(mint_url=proxy.url)
    payer = Payer(world, proxy)
    tokens = [await payer.token(20 + number) for number in range(5)]
    asking = [asyncio.create_task(payer.ask(token)) for token in tokens]
    async with asyncio.timeout(10):
        while proxy.swaps == 0:
            await asyncio.sleep(0.001)
    await asyncio.sleep(moment_s)
    await kill_and_restart(world)
    await asyncio.wait(asking)
    for token, task in zip(tokens, asking, strict=True):
        if task.exception() is None:
            await payer.take(task.result().headers["x-cashu"])
            continue
        answer = await payer.ask_until_known(token)
        assert answer.status_code in (200, 400)
        assert await payer.take(answer.headers["x-cashu"]) > 0
    await payer.assert_conserved()


@pytest.mark.parametrize("fault", ["lose_answer", "hang"])
async def test_killed_while_a_withdrawal_is_at_the_mint(
    fault: Fault, open_world: OpenWorld, proxy: MintProxy
) -> None:
    world = await open_world(mint_url=proxy.url)
    payer = Payer(world, proxy)
    async with httpx.AsyncClient(base_url=f"{world.node.url}/v1/wallet", timeout=2) as http:
        made = await http.post("/create", json={"cashu_token": await payer.token(64)})
        http.headers["authorization"] = f"Bearer {made.json()['api_key']}"
        proxy.faults.append(fault)
        while proxy.swaps == 1:  # until the small coins are gone and one needs the mint
            try:
                taken = await http.post("/withdraw", json={"amount": 3})
            except httpx.TimeoutException:
                break
            if taken.status_code == 200:
                await payer.take(taken.json()["cashu_token"])
        assert not proxy.faults
        await kill_and_restart(world)
        http.timeout = httpx.Timeout(40)
        async with asyncio.timeout(40):
            while (await http.get("/balance")).json()["balance"] or payer.back < 64:
                rest = await http.post("/withdraw")
                if rest.status_code == 200:
                    await payer.take(rest.json()["cashu_token"])
                else:
                    assert rest.status_code == 425
                    await asyncio.sleep(0.3)
    await payer.assert_conserved()
    assert payer.back == 64
