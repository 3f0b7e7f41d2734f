"""Promise: the ``anthropic`` SDK works against a node, whether the server speaks its dialect
or only chat."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import pytest

from tests.e2e.conftest import OpenWorld, World
from tests.e2e.test_openai_sdk import open_account
from tests.e2e.test_responses import settings, spent
from tests.fakes.dialect_server import THOUGHT, TOOL_INPUT, DialectServer

HELLO: Any = [{"role": "user", "content": "one two"}]
TOOL: Any = {
    "name": "weather",
    "description": "The weather somewhere.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
MODELS = ("native", "chatty")


@pytest.fixture
async def servers() -> AsyncIterator[dict[str, DialectServer]]:
    async with (
        DialectServer(dialects=("messages",), piece_bytes=13) as native,
        DialectServer(dialects=("chat",), piece_bytes=13, line_end="\r\n") as chatty,
    ):
        yield {"native": native, "chatty": chatty}


@pytest.fixture
async def world(open_world: OpenWorld, servers: dict[str, DialectServer]) -> AsyncIterator[World]:
    opened = await open_world(
        environment=settings(
            native=(servers["native"], "anthropic", ["messages"]),
            chatty=(servers["chatty"], "openai", ["chat", "messages"]),
        )
    )
    yield opened
    opened.books()


def client(world: World, key: str, **options: Any) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=world.node.url, api_key=key, **options)


def cost_of(usage: Any, start: Any = None) -> int:
    """``start``: the usage at a stream's start, where its end tells the output only."""
    counted = usage if usage.input_tokens is not None else start
    prompt = counted.input_tokens + (counted.cache_read_input_tokens or 0)
    cost: int = usage.model_extra["cost"]
    assert cost == 100 + 10 * prompt + 20 * usage.output_tokens
    return cost


async def test_create_and_stream_cost_what_the_price_says(world: World) -> None:
    for model in MODELS:
        costs: list[int] = []
        async with client(world, await open_account(world, 300)) as sdk, spent(world, costs):
            ask: Any = {"model": model, "max_tokens": 30, "messages": HELLO, "system": "be brief"}
            whole = await sdk.messages.create(**ask)
            assert [block.to_dict() for block in whole.content] == [
                {"type": "text", "text": "You said: one two"}
            ]
            assert (whole.stop_reason, whole.usage.cache_read_input_tokens) == ("end_turn", 1)
            costs.append(cost_of(whole.usage))
            kinds, start = [], None
            async for event in await sdk.messages.create(**ask, stream=True):
                kinds.append(event.type)
                if event.type == "message_start":
                    start = event.message.usage
                if event.type == "message_delta":
                    costs.append(cost_of(event.usage, start))
            assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
            async with sdk.messages.stream(**ask) as stream:
                text = "".join([piece async for piece in stream.text_stream])
                final = await stream.get_final_message()
            assert text == "You said: one two"
            assert (final.content[0].text, final.stop_reason) == (text, "end_turn")  # type: ignore[union-attr]
            assert final.usage.output_tokens == whole.usage.output_tokens
            costs.append(costs[-1])
            part = await sdk.messages.create(**{**ask, "max_tokens": 2})
            assert (part.stop_reason, part.content[0].text) == ("max_tokens", "You said:")  # type: ignore[union-attr]
            costs.append(cost_of(part.usage))


async def test_tools_round_trip(world: World) -> None:
    for model in MODELS:
        async with client(world, await open_account(world, 300)) as sdk:
            messages = list(HELLO)
            ask: Any = {"model": model, "max_tokens": 30, "tools": [TOOL]}
            first = await sdk.messages.create(messages=messages, **ask)
            (call,) = first.content
            assert first.stop_reason == "tool_use"
            assert (call.type, call.input) == ("tool_use", TOOL_INPUT)  # type: ignore[union-attr]
            async with sdk.messages.stream(messages=messages, **ask) as stream:
                streamed = await stream.get_final_message()
            assert streamed.content == first.content
            result = {"type": "tool_result", "tool_use_id": call.id, "content": "warm"}  # type: ignore[union-attr]
            messages += [
                {"role": "assistant", "content": first.content},
                {"role": "user", "content": [result]},
            ]
            second = await sdk.messages.create(messages=messages, **ask)
            assert second.content[0].text == "You said: warm"  # type: ignore[union-attr]


