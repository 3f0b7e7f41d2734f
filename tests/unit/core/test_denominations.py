"""Promise: coins are made so that change needs no mint, and picked so that sums are exact."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from node.core.denominations import STOCK, pick_covering, pick_exact, plan_outputs, split

amounts = st.integers(1, 1 << 40)
stocks = st.dictionaries(st.integers(0, 20).map(lambda bit: 1 << bit), st.integers(1, 12))


def worth(picked: dict[int, int]) -> int:
    return sum(denomination * count for denomination, count in picked.items())


@given(amounts)
def test_split_is_the_amount_in_distinct_powers_of_two(amount: int) -> None:
    parts = split(amount)
    assert sum(parts) == amount
    assert len(set(parts)) == len(parts)
    assert all(part.bit_count() == 1 for part in parts)


@given(amounts, stocks)
def test_planned_outputs_are_the_amount_in_ascending_powers_of_two(
    amount: int, stock: dict[int, int]
) -> None:
    outputs = plan_outputs(amount, stock)
    assert sum(outputs) == amount
    assert outputs == sorted(outputs)
    assert all(output.bit_count() == 1 for output in outputs)


@given(st.integers(1, 5000), st.data())
def test_an_empty_inventory_gets_coins_for_every_change(amount: int, data: st.DataObject) -> None:
    stock = Counter(plan_outputs(amount, {}))
    change = data.draw(st.integers(0, amount))
    picked = pick_exact(change, stock)
    assert picked is not None
    assert worth(picked) == change


@given(amounts)
def test_a_full_inventory_gets_the_fewest_coins(amount: int) -> None:
    full = {1 << bit: STOCK for bit in range(41)}
    assert plan_outputs(amount, full) == split(amount)


@given(st.integers(0, 1 << 22), stocks)
def test_exact_picks_are_exact_and_held_and_found_whenever_there_are_any(
    amount: int, stock: dict[int, int]
) -> None:
    picked = pick_exact(amount, stock)
    # which sums powers of two can make, computed the slow way
    possible = 0
    missing = amount
    for denomination in sorted(stock, reverse=True):
        possible = min(stock[denomination], missing // denomination)
        missing -= possible * denomination
    if picked is None:
        assert missing > 0
    else:
        assert worth(picked) == amount
        assert all(0 < count <= stock[d] for d, count in picked.items())


@given(st.lists(st.integers(0, 6).map(lambda bit: 1 << bit), max_size=9), st.integers(0, 200))
def test_an_exact_pick_is_missed_only_when_no_subset_has_the_sum(
    coins: list[int], amount: int
) -> None:
    sums = {0}
    for coin in coins:
        sums |= {known + coin for known in sums}
    assert (pick_exact(amount, Counter(coins)) is not None) == (amount in sums)


@given(st.integers(1, 1 << 22), stocks)
def test_a_covering_pick_covers_without_a_needless_coin(amount: int, stock: dict[int, int]) -> None:
    picked = pick_covering(amount, stock)
    if worth(stock) < amount:
        assert picked is None
        return
    assert picked is not None
    assert all(0 < count <= stock[d] for d, count in picked.items())
    assert worth(picked) >= amount
    assert worth(picked) - min(picked) < amount
