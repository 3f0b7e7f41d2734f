"""Reading the messages of a request over Nostr, text → values; no I/O. Server and client share
it; ``writing`` is the other direction.

A rumor of kind 80 holds one of ``RequestPart | Nack | Cancel``, a rumor of kind 81 one of
``ReplyPart`` (http2nostr's format) or ``Frame`` (ours, when the request said ``frames``).
Everything is JSON; bodies are base64 in parts of at most ``PART_BYTES`` raw bytes.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import orjson

from discovery.nostr.giftwrap import EPHEMERAL_GIFT_WRAP, GIFT_WRAP
from node.core.exchange import REQUEST_HEADERS
from node.errors import InvalidJson, InvalidValue, NodeError, RequestTooLarge
from node.transport.dm.cutter import PART_BYTES
from node.transport.dm.target import MAX_RELAYS, relay_url

REQUEST_KIND = 80
REPLY_KIND = 81

MAX_ID_CHARS = 100
MAX_NACKS = 256
MAX_HEADERS = 64
MAX_INT = 2**53 - 1

_METHOD = re.compile(r"[A-Z]{1,16}")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,100}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_T = TypeVar("_T")


class BadMessage(Exception):
    """A message that cannot be used.

    ``id`` is whom to tell, None when not even that could be read; ``frames`` is the format the
    sender asked for; ``error`` is what to tell.
    """

    def __init__(self, error: NodeError, message_id: str | None = None, *, frames: bool = False):
        super().__init__(str(error))
        self.error = error
        self.id = message_id
        self.frames = frames


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What only part 0 carries. Header names are lower-case; values may be secret."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class RequestPart:
    """One part of a request.

    ``expires`` is a Unix time in seconds, ``wrap`` the gift-wrap kinds the sender takes.
    """

    id: str
    index: int
    parts: int
    body: bytes = field(repr=False)
    head: RequestHead | None = None
    frames: bool = False
    expires: int | None = None
    relays: tuple[str, ...] = ()
    wrap: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Nack:
    """Asks for frames again, by sequence number."""

    id: str
    seqs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stops the generation."""

    id: str


RequestMessage: TypeAlias = RequestPart | Nack | Cancel


@dataclass(frozen=True, slots=True)
class ReplyPiece:
    """One part or frame of a reply, in one form for both formats.

    ``total`` is how many pieces there are, where this piece tells (every plain part does, of the
    frames only the final one); ``sha256`` is over the whole body.
    """

    id: str
    seq: int
    body: bytes = field(repr=False)
    status: int | None = None
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    total: int | None = None
    sha256: str | None = None
    trailers: Mapping[str, str] = field(default_factory=dict, repr=False)


# ------------------------------------------------------------------ reading


def parse_request(content: str) -> RequestMessage:
    """Read the content of a kind 80 rumor. Raises BadMessage, with the id where there is one."""
    document, message_id = _open(content)
    frames = document.get("frames") is True
    try:
        if "cancel" in document:
            if document["cancel"] is not True:
                raise InvalidValue("cancel must be true", param="cancel")
            return Cancel(message_id)
        if "nack" in document:
            return Nack(message_id, _seqs(document["nack"]))
        return _request_part(document, message_id)
    except NodeError as error:
        raise BadMessage(error, message_id, frames=frames) from None


def parse_reply(content: str) -> ReplyPiece:
    """Read the content of a kind 81 rumor, plain or framed. Raises BadMessage."""
    document, message_id = _open(content)
    try:
        return _frame(document, message_id) if "seq" in document else _part(document, message_id)
    except NodeError as error:
        raise BadMessage(error, message_id) from None


def parse_answer(content: str) -> ReplyPiece | Nack:
    """Read the content of a kind 81 rumor: a piece of a reply, or the wish for parts of the
    request again. Raises BadMessage."""
    document, message_id = _open(content)
    if "nack" not in document:
        return parse_reply(content)
    try:
        return Nack(message_id, _seqs(document["nack"]))
    except NodeError as error:
        raise BadMessage(error, message_id) from None


def _open(content: str) -> tuple[dict[str, Any], str]:
    try:
        document = orjson.loads(content)
    except ValueError:  # orjson's own error is one
        raise BadMessage(InvalidJson("the message is not valid JSON")) from None
    if not isinstance(document, dict):
        raise BadMessage(InvalidValue("the message is not an object"))
    message_id = document.get("id")
    if (
        not isinstance(message_id, str)
        or not 1 <= len(message_id) <= MAX_ID_CHARS
        or not message_id.isprintable()
    ):
        raise BadMessage(InvalidValue("the message has no usable id", param="id"))
    return document, message_id


