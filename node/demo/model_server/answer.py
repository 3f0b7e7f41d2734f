"""What an endpoint of the model server answers, before it is sent."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Self

_SENTENCE = (
    "a node sells answers for ecash and nobody asks who pays while relays carry sealed letters "
    "between keys that never met and every coin is counted twice before it moves so the change "
    "comes home and the books agree at the end of each quiet day on the open market of machines"
)
VOCABULARY = tuple(_SENTENCE.split())
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer in its pieces: it may break off between them."""

    content_type: str
    pieces: tuple[bytes, ...]
    streamed: bool = False
    end: bytes = b""
    """Of a stream, after its last event."""

    @classmethod
    def document(cls, value: object) -> Self:
        return cls.whole("application/json", json.dumps(value).encode())

    @classmethod
    def whole(cls, content_type: str, body: bytes) -> Self:
        half = len(body) // 2
        return cls(content_type, (body[:half], body[half:]))

    @classmethod
    def stream(cls, events: list[bytes], end: bytes = DONE) -> Self:
        return cls("text/event-stream", tuple(events), streamed=True, end=end)


def sse(document: dict[str, Any], *, name: str = "") -> bytes:
    """An SSE event."""
    head = f"event: {name}\n" if name else ""
    return head.encode() + b"data: " + json.dumps(document).encode() + b"\n\n"


def words(seed: bytes, count: int) -> list[str]:
    """Words that depend on ``seed`` alone."""
    digest = hashlib.sha256(seed).digest()
    return [VOCABULARY[byte % len(VOCABULARY)] for byte in (digest * (1 + count // 32))[:count]]


def counts(prompt: int, completion: int | None, fault: str) -> dict[str, Any]:
    """``usage`` in the chat dialect, as an update of an answer; none when told not to count."""
    if fault == "no-usage":
        return {}
    if fault == "bad-usage":
        return {"usage": {"prompt_tokens": -1, "completion_tokens": 1e30, "total_tokens": None}}
    usage = {"prompt_tokens": prompt, "total_tokens": prompt + (completion or 0)}
    if completion is not None:
        usage["completion_tokens"] = completion
    return {"usage": usage}


def token_counts(input_: int, output: int, fault: str) -> dict[str, Any]:
    """``usage`` as images and sound have it, as an update of an answer."""
    if fault == "no-usage":
        return {}
    if fault == "bad-usage":
        return {"usage": {"input_tokens": -1, "output_tokens": 1e30}}
    usage: dict[str, Any] = {"type": "tokens", "input_tokens": input_, "output_tokens": output}
    return {"usage": {**usage, "total_tokens": input_ + output}}
