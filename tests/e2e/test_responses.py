"""Promise: ``client.responses`` of the ``openai`` SDK works against a node and costs its price."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import OpenWorld, World
from tests.e2e.test_openai_sdk import client, open_account
from tests.fakes.dialect_server import TOOL_INPUT, DialectServer

PRICES = {
    "input_per_mtok_msat": 10_000_000,
    "output_per_mtok_msat": 20_000_000,
    "per_request_msat": 100,
}
TOOL = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def settings(**upstreams: tuple[DialectServer, str, list[str]]) -> dict[str, str]:
    """Upstreams in the place of a world's own: name → (server, dialect, endpoints of its model,
    which has the upstream's name)."""
    return {
        "NODESTR_UPSTREAMS": json.dumps([
            {"name": name, "base_url": server.url, "dialect": dialect}
            for name, (server, dialect, _) in upstreams.items()
        ]),
        "NODESTR_MODELS": json.dumps([
            {
                "id": name,
                "upstream": name,
                "context_length": 8192,
                "max_output_tokens": 64,
                "endpoints": endpoints,
                **PRICES,
            }
            for name, (_, _, endpoints) in upstreams.items()
        ]),
    }  # fmt: skip


@pytest.fixture
async def upstream() -> AsyncIterator[DialectServer]:
    async with DialectServer(dialects=("responses",), piece_bytes=11) as server:
        yield server


@pytest.fixture
async def world(open_world: OpenWorld, upstream: DialectServer) -> AsyncIterator[World]:
    opened = await open_world(environment=settings(echo=(upstream, "openai", ["responses"])))
    yield opened
    opened.books()


def cost_of(usage: Any) -> int:
    cost: int = usage.model_extra["cost"]
    assert cost == 100 + 10 * usage.input_tokens + 20 * usage.output_tokens
    return cost


@asynccontextmanager
async def spent(world: World, costs: list[int]) -> AsyncIterator[None]:
    """What is done inside costs what it says."""
    before = (await world.quiet_books()).revenue_msat
    yield
    books = await world.quiet_books()
    assert (books.revenue_msat - before, books.held_msat) == (sum(costs), 0)


async def test_create_and_stream_cost_what_the_price_says(
    world: World, upstream: DialectServer
) -> None:
    key = await open_account(world, 200)
    costs: list[int] = []
    async with client(world, key) as sdk, spent(world, costs):
        whole = await sdk.responses.create(model="echo", input="one two", instructions="brief")
        assert (whole.output_text, whole.status) == ("You said: one two", "completed")
        costs.append(cost_of(whole.usage))
        text, kinds = "", []
        stream = await sdk.responses.create(
            model="echo", input="one two", instructions="brief", stream=True
        )
        async for event in stream:
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type == "response.completed":
                costs.append(cost_of(event.response.usage))
        assert text == whole.output_text
        assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
        async with sdk.responses.stream(model="echo", input="one two three") as helped:
            final = await helped.get_final_response()
        assert final.output_text == "You said: one two three"
        costs.append(cost_of(final.usage))
        part = await sdk.responses.create(model="echo", input="one two", max_output_tokens=2)
        assert (part.status, part.output_text) == ("incomplete", "You said:")
        costs.append(cost_of(part.usage))
    assert [body["store"] for _, body in upstream.calls] == [False] * 4
    assert [body["max_output_tokens"] for _, body in upstream.calls] == [64, 64, 64, 2]


async def test_tools_round_trip(world: World) -> None:
    costs: list[int] = []
    async with client(world, await open_account(world, 200)) as sdk, spent(world, costs):
        given: list[Any] = [{"role": "user", "content": "what is it like there"}]
        first = await sdk.responses.create(model="echo", input=given, tools=[TOOL])  # type: ignore[list-item]
        (call,) = first.output
        assert (call.type, json.loads(call.arguments)) == ("function_call", TOOL_INPUT)  # type: ignore[union-attr]
        costs.append(cost_of(first.usage))
        stream = await sdk.responses.create(model="echo", input=given, tools=[TOOL], stream=True)  # type: ignore[call-overload]
        events = [event async for event in stream]
        written = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
        assert json.loads("".join(written)) == TOOL_INPUT
        costs.append(cost_of(events[-1].response.usage))
        given += [call.to_dict(), {
            "type": "function_call_output", "call_id": call.call_id, "output": "warm"  # type: ignore[union-attr]
        }]  # fmt: skip
        second = await sdk.responses.create(model="echo", input=given, tools=[TOOL])  # type: ignore[list-item]
        assert second.output_text == "You said: warm"
        costs.append(cost_of(second.usage))


async def test_a_token_is_a_key_and_change_comes_in_the_stream(world: World) -> None:
    token = await world.purse.fund(100)
    async with client(world, token) as sdk:
        whole = await sdk.responses.create(model="echo", input="hi")
        assert whole.output_text == "You said: hi"
    paying = {"X-Cashu": await world.purse.fund(300), "X-Cashu-Change": "event"}
    async with client(world, "none", default_headers=paying) as sdk:
        stream = await sdk.responses.create(model="echo", input="hi", stream=True)
        events = [event async for event in stream]
    change = events[-1].model_extra["x_cashu"]  # type: ignore[index]
    assert change.startswith("cashuB")


async def test_what_goes_wrong_is_an_error_of_the_sdk(
    world: World, upstream: DialectServer
) -> None:
    async with client(world, await open_account(world, 300), max_retries=0) as sdk:
        for refused in (
            {"previous_response_id": "resp_1"},
            {"background": True},
            {"tools": [{"type": "web_search"}]},
        ):
            with pytest.raises(openai.BadRequestError) as told:
                await sdk.responses.create(model="echo", input="hi", **refused)  # type: ignore[call-overload]
            assert told.value.param.split("[")[0] == next(iter(refused))
        assert not upstream.calls
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.retrieve("resp_1")
        for upstream.fault in ("cut", "error-event"):
            with pytest.raises(openai.APIError) as broken:
                async for _ in await sdk.responses.create(model="echo", input="hi", stream=True):
                    pass
            assert broken.value.code == "upstream_error"
            assert "secret" not in str(broken.value)
        upstream.fault = "failed"
        events = [e async for e in await sdk.responses.create(model="echo", input="x", stream=True)]
        assert events[-1].type == "response.failed"
        assert "secret" not in events[-1].response.error.message  # type: ignore[union-attr]
        before = (await world.quiet_books()).revenue_msat
        with pytest.raises(openai.InternalServerError):
            await sdk.responses.create(model="echo", input="hi")
        assert (await world.quiet_books()).revenue_msat == before  # nothing came, nothing charged
        upstream.fault = "no-usage"
        counted = await sdk.responses.create(model="echo", input="hi")
        assert counted.usage is not None
        assert counted.usage.model_extra is not None
        assert counted.usage.model_extra["estimated"] is True
        cost_of(counted.usage)
    assert (await world.quiet_books()).held_msat == 0


async def test_a_stream_is_sse_without_done(world: World) -> None:
    key = await open_account(world, 100)
    async with httpx.AsyncClient() as http:
        answer = await http.post(
            f"{world.node.url}/v1/responses",
            headers={"authorization": f"Bearer {key}"},
            json={"model": "echo", "input": "hi", "stream": True},
        )
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "[DONE]" not in answer.text
    assert ": keep-alive\n\n" in answer.text
    assert answer.text.count("event: response.completed") == 1
