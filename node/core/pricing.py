"""Prices, costs and estimates; pure integer arithmetic.

cost = ⌈(prompt·input_per_mtok + completion·output_per_mtok + 10⁶·per_request) / 10⁶⌉ msat,
rounded up once over the summed numerator.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.core.money import Msat, ceil_div
from node.core.usage import Usage

_MTOK = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs. All in msat; the token prices per million tokens."""

    input_per_mtok: Msat
    output_per_mtok: Msat
    per_request: Msat = Msat(0)

    def cost(self, usage: Usage) -> Msat:
        """The cost of ``usage`` in msat, rounded up once."""
        return self.quote(usage.prompt_tokens, usage.completion_tokens)

    def quote(self, prompt_tokens: int, completion_tokens: int) -> Msat:
        """The cost in msat of so many tokens of each kind, rounded up once."""
        numerator = (
            prompt_tokens * self.input_per_mtok
            + completion_tokens * self.output_per_mtok
            + self.per_request * _MTOK
        )
        return Msat(ceil_div(numerator, _MTOK))
