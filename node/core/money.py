"""Amounts. Integer millisatoshi everywhere; a float is never money."""

from __future__ import annotations

from typing import NewType

Msat = NewType("Msat", int)
"""Thousandth of a satoshi."""
Sat = NewType("Sat", int)
"""Satoshi."""

MSAT_PER_SAT = 1000

UNIT_MSAT = {"sat": MSAT_PER_SAT, "msat": 1}
"""The mint units (NUT-01) this node takes, and what one of each is worth in msat."""


def to_msat(amount: int, unit: str) -> Msat:
    """``amount`` of a mint ``unit`` in msat. Raises KeyError for a unit that is not money here."""
    return Msat(amount * UNIT_MSAT[unit])


def whole_units(amount: Msat, unit: str) -> int:
    """How many whole units of a mint ``amount`` covers (rounded down)."""
    return amount // UNIT_MSAT[unit]


def ceil_div(numerator: int, denominator: int) -> int:
    """Integer division rounded up."""
    return -(-numerator // denominator)
