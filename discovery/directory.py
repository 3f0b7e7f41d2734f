"""Who else is there: follows the relays, probes what is announced, keeps an immutable snapshot.

    relays ──▶ Registry (newest, not expired, not deleted) ──▶ DirectorySnapshot
            │        └──▶ probes ──────────────────────────────▶
            └─▶ Reviews ───────────────────────────────────────▶

One long-lived subscription brings provider events and deletions as they come; a full poll every
15 to 30 minutes catches what was missed. Model pages are fetched for the providers that announce.
"""

from __future__ import annotations

import asyncio
import bisect
import random
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from discovery.announcement import KIND_DELETION, KIND_MODEL_PAGE, KIND_PROVIDER
from discovery.health import Health
from discovery.memory import Memory
from discovery.nostr.event import Event
from discovery.nostr.keys import hex_to_npub
from discovery.nostr.pool import RelayPool
from discovery.probing import ListModels, Probe, Prospector
from discovery.registry import Entry, Registry
from discovery.reviews import KIND_RECOMMENDATION, KIND_REVIEW, Reviews
from discovery.snapshot import DirectorySnapshot, ModelsSource, Provider, Status
from discovery.store import DirectoryStore

__all__ = ["Directory", "DirectorySnapshot", "Probe", "Provider"]

_ADDRESSES_PER_FILTER = 50
_EVENTS_PER_QUERY = 500
_MAX_QUERIES_PER_POLL = 20
_MAX_NAP_S = 60.0
_RETRY_FETCH_S = 5.0
_MAX_REBUILD_SHARE = 0.1
"""Of one core; a large directory gathers changes longer."""
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


