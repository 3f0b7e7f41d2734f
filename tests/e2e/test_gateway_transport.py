"""Promise: the ``openai`` SDK talks to a node over relays through an httpx transport."""

from __future__ import annotations

import httpx
import openai
import pytest

from node.client.httpx_transport import NostrTransport
from node.client.nostr import NostrClient
from tests.e2e.conftest import BODY, World


async def test_chat_and_stream_over_relays(world: World) -> None:
    key = await world.purse.fund(100)
    async with NostrClient([world.relay.url]) as client:
        transport = NostrTransport(client, world.node.keys.npub)
        async with openai.AsyncOpenAI(
            base_url="http://node/v1",
            api_key=key,
            http_client=httpx.AsyncClient(transport=transport),
            max_retries=0,
        ) as sdk:
            whole = await sdk.chat.completions.create(**BODY)  # type: ignore[call-overload]
            text = ""
            stream = await sdk.chat.completions.create(**BODY, stream=True)  # type: ignore[call-overload]
            async for chunk in stream:
                text += chunk.choices[0].delta.content or "" if chunk.choices else ""
            assert text == whole.choices[0].message.content
            with pytest.raises(openai.NotFoundError):
                await sdk.chat.completions.create(**{**BODY, "model": "gpt-9"})  # type: ignore[call-overload]


async def test_change_of_a_token_is_in_the_trailers(world: World) -> None:
    token = await world.purse.fund(50)
    async with NostrClient([world.relay.url]) as client:
        transport = NostrTransport(client, world.node.keys.npub)
        async with httpx.AsyncClient(transport=transport) as http:
            answer = await http.post(
                "http://node/v1/chat/completions",
                json={**BODY, "stream": True},
                headers={"x-cashu": token, "x-cashu-change": "event"},
            )
    assert answer.status_code == 200
    trailers = answer.extensions["trailers"]
    cost = -(-int(trailers["x-cost-msat"]) // 1000)
    assert await world.purse.receive(trailers["x-cashu"]) == 50 - cost


async def test_silence_is_httpxs_own_timeout(world: World) -> None:
    nobody = "0" * 63 + "1"
    async with NostrClient([world.relay.url]) as client:
        transport = NostrTransport(client, nobody, timeout_s=0.3)
        async with httpx.AsyncClient(transport=transport) as http:
            with pytest.raises(httpx.ReadTimeout):
                await http.get("http://node/v1/models")
