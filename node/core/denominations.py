"""Which coins to make and which to give; pure integer arithmetic over powers of two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

STOCK = 8
"""Coins of each small denomination the inventory likes to hold, so that change needs no mint."""
MAX_REFILL_OUTPUTS = 64
"""Most small coins made at a time; a mint bounds the outputs of a swap."""
MAX_REFILL_INPUTS = 100
"""Most coins swapped for them; a mint bounds the inputs of a swap."""
MIN_REFILL_PER_FEE = 5
"""What a refill makes must be worth so many times the mint's fee for it."""


def split(amount: int) -> list[int]:
    """``amount`` as distinct powers of two, ascending. Empty for 0."""
    return [1 << bit for bit in range(amount.bit_length()) if amount >> bit & 1]


def plan_outputs(amount: int, stock: Mapping[int, int], under_way: int | None = None) -> list[int]:
    """The denominations to ask of a mint for ``amount``, ascending; their sum is ``amount``.

    Small denominations of which ``stock`` (denomination → coins held) runs short are laid in
    first. With an empty stock the result can make every change from 0 to ``amount``.

    Args:
        under_way: calls that may want change at the same time: a coin of each denomination will
            do for each of them, ``plan_refill`` sees to the rest later. None: lay in STOCK.
    """
    wanted = STOCK if under_way is None else min(STOCK, 1 + under_way)
    outputs: list[int] = []
    rest = amount
    denomination = 1
    while denomination <= rest:
        if stock.get(denomination, 0) < wanted:
            outputs.append(denomination)
            rest -= denomination
        denomination <<= 1
    return sorted(outputs + split(rest))


@dataclass(frozen=True, slots=True)
class Refill:
    """Coins to swap (denomination → count), and the small ones to get for them."""

    inputs: Mapping[int, int]
    wanted: list[int]


def plan_refill(ready: Mapping[int, int], held: Mapping[int, int], fee: int = 0) -> Refill | None:
    """What to swap so that change will not need a mint; None while there is enough.

    STOCK coins of each small denomination are wanted, from 1 up to where they make half of all
    that is held. It is time when one of them is down to less than half of that.

    Args:
        ready: coins that can be given out, by denomination.
        held: these, and others that are good for a swap only.
        fee: what the mint takes for the swap; the inputs cover it too.
    """
    small: list[int] = []
    budget = sum(denomination * count for denomination, count in held.items()) // 2
    denomination = 1
    while STOCK and STOCK * denomination <= budget:
        small.append(denomination)
        budget -= STOCK * denomination
        denomination <<= 1
    short = {d for d in small if 2 * ready.get(d, 0) < STOCK}
    wanted = [d for d in small for _ in range(STOCK - ready.get(d, 0))][:MAX_REFILL_OUTPUTS]
    spare = {d: n - (min(ready.get(d, 0), STOCK) if d in small else 0) for d, n in held.items()}
    while not short.isdisjoint(wanted) and sum(wanted) >= MIN_REFILL_PER_FEE * fee:
        inputs = pick_covering(sum(wanted) + fee, spare)
        if inputs is not None and sum(inputs.values()) <= MAX_REFILL_INPUTS:
            return Refill(inputs, wanted)
        wanted.pop()
    return None


def pick_exact(amount: int, stock: Mapping[int, int]) -> dict[int, int] | None:
    """Coins (denomination → count) that make exactly ``amount``, largest first; None if none do.

    Greedy is complete here because each power of two divides the next.
    """
    picked: dict[int, int] = {}
    for denomination in sorted(stock, reverse=True):
        count = min(stock[denomination], amount // denomination)
        if count:
            picked[denomination] = count
            amount -= count * denomination
    return None if amount else picked


def pick_covering(amount: int, stock: Mapping[int, int]) -> dict[int, int] | None:
    """Few coins worth at least ``amount``; None when the stock is not worth that much."""
    picked: dict[int, int] = {}
    rest = amount
    for denomination in sorted(stock, reverse=True):
        count = min(stock[denomination], rest // denomination)
        if count:
            picked[denomination] = count
            rest -= count * denomination
    if rest:
        # What is left is less than every coin still unused: the smallest of those breaks it.
        spare = [d for d in sorted(stock) if stock[d] > picked.get(d, 0) and d >= rest]
        if not spare:
            return None
        picked[spare[0]] = picked.get(spare[0], 0) + 1
        over = spare[0] - rest
        for denomination in sorted(picked):
            needless = min(picked[denomination], over // denomination)
            picked[denomination] -= needless
            over -= needless * denomination
    return {denomination: count for denomination, count in picked.items() if count}
