"""Takes secrets out of text: what looks like one is replaced before it reaches a log."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MAX_SCANNED_CHARS = 100_000
MAX_VALUE_CHARS = 4000
MAX_DEPTH = 8
MAX_ITEMS = 200

_MARK = "[redacted]"

_PATTERNS = (
    # Cashu tokens (NUT-00). Payment requests (creqA…) are public.
    (re.compile(r"cashu[AB][A-Za-z0-9_=+/-]{4,}"), "cashu" + _MARK),
    (re.compile(r"nsec1[a-z0-9]{6,}", re.IGNORECASE), "nsec1" + _MARK),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{4,}"), "sk-" + _MARK),
    (re.compile(r"(bearer\s+)[^\s\"',;]+", re.IGNORECASE), r"\1" + _MARK),
    # secret=<hex>, "secret_key": "<hex>", secret <hex> …
    (re.compile(r"(secret\w*[\"'\\\s:=]{1,8})[0-9a-f]{64}", re.IGNORECASE), r"\1" + _MARK),
)
_SECRET_NAMES = re.compile(r"secret|password|authorization|api[_-]key|token$|nsec", re.IGNORECASE)
_HINTS = ("secret", "password", "authorization", "api", "token", "nsec", "cashu", "sk-", "bearer")
"""Text in which all the patterns above find something holds one of these, whatever its case."""
_HEX_KEY = re.compile(r"[0-9a-f]{64,}", re.IGNORECASE)


def may_hold_secrets(event: Mapping[str, Any]) -> bool:
    """False when ``redact_value`` would leave every value of ``event`` as it is.

    Says so of flat events in ASCII only, which most are: a look at all texts at once takes a
    tenth of the time that redacting each of them does, 3 µs instead of 30.
    """
    texts: list[str] = []
    for name, value in event.items():
        if isinstance(value, str):
            texts.append(name)
            texts.append(value)
        elif not (value is None or isinstance(value, int | float)):
            return True
    text = "\n".join(texts)
    if len(text) > MAX_VALUE_CHARS or not text.isascii():
        return True
    text = text.lower()
    return any(hint in text for hint in _HINTS)


def redact(text: str) -> str:
    """``text`` without tokens, API keys and private keys; the middle of a long one is left out."""
    size = len(text)
    text = text[:MAX_SCANNED_CHARS]
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    if len(text) <= MAX_VALUE_CHARS:
        return text
    # Cut after redacting: half a secret would no longer look like one.
    half = MAX_VALUE_CHARS // 2
    return f"{text[:half]} … [{size} chars] … {text[-half:]}"


def redact_value(value: Any, name: str = "", depth: int = 0) -> Any:
    """``value`` with every text in it redacted, keys of mappings included; its size is bounded.

    Args:
        name: what the value is called: a text under a name like ``secret`` goes altogether when
            it is long enough to be one.
    """
    if isinstance(value, str):
        if _SECRET_NAMES.search(name) and (_HEX_KEY.search(value) or len(value) >= 20):
            return _MARK
        return redact(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes | bytearray):
        return redact(bytes(value[:MAX_SCANNED_CHARS]).decode("utf-8", "replace"))
    if depth >= MAX_DEPTH:
        return "…"
    if isinstance(value, dict):
        return {
            redact(str(key)): redact_value(item, str(key), depth + 1)
            for key, item in list(value.items())[:MAX_ITEMS]
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [redact_value(item, name, depth + 1) for item in list(value)[:MAX_ITEMS]]
    return redact(_text(value))


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:
        # A log line must never fail its caller.
        return f"<{type(value).__name__}>"
