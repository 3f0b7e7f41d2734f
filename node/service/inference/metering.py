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
from node.errors import AnswerTooLarge, UpstreamFailed
from node.service.inference.call import Meter, PreparedCall
from node.service.inference.estimate import BYTES_PER_TOKEN

MAX_REPLY_BYTES = 64 << 20
"""Largest answer that is not streamed; images come as base64."""
MAX_STREAM_EVENT_BYTES = 8 << 20
LARGE_BYTES = 1 << 20
"""From here on an answer is parsed only as far as needed: 30 MB of vectors take a quarter of a
second, in which nobody is served, and twice their size in memory."""
_FIRST_BYTES = 64 << 10
_END_BYTES = 4096
_DONE = b"data: [DONE]\n\n"
_CHAT_CHUNK = "chat.completion.chunk"

# Text an answer holds, whatever field it comes in: content, reasoning, tool arguments.
_OUTPUT = re.compile(
    rb'"(?:content|reasoning_content|reasoning|refusal|arguments|transcript|text)"\s*:\s*'
    rb'"((?:[^"\\]++|\\.)++)"',  # possessive: no memory per character
    re.DOTALL,
)


# The last object of an answer, of counts and objects of counts; what is behind it is simple.
_USAGE_AT_END = re.compile(
    rb'[,{]\s*"usage"\s*:\s*(\{(?:[^{}"]|"[^"\\]*"|\{(?:[^{}"]|"[^"\\]*")*\})*\})'
    rb'(?:\s*,\s*"[^"\\]*"\s*:\s*(?:"[^"\\]*"|[a-z0-9.+-]+))*\s*\}\s*\Z',
)


class OutputCount:
    """A count of what the client was given, for when the upstream does not count."""

    __slots__ = ("_pattern", "fields", "size_bytes")

    def __init__(self, pattern: re.Pattern[bytes] = _OUTPUT) -> None:
        """``pattern``: its one group is a text, as JSON writes it."""
        self._pattern = pattern
        self.fields = 0
        self.size_bytes = 0

    def add(self, data: bytes | bytearray) -> None:
        texts = self._pattern.findall(data)
        self.fields += len(texts)
        self.size_bytes += sum(map(len, texts))

    def usage(self, call: PreparedCall) -> Usage:
        # a delta is one token at least; no output is no completion
        tokens = max(self.fields, ceil_div(self.size_bytes, BYTES_PER_TOKEN))
        return replace(call.typical, completion_tokens=min(tokens, call.most.completion_tokens))


def meter_for(call: PreparedCall) -> Meter:
    """The meter that fits the answer ``call`` asks for."""
    return StreamMeter(call) if call.stream else BodyMeter(call, only_usage=True)


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
        if self._over():
            return b""
        rest = b""
        if not self._splitter.at_boundary:
            # what the last piece began, so that the others can pass as they are
            end = data.find(b"\n\n") + 2
            if 2 <= end < len(data):
                rest, data = self._cut(data[:end]), data[end:]
                if self._over():
                    return rest
        plain = data[: self._plain_bytes(data)]
        if plain:
            # whole events that only pass: cutting each out would take 2 to 10 µs
            self._first = self._first or _first_data(plain)
            self._output.add(plain)
            data = data[len(plain) :]
        return rest + plain + (self._cut(data) if data else b"")

    def _over(self) -> bool:
        return self._ended or self._failure is not None

    def _cut(self, data: bytes) -> bytes:
        """What the client gets of ``data``, looked at event by event."""
        try:
            raws = self._splitter.feed_raw(data)
        except SseEventTooLarge:
            raise AnswerTooLarge(private="an event of the stream is too large") from None
        return b"".join([self._pass(raw) for raw in raws])

    def usage(self) -> Usage:
        told = self._usage
        if told is not None and self.complete:
            return told
        seen = self._output.usage(self._call)
        if told is None or told.completion_tokens >= seen.completion_tokens:
            return told or seen
        return replace(told, completion_tokens=seen.completion_tokens)

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
        if self._over():
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
    """Meter of an answer in one piece: nothing passes before the cost is in it.

    Args:
        only_usage: nothing else of the answer is looked at, so that of a large one only its end
            need be parsed.
    """

    def __init__(
        self,
        call: PreparedCall,
        *,
        only_usage: bool = False,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> None:
        self._call = call
        self._only_usage = only_usage
        self._at: tuple[int, int] | None = None
        """Where the value of ``usage`` is, when only that was parsed."""
        self._max_reply_bytes = max_reply_bytes
        self._buffer = bytearray()
        self._parsed: dict[str, Any] | None = None
        self._usage: Usage | None = None
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
            raise AnswerTooLarge(private="the answer is too large")
        self._buffer += data
        self._parsed = self._usage = self._at = None
        return b""

    def usage(self) -> Usage:
        if self._usage is None:
            self._usage = usage_from_openai(self._document().get("usage")) or self._counted()
        return self._usage

    def _counted(self) -> Usage:
        output = OutputCount()
        output.add(self._buffer)
        return output.usage(self._call)

    def finish(self, cost: Msat, change: str | None) -> bytes:
        """The answer with ``usage.cost``; change travels outside of it."""
        given = self._document().get("usage")
        return self.with_usage(_usage_field(given, self.usage(), cost))

    def with_usage(self, field: dict[str, Any]) -> bytes:
        """The answer with that ``usage``. It is given away: nothing of it is kept."""
        document, at, buffer = self._document(), self._at, self._buffer
        self._buffer = bytearray()
        if len(buffer) >= LARGE_BYTES:
            self._parsed = {"usage": document.get("usage")}
        if at is None:
            del buffer  # not both at once: it is as large as what comes
            return orjson.dumps(document | {"usage": field})
        view = memoryview(buffer)
        return b"".join((view[: at[0]], orjson.dumps(field), view[at[1] :]))

    def cut(self, cost: Msat, change: str | None) -> bytes:
        return b""  # half of a document is none

    def abort(self, document: dict[str, Any], change: str | None = None) -> bytes:
        return orjson.dumps(document)

    def _document(self) -> dict[str, Any]:
        if self._parsed is None and self._only_usage and len(self._buffer) >= LARGE_BYTES:
            found = _usage_at_end(self._buffer)
            if found is not None:
                self._at, usage = found
                self._parsed = {"usage": usage}
        if self._parsed is None:
            whole = self._buffer[-_END_BYTES:].rstrip().endswith(b"}")
            self._parsed = _json_object(self._buffer) if whole else {}
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


def _usage_at_end(body: bytearray) -> tuple[tuple[int, int], dict[str, Any]] | None:
    """Where the value of ``usage`` is in a JSON object that ends with it, and what it is; None
    when that is not plain to see.

    Nothing but simple values may follow it, and then the brace that ends all: so it is in no
    other object.
    """
    start = max(0, len(body) - _END_BYTES)
    end = bytes(body[start:])
    found = _USAGE_AT_END.search(end)
    if found is None or body[:_END_BYTES].lstrip()[:1] != b"{":
        return None
    if b'"error"' in end or b'"error"' in body[:_END_BYTES]:
        return None
    usage = _json_object(found[1])
    return ((start + found.start(1), start + found.end(1)), usage) if usage else None


def _json_object(data: bytes | bytearray) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"
