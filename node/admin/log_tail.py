"""The last lines of the log, as they were written: redacted before they come here."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, NamedTuple

from node.admin.exchange import AdminRequest, AdminRoute
from node.admin.query import choice, limit_of
from node.admin.ring import Ring

MAX_LINES = 1_000
"""Lines remembered; none has a text of more than some thousand characters."""
LEVELS = ("debug", "info", "warning", "error")
_APART = frozenset({"event", "level", "timestamp", "logger", "_record", "_from_structlog"})


class Line(NamedTuple):
    """A line of the log."""

    at: float
    """Unix seconds."""
    entry: Mapping[str, Any]


class LogTail:
    """Remembers lines. ``add`` is a tap of ``node.ops.logging``: it gets redacted events only.

    Args:
        clock: unix seconds.
    """

    def __init__(self, size: int = MAX_LINES, *, clock: Callable[[], float] = time.time) -> None:
        self.ring: Ring[Line] = Ring(size)
        self._clock = clock

    def add(self, event: Mapping[str, Any]) -> None:
        """Remember an event; on whatever thread it was logged."""
        # who writes the line takes its entries out of the event
        self.ring.add(Line(self._clock(), dict(event)))


def document(line: Line) -> dict[str, Any]:
    """As the operator sees it."""
    entry = line.entry
    return {
        "at": round(line.at, 3),
        "level": str(entry.get("level", "")),
        "event": str(entry.get("event", "")),
        "logger": str(entry.get("logger", "")),
        "fields": {
            str(name): value if isinstance(value, _PLAIN) else str(value)
            for name, value in entry.items()
            if name not in _APART
        },
    }


_PLAIN = (str, int, float, bool, list, dict, type(None))
"""What redaction leaves is one of these, all the way down."""


class LogSection:
    """``/log`` and ``/log/stream``; both take ``level``, the least that is shown."""

    def __init__(self, tail: LogTail) -> None:
        self._tail = tail

    def routes(self) -> Iterable[AdminRoute]:
        yield AdminRoute("GET", "/log", answer=self._recent)
        yield AdminRoute("GET", "/log/stream", stream=self._stream)

    async def _recent(self, request: AdminRequest) -> dict[str, Any]:
        limit = limit_of(request, default=200, most=MAX_LINES)
        least = _least(request)
        lines = [line for line in self._tail.ring.last(MAX_LINES) if _rank(line) >= least]
        return {"lines": [document(line) for line in lines[:limit]]}

    async def _stream(self, request: AdminRequest) -> AsyncIterator[dict[str, Any]]:
        least = _least(request)
        async for line in self._tail.ring.follow():
            if _rank(line) >= least:
                yield document(line)


def _least(request: AdminRequest) -> int:
    return _RANKS[choice(request, "level", LEVELS)]


def _rank(line: Line) -> int:
    return _RANKS.get(str(line.entry.get("level", "")), logging.ERROR)


_RANKS = {
    **{level: logging.getLevelNamesMapping()[level.upper()] for level in LEVELS},
    "critical": logging.CRITICAL,
}
