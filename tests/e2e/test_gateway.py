"""Promise: any program that speaks OpenAI's API buys through ``nodestr gateway``, over HTTP and
over Nostr, and what was put into the wallet is in it or was earned."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from node.demo.mint import EmbeddedMint
from tests.e2e.gateway_world import CHAT, MORE, GatewayWorld, open_gateway_world
from tests.e2e.shop import wav

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["http", "nostr"])
async def world(
    request: pytest.FixtureRequest, mint: EmbeddedMint, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[GatewayWorld]:
    async with AsyncExitStack() as stack:
        home = tmp_path_factory.mktemp("gateway")
        opened = await open_gateway_world(
            stack, mint, home, "--carriage", request.param, "--profile", "cheap", more=MORE
        )
        await opened.fund(500)
        await opened.start()
        yield opened
        await opened.gateway.stop()
        await opened.assert_conserved()


async def test_chat_costs_what_was_paid(world: GatewayWorld) -> None:
    async with world.gateway.sdk() as sdk:
        answer = await sdk.chat.completions.create(**CHAT)
    assert answer.choices[0].message.content.startswith("You asked: what do you sell")
    exact = 100 + 10 * answer.usage.prompt_tokens + 20 * answer.usage.completion_tokens
    assert answer.usage.model_extra["cost"] == -(-exact // 1000) * 1000  # change is whole sats


async def test_a_stream_is_the_same_and_holds_no_money(world: GatewayWorld) -> None:
    async with world.gateway.sdk() as sdk:
        whole = await sdk.chat.completions.create(**CHAT)
        text, usage = "", None
        stream = await sdk.chat.completions.create(
            **CHAT, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
    assert text == whole.choices[0].message.content
    assert usage is not None
    assert usage.model_extra["cost"] == whole.usage.model_extra["cost"]
    raw = await world.gateway.post("/v1/chat/completions", {**CHAT, "stream": True})
    assert b"x_cashu" not in raw.content
    assert raw.content.endswith(b"data: [DONE]\n\n")


async def test_tools_reach_the_model_as_they_are(world: GatewayWorld) -> None:
    tool: dict[str, Any] = {
        "type": "function",
        "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
    }
    async with world.gateway.sdk() as sdk:
        await sdk.chat.completions.create(**CHAT, tools=[tool], tool_choice="auto")
    sent = [call.body for server in world.upstreams for call in server.recorded]
    assert [body["tools"] for body in sent if "tools" in body] == [[tool]]


async def test_embeddings_images_and_recordings(world: GatewayWorld) -> None:
    async with world.gateway.sdk() as sdk:
        vectors = await sdk.embeddings.create(model="embedder", input=["a", "b"])
        assert len(vectors.data) == 2
        text = await sdk.audio.transcriptions.create(model="whisper", file=("a.wav", wav(0.5)))
        assert text.text
        images = await sdk.images.generate(model="dall-e", prompt="a cat")
        assert images.data


async def test_the_anthropic_dialect(world: GatewayWorld) -> None:
    answer = await world.gateway.post(
        "/v1/messages", {"model": "demo", "max_tokens": 20, "messages": CHAT["messages"]}
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["content"][0]["text"].startswith("You asked")
    assert answer.json()["usage"]["cost"] > 0


async def test_the_models_of_all_providers_are_listed_once(world: GatewayWorld) -> None:
    async with world.gateway.sdk() as sdk:
        names = [model.id for model in (await sdk.models.list()).data]
    assert sorted(names) == ["dall-e", "demo", "embedder", "whisper"]


async def test_an_unknown_model_and_a_mistake_are_told_and_cost_nothing(
    world: GatewayWorld,
) -> None:
    unknown = await world.gateway.post("/v1/chat/completions", {**CHAT, "model": "gpt-9"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    wrong = await world.gateway.post("/v1/chat/completions", {**CHAT, "max_tokens": "many"})
    assert wrong.status_code == 400


@pytest.mark.parametrize(
    ("header", "value"), [("Host", "evil.example.com"), ("Origin", "https://evil.example.com")]
)
async def test_web_pages_are_refused(world: GatewayWorld, header: str, value: str) -> None:
    answer = await world.gateway.post("/v1/chat/completions", CHAT, **{header: value})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden_origin")
