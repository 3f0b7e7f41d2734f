"""Promise: with several upstreams paid requests go on while one lives, at the price of the one that
served; what is listed, announced and charged is one price, and without an exchange rate there is
none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from discovery.nostr.pool import RelayPool
from discovery.offers import parse_model_pages
from discovery.wire import KIND_MODEL_PAGE
from node.demo.model_server import ModelServer
from node.demo.nodes import DemoNode, Surroundings
from tests.e2e.conftest import BODY, OFFER, OpenWorld, World
from tests.e2e.test_openai_sdk import open_account
from tests.unit.upstream.test_rates import DOCUMENTS, Exchange, exchange

CHEAP = {"input_per_mtok_msat": 1_000_000, "output_per_mtok_msat": 2_000_000}
DEAR = {"input_per_mtok_msat": 10_000_000, "output_per_mtok_msat": 20_000_000}


@pytest.fixture
async def servers() -> AsyncIterator[list[ModelServer]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(ModelServer()) for _ in range(2)]


def document(**sections: Any) -> dict[str, str]:
    """Sections and lists of the settings, as variables of the environment."""
    variables = {}
    for section, value in sections.items():
        if isinstance(value, list):
            variables[f"NODESTR_{section.upper()}"] = json.dumps(value)
            continue
        for key, item in value.items():
            text = json.dumps(item) if isinstance(item, list) else str(item)
            variables[f"NODESTR_{section.upper()}__{key.upper()}"] = text
    return variables


def two(servers: Sequence[ModelServer]) -> dict[str, str]:
    return document(
        upstreams=[
            {"name": "near", "base_url": servers[0].url, "max_concurrency": 2},
            {"name": "far", "base_url": servers[1].url, "priority": 1},
        ],
        models=[
            {
                "id": "demo",
                "aliases": ["default"],
                "context_length": 8192,
                "max_output_tokens": 64,
                "backends": [{"upstream": "near", **CHEAP}, {"upstream": "far", **DEAR}],
            }
        ],
    )


async def ask(world: World, key: str, **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(timeout=30) as http:
        return await http.post(
            f"{world.node.url}/v1/chat/completions",
            headers={"authorization": f"Bearer {key}"},
            json={**BODY, **more},
        )


def cost(answer: httpx.Response, prices: dict[str, int]) -> int:
    """What ``answer`` must have cost at ``prices``, in msat, and says it did."""
    usage = answer.json()["usage"]
    expected: int = (
        usage["prompt_tokens"] * prices["input_per_mtok_msat"]
        + usage["completion_tokens"] * prices["output_per_mtok_msat"]
    ) // 1_000_000
    assert usage["cost"] == expected
    return expected


async def test_one_upstream_is_killed_and_paid_requests_go_on(
    open_world: OpenWorld, servers: list[ModelServer]
) -> None:
    world = await open_world(environment=two(servers))
    key = await open_account(world, 1_000)
    spent = 0
    async with httpx.AsyncClient() as http:
        (listed,) = (await http.get(f"{world.node.url}/v1/models")).json()["data"]
        assert listed["sats_pricing"]["prompt"] == 0.01, "the dearest is announced"
        assert (await http.get(f"{world.node.url}/v1/models/default")).json()["id"] == "demo"

    spent += cost(await ask(world, key), CHEAP)
    spent += cost(await ask(world, key, model="default"), CHEAP)
    await servers[0].stop()
    for _ in range(7):
        answer = await ask(world, key)
        assert answer.status_code == 200
        spent += cost(answer, DEAR)
    answers = await asyncio.gather(*(ask(world, key) for _ in range(4)))
    spent += sum(cost(answer, DEAR) for answer in answers)
    async with httpx.AsyncClient() as http:
        ready = await http.get(f"{world.node.url}/health/ready")
        assert ready.status_code == 200
        assert ready.json()["checks"]["upstream near"] == "does not answer"
        assert ready.json()["checks"]["upstream far"] == "ok"

    servers[1].fault = "status-500"
    refused = await ask(world, key)
    assert refused.status_code in (502, 503)
    books = await world.quiet_books()
    assert (books.revenue_msat, books.held_msat) == (spent, 0)
    await world.assert_coins_are_real()


async def test_a_token_pays_the_one_that_served(
    open_world: OpenWorld, servers: list[ModelServer]
) -> None:
    world = await open_world(environment=two(servers))
    servers[0].fault = "drop"
    token = await world.purse.fund(20)
    async with httpx.AsyncClient(timeout=30) as http:
        answer = await http.post(
            f"{world.node.url}/v1/chat/completions", headers={"x-cashu": token}, json=BODY
        )
    assert answer.status_code == 200
    paid = cost(answer, DEAR)
    change = await world.purse.receive(answer.headers["x-cashu"])
    assert 20_000 - change * 1000 - paid in range(1000), "less than a sat is not paid out"
    assert (await world.quiet_books()).revenue_msat >= paid


async def test_a_node_sells_what_another_node_sells(open_world: OpenWorld, tmp_path: Path) -> None:
    world = await open_world()
    there = await open_account(world, 500)
    peer = {
        "name": "peer",
        "base_url": world.node.url,
        "dialect": "routstr",
        "api_key": "env:PEER_KEY",
        "discover": True,
        "markup_percent": "10",
        "default_max_output_tokens": 64,
    }
    reseller = DemoNode(
        "reseller",
        OFFER,
        Surroundings(world.mint.url, world.relay.url, world.node.url),
        tmp_path / "reseller",
        environment=document(upstreams=[peer], models=[]) | {"PEER_KEY": there},
    )
    async with reseller:
        here = World(reseller, world.mint, world.relay, world.upstream, world.purse)
        key = await open_account(here, 100)
        async with httpx.AsyncClient() as http:
            (model,) = (await http.get(f"{reseller.url}/v1/models")).json()["data"]
            assert model["sats_pricing"]["prompt"] == 0.011
            ready = await http.get(f"{reseller.url}/health/ready")
            assert ready.json()["checks"]["upstream peer"] == "low balance"
        answer = await ask(here, key)
        usage = answer.json()["usage"]
        counted = 10 * usage["prompt_tokens"] + 20 * usage["completion_tokens"] + 100
        assert usage["cost"] == counted * 11 // 10
        streamed = await ask(here, key, stream=True)
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert (await here.quiet_books()).revenue_msat == 2 * usage["cost"]
    assert (await world.quiet_books()).revenue_msat == 2 * counted
    assert there not in reseller.log_file.read_text()


@pytest.fixture
async def market() -> AsyncIterator[Exchange]:
    async with exchange() as it:
        yield it


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(40):
        while not await what():
            await asyncio.sleep(0.05)


def say(market: Exchange, rate: str) -> None:
    market.answers["coinbase"] = json.dumps({"data": {"amount": rate}})
    market.answers["bitstamp"] = json.dumps({"last": rate})


async def test_listed_models_at_usd_prices_are_sold_at_what_a_bitcoin_costs_now(
    open_world: OpenWorld, servers: list[ModelServer], market: Exchange
) -> None:
    assert set(DOCUMENTS) >= {"coinbase", "bitstamp"}
    say(market, "100000")
    servers[0].models = servers[1].models = ("demo", "other")
    listing: Any = {
        "dialect": "vllm",
        "discover": True,
        "exclude": ["other"],
        "default_input_per_mtok_usd": "2",
        "default_output_per_mtok_usd": "4",
        "default_context_length": 8192,
        "default_max_output_tokens": 64,
    }
    world = await open_world(
        environment=document(
            upstreams=[
                {"name": name, "base_url": server.url, **listing}
                for name, server in zip(("near", "far"), servers, strict=True)
            ],
            models=[],
            rates={
                "sources": [
                    {"url": f"{market.url}/coinbase", "path": "data.amount"},
                    {"url": f"{market.url}/bitstamp", "path": "last"},
                ],
                "interval_s": 0.2,
                "max_age_s": 6,
                "min_change_percent": 1,
            },
        )
    )
    key = await open_account(world, 1_000)
    relays = RelayPool([world.relay.url])

    async def listed() -> list[tuple[str, float]]:
        async with httpx.AsyncClient() as http:
            models = (await http.get(f"{world.node.url}/v1/models")).json()["data"]
        return [(model["id"], model["sats_pricing"]["prompt"]) for model in models]

    async def announced() -> list[tuple[str, int]]:
        pages = await relays.query(
            [{"kinds": [KIND_MODEL_PAGE], "authors": [world.node.keys.pubkey]}], timeout_s=5
        )
        return [(o.id, o.input_per_mtok) for o in parse_model_pages(pages) or []]

    async def now_listed(*expected: tuple[str, float]) -> None:
        async def check() -> bool:
            return await listed() == list(expected)

        await until(check)

    async def now_announced(*expected: tuple[str, int]) -> None:
        async def check() -> bool:
            return await announced() == list(expected)

        await until(check)

    def prices(usd_sat: int) -> dict[str, int]:
        return {
            "input_per_mtok_msat": 2_000 * usd_sat,
            "output_per_mtok_msat": 4_000 * usd_sat,
        }

    async with relays:
        await now_listed(("demo", 0.002))
        await now_announced(("demo", 2_000_000))
        spent = cost(await ask(world, key), prices(1_000))

        say(market, "100900")  # less than a percent: nothing changes
        asked = len(market.asked)
        while len(market.asked) < asked + 4:
            await asyncio.sleep(0.05)
        spent += cost(await ask(world, key), prices(1_000))

        say(market, "50000")
        await now_listed(("demo", 0.004))
        spent += cost(await ask(world, key), prices(2_000))
        await now_announced(("demo", 4_000_000))

        market.answers = dict.fromkeys(market.answers, 503)
        await now_listed()
        refused = await ask(world, key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "price_unknown")
        assert refused.headers["retry-after"] == "30"
        await now_announced()
        async with httpx.AsyncClient() as http:
            ready = await http.get(f"{world.node.url}/health/ready")
            assert ready.status_code == 503
            assert ready.json()["checks"]["exchange rate"] == "not known"

        say(market, "50000")
        await now_listed(("demo", 0.004))
        spent += cost(await ask(world, key), prices(2_000))
    assert (await world.quiet_books()).revenue_msat == spent
