"""Promise: a Nostr client that shares none of our code gets paid answers, and its change."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest

from tests.e2e.conftest import BODY, World
from tests.fakes.stranger import SdkClient, message


def stranger(world: World, *, kinds: list[int] | None = None) -> SdkClient:
    return SdkClient(world.relay.url, world.node.keys.pubkey, kinds or [21059])


def chat(token: str, message_id: str, *, stream: bool = False, **more: Any) -> dict[str, Any]:
    headers = {"content-type": "application/json", "x-cashu": token}
    body = json.dumps({**BODY, "stream": stream}).encode()
    return message(body, message_id, "/v1/chat/completions", headers=headers, **more)


async def test_plain_and_framed_and_streamed_answers_bring_their_change(world: World) -> None:
    purse = world.purse
    async with stranger(world) as client:
        await client.send(chat(await purse.fund(60), "plain"))
        reply = (await client.replies(1))[0]
        assert reply["status"] == 200
        answer = json.loads(base64.b64decode(reply["bodyBase64"]))
        cost = answer["usage"]["cost"]
        assert await purse.receive(reply["headers"]["x-cashu"]) == (60_000 - cost) // 1000

        await client.send(chat(await purse.fund(60), "framed", frames=True))
        framed = await client.framed("framed")
        assert json.loads(framed.body)["choices"] == answer["choices"]
        assert framed.trailers["x-cost-msat"] == str(cost)
        assert await purse.receive(framed.trailers["x-cashu"]) == (60_000 - cost) // 1000

        await client.send(chat(await purse.fund(60), "streamed", stream=True, frames=True))
        streamed = await client.framed("streamed")
        assert streamed.headers["content-type"].startswith("text/event-stream")
        events = [line[6:] for line in streamed.body.decode().splitlines() if line]
        assert events[-1] == "[DONE]"
        text = "".join(
            choice["delta"].get("content") or ""
            for event in events[:-1]
            for choice in json.loads(event)["choices"]
        )
        assert text == answer["choices"][0]["message"]["content"]
        assert await purse.receive(streamed.trailers["x-cashu"]) == (60_000 - cost) // 1000
    await world.assert_coins_are_real()


async def test_a_stream_paid_by_token_comes_while_it_is_generated(world: World) -> None:
    world.upstream.fault = "stall"
    async with stranger(world) as client:
        await client.send(chat(await world.purse.fund(60), "m", stream=True, frames=True))
        (first,) = await client.replies(1)
        assert (first["seq"], first["status"], first.get("final")) == (0, 200, None)
        assert base64.b64decode(first["bodyBase64"]).startswith(b"data: ")
        await client.send({"id": "m", "cancel": True})
        reply = await client.framed("m")
        cost = int(reply.trailers["x-cost-msat"])
        change = (60_000 - cost) // 1000
        assert await world.purse.receive(reply.trailers["x-cashu"]) == change


async def test_a_replayed_request_gets_the_stored_answer_and_is_charged_once(world: World) -> None:
    async with stranger(world) as client:
        request = chat(await world.purse.fund(60), "again")
        await client.send(request)
        first = (await client.replies(1))[0]
        await client.send(request)
        second = (await client.replies(2))[1]
        assert second == first
        other = {**request, "bodyBase64": base64.b64encode(b'{"model":"demo"}').decode()}
        await client.send(other)
        conflict = (await client.replies(3))[2]
        assert conflict["status"] == 409
        await client.send({**request, "id": "the same token under another id"})
        spent = (await client.replies(4))[3]
        assert spent["status"] == 400
        assert spent["headers"]["x-cashu"] == first["headers"]["x-cashu"]
    assert world.upstream.calls == 1


async def test_an_answer_survives_the_node(world: World) -> None:
    async with stranger(world) as client:
        request = chat(await world.purse.fund(60), "before")
        await client.send(request)
        first = (await client.replies(1))[0]
        world.node.kill()
        await world.node.start()
        await client.send(request)
        assert (await client.replies(2))[1] == first
    assert world.upstream.calls == 1


async def test_killed_before_the_answer_the_same_request_is_answered_and_charged_once(
    world: World,
) -> None:
    world.upstream.fault = "hang"
    async with stranger(world) as client:
        request = chat(await world.purse.fund(60), "killed")
        await client.send(request)
        await asyncio.wait_for(world.upstream.called.wait(), 10)
        world.node.kill()
        world.upstream.fault = None
        await world.node.start()
        await client.send(request)
        reply = (await client.replies(1))[0]
        assert reply["status"] == 200
        cost = json.loads(base64.b64decode(reply["bodyBase64"]))["usage"]["cost"]
        assert await world.purse.receive(reply["headers"]["x-cashu"]) == (60_000 - cost) // 1000
    books = await world.quiet_books()
    assert (books.received_msat, books.revenue_msat) == (60_000, cost)
    await world.assert_coins_are_real()


async def test_killed_in_the_middle_of_a_stream_the_same_request_brings_it_and_the_change(
    world: World,
) -> None:
    world.upstream.fault = "stall"
    async with stranger(world) as client:
        request = chat(await world.purse.fund(60), "cut", stream=True, frames=True)
        await client.send(request)
        await client.replies(1)
        world.node.kill()
        world.upstream.fault = None
        client.arrived.clear()
        await world.node.start()
        await client.send(request)
        reply = await client.framed("cut")
        assert reply.status == 200
        assert b"[DONE]" in reply.body
        cost = int(reply.trailers["x-cost-msat"])
        assert await world.purse.receive(reply.trailers["x-cashu"]) == (60_000 - cost) // 1000
    books = await world.quiet_books()
    assert (books.received_msat, books.revenue_msat) == (60_000, cost)
    await world.assert_coins_are_real()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_cancelled_request_brings_its_change_and_can_be_asked_for_again(
    world: World, stream: bool
) -> None:
    world.upstream.fault = "stall"
    async with stranger(world) as client:
        request = chat(await world.purse.fund(60), "m", stream=stream, frames=True)
        await client.send(request)
        await asyncio.wait_for(world.upstream.called.wait(), 10)
        await client.send({"id": "m", "cancel": True})
        reply = await client.framed("m")
        assert reply.status == (200 if stream else 409)
        assert b"[DONE]" not in reply.body
        cost, change = int(reply.trailers["x-cost-msat"]), reply.trailers["x-cashu"]
        await asyncio.wait_for(world.upstream.disconnected.wait(), 10)
        client.arrived.clear()
        await client.send(request)
        assert await client.framed("m") == reply
        late = stranger(world, kinds=[1059])
        late.keys = client.keys
        async with late:
            assert (await late.replies(1))[0]["trailers"]["x-cashu"] == change
    assert 0 < cost < 60_000
    assert await world.purse.receive(change) == (60_000 - cost) // 1000
    assert world.upstream.calls == 1
    assert (await world.quiet_books()).revenue_msat == cost
    await world.assert_coins_are_real()


async def test_change_comes_a_second_time_as_a_stored_event(world: World) -> None:
    async with stranger(world) as client:
        await client.send(chat(await world.purse.fund(60), "stored"))
        change = (await client.replies(1))[0]["headers"]["x-cashu"]
        late = stranger(world, kinds=[1059])
        late.keys = client.keys
        async with late:
            copy = (await late.replies(1))[0]
            assert copy["headers"]["x-cashu"] == change
            assert late.wraps[0]["kind"] == 1059


async def test_wallet_and_catalogue_answer_too(world: World) -> None:
    async with stranger(world) as client:
        create = json.dumps({"cashu_token": await world.purse.fund(20)}).encode()
        await client.send(message(create, "1", "/v1/wallet/create"))
        made = json.loads(base64.b64decode((await client.replies(1))[0]["bodyBase64"]))
        bearer = {"authorization": f"Bearer {made['api_key']}"}
        await client.send(message(b"", "2", "/v1/wallet/balance", method="GET", headers=bearer))
        balance = json.loads(base64.b64decode((await client.replies(2))[1]["bodyBase64"]))
        assert balance["balance"] == 20
        refund = message(b"", "3", "/v1/balance/refund", headers=bearer)
        await client.send(refund)
        token = json.loads(base64.b64decode((await client.replies(3))[2]["bodyBase64"]))["token"]
        assert await world.purse.receive(token) == 20
        await client.send(refund)  # an answer that got lost
        assert (await client.replies(4))[3] == client.arrived[2]
        await client.send(message(b"", "4", "/v1/models", method="GET"))
        models = json.loads(base64.b64decode((await client.replies(5))[4]["bodyBase64"]))
        assert [model["id"] for model in models["data"]] == ["demo"]


@pytest.mark.parametrize("url", ["/admin/api/settings", "/health/live", "/v1/../admin", "/metrics"])
async def test_what_is_for_operators_is_not_there(url: str, world: World) -> None:
    async with stranger(world) as client:
        await client.send(message(b"", "m", url, method="GET"))
        assert (await client.replies(1))[0]["status"] == 404
