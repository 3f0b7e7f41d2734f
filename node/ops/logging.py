"""Logging to standard error: one chain for our own events and for the libraries', one redaction.

structlog event ─┐                                                          ┌─▶ the stream
                 ├─▶ time, level, logger, exception ─▶ redaction ─▶ render ─┤
stdlib record ───┘                                         └─▶ taps         └─▶ its handler

Our own events do not become records of the standard library on their way: making one, finding who
called, and formatting it took most of the 80 µs that the line of a request did.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, TextIO

import orjson
import structlog
from structlog.types import EventDict, Processor, WrappedLogger

from node.ops.redaction import may_hold_secrets, redact_value

LIBRARIES = ("aiohttp", "websockets", "asyncio", "aiosqlite", "openai", "httpx", "httpcore")
"""Chatty below ``warning``: their ``info`` and ``debug`` never pass, as they may show bodies."""

taps: list[Callable[[Mapping[str, Any]], object]] = []
"""Called with every event once it is redacted, on the thread that logs it. They must be quick, must
not raise and must not keep the event itself, which becomes the line."""

_HANDLER_NAME = "nodestr"


def configure(
    level: Literal["debug", "info", "warning", "error"] = "info",
    format: Literal["json", "console"] = "console",  # noqa: A002  the setting's name
    *,
    stream: TextIO | None = None,
) -> None:
    """Set up logging for this process; calling it again replaces the set-up.

    Args:
        stream: where lines go; standard error by default.
    """
    target = sys.stderr if stream is None else stream
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        redaction,
        _tapped,
    ]
    renderer: Processor = (
        _json_line
        if format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=target.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    handler = logging.StreamHandler(target)
    handler.set_name(_HANDLER_NAME)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=_LineLoggers(target, handler),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for old in [old for old in root.handlers if old.get_name() == _HANDLER_NAME]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(threshold)
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))
    logging.captureWarnings(True)


def redaction(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """structlog processor: redacts every text anywhere in the event, and bounds its size."""
    if not may_hold_secrets(event):
        return event
    # structlog's own entries (the stdlib record) stay: the formatter needs them.
    return {
        key: value if key in {"_record", "_from_structlog"} else redact_value(value, key)
        for key, value in event.items()
    }


def _tapped(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """structlog processor: shows the event to the taps."""
    for tap in taps:
        tap(event)
    return event


def _json_line(logger: WrappedLogger, method: str, event: EventDict) -> str:
    """structlog processor: the event as JSON."""
    try:
        return orjson.dumps(event, default=str).decode()
    except TypeError:  # what only the standard library can write: a huge integer, half a character
        return json.dumps(event, default=str)


class _LineLoggers:
    """structlog's logger factory: loggers that write finished lines to ``stream``."""

    def __init__(self, stream: TextIO, handler: logging.Handler) -> None:
        self._stream = stream
        self._handler = handler
        # a logger without a name is called like the module that asks for it, which is not this one
        self._names = structlog.stdlib.LoggerFactory(ignore_frame_names=[__name__])

    def __call__(self, *args: object) -> _LineLogger:
        return _LineLogger(self._names(*args).name, self._stream, self._handler)


class _LineLogger:
    """Writes what it is given; ``handler`` writes to the same stream, so its lock is taken."""

    __slots__ = ("_handler", "_stream", "name")

    def __init__(self, name: str, stream: TextIO, handler: logging.Handler) -> None:
        self.name = name
        self._stream = stream
        self._handler = handler

    def msg(self, line: str) -> None:
        self._handler.acquire()
        try:
            # a log that cannot be written must not fail its caller
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(line + "\n")
                self._stream.flush()
        finally:
            self._handler.release()

    debug = info = warning = error = critical = exception = msg
