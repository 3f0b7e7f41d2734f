"""Prices in USD become msat exactly, rounded up, and no text makes a wrong or an endless number."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.money import Msat
from node.core.pricing import Price
from node.core.tariff import FREE, KINDS, MSAT_PER_BTC, Amount, Tariff, exact

RATE = Fraction(100_000)
"""One USD is 1,000 sat then."""


def usd(**amounts: str) -> Tariff:
    return Tariff({kind: Amount(Fraction(text), usd=True) for kind, text in amounts.items()})


def test_usd_at_a_rate() -> None:
    price = usd(input_per_mtok="0.60", output_per_mtok="1.80", cached_per_mtok="0").price(RATE)
    assert price == Price(Msat(600_000), Msat(1_800_000), cached_per_mtok=Msat(0))
    assert usd(per_request="0.00000000001").price(RATE) == Price(per_request=Msat(1))


def test_without_a_rate_there_is_no_price() -> None:
    assert usd(input_per_mtok="0.60").price(None) is None
    assert usd(input_per_mtok="0").price(None) == Price()
    assert FREE.price(None) == Price()
    mixed = Tariff({"per_image": Amount(Fraction(5)), "per_request": Amount(Fraction(1), usd=True)})
    assert mixed.price(None) is None
    assert mixed.in_usd


def test_a_price_beyond_all_reason_is_none() -> None:
    assert Tariff({"per_image": Amount(Fraction(2**53 - 1))}).price(None) is not None
    assert Tariff({"per_image": Amount(Fraction(2**53))}).price(None) is None
    assert usd(per_image="99999999").price(Fraction(100)) is None


@given(
    st.decimals(0, 10_000, places=12),
    st.fractions(100, 10_000_000),
    st.decimals(0, 1000, places=3),
    st.sampled_from(KINDS),
)
def test_never_below_and_less_than_one_msat_above(
    amount: Decimal, rate: Fraction, percent: Decimal, kind: str
) -> None:
    tariff = Tariff({kind: Amount(Fraction(amount), usd=True)}).raised(Fraction(percent))
    price = tariff.price(rate)
    assert price is not None
    true = Fraction(amount) * (1 + Fraction(percent) / 100) * MSAT_PER_BTC / rate
    msat = getattr(price, kind)
    assert type(msat) is int
    assert true <= msat < true + 1


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("0.00000015", Fraction(15, 10**8)),
        ("1e-7", Fraction(1, 10**7)),
        (Decimal("1.5E-7"), Fraction(15, 10**8)),
        (Decimal("2E+3"), Fraction(2000)),
        (7, Fraction(7)),
        ("0", Fraction(0)),
    ],
)
def test_numbers_of_others(value: object, number: Fraction) -> None:
    assert exact(value) == number


@pytest.mark.parametrize(
    "value",
    ["-1", -1, "", " 1", "1_0", "0x1", "NaN", "inf", "1e999999999", "1" * 100, True, None, 1.5,
     Decimal("1E+999999"), Decimal("NaN"), Decimal("-0.1"), [], {}, "½", "\u0661"],
)  # fmt: skip
def test_what_is_no_number(value: object) -> None:
    assert exact(value) is None


@given(st.text(max_size=80) | st.decimals(allow_nan=True, allow_infinity=True) | st.integers())
def test_any_value_is_a_number_or_none(value: object) -> None:
    number = exact(value)
    assert number is None or (number >= 0 and math.isfinite(number))
