"""The announcements that count: newest per address, not expired, not deleted, within bounds.

Pure state without I/O. The checks run in the order that costs a flood the most and us the least:
size → future → expired → superseded → tombstoned → per-author cap → usable → signature → replace.
Memory is bounded and room is kept for nodes that proved who they are: whoever has no trust is
evicted first, and can never push out those who have.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from math import inf

from discovery.announcement import (
    KIND_DELETION,
    KIND_MODEL_PAGE,
    KIND_PROVIDER,
    MAX_FUTURE_S,
    Announcement,
    ModelOffer,
    page_ref,
    parse_provider_event,
)
from discovery.columns import Offers
from discovery.errors import InvalidAnnouncement, InvalidEvent
from discovery.nostr.event import Event, is_hex_key
from discovery.offers import Page, newest_set, read_page

_MAX_ADDRESS_CHARS = 400


class Trust(IntEnum):
    """How readily an entry is given up when room is short: lowest first."""

    ORPHAN = 0
    """Model pages whose provider event has not come."""
    FAILED = 1
    """Probed without success."""
    NEW = 2
    PROVEN = 3
    """A probe found the signer at the announced URL."""


@dataclass(frozen=True, slots=True)
class HeldPage:
    """A model page with what its event weighed and when it expires."""

    page: Page
    weight_bytes: int
    ends: int


@dataclass(slots=True)
class Entry:
    """All that is known of one provider address."""

    address: str
    announcement: Announcement | None = None
    pages: dict[int, HeldPage] = field(default_factory=dict)
    models: Sequence[ModelOffer] = ()
    """Of the newest complete set of pages seen; kept while a newer set is incomplete."""
    trust: Trust = Trust.ORPHAN
    ends: int = 0
    """When the announcement expires, unix seconds."""
    first_seen: float = 0.0
    """When it was first seen under its present name, unix seconds. Unlike ``created_at`` and the
    key this is nothing its author chooses."""

    npub: str = ""
    """Of the public key, when it has been written out before: that takes 60 µs."""

    @property
    def pubkey(self) -> str:
        return self.address.split(":", 2)[1]

    @property
    def weight_bytes(self) -> int:
        """About what the pages take, in bytes."""
        return sum(page.weight_bytes for page in self.pages.values())


@dataclass(slots=True)
class Tombs:
    """One author's deletions: event ids, and addresses with the time they reach up to."""

    ids: OrderedDict[str, None] = field(default_factory=OrderedDict)
    addresses: OrderedDict[str, int] = field(default_factory=OrderedDict)


