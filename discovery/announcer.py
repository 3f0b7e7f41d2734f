"""Keeps this node announced: at start, on change, on a heartbeat; takes it back on request."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from discovery.announcement import (
    KIND_DELETION,
    KIND_INBOX_RELAYS,
    KIND_MODEL_PAGE,
    KIND_PROFILE,
    KIND_PROVIDER,
    KIND_RELAY_LIST,
    Announcement,
    ModelOffer,
    announceable,
    build_deletion,
    build_model_pages,
    build_profile,
    build_provider_event,
    build_relay_lists,
    default_identifier,
)
from discovery.errors import InvalidAnnouncement
from discovery.nostr.event import Event
from discovery.nostr.keys import Keys
from discovery.nostr.limits import PublishResult
from discovery.nostr.pool import RelayPool

log = structlog.get_logger()

_RETRACTION_LIFE_S = 5
"""A retracted announcement lives this long more: relays refuse what has expired already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnouncementSource:
    """What the node has to say at this moment."""

    name: str
    about: str = ""
    urls: tuple[str, ...] = ()
    mints: tuple[str, ...] = ()
    version: str = ""
    relays: tuple[str, ...] = ()
    """Where the node listens: the ``relay`` tags and both relay lists."""
    wraps: tuple[int, ...] = (21059, 1059)
    http: tuple[str, ...] = ("80", "81", "frames-v1")
    pubkey_lock: str = ""
    offers: tuple[ModelOffer, ...] = ()
    d: str | None = None
    """None: the one found on the relays, else the first 12 hex digits of the public key."""


@dataclass(frozen=True, slots=True)
class RelayOutcome:
    """How far the last publication got at one relay."""

    ok: bool
    """All events were accepted."""
    accepted: int
    total: int
    message: str
    """What the relay said to the first event it did not take."""
    attempts: int
    at: float
    """Time of the last attempt, unix seconds."""


@dataclass(frozen=True, slots=True)
class EventOutcome:
    """What became of one event of the last publication."""

    id: str
    kind: int
    d: str
    """Its ``d`` tag; empty without one."""
    relays: Mapping[str, PublishResult]
    """What each relay said to it last; without those that have not been asked yet."""


@dataclass(slots=True)
class _Delivery:
    """One publication on its way to one relay."""

    left: list[Event]
    total: int
    attempts: int = 0
    retry_at: float = 0.0
    """Loop time."""


