"""Which coins to make and which to give; pure integer arithmetic over powers of two."""

from __future__ import annotations

from collections.abc import Mapping

STOCK = 8
"""Coins of each small denomination the inventory likes to hold, so that change needs no mint."""


def split(amount: int) -> list[int]:
    """``amount`` as distinct powers of two, ascending. Empty for 0."""
    return [1 << bit for bit in range(amount.bit_length()) if amount >> bit & 1]


def plan_outputs(amount: int, stock: Mapping[int, int]) -> list[int]:
    """The denominations to ask of a mint for ``amount``, ascending; their sum is ``amount``.

    Small denominations of which ``stock`` (denomination → coins held) runs short are laid in
    first. With an empty stock the result can make every change from 0 to ``amount``.
    """
    outputs: list[int] = []
    rest = amount
    denomination = 1
    while denomination <= rest:
        if stock.get(denomination, 0) < STOCK:
            outputs.append(denomination)
            rest -= denomination
        denomination <<= 1
    return sorted(outputs + split(rest))


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
