"""Server-sent events cut out of a byte stream without changing a byte (WHATWG HTML, 9.2).

Lines may end in LF, CRLF or CR and chunks may be cut anywhere. Whatever arrives leaves again:
the ``raw`` bytes of all events, joined, are the input.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_EVENT_BYTES = 1 << 20

# Two line ends in a row. A CR at the end of the buffer counts as a line end at once, so that no
# event waits for the next one; the LF that may still belong to it is skipped when it comes.
_EVENT_END = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_EVENT_END_MAX_BYTES = len(b"\r\n\r\n")
_BOM = b"\xef\xbb\xbf"


class SseEventTooLarge(ValueError):
    """An event larger than the buffer is allowed to grow."""


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One event. ``raw`` is all its bytes, the blank line included; ``data`` its data lines joined
    by LF, empty for a comment or a bare blank line."""

    raw: bytes
    data: bytes


class SseSplitter:
    """Incremental splitter with a bounded buffer.

    Args:
        max_event_bytes: a longer event raises SseEventTooLarge, whether complete or not.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._buffer = bytearray()
        self._scanned = 0
        self._after_cr = False
        self._seen_cr = False

    @property
    def pending(self) -> bytes:
        """What has arrived of an event that is not complete."""
        return bytes(self._buffer)

    @property
    def at_boundary(self) -> bool:
        """True when the next byte certainly begins an event."""
        return not self._buffer and not self._after_cr

    def feed(self, data: bytes) -> list[SseEvent]:
        """Take the next bytes; gives the events they complete. Raises SseEventTooLarge."""
        return [SseEvent(raw, event_data(raw)) for raw in self.feed_raw(data)]

    def feed_raw(self, data: bytes) -> list[bytes]:
        """Like ``feed`` for a caller who seldom needs to look inside: the events' bytes alone."""
        buffer = self._buffer
        buffer += data
        if self._after_cr and buffer:
            self._after_cr = False
            self._scanned = 1 if buffer[0] == 0x0A else 0
        self._seen_cr = self._seen_cr or b"\r" in data
        raws: list[bytes] = []
        start = 0
        for end in self._ends_with_cr() if self._seen_cr else self._ends():
            raws.append(self._bounded(bytes(buffer[start:end])))
            start = end
        if start:
            self._after_cr = start == len(buffer) and buffer[-1] == 0x0D
            del buffer[:start]
            self._scanned = 0
        if len(buffer) > self._max_event_bytes:
            raise SseEventTooLarge
        self._scanned = max(self._scanned, len(buffer) - _EVENT_END_MAX_BYTES + 1)
        return raws

    def flush(self) -> list[SseEvent]:
        """At the end of the stream: the last event when no blank line ended it, else nothing."""
        raw = bytes(self._buffer)
        self._buffer.clear()
        self._scanned = 0
        self._after_cr = False
        return [SseEvent(raw, event_data(raw))] if raw else []

    def _ends(self) -> list[int]:
        """Where events end while only LF ends lines, as nearly all servers have it: a tenth of
        what the pattern takes."""
        buffer, ends = self._buffer, []
        at = buffer.find(b"\n\n", self._scanned)
        while at >= 0:
            ends.append(at + 2)
            at = buffer.find(b"\n\n", at + 2)
        return ends

    def _ends_with_cr(self) -> list[int]:
        return [match.end() for match in _EVENT_END.finditer(self._buffer, self._scanned)]

    def _bounded(self, raw: bytes) -> bytes:
        if len(raw) > self._max_event_bytes:
            raise SseEventTooLarge
        return raw


def event_data(raw: bytes) -> bytes:
    """The ``data`` of one event's bytes: its data lines joined by LF."""
    values: list[bytes] = []
    for line in raw.removeprefix(_BOM).splitlines():
        if line.startswith(b"data:"):
            values.append(line[6:] if line.startswith(b"data: ") else line[5:])
        elif line == b"data":
            values.append(b"")
    return b"\n".join(values)


def event_name(raw: bytes) -> str:
    """The last ``event`` field of one event's bytes; empty when it has none."""
    name = b""
    for line in raw.removeprefix(_BOM).splitlines():
        if line.startswith(b"event:"):
            name = line[7:] if line.startswith(b"event: ") else line[6:]
        elif line == b"event":
            name = b""
    return name.decode("utf-8", "replace")
