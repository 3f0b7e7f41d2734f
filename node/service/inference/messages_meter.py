"""Meters of Anthropic's dialect, streamed and whole; see ``inference.call.Meter``.

message_start (input usage) … message_delta (stop reason, output usage)  message_stop
                              └───────────── held back until settled ─────────────┘
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import orjson

from node.core.money import Msat
from node.core.usage import Usage, usage_from_anthropic
from node.errors import UpstreamFailed
from node.service.inference.call import Meter, PreparedCall
from node.service.inference.typed_events import (
    Document,
    TypedBodyMeter,
    TypedStreamMeter,
    event,
    usage_field,
)

_TEXTS = re.compile(
    rb'"(?:text|thinking|partial_json)"\s*:\s*"((?:[^"\\]++|\\.)++)"',
    re.DOTALL,
)
_INPUT = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_STOP = event("message_stop", {"type": "message_stop"})


def messages_meter(call: PreparedCall) -> Meter:
    """The meter that fits the answer ``call`` asks for."""
    if call.stream:
        return MessagesStreamMeter(call)
    return MessagesBodyMeter(call, _count, _TEXTS, total=False)


def _count(usage: object) -> Usage | None:
    counted = usage_from_anthropic(usage)
    # no prompt is empty: an upstream that says so has not counted
    return counted if counted is not None and counted.prompt_tokens else None


class MessagesBodyMeter(TypedBodyMeter):
    """Meter of a whole message."""

    def generated(self) -> bytes:
        blocks = self._document().get("content")
        inputs = [
            orjson.dumps({"partial_json": orjson.dumps(block["input"]).decode()})
            for block in (blocks if isinstance(blocks, list) else [])
            if isinstance(block, dict) and block.get("input")
        ]
        return b"".join([super().generated(), *inputs])


class MessagesStreamMeter(TypedStreamMeter):
    """Holds back ``message_delta`` and ``message_stop``."""

    marks = (
        b"message_start",
        b"message_delta",
        b"message_stop",
        b'"error"',
        b"event: error",
        b"event:error",
        b"[DONE]",
    )
    texts = _TEXTS

    def __init__(self, call: PreparedCall) -> None:
        super().__init__(call)
        self._start: Document = {}
        self._stopped = False

    def look(self, kind: str, document: Document, raw: bytes) -> bytes:
        if kind == "error" or document.get("error"):
            self._failure = UpstreamFailed(private="the stream held an error event")
            return b""
        if kind == "message_stop":
            self._ended = True
            return b""
        if kind == "ping" and self._held is not None:
            return raw
        earlier = self.release()
        if kind == "message_delta" and document:
            self._held, self._held_raw = document, raw
            self._take_delta(document)
            return earlier
        if kind == "message_start":
            message = document.get("message")
            usage = message.get("usage") if isinstance(message, dict) else None
            self._start = usage if isinstance(usage, dict) else {}
        self._output.add(raw)
        return earlier + raw

    def usage(self) -> Usage:
        if self._counted is not None:
            return self._counted
        seen = self._output.usage(self._call)
        begun = _count({**self._start, "output_tokens": 0})
        if begun is None:
            return seen
        return replace(begun, completion_tokens=seen.completion_tokens, source="estimated")

    def finish(self, cost: Msat, change: str | None) -> bytes:
        """``message_delta`` with ``usage.cost``, and ``message_stop``."""
        document = self._held or _delta("end_turn")
        return self._end(document, cost, change) + _STOP

    def cut(self, cost: Msat, change: str | None) -> bytes:
        """Without a stop reason and ``message_stop``, for it is not whole."""
        return self._end(_delta(None), cost, change)

    def abort(self, document: dict[str, Any], change: str | None = None) -> bytes:
        """An ``error`` event that holds our error body."""
        return event("error", self.with_change({"type": "error", **document}, change))

    def _whole(self) -> bool:
        return self._ended or self._stopped

    def _take_delta(self, document: Document) -> None:
        delta, told = document.get("delta"), document.get("usage")
        if isinstance(delta, dict) and isinstance(delta.get("stop_reason"), str):
            self._stopped = True
        if not isinstance(told, dict):
            return
        # counts are cumulative; some servers know the input only now, some tell it at the start
        counted_input = told if any(told.get(name) for name in _INPUT) else self._start
        told = {**told, **{name: counted_input.get(name) for name in _INPUT}}
        self._counted = _count(told) or self._counted

    def _end(self, document: Document, cost: Msat, change: str | None) -> bytes:
        usage = usage_field(document.get("usage"), self.usage(), cost, total=False)
        return event("message_delta", self.with_change({**document, "usage": usage}, change))


def _delta(stop_reason: str | None) -> Document:
    return {
        "type": "message_delta",
        "delta": {"stop_reason": stop_reason, "stop_sequence": None},
        "usage": {},
    }
