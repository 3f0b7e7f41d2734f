"""Sending replies: sealing, wrapping, publishing, and keeping frames for those who ask again."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from discovery.nostr.event import Rumor
from discovery.nostr.giftwrap import GIFT_WRAP
from discovery.nostr.keys import Keys
from discovery.nostr.pool import RelayPool
from node.core.exchange import CREDENTIALS
from node.transport.dm.codec import REPLY_KIND, RequestHead
from node.transport.dm.cutter import MIN_PART_BYTES, PART_BYTES
from node.transport.dm.limits import DmLimits
from node.transport.dm.publishing import Delivery, Publisher

_log = structlog.get_logger()
_SMALLER_FOR_S = 600.0


@dataclass(frozen=True, slots=True)
class Recipient:
    """Who gets a reply and how: in wraps of ``kind``, over our relays and ``relays``."""

    pubkey: str
    kind: int
    relays: tuple[str, ...] = ()
    takes_stored: bool = True
    """Whether a stored copy is of use to it."""
    others: tuple[int, ...] = ()
    """Kinds it takes as well, for relays that refuse ``kind``."""

    @property
    def kinds(self) -> tuple[int, ...]:
        return (self.kind, *self.others)


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
    offers = head is not None and not head.headers.keys().isdisjoint(CREDENTIALS)
    answer = kind if not wrap or kind in wrap else wrap[0]
    return Recipient(
        pubkey=sender,
        kind=answer,
        relays=relays if offers else (),
        takes_stored=not wrap or GIFT_WRAP in wrap,
        others=tuple(other for other in wrap if other != answer),
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

    def replace(self, sent: Sent, contents: Sequence[str]) -> None:
        """The same reply, cut anew."""
        if self._replies.get(sent.key) is sent:
            self._bytes -= sent.size_bytes
            sent.contents.clear()
            sent.size_bytes = 0
        for content in contents:
            self.append(sent, content)

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
        self._publisher = Publisher(
            pool,
            keys,
            timeout_s=limits.publish_timeout_s,
            stored_lifetime_s=limits.stored_lifetime_s,
            clock=clock,
        )
        self._tasks: set[asyncio.Task[Delivery]] = set()
        self._part_bytes = PART_BYTES
        self._smaller_until = 0.0
        self.undelivered = 0
        """Messages that no relay took."""
        self.omitted = 0
        """Replies of which a header was too large to send."""

    @property
    def part_bytes(self) -> int:
        """How much of a body goes into one message: less after relays refused full ones."""
        if time.monotonic() > self._smaller_until:
            self._part_bytes = PART_BYTES
        return self._part_bytes

    def smaller(self, refused_bytes: int) -> bool:
        """Full messages of ``refused_bytes`` were too large; False when they cannot be smaller."""
        if self.part_bytes < refused_bytes:
            return True
        if refused_bytes <= MIN_PART_BYTES:
            return False
        self._part_bytes = max(refused_bytes // 2, MIN_PART_BYTES)
        self._smaller_until = time.monotonic() + _SMALLER_FOR_S
        return True

    def post(
        self, recipient: Recipient, content: str, *, stored_copy: bool = False
    ) -> asyncio.Task[Delivery]:
        """Send one message; the task tells what became of it.

        Args:
            stored_copy: publish it as a stored wrap as well, if it does not travel in one.
        """
        if stored_copy and recipient.kind != GIFT_WRAP and recipient.takes_stored:
            self._spawn(replace(recipient, kind=GIFT_WRAP, others=()), content)
        return self._spawn(recipient, content)

    async def post_in_turn(self, recipient: Recipient, contents: Iterable[str]) -> None:
        """Send several messages, a few at a time."""
        waiting: set[asyncio.Task[Delivery]] = set()
        for content in contents:
            waiting.add(self.post(recipient, content))
            if len(waiting) >= self._limits.max_unconfirmed_frames:
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if waiting:
            await asyncio.wait(waiting)

    async def drain(self, timeout_s: float) -> None:
        """Wait until all is sent; what is not after ``timeout_s`` is given up."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=max(0.0, timeout_s))
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        await self._publisher.close()

    def spawn(self, work: Coroutine[Any, Any, Delivery]) -> asyncio.Task[Delivery]:
        """Run ``work`` in the background, as part of what ``drain`` waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _spawn(self, recipient: Recipient, content: str) -> asyncio.Task[Delivery]:
        return self.spawn(self._send(recipient, content))

    async def _send(self, recipient: Recipient, content: str) -> Delivery:
        try:
            delivery = await self._deliver(recipient, content)
        except Exception as error:
            # Whatever a relay or a hostile key provokes: one message is lost, not the carriage.
            self.undelivered += 1
            _log.warning("dm_reply_not_sent", reason=type(error).__name__)
            return Delivery(False)
        if not delivery.taken:
            self.undelivered += 1
            _log.warning("dm_reply_not_taken", too_large=delivery.too_large)
        return delivery

    async def _deliver(self, recipient: Recipient, content: str) -> Delivery:
        rumor = Rumor.new(self._keys.pubkey, REPLY_KIND, content, created_at=int(self._clock()))
        urls: Sequence[str] | None = None
        if recipient.relays:
            urls = list(dict.fromkeys([*self._pool.urls, *recipient.relays]))
        return await self._publisher.publish(
            rumor,
            recipient.pubkey,
            recipient.kinds,
            urls=urls,
            attempts=self._limits.publish_attempts,
        )
