"""Who else is there: follows the relays, probes what is announced, keeps an immutable snapshot.

relays ──▶ Registry (newest, not expired, not deleted) ──▶ DirectorySnapshot
        │        └──▶ probes ──────────────────────────────▶
        └─▶ Reviews ───────────────────────────────────────▶
"""

from __future__ import annotations

import asyncio
import bisect
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from math import inf

from discovery.announcement import KIND_DELETION, KIND_PROVIDER
from discovery.columns import by_price
from discovery.following import Follower
from discovery.health import Health
from discovery.learning import Learner
from discovery.memory import Memory
from discovery.nostr.event import Event
from discovery.nostr.keys import hex_to_npub
from discovery.nostr.pool import RelayHealth, RelayPool
from discovery.probing import ListModels, Probe, Prospector
from discovery.registry import Entry, Registry
from discovery.reviews import KIND_RECOMMENDATION, KIND_REVIEW, Review, Reviews
from discovery.snapshot import DirectorySnapshot, ModelsSource, Provider, Sellers, Status
from discovery.store import DirectoryStore
from discovery.trust import Circle

__all__ = ["Directory", "DirectorySnapshot", "Probe", "Provider"]

_MAX_NAP_S = 60.0
_MAX_REBUILD_SHARE = 0.1
"""Of one core; a large directory gathers changes longer."""


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
        readers: an empty pool for relays that proven nodes name, ``max_learnt_relays`` at most;
            its guard must judge every address. None: only those of ``pool`` are read.
        learn_s: how often it is seen which these are.
        operator: the public key (hex) from which trust is counted by who follows whom, up to
            ``trust_distance``; None: it is not.
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
        readers: RelayPool | None = None,
        max_learnt_relays: int = 8,
        learn_s: float = 600.0,
        operator: str | None = None,
        trust_distance: int = 2,
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
        self._followers = [
            Follower(
                relays,
                self.offer,
                self._known,
                poll_s=poll_s,
                query_timeout_s=query_timeout_s,
                debounce_s=debounce_s,
            )
            for relays in (pool, readers)
            if relays is not None
        ]
        self.circle = None
        """Who is how far from the operator; None when nobody said who that is."""
        if operator is not None:
            self.circle = Circle(
                pool,
                operator,
                self._circle_changed,
                max_distance=trust_distance,
                query_timeout_s=query_timeout_s,
            )
        self.learner = None
        """Which relays are read besides those of the pool; None: there are none."""
        if readers is not None:
            self.learner = Learner(
                pool,
                readers,
                self._proven,
                max_relays=max_learnt_relays,
                interval_s=learn_s,
                query_timeout_s=query_timeout_s,
                clock=clock,
            )
        self._dirty = asyncio.Event()
        self._stale: set[str] = set()
        self._views: dict[str, Provider] = {}
        self._order: list[tuple[tuple[int, int, str, str], str]] = []
        """Rank and address of every view, sorted."""
        self._rebuilt = asyncio.Event()
        self._nonce = secrets.token_hex(6)
        self._version = 0
        self._dropped = 0
        """Of the registry, when it was looked at last."""
        self._lapse_at = inf
        """Nobody's verification lapses before this, unix seconds."""
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

    def learnt(self) -> Mapping[str, RelayHealth]:
        """The relays that are read besides those of the pool, and how each does."""
        return {} if self.learner is None else self.learner.health()

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
                for follower in self._followers:
                    tasks.create_task(follower.run(), name="directory-follow")
                if self.learner is not None:
                    tasks.create_task(self.learner.run(), name="directory-learn")
                if self.circle is not None:
                    tasks.create_task(self.circle.run(), name="directory-circle")
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
        for follower in self._followers:
            follower.want(address)
        self._prospector.follow(entry)

    def _known(self) -> Iterator[str]:
        return (entry.address for entry in self._registry)

    def _proven(self) -> Iterator[Provider]:
        return (provider for provider in self._snapshot.providers if provider.verified)

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
        if self._dropped != self._registry.dropped:
            self._dropped = self._registry.dropped
            self._stale.update(a for a in self._views if self._registry.get(a) is None)
        self._find_lapsed()
        changed = False
        sellers: Sellers | None = self._snapshot.sellers
        for address in self._stale:
            entry = self._registry.get(address)
            known = self._views.get(address)
            view = self._provider(entry) if entry is not None else None
            if self._show(address, view):
                changed = True
                if known is None or view is None or not _same_place(known, view):
                    sellers = None
            if entry is None:
                self._prospector.forget(address)
        self._stale.clear()
        if changed:
            self._version += 1
            listed = tuple([self._views[address] for _, address in self._order])
            etag = f"{self._nonce}{self._version:x}"
            self._snapshot = DirectorySnapshot(listed, etag, self._clock(), sellers or Sellers())
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

    def _distance(self, pubkey: str) -> int | None:
        return None if self.circle is None else self.circle.distance(pubkey)

    def _said_about(self, pubkey: str) -> tuple[Review, ...]:
        reviews = self._reviews.about(pubkey)
        if self.circle is None:
            return reviews
        return tuple(replace(r, distance=self.circle.distance(r.reviewer)) for r in reviews)

    def _circle_changed(self) -> None:
        self._stale.update(self._known())
        self._dirty.set()

    def _find_lapsed(self) -> None:
        """Whoever was verified and could not be asked for long."""
        if self._clock() <= self._lapse_at:
            return
        self._lapse_at = inf
        for address, view in self._views.items():
            if view.verified:
                health = self._prospector.health.get(address)
                if health is None or not self._is_verified(health):
                    self._stale.add(address)

    def _is_verified(self, health: Health) -> bool:
        if health.verified_at <= 0:
            return False
        lapses = health.verified_at + self._verified_ttl_s
        if self._clock() > lapses:
            return False
        self._lapse_at = min(self._lapse_at, lapses)
        return True

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
        models, unpriced = by_price(named)
        if named:
            source = "pages" if entry.models else "endpoint" if health.listed else "announcement"
        return Provider(
            pubkey=announcement.pubkey,
            npub=entry.npub,
            announcement=announcement,
            models=models,
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
            reviews=self._said_about(announcement.pubkey),
            trust_distance=self._distance(announcement.pubkey),
        )


def _same_place(before: Provider, now: Provider) -> bool:
    """Do both stand in one place of the list, with the same models?"""
    return before.rank == now.rank and before.ids == now.ids
