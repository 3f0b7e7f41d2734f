"""What the services need of the world outside, as Protocols. The adapters implement them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from node.core.catalog import Model


@dataclass(frozen=True, slots=True)
class UpstreamCall:
    """One call to a model server."""

    model: Model
    path: str
    """OpenAI path below the base URL, such as ``/chat/completions``."""
    body: bytes
    """JSON as we priced it."""
    request_id: str
    accept: str = "application/json"


class UpstreamReply(Protocol):
    """An answer of which the headers have arrived."""

    status: int
    content_type: str

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises UpstreamFailed, UpstreamTimeout."""
        ...

    async def close(self) -> None:
        """Stop reading; cancels the generation when the body is not complete. Idempotent."""
        ...


class Upstream(Protocol):
    async def open(self, call: UpstreamCall) -> UpstreamReply:
        """Send ``call`` and wait for the headers of a 2xx answer.

        Raises UpstreamFailed, UpstreamTimeout, or the error that tells the client what is
        wrong with its own request (InvalidValue, ContextLengthExceeded, RateLimitExceeded …).
        """
        ...


@dataclass(frozen=True, slots=True)
class StoredReply:
    """A complete answer kept for replay."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    trailers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """What is known of a Nostr request (sender, id).

    state: ``new`` (just stored), ``started`` (stored before, no reply kept: it runs now or the
    node stopped meanwhile), ``done`` (``reply`` is set), ``conflict`` (another body, same id).
    """

    state: Literal["new", "started", "done", "conflict"]
    reply: StoredReply | None = None


class MessageLog(Protocol):
    """Exactly once for requests over Nostr: durable before any money moves."""

    async def begin(self, sender: str, message_id: str, digest: str) -> MessageRecord:
        """Store (sender, id, digest of the whole request) or find what was stored."""
        ...

    async def finish(self, sender: str, message_id: str, reply: StoredReply) -> None:
        """Keep the answer for replay."""
        ...

    async def prune(self, older_than_s: int) -> int:
        """Forget what is older; returns how many."""
        ...
