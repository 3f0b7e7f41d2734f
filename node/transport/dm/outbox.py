"""Sending replies: sealing, wrapping, publishing, and keeping frames for those who ask again."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import structlog

from discovery.nostr.event import Event, Rumor
from discovery.nostr.giftwrap import GIFT_WRAP, wrap
from discovery.nostr.keys import Keys
from discovery.nostr.pool import RelayPool
from node.transport.dm.codec import REPLY_KIND, RequestHead
from node.transport.dm.limits import DmLimits

_log = structlog.get_logger()
_RETRY_FIRST_S = 1.0
_CREDENTIALS = ("authorization", "x-api-key", "x-cashu")


@dataclass(frozen=True, slots=True)
class Recipient:
    """Who gets a reply and how: in wraps of ``kind``, over our relays and ``relays``."""

    pubkey: str
    kind: int
    relays: tuple[str, ...] = ()
    takes_stored: bool = True
    """Whether a stored copy is of use to it."""


def recipient_of(
    sender: str,
    kind: int,
    head: RequestHead | None = None,
    relays: tuple[str, ...] = (),
    wrap: tuple[int, ...] = (),
) -> Recipient:
    """Who gets the answer to a message that came in a wrap of ``kind``.

    It goes the way the message came, unless the client takes only the other kind. Who offers
    neither key nor token does not make us connect to relays of its choice.

    Args:
        head: of the message; None when that is not known.
        relays, wrap: what the message asks for.
    """
    offers = head is not None and not head.headers.keys().isdisjoint(_CREDENTIALS)
    return Recipient(
        pubkey=sender,
        kind=kind if not wrap or kind in wrap else wrap[0],
        relays=relays if offers else (),
        takes_stored=not wrap or GIFT_WRAP in wrap,
    )


@dataclass(slots=True)
class Sent:
    """The messages of one reply as they were sent; ``key`` is (sender, id)."""

    key: tuple[str, str]
    recipient: Recipient
    frames: bool
    contents: list[str] = field(default_factory=list)
    size_bytes: int = 0
    keep_until: float | None = None
    """None while the reply is being written."""


class SentReplies:
    """Replies kept for a while, in a bounded number of bytes; the oldest give way."""

    def __init__(self, max_bytes: int, lifetime_s: float) -> None:
        self._max_bytes = max_bytes
        self._lifetime_s = lifetime_s
        self._replies: OrderedDict[tuple[str, str], Sent] = OrderedDict()
        self._bytes = 0

    def open(self, key: tuple[str, str], recipient: Recipient, *, frames: bool) -> Sent:
        """Start the record of a new reply, in place of any older one."""
        self.drop(key)
        sent = self._replies[key] = Sent(key, recipient, frames)
        return sent

    def get(self, key: tuple[str, str]) -> Sent | None:
        return self._replies.get(key)

    def append(self, sent: Sent, content: str) -> None:
        """Keep one more message of ``sent``, unless it had to give way meanwhile."""
        if self._replies.get(sent.key) is not sent:
            return
        sent.contents.append(content)
        sent.size_bytes += len(content)
        self._bytes += len(content)
        while self._bytes > self._max_bytes and self._replies:
            self.drop(next(iter(self._replies)))

    def close(self, sent: Sent, now: float) -> None:
        """The reply is complete: keep it for its lifetime from now."""
        sent.keep_until = now + self._lifetime_s

    def drop(self, key: tuple[str, str]) -> None:
        sent = self._replies.pop(key, None)
        if sent is not None:
            self._bytes -= sent.size_bytes

    def expire(self, now: float) -> None:
        """Forget complete replies past their lifetime."""
        late = [
            key
            for key, sent in self._replies.items()
            if sent.keep_until is not None and sent.keep_until <= now
        ]
        for key in late:
            self.drop(key)


class Outbox:
    """Publishes replies in the background. Nothing here raises; failures are counted."""

    def __init__(
        self, pool: RelayPool, keys: Keys, limits: DmLimits, clock: Callable[[], float]
    ) -> None:
        self._pool = pool
        self._keys = keys
        self._limits = limits
        self._clock = clock
        self._tasks: set[asyncio.Task[bool]] = set()
        self.undelivered = 0
        """Messages that no relay took."""
        self.omitted = 0
        """Replies of which a header was too large to send."""

    def post(
        self, recipient: Recipient, content: str, *, stored_copy: bool = False
    ) -> asyncio.Task[bool]:
        """Send one message. The task gives True when a relay said ``rate-limited``.

        Args:
            stored_copy: publish it as a stored wrap as well, if it does not travel in one.
        """
        if stored_copy and recipient.kind != GIFT_WRAP and recipient.takes_stored:
            self._spawn(replace(recipient, kind=GIFT_WRAP), content)
        return self._spawn(recipient, content)

    async def post_in_turn(self, recipient: Recipient, contents: Iterable[str]) -> None:
        """Send several messages, each when the one before is out."""
        for content in contents:
            await self.post(recipient, content)

    async def drain(self, timeout_s: float) -> None:
        """Wait until all is sent; what is not after ``timeout_s`` is given up."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=max(0.0, timeout_s))
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    def _spawn(self, recipient: Recipient, content: str) -> asyncio.Task[bool]:
        task = asyncio.create_task(self._send(recipient, content))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _send(self, recipient: Recipient, content: str) -> bool:
        try:
            return await self._deliver(recipient, content)
        except Exception as error:
            # Whatever a relay or a hostile key provokes: one message is lost, not the carriage.
            self.undelivered += 1
            _log.warning("dm_reply_not_sent", reason=type(error).__name__)
            return False

    async def _deliver(self, recipient: Recipient, content: str) -> bool:
        event = self._wrap(recipient, content)
        urls: Sequence[str] | None = None
        if recipient.relays:
            urls = list(dict.fromkeys([*self._pool.urls, *recipient.relays]))
        limited = False
        for attempt in range(self._limits.publish_attempts):
            if attempt:
                await asyncio.sleep(_RETRY_FIRST_S * 2 ** (attempt - 1))
            results = await self._pool.publish(
                event, urls=urls, timeout_s=self._limits.publish_timeout_s, enough=1
            )
            limited = limited or any("rate-limit" in r.message for r in results.values())
            if any(result.ok for result in results.values()):
                return limited
        self.undelivered += 1
        _log.warning("dm_reply_not_taken", relays=len(urls or self._pool.urls))
        return limited

    def _wrap(self, recipient: Recipient, content: str) -> Event:
        now = int(self._clock())
        rumor = Rumor.new(self._keys.pubkey, REPLY_KIND, content, created_at=now)
        stored = recipient.kind == GIFT_WRAP
        return wrap(
            rumor,
            self._keys,
            recipient.pubkey,
            kind=recipient.kind,
            expiration=now + self._limits.stored_lifetime_s if stored else None,
            backdate=stored,
            now=now,
        )
