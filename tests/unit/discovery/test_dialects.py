"""Whatever dialect an announcement or a list of models is written in, its models and prices are
read rightly, never cheaper than they are, and hostile input is passed over."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.announcement import KIND_PROVIDER, Announcement, parse_provider_event
from discovery.dialects import read_models
from discovery.errors import InvalidAnnouncement
from discovery.nostr.keys import Keys
from discovery.offers import MAX_PRICE, ModelOffer, OtherPrices

NOW = 1_790_000_000
KEYS = Keys.generate()


def announced(content: object, *tags: tuple[str, ...], d: str = "d") -> Announcement:
    text = content if isinstance(content, str) else orjson.dumps(content).decode()
    return parse_provider_event(KEYS.sign(KIND_PROVIDER, text, [("d", d), *tags], NOW), now=NOW)


def one(**fields: Any) -> ModelOffer:
    (offer,) = read_models([{"id": "m", **fields}])
    return offer


def test_sats_pricing_is_sat_per_token() -> None:
    offer = one(
        name="M",
        context_length=8_192,
        top_provider={"max_completion_tokens": 1_024},
        architecture={"input_modalities": ["text", "image"], "output_modalities": ["text"]},
        sats_pricing={"prompt": 0.00125, "completion": 0.005, "request": 0.1, "image": 0},
        pricing={"prompt": 1, "completion": 1},
    )
    assert offer == ModelOffer(
        "m", "M", 1_250_000, 5_000_000, 100, 8_192, 1_024, ("text", "image"), ("chat",)
    )


def test_pricing_in_sat_per_1k_counts_when_it_says_so() -> None:
    said = {"prompt": "1.5", "completion": 2, "unit": "1k tokens", "currency": "sat"}
    offer = one(pricing=said)
    assert (offer.input_per_mtok, offer.output_per_mtok, offer.priced) == (
        1_500_000,
        2_000_000,
        True,
    )
    # dollars per token, as the network's nodes show beside it, are no price in sat
    assert not one(pricing={"prompt": 0.000001, "completion": 0.000002}).priced
    assert not one(pricing=said | {"currency": "usd"}).priced


def test_prices_that_only_some_models_have_are_read() -> None:
    table = {
        "prompt": 0.001,
        "completion": 0.002,
        "input_cache_read": 0.0005,
        "input_cache_write": 0,
        "internal_reasoning": "junk",
        "image": 3,
        "audio_minute": 1.5,
        "character": 0.00001,
    }
    (offer,) = read_models([{"id": "m", "sats_pricing": table}])
    assert offer.other == OtherPrices(500_000, None, None, 3_000, 1_500, 10_000)


def test_a_price_is_rounded_up() -> None:
    offer = one(sats_pricing={"prompt": 1e-10, "completion": 0.0000000011})
    assert (offer.input_per_mtok, offer.output_per_mtok) == (1, 2)


@pytest.mark.parametrize(
    "bad",
    [-1, -0.001, True, None, "x", "", "NaN", "Infinity", 1e300, "9" * 50, [], {}, 2**53],
)
def test_what_is_no_price_makes_no_offer(bad: object) -> None:
    assert not one(sats_pricing={"prompt": bad, "completion": 1}).priced
    assert not one(sats_pricing={"prompt": 1, "completion": bad}).priced
    assert not one(sats_pricing={"completion": 1}).priced


def test_free_is_free_only_when_nothing_else_costs() -> None:
    assert one(sats_pricing={"prompt": 0, "completion": 0}).priced
    assert not one(sats_pricing={"prompt": 0, "completion": 0, "image": 20}).priced


def test_disabled_nameless_and_surplus_models_are_left_out() -> None:
    entries: list[object] = [{"id": "off", "enabled": False}, {"id": ""}, {"id": "a\n"}, {}, 7]
    entries += [{"id": "twice"}, "twice", *(f"m{n}" for n in range(10))]
    assert [o.id for o in read_models({"data": entries}, max_models=10)] == [
        "twice",
        "m0",
        "m1",
        "m2",
    ]
    assert read_models({"data": "x"}) == read_models(None) == read_models("x") == ()


def test_the_old_models_tags() -> None:
    said = announced(
        "",
        ("u", "https://a.example/v1/"),
        ("models", "gpt-4o", "claude-3-5-sonnet", "bad\u202eid"),
        ("model", "llama-3"),
        ("model-cap", "gpt-4o", "max_tokens:128000,vision:true,tools:true"),
    )
    assert [o.id for o in said.models] == ["gpt-4o", "claude-3-5-sonnet", "llama-3"]
    assert not any(o.priced for o in said.models)
    assert (said.models[0].context, said.models[0].modalities) == (128_000, ("text", "image"))
    assert said.urls == ("https://a.example",)


def test_a_json_content_directory() -> None:
    said = announced(
        {
            "name": "dir",
            "endpoint_url": "https://b.example/v1",
            "mint_urls": ["https://mint.example"],
            "models": [
                "bare",
                {"id": "full", "sats_pricing": {"prompt": 0.001, "completion": 0.002}},
            ],
        }
    )
    assert said.name == "dir"
    assert said.urls == ("https://b.example",)
    assert said.mints == ("https://mint.example",)
    assert [(o.id, o.input_per_mtok, o.priced) for o in said.models] == [
        ("bare", 0, False),
        ("full", 1_000_000, True),
    ]


def test_another_projects_use_of_the_kind_is_still_no_provider() -> None:
    with pytest.raises(InvalidAnnouncement):
        announced({"url": "https://lnproxy.example", "name": "a proxy"})


_KEYS = ["id", "name", "models", "data", "sats_pricing", "pricing", "prompt", "completion"]
_KEYS += ["request", "architecture", "input_modalities", "top_provider", "context_length"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(_KEYS),
            inner,
            max_size=6,
        )
    ),
    max_leaves=25,
)


@given(json_values)
def test_nothing_that_json_can_hold_breaks_the_reader(document: object) -> None:
    for offer in read_models(document):
        assert offer.id
        assert all(0 <= price <= MAX_PRICE for price in offer[2:7])


@given(st.decimals(min_value=0, max_value=1, places=15), st.decimals(0, 1, places=15))
def test_nobody_is_shown_less_than_he_pays(prompt: Decimal, completion: Decimal) -> None:
    offer = one(sats_pricing={"prompt": str(prompt), "completion": str(completion)})
    for shown, said in ((offer.input_per_mtok, prompt), (offer.output_per_mtok, completion)):
        assert shown - 1 < said * 10**9 <= shown
