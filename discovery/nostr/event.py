"""Nostr events (NIP-01): strict reading, canonical id, signature.

Everything a stranger may have written comes in through ``Event.parse``, ``Event.shape`` or
``Rumor.parse``; the only exception they raise is InvalidEvent.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

import orjson
from coincurve import PublicKeyXOnly

from discovery.errors import InvalidEvent

MAX_EVENT_BYTES: Final = 131_072
"""Largest event we read, in bytes of its canonical form; common relays stop at 65,536."""

_MAX_KIND: Final = 65_535
_MAX_TIMESTAMP: Final = 2**53 - 1  # beyond it JSON numbers are not exact everywhere
_MAX_TIMESTAMP_DIGITS: Final = 16
_is_hex64 = re.compile(r"[0-9a-f]{64}").fullmatch
_is_hex128 = re.compile(r"[0-9a-f]{128}").fullmatch

Tags = tuple[tuple[str, ...], ...]


def serialize(
    pubkey: str, created_at: int, kind: int, tags: Sequence[Sequence[str]], content: str
) -> bytes:
    """The bytes that NIP-01 hashes: the array as ``JSON.stringify`` writes it, in UTF-8.

    Raises InvalidEvent for text that has no UTF-8 form (lone surrogates).
    """
    try:
        return orjson.dumps([0, pubkey, created_at, kind, tags, content])
    except TypeError:
        raise InvalidEvent("the event has no canonical form") from None


def compute_id(
    pubkey: str, created_at: int, kind: int, tags: Sequence[Sequence[str]], content: str
) -> str:
    """The event id: SHA-256 of ``serialize`` as 64 lower-case hex digits."""
    return sha256(serialize(pubkey, created_at, kind, tags, content)).hexdigest()


def freeze_tags(tags: Iterable[Iterable[str]]) -> Tags:
    """Tags of any iterable shape as nested tuples."""
    return tuple(tuple(tag) for tag in tags)


def is_hex_key(text: object) -> bool:
    """Whether ``text`` is 64 lower-case hex digits, as ids and public keys are written."""
    return type(text) is str and _is_hex64(text) is not None


@dataclass(frozen=True, slots=True)
class Event:
    """A signed event. ``created_at`` is in unix seconds; ids, keys and signatures are hex.

    Not trustworthy out of ``shape`` before ``verify``; out of ``parse`` and ``Keys.sign`` it is.
    """

    id: str
    pubkey: str
    created_at: int
    kind: int
    tags: Tags
    content: str
    sig: str
    _verified: bool = field(default=False, init=False, repr=False, compare=False)

    @classmethod
    def shape(cls, obj: object, *, max_bytes: int = MAX_EVENT_BYTES) -> Event:
        """Read a decoded JSON object without checking id and signature; unknown fields are ignored.

        Lets a caller drop what it does not want before paying for a verification.
        ``max_bytes`` bounds the content here and the canonical form in ``parse``.
        """
        raw = _object(obj)
        fields = _fields(raw, max_bytes)
        id_, sig = raw.get("id"), raw.get("sig")
        if type(id_) is not str or not _is_hex64(id_):
            raise InvalidEvent("id is not 64 lower-case hex digits")
        if type(sig) is not str or not _is_hex128(sig):
            raise InvalidEvent("sig is not 128 lower-case hex digits")
        return cls(id_, *fields, sig)

    @classmethod
    def parse(cls, obj: object, *, max_bytes: int = MAX_EVENT_BYTES) -> Event:
        """Read and verify a decoded JSON object. Raises InvalidEvent, nothing else."""
        event = cls.shape(obj, max_bytes=max_bytes)
        event.verify(max_bytes=max_bytes)
        return event

    def verify(self, *, max_bytes: int = MAX_EVENT_BYTES) -> None:
        """Recompute the id and check the BIP-340 signature; free when done before.

        Raises InvalidEvent.
        """
        if self._verified:
            return
        canonical = serialize(self.pubkey, self.created_at, self.kind, self.tags, self.content)
        if len(canonical) > max_bytes:
            raise InvalidEvent(f"the event is longer than {max_bytes} bytes")
        digest = sha256(canonical).digest()
        if digest.hex() != self.id:
            raise InvalidEvent("id does not match the event")
        try:
            valid = PublicKeyXOnly(bytes.fromhex(self.pubkey)).verify(
                bytes.fromhex(self.sig), digest
            )
        except ValueError:
            raise InvalidEvent("pubkey is not a point of the curve") from None
        if not valid:
            raise InvalidEvent("the signature is wrong")
        object.__setattr__(self, "_verified", True)

    def to_dict(self) -> dict[str, Any]:
        """The wire form, ready for JSON."""
        return {
            "id": self.id,
            "pubkey": self.pubkey,
            "created_at": self.created_at,
            "kind": self.kind,
            "tags": [list(tag) for tag in self.tags],
            "content": self.content,
            "sig": self.sig,
        }

    def to_json(self) -> str:
        """The wire form as JSON text."""
        return orjson.dumps(self.to_dict()).decode()

    def first(self, tag: str) -> str | None:
        """The value of the first tag of that name, None without one."""
        return next((t[1] for t in self.tags if len(t) > 1 and t[0] == tag), None)

    def values(self, tag: str) -> list[str]:
        """The values of all tags of that name, in order."""
        return [t[1] for t in self.tags if len(t) > 1 and t[0] == tag]

    @property
    def address(self) -> str:
        """``kind:pubkey:d`` as ``a`` tags name it; ``d`` is empty unless addressable."""
        d = (self.first("d") or "") if 30_000 <= self.kind < 40_000 else ""
        return f"{self.kind}:{self.pubkey}:{d}"

    @property
    def expiration(self) -> int | None:
        """Unix seconds after which the event is void (NIP-40); None without a readable tag."""
        text = self.first("expiration")
        if text is None or len(text) > _MAX_TIMESTAMP_DIGITS:
            return None
        return int(text) if text.isascii() and text.isdigit() else None


@dataclass(frozen=True, slots=True)
class Rumor:
    """An unsigned event (NIP-59); ``id`` is computed. Raises InvalidEvent without a UTF-8 form."""

    pubkey: str
    created_at: int
    kind: int
    tags: Tags
    content: str
    id: str = field(init=False)

    def __post_init__(self) -> None:
        id_ = compute_id(self.pubkey, self.created_at, self.kind, self.tags, self.content)
        object.__setattr__(self, "id", id_)

    @classmethod
    def new(
        cls,
        pubkey: str,
        kind: int,
        content: str,
        tags: Iterable[Iterable[str]] = (),
        created_at: int | None = None,
    ) -> Rumor:
        """A rumor of now, unless ``created_at`` (unix seconds) says otherwise."""
        when = int(time.time()) if created_at is None else created_at
        return cls(pubkey, when, kind, freeze_tags(tags), content)

    @classmethod
    def parse(cls, obj: object, *, max_bytes: int = MAX_EVENT_BYTES) -> Rumor:
        """Read a decoded JSON object and recompute its id.

        An id that is there must be right. Raises InvalidEvent, nothing else.
        """
        raw = _object(obj)
        rumor = cls(*_fields(raw, max_bytes))
        claimed = raw.get("id")
        if claimed is not None and claimed != rumor.id:
            raise InvalidEvent("id does not match the rumor")
        return rumor

    def to_dict(self) -> dict[str, Any]:
        """The wire form, ready for JSON."""
        return {
            "id": self.id,
            "pubkey": self.pubkey,
            "created_at": self.created_at,
            "kind": self.kind,
            "tags": [list(tag) for tag in self.tags],
            "content": self.content,
        }

    def to_json(self) -> str:
        """The wire form as JSON text."""
        return orjson.dumps(self.to_dict()).decode()

    def first(self, tag: str) -> str | None:
        """The value of the first tag of that name, None without one."""
        return next((t[1] for t in self.tags if len(t) > 1 and t[0] == tag), None)


def _object(obj: object) -> dict[str, Any]:
    if type(obj) is not dict:
        raise InvalidEvent("an event is a JSON object")
    return obj


def _fields(raw: dict[str, Any], max_bytes: int) -> tuple[str, int, int, Tags, str]:
    """pubkey, created_at, kind, tags, content of a decoded JSON object, types and ranges checked.

    Exact types on purpose: ``true`` is no number and 1.0 is no integer.
    """
    pubkey, created_at, kind = raw.get("pubkey"), raw.get("created_at"), raw.get("kind")
    tags, content = raw.get("tags"), raw.get("content")
    if type(pubkey) is not str or not _is_hex64(pubkey):
        raise InvalidEvent("pubkey is not 64 lower-case hex digits")
    if type(created_at) is not int or not 0 <= created_at <= _MAX_TIMESTAMP:
        raise InvalidEvent("created_at is not a unix time")
    if type(kind) is not int or not 0 <= kind <= _MAX_KIND:
        raise InvalidEvent("kind is not an integer from 0 to 65535")
    if type(content) is not str or len(content) > max_bytes:
        raise InvalidEvent("content is not a string of the allowed length")
    if type(tags) is not list or len(tags) > max_bytes:
        raise InvalidEvent("tags is not a list of the allowed length")
    for tag in tags:
        if type(tag) is not list or not tag:
            raise InvalidEvent("a tag is not a list of strings")
        for value in tag:
            if type(value) is not str:
                raise InvalidEvent("a tag is not a list of strings")
    return pubkey, created_at, kind, tuple(map(tuple, tags)), content
