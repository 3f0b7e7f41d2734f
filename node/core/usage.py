"""Metering: what a call consumed, in one normal form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call. ``source`` says whether the upstream counted or this node did."""

    prompt_tokens: int
    completion_tokens: int
    source: Literal["upstream", "estimated"] = "upstream"

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens
