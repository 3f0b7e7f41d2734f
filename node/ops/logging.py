"""Logging to standard error: one chain for our own events and for the libraries', one redaction.

structlog event ─┐
                 ├─▶ time, level, logger, exception ─▶ redaction ─▶ json | console
stdlib record ───┘
"""

from __future__ import annotations

import logging
import sys
from typing import Literal, TextIO

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

from node.ops.redaction import redact_value

LIBRARIES = ("aiohttp", "websockets", "asyncio", "aiosqlite", "openai", "httpx", "httpcore")
"""Chatty below ``warning``: their ``info`` and ``debug`` never pass, as they may show bodies."""

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
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        redaction,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    renderer: Processor = (
        structlog.processors.JSONRenderer(default=str)
        if format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=target.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    handler = logging.StreamHandler(target)
    handler.set_name(_HANDLER_NAME)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
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
    # structlog's own entries (the stdlib record) stay: the formatter needs them.
    return {
        key: value if key in {"_record", "_from_structlog"} else redact_value(value, key)
        for key, value in event.items()
    }
