"""Who else is there: follows the relays, probes what is announced, keeps an immutable snapshot.

    relays ──▶ Registry (newest, not expired, not deleted) ──▶ DirectorySnapshot
                     └──▶ probes ──────────────────────────────▶

One long-lived subscription brings provider events and deletions as they come; a full poll every
15 to 30 minutes catches what was missed. Model pages are fetched for the providers that announce.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import TypeAlias

import structlog

from discovery.announcement import (
    KIND_DELETION,
    KIND_MODEL_PAGE,
    KIND_PROVIDER,
    Announcement,
)
from discovery.nostr.event import Event
from discovery.nostr.keys import hex_to_npub
from discovery.nostr.pool import RelayPool
from discovery.probe import ProbeResult
from discovery.registry import Entry, Registry, Trust
from discovery.schedule import Schedule
from discovery.snapshot import DirectorySnapshot, Provider, Status

__all__ = ["Directory", "DirectorySnapshot", "Probe", "Provider"]

log = structlog.get_logger()

Probe: TypeAlias = Callable[[Announcement], Awaitable[ProbeResult]]

_ADDRESSES_PER_FILTER = 50
_EVENTS_PER_QUERY = 500
_MAX_QUERIES_PER_POLL = 20
_FAILURES_UNTIL_UNTRUSTED = 3
_MAX_NAP_S = 60.0
_RETRY_FETCH_S = 5.0


@dataclass(slots=True)
class _Health:
    """What the probes of one address found, for the URLs announced then."""

    urls: tuple[str, ...]
    result: ProbeResult | None = None
    reached_at: int = 0
    verified_at: int = 0
    verified_urls: tuple[str, ...] = ()
    failures: int = 0
    """In a row."""


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
        own_pubkey: str | None = None,
        registry: Registry | None = None,
        poll_s: tuple[float, float] = (900.0, 1_800.0),
        query_timeout_s: float = 10.0,
        reprobe_s: float = 900.0,
        retry_s: float = 30.0,
        verified_ttl_s: int = 6 * 3_600,
        probe_concurrency: int = 8,
        probe_reserve: int = 2,
        debounce_s: float = 0.1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pool = pool
        self._probe = probe
        self._own_pubkey = own_pubkey
        self._registry = registry or Registry(clock=clock)
        self._poll_s = poll_s
        self._query_timeout_s = query_timeout_s
        self._reprobe_s = reprobe_s
        self._retry_s = retry_s
        self._verified_ttl_s = verified_ttl_s
        self._concurrency = probe_concurrency
        self._reserve = min(probe_reserve, probe_concurrency - 1)
        self._debounce_s = debounce_s
        self._clock = clock
        self._health: dict[str, _Health] = {}
        self._schedule = Schedule()
        self._probe_wanted = asyncio.Event()
        self._wanted = {url: _Wanted() for url in pool.urls}
        self._dirty = asyncio.Event()
        self._rebuilt = asyncio.Event()
        self._nonce = secrets.token_bytes(8)
        self._snapshot = DirectorySnapshot()

    def snapshot(self) -> DirectorySnapshot:
        """The providers as last built; costs nothing and never changes afterwards."""
        return self._snapshot

    async def changed(self) -> DirectorySnapshot:
        """Wait for the next snapshot that differs from the present one."""
        await self._rebuilt.wait()
        return self._snapshot

    async def run(self) -> None:
        """Follow the relays until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(), name="directory-follow")
            for url in self._wanted:
                tasks.create_task(self._tend(url), name="directory-tend")
            if self._probe is not None:
                tasks.create_task(self._probe_due(self._probe), name="directory-probe")
            tasks.create_task(self._rebuild(), name="directory-rebuild")

    def offer(self, event: Event) -> None:
        """Take in an event from wherever. Never raises on hostile input."""
        if event.pubkey == self._own_pubkey:
            return
        address = self._registry.offer(event)
        if address is None:
            return
        self._dirty.set()
        entry = self._registry.get(address)
        if event.kind != KIND_PROVIDER or entry is None or entry.announcement is None:
            return
        for wanted in self._wanted.values():
            wanted.add([address])
        health = self._health.get(address)
        if health is None or health.urls != entry.announcement.urls:
            self._health[address] = _Health(entry.announcement.urls)
            self._plan(entry, 0.0)

    # --- relays -------------------------------------------------------------------------------

    async def _follow(self) -> None:
        subscription = self._pool.subscribe(
            [
                {"kinds": [KIND_PROVIDER], "limit": _EVENTS_PER_QUERY},
                {"kinds": [KIND_DELETION], "#k": [str(KIND_PROVIDER)], "limit": _EVENTS_PER_QUERY},
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

    # --- probes -------------------------------------------------------------------------------

    def _plan(self, entry: Entry, delay_s: float) -> None:
        at = asyncio.get_running_loop().time() + delay_s
        self._schedule.plan(entry.address, at, preferred=entry.trust is Trust.PROVEN)
        self._probe_wanted.set()

    async def _probe_due(self, probe: Probe) -> None:
        running: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()

        def done(task: asyncio.Task[None]) -> None:
            running.discard(task)
            self._probe_wanted.set()

        async with asyncio.TaskGroup() as tasks:
            while True:
                self._probe_wanted.clear()
                while len(running) < self._concurrency:
                    reserved = len(running) >= self._concurrency - self._reserve
                    address = self._schedule.pop(loop.time(), preferred_only=reserved)
                    if address is None:
                        break
                    task = tasks.create_task(self._probe_one(probe, address))
                    running.add(task)
                    task.add_done_callback(done)
                reserved = len(running) >= self._concurrency - self._reserve
                due = self._schedule.next_at(preferred_only=reserved)
                if len(running) >= self._concurrency:
                    due = None
                try:
                    async with asyncio.timeout_at(due):
                        await self._probe_wanted.wait()
                except TimeoutError:
                    continue

    async def _probe_one(self, probe: Probe, address: str) -> None:
        entry = self._registry.get(address)
        if entry is None or entry.announcement is None:
            return
        announcement = entry.announcement
        try:
            result = await probe(announcement)
        except Exception:
            # One announcement, whatever it holds, does not end the directory.
            log.exception("probe_broken", provider=announcement.pubkey)
            result = ProbeResult(False, None, None, "the probe itself failed")
        health = self._health.get(address)
        entry = self._registry.get(address)
        if entry is None or health is None or health.urls != announcement.urls:
            return  # replaced meanwhile: the newer announcement has its own plan
        now = int(self._clock())
        if result.reachable is not None or health.result is None:
            health.result = result
        if result.reachable:
            health.failures = 0
            health.reached_at = now
            health.verified_at = now if result.verified else 0
            health.verified_urls = result.verified_urls if result.verified else ()
            self._registry.mark(address, Trust.PROVEN if result.verified else Trust.FAILED)
            delay_s = self._reprobe_s
        else:
            health.failures += 1
            tired = health.failures >= _FAILURES_UNTIL_UNTRUSTED
            if result.reachable is False and (entry.trust is not Trust.PROVEN or tired):
                self._registry.mark(address, Trust.FAILED)
            delay_s = min(self._retry_s * 2 ** min(health.failures - 1, 16), self._reprobe_s)
        self._plan(entry, delay_s * random.uniform(0.9, 1.1))  # noqa: S311 it only spreads load
        self._dirty.set()

    # --- snapshot -----------------------------------------------------------------------------

    async def _rebuild(self) -> None:
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
            await asyncio.sleep(self._debounce_s)
            self._dirty.clear()
            self._registry.expire()
            self.rebuild()

    def rebuild(self) -> DirectorySnapshot:
        """Build the snapshot now. It stays the same object when nothing in it changed."""
        for address in [a for a in self._health if self._registry.get(a) is None]:
            del self._health[address]
            self._schedule.cancel(address)
        digest = blake2b(self._nonce, digest_size=12)
        providers = []
        for entry in self._registry:
            provider = self._provider(entry)
            if provider is not None:
                providers.append((provider, entry.revision))
        providers.sort(key=lambda item: item[0].rank)
        for provider, revision in providers:
            seen = (revision, provider.verified, provider.status, provider.latency_ms)
            more = (provider.last_seen, provider.reason, provider.verified_urls)
            digest.update(repr((provider.pubkey, seen, more)).encode())
        etag = digest.hexdigest()
        if etag != self._snapshot.etag:
            listed = tuple(provider for provider, _ in providers)
            self._snapshot = DirectorySnapshot(listed, etag, self._clock())
            self._rebuilt.set()
            self._rebuilt = asyncio.Event()
        return self._snapshot

    def _provider(self, entry: Entry) -> Provider | None:
        announcement = entry.announcement
        if announcement is None:
            return None
        health = self._health.get(entry.address) or _Health(announcement.urls)
        result = health.result
        status: Status = "unknown"
        if result is not None and result.reachable is not None:
            status = "online" if result.reachable else "offline"
        verified = (
            health.verified_at > 0 and self._clock() - health.verified_at <= self._verified_ttl_s
        )
        return Provider(
            pubkey=announcement.pubkey,
            npub=_npub(announcement.pubkey),
            announcement=announcement,
            models=entry.models,
            verified=verified,
            status=status,
            latency_ms=result.latency_ms if result else None,
            last_seen=health.reached_at or announcement.created_at,
            reason=result.reason if result else "not probed yet",
            verified_urls=health.verified_urls if verified else (),
            first_seen=entry.first_seen,
            info=result.info if result else b"",
        )


@lru_cache(maxsize=16_384)
def _npub(pubkey: str) -> str:
    return hex_to_npub(pubkey)
