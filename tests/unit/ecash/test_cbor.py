"""Promise: the CBOR reader gives plain data for plain data and CborError for all else, quickly."""

from __future__ import annotations

import math

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.ecash import cbor

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text() | st.integers(0, 2**64 - 1) | st.binary(), inner, max_size=5)
    ),
    max_leaves=20,
)


@given(plain)
def test_reads_what_a_general_encoder_writes(value: object) -> None:
    assert cbor.loads(cbor2.dumps(value), max_depth=100) == value
    assert cbor.loads(cbor2.dumps(value, canonical=True), max_depth=100) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_plain_data_or_refused(raw: bytes) -> None:
    try:
        value = cbor.loads(raw)
    except cbor.CborError:
        return
    assert repr(cbor.loads(cbor2.dumps(value))) == repr(value)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("5f42010243030405ff", b"\x01\x02\x03\x04\x05"),
        ("7f657374726561646d696e67ff", "streaming"),
        ("9f018202039f0405ffff", [1, [2, 3], [4, 5]]),
        ("bf61610161629f0203ffff", {"a": 1, "b": [2, 3]}),
        ("c074323031332d30332d32315432303a30343a30305a", "2013-03-21T20:04:00Z"),
        ("c249010000000000000000", b"\x01" + bytes(8)),
        ("f97c00", math.inf),
        ("f7", None),
    ],
)
def test_reads_rfc8949_examples(raw: str, value: object) -> None:
    assert cbor.loads(bytes.fromhex(raw)) == value


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "18",
        "1c",
        "ff",
        "81ff",
        "a1ff",
        "bf01ff",
        "9f01",
        "5f4101",
        "5f6161ff",
        "5f5f4101ffff",
        "7f61ffff",
        "61ff",
        "a201020103",
        "a1810102",
        "a1f6f6",
        "e0",
        "f800",
        "0000",
        "3f",
        "df00",
        "c1",
        "9b7fffffffffffffff",
        "bb7fffffffffffffff",
        "5b7fffffffffffffff",
    ],
)
def test_refuses(raw: str) -> None:
    with pytest.raises(cbor.CborError):
        cbor.loads(bytes.fromhex(raw))


def test_depth_is_bounded() -> None:
    assert cbor.loads(b"\x81" * 16 + b"\x00") is not None
    for opener in (b"\x81", b"\x9f", b"\xa1\x00", b"\xc1"):
        with pytest.raises(cbor.CborError, match="nested"):
            cbor.loads(opener * 17 + b"\x00")
