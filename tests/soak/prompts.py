"""What clients ask the model, and what that costs."""

from __future__ import annotations

import random
from typing import Any

from tests.soak.node import OFFER

MOST_WORDS = 12


def published_price(prompt_tokens: int, completion_tokens: int) -> int:
    """What a call costs by docs/protocol.md, in msat."""
    price = OFFER.price
    tokens = prompt_tokens * price.input_per_mtok + completion_tokens * price.output_per_mtok
    return -(-(tokens + 1_000_000 * price.per_request) // 1_000_000)


def chat_body(dice: random.Random) -> dict[str, Any]:
    """A chat of at most MOST_WORDS words, half of them streamed."""
    words = " ".join(f"w{dice.randrange(10, 100)}" for _ in range(dice.randint(1, MOST_WORDS)))
    return body_of(words, stream=dice.random() < 0.5, usage=dice.random() < 0.7)


def longest_body() -> dict[str, Any]:
    """The one that may cost most."""
    return body_of(" ".join(["w99"] * MOST_WORDS), stream=True, usage=True)


def body_of(words: str, *, stream: bool, usage: bool) -> dict[str, Any]:
    """``usage``: ask for it, should it be a stream."""
    body: dict[str, Any] = {
        "model": OFFER.model,
        "messages": [{"role": "user", "content": words}],
        "stream": stream,
    }
    return body | {"stream_options": {"include_usage": True}} if stream and usage else body
