"""Promise: coins are made so that change needs no mint, and picked so that sums are exact."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from node.core.denominations import (
    MAX_REFILL_INPUTS,
    MAX_REFILL_OUTPUTS,
    STOCK,
    pick_covering,
    pick_exact,
    plan_outputs,
    plan_refill,
    split,
)

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


@given(st.integers(1, 5000), st.integers(0, 20), st.data())
def test_every_change_can_be_made_right_after_a_token_came(
    amount: int, under_way: int, data: st.DataObject
) -> None:
    stock = Counter({1 << bit: data.draw(st.integers(0, 9)) for bit in range(12)})
    more = Counter(plan_outputs(amount, stock, under_way))
    change = data.draw(st.integers(0, amount))
    assert worth(pick_exact(change, stock + more) or {}) == change
    lavish = Counter(plan_outputs(amount, stock))
    assert more.total() <= lavish.total()


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


@given(stocks, stocks, st.integers(0, 30))
def test_a_refill_takes_what_is_spare_and_brings_what_is_short(
    ready: dict[int, int], suspect: dict[int, int], fee: int
) -> None:
    held = Counter(ready) + Counter(suspect)
    plan = plan_refill(ready, held, fee)
    if plan is None:
        return
    assert all(0 < count <= held[d] for d, count in plan.inputs.items())
    assert sum(plan.inputs.values()) <= MAX_REFILL_INPUTS
    assert 0 < len(plan.wanted) <= MAX_REFILL_OUTPUTS
    rest = worth(dict(plan.inputs)) - fee - sum(plan.wanted)
    assert rest >= 0
    assert 2 * sum(plan.wanted) <= worth(held)
    for d, count in Counter(plan.wanted).items():
        kept = min(ready.get(d, 0), held[d] - plan.inputs.get(d, 0))
        assert kept >= min(ready.get(d, 0), STOCK)
        assert ready.get(d, 0) + count <= STOCK
    assert any(2 * ready.get(d, 0) < STOCK for d in plan.wanted)


@given(st.integers(1, 1 << 20))
def test_one_large_coin_is_broken_up_and_then_that_is_enough(amount: int) -> None:
    stock = Counter(split(amount))
    plans = 0
    while (plan := plan_refill(stock, stock)) is not None:
        stock = stock - Counter(plan.inputs) + Counter(plan.wanted)
        stock += Counter(split(amount - worth(stock)))
        plans += 1
        assert plans <= 4
    assert worth(stock) == amount
    small = [1 << bit for bit in range(21) if STOCK * ((2 << bit) - 1) <= amount // 2]
    assert all(2 * stock[d] >= STOCK for d in small)
    reach = min(sum(small) * STOCK // 2, 300)
    assert all(pick_exact(change, stock) for change in range(1, reach + 1))


def test_no_refill_out_of_nothing() -> None:
    assert plan_refill({}, {}) is None
    assert plan_refill({1: 8}, {1: 8}) is None
    assert plan_refill({16: 1}, {16: 1}, fee=1) is not None
    assert plan_refill({16: 1}, {16: 1}, fee=2) is None, "not worth its price"
