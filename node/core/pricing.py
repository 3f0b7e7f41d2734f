"""Prices, costs and estimates; pure integer arithmetic.

cost = ⌈Σ count · price per unit⌉ msat, rounded up once over the summed numerator: tokens are priced
per million, audio per minute, images and requests each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from node.core.money import Msat, ceil_div
from node.core.usage import Usage

_MTOK = 1_000_000
_MINUTE_MS = 60_000
_DENOMINATOR = 3_000_000
"""The least common multiple of both: a count is multiplied by what is left of it."""
_PER_TOKEN = _DENOMINATOR // _MTOK
_PER_AUDIO_MS = _DENOMINATOR // _MINUTE_MS


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, all in msat. None: the price of its kind (cached input is input,
    reasoning is output)."""

    input_per_mtok: Msat = Msat(0)
    output_per_mtok: Msat = Msat(0)
    per_request: Msat = Msat(0)
    cached_per_mtok: Msat | None = None
    """A million tokens of input that the model server had in its cache."""
    cache_write_per_mtok: Msat | None = None
    """A million tokens of input that it put there."""
    reasoning_per_mtok: Msat | None = None
    per_image: Msat = Msat(0)
    """An image made."""
    per_audio_minute: Msat = Msat(0)
    """A minute of audio listened to or made."""
    per_mchar: Msat = Msat(0)
    """A million characters read aloud."""

    def cost(self, usage: Usage) -> Msat:
        """The cost of ``usage`` in msat, rounded up once."""
        cached, written = usage.cached_tokens, usage.cache_write_tokens
        reasoning = usage.reasoning_tokens
        tokens = (
            (usage.prompt_tokens - cached - written) * self.input_per_mtok
            + cached * _or(self.cached_per_mtok, self.input_per_mtok)
            + written * _or(self.cache_write_per_mtok, self.input_per_mtok)
            + (usage.completion_tokens - reasoning) * self.output_per_mtok
            + reasoning * _or(self.reasoning_per_mtok, self.output_per_mtok)
            + usage.characters * self.per_mchar
        )
        return self._sum(tokens, usage)

    def most(self, bound: Usage) -> Msat:
        """The most in msat that a call within ``bound`` can cost, whatever part of its tokens
        turns out to be cached or reasoning."""
        tokens = (
            bound.prompt_tokens
            * max(self.input_per_mtok, self.cached_per_mtok or 0, self.cache_write_per_mtok or 0)
            + bound.completion_tokens * max(self.output_per_mtok, self.reasoning_per_mtok or 0)
            + bound.characters * self.per_mchar
        )
        return self._sum(tokens, bound)

    def _sum(self, tokens: int, usage: Usage) -> Msat:
        numerator = tokens * _PER_TOKEN + usage.audio_ms * self.per_audio_minute * _PER_AUDIO_MS
        whole = self.per_request + usage.images * self.per_image
        return Msat(ceil_div(numerator, _DENOMINATOR) + whole)

    @property
    def free(self) -> bool:
        """Nothing has a price."""
        return not any(getattr(self, field.name) for field in fields(self))


def dearest(prices: Iterable[Price]) -> Price:
    """The price no cost at any of ``prices`` exceeds: the highest of each kind.

    Raises ValueError when there is none.
    """
    known = list(prices)
    if not known:
        raise ValueError("no price")
    if len(known) == 1:
        return known[0]
    return Price(
        input_per_mtok=max(price.input_per_mtok for price in known),
        output_per_mtok=max(price.output_per_mtok for price in known),
        per_request=max(price.per_request for price in known),
        cached_per_mtok=max(_or(p.cached_per_mtok, p.input_per_mtok) for p in known),
        cache_write_per_mtok=max(_or(p.cache_write_per_mtok, p.input_per_mtok) for p in known),
        reasoning_per_mtok=max(_or(p.reasoning_per_mtok, p.output_per_mtok) for p in known),
        per_image=max(price.per_image for price in known),
        per_audio_minute=max(price.per_audio_minute for price in known),
        per_mchar=max(price.per_mchar for price in known),
    )


def _or(price: Msat | None, otherwise: Msat) -> Msat:
    return otherwise if price is None else price
