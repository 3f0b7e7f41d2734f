"""The published prices are exactly the charged ones, in the shape the network's clients read."""

from __future__ import annotations

import math
from fractions import Fraction

import orjson
from hypothesis import given
from hypothesis import strategies as st

from node.core.catalog import Backend, Catalog, Model
from node.core.identity import NodeInfo
from node.core.money import Msat
from node.core.pricing import Price
from node.service.endpoints.catalogue import info_document, model_document, models_document

MODEL = Model(
    id="vendor/m",
    backends=(
        Backend("secret-upstream", Price(Msat(150_000), Msat(600_000), Msat(2_000)), "secret-name"),
    ),
    context_length=8_000,
    max_output_tokens=1_000,
    name="Model M",
    description="A model.",
    modalities=("text", "image"),
    created=1_700_000_000,
)


def bare(name: str, price: Price, context: int, output: int) -> Model:
    return Model(name, (Backend("u", price, name),), context, output)


def test_a_model() -> None:
    document = model_document(MODEL)
    assert document == {
        "id": "vendor/m",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "vendor",
        "name": "Model M",
        "description": "A model.",
        "context_length": 8_000,
        "architecture": {
            "modality": "text+image->text",
            "input_modalities": ["text", "image"],
            "output_modalities": ["text"],
            "tokenizer": "Other",
            "instruct_type": None,
        },
        "root": "vendor/m",
        "parent": None,
        "permission": [],
        "pricing": {"prompt": 0.15, "completion": 0.6, "unit": "1k tokens", "currency": "sat"},
        "sats_pricing": {
            "prompt": 0.00015,
            "completion": 0.0006,
            "request": 2.0,
            "image": 0.0,
            "max_prompt_cost": 3.2,
            "max_completion_cost": 2.6,
            "max_cost": 3.8,
        },
    }
    assert b"secret" not in orjson.dumps(document)


def test_a_bare_model_has_a_name_and_an_owner() -> None:
    document = model_document(bare("m", Price(Msat(1), Msat(1)), 10, 10))
    assert (document["name"], document["owned_by"]) == ("m", "nodestr")


PRICES = st.integers(0, 10**15).map(Msat)


@given(st.builds(Price, PRICES, PRICES, PRICES))
def test_published_prices_are_the_nearest_floats(price: Price) -> None:
    document = model_document(bare("m", price, 131_072, 8_192))
    exact = {
        "prompt": Fraction(price.input_per_mtok, 10**9),
        "completion": Fraction(price.output_per_mtok, 10**9),
        "request": Fraction(price.per_request, 1000),
    }
    for name, value in exact.items():
        published = document["sats_pricing"][name]
        assert math.isfinite(published)
        assert published == float(value)
    for name in ("prompt", "completion"):
        assert document["pricing"][name] == float(exact[name] * 1000)


def test_the_list_keeps_the_order_of_the_catalog() -> None:
    other = bare("a", Price(Msat(1), Msat(1)), 10, 10)
    document = models_document(Catalog([MODEL, other]))
    assert document["object"] == "list"
    assert [model["id"] for model in document["data"]] == ["vendor/m", "a"]
    assert models_document(Catalog([])) == {"object": "list", "data": []}


INFO = NodeInfo(
    name="n",
    about="about",
    version="1.2.3",
    npub="npub1x",
    mints=("https://mint",),
    pubkey_lock="02ab",
    http_urls=("https://a", "https://b"),
    onion_url="http://x.onion",
    relays=("wss://r",),
)


def test_info() -> None:
    assert info_document(INFO) == {
        "name": "n",
        "description": "about",
        "version": "1.2.3",
        "npub": "npub1x",
        "mints": ["https://mint"],
        "pubkey_lock": "02ab",
        "http_url": "https://a",
        "http_urls": ["https://a", "https://b"],
        "onion_url": "http://x.onion",
        "relays": ["wss://r"],
        "transports": ["http", "nostr"],
        "wraps": [21059, 1059],
    }


def test_a_node_without_url_is_reached_over_relays_only() -> None:
    document = info_document(NodeInfo("n", "", "1", "npub1x", relays=("wss://r",)))
    assert document["http_url"] is None
    assert document["transports"] == ["nostr"]


def test_a_node_without_relays_reads_no_wraps() -> None:
    document = info_document(NodeInfo("n", "", "1", "npub1x", onion_url="http://x.onion"))
    assert (document["transports"], document["wraps"]) == (["http"], [])
