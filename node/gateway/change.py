"""Taking the change out of a streamed answer: it is the person's money, not the program's.

A provider puts it into the field ``x_cashu`` of one of the last events (docs/protocol.md). All
other bytes pass as they are.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

import orjson

_TOKEN = re.compile(rb"cashu[A-Z][A-Za-z0-9_+/=-]*")
EVENT_STREAM = "text/event-stream"
FIELD = "x_cashu"
MAX_LINE_BYTES = 32 << 20
_MARK = b'"x_cashu"'


class ChangeTaker:
    """Feed it the body; ``token`` is the change once it has come by."""

    def __init__(self) -> None:
        self.token: str | None = None
        self._line = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the body; gives those that may go on."""
        end = data.rfind(b"\n") + 1
        if not end and len(self._line) + len(data) <= MAX_LINE_BYTES:
            self._line += data
            return b""
        whole = bytes(self._line) + data[:end]
        self._line = bytearray(data[end:])
        return self._without(whole)

    def end(self) -> bytes:
        """What is left when the body has ended."""
        rest, self._line = bytes(self._line), bytearray()
        return self._without(rest)

    def _without(self, lines: bytes) -> bytes:
        if _MARK not in lines:
            return lines
        return b"".join(map(self._clean, lines.splitlines(keepends=True)))

    def _clean(self, line: bytes) -> bytes:
        if _MARK not in line:
            return line
        prefix = b"data: " if line.startswith(b"data:") else b""
        text = line.removeprefix(b"data:").strip()
        try:
            document: Any = orjson.loads(text)
        except orjson.JSONDecodeError:
            return line
        if not isinstance(document, dict) or not isinstance(document.get(FIELD), str):
            return line
        self.token = document.pop(FIELD)
        ending = line[len(line.rstrip(b"\r\n")) :]
        return prefix + orjson.dumps(document) + ending


class Body(Protocol):
    """An answer, as ``node.gateway.carriage.Answer``."""

    headers: Mapping[str, str]

    @property
    def trailers(self) -> Mapping[str, str]: ...
    def chunks(self) -> AsyncIterator[bytes]: ...


def change_of(answer: Body) -> str | None:
    """The change in headers or trailers."""
    for fields in (answer.trailers, answer.headers):
        token = fields.get("x-cashu", "")
        if token.startswith("cashu"):
            return token
    return None


def without_tokens(data: bytes) -> bytes:
    """For a log, or a program: some say in an error what they were paid with."""
    return _TOKEN.sub("…".encode(), data)


async def change_within(answer: Body) -> str | None:
    """Read an answer to its end for nothing but the change. Raises what its chunks raise."""
    streamed = answer.headers.get("content-type", "").startswith(EVENT_STREAM)
    taker = ChangeTaker()
    async for data in answer.chunks():
        if streamed:
            taker.feed(data)
    if streamed:
        taker.end()
    return taker.token or change_of(answer)
