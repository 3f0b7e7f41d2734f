"""What a node announces is what it charges, and its onion address comes from Tor's own file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.announcement import build_model_pages, parse_model_pages
from discovery.nostr.keys import Keys
from node.building import offer_of, onion_of
from node.core.catalog import Backend, Model
from node.core.money import Msat
from node.core.pricing import Price
from node.core.usage import Usage

KEYS = Keys.generate()
prices = st.integers(0, 10**12).map(Msat)
counts = st.integers(0, 10**6)


@given(prices, prices, prices, counts, counts)
def test_a_page_says_what_is_charged(
    input_: Msat, output: Msat, request: Msat, prompt: int, completion: int
) -> None:
    price = Price(input_, output, request)
    model = Model(
        "m", (Backend("upstream", price, "m"),), context_length=8_192, max_output_tokens=1_024
    )
    pages = build_model_pages(KEYS, "d", [offer_of(model)], created_at=1)
    (offer,) = parse_model_pages(pages) or []
    tokens = prompt * offer.input_per_mtok + completion * offer.output_per_mtok
    told = -(-tokens // 1_000_000) + offer.per_request
    usage = Usage(prompt, completion)
    assert price.cost(usage) == told


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