class Registry:
    """Keeps announcements and model pages by provider address.

    Args:
        per_author: addresses one key may hold.
        max_entries: addresses held in all; ``trusted_room`` of them only by proven nodes.
        max_provider_bytes: largest provider event taken.
        max_bytes: model pages held in all; ``max_entry_bytes`` by one provider.
        max_tombstones: authors whose deletions are remembered, ``tombstones_per_author`` each.
        max_age_s: an event without expiration counts this long.
        clock: unix seconds.
    """

    def __init__(
        self,
        *,
        per_author: int = 8,
        max_entries: int = 4_000,
        trusted_room: int = 1_000,
        max_provider_bytes: int = 16_384,
        max_bytes: int = 128 * 1024 * 1024,
        max_entry_bytes: int = 1024 * 1024,
        max_tombstones: int = 10_000,
        tombstones_per_author: int = 64,
        max_age_s: int = 30 * 86_400,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._per_author = per_author
        self._max_entries = max_entries
        self._trusted_room = trusted_room
        self._max_provider_bytes = max_provider_bytes
        self._max_bytes = max_bytes
        self._max_entry_bytes = max_entry_bytes
        self._max_tombstones = max_tombstones
        self._tombstones_per_author = tombstones_per_author
        self._max_age_s = max_age_s
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._by_author: dict[str, set[str]] = {}
        self._by_trust: tuple[dict[str, None], ...] = tuple({} for _ in Trust)
        self._tombs: OrderedDict[str, Tombs] = OrderedDict()
        self._bytes = 0
        self._soonest: float = inf
        self.dropped = 0
        """How many entries have been let go so far."""

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        """The entries with an announcement."""
        return (e for e in self._entries.values() if e.announcement is not None)

    def get(self, address: str) -> Entry | None:
        """The entry of a provider address, with or without an announcement."""
        return self._entries.get(address)

    def addresses(self, pubkey: str) -> frozenset[str]:
        """All that one author announces."""
        return frozenset(self._by_author.get(pubkey, ()))

    def tombs(self, pubkey: str) -> Tombs | None:
        """What one author deleted."""
        return self._tombs.get(pubkey)

    def restore_tombs(self, pubkey: str, tombs: Tombs) -> None:
        """Put back what an earlier process held."""
        self._tombs[pubkey] = tombs
        if len(self._tombs) > self._max_tombstones:
            self._tombs.popitem(last=False)

    def restore(self, restored: Entry) -> None:
        """Put back what an earlier process held, within the bounds of this one."""
        if restored.address in self._entries or self._author_is_full(restored.pubkey):
            return
        entry = self._add(restored.address)
        entry.announcement, entry.ends = restored.announcement, restored.ends
        entry.pages, entry.models = restored.pages, restored.models
        entry.first_seen, entry.npub = restored.first_seen, restored.npub
        self._bytes += entry.weight_bytes
        self._soonest = min(self._soonest, entry.ends or self._soonest, *_page_ends(entry))
        self.mark(entry.address, restored.trust)
        self._make_room()

    def offer(self, event: Event) -> str | None:
        """Take in an event of any origin; a signature not yet verified is verified last.

        Returns the provider address whose entry changed, None when nothing did. Never raises.
        """
        now = int(self._clock())
        if event.created_at > now + MAX_FUTURE_S:
            return None
        try:
            if event.kind == KIND_PROVIDER:
                return self._offer_provider(event, now)
            if event.kind == KIND_MODEL_PAGE:
                return self._offer_page(event, now)
            if event.kind == KIND_DELETION:
                return self._offer_deletion(event)
        except (InvalidAnnouncement, InvalidEvent):
            return None
        return None

    def mark(self, address: str, trust: Trust) -> None:
        """Set how much an entry is trusted."""
        entry = self._entries.get(address)
        if entry is not None and entry.trust != trust:
            self._by_trust[entry.trust].pop(address)
            self._by_trust[trust][address] = None
            entry.trust = trust
            self._make_room()

    def expire(self) -> bool:
        """Drop what has expired; says whether anything listed changed."""
        now = int(self._clock())
        if now < self._soonest:
            return False
        changed = False
        for entry in list(self._entries.values()):
            if entry.announcement is not None and entry.ends <= now:
                self._drop(entry.address)
                changed = True
            elif dead := [i for i, page in entry.pages.items() if page.ends <= now]:
                changed |= self._remove_pages(entry, dead)
        self._soonest = min(
            (end for e in self._entries.values() for end in (e.ends or inf, *_page_ends(e))),
            default=inf,
        )
        return changed

    def next_expiry(self) -> int | None:
        """Nothing held expires before this, unix seconds; None: nothing ever does."""
        return None if self._soonest == inf else int(self._soonest)

    def _ends(self, event: Event) -> int:
        end = event.created_at + self._max_age_s
        return end if event.expiration is None else min(end, event.expiration)

    def _offer_provider(self, event: Event, now: int) -> str | None:
        if _weight(event) > self._max_provider_bytes:
            return None
        address, ends = event.address, self._ends(event)
        entry = self._entries.get(address)
        current = entry.announcement.event if entry and entry.announcement else None
        if ends <= now:
            # Expired on arrival: a withdrawal, if it replaces what we list.
            if current is None or not _supersedes(event, current):
                return None
            event.verify()
            self._bury_address(event.pubkey, address, event.created_at)
            self._drop(address)
            return address
        if current is not None and not _supersedes(event, current):
            return None
        if self._buried(event) or (entry is None and self._author_is_full(event.pubkey)):
            return None
        announcement = parse_provider_event(event, now=now)
        event.verify()
        entry = entry or self._add(address)
        previous = entry.announcement
        entry.announcement, entry.ends = announcement, ends
        self._soonest = min(self._soonest, ends)
        if previous is None or previous.name != announcement.name:
            entry.first_seen = self._clock()
        if previous is None or previous.urls != announcement.urls:
            # Who proved one URL has proved nothing about another.
            self.mark(address, Trust.NEW)
        self._make_room()
        return address if address in self._entries else None

    def _offer_page(self, event: Event, now: int) -> str | None:
        weight, ends = _weight(event), self._ends(event)
        if weight > self._max_entry_bytes or ends <= now:
            return None
        ref = page_ref(event)
        entry = self._entries.get(ref.provider)
        current = entry.pages.get(ref.index) if entry else None
        if current is not None and not _supersedes(event, current.page):
            return None
        if self._buried(event) or (entry is None and self._author_is_full(event.pubkey)):
            return None
        others = entry.weight_bytes - (current.weight_bytes if current else 0) if entry else 0
        if others + weight > self._max_entry_bytes:
            return None
        event.verify()
        entry = entry or self._add(ref.provider)
        self._bytes += weight - (current.weight_bytes if current else 0)
        page = read_page(event, ref)
        page = replace(page, offers=Offers.of(page.offers))
        entry.pages[ref.index] = HeldPage(page, weight, ends)
        self._soonest = min(self._soonest, ends)
        models = newest_set(held.page for held in entry.pages.values())
        changed = models is not None and models != entry.models
        if models is not None:
            entry.models = Offers.of(models)
            # A shorter set leaves pages of the longer one behind.
            self._forget_pages(
                entry,
                [
                    index
                    for index, held in entry.pages.items()
                    if index >= ref.total and held.page.created_at < event.created_at
                ],
            )
        self._make_room()
        return ref.provider if changed and ref.provider in self._entries else None

    def _offer_deletion(self, event: Event) -> str | None:
        own = tuple(f"{kind}:{event.pubkey}:" for kind in (KIND_PROVIDER, KIND_MODEL_PAGE))
        limit = self._tombstones_per_author
        addresses = [
            address
            for address in event.values("a")
            if address.startswith(own) and len(address) <= _MAX_ADDRESS_CHARS
        ][:limit]
        ids = [id_ for id_ in event.values("e") if is_hex_key(id_)][:limit]
        if not addresses and not ids:
            return None
        event.verify()
        for address in addresses:
            self._bury_address(event.pubkey, address, event.created_at)
        tombs = self._tombs_of(event.pubkey)
        for id_ in ids:
            tombs.ids[id_] = None
            tombs.ids.move_to_end(id_)
            if len(tombs.ids) > limit:
                tombs.ids.popitem(last=False)
        return self._sweep(event.pubkey)

    def _sweep(self, pubkey: str) -> str | None:
        """Drop what the author's tombstones cover; returns a changed address, if any."""
        changed = None
        for address in list(self._by_author.get(pubkey, ())):
            entry = self._entries[address]
            event = entry.announcement.event if entry.announcement else None
            if event is not None and self._buried(event):
                self._drop(address)
                changed = address
                continue
            dead = [
                index
                for index, held in entry.pages.items()
                if self._is_buried(pubkey, held.page.id, held.page.created_at, held.page.address)
            ]
            if dead and self._remove_pages(entry, dead):
                changed = address
        return changed

    def _remove_pages(self, entry: Entry, indices: list[int]) -> bool:
        """Take pages out of what is sold; says whether something listed changed."""
        before = entry.models
        self._forget_pages(entry, indices)
        entry.models = Offers.of(newest_set(held.page for held in entry.pages.values()) or ())
        if not entry.pages and entry.announcement is None:
            self._drop(entry.address)
        return entry.models != before

    def _forget_pages(self, entry: Entry, indices: list[int]) -> None:
        for index in indices:
            self._bytes -= entry.pages.pop(index).weight_bytes

    def _buried(self, event: Event) -> bool:
        return self._is_buried(event.pubkey, event.id, event.created_at, event.address)

    def _is_buried(self, pubkey: str, id_: str, created_at: int, address: str) -> bool:
        tombs = self._tombs.get(pubkey)
        return tombs is not None and (
            id_ in tombs.ids or created_at <= tombs.addresses.get(address, -1)
        )

    def _bury_address(self, pubkey: str, address: str, until: int) -> None:
        addresses = self._tombs_of(pubkey).addresses
        addresses[address] = max(until, addresses.get(address, -1))
        addresses.move_to_end(address)
        if len(addresses) > self._tombstones_per_author:
            addresses.popitem(last=False)

    def _tombs_of(self, pubkey: str) -> Tombs:
        tombs = self._tombs.setdefault(pubkey, Tombs())
        self._tombs.move_to_end(pubkey)
        if len(self._tombs) > self._max_tombstones:
            self._tombs.popitem(last=False)
        return tombs

    def _author_is_full(self, pubkey: str) -> bool:
        return len(self._by_author.get(pubkey, ())) >= self._per_author

    def _add(self, address: str) -> Entry:
        entry = Entry(address)
        self._entries[address] = entry
        self._by_author.setdefault(entry.pubkey, set()).add(address)
        self._by_trust[entry.trust][address] = None
        return entry

    def _drop(self, address: str) -> None:
        entry = self._entries.pop(address)
        self.dropped += 1
        self._bytes -= entry.weight_bytes
        self._by_trust[entry.trust].pop(address)
        addresses = self._by_author[entry.pubkey]
        addresses.discard(address)
        if not addresses:
            del self._by_author[entry.pubkey]

    def _make_room(self) -> None:
        """Evict by trust, oldest first, until the bounds hold."""
        while True:
            untrusted = len(self._entries) - len(self._by_trust[Trust.PROVEN])
            over = len(self._entries) > self._max_entries or self._bytes > self._max_bytes
            if untrusted > self._max_entries - self._trusted_room or (over and untrusted):
                tiers = self._by_trust[: Trust.PROVEN]
            elif over:
                tiers = self._by_trust[Trust.PROVEN :]
            else:
                return
            self._drop(next(address for tier in tiers for address in tier))


def _page_ends(entry: Entry) -> Iterator[int]:
    return (held.ends for held in entry.pages.values())


def _supersedes(event: Event, current: Event | Page) -> bool:
    """NIP-01: the newer replaces the older; of the same second the lowest id stays."""
    return event.created_at > current.created_at or (
        event.created_at == current.created_at and event.id < current.id
    )


def _weight(event: Event) -> int:
    """About what an event takes in memory, in bytes; bounded by what its sender wrote."""
    return 512 + len(event.content) + sum(64 + sum(map(len, tag)) for tag in event.tags)
