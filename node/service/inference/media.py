"""What the meters of images and sound have in common: an answer may be priced by its images, its
minutes, its characters or its tokens, and be a document, a file or a stream of events.

Whatever it comes as, it is reduced to ``Seen``; from that one function per endpoint tells the
usage. Only what has a price is ever estimated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from node.core.money import Msat
from node.core.sse import event_data, event_name
from node.core.usage import Usage, usage_from_openai, usage_from_responses
from node.errors import InvalidValue, UpstreamFailed
from node.service.inference.bodies import usage_field
from node.service.inference.call import Meter, PreparedCall
from node.service.inference.typed_events import Document, TypedStreamMeter

MAX_EVENT_BYTES = 32 << 20
"""Of one event of a stream: an image in base64."""
NAMES = ("input_tokens", "output_tokens")
"""How these dialects call the counts."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What an answer has shown so far."""

    counted: Usage | None = None
    """By the upstream."""
    images: int = 0
    text_bytes: int = 0
    """Of generated text."""
    audio_ms: int | None = None
    """Of the sound in question, when the answer tells."""


Count = Callable[[PreparedCall, Seen], Usage]


def counted(usage: object) -> Usage | None:
    """The value of a ``usage`` field in either dialect; None when it cannot be believed."""
    return usage_from_responses(usage) or usage_from_openai(usage)


def sold_by_token(call: PreparedCall) -> bool:
    price = call.model.price
    return bool(price.input_per_mtok or price.output_per_mtok)


def with_estimates(
    call: PreparedCall, usage: Usage | None, *, output_tokens: int, audio_ms: int | None
) -> Usage:
    """The upstream's count, and an estimate of what it left out and has a price.

    Args:
        output_tokens: if the upstream did not count tokens.
        audio_ms: as the answer tells it; None when it does not.
    """
    result = usage or Usage()
    if sold_by_token(call) and not result.total_tokens:
        result = replace(
            result,
            prompt_tokens=call.typical.prompt_tokens,
            completion_tokens=min(output_tokens, call.most.completion_tokens),
            source="estimated",
        )
    if call.model.price.per_audio_minute and not result.audio_ms:
        if audio_ms is not None:
            result = replace(result, audio_ms=audio_ms)
        else:
            result = replace(result, audio_ms=call.typical.audio_ms, source="estimated")
    return replace(result, characters=call.typical.characters)


class MediaStreamMeter(TypedStreamMeter):
    """Meter of a stream of typed events, of which the one that ends it brings the usage.

    Also of chunks in the chat dialect, as one server has them for transcriptions, and of an answer
    that is not streamed though that was asked for.

    Args:
        count: the usage from what was seen.
        whole: makes the meter for an answer in one piece.
    """

    marks = (b'.done"', b'.completed"', b'"error"', b'"usage"', b"partial_image", b"[DONE]")
    texts = re.compile(rb'"(?:delta|content)"\s*:\s*"((?:[^"\\]++|\\.)++)"', re.DOTALL)

    def __init__(
        self,
        call: PreparedCall,
        count: Count,
        whole: Callable[[PreparedCall], Meter] | None = None,
        *,
        max_event_bytes: int = MAX_EVENT_BYTES,
    ) -> None:
        super().__init__(call, max_event_bytes=max_event_bytes)
        self._count = count
        self._make_whole = whole
        self._whole_meter: Meter | None = None
        self._sniffed = False
        self._done = False
        self._images = 0
        self._partial = False

    @property
    def failure(self) -> UpstreamFailed | None:
        return self._whole_meter.failure if self._whole_meter else super().failure

    @property
    def complete(self) -> bool:
        if self._whole_meter is not None:
            return self._whole_meter.complete
        return self._failure is None and (self._done or self._held is not None)

    def feed(self, data: bytes) -> bytes:
        if not self._sniffed and data.strip():
            self._sniffed = True
            if self._make_whole is not None and data.lstrip()[:1] == b"{":
                self._whole_meter = self._make_whole(self._call)
        if self._whole_meter is not None:
            return self._whole_meter.feed(data)
        if data:
            return super().feed(data)
        # some servers leave out the last blank line
        return b"".join([self._pass(event.raw) for event in self._splitter.flush()])

    def look(self, kind: str, document: Document, raw: bytes) -> bytes:
        if document.get("error") or kind == "error":
            self._failure = UpstreamFailed(private="the stream held an error event")
            return b""
        out = self.release()
        if kind.endswith(".partial_image"):
            self._partial = True
            return out + raw
        ends = kind.endswith((".done", ".completed"))
        usage = document.get("usage")
        if not ends and (usage is None or document.get("choices")):
            self._output.add(raw)
            return out + raw
        if kind.startswith("image_"):
            self._images += 1
            self._partial = False
        self._add(counted(usage))
        self._held, self._held_raw = document, raw
        return out

    def usage(self) -> Usage:
        if self._whole_meter is not None:
            return self._whole_meter.usage()
        # whoever leaves before the last look at an image has had it all the same
        images = self._images + self._partial
        return self._count(
            self._call, Seen(self._counted, images, text_bytes=self._output.size_bytes)
        )

    def finish(self, cost: Msat, change: str | None) -> bytes:
        """The event that ends the answer, with ``usage.cost``."""
        if self._whole_meter is not None:
            return self._whole_meter.finish(cost, change)
        return self._last_event(cost, change) + (b"data: [DONE]\n\n" if self._done else b"")

    def cut(self, cost: Msat, change: str | None) -> bytes:
        """Without the event that ends a whole answer."""
        if self._whole_meter is not None:
            return self._whole_meter.cut(cost, change)
        self.release()
        return self._last_event(cost, change)

    def abort(self, document: Document, change: str | None = None) -> bytes:
        if self._whole_meter is not None:
            return self._whole_meter.abort(document, change)
        return b"data: " + orjson.dumps(self.with_change(document, change)) + b"\n\n"

    def _pass(self, raw: bytes) -> bytes:
        data = event_data(raw) if b"[DONE]" in raw or self._held is not None else b"{"
        if not data:
            return raw  # a comment
        if data.strip() == b"[DONE]":
            self._done = True
            self._ended = True
            return b""
        return super()._pass(raw)

    def _last_event(self, cost: Msat, change: str | None) -> bytes:
        tells_change = change is not None and self._call.change_in_stream
        if self._held is None and not tells_change:
            return b""
        document = self._held or {}
        usage = usage_field(document.get("usage"), self.usage(), cost, NAMES)
        data = orjson.dumps(self.with_change({**document, "usage": usage}, change))
        name = event_name(self._held_raw)
        return (f"event: {name}\n".encode() if name else b"") + b"data: " + data + b"\n\n"

    def _add(self, usage: Usage | None) -> None:
        """Each image of several brings its own count."""
        before = self._counted
        if usage is None or before is None:
            self._counted = usage or before
            return
        self._counted = replace(
            before,
            prompt_tokens=before.prompt_tokens + usage.prompt_tokens,
            completion_tokens=before.completion_tokens + usage.completion_tokens,
            cached_tokens=before.cached_tokens + usage.cached_tokens,
            reasoning_tokens=before.reasoning_tokens + usage.reasoning_tokens,
        )


def optional_text(document: Mapping[str, Any], name: str) -> str | None:
    """A string, or None when absent. Raises InvalidValue."""
    value = document.get(name)
    if value is None or isinstance(value, str):
        return value
    raise InvalidValue(f"{name} must be a string", param=name)
