"""Promise: accounts, addresses and senders get what the limits allow, each for itself."""

from __future__ import annotations

import asyncio

import aiohttp
import httpx

from node.client.nostr import NostrClient
from tests.e2e.conftest import BODY, OpenWorld

LIMITS = {
    "NODESTR_LIMITS__REQUESTS_PER_MINUTE": "3",
    "NODESTR_LIMITS__MAX_CONCURRENT_PER_ACCOUNT": "2",
}


async def test_each_payer_has_a_limit_of_its_own(open_world: OpenWorld) -> None:
    world = await open_world(environment=LIMITS)
    async with httpx.AsyncClient(base_url=world.node.url) as http:
        for left in (2, 1, 0):
            answer = await http.get("/v1/models")
            assert answer.status_code == 200
            assert answer.headers["x-ratelimit-limit-requests"] == "3"
            assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
        refused = await http.get("/v1/models")
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        for name in ("X-Cashu", "X-Api-Key"):  # nobody looks at it there
            junk = {name: "x"}
            assert (await http.get("/v1/models", headers=junk)).status_code == 429
            order = await http.post("/lightning/invoice", json={"amount_sats": 9}, headers=junk)
            assert order.status_code == 429
        made_up = await http.get("/v1/wallet/balance", headers={"Authorization": "Bearer sk-x"})
        assert made_up.status_code == 429  # a key of nobody's is a stranger's
        for _ in range(4):  # a token that pays is nobody's limit
            paid = await http.post(
                "/v1/chat/completions", json=BODY, headers={"X-Cashu": await world.purse.fund(9)}
            )
            assert paid.status_code == 200
            await world.purse.receive(paid.headers["x-cashu"])
        key = await world.purse.fund(40)
        account = {"Authorization": f"Bearer {key}"}
        answers = [
            await http.post("/v1/chat/completions", json=BODY, headers=account) for _ in range(5)
        ]
        statuses = [answer.status_code for answer in answers]
        assert statuses == [200, 200, 200, 200, 429]  # the first opened the account
        assert answers[3].headers["x-ratelimit-remaining-requests"] == "0"
        health = await http.get("/health/live")
        assert health.status_code == 200


async def test_calls_of_one_account_at_the_same_time(open_world: OpenWorld) -> None:
    world = await open_world(environment={**LIMITS, "NODESTR_LIMITS__REQUESTS_PER_MINUTE": "0"})
    async with aiohttp.ClientSession() as http:
        created = await http.post(
            f"{world.node.url}/v1/wallet/create",
            json={"cashu_token": await world.purse.fund(100)},
        )
        headers = {"Authorization": f"Bearer {(await created.json())['api_key']}"}
        world.upstream.fault = "hang"

        async def ask() -> int:
            async with http.post(
                f"{world.node.url}/v1/chat/completions", json=BODY, headers=headers
            ) as answer:
                return answer.status

        running = [asyncio.create_task(ask()) for _ in range(2)]
        async with asyncio.timeout(10):
            while world.upstream.calls < 2:
                await asyncio.sleep(0.01)
        assert await ask() == 429
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        world.upstream.fault = ""
        async with asyncio.timeout(10):
            while (status := await ask()) != 200:
                assert status == 429
                await asyncio.sleep(0.05)


async def test_a_sender_over_nostr(open_world: OpenWorld) -> None:
    world = await open_world(environment=LIMITS)
    node = world.node.keys.pubkey
    async with NostrClient([world.relay.url]) as one, NostrClient([world.relay.url]) as other:
        answers = [await one.request(node, "GET", "/v1/info") for _ in range(4)]
        assert [answer.status for answer in answers] == [200, 200, 200, 429]
        assert answers[0].headers["x-ratelimit-remaining-requests"] == "2"
        assert (await other.request(node, "GET", "/v1/info")).status == 200
