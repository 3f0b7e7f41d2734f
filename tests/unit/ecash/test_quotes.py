"""Promise: what a mint says of a quote is taken whole or not at all."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.ecash import Proof
from node.ecash.answers import MeltQuote, MintQuote, read_melt_quote, read_quote
from node.ecash.errors import MintUnknown
from node.ecash.mint import melt_body

KEYSET = "00" + "ab" * 7
POINT = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
SIGNATURE = {"amount": 4, "id": KEYSET, "C_": POINT}
MELT: dict[str, Any] = {"quote": "q", "amount": 100, "fee_reserve": 2, "state": "PAID"}
MINT: dict[str, Any] = {"quote": "q", "request": "lnbc1", "state": "UNPAID"}


def test_a_melt_quote_is_read_with_its_change() -> None:
    assert read_melt_quote(MELT) == MeltQuote("q", 100, 2, "PAID")
    full = read_melt_quote(MELT | {"expiry": 1700000000, "change": [SIGNATURE]})
    assert full.expiry == 1700000000
    assert full.change is not None
    assert [(s.amount, s.c_) for s in full.change] == [(4, POINT)]
    assert read_melt_quote(MELT | {"change": []}).change == ()
    assert read_melt_quote(MELT | {"change": None, "expiry": None}).change is None


def test_an_expiry_of_zero_is_none() -> None:
    assert read_quote(MINT | {"expiry": 0}) == MintQuote("q", "lnbc1", "UNPAID", None)
    assert read_quote(MINT | {"expiry": 5}).expiry == 5
    assert read_quote(MINT).expiry is None


@pytest.mark.parametrize(
    "change",
    [
        {"amount": 0}, {"amount": -1}, {"amount": 1.5}, {"amount": "1"}, {"amount": True},
        {"amount": 1 << 53}, {"fee_reserve": -1}, {"fee_reserve": None}, {"state": "paid"},
        {"state": None}, {"quote": ""}, {"quote": "a/b"}, {"quote": 5}, {"expiry": -1},
        {"expiry": "soon"}, {"change": {}}, {"change": [5]},
        {"change": [SIGNATURE | {"amount": 0}]}, {"change": [SIGNATURE | {"C_": "00"}]},
    ],
)  # fmt: skip
def test_a_melt_quote_of_a_wrong_shape_is_no_answer(change: dict[str, Any]) -> None:
    with pytest.raises(MintUnknown):
        read_melt_quote(MELT | change)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*MELT, "request", "expiry", "change"]), _json))
def test_garbage_is_unknown_and_nothing_else(document: dict[str, Any]) -> None:
    for read, whole in ((read_melt_quote, MELT), (read_quote, MINT)):
        try:
            read(whole | document)
        except MintUnknown:
            continue


def test_a_melt_shows_no_dleq_and_no_outputs_without_blanks() -> None:
    body = melt_body("q", [Proof(KEYSET, 1, "s", POINT)], [])
    assert body == (
        b'{"quote":"q","inputs":[{"amount":1,"id":"' + KEYSET.encode() + b'","secret":"s","C":"'
        + POINT.encode() + b'"}]}'
    )  # fmt: skip
