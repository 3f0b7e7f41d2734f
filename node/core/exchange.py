"""What passes between a carriage (HTTP, Nostr) and the services: one request, a stream of events.

    Started ─▶ Chunk* ─▶ Receipt          an answer; the receipt comes last
    Failed                                 no byte was sent; money, if any moved, is in ``receipt``

A carriage never touches money and a service never sees a socket. A failure after ``Started``
arrives as a ``Chunk`` holding an SSE error, so a carriage sees ``Failed`` only first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from node.core.money import Msat
from node.core.usage import Usage
from node.errors import NodeError

KEY_HEADERS = ("authorization", "x-api-key")
"""Where a key may stand, the one that counts first; lower-case names."""
CREDENTIALS = (*KEY_HEADERS, "x-cashu")
"""The headers that name a payer."""

REQUEST_HEADERS = frozenset(
    {
        "content-type",
        "accept",
        "authorization",
        "x-api-key",
        "x-cashu",
        "x-cashu-change",
        "idempotency-key",
        "if-none-match",
        "anthropic-version",
        "anthropic-beta",
        "refund-lnurl",
        "key-expiry-time",
    }
)
"""What of a request's headers is read; the others are dropped by the carriages, unseen."""

Carriage: TypeAlias = Literal["http", "nostr"]


@dataclass(frozen=True, slots=True)
class Request:
    """One decoded request, whatever carried it."""

    request_id: str
    method: str
    path: str
    """Path without query, beginning with ``/``."""
    headers: Mapping[str, str] = field(repr=False)
    """Lower-case names, already reduced to the allowlist."""
    body: bytes = field(default=b"", repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    carriage: Carriage = "http"
    peer: str = ""
    """Remote address or sender public key (hex): whom limits count against."""
    idempotency_key: str | None = None
    """Names this request for ever among those of its payer; asking again repeats the answer."""
    stop: asyncio.Event | None = field(default=None, repr=False, compare=False)
    """Set by the carriage when the client wants no more: a generation ends early, but in order,
    with what was seen charged and the receipt given. Closing the generator loses the receipt."""
    answer_headers: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    """Noted on the way by the services; they go out with the answer, whatever it is."""
    notes: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    """What the services found out, for the operator's eyes: ``model``, the id of the one asked."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the request cost and the money that goes back."""

    cost: Msat | None = None
    """None for what is free (catalogue, wallet)."""
    usage: Usage | None = None
    change: str | None = field(default=None, repr=False)
    """A serialised Cashu token for the client, when it paid with a token."""
    dust: Msat = Msat(0)
    """What was too small for the mint's unit and stayed here."""


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """A complete answer kept for replay under its idempotency key."""

    status: int
    content_type: str
    body: bytes = field(repr=False)
    cost: Msat = Msat(0)


@dataclass(frozen=True, slots=True)
class Started:
    """An answer begins. ``headers``: lower-case names."""

    status: int
    headers: Mapping[str, str]
    live: bool = False
    """True: send chunks as they come. False: the receipt may be waited for and sent in headers."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of the answer's body."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Failed:
    """No answer; ``receipt`` says what moved all the same."""

    error: NodeError
    receipt: Receipt = field(default_factory=Receipt)
    headers: Mapping[str, str] = field(default_factory=dict)
    """On top of the error's own; lower-case names."""


ReplyEvent: TypeAlias = Started | Chunk | Receipt | Failed
