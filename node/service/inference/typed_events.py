"""What the meters of the dialects with typed events (responses, messages) have in common.

Their streams are SSE events with a ``type``. Every event passes byte for byte until the one that
ends the answer, which brings the count: that one is held back until the answer is settled.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import orjson

from node.core.money import Msat
from node.core.sse import SseEventTooLarge, SseSplitter, event_data, event_name
from node.core.usage import Usage
from node.errors import AnswerTooLarge, UpstreamFailed
from node.service.inference.call import PreparedCall
from node.service.inference.metering import (
    MAX_STREAM_EVENT_BYTES,
    BodyMeter,
    OutputCount,
)

Document = dict[str, Any]


class TypedStreamMeter(ABC):
    """Base of the stream meters; see ``inference.call.Meter``.

    A subclass says which events it must see (``marks``), what of an event is generated text
    (``texts``) and what to do with an event (``look``).
    """

    marks: ClassVar[tuple[bytes, ...]]
    """Every event that ``look`` must see holds one of these; the others are never parsed."""
    texts: ClassVar[re.Pattern[bytes]]

    def __init__(
        self, call: PreparedCall, *, max_event_bytes: int = MAX_STREAM_EVENT_BYTES
    ) -> None:
        self._call = call
        self._splitter = SseSplitter(max_event_bytes)
        self._output = OutputCount(self.texts)
        self._failure: UpstreamFailed | None = None
        self._ended = False
        self._held: Document | None = None
        self._held_raw = b""
        self._counted: Usage | None = None
        self._last = b""

    @property
    def failure(self) -> UpstreamFailed | None:
        return self._failure

    @property
    def complete(self) -> bool:
        if not self._ended and self._failure is None:
            pending = self._splitter.pending  # some servers leave out the last blank line
            document = parsed(event_data(pending))
            if document:
                self.look(_kind(document, pending), document, pending)
        return self._failure is None and self._whole()

    def feed(self, data: bytes) -> bytes:
        if self._ended or self._failure is not None:
            return b""
        if (
            self._held is None
            and self._splitter.at_boundary
            and data.endswith((b"\n\n", b"\r\n\r\n"))
            and not self._marked(data)
        ):
            self._output.add(data)
            self._last = data
            return data
        try:
            raws = self._splitter.feed_raw(data)
        except SseEventTooLarge:
            raise AnswerTooLarge(private="an event of the stream is too large") from None
        return b"".join([self._pass(raw) for raw in raws])

    @abstractmethod
    def look(self, kind: str, document: Document, raw: bytes) -> bytes:
        """What the client gets now of an event of type ``kind``."""

    @abstractmethod
    def usage(self) -> Usage: ...

    @abstractmethod
    def finish(self, cost: Msat, change: str | None) -> bytes: ...

    @abstractmethod
    def cut(self, cost: Msat, change: str | None) -> bytes: ...

    @abstractmethod
    def abort(self, document: Document, change: str | None = None) -> bytes: ...

    def release(self) -> bytes:
        """The event that was held back, unchanged: it was not the last."""
        raw = self._held_raw
        self._held, self._held_raw = None, b""
        return raw

    def with_change(self, document: Document, change: str | None) -> Document:
        """``document`` with the change of a client that takes it in the stream."""
        if change is not None and self._call.change_in_stream:
            return {**document, "x_cashu": change}
        return document

    def _whole(self) -> bool:
        return self._ended

    def _marked(self, data: bytes) -> bool:
        return any(mark in data for mark in self.marks)

    def _pass(self, raw: bytes) -> bytes:
        if self._ended or self._failure is not None:
            return b""
        if self._held is None and not self._marked(raw):
            self._output.add(raw)
            self._last = raw
            return raw
        data = event_data(raw)
        if data.strip() == b"[DONE]":
            return b""  # of another dialect
        document = parsed(data)
        return self.look(_kind(document, raw), document, raw)


class TypedBodyMeter(BodyMeter):
    """Meter of an answer in one piece in one of these dialects.

    Args:
        read: the count out of the value of ``usage``.
        texts: what of the answer is generated text.
        total: whether the dialect tells ``total_tokens``.
    """

    def __init__(
        self,
        call: PreparedCall,
        read: Callable[[object], Usage | None],
        texts: re.Pattern[bytes],
        *,
        total: bool,
    ) -> None:
        super().__init__(call)
        self._read = read
        self._texts = texts
        self._total = total

    @property
    def complete(self) -> bool:
        whole = super().complete
        document = self._document()
        status = document.get("status")
        unanswered = isinstance(status, str) and status in _NO_ANSWER
        if whole and (document.get("type") == "error" or unanswered):
            self._failure = UpstreamFailed(private="the answer was none, with a 2xx status")
        return whole and self._failure is None

    def usage(self) -> Usage:
        counted = self._read(self._document().get("usage"))
        if counted is not None:
            return counted
        output = OutputCount(self._texts)
        output.add(self.generated())
        return output.usage(self._call)

    def generated(self) -> bytes:
        """JSON in which ``texts`` finds what was generated."""
        return bytes(self._buffer)

    def finish(self, cost: Msat, change: str | None) -> bytes:
        document = self._document()
        usage = usage_field(document.get("usage"), self.usage(), cost, total=self._total)
        return orjson.dumps(document | {"usage": usage})


_NO_ANSWER = frozenset({"failed", "cancelled", "queued", "in_progress"})


def usage_field(given: object, usage: Usage, cost: Msat, *, total: bool) -> Document:
    """The value of ``usage`` as the client gets it: the upstream's, else our count, and the cost
    in msat."""
    field: Document = dict(given) if isinstance(given, dict) else {}
    if usage.source == "estimated":
        fresh = usage.prompt_tokens
        if not total:  # the dialect that leaves out what the cache had
            fresh -= usage.cached_tokens + usage.cache_write_tokens
        field |= {"input_tokens": fresh, "output_tokens": usage.completion_tokens}
        field["estimated"] = True
        if total:
            field["total_tokens"] = usage.total_tokens
    field["cost"] = int(cost)
    return field


def event(kind: str, document: Document) -> bytes:
    """An SSE event of that type."""
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(document) + b"\n\n"


def parsed(data: bytes) -> Document:
    """A JSON object; empty when ``data`` is none."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _kind(document: Document, raw: bytes) -> str:
    kind = document.get("type")
    return kind if isinstance(kind, str) else event_name(raw)
