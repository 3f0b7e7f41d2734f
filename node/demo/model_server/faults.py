"""What the model server can be told to do wrong."""

from __future__ import annotations

from typing import NoReturn

from aiohttp import web

FAULTS = frozenset({
    "status-400", "status-401", "status-404", "status-429", "status-500", "status-503",
    "context",   # 400 with code context_length_exceeded
    "drop",      # disconnects before the first byte
    "hang",      # never answers
    "cut",       # disconnects in the middle of the answer
    "stall",     # stops sending in the middle of the answer, stays connected
    "no-usage",  # does not count
    "bad-usage", # counts what cannot be
    "garbage",   # 200, but not an answer
    "empty",     # an answer without any text
    "error-event",  # reports an error in the middle of the stream
    "no-done",   # a stream without [DONE]
    "error-body",   # an error with status 200
})  # fmt: skip


class DroppedError(ConnectionResetError):
    """This side hung up, as it was told to."""


def drop(request: web.Request) -> NoReturn:
    """Hang up. Raises DroppedError."""
    if request.transport is not None:
        request.transport.abort()
    raise DroppedError


def error(
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> web.Response:
    """An answer in OpenAI's shape of an error."""
    details = {"message": message, "type": "error", "code": code, "param": param}
    return web.json_response({"error": details}, status=status, headers=headers)
