"""Meters of the chat dialect (completions too), streamed and whole; see
``inference.call.Meter``."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import orjson

from node.core.money import Msat, ceil_div
from node.core.sse import SseEventTooLarge, SseSplitter, event_data
from node.core.usage import Usage, usage_from_openai
from node.errors import UpstreamFailed
from node.service.inference.call import Meter, PreparedCall
from node.service.inference.estimate import BYTES_PER_TOKEN

MAX_REPLY_BYTES = 64 << 20
"""Largest answer that is not streamed; images come as base64."""
MAX_STREAM_EVENT_BYTES = 8 << 20
_FIRST_BYTES = 64 << 10
_DONE = b"data: [DONE]\n\n"
_CHAT_CHUNK = "chat.completion.chunk"

# Text an answer holds, whatever field it comes in: content, reasoning, tool arguments.
_OUTPUT = re.compile(
    rb'"(?:content|reasoning_content|reasoning|refusal|arguments|transcript|text)"\s*:\s*'
    rb'"((?:[^"\\]++|\\.)++)"',  # possessive: no memory per character
    re.DOTALL,
)


class OutputCount:
    """A count of what the client was given, for when the upstream does not count."""

    __slots__ = ("_pattern", "fields", "size_bytes")

    def __init__(self, pattern: re.Pattern[bytes] = _OUTPUT) -> None:
        """``pattern``: its one group is a text, as JSON writes it."""
        self._pattern = pattern
        self.fields = 0
        self.size_bytes = 0

    def add(self, data: bytes) -> None:
        texts = self._pattern.findall(data)
        self.fields += len(texts)
        self.size_bytes += sum(map(len, texts))

    def usage(self, call: PreparedCall) -> Usage:
        # a delta is one token at least; no output is no completion
        tokens = max(self.fields, ceil_div(self.size_bytes, BYTES_PER_TOKEN))
        return replace(call.typical, completion_tokens=min(tokens, call.most.completion_tokens))


def meter_for(call: PreparedCall) -> Meter:
    """The meter that fits the answer ``call`` asks for."""
    return StreamMeter(call) if call.stream else BodyMeter(call)


class StreamMeter:
    """Meter of an SSE answer: bytes pass unchanged, except the usage chunk and ``[DONE]``."""

    def __init__(
        self, call: PreparedCall, *, max_event_bytes: int = MAX_STREAM_EVENT_BYTES
    ) -> None:
        self._failure: UpstreamFailed | None = None
        self._call = call
        self._splitter = SseSplitter(max_event_bytes)
        self._output = OutputCount()
        self._usage: Usage | None = None
        self._usage_chunk: dict[str, Any] | None = None
        self._first: bytes = b""
        self._counted = False
        self._ended = False

    @property
    def failure(self) -> UpstreamFailed | None:
        return self._failure

    @property
    def complete(self) -> bool:
        # some servers stop after the usage chunk, some leave out the last blank line
        return self._failure is None and (
            self._ended or self._counted or event_data(self._splitter.pending).strip() == b"[DONE]"
        )

    def feed(self, data: bytes) -> bytes:
        if self._ended or self._failure is not None:
            return b""
        plain = data[: self._plain_bytes(data)]
        if plain:
            # whole events that only pass: cutting each out would take 5 to 10 µs
            self._first = self._first or _first_data(plain)
            self._output.add(plain)
            if len(plain) == len(data):
                return data
            data = data[len(plain) :]
        try:
            raws = self._splitter.feed_raw(data)
        except SseEventTooLarge:
            raise UpstreamFailed(private="an event of the stream is too large") from None
        return plain + b"".join([self._pass(raw) for raw in raws])

    def usage(self) -> Usage:
        return self._usage or self._output.usage(self._call)

    def finish(self, cost: Msat, change: str | None) -> bytes:
        """The last bytes of the stream. Only a client that asked gets a usage chunk."""
        if self._call.include_usage or self._call.change_in_stream:
            return _event(self._last_chunk(cost, change)) + _DONE
        return _DONE

    def cut(self, cost: Msat, change: str | None) -> bytes:
        """Without ``[DONE]``, for it is not whole."""
        return self.finish(cost, change).removesuffix(_DONE)

    def abort(self, document: dict[str, Any], change: str | None = None) -> bytes:
        """An SSE error event, with the change of a client that takes it in the stream."""
        if change is not None and self._call.change_in_stream:
            document = {**document, "x_cashu": change}
        return _event(document)

    def _plain_bytes(self, data: bytes) -> int:
        """How much of the beginning of ``data`` is whole events without anything to look at."""
        if not self._splitter.at_boundary:
            return 0
        at = _look_at(data)
        lf, crlf = data.rfind(b"\n\n", 0, at), data.rfind(b"\r\n\r\n", 0, at)
        return max(lf + 2 if lf >= 0 else 0, crlf + 4 if crlf >= 0 else 0)

    def _pass(self, raw: bytes) -> bytes:
        """What the client gets of one event."""
        if self._ended or self._failure is not None:
            return b""
        if not self._first and b"data:" in raw:
            self._first = raw[:_FIRST_BYTES]
        if _needs_a_look(raw):
            data = event_data(raw)
            if data.strip() == b"[DONE]":
                self._ended = True
                return b""
            chunk = _json_object(data)
            if chunk.get("error") or chunk.get("object") == "error":  # vLLM's way
                self._failure = UpstreamFailed(private="the stream held an error event")
                return b""
            if chunk.get("usage") is not None:
                raw = self._take_usage(chunk)
        self._output.add(raw)
        return raw

    def _take_usage(self, chunk: dict[str, Any]) -> bytes:
        """Keep the usage back; what else the chunk says goes on."""
        self._usage = usage_from_openai(chunk["usage"]) or self._usage
        self._usage_chunk = {**chunk, "choices": []}
        if not chunk.get("choices"):
            self._counted = True
            return b""
        del chunk["usage"]
        return _event(chunk)

    def _last_chunk(self, cost: Msat, change: str | None) -> dict[str, Any]:
        chunk = self._usage_chunk
        if chunk is None:
            head = _json_object(event_data(self._first))
            chunk = {name: head[name] for name in ("id", "created", "model") if name in head}
            kind = "text_completion" if self._call.endpoint == "completions" else _CHAT_CHUNK
            chunk |= {"object": kind, "choices": []}
        chunk["usage"] = _usage_field(chunk.get("usage"), self.usage(), cost)
        if change is not None and self._call.change_in_stream:
            chunk["x_cashu"] = change
        return chunk


class BodyMeter:
    """Meter of an answer in one piece: nothing passes before the cost is in it."""

    def __init__(self, call: PreparedCall, *, max_reply_bytes: int = MAX_REPLY_BYTES) -> None:
        self._call = call
        self._max_reply_bytes = max_reply_bytes
        self._buffer = bytearray()
        self._parsed: dict[str, Any] | None = None
        self._failure: UpstreamFailed | None = None

    @property
    def failure(self) -> UpstreamFailed | None:
        return self._failure

    @property
    def complete(self) -> bool:
        # only here is the answer parsed, so that its pieces cost nothing
        document = self._document()
        if document.get("error"):
            self._failure = UpstreamFailed(private="the answer was an error with a 2xx status")
        return bool(document) and self._failure is None

    def feed(self, data: bytes) -> bytes:
        if len(self._buffer) + len(data) > self._max_reply_bytes:
            raise UpstreamFailed(private="the answer is too large")
        self._buffer += data
        self._parsed = None
        return b""

    def usage(self) -> Usage:
        counted = usage_from_openai(self._document().get("usage"))
        if counted is not None:
            return counted
        output = OutputCount()
        output.add(bytes(self._buffer))
        return output.usage(self._call)

    def finish(self, cost: Msat, change: str | None) -> bytes:
        """The answer with ``usage.cost``; change travels outside of it."""
        document = self._document()
        return orjson.dumps(
            document | {"usage": _usage_field(document.get("usage"), self.usage(), cost)}
        )

    def cut(self, cost: Msat, change: str | None) -> bytes:
        return b""  # half of a document is none

    def abort(self, document: dict[str, Any], change: str | None = None) -> bytes:
        return orjson.dumps(document)

    def _document(self) -> dict[str, Any]:
        if self._parsed is None:
            self._parsed = _json_object(bytes(self._buffer))
        return self._parsed


def _needs_a_look(data: bytes) -> bool:
    return _look_at(data) < len(data)


def _look_at(data: bytes) -> int:
    """Where the first thing is that an event must be looked into for; its length if nowhere."""
    found = [data.find(b"[DONE]"), data.find(b'"error"'), _find_usage(data)]
    return min((at for at in found if at >= 0), default=len(data))


def _find_usage(data: bytes) -> int:
    at = data.find(b'"usage"')
    # OpenAI itself puts "usage":null into every chunk once usage is asked for
    while at >= 0 and data.startswith(b'"usage":null', at):
        at = data.find(b'"usage"', at + 1)
    return at


def _first_data(events: bytes) -> bytes:
    """From the first ``data`` on, what the first event that has one holds."""
    at = events.find(b"data:")
    if at < 0:
        return b""
    ends = (events.find(b"\n\n", at), events.find(b"\r\n\r\n", at))
    end = min((end for end in ends if end >= 0), default=len(events))
    return events[at : min(end, at + _FIRST_BYTES)]


def _usage_field(given: object, usage: Usage, cost: Msat) -> dict[str, Any]:
    field: dict[str, Any] = dict(given) if isinstance(given, dict) else {}
    field |= {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "cost": int(cost),
    }
    if usage.source == "estimated":
        field["estimated"] = True
    return field


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"
