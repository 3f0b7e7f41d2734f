"""Which relays besides our own are worth reading: those that proven nodes use.

A relay is named by a node in its announcement (``relay``) and in its relay list (NIP-65, kind
10002). Keys cost nothing, so only nodes that a probe has verified have a say, and all that answer
under one site have one vote together: of whom nothing but keys is known (relays, onion services)
there is one site in all. Learnt relays are read and never written to. Of one server one URL is
read, and none of a server of ours: whoever names it in many spellings would have us connect as
often.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

import structlog

from discovery.announcement import KIND_RELAY_LIST, is_onion
from discovery.errors import RelayError
from discovery.nostr.event import Event
from discovery.nostr.pool import RelayHealth, RelayPool
from discovery.nostr.relay import normalize_url
from discovery.snapshot import Provider

log = structlog.get_logger()

_MAX_VOTERS = 1_000
_VOTERS_PER_SITE = 20
"""Nobody is to fill the list of voters with nodes of his own."""
_AUTHORS_PER_QUERY = 200
_RELAYS_PER_VOTER = 8
_MAX_RELAY_CHARS = 200
_MAX_DISMISSED = 1_000
_AT_ONCE = 50
"""Voters that are counted before others have their turn: each takes up to 0.3 ms."""


class Learner:
    """Chooses the relays of a reading pool.

    Args:
        own: the operator's relays: asked for relay lists, and never learnt.
        readers: its relays are set here. Its guard must judge every address.
        proven: the verified providers.
        max_relays: most that are read.
        interval_s: how often the choice is looked at again; the first time after a tenth of it.
        dismiss_s: a relay that gave nothing in that time is not taken again for so long.
        query_timeout_s: deadline for the relay lists.
        clock: unix seconds.
    """

    def __init__(
        self,
        own: RelayPool,
        readers: RelayPool,
        proven: Callable[[], Iterable[Provider]],
        *,
        max_relays: int = 8,
        interval_s: float = 600.0,
        dismiss_s: float = 86_400.0,
        query_timeout_s: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._own = own
        self._readers = readers
        self._proven = proven
        self._max_relays = max_relays
        self._interval_s = interval_s
        self._dismiss_s = dismiss_s
        self._query_timeout_s = query_timeout_s
        self._clock = clock
        self._dismissed: OrderedDict[str, float] = OrderedDict()
        """Until when, unix seconds, by server."""
        self._votes: dict[str, int] = {}

    def health(self) -> dict[str, RelayHealth]:
        """The relays that are read besides the operator's, and how each does."""
        return self._readers.health()

    def sites(self, url: str) -> int:
        """By how many sites a relay is named, as last counted."""
        return self._votes.get(url, 0)

    async def run(self) -> None:
        """Until cancelled."""
        pause_s = 0.1 * self._interval_s
        while True:
            await asyncio.sleep(pause_s * random.uniform(0.9, 1.1))  # noqa: S311 spreads load
            await self.review()
            pause_s = self._interval_s

    async def review(self) -> tuple[str, ...]:
        """Choose anew; gives the relays that are read from now on."""
        if not any(health.connected for health in self._own.health().values()):
            return self._readers.urls  # it is us who are not there
        voters = self._voting()
        lists = await self._relay_lists({provider.pubkey for provider in voters})
        self._dismiss_useless()
        own = {_server(url) for url in self._own.urls}
        sites: dict[str, set[str]] = {}
        for number, provider in enumerate(voters):
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
            named = (*provider.announcement.relays, *lists.get(provider.pubkey, ()))
            for text in named[: 2 * _RELAYS_PER_VOTER]:
                if (url := self._usable(text, own)) is not None:
                    sites.setdefault(url, set()).update(_sites(provider))
        self._votes = {url: len(of) for url, of in sites.items()}
        read = self._readers.urls
        # ties are for those that are read already, so that nothing changes without need
        ranked = sorted(self._votes, key=lambda u: (-self._votes[u], u not in read, u))
        servers = dict[str, str]()
        for url in ranked:
            servers.setdefault(_server(url), url)
        chosen = tuple(servers.values())[: self._max_relays]
        if set(chosen) != set(read):
            log.info("relays_learnt", relays=list(chosen))
            await self._readers.set_urls(chosen)
        return chosen

    def _voting(self) -> list[Provider]:
        """The proven nodes that are asked, of no site too many."""
        voters, of_site = list[Provider](), Counter[str]()
        for provider in self._proven():
            sites = _sites(provider)
            if any(of_site[site] < _VOTERS_PER_SITE for site in sites):
                of_site.update(sites)
                voters.append(provider)
            if len(voters) >= _MAX_VOTERS:
                break
        return voters

    def _usable(self, text: str, own: set[str]) -> str | None:
        """The URL of a relay that may be learnt."""
        try:
            url = normalize_url(text)
        except RelayError:
            return None
        usable = (
            _server(url) not in own
            and len(url) <= _MAX_RELAY_CHARS
            and not is_onion(url)
            and self._dismissed.get(_server(url), 0) <= self._clock()
        )
        return url if usable else None

    def _dismiss_useless(self) -> None:
        """Those that are not there, or had no event for us since they were taken."""
        for url, health in self._readers.health().items():
            gone = not health.connected and (
                health.last_alive_at is None
                or self._clock() - health.last_alive_at > self._interval_s
            )
            if gone or not health.events + health.duplicates:
                self._dismissed[_server(url)] = self._clock() + self._dismiss_s
                self._dismissed.move_to_end(_server(url))
                if len(self._dismissed) > _MAX_DISMISSED:
                    self._dismissed.popitem(last=False)

    async def _relay_lists(self, pubkeys: set[str]) -> dict[str, tuple[str, ...]]:
        """The newest relay list of each; the pool has verified the events."""
        authors, newest = sorted(pubkeys), dict[str, Event]()
        for start in range(0, len(authors), _AUTHORS_PER_QUERY):
            part = authors[start : start + _AUTHORS_PER_QUERY]
            for event in await self._own.query(
                [{"kinds": [KIND_RELAY_LIST], "authors": part}], timeout_s=self._query_timeout_s
            ):
                known = newest.get(event.pubkey)
                if event.pubkey in pubkeys and (
                    known is None or event.created_at > known.created_at
                ):
                    newest[event.pubkey] = event
        return {
            pubkey: tuple(event.values("r")[:_RELAYS_PER_VOTER]) for pubkey, event in newest.items()
        }


def _server(url: str) -> str:
    return urlsplit(url).netloc


def _sites(provider: Provider) -> set[str]:
    """Whose word it is: the ends of the names it was proven at, or the networks."""
    return {_site(url) for url in provider.verified_urls} or {""}


def _site(url: str) -> str:
    host = urlsplit(url).hostname or ""
    if is_onion(url):
        return ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ".".join(host.split(".")[-2:])
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    bits = 24 if address.version == 4 else 48
    return str(ipaddress.ip_network(f"{address}/{bits}", strict=False))
