"""Prices as their owner states them, in msat or in USD, and what they are in msat at a rate.

Fractions of integers all the way and one rounding up at the end: never a float.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from fractions import Fraction

from node.core.money import Msat
from node.core.pricing import Price

KINDS = tuple(field.name for field in fields(Price))
"""What has a price: tokens per million, requests, images and minutes each, characters per
million."""
MSAT_PER_BTC = 100_000_000_000
MAX_MSAT = 2**53 - 1
"""No price of a kind is higher: every JSON reader keeps it exact, and costs fit the database."""

_NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]{1,60})?([eE][+-]?[0-9]{1,2})?")


def exact(value: object) -> Fraction | None:
    """A number of a foreign document as it is written there: text, int or Decimal.

    None for what is negative, not finite, absurdly long, or no number.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        return None
    text = str(value)
    return Fraction(text) if _NUMBER.fullmatch(text) else None


@dataclass(frozen=True, slots=True)
class Amount:
    """A price of one kind: msat, or USD, for the unit of its kind."""

    value: Fraction
    usd: bool = False

    def msat(self, usd_per_btc: Fraction | None) -> Msat | None:
        """In msat, rounded up; None when it is USD and the rate is not known, or when it is more
        than ``MAX_MSAT``."""
        value = self.value
        if self.usd and value:
            if usd_per_btc is None:
                return None
            value = value * MSAT_PER_BTC / usd_per_btc
        msat = math.ceil(value)
        return Msat(msat) if msat <= MAX_MSAT else None


@dataclass(frozen=True, slots=True)
class Tariff:
    """All prices of one model at one upstream, by kind. A kind left out costs nothing, or what
    ``Price`` says of it."""

    amounts: Mapping[str, Amount]

    @property
    def in_usd(self) -> bool:
        """Whether its price in msat depends on the exchange rate."""
        return any(amount.usd and amount.value for amount in self.amounts.values())

    @property
    def free(self) -> bool:
        """Nothing has a price."""
        return not any(amount.value for amount in self.amounts.values())

    def raised(self, percent: Fraction) -> Tariff:
        """The same with a markup."""
        factor = 1 + percent / 100
        return Tariff(
            {
                kind: Amount(amount.value * factor, amount.usd)
                for kind, amount in self.amounts.items()
            }
        )

    def price(self, usd_per_btc: Fraction | None) -> Price | None:
        """In msat, each kind rounded up; None when it needs the rate and there is none."""
        known = {}
        for kind, amount in self.amounts.items():
            msat = amount.msat(usd_per_btc)
            if msat is None:
                return None
            known[kind] = msat
        return Price(**known)


FREE = Tariff({})
