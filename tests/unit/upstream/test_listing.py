"""Every dialect's list of models is read with its prices, and nothing in one can do harm."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from fractions import Fraction
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from node.core.money import Msat
from node.core.plans import Listed
from node.core.pricing import Price
from node.core.tariff import Amount, Tariff
from node.upstream.balance import LOW, BalanceWatch
from node.upstream.dialects import DIALECTS, DialectName
from node.upstream.fetching import FetchFailed
from node.upstream.lane import Lane
from node.upstream.listing import FIRST_RETRY_S, Discovery, list_models, read_list
from node.upstream.server import UpstreamServer

RATE = Fraction(100_000)

OPENROUTER: dict[str, Any] = {
    "data": [
        {
            "id": "meta-llama/llama-3.3-70b-instruct",
            "canonical_slug": "meta-llama/llama-3.3-70b-instruct",
            "name": "Meta: Llama 3.3 70B Instruct",
            "created": 1733506137,
            "description": "The Meta Llama 3.3\nmultilingual model",
            "context_length": 131072,
            "architecture": {
                "modality": "text->text",
                "input_modalities": ["text"],
                "output_modalities": ["text"],
                "tokenizer": "Llama3",
            },
            "pricing": {
                "prompt": "0.00000013",
                "completion": "0.00000038",
                "request": "0",
                "image": "0",
                "web_search": "0",
                "internal_reasoning": "0",
                "input_cache_read": "0.00000003",
            },
            "top_provider": {
                "context_length": 65536,
                "max_completion_tokens": 16384,
                "is_moderated": False,
            },
            "supported_parameters": ["max_tokens", "temperature"],
        },
        {
            "id": "google/gemini-flash",
            "context_length": 1048576,
            "architecture": {
                "input_modalities": ["text", "image", "file", "audio", "video"],
                "output_modalities": ["text"],
            },
            "pricing": {
                "prompt": "0.0000003",
                "completion": "0.0000025",
                "image": "0.001238",
                "audio": "0.000001",
            },
            "top_provider": {"context_length": None, "max_completion_tokens": None},
        },
        {
            "id": "openrouter/auto",
            "context_length": 2000000,
            "pricing": {"prompt": "-1", "completion": "-1"},
        },
    ]
}


def only(dialect: DialectName, document: Any) -> Listed:
    (listed,) = read_list(dialect, document)
    return listed


def test_openrouter() -> None:
    llama, gemini = read_list("openrouter", OPENROUTER)
    assert llama.tariff is not None
    assert llama.tariff.price(RATE) == Price(
        Msat(130_000), Msat(380_000), cached_per_mtok=Msat(30_000)
    )
    assert (llama.context_length, llama.max_output_tokens) == (65_536, 16_384)
    assert llama.name == "Meta: Llama 3.3 70B Instruct"
    assert llama.description == "The Meta Llama 3.3 multilingual model"
    assert (llama.modalities, llama.created, llama.unmetered) == (("text",), 1733506137, ())
    assert gemini.modalities == ("text", "image", "audio")
    assert (gemini.context_length, gemini.max_output_tokens) == (1_048_576, 0)
    assert gemini.unmetered == ("image", "audio")


def test_vllm_and_what_is_compatible() -> None:
    document = {
        "object": "list",
        "data": [
            {
                "id": "Qwen/Qwen2.5-7B-Instruct",
                "object": "model",
                "created": 1700000000,
                "owned_by": "vllm",
                "root": "/models/qwen",
                "max_model_len": 32768,
                "permission": [{"id": "modelperm-1"}],
            }
        ],
    }
    expected = Listed("Qwen/Qwen2.5-7B-Instruct", context_length=32_768, created=1_700_000_000)
    assert only("vllm", document) == only("openai", document) == expected
    groq = {"data": [{"id": "x", "context_window": 8192, "max_completion_tokens": 1024}]}
    assert only("openai", groq) == Listed("x", context_length=8192, max_output_tokens=1024)


def test_ollama() -> None:
    document = {
        "models": [
            {
                "name": "llama3.2:latest",
                "model": "llama3.2:latest",
                "modified_at": "2025-05-04T17:37:44Z",
                "size": 2019393189,
                "digest": "a80c4f17acd5",
                "details": {"family": "llama", "parameter_size": "3.2B"},
            }
        ]
    }
    assert only("ollama", document) == Listed("llama3.2:latest")


def test_anthropic() -> None:
    document = {
        "data": [
            {
                "type": "model",
                "id": "claude-sonnet-4-5",
                "display_name": "Claude Sonnet 4.5",
                "created_at": "2025-09-29T00:00:00Z",
                "max_input_tokens": 200000,
                "max_tokens": 64000,
            }
        ],
        "has_more": False,
    }
    assert only("anthropic", document) == Listed(
        "claude-sonnet-4-5",
        name="Claude Sonnet 4.5",
        context_length=200_000,
        max_output_tokens=64_000,
    )


def test_azure() -> None:
    document = {
        "data": [
            {"id": "my-gpt", "model": "gpt-4o", "object": "deployment", "status": "succeeded"},
            {"id": "not-yet", "model": "gpt-4o", "object": "deployment", "status": "running"},
        ]
    }
    assert only("azure", document) == Listed("my-gpt")


def test_another_node() -> None:
    item: dict[str, Any] = {
        "id": "gpt-x",
        "name": "GPT X",
        "created": 1,
        "context_length": 8000,
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
        "pricing": {"prompt": 0.15, "completion": 0.6, "unit": "1k tokens", "currency": "sat"},
        "sats_pricing": {
            "prompt": Decimal("0.00015"),
            "completion": Decimal("0.0006"),
            "request": Decimal("2.0"),
            "image": Decimal("0.0"),
            "max_prompt_cost": Decimal("3.2"),
            "max_completion_cost": Decimal("2.6"),
            "max_cost": Decimal("3.8"),
        },
    }
    listed = only("routstr", {"data": [item]})
    assert listed.tariff is not None
    assert listed.tariff.price(None) == Price(Msat(150_000), Msat(600_000), Msat(2_000))
    images = item | {"architecture": {"output_modalities": ["image"]}}
    images["sats_pricing"] = {"prompt": 0, "completion": 0, "image": Decimal("40.5")}
    listed = only("routstr", {"data": [images]})
    assert listed.tariff is not None
    assert listed.tariff.price(None) == Price(per_image=Msat(40_500))
    assert (listed.output_modalities, listed.unmetered) == (("image",), ())
    vision = item | {"sats_pricing": {"prompt": 1, "completion": 1, "image": Decimal(3)}}
    assert only("routstr", {"data": [vision]}).unmetered == ("image",)


@pytest.mark.parametrize(
    "pricing",
    [None, {}, [], {"prompt": "1"}, {"prompt": "x", "completion": "1"},
     {"prompt": "1", "completion": "1", "request": "-0.1"}, {"prompt": True, "completion": "1"}],
)  # fmt: skip
def test_a_price_that_is_none_takes_the_model_off_the_list(pricing: Any) -> None:
    assert read_list("openrouter", {"data": [{"id": "a", "pricing": pricing}]}) == []


@pytest.mark.parametrize("document", [None, [], {}, {"data": None}, {"models": {}}, "x", 1])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_no_list(dialect: DialectName, document: Any) -> None:
    with pytest.raises(FetchFailed):
        read_list(dialect, document)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.decimals() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)
ITEM = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("id", "name", "model", "status", "created", "context_length", "max_model_len",
         "top_provider", "architecture", "display_name", "description"), JSON_VALUES
    )
    | {
        name: JSON_VALUES
        | st.dictionaries(
            st.sampled_from(["prompt", "completion", "image", "request", "odd"]), JSON_VALUES
        )
        for name in ("pricing", "sats_pricing")
    },
)  # fmt: skip


@given(st.sampled_from(DIALECTS), st.lists(JSON_VALUES | ITEM, max_size=4))
def test_any_list_is_read_within_bounds(dialect: DialectName, items: list[Any]) -> None:
    models = read_list(dialect, {"data": items, "models": items})
    assert len({model.id for model in models}) == len(models) <= len(items)
    for model in models:
        assert model.id.isascii()
        assert " " not in model.id
        assert 0 <= model.context_length <= 10**8
        assert (model.name + model.description).isprintable()
        if model.tariff is not None:
            price = model.tariff.price(RATE)
            assert price is None or 0 <= price.input_per_mtok < 2**53


class Site:
    """A server of documents by path."""

    def __init__(self) -> None:
        self.documents: dict[str, Any] = {}
        self.headers: dict[str, str] = {}
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.headers = {name.lower(): value for name, value in request.headers.items()}
        document = self.documents.get(request.raw_path)
        if document is None:
            return web.Response(status=404)
        return web.Response(text=json.dumps(document), content_type="application/json")


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    it = Site()
    app = web.Application()
    app.router.add_get("/{any:.*}", it.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        it.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield it
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("dialect", "base", "version", "path", "header"),
    [
        ("openai", "/v1", "", "/v1/models", "authorization"),
        ("vllm", "/v1", "", "/v1/models", "authorization"),
        ("openrouter", "/api/v1", "", "/api/v1/models", "authorization"),
        ("routstr", "", "", "/v1/models", "authorization"),
        ("ollama", "/v1", "", "/api/tags", "authorization"),
        ("anthropic", "", "", "/v1/models?limit=1000", "x-api-key"),
        ("azure", "", "", "/openai/v1/models", "api-key"),
        ("azure", "", "2024-10-21", "/openai/deployments?api-version=2024-10-21", "api-key"),
    ],
)
async def test_where_each_is_asked(
    dialect: DialectName, base: str, version: str, path: str, header: str
) -> None:
    price = {"prompt": "1", "completion": "1"}
    item = {"id": "m", "model": "m", "pricing": price, "sats_pricing": price}
    async with site() as server, aiohttp.ClientSession() as session:
        server.documents[path] = {"data": [item], "models": [item]}
        upstream = UpstreamServer(
            "u", session, server.url + base, api_key="sk-x", dialect=dialect, api_version=version
        )
        (listed,) = await list_models(upstream, timeout_s=5, max_bytes=10_000)
        assert listed.id == "m"
        assert "sk-x" in server.headers[header]
        with pytest.raises(FetchFailed, match="too large"):
            await list_models(upstream, timeout_s=5, max_bytes=20)


async def test_a_list_that_cannot_be_had_is_asked_for_again_sooner_and_sooner_kept() -> None:
    found: list[list[Listed] | None] = []
    async with site() as server, aiohttp.ClientSession() as session:
        upstream = UpstreamServer("u", session, server.url)
        discovery = Discovery(
            upstream, found.append, interval_s=3600, timeout_s=5, max_bytes=10_000
        )
        assert await discovery.refresh() == FIRST_RETRY_S
        assert await discovery.refresh() == 2 * FIRST_RETRY_S
        server.documents["/models"] = {"data": [{"id": "m"}]}
        assert await discovery.refresh() == 3600
        server.documents.clear()
        assert await discovery.refresh() == FIRST_RETRY_S
        assert found == [[Listed("m")]]


async def test_a_low_balance_is_noted() -> None:
    async with site() as server, aiohttp.ClientSession() as session:
        lane = Lane(UpstreamServer("u", session, server.url, api_key="sk-x", dialect="routstr"))
        watch = BalanceWatch(lane, Msat(1_000_000))
        for document, note in (
            (None, ""),
            ({"balance": 999_999}, LOW),
            ({"balance": "many"}, LOW),
            ({"balance": 1_000_000}, ""),
        ):
            server.documents = {"/v1/balance/info": document}
            async with asyncio.timeout(10):
                await watch.refresh()
            assert lane.trouble() == (note or None)
        assert server.headers["authorization"] == "Bearer sk-x"


def test_a_markup_is_on_every_price() -> None:
    tariff = Tariff({"input_per_mtok": Amount(Fraction(100)), "per_request": Amount(Fraction(1))})
    assert tariff.raised(Fraction("7.5")).price(None) == Price(Msat(108), per_request=Msat(2))
