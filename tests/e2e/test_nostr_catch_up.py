"""Promise: a request over Nostr survives the node's death, before it was read and after."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import httpx
import pytest

from node.client.nostr import NostrClient, Patience
from tests.e2e.conftest import BODY, World
from tests.fakes.stranger import SdkClient, message

QUICK = Patience(gap_s=0.3, max_gap_s=1.0, idle_s=1.0, max_idle_s=2.0)


def chat(token: str, message_id: str, **more: Any) -> dict[str, Any]:
    headers = {"content-type": "application/json", "x-cashu": token}
    body = json.dumps(BODY).encode()
    return message(body, message_id, "/v1/chat/completions", headers=headers, **more)


async def test_a_stored_request_is_answered_when_the_node_returns_if_still_fresh(
    world: World,
) -> None:
    purse, now = world.purse, int(time.time())
    world.node.kill()
    tokens = {name: await purse.fund(60) for name in ("waits", "late", "undated")}
    async with SdkClient(world.relay.url, world.node.keys.pubkey, [1059, 21059]) as client:
        an_hour_ago = now - 3600
        for name, expires in (("waits", now + 3600), ("late", now - 5), ("undated", None)):
            dated = {} if expires is None else {"expires": expires}
            seal = client.seal(chat(tokens[name], name, **dated), created_at=an_hour_ago)
            await client.publish(client.wrap(seal, kind=1059))
        await world.node.start()
        reply = (await client.replies(1))[0]
        assert (reply["id"], reply["status"], client.wraps[0]["kind"]) == ("waits", 200, 1059)
        cost = json.loads(base64.b64decode(reply["bodyBase64"]))["usage"]["cost"]
        assert await purse.receive(reply["headers"]["x-cashu"]) == (60_000 - cost) // 1000

        # What the relay hands out again at the next start is not answered once more.
        world.node.kill()
        await world.node.start()
        await client.send(message(b"", "alive", "/v1/models", method="GET"))
        replies = await client.replies(2)
        assert [answer["id"] for answer in replies] == ["waits", "alive"]
    assert world.upstream.calls == 1
    for name in ("late", "undated"):
        assert not await purse.spent(tokens[name])
    assert (await world.quiet_books()).revenue_msat == cost
    await world.assert_coins_are_real()


async def test_our_client_waits_for_a_node_that_is_off(world: World) -> None:
    world.node.kill()
    async with NostrClient([world.relay.url], stored=True, patience=QUICK) as client:
        asking = asyncio.create_task(
            client.request(
                world.node.keys.npub,
                "POST",
                "/v1/chat/completions",
                headers={
                    "content-type": "application/json",
                    "x-cashu": await world.purse.fund(60),
                },
                body=json.dumps(BODY).encode(),
            )
        )
        await asyncio.sleep(0.5)
        await world.node.start()
        reply = await asking
    cost = int(reply.trailers["x-cost-msat"])
    assert reply.status == 200
    assert reply.change is not None
    assert await world.purse.receive(reply.change) == (60_000 - cost) // 1000
    assert world.upstream.calls == 1


@pytest.mark.parametrize("by_token", [True, False])
async def test_killed_between_redeeming_and_replying_it_is_answered_and_charged_once(
    world: World, by_token: bool
) -> None:
    headers = {"content-type": "application/json"}
    async with NostrClient([world.relay.url], patience=QUICK) as client:
        npub = world.node.keys.npub
        token = await world.purse.fund(60)
        if by_token:
            headers["x-cashu"] = token
        else:
            body = json.dumps({"cashu_token": token}).encode()
            made = await client.request(npub, "POST", "/v1/wallet/create", body=body)
            headers["authorization"] = f"Bearer {made.json()['api_key']}"
        world.upstream.fault = "hang"
        asking = asyncio.create_task(
            client.request(
                npub,
                "POST",
                "/v1/chat/completions",
                headers=headers,
                body=json.dumps(BODY).encode(),
                message_id="once",
            )
        )
        await asyncio.wait_for(world.upstream.called.wait(), 10)
        async with asyncio.timeout(10):
            while not await world.purse.spent(token):
                await asyncio.sleep(0.05)
        world.node.kill()
        world.upstream.fault = None
        await world.node.start()
        reply = await asking
        assert reply.status == 200
        cost = int(reply.trailers["x-cost-msat"])
        again = await client.request(
            npub,
            "POST",
            "/v1/chat/completions",
            headers=headers,
            body=json.dumps(BODY).encode(),
            message_id="once",
        )
        assert (again.body, again.change) == (reply.body, reply.change)
    if by_token:
        assert reply.change is not None
        assert await world.purse.receive(reply.change) == (60_000 - cost) // 1000
    books = await world.quiet_books()
    assert (books.received_msat, books.revenue_msat) == (60_000, cost)
    await world.assert_coins_are_real()


async def test_health_shows_each_relay(world: World) -> None:
    async with httpx.AsyncClient() as http:
        ready = (await http.get(f"{world.node.url}/health/ready")).json()
        assert ready["checks"][f"relay {world.relay.url}"] == "ok"
        await world.relay.stop()
        async with asyncio.timeout(20):
            while True:
                answer = await http.get(f"{world.node.url}/health/ready")
                if answer.json()["checks"][f"relay {world.relay.url}"] != "ok":
                    break
                await asyncio.sleep(0.1)
    assert answer.status_code == 200
    assert answer.json()["checks"][f"relay {world.relay.url}"] == "not connected"