class Directory:
    """Collects the announcements of other nodes.

    Args:
        pool: relay pool; it delivers verified events.
        probe: asks an announced node who it is; None leaves every status unknown.
        list_models: reads ``/v1/models`` of nodes that publish no model pages.
        reviews: what others say, with its bounds; a default one when omitted.
        store: keeps all this over a restart, with ``load`` before ``run``; closed by its owner.
        save_interval_s: how often changes are stored.
        relist_s: how long such a list counts.
        own_pubkey: whose announcements are left out.
        registry: the state with its bounds; a default one when omitted.
        poll_s: shortest and longest pause between full polls of a relay.
        query_timeout_s: deadline for one query to a relay.
        reprobe_s: pause after a probe; ``retry_s`` after the first that failed, then doubling.
        verified_ttl_s: how long a node that cannot be reached stays verified.
        probe_concurrency: probes at once; ``probe_reserve`` of them only for proven nodes, so
            that a flood of newcomers cannot make the proven look dead.
        debounce_s: how long changes are gathered before a new snapshot or a fetch.
        clock: unix seconds.
    """

    def __init__(
        self,
        pool: RelayPool,
        *,
        probe: Probe | None,
        list_models: ListModels | None = None,
        own_pubkey: str | None = None,
        registry: Registry | None = None,
        reviews: Reviews | None = None,
        store: DirectoryStore | None = None,
        save_interval_s: float = 10.0,
        poll_s: tuple[float, float] = (900.0, 1_800.0),
        query_timeout_s: float = 10.0,
        reprobe_s: float = 900.0,
        retry_s: float = 30.0,
        relist_s: float = 6 * 3_600.0,
        verified_ttl_s: int = 6 * 3_600,
        probe_concurrency: int = 8,
        probe_reserve: int = 2,
        debounce_s: float = 0.1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pool = pool
        self._own_pubkey = own_pubkey
        # an empty one is false
        self._registry = Registry(clock=clock) if registry is None else registry
        self._reviews = Reviews(clock=clock) if reviews is None else reviews
        self._poll_s = poll_s
        self._query_timeout_s = query_timeout_s
        self._verified_ttl_s = verified_ttl_s
        self._debounce_s = debounce_s
        self._clock = clock
        self._prospector = Prospector(
            self._registry,
            probe,
            list_models,
            self._probed,
            reprobe_s=reprobe_s,
            retry_s=retry_s,
            relist_s=relist_s,
            concurrency=probe_concurrency,
            reserve=probe_reserve,
            clock=clock,
        )
        self._memory = None
        if store is not None:
            self._memory = Memory(
                store,
                self._registry,
                self._reviews,
                self._prospector,
                interval_s=save_interval_s,
                clock=clock,
            )
        self._wanted = {url: _Wanted() for url in pool.urls}
        self._dirty = asyncio.Event()
        self._stale: set[str] = set()
        self._views: dict[str, Provider] = {}
        self._order: list[tuple[tuple[int, int, str, str], str]] = []
        """Rank and address of every view, sorted."""
        self._rebuilt = asyncio.Event()
        self._nonce = secrets.token_hex(6)
        self._version = 0
        self._snapshot = DirectorySnapshot()
        self.closed = False
        """It runs no longer: no change will come."""

    def snapshot(self) -> DirectorySnapshot:
        """The providers as last built; costs nothing and never changes afterwards."""
        return self._snapshot

    @property
    def connected(self) -> bool:
        """Is any relay there?"""
        return any(relay.connected for relay in self._pool.health().values())

    async def changed(self) -> DirectorySnapshot:
        """Wait for the next snapshot that differs from the present one.

        Gives the present one when the directory ends; ``closed`` is true then.
        """
        if not self.closed:
            await self._rebuilt.wait()
        return self._snapshot

    async def load(self) -> int:
        """Take up what an earlier process stored; gives the number of providers."""
        if self._memory is None:
            return 0
        count = await self._memory.load()
        self._stale.update(entry.address for entry in self._registry)
        self.rebuild()
        return count

    async def run(self) -> None:
        """Follow the relays until cancelled; what is not stored yet is stored then."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow(), name="directory-follow")
                for url, wanted in self._wanted.items():
                    wanted.add(entry.address for entry in self._registry)
                    tasks.create_task(self._tend(url), name="directory-tend")
                tasks.create_task(self._prospector.run(), name="directory-probe")
                tasks.create_task(self._rebuild(), name="directory-rebuild")
                if self._memory is not None:
                    tasks.create_task(self._memory.run(), name="directory-memory")
        finally:
            self.closed = True
            self._rebuilt.set()
            if self._memory is not None:
                await self._memory.flush()

    def offer(self, event: Event) -> None:
        """Take in an event from wherever. Never raises on hostile input."""
        if event.kind in (KIND_REVIEW, KIND_RECOMMENDATION):
            self._reviewed(self._reviews.offer(event))
            return
        if event.pubkey == self._own_pubkey:
            return
        if event.kind == KIND_DELETION:
            self._reviewed(self._reviews.offer(event))
        address = self._registry.offer(event)
        if event.kind == KIND_DELETION and self._memory is not None:
            self._memory.deleted(event.pubkey)
        if address is None:
            return
        self._changed(address)
        if self._memory is not None:
            self._memory.entry_changed(address)
        entry = self._registry.get(address)
        if event.kind != KIND_PROVIDER or entry is None or entry.announcement is None:
            return
        for wanted in self._wanted.values():
            wanted.add([address])
        self._prospector.follow(entry)

    def _changed(self, address: str) -> None:
        self._stale.add(address)
        self._dirty.set()

    def _probed(self, address: str) -> None:
        self._changed(address)
        if self._memory is not None:
            self._memory.health_changed(address)

    def _reviewed(self, pubkeys: Iterable[str]) -> None:
        for pubkey in pubkeys:
            for address in self._registry.addresses(pubkey):
                self._changed(address)
            if self._memory is not None:
                self._memory.reviews_changed(pubkey)

    # --- relays -------------------------------------------------------------------------------

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
                self.offer(event)
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
                wanted.add(entry.address for entry in self._registry)
            await asyncio.sleep(self._debounce_s)
            addresses = wanted.take()
            for start in range(0, len(addresses), _ADDRESSES_PER_FILTER):
                await self._fetch_pages(url, addresses[start : start + _ADDRESSES_PER_FILTER])
            if not self._pool.health()[url].connected:
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
            self.offer(event)
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
                self.offer(event)
            until = min(event.created_at for event in events)

    async def _fetch_pages(self, url: str, addresses: list[str]) -> None:
        for event in await self._query(
            url,
            [
                {"kinds": [KIND_MODEL_PAGE], "#a": addresses},
                {"kinds": [KIND_DELETION], "#a": addresses},
            ],
        ):
            self.offer(event)

    async def _query(self, url: str, filters: Sequence[dict[str, object]]) -> list[Event]:
        return await self._pool.query(filters, timeout_s=self._query_timeout_s, urls=[url])

    # --- snapshot -----------------------------------------------------------------------------

    async def _rebuild(self) -> None:
        spent_s = 0.0
        while True:
            expiry = self._registry.next_expiry()
            nap_s = _MAX_NAP_S if expiry is None else expiry - self._clock()
            try:
                async with asyncio.timeout(max(0.0, min(nap_s, _MAX_NAP_S))):
                    await self._dirty.wait()
            except TimeoutError:
                if self._registry.expire():
                    self._dirty.set()
                continue
            await asyncio.sleep(max(self._debounce_s, spent_s / _MAX_REBUILD_SHARE))
            self._dirty.clear()
            began = time.monotonic()
            self.rebuild()
            spent_s = time.monotonic() - began

    def rebuild(self) -> DirectorySnapshot:
        """Build the snapshot now. It stays the same object when nothing in it changed."""
        self._registry.expire()
        self._stale.update(a for a in self._views if self._registry.get(a) is None)
        self._stale.update(a for a, view in self._views.items() if self._lapsed(a, view))
        changed = False
        for address in self._stale:
            entry = self._registry.get(address)
            view = self._provider(entry) if entry is not None else None
            changed |= self._show(address, view)
            if entry is None:
                self._prospector.forget(address)
        self._stale.clear()
        if changed:
            self._version += 1
            listed = tuple(self._views[address] for _, address in self._order)
            etag = f"{self._nonce}{self._version:x}"
            self._snapshot = DirectorySnapshot(listed, etag, self._clock())
            self._rebuilt.set()
            self._rebuilt = asyncio.Event()
        return self._snapshot

    def _show(self, address: str, view: Provider | None) -> bool:
        """Put a view in its place, or take it away; says whether anything is another now."""
        known = self._views.get(address)
        if view == known and (view is None or known is None or view.said_by(known)):
            return False
        if known is not None:
            del self._views[address]
            del self._order[bisect.bisect_left(self._order, (known.rank, address))]
        if view is not None:
            self._views[address] = view
            bisect.insort(self._order, (view.rank, address))
        return True

    def _lapsed(self, address: str, view: Provider) -> bool:
        health = self._prospector.health.get(address)
        return view.verified and (health is None or not self._is_verified(health))

    def _is_verified(self, health: Health) -> bool:
        return health.verified_at > 0 and self._clock() - health.verified_at <= self._verified_ttl_s

    def _provider(self, entry: Entry) -> Provider | None:
        announcement = entry.announcement
        if announcement is None:
            return None
        health = self._prospector.health.get(entry.address) or Health(announcement.urls)
        result = health.result
        entry.npub = entry.npub or hex_to_npub(announcement.pubkey)
        status: Status = "unknown"
        if result is not None and result.reachable is not None:
            status = "online" if result.reachable else "offline"
        verified = self._is_verified(health)
        source: ModelsSource = ""
        named = entry.models or health.listed or announcement.models
        unpriced = tuple(offer for offer in named if not offer.priced)
        if named:
            source = "pages" if entry.models else "endpoint" if health.listed else "announcement"
        return Provider(
            pubkey=announcement.pubkey,
            npub=entry.npub,
            announcement=announcement,
            models=tuple(offer for offer in named if offer.priced) if unpriced else named,
            unpriced=unpriced,
            models_source=source,
            verified=verified,
            status=status,
            latency_ms=result.latency_ms if result else None,
            usual_latency_ms=health.usual_latency_ms(),
            uptime=health.uptime(),
            last_seen=health.reached_at or announcement.created_at,
            reason=result.reason if result else "not probed yet",
            verified_urls=health.verified_urls if verified else (),
            first_seen=entry.first_seen,
            info=result.info if result else b"",
            reviews=self._reviews.about(announcement.pubkey),
        )
