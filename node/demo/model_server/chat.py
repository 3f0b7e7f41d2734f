"""Chat completions of the model server."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from node.demo.model_server.answer import VOCABULARY, Answered, sse


@dataclass(slots=True)
class Answer:
    """The words that answer a prompt, in the shapes of the API."""

    id: str
    model: str
    prompt_tokens: int
    words: list[str]
    finish_reason: str
    choices: int

    @classmethod
    def to(cls, body: dict[str, Any], length: int) -> Answer:
        """Raises ValueError, TypeError, KeyError or AttributeError when ``body`` is no request."""
        prompt = " ".join(_texts(body["messages"]))
        digest = hashlib.sha256(prompt.encode()).digest()
        asked = prompt.split()
        words = ["You", "asked:", *asked[-6:], "—"]
        words += [VOCABULARY[byte % len(VOCABULARY)] for byte in digest * (1 + length // 32)]
        limits = [body.get(name) for name in ("max_tokens", "max_completion_tokens")]
        limit = min([length, *(int(value) for value in limits if value)])
        return cls(
            id=f"chatcmpl-{digest.hex()[:24]}",
            model=str(body["model"]),
            prompt_tokens=len(asked) + 4 * len(body["messages"]),
            words=words[:limit],
            finish_reason="length" if limit < length else "stop",
            choices=int(body.get("n") or 1),
        )

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def usage(self, fault: str = "") -> dict[str, Any]:
        if fault == "bad-usage":
            return {"prompt_tokens": -1, "completion_tokens": 1e30, "total_tokens": None}
        completion = len(self.words) * self.choices
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
        }

    def completion(self, fault: str = "") -> dict[str, Any]:
        """The answer in one piece."""
        message = {"role": "assistant", "content": self.text}
        choices = [
            {"index": index, "message": message, "finish_reason": self.finish_reason}
            for index in range(self.choices)
        ]
        document = {**self.head("chat.completion"), "choices": choices}
        return document if fault == "no-usage" else {**document, "usage": self.usage(fault)}

    def chunks(self) -> list[dict[str, Any]]:
        """The answer word by word."""
        chunks = []
        for index in range(self.choices):
            deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
            deltas += [
                {"content": word if position == 0 else f" {word}"}
                for position, word in enumerate(self.words)
            ]
            chunks += [self._chunk(index, delta, None) for delta in deltas]
            chunks.append(self._chunk(index, {}, self.finish_reason))
        return chunks

    def head(self, kind: str = "chat.completion.chunk") -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": 0, "model": self.model}

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": reason}
        return {**self.head(), "choices": [choice]}


def chat(body: dict[str, Any], fault: str, length: int) -> Answered:
    """``POST /v1/chat/completions``: as ``Answer.to`` says."""
    answer = Answer.to(body, length)
    if fault == "empty":
        answer.words = []
    if not body.get("stream"):
        return Answered.document(answer.completion(fault))
    chunks = answer.chunks()
    if (body.get("stream_options") or {}).get("include_usage") and fault != "no-usage":
        chunks.append({**answer.head(), "choices": [], "usage": answer.usage(fault)})
    return Answered.stream([sse(chunk) for chunk in chunks])


def _texts(messages: list[dict[str, Any]]) -> list[str]:
    texts = []
    for message in messages:
        content = message.get("content") or ""
        if isinstance(content, list):
            content = " ".join(str(part.get("text", "")) for part in content)
        texts.append(str(content))
    return texts
