"""Promise: the terms of a key are what its request says under any name, or the error names it."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.keys import Terms
from node.errors import InvalidValue
from node.service.terms import account_terms

LATER = int(time.time()) + 100_000


class _Refunder:
    """Knows one host."""

    def check(self, address: str) -> None:
        if not address.endswith("@example.com"):
            raise InvalidValue("nowhere", param="refund_address")


REFUNDER = _Refunder()


@pytest.mark.parametrize(
    ("fields", "headers", "terms"),
    [
        ({}, {}, None),
        ({"validity_date": "", "refund_address": None}, {"accept": "*/*"}, None),
        ({"validity_date": LATER}, {}, Terms(LATER)),
        ({"key_expiry_time": str(LATER)}, {}, Terms(LATER)),
        ({}, {"key-expiry-time": f" {LATER} "}, Terms(LATER)),
        ({"validity_date": LATER}, {"key-expiry-time": str(LATER)}, Terms(LATER)),
        (
            {"validity_date": LATER, "refund_address": "me@example.com"},
            {},
            Terms(LATER, "me@example.com"),
        ),
        (
            {},
            {"key-expiry-time": str(LATER), "refund-lnurl": "me@example.com"},
            Terms(LATER, "me@example.com"),
        ),
        (
            {"validity_date": LATER},
            {"refund-lnurl": " me@example.com "},
            Terms(LATER, "me@example.com"),
        ),
    ],
)
def test_terms_are_understood_under_every_name(
    fields: dict[str, Any], headers: dict[str, str], terms: Terms | None
) -> None:
    assert account_terms(fields, headers, REFUNDER) == terms


@pytest.mark.parametrize(
    ("fields", "headers", "param"),
    [
        ({"validity_date": 1}, {}, "validity_date"),
        ({"validity_date": True}, {}, "validity_date"),
        ({"validity_date": LATER + 0.5}, {}, "validity_date"),
        ({"key_expiry_time": -1}, {}, "key_expiry_time"),
        ({}, {"key-expiry-time": "soon"}, "key-expiry-time"),
        ({}, {"key-expiry-time": "9" * 40}, "key-expiry-time"),
        ({}, {"key-expiry-time": "1e9"}, "key-expiry-time"),
        ({"validity_date": LATER}, {"key-expiry-time": str(LATER + 1)}, "validity_date"),
        ({"refund_address": "me@example.com"}, {}, "refund_address"),
        ({}, {"refund-lnurl": "me@example.com"}, "refund-lnurl"),
        ({"validity_date": LATER, "refund_address": "me@nowhere"}, {}, "refund_address"),
        ({"validity_date": LATER, "refund_address": ["me"]}, {}, "refund_address"),
        (
            {"validity_date": LATER, "refund_address": "me@example.com"},
            {"refund-lnurl": "you@example.com"},
            "refund_address",
        ),
    ],
)
def test_what_is_wrong_with_terms_is_named(
    fields: dict[str, Any], headers: dict[str, str], param: str
) -> None:
    with pytest.raises(InvalidValue) as refused:
        account_terms(fields, headers, REFUNDER)
    assert refused.value.param == param


def test_an_address_is_refused_where_nothing_is_refunded() -> None:
    fields = {"validity_date": LATER, "refund_address": "me@example.com"}
    with pytest.raises(InvalidValue, match="does not refund"):
        account_terms(fields, {}, None)


_ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just([1])
_FIELDS = st.sampled_from(["validity_date", "key_expiry_time", "refund_address", "other"])
_HEADERS = st.sampled_from(["refund-lnurl", "key-expiry-time", "accept"])


@given(st.dictionaries(_FIELDS, _ANYTHING), st.dictionaries(_HEADERS, st.text()))
def test_nothing_but_invalid_value_comes_of_garbage(
    fields: dict[str, Any], headers: dict[str, str]
) -> None:
    with suppress(InvalidValue):
        account_terms(fields, headers, REFUNDER)
