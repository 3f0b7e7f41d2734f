"""Metering: what a call consumed, in one normal form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

MAX_TOKENS = 100_000_000
"""No call has more tokens of one kind than this; a larger count is not a count."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call. ``source`` says whether the upstream counted or this node did."""

    prompt_tokens: int
    completion_tokens: int
    source: Literal["upstream", "estimated"] = "upstream"

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def usage_from_openai(obj: object) -> Usage | None:
    """The upstream's count out of the value of a ``usage`` field (OpenAI chat dialect).

    Args:
        obj: decoded JSON of any shape.

    Returns:
        None unless both counts are there as integers from 0 to ``MAX_TOKENS``: a count that
        cannot be believed is no count. ``total_tokens`` is not read.
    """
    if not isinstance(obj, Mapping):
        return None
    prompt, completion = _count(obj.get("prompt_tokens")), _count(obj.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    return Usage(prompt, completion)


def _count(value: object) -> int | None:
    # bool is an int to Python, not to JSON
    if type(value) is int and 0 <= value <= MAX_TOKENS:
        return value
    return None
