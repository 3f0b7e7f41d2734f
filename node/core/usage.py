"""Metering: what a call consumed, in one normal form for every dialect.

| dialect | prompt | cached | completion | reasoning |
|---|---|---|---|---|
| chat, completions, embeddings | ``prompt_tokens`` | in ``prompt_tokens_details`` (DeepSeek: \
``prompt_cache_hit_tokens``) | ``completion_tokens`` | in ``completion_tokens_details`` |
| responses, images, transcriptions | ``input_tokens`` | in ``input_tokens_details`` | \
``output_tokens`` | in ``output_tokens_details`` |
| messages (Anthropic) | ``input_tokens`` and both cache counts | ``cache_read_input_tokens`` | \
``output_tokens`` | ``thinking_tokens`` in ``output_tokens_details`` |

A count that cannot be believed is no count: bools, negative or enormous numbers. A part larger
than its whole is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

MAX_TOKENS = 100_000_000
"""No call has more tokens of one kind than this; a larger count is not a count."""
MAX_AUDIO_S = 1_000_000
"""No recording is longer, in seconds."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one call consumed. ``source`` says whether the upstream counted or this node did."""

    prompt_tokens: int = 0
    """All of the input, whatever it cost."""
    completion_tokens: int = 0
    """All of the output, reasoning included."""
    source: Literal["upstream", "estimated"] = "upstream"
    cached_tokens: int = 0
    """The part of ``prompt_tokens`` that was read from a cache."""
    cache_write_tokens: int = 0
    """The part of ``prompt_tokens`` that was written to a cache."""
    reasoning_tokens: int = 0
    """The part of ``completion_tokens`` that nobody sees."""
    images: int = 0
    """Images made."""
    audio_ms: int = 0
    """Audio listened to or made, in milliseconds."""
    characters: int = 0
    """Characters read aloud."""

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def usage_from_openai(obj: object) -> Usage | None:
    """The upstream's count out of the value of a ``usage`` field (chat dialect).

    Args:
        obj: decoded JSON of any shape.

    Returns:
        None unless both counts are there as integers from 0 to ``MAX_TOKENS``. What
        ``total_tokens`` has beyond them is reasoning that some leave out of the completion (xAI).
    """
    if not isinstance(obj, Mapping):
        return None
    prompt, completion = _count(obj.get("prompt_tokens")), _count(obj.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    cached = _part(obj, "prompt_tokens_details", "cached_tokens", prompt)
    if not cached:
        cached = _at_most(_count(obj.get("prompt_cache_hit_tokens")), prompt)
    written = _part(obj, "prompt_tokens_details", "cache_write_tokens", prompt - cached)
    reasoning = _part(obj, "completion_tokens_details", "reasoning_tokens", MAX_TOKENS)
    total = _count(obj.get("total_tokens")) or 0
    if reasoning > completion:
        completion += reasoning
    completion = min(max(completion, total - prompt), MAX_TOKENS)
    return Usage(
        prompt,
        completion,
        cached_tokens=cached,
        cache_write_tokens=written,
        reasoning_tokens=reasoning,
    )


def usage_from_input(obj: object) -> Usage | None:
    """The count of an endpoint that generates no text: embeddings, moderations, rerank.

    None unless ``prompt_tokens`` (or ``input_tokens``, or else ``total_tokens``) is a count.
    """
    if not isinstance(obj, Mapping):
        return None
    for name in ("prompt_tokens", "input_tokens", "total_tokens"):
        prompt = _count(obj.get(name))
        if prompt is not None:
            return Usage(prompt, _at_most(_count(obj.get("completion_tokens")), MAX_TOKENS))
    return None


def usage_from_responses(obj: object) -> Usage | None:
    """The count in the dialect of responses, images and transcriptions.

    ``{"type": "duration", "seconds": …}``, as transcriptions priced by time have it, is a count
    too. None when it cannot be believed.
    """
    if not isinstance(obj, Mapping):
        return None
    if obj.get("type") == "duration":
        seconds = obj.get("seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            return None
        return Usage(audio_ms=math.ceil(seconds * 1000)) if 0 <= seconds <= MAX_AUDIO_S else None
    prompt, completion = _count(obj.get("input_tokens")), _count(obj.get("output_tokens"))
    if prompt is None or completion is None:
        return None
    return Usage(
        prompt,
        completion,
        cached_tokens=_part(obj, "input_tokens_details", "cached_tokens", prompt),
        reasoning_tokens=_part(obj, "output_tokens_details", "reasoning_tokens", completion),
    )


def usage_from_anthropic(obj: object) -> Usage | None:
    """The count in Anthropic's dialect, whose ``input_tokens`` leave out what the cache had.

    None when it cannot be believed.
    """
    if not isinstance(obj, Mapping):
        return None
    fresh, completion = _count(obj.get("input_tokens")), _count(obj.get("output_tokens"))
    if fresh is None or completion is None:
        return None
    read = _at_most(_count(obj.get("cache_read_input_tokens")), MAX_TOKENS)
    written = _at_most(_count(obj.get("cache_creation_input_tokens")), MAX_TOKENS)
    return Usage(
        fresh + read + written,
        completion,
        cached_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=_part(obj, "output_tokens_details", "thinking_tokens", completion),
    )


def _part(obj: Mapping[object, object], details: str, name: str, whole: int) -> int:
    inner = obj.get(details)
    return _at_most(_count(inner.get(name)), whole) if isinstance(inner, Mapping) else 0


def _at_most(count: int | None, whole: int) -> int:
    return count if count is not None and count <= whole else 0


def _count(value: object) -> int | None:
    # bool is an int to Python, not to JSON
    if type(value) is int and 0 <= value <= MAX_TOKENS:
        return value
    return None