async def test_thinking_and_images(world: World) -> None:
    for model in MODELS:
        image = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
        blocks = [{"type": "image", "source": image}, {"type": "text", "text": "look"}]
        ask: Any = {
            "model": model,
            "max_tokens": 60,
            "messages": [{"role": "user", "content": blocks}],
            "thinking": {"type": "enabled", "budget_tokens": 30},
        }
        async with client(world, await open_account(world, 500)) as sdk:
            whole = await sdk.messages.create(**ask)
            async with sdk.messages.stream(**ask) as stream:
                final = await stream.get_final_message()
        for message in (whole, final):
            thinking, text = message.content
            assert (thinking.type, thinking.thinking) == ("thinking", THOUGHT)  # type: ignore[union-attr]
            assert text.text == "You said: look"  # type: ignore[union-attr]


async def test_a_token_is_a_key_and_change_comes_in_the_stream(world: World) -> None:
    for model in MODELS:
        ask: Any = {"model": model, "max_tokens": 30, "messages": HELLO}
        async with client(world, await world.purse.fund(100)) as sdk:
            assert (await sdk.messages.create(**ask)).content[0].text == "You said: one two"  # type: ignore[union-attr]
        paying = {"X-Cashu": await world.purse.fund(100), "X-Cashu-Change": "event"}
        async with client(world, "none", default_headers=paying) as sdk:
            events = [event async for event in await sdk.messages.create(**ask, stream=True)]
        (delta,) = [event for event in events if event.type == "message_delta"]
        assert delta.model_extra is not None
        assert delta.model_extra["x_cashu"].startswith("cashuB")


async def test_the_clients_key_stays_here_and_its_version_goes_on_to_its_own_dialect(
    world: World, servers: dict[str, DialectServer]
) -> None:
    key = await open_account(world, 300)
    async with client(world, key) as sdk:
        for model in servers:
            await sdk.messages.create(model=model, max_tokens=5, messages=HELLO)
    for name, server in servers.items():
        ((headers, _),) = server.calls
        names = {header.lower() for header in headers}
        assert ("anthropic-version" in names) == (name == "native")
        assert key not in str(headers)
    async with httpx.AsyncClient(headers={"x-api-key": key}) as http:
        balance = await http.get(f"{world.node.url}/v1/wallet/balance")
    assert balance.status_code == 200


async def test_what_goes_wrong_is_an_error_of_the_sdk(
    world: World, servers: dict[str, DialectServer]
) -> None:
    for model in MODELS:
        ask: Any = {"model": model, "max_tokens": 30, "messages": HELLO}
        async with client(world, "sk-nobody") as sdk:
            with pytest.raises(anthropic.AuthenticationError) as denied:
                await sdk.messages.create(**ask)
        assert denied.value.request_id or denied.value.response.headers["x-request-id"]
        async with client(world, await open_account(world, 1)) as sdk:
            with pytest.raises(anthropic.APIStatusError) as poor:
                await sdk.messages.create(**ask)
        assert poor.value.status_code == 402
        assert poor.value.body["error"]["code"] == "insufficient_balance"  # type: ignore[index]
        async with client(world, await open_account(world, 300), max_retries=0) as sdk:
            with pytest.raises(anthropic.NotFoundError):
                await sdk.messages.create(**{**ask, "model": "gpt-9"})
            with pytest.raises(anthropic.BadRequestError):
                await sdk.messages.create(
                    **ask, tools=[{"type": "web_search_20250305", "name": "s"}]
                )
            with pytest.raises(anthropic.NotFoundError):
                await sdk.messages.count_tokens(model=model, messages=HELLO)
            assert not servers[model].calls
            for servers[model].fault in ("cut", "error-event"):
                with pytest.raises((anthropic.APIError, httpx.RemoteProtocolError)) as broken:
                    async for _ in await sdk.messages.create(**ask, stream=True):
                        pass
                assert isinstance(broken.value, anthropic.APIError)
                assert broken.value.body["error"]["code"] == "upstream_error"  # type: ignore[index]
                assert "secret" not in str(broken.value)
            servers[model].fault = "no-usage"
            counted = await sdk.messages.create(**ask)
            assert counted.usage.model_extra is not None
            assert counted.usage.model_extra["estimated"] is True
            cost_of(counted.usage)
            async with sdk.messages.stream(**ask) as stream:
                streamed = await stream.get_final_message()
            assert streamed.usage.output_tokens > 0
        assert (await world.quiet_books()).held_msat == 0
