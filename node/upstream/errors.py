"""What goes wrong at a model server, in our own errors. The only place that maps them.

Nothing of an upstream reaches a client but one cleaned sentence about the client's own request:
no header, no URL, no address, no key. All else is for the operator's log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from node.errors import (
    ContextLengthExceeded,
    InvalidValue,
    NodeError,
    RateLimitExceeded,
    UpstreamFailed,
    UpstreamTimeout,
)

MAX_ERROR_BYTES = 16 << 10
"""How much of an error's body is read."""
MAX_MESSAGE_CHARS = 300
MAX_RETRY_AFTER_S = 3600


class UnknownThere(InvalidValue):
    """404: this server does not have the model or the path; another may."""


class Refused(UpstreamFailed):
    """403: this request is not wanted there. It says nothing about the server's health, for a
    client can bring it about at will."""


_CLIENT_MISTAKES = frozenset({400, 404, 413, 422})
_UPSTREAM_TIMEOUTS = frozenset({408, 504})
_CONTEXT_CODES = frozenset(
    {"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"}
)
_CONTEXT_WORDS = re.compile(r"(maximum )?context (length|size|window)", re.IGNORECASE)
_PARAM = re.compile(r"[A-Za-z0-9_.\[\]-]{1,100}")
_PRIVATE = re.compile(
    r"""\b[a-z][a-z0-9+.-]*://\S+            # URLs
      | \b(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?\b # IPv4
      | \[[0-9a-f:]*:[0-9a-f:]*\](?::\d+)?   # IPv6
      | \b(?:sk|key|org|proj)-[\w*-]{6,}     # keys and account names
      | \bBearer\s+\S+
    """,
    re.IGNORECASE | re.VERBOSE,
)
_UNPRINTABLE = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")


def error_from_client(name: str, error: Exception) -> NodeError:
    """An exception of the HTTP client while talking to upstream ``name``."""
    private = f"{name}: {type(error).__name__}"
    if isinstance(error, TimeoutError):
        return UpstreamTimeout(private=private)
    return UpstreamFailed(private=private)


def error_from_answer(
    name: str, status: int, headers: Mapping[str, str], body: bytes, *, hide: str = ""
) -> NodeError:
    """An answer of upstream ``name`` whose status is not 2xx.

    Args:
        body: as much of it as was read.
        hide: the operator's key, in case the upstream repeats it.
    """
    details = _details(body)
    message = _clean(details.get("message"), hide)
    private = f"{name} answered {status}: {message}"
    if status == 429:
        return RateLimitExceeded(
            "the model server is busy", retry_after_s=_retry_after_s(headers), private=private
        )
    if status in _UPSTREAM_TIMEOUTS:
        return UpstreamTimeout(private=private)
    if status not in _CLIENT_MISTAKES:
        kind = Refused if status == 403 else UpstreamFailed
        return kind(private=private, retry_after_s=_retry_after_s(headers))
    param = details.get("param")
    if not (isinstance(param, str) and _PARAM.fullmatch(param)):
        param = None
    codes = {details.get(key) for key in ("code", "type") if isinstance(details.get(key), str)}
    if codes & _CONTEXT_CODES or _CONTEXT_WORDS.search(message):
        return ContextLengthExceeded(message or None, param=param, private=private)
    mistake = UnknownThere if status == 404 else InvalidValue
    return mistake(
        message or "the model server does not accept this request", param=param, private=private
    )


_NOTHING_YET = re.compile(rb"(?:[\r\n]|:[^\n]*\n)*(?::[^\n]*)?")
_ERROR_EVENT = re.compile(
    rb"""(?:[\r\n]|:[^\n]*\n|(?:event|id|retry):[^\n]*\n)*
         data:[ ]?(\{\s*(?:"type"\s*:\s*"error"\s*,\s*)?"error"\s*:\s*[{"][^\n]*)""",
    re.VERBOSE,
)
_ERROR_DOCUMENT = re.compile(
    rb"""\s*\{\s*(?:"type"\s*:\s*"error"\s*,\s*)?"error"\s*:\s*[{"]""", re.VERBOSE
)


def says_nothing(data: bytes) -> bool:
    """Whether a stream has only brought comments and blank lines so far."""
    return _NOTHING_YET.fullmatch(data) is not None


def error_at_start(name: str, data: bytes, *, streamed: bool, hide: str = "") -> NodeError | None:
    """The error that an answer with a 2xx status begins with, or None.

    Args:
        data: the first bytes of the body.
    """
    match = _ERROR_EVENT.match(data) if streamed else _ERROR_DOCUMENT.match(data)
    if match is None:
        return None
    body = match[1] if streamed else data
    code = _details(body).get("code")
    status = code if isinstance(code, int) and 400 <= code <= 599 else 502
    return error_from_answer(name, status, {}, body, hide=hide)


def _details(body: bytes) -> dict[str, Any]:
    """The error object of the known dialects: OpenAI, older vLLM, FastAPI."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(document, dict):
        return {}
    error = document.get("error", document)
    if isinstance(error, str):
        return {"message": error}
    if not isinstance(error, dict):
        return {}
    return error if "message" in error else {"message": error.get("detail")}


def _clean(message: object, hide: str) -> str:
    if not isinstance(message, str):
        return ""
    if hide:
        message = message.replace(hide, "…")
    message = _PRIVATE.sub("…", message)
    message = message.encode("utf-8", "replace").decode()
    message = _UNPRINTABLE.sub(" ", message).strip()
    if len(message) > MAX_MESSAGE_CHARS:
        message = message[: MAX_MESSAGE_CHARS - 1] + "…"
    return message


def _retry_after_s(headers: Mapping[str, str]) -> int | None:
    """Seconds of a ``Retry-After`` in either of its forms, at most ``MAX_RETRY_AFTER_S``."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit() and len(value) < 10:
        seconds = int(value)
    else:
        try:
            date = parsedate_to_datetime(value)
            seconds = int((date - datetime.now(UTC)).total_seconds())
        except (TypeError, ValueError, OverflowError):
            return None
    return max(0, min(seconds, MAX_RETRY_AFTER_S))
