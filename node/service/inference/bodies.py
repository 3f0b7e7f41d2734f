"""Meters of answers in one piece that are not chat: JSON of other shapes, text, sound.

What is counted differs from endpoint to endpoint, so a meter is made of a reader: it looks at the
answer and tells the usage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from node.core.money import Msat
from node.core.usage import Usage
from node.errors import AnswerTooLarge, UpstreamFailed
from node.service.inference.call import PreparedCall
from node.service.inference.metering import MAX_REPLY_BYTES, BodyMeter

ReadDocument = Callable[[PreparedCall, Mapping[str, Any]], Usage]
"""The usage of a JSON answer; of an empty object when nothing has come."""
ReadBytes = Callable[[PreparedCall, bytes], Usage]
"""The usage of another answer."""

_LARGEST_ERROR_BYTES = 64 << 10


class DocumentMeter(BodyMeter):
    """Meter of a JSON object; ``usage`` is added to it or extended.

    Args:
        names: of the counts of input and output in this dialect; the latter may be absent.
        only_usage: ``read`` looks at nothing but ``usage``.
    """

    def __init__(
        self,
        call: PreparedCall,
        read: ReadDocument,
        names: tuple[str, str | None],
        *,
        only_usage: bool = False,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> None:
        super().__init__(call, only_usage=only_usage, max_reply_bytes=max_reply_bytes)
        self._read = read
        self._names = names

    def usage(self) -> Usage:
        return self._read(self._call, self._document())

    def finish(self, cost: Msat, change: str | None) -> bytes:
        """The answer with ``usage.cost``; change travels outside of it."""
        given = self._document().get("usage")
        return self.with_usage(usage_field(given, self.usage(), cost, self._names))


class BytesMeter:
    """Meter of an answer that passes as it is, once all of it is there: its cost is told beside
    it.

    Args:
        may_be_empty: no bytes are an answer too.
    """

    def __init__(
        self,
        call: PreparedCall,
        read: ReadBytes,
        *,
        may_be_empty: bool = False,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> None:
        self._call = call
        self._read = read
        self._may_be_empty = may_be_empty
        self._max_reply_bytes = max_reply_bytes
        self._buffer = bytearray()
        self._counted: Usage | None = None
        self._ended = False
        self._failure: UpstreamFailed | None = None

    @property
    def failure(self) -> UpstreamFailed | None:
        return self._failure

    @property
    def complete(self) -> bool:
        if not self._ended:
            return False
        if not self._buffer and not self._may_be_empty:
            self._failure = UpstreamFailed(private="the answer was empty")
        elif _is_error(self._buffer):
            self._failure = UpstreamFailed(private="the answer was an error with a 2xx status")
        return self._failure is None

    def feed(self, data: bytes) -> bytes:
        if not data:
            self._ended = True
        if len(self._buffer) + len(data) > self._max_reply_bytes:
            raise AnswerTooLarge(private="the answer is too large")
        self._buffer += data
        return b""

    def usage(self) -> Usage:
        return self._counted or self._read(self._call, bytes(self._buffer))

    def finish(self, cost: Msat, change: str | None) -> bytes:
        self._counted = self.usage()
        body, self._buffer = bytes(self._buffer), bytearray()
        return body

    def cut(self, cost: Msat, change: str | None) -> bytes:
        return b""

    def abort(self, document: dict[str, Any], change: str | None = None) -> bytes:
        return orjson.dumps(document)


def usage_field(
    given: object, usage: Usage, cost: Msat, names: tuple[str, str | None]
) -> dict[str, Any]:
    """The field ``usage`` of an answer: what the upstream said, what was counted, its cost."""
    field: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {}
    if usage.audio_ms and not usage.total_tokens:
        field |= {"type": "duration", "seconds": -(-usage.audio_ms // 1000)}
    elif usage.total_tokens or not usage.images:
        prompt, completion = names
        field[prompt] = usage.prompt_tokens
        if completion is not None:
            field[completion] = usage.completion_tokens
        field["total_tokens"] = usage.total_tokens
    field["cost"] = int(cost)
    if usage.source == "estimated":
        field["estimated"] = True
    return field


def _is_error(body: bytes | bytearray) -> bool:
    if len(body) > _LARGEST_ERROR_BYTES or body.lstrip()[:1] != b"{":
        return False
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(document, dict) and bool(document.get("error"))