def _request_part(document: dict[str, Any], message_id: str) -> RequestPart:
    parts = _integer(document, "parts", minimum=1)
    index = _integer(document, "partIndex", maximum=parts - 1)
    version = document.get("v")
    if version is not None and (type(version) is not int or version < 1):
        raise InvalidValue("v must be a positive integer", param="v")
    head = None
    if index == 0:
        head = RequestHead(
            method=_matching(document, "method", _METHOD),
            url=_text(document, "url"),
            headers={
                name: value
                for name, value in _strings(document, "headers").items()
                if name in REQUEST_HEADERS
            },
            sha256=_matching(document, "sha256", _SHA256) if "sha256" in document else None,
        )
    return RequestPart(
        id=message_id,
        index=index,
        parts=parts,
        body=_body(document),
        head=head,
        frames=_boolean(document, "frames"),
        expires=_integer(document, "expires") if "expires" in document else None,
        relays=_relays(document.get("relays", [])),
        wrap=_wraps(document.get("wrap", [])),
    )


def _part(document: dict[str, Any], message_id: str) -> ReplyPiece:
    total = _integer(document, "parts", minimum=1)
    index = _integer(document, "partIndex", maximum=total - 1)
    return ReplyPiece(
        id=message_id,
        seq=index,
        body=_body(document),
        status=_integer(document, "status", 100, 599) if index == 0 else None,
        headers=_strings(document, "headers") if index == 0 else None,
        total=total,
    )


def _frame(document: dict[str, Any], message_id: str) -> ReplyPiece:
    seq = _integer(document, "seq")
    final = _boolean(document, "final")
    return ReplyPiece(
        id=message_id,
        seq=seq,
        body=_body(document),
        status=_integer(document, "status", 100, 599) if seq == 0 else None,
        headers=_strings(document, "headers") if seq == 0 else None,
        total=_integer(document, "frames", seq + 1, seq + 1) if final else None,
        sha256=_matching(document, "sha256", _SHA256) if final else None,
        trailers=_strings(document, "trailers") if final and "trailers" in document else {},
    )


def _integer(document: dict[str, Any], name: str, minimum: int = 0, maximum: int = MAX_INT) -> int:
    value = document.get(name)
    if type(value) is not int or not minimum <= value <= maximum:
        raise InvalidValue(f"{name} must be an integer of {minimum} to {maximum}", param=name)
    return value


def _boolean(document: dict[str, Any], name: str) -> bool:
    value = document.get(name, False)
    if type(value) is not bool:
        raise InvalidValue(f"{name} must be true or false", param=name)
    return value


def _text(document: dict[str, Any], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str):
        raise InvalidValue(f"{name} must be a string", param=name)
    return value


def _matching(document: dict[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    value = _text(document, name)
    if not pattern.fullmatch(value):
        raise InvalidValue(f"{name} is not valid", param=name)
    return value


def _strings(document: dict[str, Any], name: str) -> dict[str, str]:
    """A headers object with lower-case names; the same name twice is refused."""
    value = document.get(name)
    if not isinstance(value, dict) or len(value) > MAX_HEADERS:
        raise InvalidValue(f"{name} must be an object of strings", param=name)
    result: dict[str, str] = {}
    for key, text in value.items():
        if (
            not _HEADER_NAME.fullmatch(key)
            or not isinstance(text, str)
            or any((ord(char) < 32 and char != "\t") or ord(char) == 127 for char in text)
            or key.lower() in result
        ):
            raise InvalidValue(f"{name} must be an object of strings", param=name)
        result[key.lower()] = text
    return result


def _body(document: dict[str, Any]) -> bytes:
    text = _text(document, "bodyBase64")
    if len(text) > 4 * -(-PART_BYTES // 3):
        raise RequestTooLarge(f"a part carries at most {PART_BYTES} bytes", param="bodyBase64")
    try:
        body = b64decode(text, validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        raise InvalidValue("bodyBase64 is not base64", param="bodyBase64") from None
    if len(body) > PART_BYTES:
        raise RequestTooLarge(f"a part carries at most {PART_BYTES} bytes", param="bodyBase64")
    return body


def _seqs(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_NACKS:
        raise InvalidValue(f"nack must list 1 to {MAX_NACKS} frames", param="nack")
    if any(type(seq) is not int or not 0 <= seq <= MAX_INT for seq in value):
        raise InvalidValue("nack must list frame numbers", param="nack")
    return tuple(sorted(set(value)))


def _relays(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_RELAYS:
        raise InvalidValue(f"relays must list at most {MAX_RELAYS} relay URLs", param="relays")
    return _unique([relay_url(url) for url in value])


def _wraps(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or any(
        type(kind) is not int or kind not in (EPHEMERAL_GIFT_WRAP, GIFT_WRAP) for kind in value
    ):
        raise InvalidValue("wrap must list gift-wrap kinds", param="wrap")
    return _unique(value)


def _unique(values: Sequence[_T]) -> tuple[_T, ...]:
    return tuple(dict.fromkeys(values))
