"""The published prices are exactly the charged ones, in the shape the network's clients read."""

from __future__ import annotations

import math
from fractions import Fraction

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.catalog import Backend, Catalog, Model
from node.core.identity import NodeInfo
from node.core.money import Msat
from node.core.pricing import Price
from node.errors import ModelNotFound, PriceUnknown
from node.service.endpoints.catalogue import info_document, model_document, models_document
from node.service.shelf import MAX_MODELS
from node.upstream.listing import MAX_TEXT_CHARS

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


def test_what_is_priced_apart_is_published_apart() -> None:
    price = Price(
        Msat(150_000),
        Msat(600_000),
        cached_per_mtok=Msat(75_000),
        cache_write_per_mtok=Msat(0),
        per_image=Msat(40_500),
        per_audio_minute=Msat(6_000),
        per_mchar=Msat(15_000_000),
    )
    model = Model("m", (Backend("u", price, "m"),), 10, 10, output_modalities=("image", "audio"))
    document = model_document(model)
    published = document["sats_pricing"]
    assert (published["image"], published["audio_minute"]) == (40.5, 6.0)
    assert (published["input_cache_read"], published["input_cache_write"]) == (0.000075, 0.0)
    assert published["character"] == 0.015
    assert "internal_reasoning" not in published
    assert document["architecture"]["output_modalities"] == ["image", "audio"]
    assert document["architecture"]["modality"] == "text->image+audio"


def test_aliases_lead_to_the_model_and_are_not_listed() -> None:
    price = Price(Msat(1), Msat(1))
    model = Model("m", (Backend("u", price, "m"),), 10, 10, aliases=("n", "o"))
    other = bare("o", price, 10, 10)
    catalog = Catalog([model, other])
    assert catalog.get("n") is model
    assert catalog.get("o") is other, "an id is never hidden by an alias"
    assert [entry["id"] for entry in models_document(catalog)["data"]] == ["m", "o"]
    catalog.replace([other], {"m": 30, "n": 30})
    with pytest.raises(PriceUnknown):
        catalog.get("n")
    with pytest.raises(ModelNotFound):
        catalog.get("x")


def test_the_longest_list_is_below_a_mib() -> None:
    price = Price(*[Msat(123_456_789)] * 9)
    models = (
        Model(
            f"vendor-of-models/some-model-{i:04}-with-a-name-of-sixty-characters",
            (Backend("u", price, "m"),),
            131_072,
            8_192,
            name="Vendor: some model with a name of as many characters",
            description="x" * MAX_TEXT_CHARS,
            modalities=("text", "image", "audio"),
        )
        for i in range(MAX_MODELS)
    )
    assert len(orjson.dumps(models_document(Catalog(models)))) < 1 << 20


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
