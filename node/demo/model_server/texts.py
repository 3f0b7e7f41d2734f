"""Completions, embeddings, moderations and reranking of the model server."""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import Any

from node.demo.model_server.answer import Answered, counts, sse, words

DIMENSIONS = 8


def completion(body: dict[str, Any], fault: str, length: int) -> Answered:
    """``POST /v1/completions``: a few words for every prompt and choice."""
    prompts = _inputs(body["prompt"])
    limit = min(length, int(body.get("max_tokens", 16)))
    choices = []
    for prompt in prompts:
        for _ in range(int(body.get("n") or 1)):
            said = [] if fault == "empty" else words(repr(prompt).encode(), limit)
            echoed = [str(prompt)] if body.get("echo") else []
            choices.append([*echoed, *said])
    generated = limit * len(choices) if fault != "empty" else 0
    usage = counts(sum(map(_tokens, prompts)), generated, fault)
    head = {"id": "cmpl-1", "object": "text_completion", "created": 0, "model": body["model"]}
    if not body.get("stream"):
        texts = [
            {"index": index, "text": " ".join(said), "logprobs": None, "finish_reason": "length"}
            for index, said in enumerate(choices)
        ]
        return Answered.document({**head, "choices": texts, **usage})
    events = [
        sse({**head, "choices": [{"index": index, "text": f"{word} ", "finish_reason": None}]})
        for index, said in enumerate(choices)
        for word in said
    ]
    if (body.get("stream_options") or {}).get("include_usage") and usage:
        events.append(sse({**head, "choices": [], **usage}))
    return Answered.stream(events)


def embeddings(body: dict[str, Any], fault: str, length: int) -> Answered:
    """``POST /v1/embeddings``: a vector of the digest of every input."""
    inputs = _inputs(body["input"])
    size = int(body.get("dimensions") or DIMENSIONS)
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _vector(item, size, body.get("encoding_format") == "base64"),
        }
        for index, item in enumerate(inputs)
    ]
    document = {"object": "list", "data": [] if fault == "empty" else data, "model": body["model"]}
    return Answered.document({**document, **counts(sum(map(_tokens, inputs)), None, fault)})


def vector(item: object, size: int) -> list[float]:
    """The vector of one input: single-precision numbers from -1 to 1."""
    digest = hashlib.sha256(repr(item).encode()).digest()
    octets = (digest * (1 + size // 32))[:size]
    return list(
        struct.unpack(f"<{size}f", struct.pack(f"<{size}f", *(o / 127.5 - 1 for o in octets)))
    )


def _vector(item: object, size: int, packed: bool) -> list[float] | str:
    numbers = vector(item, size)
    if not packed:
        return numbers
    return base64.b64encode(struct.pack(f"<{size}f", *numbers)).decode()


def moderation(body: dict[str, Any], fault: str, length: int) -> Answered:
    """``POST /v1/moderations``: whoever says kill is flagged. Nothing is counted."""
    results = [
        {
            "flagged": "kill" in str(item),
            "categories": {"violence": "kill" in str(item)},
            "category_scores": {"violence": float("kill" in str(item))},
        }
        for item in _inputs(body["input"])
    ]
    return Answered.document({"id": "modr-1", "model": body["model"], "results": results})


def rerank(body: dict[str, Any], fault: str, length: int) -> Answered:
    """``POST /v1/rerank``: by the share of the query's words that a document has."""
    query = set(str(body["query"]).split())
    texts = [
        item if isinstance(item, str) else str(item.get("text", "")) for item in body["documents"]
    ]
    scores = [len(query & set(text.split())) / max(1, len(query)) for text in texts]
    order = sorted(range(len(texts)), key=lambda index: -scores[index])
    results = [
        {"index": index, "relevance_score": scores[index], "document": {"text": texts[index]}}
        for index in order[: int(body.get("top_n") or len(texts))]
    ]
    tokens = sum(len(text.split()) + len(str(body["query"]).split()) for text in texts)
    document = {"id": "rerank-1", "model": body["model"], "results": results}
    if fault == "empty":
        document["results"] = []
    if "cohere" in str(body["model"]):
        return Answered.document({**document, "meta": {"tokens": {"input_tokens": tokens}}})
    return Answered.document({**document, **counts(tokens, None, fault)})


def _inputs(value: Any) -> list[Any]:
    """A text, tokens, or a list of them, as a list. Raises TypeError."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise TypeError("no input")
    return [value] if value and isinstance(value[0], int) else value


def _tokens(item: Any) -> int:
    if isinstance(item, dict):
        return len(str(item.get("text", "")).split())
    return len(item) if isinstance(item, list) else len(str(item).split())
