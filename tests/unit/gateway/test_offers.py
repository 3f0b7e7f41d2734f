"""Promise: who cannot prove an address is not paid over HTTP, and profiles choose what they say."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.announcement import Announcement, ModelOffer
from discovery.offers import OtherPrices
from discovery.snapshot import DirectorySnapshot, Provider
from node.core.catalog import Catalog, Model
from node.core.money import Msat
from node.core.pricing import Price
from node.core.usage import Usage
from node.gateway.journal import Place, Record
from node.gateway.offers import (
    COOLDOWN_S,
    MAX_COOLDOWN_S,
    Offer,
    choose,
    cools_down,
    models_of,
    needs_details,
    offers_of,
    read_prices,
    shunned,
    ways_to,
)
from node.service.endpoints.catalogue import models_document

USAGE = Usage(100)


def provider(name: str = "a", **changes: Any) -> Provider:
    said = Announcement(
        pubkey=name * 64,
        d=name,
        urls=("https://a.example.com",),
        mints=("https://Mint.example.com/", "not a mint"),
        relays=("wss://r.example.com",),
        http=("80", "81"),
    )
    plain = Provider(
        pubkey=name * 64,
        npub=f"npub{name}",
        announcement=said,
        models=(ModelOffer("m", "M", 10, 20, 30, 1000, 100),),
        verified=True,
        status="online",
        latency_ms=20,
        last_seen=0,
        reason="",
        verified_urls=("https://a.example.com",),
    )
    return replace(plain, **changes)


def an_offer(name: str, price: int = 1_000_000, **changes: Any) -> Offer:
    plain = Offer(
        place=Place(name, "d", name, "https://x.example.com", ()),
        way="http",
        model="m",
        endpoints=("chat",),
        price=Price(Msat(price), Msat(price)),
        context=1000,
        max_output=100,
        mints=(),
        verified=True,
        latency_ms=100,
    )
    return replace(plain, **changes)


@pytest.mark.parametrize(
    ("changes", "carriage", "selected", "ways"),
    [
        ({}, "auto", False, ["http", "nostr"]),
        ({}, "http", False, ["http"]),
        ({}, "nostr", False, ["nostr"]),
        ({"verified": False}, "auto", False, ["nostr"]),
        ({"verified": False}, "http", False, []),
        ({"verified": False}, "http", True, ["http"]),
        ({"status": "offline"}, "auto", False, ["nostr"]),
    ],
)
def test_ways(changes: dict[str, Any], carriage: Any, selected: bool, ways: list[str]) -> None:
    assert ways_to(provider(**changes), carriage, selected=selected) == ways


def test_an_onion_is_no_way_without_tor() -> None:
    found = provider(verified=False)
    onion = replace(found.announcement, urls=("http://" + "a" * 56 + ".onion",))
    assert ways_to(replace(found, announcement=onion), "http", selected=True) == []


def test_offers_are_what_is_announced_or_told() -> None:
    snapshot = DirectorySnapshot((provider("a"), provider("b")))
    found = offers_of(snapshot, carriage="http", details={})
    assert [offer.place.pubkey[0] for offer in found] == ["a", "b"]
    assert found[0].price == Price(Msat(10), Msat(20), Msat(30))
    assert found[0].mints == ("https://mint.example.com",)
    told = {"a" * 64: {"m": Price(per_image=Msat(5))}}
    found = offers_of(snapshot, carriage="http", only={"a" * 64}, details=told)
    assert [offer.price for offer in found] == [Price(per_image=Msat(5))]


def test_a_model_without_a_price_is_not_free() -> None:
    unpriced = provider(models=(ModelOffer("m", priced=False),))
    assert offers_of(DirectorySnapshot((unpriced,)), carriage="http", details={}) == []


def test_what_is_sold_by_the_image_is_not_free_while_its_price_is_not_told() -> None:
    seller = provider(models=(ModelOffer("m", endpoints=("chat", "images")),))
    snapshot = DirectorySnapshot((seller,))
    (offer,) = offers_of(snapshot, carriage="http", details={})
    assert offer.endpoints == ("chat",)
    told = {seller.pubkey: {"m": Price(per_image=Msat(5))}}
    (offer,) = offers_of(snapshot, carriage="http", details=told)
    assert offer.endpoints == ("chat", "images")


def test_one_model_for_all_who_sell_it() -> None:
    sellers = [an_offer("a", 5), an_offer("b", 7, context=2000, endpoints=("embeddings",))]
    (model,) = models_of(sellers)
    assert (model.id, len(model.backends), model.context_length) == ("m", 2, 2000)
    assert model.endpoints == ("chat", "embeddings")
    assert model.price.input_per_mtok == 7


prices = st.builds(
    Price,
    input_per_mtok=st.integers(0, 10**9).map(Msat),
    output_per_mtok=st.integers(0, 10**9).map(Msat),
    per_request=st.integers(0, 10**6).map(Msat),
    per_image=st.integers(0, 10**6).map(Msat),
    per_audio_minute=st.integers(0, 10**6).map(Msat),
    cached_per_mtok=st.none() | st.integers(0, 10**9).map(Msat),
)


@given(prices)
def test_prices_are_read_as_a_node_tells_them(price: Price) -> None:
    from node.core.catalog import Backend

    model = Model("m", (Backend("u", price, "m"),), 100, 10)
    document = orjson.dumps(models_document(Catalog([model])))
    assert read_prices(document) == {"m": price}


@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["data", "id", "sats_pricing", "prompt", "completion"]),
                      inner, max_size=4),
).map(lambda value: orjson.dumps(value)))  # fmt: skip
def test_any_list_of_prices_is_survived(document: bytes) -> None:
    for price in read_prices(document).values():
        assert price.most(Usage(1, 1)) >= 0


def chosen(offers: list[Offer], records: dict[str, Record], profile: Any) -> Counter[str]:
    rng = random.Random(7)
    picks = (choose(offers, records, profile, USAGE, rng=rng, now=1000.0) for _ in range(400))
    return Counter(pick.place.pubkey for pick in picks if pick is not None)


def test_cheap_takes_the_cheaper_and_spreads_over_equals() -> None:
    found = chosen([an_offer("a"), an_offer("b", 10_000_000), an_offer("c")], {}, "cheap")
    assert found["b"] < 10
    assert min(found["a"], found["c"]) > 100


def test_fast_takes_who_answers_soon() -> None:
    offers = [an_offer("a", latency_ms=2000), an_offer("b", latency_ms=100)]
    assert chosen(offers, {}, "fast")["b"] > 390
    seen = {"b": Record(served=1, latency_ms=9000)}
    assert chosen(offers, seen, "fast")["a"] > 300


def test_trusted_takes_who_has_served() -> None:
    offers = [an_offer("a", 500_000), an_offer("b")]
    assert chosen(offers, {"b": Record(served=50)}, "trusted")["b"] > 390


def test_who_overcharged_is_avoided_in_every_profile() -> None:
    offers = [an_offer("a"), an_offer("b")]
    cheated = {"a": Record(served=5, overcharged=1), "b": Record(served=5)}
    for profile in ("cheap", "fast", "trusted"):
        assert chosen(offers, cheated, profile)["b"] > 330, profile


def test_who_overcharged_is_asked_when_nobody_else_is_left_however_dear_the_others_are() -> None:
    offers = [an_offer("a"), an_offer("b", 10**9)]
    cheated = {"a": Record(served=99, overcharged=1)}
    assert chosen(offers, cheated, "cheap")["b"] == 400
    assert chosen(offers[:1], cheated, "cheap")["a"] == 400
    assert not shunned(Record(served=100, overcharged=1))
    # one that fails is asked before one that cheats
    failed = Record(failed=1, failed_in_a_row=1, failed_at=1000)
    assert chosen(offers, cheated | {"b": failed}, "cheap")["b"] == 400


def test_all_prices_of_a_page_count() -> None:
    other = OtherPrices(1, 2, 3, 4, 5, 6)
    seller = provider(
        models=(ModelOffer("m", "M", 10, 20, 30, endpoints=("images",), other=other),)
    )
    (offer,) = offers_of(DirectorySnapshot((seller,)), carriage="http", details={})
    assert offer.endpoints == ("images",)
    assert offer.price == Price(
        Msat(10), Msat(20), Msat(30), Msat(1), Msat(2), Msat(3), Msat(4), Msat(5), Msat(6)
    )
    assert not needs_details(seller)
    silent = provider(models=(ModelOffer("m", "M", 10, 20, 30, endpoints=("images",)),))
    assert needs_details(silent)


def test_who_failed_is_asked_last_and_then_again() -> None:
    failed = Record(failed=1, failed_in_a_row=1, failed_at=1000)
    offers = [an_offer("a"), an_offer("b", 10_000_000)]
    assert chosen(offers, {"a": failed}, "cheap")["b"] == 400
    assert chosen(offers[:1], {"a": failed}, "cheap")["a"] == 400
    assert not cools_down(failed, 1000 + COOLDOWN_S)
    often = replace(failed, failed_in_a_row=40)
    assert cools_down(often, 999 + MAX_COOLDOWN_S)
    assert not cools_down(often, 1000 + MAX_COOLDOWN_S)


def test_who_does_not_answer_probes_is_asked_last() -> None:
    gone = offers_of(
        DirectorySnapshot((provider("a", status="offline"),)), carriage="auto", details={}
    )
    assert [(offer.way, offer.silent) for offer in gone] == [("nostr", True)]
    offers = [an_offer("a", silent=True), an_offer("b", 10_000_000)]
    assert chosen(offers, {}, "cheap")["b"] == 400
    assert chosen(offers[:1], {}, "cheap")["a"] == 400


def test_nobody_is_nobody() -> None:
    assert choose([], {}, "cheap", USAGE, rng=random.Random(1)) is None
