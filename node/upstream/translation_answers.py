"""Whole chat completions as Anthropic messages, and what a stream of them needs too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from node.errors import AnswerTooLarge, UpstreamFailed

Document = dict[str, Any]

MAX_ANSWER_BYTES = 64 << 20
"""Of an answer that is not streamed."""

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


@dataclass(frozen=True, slots=True)
class MessageHead:
    """What a message says of itself that no chat completion knows."""

    id: str
    model: str
    stop_sequences: tuple[object, ...] = ()

    def message(self, answer: Document, content: list[Document]) -> Document:
        """A message of ``content``; ``answer`` is the completion or its first chunk."""
        given = answer.get("id")
        return {
            "id": given if isinstance(given, str) and given else self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }

    def stop(self, choice: Document, *, tools: bool) -> Document:
        """Why it ended, of a choice that has a ``finish_reason``."""
        reason = choice.get("finish_reason")
        if reason == "stop" and tools:
            reason = "tool_calls"
        at = choice.get("stop_reason")  # vLLM says which
        if reason == "stop" and isinstance(at, str) and at in self.stop_sequences:
            return {"stop_reason": "stop_sequence", "stop_sequence": at}
        known = _STOP_REASONS.get(reason) if isinstance(reason, str) else None
        return {"stop_reason": known or "end_turn", "stop_sequence": None}


def message_usage(usage: object) -> Document:
    """A chat completion's ``usage`` in Anthropic's terms; empty when it is no count."""
    if not isinstance(usage, dict):
        return {}
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if type(prompt) is not int or type(completion) is not int:
        return {}
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    if type(cached) is not int:
        cached = usage.get("prompt_cache_hit_tokens")
    if type(cached) is not int or not 0 <= cached <= prompt:
        cached = 0
    field: Document = {
        "input_tokens": prompt - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": completion,
    }
    details = usage.get("completion_tokens_details")
    reasoning = details.get("reasoning_tokens") if isinstance(details, dict) else None
    if type(reasoning) is int and 0 < reasoning <= completion:
        field["output_tokens_details"] = {"thinking_tokens": reasoning}
    return field


class WholeMessage:
    """Collects a completion and gives the message at its end."""

    def __init__(self, head: MessageHead) -> None:
        self._head = head
        self._buffer = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Take some of the body; gives nothing yet. Raises UpstreamFailed."""
        if len(self._buffer) + len(data) > MAX_ANSWER_BYTES:
            raise AnswerTooLarge(private="the answer is too large")
        self._buffer += data
        return b""

    def end(self) -> bytes:
        """The message. Raises UpstreamFailed when there is none."""
        document = json_object(bytes(self._buffer))
        choice = first_choice(document)
        message = choice.get("message")
        if not isinstance(message, dict):
            raise UpstreamFailed(private="the answer is no chat completion")
        content = [block(kind, text) for kind, text in texts(message)]
        tools = [_tool_block(call, place) for place, call in enumerate(calls(message), 1)]
        translated = self._head.message(document, [*content, *tools])
        translated |= self._head.stop(choice, tools=bool(tools))
        if message.get("refusal"):
            translated["stop_reason"] = "refusal"
        usage = message_usage(document.get("usage"))
        if usage:
            translated["usage"] = usage
        return orjson.dumps(translated)


def texts(message: Document) -> list[tuple[str, str]]:
    """Thinking and text of a message or a delta, in the order in which they were thought."""
    found: list[tuple[str, str]] = []
    for name in ("reasoning_content", "reasoning"):
        if isinstance(message.get(name), str) and message[name]:
            found.append(("thinking", message[name]))
            break
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    for part in content if isinstance(content, list) else []:
        match part:
            case {"type": "text", "text": str(text)} if text:
                found.append(("text", text))
            case {"type": "thinking", "thinking": list(inner)}:  # Mistral's way
                found += [
                    ("thinking", item["text"])
                    for item in inner
                    if isinstance(item, dict) and isinstance(item.get("text"), str) and item["text"]
                ]
    if isinstance(message.get("refusal"), str) and message["refusal"]:
        found.append(("text", message["refusal"]))
    return found


def block(kind: str, text: str) -> Document:
    """A block of text or thinking."""
    made: Document = {"type": kind, kind: text}
    if kind == "thinking":
        made["signature"] = ""  # nobody signed it
    return made


def calls(message: Document) -> list[Document]:
    """Tool calls of a message or a delta."""
    given = message.get("tool_calls")
    found = [call for call in given if isinstance(call, dict)] if isinstance(given, list) else []
    old = message.get("function_call")
    if isinstance(old, dict) and old and not found:
        found = [{"index": 0, "function": old}]
    return found


def _tool_block(call: Document, place: int) -> Document:
    function = call.get("function")
    function = function if isinstance(function, dict) else {}
    arguments = function.get("arguments")
    given = json_object(arguments.encode("utf-8", "replace")) if isinstance(arguments, str) else {}
    if not given and isinstance(arguments, str) and arguments.strip() not in ("", "{}", "null"):
        given = {"arguments": arguments}  # no object: the client sees what the model wrote
    return {
        "type": "tool_use",
        "id": str(call.get("id") or f"toolu_{place}"),
        "name": str(function.get("name") or ""),
        "input": given,
    }


def first_choice(document: Document) -> Document:
    """The one choice that is asked for; empty when there is none."""
    choices = document.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else {}


def json_object(data: bytes) -> Document:
    """A JSON object; empty when ``data`` is none."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def event(document: Document) -> bytes:
    """An SSE event of the type that ``document`` names."""
    name = str(document["type"]).encode()
    return b"event: " + name + b"\ndata: " + orjson.dumps(document) + b"\n\n"
