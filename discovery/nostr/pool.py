"""Many relays as one: publish to all, subscribe and query across all."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, Self
from weakref import WeakSet

from discovery.errors import RelayError
from discovery.nostr.event import Event
from discovery.nostr.filters import Filter
from discovery.nostr.keys import Keys
from discovery.nostr.limits import STRANGERS, PublishResult, RelayLimits
from discovery.nostr.relay import Guard, Relay, RelayHealth, normalize_url
from discovery.nostr.subscription import (
    DEFAULT_QUEUE_EVENTS,
    DEFAULT_SEEN_IDS,
    FilterSource,
    Subscription,
)

__all__ = ["PublishResult", "RelayHealth", "RelayLimits", "RelayPool", "Subscription"]

DEFAULT_MAX_GUESTS: Final = 32
"""Relays outside the pool that may be connected at once."""
DEFAULT_GUEST_IDLE_S: Final = 60.0
"""How long a relay outside the pool stays connected unused."""
DEFAULT_QUERY_EVENTS: Final = 5_000
"""Stored events a query takes from one relay."""
DEFAULT_BACKGROUND_PUBLISHES: Final = 1_000
"""Publishes that may go on after ``publish`` returned early."""


class RelayPool:
    """The relays we use, each kept connected. ``async with``, or ``start`` and ``close``.

    Args:
        urls: ws:// or wss:// URLs; spellings of the same relay count once. RelayError for others.
        keys: answers AUTH challenges (NIP-42).
        guard: called with a relay's URL before each connect; see ``relay.Guard``.
        connect_timeout_s: for the guard and the connection together.
        ok_timeout_s: how long ``publish`` waits by default.
        limits: everything else one relay may cost us.
        max_guests: relays outside the pool connected at once, for ``publish`` and ``query``; of
            them no more is read than ``STRANGERS`` allows.
        guest_idle_s: how long such a relay stays connected unused.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        keys: Keys | None = None,
        guard: Guard | None = None,
        connect_timeout_s: float = 10,
        ok_timeout_s: float = 10,
        limits: RelayLimits | None = None,
        max_guests: int = DEFAULT_MAX_GUESTS,
        guest_idle_s: float = DEFAULT_GUEST_IDLE_S,
    ) -> None:
        self._keys = keys
        self._guard = guard
        self._ok_timeout_s = ok_timeout_s
        self._limits = replace(limits or RelayLimits(), connect_timeout_s=connect_timeout_s)
        self._guest_limits = replace(
            self._limits,
            max_message_bytes=min(self._limits.max_message_bytes, STRANGERS.max_message_bytes),
            max_received_frames=STRANGERS.max_received_frames,
            max_frames_per_s=min(self._limits.max_frames_per_s, STRANGERS.max_frames_per_s),
        )
        self._max_guests = max_guests
        self._guest_idle_s = guest_idle_s
        self._relays = {url: self._relay(url, self._limits) for url in map(normalize_url, urls)}
        self._guests: OrderedDict[str, Relay] = OrderedDict()
        self._idle: dict[str, asyncio.TimerHandle] = {}
        self._subscriptions: WeakSet[Subscription] = WeakSet()
        self._standing: WeakSet[Subscription] = WeakSet()
        self._started = False
        self._background: set[asyncio.Task[object]] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Begin to connect; does not wait for any relay."""
        self._started = True
        for relay in self._relays.values():
            relay.start()

    async def close(self) -> None:
        """End subscriptions and publishes, disconnect from every relay. Idempotent."""
        self._closed = True
        for timer in self._idle.values():
            timer.cancel()
        for subscription in list(self._subscriptions):
            subscription.end()
        relays = [*self._relays.values(), *self._guests.values()]
        await asyncio.gather(*(relay.close() for relay in relays))
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    @property
    def urls(self) -> tuple[str, ...]:
        """The pool's relays, in one spelling each."""
        return tuple(self._relays)

    async def set_urls(self, urls: Sequence[str]) -> None:
        """Use these relays from now on, without an interruption at those that stay.

        New ones are connected and asked every standing subscription; what is no longer listed
        is disconnected, and publishes to it end. RelayError, and no change, for what is no URL
        of a relay.
        """
        wanted = dict.fromkeys(map(normalize_url, urls))
        if self._closed:
            raise RelayError("the pool is closed")
        before, self._relays = self._relays, {}
        for url in wanted:
            if url in before:
                self._relays[url] = before.pop(url)
                continue
            if (timer := self._idle.pop(url, None)) is not None:
                timer.cancel()
            relay = self._guests.pop(url, None) or self._relay(url, self._limits)
            relay.adopt(self._limits)
            self._relays[url] = relay
            if self._started:
                relay.start()
            for subscription in list(self._standing):
                if not subscription.closed:
                    subscription.ask(relay)
        for relay in before.values():
            for subscription in list(self._standing):
                subscription.leave(relay)
        await asyncio.gather(*(relay.close() for relay in before.values()))

    def health(self) -> dict[str, RelayHealth]:
        """How each of the pool's relays does."""
        return {url: relay.health() for url, relay in self._relays.items()}

    def trouble(self, url: str) -> str | None:
        """What is wrong with one of the pool's relays, in a few public words."""
        relay = self._relays.get(url)
        return "not in use" if relay is None else relay.health().trouble

    # publishing

    async def publish(
        self,
        event: Event,
        *,
        urls: Sequence[str] | None = None,
        timeout_s: float | None = None,
        enough: int | None = None,
    ) -> dict[str, PublishResult]:
        """Send ``event`` to ``urls``, by default all of the pool, and wait for their OKs.

        Args:
            urls: may name relays outside the pool; these pass the guard too.
            timeout_s: for all together, reconnecting included.
            enough: return once that many accepted; the others go on in the background and
                show as "pending: …".

        Returns a result for every URL as it was given; a bad relay is a result, not an error.
        """
        wait_s = self._ok_timeout_s if timeout_s is None else timeout_s
        tasks = {
            asyncio.create_task(self.publish_to(url, event, timeout_s=wait_s)): url
            for url in dict.fromkeys(self._relays if urls is None else urls)
        }
        try:
            await _until_enough(tasks, enough)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise
        for task in tasks:
            if not task.done():
                self._keep(task)
        pending = PublishResult(False, "pending: not waited for")
        return {url: task.result() if task.done() else pending for task, url in tasks.items()}

    async def publish_to(self, url: str, event: Event, *, timeout_s: float) -> PublishResult:
        """Send ``event`` to one relay, of the pool or not, and wait for its OK; see ``publish``."""
        try:
            relay = self._find(url)
        except RelayError as exc:
            return PublishResult(False, f"unusable: {exc}")
        try:
            return await relay.publish(event.id, f'["EVENT",{event.to_json()}]', timeout_s)
        finally:
            self._release(relay)

    def _keep(self, task: asyncio.Task[PublishResult]) -> None:
        if len(self._background) >= DEFAULT_BACKGROUND_PUBLISHES:
            task.cancel()
            return
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # reading

    def subscribe(
        self,
        filters: FilterSource,
        *,
        queue_size: int = DEFAULT_QUEUE_EVENTS,
        seen_size: int = DEFAULT_SEEN_IDS,
    ) -> Subscription:
        """Ask every relay of the pool, now and after each reconnect, until it is closed.

        ``filters`` may be a function: it is called at each (re)connect, for a fresh ``since``.
        """
        subscription = Subscription(filters, queue_size=queue_size, seen_size=seen_size)
        # a pool may be without relays for now
        if self._relays or self._closed:
            self._ask(subscription, self._relays)
        else:
            self._subscriptions.add(subscription)
        self._standing.add(subscription)
        return subscription

    async def query(
        self,
        filters: Sequence[Filter],
        *,
        timeout_s: float = 10,
        urls: Sequence[str] | None = None,
        max_events_per_relay: int = DEFAULT_QUERY_EVENTS,
    ) -> list[Event]:
        """Stored events from ``urls``, by default all of the pool; newest first.

        Ends when every reachable relay has sent its stored events, or at the deadline with
        what has come. URLs that cannot be used are left out.
        """
        asked = list(self._relays if urls is None else urls)
        bound = max_events_per_relay * max(1, len(asked))
        subscription = Subscription(
            filters,
            queue_size=bound,
            seen_size=bound,
            standing=False,
            max_stored=max_events_per_relay,
        )
        relays = self._ask(subscription, asked)
        try:
            await subscription.eose(timeout_s)
        finally:
            await subscription.close()
            for relay in relays:
                self._release(relay)
        return sorted(subscription.drain(), key=lambda event: (-event.created_at, event.id))

    def _ask(self, subscription: Subscription, urls: Iterable[str]) -> list[Relay]:
        """Send it to every usable URL; without one it ends at once."""
        relays: dict[str, Relay] = {}
        for url in urls:
            try:
                relay = self._find(url)
            except RelayError:
                continue
            if relay.url not in relays:
                relays[relay.url] = relay
                subscription.ask(relay)
        if relays:
            self._subscriptions.add(subscription)
        else:
            subscription.end()
        return list(relays.values())

    # relays outside the pool

    def _relay(self, url: str, limits: RelayLimits) -> Relay:
        return Relay(url, keys=self._keys, guard=self._guard, limits=limits)

    def _find(self, url: str) -> Relay:
        """The relay of that URL; one outside the pool is connected and kept for a while.

        Raises RelayError for no URL of a relay, too many of them in use, or a closed pool.
        """
        url = normalize_url(url)
        if self._closed:
            raise RelayError("the pool is closed")
        if url in self._relays:
            return self._relays[url]
        if (timer := self._idle.pop(url, None)) is not None:
            timer.cancel()
        if url not in self._guests:
            if len(self._guests) >= self._max_guests:
                self._evict()
            self._guests[url] = self._relay(url, self._guest_limits)
            self._guests[url].start()
        self._guests.move_to_end(url)
        return self._guests[url]

    def _release(self, relay: Relay) -> None:
        if self._guests.get(relay.url) is relay and not relay.busy and not self._closed:
            loop = asyncio.get_running_loop()
            if (timer := self._idle.pop(relay.url, None)) is not None:
                timer.cancel()
            self._idle[relay.url] = loop.call_later(self._guest_idle_s, self._dismiss, relay.url)

    def _evict(self) -> None:
        for url, relay in self._guests.items():
            if not relay.busy:
                self._dismiss(url)
                return
        raise RelayError("too many relays in use")

    def _dismiss(self, url: str) -> None:
        if (timer := self._idle.pop(url, None)) is not None:
            timer.cancel()
        task: asyncio.Task[object] = asyncio.create_task(self._guests.pop(url).close())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _until_enough(tasks: dict[asyncio.Task[PublishResult], str], enough: int | None) -> None:
    """Wait for all tasks, or until ``enough`` of them say ok."""
    waiting = set(tasks)
    accepted = 0
    while waiting and (enough is None or accepted < enough):
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        accepted += sum(task.result().ok for task in done)
