"""Promise: the ``openai`` SDK works against a node as against any other server."""

from __future__ import annotations

import httpx
import openai
import pytest

from tests.e2e.conftest import BODY, World


def client(world: World, key: str, **options: object) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{world.node.url}/v1", api_key=key, **options)  # type: ignore[arg-type]


async def open_account(world: World, amount: int) -> str:
    async with httpx.AsyncClient() as http:
        answer = await http.post(
            f"{world.node.url}/v1/wallet/create",
            json={"cashu_token": await world.purse.fund(amount)},
        )
    assert answer.status_code == 200
    document = answer.json()
    assert document["balance"] == amount
    return str(document["api_key"])


async def test_chat_and_stream_with_a_key_cost_what_the_price_says(world: World) -> None:
    key = await open_account(world, 100)
    async with client(world, key) as sdk:
        whole = await sdk.chat.completions.create(**BODY)  # type: ignore[call-overload]
        assert whole.usage is not None
        cost = 100 + 10 * whole.usage.prompt_tokens + 20 * whole.usage.completion_tokens
        assert whole.usage.model_extra["cost"] == cost
        text, usages = "", []
        stream = await sdk.chat.completions.create(  # type: ignore[call-overload]
            **BODY, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            if chunk.usage is not None:
                usages.append(chunk.usage)
            for choice in chunk.choices:
                text += choice.delta.content or ""
        assert text == whole.choices[0].message.content
        assert [usage.model_extra["cost"] for usage in usages] == [cost]
        stream = await sdk.chat.completions.create(**BODY, stream=True)  # type: ignore[call-overload]
        assert [chunk.usage async for chunk in stream if chunk.usage] == []
        models = await sdk.models.list()
        assert [model.id for model in models.data] == ["demo"]
        assert (await sdk.models.retrieve("demo")).id == "demo"
    books = await world.quiet_books()
    assert (books.revenue_msat, books.open_msat) == (3 * cost, 100_000 - 3 * cost)


async def test_a_token_is_a_key(world: World) -> None:
    token = await world.purse.fund(50)
    async with client(world, token) as sdk:
        first = await sdk.chat.completions.create(**BODY)  # type: ignore[call-overload]
        again = await sdk.chat.completions.create(**BODY)  # type: ignore[call-overload]
    cost = first.usage.model_extra["cost"] + again.usage.model_extra["cost"]
    books = await world.quiet_books()
    assert (books.received_msat, books.open_msat) == (50_000, 50_000 - cost)


async def test_errors_are_the_sdks_own_and_are_not_retried(world: World) -> None:
    key = await open_account(world, 1)
    async with client(world, "sk-nobody") as sdk:
        with pytest.raises(openai.AuthenticationError) as denied:
            await sdk.chat.completions.create(**BODY)  # type: ignore[call-overload]
        assert denied.value.code == "invalid_api_key"
        assert denied.value.request_id
    async with client(world, key) as sdk:
        with pytest.raises(openai.NotFoundError) as unknown:
            await sdk.chat.completions.create(**{**BODY, "model": "gpt-9"})  # type: ignore[call-overload]
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.APIStatusError) as poor:
            await sdk.chat.completions.create(**{**BODY, "max_tokens": 60})  # type: ignore[call-overload]
        assert (poor.value.status_code, poor.value.code) == (402, "insufficient_balance")
        assert world.upstream.calls == 0
        async with client(world, await world.purse.fund(50)) as rich:
            world.upstream.fault = "status-500"
            with pytest.raises(openai.InternalServerError) as broken:
                await rich.chat.completions.create(**BODY)  # type: ignore[call-overload]
            assert (broken.value.status_code, broken.value.code) == (502, "upstream_error")
            assert world.upstream.calls == 1  # money had moved into a hold: no retry by itself
            world.upstream.fault = "cut"
            with pytest.raises(openai.APIError):
                stream = await rich.chat.completions.create(**BODY, stream=True)  # type: ignore[call-overload]
                async for _ in stream:
                    pass
    books = await world.quiet_books()
    assert books.held_msat == 0
    assert 0 < books.revenue_msat < 1_000  # of the stream that broke off, what was seen
