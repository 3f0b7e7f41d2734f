"""A standing question to several relays: one bounded stream of verified events, each once."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol, Self

from discovery.nostr.event import Event
from discovery.nostr.filters import Filter

DEFAULT_QUEUE_EVENTS: Final = 1_000
"""Events kept for a slow consumer; then the oldest is dropped."""
DEFAULT_SEEN_IDS: Final = 20_000
"""Verified ids remembered for dropping duplicates; then the longest unseen is forgotten."""

FilterSource = Sequence[Filter] | Callable[[], Sequence[Filter]]
"""Filters, or what makes them: called at every (re)connect of every relay."""


class Asked(Protocol):
    """Where a subscription has been sent: a relay."""

    @property
    def url(self) -> str: ...

    @property
    def reachable(self) -> bool:
        """Connected, or on its first attempt."""
        ...

    def attach(self, subscription: Subscription) -> None: ...

    def detach(self, subscription: Subscription) -> None: ...


class SeenIds:
    """The last ``capacity`` ids, least recently met forgotten first."""

    __slots__ = ("_capacity", "_ids")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._ids: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, event_id: str) -> bool:
        if event_id not in self._ids:
            return False
        self._ids.move_to_end(event_id)
        return True

    def add(self, event_id: str) -> None:
        self._ids[event_id] = None
        if len(self._ids) > self._capacity:
            self._ids.popitem(last=False)


class Subscription:
    """Iterate it for events; one consumer. ``async with`` or ``close`` ends it.

    Every event has been verified and checked against the filters its relay was asked with.

    Args:
        source: filters, or a function that makes them anew at each (re)connect.
        queue_size: events kept while the consumer is busy.
        seen_size: verified ids remembered for dropping duplicates.
        standing: ask again after a relay ended it (CLOSED); a query does not.
        max_stored: stored events taken from one relay before it counts as done; None: any number.
    """

    def __init__(
        self,
        source: FilterSource,
        *,
        queue_size: int = DEFAULT_QUEUE_EVENTS,
        seen_size: int = DEFAULT_SEEN_IDS,
        standing: bool = True,
        max_stored: int | None = None,
    ) -> None:
        self.id: Final = secrets.token_hex(8)
        self.standing: Final = standing
        self.max_stored: Final = max_stored
        self.dropped = 0
        """Events lost because the consumer was too slow."""
        self._source = source
        self._queue: deque[Event] = deque(maxlen=queue_size)
        self._seen = SeenIds(seen_size)
        self._arrived = asyncio.Event()
        self._relays: list[Asked] = []
        self._outstanding: set[str] = set()
        self._answered: set[str] = set()
        self._stored_done = asyncio.Event()
        self._closed = False

    # for the consumer

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._queue.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def eose(self, timeout_s: float = 10) -> bool:
        """Wait until the stored events of every reachable relay have come (EOSE or CLOSED).

        False when the deadline passed first: a relay sent no EOSE, or none could be reached.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._stored_done.wait()
        except TimeoutError:
            return False
        return bool(self._answered)

    async def close(self) -> None:
        """Stop asking. What has arrived can still be read; then iteration ends. Idempotent."""
        self.end()
        for relay in self._relays:
            relay.detach(self)
        self._relays.clear()

    def drain(self) -> Iterator[Event]:
        """What has arrived and was not read."""
        while self._queue:
            yield self._queue.popleft()

    # for the pool and its relays

    def ask(self, relay: Asked) -> None:
        """Send this subscription to ``relay`` now and whenever it reconnects."""
        self._relays.append(relay)
        if relay.reachable:
            self._outstanding.add(relay.url)
        relay.attach(self)

    def leave(self, relay: Asked) -> None:
        """Ask ``relay`` no longer; the others go on."""
        if relay in self._relays:
            self._relays.remove(relay)
            relay.detach(self)
            self.unreachable(relay.url)

    @property
    def closed(self) -> bool:
        """Whether it was ended."""
        return self._closed

    def filters(self) -> list[dict[str, Any]]:
        """The filters for a REQ of this moment."""
        made = self._source() if callable(self._source) else self._source
        return [dict(conditions) for conditions in made]

    def has_seen(self, event_id: str) -> bool:
        """Whether a verified event of that id has passed; a forged one never counts."""
        return event_id in self._seen

    def push(self, event: Event) -> None:
        """Take a verified, matching event."""
        self._seen.add(event.id)
        if len(self._queue) == self._queue.maxlen:
            self.dropped += 1
        self._queue.append(event)
        self._arrived.set()

    def asked(self, url: str) -> None:
        """A REQ went out to ``url``."""
        if url not in self._answered:
            self._outstanding.add(url)

    def answered(self, url: str) -> None:
        """``url`` sent EOSE or CLOSED: no more stored events from it."""
        self._answered.add(url)
        self.unreachable(url)

    def unreachable(self, url: str) -> None:
        """``url`` cannot be asked now: nobody should wait for it while others answered."""
        self._outstanding.discard(url)
        if self._answered and not self._outstanding:
            self._stored_done.set()

    def end(self) -> None:
        """No more events will come; wakes whoever waits."""
        self._closed = True
        self._arrived.set()
        self._stored_done.set()