class Announcer:
    """Publishes the node's events and keeps them alive.

    Args:
        pool: where to publish; ``pool.urls`` are the relays.
        keys: the node's keys.
        source: gives what to announce, asked anew at every publication.
        heartbeat_s: shortest and longest pause between publications without a change.
        debounce_s: how long changes are gathered.
        lifetime_s: after this the announcement expires by itself.
        retry_s: pause after the first failure at a relay, doubling up to ``max_retry_s``.
        publish_timeout_s: deadline for one event at all relays.
        recall_timeout_s: deadline for finding what an earlier run published.
        clock: unix seconds.
    """

    def __init__(
        self,
        pool: RelayPool,
        keys: Keys,
        source: Callable[[], AnnouncementSource],
        *,
        heartbeat_s: tuple[float, float] = (3_600.0, 21_600.0),
        debounce_s: float = 2.0,
        lifetime_s: int = 7 * 86_400,
        retry_s: float = 5.0,
        max_retry_s: float = 600.0,
        publish_timeout_s: float = 10.0,
        recall_timeout_s: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pool = pool
        self._keys = keys
        self._source = source
        self._heartbeat_s = heartbeat_s
        self._debounce_s = debounce_s
        self._lifetime_s = lifetime_s
        self._retry_s = retry_s
        self._max_retry_s = max_retry_s
        self._publish_timeout_s = publish_timeout_s
        self._recall_timeout_s = recall_timeout_s
        self._clock = clock
        self._changed = asyncio.Event()
        self._publishing = asyncio.Lock()
        self._recalled = False
        self._last_stamp = 0
        self._d: str | None = None
        self._profile = ""
        self._live: dict[str, str] = {}
        """Address → id of the provider event and the pages that relays hold of us."""
        self._said: AnnouncementSource | None = None
        self._deliveries: dict[str, _Delivery] = {}
        self._outcomes: dict[str, RelayOutcome] = {}
        self._events: list[Event] = []
        self._answers: dict[str, dict[str, PublishResult]] = {}
        """By event of the last publication and relay."""

    @property
    def identifier(self) -> str | None:
        """The ``d`` under which the node is announced; None before the first publication."""
        return self._d

    def outcomes(self) -> Mapping[str, RelayOutcome]:
        """How the last publication fared, by relay URL."""
        return dict(self._outcomes)

    def event_outcomes(self) -> list[EventOutcome]:
        """What the relays said to each event of the last publication."""
        return [
            EventOutcome(e.id, e.kind, e.first("d") or "", dict(self._answers[e.id]))
            for e in self._events
        ]

    def changed(self) -> None:
        """Something to announce may have changed; :meth:`run` publishes if it did."""
        self._changed.set()

    async def run(self) -> None:
        """Publish now, on change and on the heartbeat, and retry at relays that failed.

        Runs until cancelled; cancel it before :meth:`retract`.
        """
        loop = asyncio.get_running_loop()
        heartbeat_at = await self._beat()
        while True:
            retries = [d.retry_at for d in self._deliveries.values() if d.left]
            try:
                async with asyncio.timeout_at(min([heartbeat_at, *retries])):
                    await self._changed.wait()
            except TimeoutError:
                if loop.time() >= heartbeat_at:
                    heartbeat_at = await self._beat()
                else:
                    await self._retry()
                continue
            await asyncio.sleep(self._debounce_s)
            self._changed.clear()
            if self._source() != self._said:
                heartbeat_at = await self._beat()

    async def _beat(self) -> float:
        """Publish; returns the loop time of the next heartbeat."""
        try:
            await self.publish_once()
        except (InvalidAnnouncement, ValueError) as error:
            # The operator's words cannot be announced; what was said before stands.
            log.error("announcement_unusable", reason=str(error))
        pause = random.uniform(*self._heartbeat_s)  # noqa: S311 it only spreads load
        return asyncio.get_running_loop().time() + pause

    async def publish_once(self) -> Mapping[str, RelayOutcome]:
        """Publish everything now, one attempt per relay; returns the outcome by relay URL.

        Raises InvalidAnnouncement when what the source says cannot be announced, ValueError
        when it is more than events can hold.
        """
        return await self.publish(await self.events())

    async def events(self) -> list[Event]:
        """The signed events of a publication now, the provider event last; none is sent.

        Raises as :meth:`publish_once` does.
        """
        async with self._publishing:
            source = self._source()
            await self._recall(source)
            events = self._build(source)
            self._said = source
            return events

    async def publish(self, events: list[Event]) -> Mapping[str, RelayOutcome]:
        """Send what :meth:`events` gave, one attempt per relay; returns the outcomes."""
        async with self._publishing:
            return await self._start(events)

    async def retract(self) -> Mapping[str, RelayOutcome]:
        """Take the announcement back: an expiring replacement, then a deletion (NIP-09).

        Relays that know only one of the two forget the node as well.
        """
        async with self._publishing:
            source = self._source()
            await self._recall(source)
            stamp = self._stamp()
            announcement = self._announcement(source, stamp, stamp + _RETRACTION_LIFE_S)
            replacement = build_provider_event(self._keys, announcement)
            self._live.setdefault(announcement.address, replacement.id)
            deletion = build_deletion(
                self._keys,
                self._live,
                ids=[*self._live.values(), replacement.id],
                created_at=self._stamp(),
            )
            self._live.clear()
            self._said = None
            return await self._start([replacement, deletion])

    # --- building -----------------------------------------------------------------------------

    def _build(self, source: AnnouncementSource) -> list[Event]:
        """All events of one publication; the provider event last, when its pages are there."""
        stamp = self._stamp()
        announcement = self._announcement(source, stamp, stamp + self._lifetime_s)
        for offer in source.offers:
            if not announceable(offer):
                log.warning("model_not_announceable", model=offer.id[:100])
        pages = build_model_pages(
            self._keys,
            announcement.d,
            [offer for offer in source.offers if announceable(offer)],
            created_at=stamp,
            expires_at=announcement.expires_at,
        )
        profile = build_profile(
            self._keys,
            name=source.name,
            about=source.about,
            created_at=stamp,
            known=self._profile,
        )
        self._profile = profile.content
        lists = build_relay_lists(
            self._keys, relays=source.relays, inbox=source.relays, created_at=stamp
        )
        provider = build_provider_event(self._keys, announcement)
        live = {event.address: event.id for event in (*pages, provider)}
        leftover = {address: id_ for address, id_ in self._live.items() if address not in live}
        self._live = live
        events = [*pages, profile, *lists]
        if leftover:
            events.append(
                build_deletion(self._keys, leftover, ids=leftover.values(), created_at=stamp)
            )
        return [*events, provider]

    def _announcement(self, source: AnnouncementSource, stamp: int, ends: int) -> Announcement:
        return Announcement(
            pubkey=self._keys.pubkey,
            d=self._identifier(source),
            name=source.name,
            about=source.about,
            urls=source.urls,
            mints=source.mints,
            version=source.version,
            relays=source.relays,
            wraps=source.wraps,
            http=source.http,
            pubkey_lock=source.pubkey_lock,
            created_at=stamp,
            expires_at=ends,
        )

    def _identifier(self, source: AnnouncementSource) -> str:
        self._d = source.d or self._d or default_identifier(self._keys.pubkey)
        return self._d

    def _stamp(self) -> int:
        """A ``created_at`` newer than all before: two changes in one second must both count."""
        self._last_stamp = max(int(self._clock()), self._last_stamp + 1)
        return self._last_stamp

    async def _recall(self, source: AnnouncementSource) -> None:
        """Learn from the relays what an earlier run published: ``d``, times, profile, pages."""
        if self._recalled:
            return
        self._d, self._profile = None, ""
        author = [self._keys.pubkey]
        kinds = [KIND_PROVIDER, KIND_PROFILE, KIND_RELAY_LIST, KIND_INBOX_RELAYS]
        found = await self._query(
            [
                {"authors": author, "kinds": kinds},
                {"authors": author, "kinds": [KIND_DELETION], "#k": [str(KIND_PROVIDER)]},
            ]
        )
        for event in found:  # newest first
            if event.kind == KIND_PROVIDER and self._d is None:
                self._d = event.first("d") or None
            if event.kind == KIND_PROFILE and not self._profile:
                self._profile = event.content
        provider = f"{KIND_PROVIDER}:{self._keys.pubkey}:{self._identifier(source)}"
        pages = await self._query(
            [{"authors": author, "kinds": [KIND_MODEL_PAGE], "#a": [provider]}]
        )
        self._live = {
            event.address: event.id
            for event in reversed([*found, *pages])
            if event.kind == KIND_MODEL_PAGE or event.address == provider
        }
        self._last_stamp = max([self._last_stamp, *(e.created_at for e in (*found, *pages))])
        self._recalled = any(relay.connected for relay in self._pool.health().values())

    async def _query(self, filters: Sequence[dict[str, object]]) -> list[Event]:
        return await self._pool.query(filters, timeout_s=self._recall_timeout_s)

    # --- delivering ---------------------------------------------------------------------------

    async def _start(self, events: list[Event]) -> Mapping[str, RelayOutcome]:
        """Begin a publication; what an older one had not delivered is void."""
        self._deliveries = {url: _Delivery(list(events), len(events)) for url in self._pool.urls}
        self._events, self._answers = list(events), {event.id: {} for event in events}
        await self._deliver(self._deliveries)
        return self.outcomes()

    async def _retry(self) -> None:
        if not self._recalled:
            await self._beat()  # what we publish must know what an earlier run published
            return
        now = asyncio.get_running_loop().time()
        async with self._publishing:
            due = {u: d for u, d in self._deliveries.items() if d.left and d.retry_at <= now}
            await self._deliver(due)

    async def _deliver(self, deliveries: Mapping[str, _Delivery]) -> None:
        """One attempt at each relay, all relays at once, each event in its turn."""
        await asyncio.gather(*(self._deliver_to(url, d) for url, d in deliveries.items()))

    async def _deliver_to(self, url: str, delivery: _Delivery) -> None:
        refused: list[Event] = []
        message = ""
        delivery.attempts += 1
        for position, event in enumerate(delivery.left):
            results = await self._pool.publish(event, urls=[url], timeout_s=self._publish_timeout_s)
            result = results[url]
            self._answers[event.id][url] = result
            if not result.ok and not result.message.startswith("duplicate:"):
                refused.append(event)
                message = message or result.message
                if not self._pool.health()[url].connected:
                    refused += delivery.left[position + 1 :]
                    break
        delivery.left = refused
        backoff_s = min(self._retry_s * 2 ** min(delivery.attempts - 1, 16), self._max_retry_s)
        jitter = random.uniform(0.75, 1.25)  # noqa: S311 it only spreads load
        delivery.retry_at = asyncio.get_running_loop().time() + backoff_s * jitter
        outcome = RelayOutcome(
            ok=not refused,
            accepted=delivery.total - len(refused),
            total=delivery.total,
            message=message,
            attempts=delivery.attempts,
            at=self._clock(),
        )
        self._outcomes[url] = outcome
        if outcome.ok:
            log.info("announced", relay=url, events=outcome.total, attempts=outcome.attempts)
        else:
            log.warning("announcement_refused", relay=url, message=message[:200])
