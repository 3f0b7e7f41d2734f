"""What a node announces is what it charges, and its onion address comes from Tor's own file."""

from __future__ import annotations

import json
from fractions import Fraction
from math import ceil
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.announcement import build_model_pages, parse_model_pages
from discovery.columns import Offers, by_price, find
from discovery.nostr.keys import Keys
from discovery.offers import ModelOffer, OtherPrices
from node.building import offer_of, onion_of
from node.core.catalog import Backend, Model
from node.core.money import Msat
from node.core.pricing import Price
from node.core.usage import Usage

KEYS = Keys.generate()
prices = st.integers(0, 10**12).map(Msat)
maybe = st.none() | prices
counts = st.integers(0, 10**6)
offers = st.builds(
    ModelOffer,
    st.text(min_size=1, max_size=9),
    st.text(max_size=9),
    prices,
    prices,
    prices,
    counts,
    counts,
    st.lists(st.sampled_from(["text", "image"]), unique=True).map(tuple),
    st.just(("chat",)),
    st.booleans(),
    st.builds(OtherPrices, maybe, maybe, maybe, prices, prices, prices),
)
charged = st.builds(Price, prices, prices, prices, maybe, maybe, maybe, prices, prices, prices)


@given(st.lists(charged, min_size=1, max_size=3), st.lists(counts, min_size=8, max_size=8))
def test_a_page_says_what_is_charged(backends: list[Price], numbers: list[int]) -> None:
    """Of a model with one backend exactly that; of several, what no call goes beyond."""
    backend = [Backend(f"upstream-{n}", price, "m") for n, price in enumerate(backends)]
    model = Model("m", tuple(backend), context_length=8_192, max_output_tokens=1_024)
    pages = build_model_pages(KEYS, "d", [offer_of(model)], created_at=1)
    (offer,) = parse_model_pages(pages) or []
    other = offer.other

    def like(price: int | None, usual: int) -> int:
        return usual if price is None else price

    cached, written, plain, reasoning, spoken, images, audio_ms, characters = numbers
    usage = Usage(
        prompt_tokens=cached + written + plain,
        completion_tokens=reasoning + spoken,
        cached_tokens=cached,
        cache_write_tokens=written,
        reasoning_tokens=reasoning,
        images=images,
        audio_ms=audio_ms,
        characters=characters,
    )
    millionths = (
        plain * offer.input_per_mtok
        + cached * like(other.cached_per_mtok, offer.input_per_mtok)
        + written * like(other.cache_write_per_mtok, offer.input_per_mtok)
        + spoken * offer.output_per_mtok
        + reasoning * like(other.reasoning_per_mtok, offer.output_per_mtok)
        + characters * other.per_mchar
    )
    told = (
        Fraction(millionths, 10**6)
        + Fraction(audio_ms * other.per_audio_minute, 60_000)
        + images * other.per_image
        + offer.per_request
    )
    for price in backends:
        assert price.cost(usage) <= ceil(told)
    assert model.price.cost(usage) == ceil(told)


def test_columns_are_added_for_what_has_a_price_of_its_own_only() -> None:
    """Who knows the first nine columns reads every page as before."""
    plain = ModelOffer("plain", "Plain", 1, 2, 3)
    made = ModelOffer("made", other=OtherPrices(per_image=7, reasoning_per_mtok=0))
    (page,) = build_model_pages(KEYS, "d", [plain], created_at=1)
    usual = json.loads(page.content)["columns"]
    assert usual == [
        "id",
        "name",
        "input_per_mtok",
        "output_per_mtok",
        "per_request",
        "context",
        "max_output",
        "modalities",
        "endpoints",
    ]
    (page,) = build_model_pages(KEYS, "d", [plain, made], created_at=1)
    document = json.loads(page.content)
    assert document["columns"] == [*usual, "reasoning_per_mtok", "per_image"]
    assert [row[9:] for row in document["rows"]] == [[None, 0], [0, 7]]
    assert parse_model_pages([page]) == [plain, made]


@pytest.mark.parametrize("price", [-1, 1.5, "7", True, [], 2**53])
def test_a_row_with_a_price_that_cannot_be_read_is_passed_over(price: object) -> None:
    columns = ["id", "input_per_mtok", "output_per_mtok", "per_image"]
    rows = [["bad", 1, 2, price], ["good", 1, 2, None]]
    document = {"v": 1, "unit": "msat", "columns": columns, "rows": rows}
    (event,) = build_model_pages(KEYS, "d", [], created_at=1)
    forged = KEYS.sign(30_078, json.dumps(document), event.tags, 1)
    assert [offer.id for offer in parse_model_pages([forged]) or []] == ["good"]


@given(st.lists(offers, max_size=8, unique_by=lambda offer: offer.id))
def test_columns_hold_what_tuples_hold(rows: list[ModelOffer]) -> None:
    packed = Offers.of(rows)
    assert list(packed) == rows
    assert packed == tuple(rows)
    assert hash(packed) == hash(tuple(rows))
    assert [packed[index] for index in range(len(packed))] == rows
    assert packed[1:] == tuple(rows[1:])
    assert Offers.read(orjson.loads(orjson.dumps(packed.document()))) == packed
    for offer in rows:
        assert find(packed, offer.id) == offer
    assert find(packed, "none of them") is None
    priced, unpriced = by_price(packed)
    assert [*priced] == [offer for offer in rows if offer.priced]
    assert [*unpriced] == [offer for offer in rows if not offer.priced]


ONION = "a" * 56 + ".onion"


def test_the_onion_address_is_read_from_tors_file(tmp_path: Path) -> None:
    file = tmp_path / "hostname"
    file.write_text(ONION + "\n")
    assert onion_of(file) == f"http://{ONION}"
    assert onion_of(None) is None


@pytest.mark.parametrize("text", [None, "", "example.com", f"x{ONION}", ONION + "/v1", "é"])
def test_what_is_no_onion_address_is_not_announced(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "hostname"
    if text is not None:
        file.write_text(text)
    assert onion_of(file) is None
