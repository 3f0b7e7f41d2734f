"""Brings what some relays have: a subscription, model pages as they are wanted, full polls.

One long-lived subscription brings provider events and deletions as they come; a full poll every
15 to 30 minutes catches what was missed. Model pages are fetched for the providers that announce.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from discovery.announcement import KIND_DELETION, KIND_MODEL_PAGE, KIND_PROVIDER
from discovery.nostr.event import Event
from discovery.nostr.pool import RelayPool
from discovery.reviews import KIND_RECOMMENDATION, KIND_REVIEW

_ADDRESSES_PER_FILTER = 50
_EVENTS_PER_QUERY = 500
_MAX_QUERIES_PER_POLL = 20
_RETRY_FETCH_S = 5.0
_WATCH_S = 1.0
"""How often it is seen whether the pool has other relays."""
_REVIEW_FILTERS: tuple[dict[str, object], ...] = (
    {"kinds": [KIND_REVIEW], "limit": _EVENTS_PER_QUERY},
    {"kinds": [KIND_RECOMMENDATION], "#k": [str(KIND_PROVIDER)], "limit": _EVENTS_PER_QUERY},
)
_DELETED_KINDS = [str(kind) for kind in (KIND_PROVIDER, KIND_REVIEW, KIND_RECOMMENDATION)]


@dataclass(slots=True)
class _Wanted:
    """Providers whose model pages one relay is to be asked for."""

    addresses: dict[str, None] = field(default_factory=dict)
    some: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, addresses: Iterable[str]) -> None:
        self.addresses.update(dict.fromkeys(addresses))
        self.some.set()

    def take(self) -> list[str]:
        addresses = list(self.addresses)
        self.addresses.clear()
        self.some.clear()
        return addresses


class Follower:
    """Follows the relays of one pool, also when these become others.

    Args:
        offer: takes each event, of any origin.
        known: the addresses of all providers that are known.
        poll_s: shortest and longest pause between full polls of a relay.
        query_timeout_s: deadline for one query to a relay.
        debounce_s: how long wishes for model pages are gathered.
    """

    def __init__(
        self,
        pool: RelayPool,
        offer: Callable[[Event], object],
        known: Callable[[], Iterable[str]],
        *,
        poll_s: tuple[float, float],
        query_timeout_s: float,
        debounce_s: float,
    ) -> None:
        self._pool = pool
        self._offer = offer
        self._known = known
        self._poll_s = poll_s
        self._query_timeout_s = query_timeout_s
        self._debounce_s = debounce_s
        self._wanted: dict[str, _Wanted] = {}

    def want(self, address: str) -> None:
        """Fetch the model pages of this provider."""
        for wanted in self._wanted.values():
            wanted.add([address])

    async def run(self) -> None:
        """Until cancelled."""
        tending: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(), name="directory-follow")
            while True:
                urls = self._pool.urls
                for url in tending.keys() - set(urls):
                    tending.pop(url).cancel()
                    del self._wanted[url]
                for url in urls:
                    if url not in tending:
                        self._wanted[url] = wanted = _Wanted()
                        wanted.add(self._known())
                        tending[url] = tasks.create_task(self._tend(url), name="directory-tend")
                await asyncio.sleep(_WATCH_S)

    async def _follow(self) -> None:
        subscription = self._pool.subscribe(
            [
                {"kinds": [KIND_PROVIDER], "limit": _EVENTS_PER_QUERY},
                {"kinds": [KIND_DELETION], "#k": _DELETED_KINDS, "limit": _EVENTS_PER_QUERY},
                *_REVIEW_FILTERS,
            ]
        )
        try:
            async for event in subscription:
                self._offer(event)
        finally:
            await subscription.close()

    async def _tend(self, url: str) -> None:
        """Fetch model pages from one relay as they are wanted, and poll it now and then.

        Each relay has its own task, so that one which never answers delays no other.
        """
        wanted = self._wanted[url]
        # The subscription has just asked for everything: the first poll can wait.
        poll_at = self._next_poll()
        while True:
            try:
                async with asyncio.timeout_at(poll_at):
                    await wanted.some.wait()
            except TimeoutError:
                poll_at = self._next_poll()
                await self._poll(url)
                wanted.add(self._known())
            await asyncio.sleep(self._debounce_s)
            addresses = wanted.take()
            for start in range(0, len(addresses), _ADDRESSES_PER_FILTER):
                await self._fetch_pages(url, addresses[start : start + _ADDRESSES_PER_FILTER])
            health = self._pool.health().get(url)
            if health is None or not health.connected:
                wanted.add(addresses)
                await asyncio.sleep(_RETRY_FETCH_S)

    def _next_poll(self) -> float:
        pause = random.uniform(*self._poll_s)  # noqa: S311 it only spreads load
        return asyncio.get_running_loop().time() + pause

    async def _poll(self, url: str) -> None:
        """Read all provider events of a relay, from the newest back.

        ``until`` is inclusive, for several events may share the second at a page's edge.
        """
        for event in await self._query(url, _REVIEW_FILTERS):
            self._offer(event)
        until: int | None = None
        seen: set[str] = set()
        for _ in range(_MAX_QUERIES_PER_POLL):
            wanted: dict[str, object] = {"kinds": [KIND_PROVIDER], "limit": _EVENTS_PER_QUERY}
            if until is not None:
                wanted["until"] = until
            events = await self._query(url, [wanted])
            fresh = [event for event in events if event.id not in seen]
            if not fresh:
                return
            for event in fresh:
                seen.add(event.id)
                self._offer(event)
            until = min(event.created_at for event in events)

    async def _fetch_pages(self, url: str, addresses: list[str]) -> None:
        for event in await self._query(
            url,
            [
                {"kinds": [KIND_MODEL_PAGE], "#a": addresses},
                {"kinds": [KIND_DELETION], "#a": addresses},
            ],
        ):
            self._offer(event)

    async def _query(self, url: str, filters: Sequence[dict[str, object]]) -> list[Event]:
        if url not in self._pool.urls:
            return []
        return await self._pool.query(filters, timeout_s=self._query_timeout_s, urls=[url])
