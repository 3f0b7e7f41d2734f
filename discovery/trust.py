"""How far a key is from the operator's, by who follows whom: the web of trust.

    0   the operator        1   whom the operator follows (kind 3)        2   whom these follow

Whom the operator mutes in public (kind 10000) is nowhere in it, and neither is whom only they
follow. Follow lists are long and many: of each so many are read, and no more.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable

import structlog

from discovery.nostr.event import Event, is_hex_key
from discovery.nostr.pool import RelayPool

KIND_FOLLOWS = 3
KIND_MUTES = 10_000

log = structlog.get_logger()

_AUTHORS_PER_QUERY = 50


class Circle:
    """The keys around the operator's. Nobody is in it until the lists have been read.

    Args:
        pool: where the lists are looked for, on ``max_relays`` of it.
        operator: public key, hex.
        changed: told when somebody's distance is another now.
        max_distance: how far it reaches.
        max_follows: taken of one list.
        max_lists: read in all; at some 20 KB each.
        max_keys: kept in all, the nearest.
        interval_s: how often the lists are read; ``retry_s`` while that of the operator is missing.
        query_timeout_s: deadline for each question to the relays.
    """

    def __init__(
        self,
        pool: RelayPool,
        operator: str,
        changed: Callable[[], object],
        *,
        max_distance: int = 2,
        max_follows: int = 1_000,
        max_lists: int = 300,
        max_keys: int = 20_000,
        max_relays: int = 3,
        interval_s: float = 86_400.0,
        retry_s: float = 60.0,
        query_timeout_s: float = 10.0,
    ) -> None:
        self._pool = pool
        self._operator = operator
        self._changed = changed
        self._max_distance = max_distance
        self._max_follows = max_follows
        self._max_lists = max_lists
        self._max_keys = max_keys
        self._max_relays = max_relays
        self._interval_s = interval_s
        self._retry_s = retry_s
        self._query_timeout_s = query_timeout_s
        self._distances: dict[str, int] = {operator: 0}
        self._said: dict[tuple[str, int], Event] = {}
        """The operator's newest lists: a relay that has an older one, or none, undoes nothing."""

    def __len__(self) -> int:
        return len(self._distances)

    def distance(self, pubkey: str) -> int | None:
        """Of a public key (hex) from the operator's; None when it is not within reach."""
        return self._distances.get(pubkey)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            pause_s = self._interval_s if await self.read() else self._retry_s
            await asyncio.sleep(pause_s * random.uniform(0.9, 1.1))  # noqa: S311 spreads load

    async def read(self) -> bool:
        """Read the lists anew; says whether there is one of the operator's. Without it what was
        known stays."""
        newest = await self._newest([self._operator], [KIND_FOLLOWS, KIND_MUTES])
        for key, event in newest.items():
            known = self._said.get(key)
            if known is None or event.created_at > known.created_at:
                self._said[key] = event
        if (self._operator, KIND_FOLLOWS) not in newest:
            return False
        follows = self._said[self._operator, KIND_FOLLOWS]
        mutes = self._said.get((self._operator, KIND_MUTES))
        # all of them: the latest stand at the end
        muted = set(mutes.values("p")) if mutes is not None else set[str]()
        distances = {self._operator: 0}
        lists = [follows]
        left = self._max_lists
        for distance in range(1, self._max_distance + 1):
            found = dict.fromkeys(
                key
                for event in lists
                for key in self._named(event)
                if key not in distances and key not in muted
            )
            room = self._max_keys - len(distances)
            distances.update(dict.fromkeys(list(found)[:room], distance))
            authors = [key for key in found if key in distances][:left]
            if distance == self._max_distance or not authors:
                break
            left -= len(authors)
            lists = list((await self._newest(authors, [KIND_FOLLOWS])).values())
        if distances != self._distances:
            self._distances = distances
            log.info("circle_read", keys=len(distances))
            self._changed()
        return True

    def _named(self, event: Event) -> Iterable[str]:
        return filter(is_hex_key, event.values("p")[: self._max_follows])

    async def _newest(self, authors: list[str], kinds: list[int]) -> dict[tuple[str, int], Event]:
        """The newest list of each author and kind; the pool has verified the events."""
        newest: dict[tuple[str, int], Event] = {}
        for start in range(0, len(authors), _AUTHORS_PER_QUERY):
            part = authors[start : start + _AUTHORS_PER_QUERY]
            for event in await self._pool.query(
                [{"kinds": kinds, "authors": part}],
                timeout_s=self._query_timeout_s,
                urls=self._pool.urls[: self._max_relays],
                max_events_per_relay=2 * len(part) * len(kinds),
            ):
                key = event.pubkey, event.kind
                if event.pubkey in part and event.kind in kinds:
                    # they come newest first
                    newest.setdefault(key, event)
        return newest
