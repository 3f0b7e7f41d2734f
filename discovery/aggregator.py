"""The directory with all it needs, for programs that are no node.

    async with aggregator(["wss://relay.example.com"], database=Path("directory.db")) as directory:
        for provider in (await directory.changed()).selling("llama-3.3-70b"): …

``python -m discovery`` is this with JSON lines at its end; docs/discovery.md tells more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from discovery.announcement import Announcement
from discovery.directory import Directory
from discovery.netguard import NetGuard
from discovery.nostr.limits import STRANGERS
from discovery.nostr.pool import RelayPool
from discovery.probe import Prober, ProbeResult
from discovery.probing import Probe
from discovery.registry import Registry
from discovery.store import DirectoryStore

DEFAULT_RELAYS = (
    "wss://relay.damus.io",
    "wss://nos.lol",
    "wss://relay.routstr.com",
    "wss://relay.primal.net",
)
DEFAULT_MAX_PROVIDERS = 10_000


def registry(max_providers: int = DEFAULT_MAX_PROVIDERS) -> Registry:
    """A registry of that size, a quarter of it for the proven only."""
    return Registry(max_entries=max_providers, trusted_room=max_providers // 4)


@asynccontextmanager
async def aggregator(
    relays: Sequence[str] = DEFAULT_RELAYS,
    *,
    database: Path | None = None,
    probe: bool = True,
    probe_over_nostr: Callable[[NetGuard], Probe] | None = None,
    max_providers: int = DEFAULT_MAX_PROVIDERS,
    probe_timeout_s: float = 10.0,
    socks_proxy: str | None = None,
    max_learnt_relays: int = 8,
    operator: str | None = None,
    allow_private: bool = False,
) -> AsyncIterator[Directory]:
    """A directory that follows the relays while the context lasts.

    Args:
        relays: ws:// or wss:// URLs. RelayError for others.
        database: file that keeps what is known over a restart; made when missing.
        probe: ask the announced URLs who they are; else nothing is verified.
        probe_over_nostr: given the guard of addresses, what asks those that announce no URL;
            None leaves them unknown.
        max_providers: most providers kept.
        probe_timeout_s: deadline for one URL.
        socks_proxy: ``socks5://host:port`` of Tor, to ask onion services; None: they are not asked.
        max_learnt_relays: most relays read besides, of those that verified nodes name.
        operator: public key (hex) from which trust is counted by who follows whom; None: not at
            all.
        allow_private: connect to loopback and private addresses too; for tests on one machine.

    Raises OSError when the database cannot be made.
    """
    async with AsyncExitStack() as stack:
        guard = NetGuard(allow_private=allow_private)
        stack.callback(guard.close)
        pool = await stack.enter_async_context(RelayPool(relays))
        readers = None
        if max_learnt_relays:
            readers = await stack.enter_async_context(
                RelayPool([], guard=guard.check_relay_url, limits=STRANGERS)
            )
        store = None
        if database is not None:
            store = await stack.enter_async_context(await DirectoryStore.open(database))
        ask, list_models = None, None
        if probe:
            prober = await stack.enter_async_context(
                Prober(guard, timeout_s=probe_timeout_s, socks_proxy=socks_proxy)
            )
            relayed = probe_over_nostr(guard) if probe_over_nostr is not None else None
            ask, list_models = choose_probe(prober, relayed), prober.models
        directory = Directory(
            pool,
            probe=ask,
            list_models=list_models,
            registry=registry(max_providers),
            store=store,
            readers=readers,
            max_learnt_relays=max_learnt_relays,
            operator=operator,
        )
        await directory.load()
        task = asyncio.create_task(directory.run(), name="aggregator")
        try:
            yield directory
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def choose_probe(prober: Prober, over_nostr: Probe | None) -> Probe:
    """Ask by URL, and over relays those that announce none that can be asked."""
    if over_nostr is None:
        return prober.probe
    relayed = over_nostr

    async def probe(announcement: Announcement) -> ProbeResult:
        if prober.can_ask(announcement) or "nostr" not in announcement.transports:
            return await prober.probe(announcement)
        return await relayed(announcement)

    return probe
