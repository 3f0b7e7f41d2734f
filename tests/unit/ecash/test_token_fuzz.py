"""Promise: nothing but TokenMalformed escapes the token reader, whatever it is fed."""

from __future__ import annotations

import json

import cbor2
from hypothesis import given, settings
from hypothesis import strategies as st

from node.ecash.token import normalize_mint_url, parse_token
from node.errors import TokenMalformed
from tests.unit.ecash.test_token import encode, v3, v3_document, v4, v4_document


def parses_or_is_malformed(text: str) -> None:
    try:
        token = parse_token(text)
    except TokenMalformed:
        return
    assert 0 < token.amount < 2**53
    assert token.unit in {"sat", "msat"}
    assert 0 < len(token.proofs) <= 100
    assert normalize_mint_url(token.mint) == token.mint


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["token", "mint", "proofs", "amount", "id", "C", "secret", "dleq"]),
            inner,
            max_size=6,
        )
    ),
    max_leaves=30,
)
cbor_values = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(list("mutdipascewr")), inner, max_size=6)
    ),
    max_leaves=30,
)


@given(st.text(max_size=200), st.sampled_from(["", "cashuA", "cashuB"]))
def test_fuzz_text(text: str, prefix: str) -> None:
    parses_or_is_malformed(prefix + text)


@given(st.binary(max_size=300), st.sampled_from("AB"))
def test_fuzz_bytes(raw: bytes, version: str) -> None:
    parses_or_is_malformed(encode(version, raw))


@given(json_values)
def test_fuzz_json(value: object) -> None:
    parses_or_is_malformed(v3(value))


@given(cbor_values)
def test_fuzz_cbor(value: object) -> None:
    parses_or_is_malformed(v4(value))


@given(
    st.sampled_from([("A", json.dumps(v3_document()).encode()), ("B", cbor2.dumps(v4_document()))]),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 3),
)
@settings(max_examples=500, deadline=None)
def test_fuzz_mutated_tokens(
    valid: tuple[str, bytes], edits: list[tuple[int, int]], cut: int
) -> None:
    version, raw = valid
    mutated = bytearray(raw)
    for position, value in edits:
        mutated[position % len(mutated)] = value
    parses_or_is_malformed(encode(version, bytes(mutated[: len(mutated) - cut])))
