"""Wire details that all our own events share: kinds, printable text, URLs, JSON, signing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import orjson

from discovery.nostr.event import Event
from discovery.nostr.keys import Keys

KIND_PROFILE = 0
KIND_DELETION = 5
KIND_RELAY_LIST = 10002
KIND_INBOX_RELAYS = 10050
KIND_MODEL_PAGE = 30078
KIND_PROVIDER = 38421

MAX_EVENT_BYTES = 65_536
"""What common relays take as one event, in bytes of JSON."""
MAX_NAME_CHARS = 120
MAX_IDENTIFIER_CHARS = 200
MAX_URL_CHARS = 500
MAX_LABEL_CHARS = 64
MAX_LABELS = 16

# Control characters, DEL (which a common relay refuses), text-direction overrides (which make one
# name look like another) and lone surrogates (which have no UTF-8).
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UNPRINTABLE_BUT_LINES = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_NOT_IN_URL = re.compile(r"[^\x21-\x7e]|[\"<>\\^`{|}]")


def clean(text: str, max_chars: int = MAX_NAME_CHARS) -> str:
    """``text`` as one printable line of at most ``max_chars``."""
    return _UNPRINTABLE.sub("", text).strip()[:max_chars].strip()


def clean_lines(text: str, max_chars: int) -> str:
    """``text`` printable, its line breaks and tabs kept, of at most ``max_chars``."""
    return _UNPRINTABLE_BUT_LINES.sub("", text).strip()[:max_chars].strip()


def is_onion(url: str) -> bool:
    """Is the host of this normalised URL a Tor hidden service?"""
    return ".onion" in url and (urlsplit(url).hostname or "").endswith(".onion")


def endpoint_url(text: str) -> str | None:
    """A base URL in normal form (no trailing slash, no ``/v1``), or None when unusable.

    A bare onion host, which RIP-02 allows, becomes ``http://…``.
    """
    text = text.strip()
    if "://" not in text and ".onion" in text:
        text = f"http://{text}"
    url = _url(text, ("https", "http"))
    if url is None or "?" in url:
        return None
    while urlsplit(url).path.endswith("/v1"):
        url = url.removesuffix("/v1").rstrip("/")
    return url


def mint_url(text: str) -> str | None:
    """A mint's URL without trailing slash, or None when unusable."""
    return _url(text, ("https", "http"))


def relay_url(text: str) -> str | None:
    """A relay's URL without trailing slash, or None when unusable."""
    return _url(text, ("wss", "ws"))


def _url(text: str, schemes: Sequence[str]) -> str | None:
    text = text.strip()
    if not text or len(text) > MAX_URL_CHARS or _NOT_IN_URL.search(text):
        return None
    try:
        parts = urlsplit(text)
        usable = parts.scheme in schemes and parts.hostname and parts.port != 0
    except ValueError:
        return None
    if not usable or "@" in parts.netloc or "#" in text:
        return None
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}{query}"


def sign_bounded(
    keys: Keys, kind: int, content: str, tags: Sequence[Sequence[str]], created_at: int
) -> Event:
    """Sign, and refuse to make what relays refuse to take. Raises ValueError."""
    event = keys.sign(kind, content, [tuple(tag) for tag in tags], created_at)
    if len(orjson.dumps(event.to_dict())) >= MAX_EVENT_BYTES:
        raise ValueError(f"the event of kind {kind} would exceed {MAX_EVENT_BYTES} bytes")
    return event


def labels(values: object) -> tuple[str, ...]:
    """Short printable words, without repeats; nothing when ``values`` is not a list of them."""
    if not isinstance(values, list | tuple):
        return ()
    words = (clean(value, MAX_LABEL_CHARS) for value in values if isinstance(value, str))
    return tuple(dict.fromkeys(word for word in words if word))[:MAX_LABELS]


def distinct(values: Iterable[str | None], limit: int) -> tuple[str, ...]:
    """The first ``limit`` different values, in order; None and "" are dropped."""
    return tuple(dict.fromkeys(value for value in values if value))[:limit]


def is_kind(text: str) -> bool:
    """Is this a decimal number of at most five digits?"""
    return text.isascii() and text.isdigit() and len(text) <= 5


def text_field(document: Mapping[str, Any], key: str) -> str:
    """The string under ``key``; empty when there is none."""
    value = document.get(key)
    return value if isinstance(value, str) else ""


def json_object(text: str) -> dict[str, Any]:
    """The JSON object in ``text``; empty when it is none."""
    try:
        document = orjson.loads(text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def json_text(document: object) -> str:
    """``document`` as compact JSON without DEL, which a common relay refuses."""
    # DEL needs no escape in JSON, so it can be dropped from the text.
    return orjson.dumps(document).decode().replace("\x7f", "")
