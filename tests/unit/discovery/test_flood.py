"""A flood of fresh keys never displaces, alters or hides a node that is verified, and what it holds
is bounded. All 100,000 keys with NODESTR_SOAK=1, a sample without."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from discovery.announcement import Announcement, build_model_pages, build_provider_event
from discovery.directory import Directory
from discovery.nostr.event import Event
from discovery.nostr.keys import Keys
from discovery.nostr.pool import RelayPool
from discovery.offers import ModelOffer
from discovery.probe import ProbeResult
from discovery.registry import Registry
from node.service.endpoints.providers import get_provider, list_providers

FLOOD = 100_000 if os.environ.get("NODESTR_SOAK") == "1" else 1_000
ROOM = FLOOD // 20
NODES = 10


def events_of(keys: Keys, name: str, url: str, now: int) -> list[Event]:
    said = Announcement(
        pubkey=keys.pubkey,
        d="d",
        name=name,
        urls=(url,),
        created_at=now,
        expires_at=now + 86_400,
    )
    pages = build_model_pages(
        keys, "d", [ModelOffer("m", "M", 1_000, 2_000)], created_at=now, expires_at=now + 86_400
    )
    # as a relay gives them: without what their maker knew of them
    return [Event.shape(e.to_dict()) for e in (build_provider_event(keys, said), *pages)]


@pytest.mark.timeout(1_200)
async def test_a_flood_of_fresh_keys_changes_nothing_about_the_verified() -> None:
    owners = {f"https://node-{n}.example.com": Keys.generate() for n in range(NODES)}
    asked = 0

    async def probe(said: Announcement) -> ProbeResult:
        nonlocal asked
        asked += 1
        owner = owners.get(said.urls[0])
        mine = owner is not None and owner.pubkey == said.pubkey
        reason = "" if mine else "names another key"
        return ProbeResult(mine, True, 5, reason, said.urls if mine else ())

    now = int(time.time())
    directory = Directory(
        RelayPool([]),
        probe=probe,
        debounce_s=0.0,
        registry=Registry(max_entries=ROOM, trusted_room=NODES),
    )
    run = asyncio.create_task(directory.run())
    for n, (url, keys) in enumerate(owners.items()):
        for event in events_of(keys, f"node {n}", url, now):
            directory.offer(event)

    def proven() -> list[str]:
        found = list_providers(directory.snapshot(), {"verified": "true", "model": "m"})
        return sorted(item["pubkey"] for item in found["providers"])

    async with asyncio.timeout(60):
        while len(proven()) < NODES:
            await directory.changed()
    before = {p.pubkey: (p.announcement, p.named) for p in directory.snapshot().providers}
    urls = list(owners)
    for n in range(FLOOD):
        # each claims the name and the URL of a verified node
        victim = urls[n % NODES]
        for event in events_of(Keys.generate(), f"node {n % NODES}", victim, now + n % 900):
            directory.offer(event)
        if n % 200 == 0:
            await asyncio.sleep(0)
    snapshot = directory.rebuild()
    assert len(snapshot.providers) <= ROOM
    assert proven() == sorted(keys.pubkey for keys in owners.values())
    for n, (url, keys) in enumerate(owners.items()):
        detail = get_provider(snapshot, f"node {n}")
        assert (detail["pubkey"], detail["endpoint_url"]) == (keys.pubkey, url)
        assert not detail["ambiguous"]
    for provider in snapshot.providers[:NODES]:
        assert provider.verified
        assert before[provider.pubkey] == (provider.announcement, provider.named)
    assert asked > 0
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
