"""A cost is the exact sum, rounded up once to a whole msat."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from node.core.catalog import Backend, Model
from node.core.money import Msat, ceil_div, to_msat, whole_units
from node.core.pricing import Price
from node.core.usage import Usage

MSATS = st.integers(0, 10**12).map(Msat)
TOKENS = st.integers(0, 10**8)
PRICES = st.builds(Price, MSATS, MSATS, MSATS)


@given(PRICES, TOKENS, TOKENS)
def test_cost_is_the_exact_sum_rounded_up_once(price: Price, prompt: int, completion: int) -> None:
    exact = (
        Fraction(prompt * price.input_per_mtok, 10**6)
        + Fraction(completion * price.output_per_mtok, 10**6)
        + price.per_request
    )
    cost = price.cost(Usage(prompt, completion))
    assert isinstance(cost, int)
    assert exact <= cost < exact + 1


@given(PRICES, TOKENS, TOKENS, TOKENS, TOKENS)
def test_fewer_tokens_never_cost_more(
    price: Price, a: int, b: int, more_a: int, more_b: int
) -> None:
    assert price.most(Usage(a, b)) <= price.most(Usage(a + more_a, b + more_b))


def test_known_costs() -> None:
    price = Price(Msat(150_000), Msat(600_000), Msat(5))
    assert price.cost(Usage(0, 0)) == 5
    assert price.cost(Usage(1, 0)) == 6  # 0.15 msat
    assert price.cost(Usage(1, 1)) == 6  # 0.75 msat: one rounding, not two
    assert price.cost(Usage(1_000_000, 1_000_000)) == 750_005


def test_the_most_a_model_can_cost_covers_every_call_within_its_limits() -> None:
    model = Model("m", (Backend("u", Price(Msat(333), Msat(777), Msat(1)), "m"),), 1000, 100)
    assert model.max_cost == model.price.most(Usage(1000, 100))
    assert model.max_cost >= model.price.cost(Usage(999, 100))


@given(st.integers(0, 10**15), st.integers(1, 10**9))
def test_ceil_div(numerator: int, denominator: int) -> None:
    quotient = ceil_div(numerator, denominator)
    assert (quotient - 1) * denominator < numerator <= quotient * denominator


def test_units() -> None:
    assert to_msat(3, "sat") == 3000
    assert to_msat(3, "msat") == 3
    assert whole_units(Msat(2999), "sat") == 2
    assert whole_units(Msat(2999), "msat") == 2999
