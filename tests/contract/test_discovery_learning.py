"""Relays that proven nodes name are read, few of them, and nobody who only makes keys has a say;
trust is counted from the operator's key by who follows whom."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from discovery.announcement import (
    Announcement,
    build_provider_event,
    build_relay_lists,
    parse_provider_event,
)
from discovery.directory import Directory, DirectorySnapshot
from discovery.errors import ForbiddenAddress
from discovery.learning import Learner
from discovery.netguard import NetGuard
from discovery.nostr.event import Event
from discovery.nostr.keys import Keys
from discovery.nostr.pool import RelayPool
from discovery.probe import ProbeResult
from discovery.snapshot import Provider
from discovery.trust import Circle
from node.service.endpoints.providers import get_provider, list_providers
from tests.contract.test_discovery import find, running, until
from tests.fakes.relays import StrictRelay, free_port, strict_relay
from tests.unit.discovery.test_providers_endpoint import make
from tests.unit.discovery.test_reviews import review


@pytest.fixture
async def relay() -> AsyncIterator[StrictRelay]:
    async with strict_relay() as relay:
        yield relay


@pytest.fixture
async def pool(relay: StrictRelay) -> AsyncIterator[RelayPool]:
    async with RelayPool([relay.url]) as pool:
        await connected(pool)
        yield pool


async def connected(pool: RelayPool) -> None:
    async with asyncio.timeout(20):
        while not all(health.connected for health in pool.health().values()):
            await asyncio.sleep(0.01)


def announcing(keys: Keys, *relays: str, url: str = "") -> Event:
    now = int(time.time())
    said = Announcement(
        pubkey=keys.pubkey,
        d="d",
        urls=(url or f"https://{keys.pubkey[:8]}.example",),
        relays=relays,
        created_at=now,
        expires_at=now + 600,
    )
    return build_provider_event(keys, said)


def proven(site: str, *relays: str) -> Provider:
    return make(site, said={"relays": relays, "urls": (f"https://{site}",)})


def learner(pool: RelayPool, readers: RelayPool, *voters: Provider, **options: Any) -> Learner:
    return Learner(pool, readers, lambda: voters, **options)


async def test_what_a_proven_node_uses_is_read(relay: StrictRelay, pool: RelayPool) -> None:
    """A node that announces at another relay is found through one that is known, by the relay in
    its relay list; our own events go to our own relays only."""
    known, hidden = Keys.generate(), Keys.generate()

    async def probe(said: Announcement) -> ProbeResult:
        return ProbeResult(said.pubkey == known.pubkey, True, 5, "", said.urls)

    guard = NetGuard(allow_private=True)
    async with (
        strict_relay() as other,
        RelayPool([other.url]) as there,
        RelayPool([], guard=guard.check_relay_url) as readers,
    ):
        await there.publish(announcing(hidden))
        await pool.publish(announcing(known))
        now = int(time.time())
        for event in build_relay_lists(known, relays=[other.url], inbox=[], created_at=now):
            await pool.publish(event)
        directory = Directory(pool, probe=probe, debounce_s=0.01, readers=readers, learn_s=1.0)
        async with running(directory):
            await until(directory, lambda s: find(s, known))
            await until(directory, lambda s: find(s, hidden))
            assert directory.learner is not None
            assert list(directory.learner.health()) == [other.url]
            assert directory.learner.sites(other.url) == 1
        own = Keys.generate()
        assert list(await pool.publish(announcing(own))) == [relay.url]
        assert await there.query([{"authors": [own.pubkey]}], timeout_s=5) == []


async def test_relays_that_the_operator_changes_are_followed(
    relay: StrictRelay, pool: RelayPool
) -> None:
    async with strict_relay() as other, RelayPool([other.url]) as there:
        early, late = Keys.generate(), Keys.generate()
        directory = Directory(pool, probe=None, debounce_s=0.01)
        async with running(directory):
            await there.publish(announcing(early))
            await pool.set_urls([other.url])
            await until(directory, lambda s: find(s, early))
            await pool.set_urls([])
            await pool.set_urls([other.url, relay.url])
            await there.publish(announcing(late))
            await until(directory, lambda s: find(s, late))


async def test_the_most_named_by_different_sites_are_read(pool: RelayPool) -> None:
    crowd = [proven(f"n{n}.flood.example", "wss://flood.example") for n in range(50)]
    voters = [
        proven("a.one", "wss://good.example", "wss://once.example"),
        proven("a.two", "wss://good.example/", "WSS://GOOD.example:443"),
        proven("a.three", "wss://other.example", pool.urls[0], "ws://abc.onion"),
        proven("a.four", "wss://other.example"),
        *crowd,
    ]
    async with RelayPool([]) as readers:
        chosen = await learner(pool, readers, *voters, max_relays=2).review()
        assert set(chosen) == set(readers.urls) == {"wss://good.example", "wss://other.example"}


async def test_one_server_is_read_once_and_ours_not_again(pool: RelayPool) -> None:
    own = pool.urls[0]
    voter = proven("a.example", own, f"{own}/x", f"{own}?y=1", "wss://one.example/1")
    again = proven("b.example", *(f"wss://one.example/{n}" for n in range(9)), "wss://two.example")
    async with RelayPool([]) as readers:
        chosen = await learner(pool, readers, voter, again, max_relays=8).review()
        assert sorted(chosen) == ["wss://one.example/1", "wss://two.example"]


async def test_nobody_fills_the_list_of_voters(pool: RelayPool) -> None:
    crowd = [proven(f"n{n}.flood.example", f"wss://relay{n}.flood.example") for n in range(1_000)]
    honest = [proven(site, "wss://good.example") for site in ("a.one", "a.two")]
    async with RelayPool([]) as readers:
        chosen = await learner(pool, readers, *crowd, *honest, max_relays=1).review()
        assert chosen == ("wss://good.example",)


async def test_keys_alone_have_no_say(pool: RelayPool) -> None:
    """A thousand fresh keys: of those that are not verified none counts, and those that are
    verified over relays alone count as one."""
    async with RelayPool([]) as readers:
        bodiless = [
            make(f"k{n}", verified_urls=(), said={"urls": (), "relays": ("wss://mine.example",)})
            for n in range(30)
        ]
        real = proven("real.example", "wss://real.example")
        both = proven("b.example", "wss://real.example")
        chosen = await learner(pool, readers, *bodiless, real, both, max_relays=1).review()
        assert chosen == ("wss://real.example",)

    async def nobody(said: Announcement) -> ProbeResult:
        return ProbeResult(False, True, 5, "names another key")

    async with RelayPool([]) as readers:
        directory = Directory(pool, probe=nobody, readers=readers)
        for _ in range(100):
            directory.offer(announcing(Keys.generate(), f"ws://127.0.0.1:{free_port()}"))
        assert len(directory.rebuild().providers) == 100
        assert directory.learner is not None
        assert await directory.learner.review() == ()
        assert readers.urls == ()


async def test_the_guard_judges_and_the_useless_are_dropped(pool: RelayPool) -> None:
    forbidden: list[str] = []

    async def guard(url: str) -> list[str]:
        forbidden.append(url)
        raise ForbiddenAddress("no")

    async with RelayPool([], guard=guard) as readers:
        voter = proven("a.example", "ws://169.254.169.254", "ws://10.0.0.1")
        learning = learner(pool, readers, voter, max_relays=1)
        (first,) = await learning.review()
        async with asyncio.timeout(20):
            while not forbidden:
                await asyncio.sleep(0.01)
        (second,) = await learning.review()
        assert first != second
        assert await learning.review() == ()
        assert not any(health.connects for health in readers.health().values())


def follows(keys: Keys, *others: Keys, kind: int = 3) -> Event:
    return keys.sign(kind, "", [("p", other.pubkey) for other in others], int(time.time()))


async def test_distance_is_by_who_follows_whom(pool: RelayPool) -> None:
    me, friend, second, third, muted, behind = (Keys.generate() for _ in range(6))
    for event in (
        follows(me, friend, muted),
        follows(me, muted, kind=10_000),
        follows(friend, second, me),
        follows(second, third),
        follows(muted, behind),
    ):
        await pool.publish(event)
    told: list[bool] = []
    circle = Circle(pool, me.pubkey, lambda: told.append(True))
    assert await circle.read()
    assert [circle.distance(k.pubkey) for k in (me, friend, second)] == [0, 1, 2]
    assert [circle.distance(k.pubkey) for k in (third, muted, behind)] == [None] * 3
    assert await circle.read()
    assert told == [True]
    wider = Circle(pool, me.pubkey, lambda: None, max_distance=3)
    await wider.read()
    assert wider.distance(third.pubkey) == 3
    narrow = Circle(pool, me.pubkey, lambda: None, max_keys=2, max_follows=1)
    await narrow.read()
    assert len(narrow) == 2


async def test_a_relay_that_holds_lists_back_undoes_no_mute(
    relay: StrictRelay, pool: RelayPool
) -> None:
    me, friend, muted, last = (Keys.generate() for _ in range(4))
    old = me.sign(3, "", [("p", muted.pubkey)], int(time.time()) - 60)
    mutes = follows(me, *(Keys.generate() for _ in range(3)), muted, last, kind=10_000)
    for event in (follows(me, friend, muted, last), mutes):
        await pool.publish(event)
    circle = Circle(pool, me.pubkey, lambda: None, max_follows=3)
    assert await circle.read()
    assert [circle.distance(k.pubkey) for k in (friend, muted, last)] == [1, None, None]
    async with strict_relay() as other:
        await pool.set_urls([other.url])
        await connected(pool)
        assert not await circle.read()
        await pool.publish(old)
        assert await circle.read()
    assert [circle.distance(k.pubkey) for k in (friend, muted, last)] == [1, None, None]


async def test_without_a_list_of_the_operator_nobody_is_near(pool: RelayPool) -> None:
    circle = Circle(pool, Keys.generate().pubkey, lambda: None)
    assert not await circle.read()
    assert len(circle) == 1


async def test_reviews_and_nodes_show_how_near_they_are(pool: RelayPool) -> None:
    me, friend, liked, owned, warned, stranger = (Keys.generate() for _ in range(6))
    await pool.publish(follows(me, friend, owned))
    directory = Directory(pool, probe=None, debounce_s=0.01, operator=me.pubkey)
    now = int(time.time())
    for keys in (liked, owned, warned, stranger):
        directory.offer(announcing(keys))
    directory.offer(review(friend, of=liked, at=now))
    directory.offer(review(stranger, of=warned, at=now))
    directory.offer(review(me, of=warned, at=now, label="avoid"))

    def judged(snapshot: DirectorySnapshot) -> bool:
        provider = find(snapshot, liked)
        return provider is not None and provider.trust == 1

    async with running(directory):
        snapshot = await until(directory, judged)
    listed = list_providers(snapshot, {"max_trust_distance": "1"})["providers"]
    assert {item["pubkey"] for item in listed} == {liked.pubkey, owned.pubkey}
    by_key = {item["pubkey"]: item for item in listed}
    assert by_key[owned.pubkey]["trust_distance"] == 1
    assert by_key[liked.pubkey]["vouched_distance"] == 1
    detail = get_provider(snapshot, liked.pubkey)
    assert [said["trust_distance"] for said in detail["reviews"]["newest"]] == [1]
    ordered = [item["pubkey"] for item in list_providers(snapshot, {"sort": "trust"})["providers"]]
    assert set(ordered[:2]) == {liked.pubkey, owned.pubkey}


def test_a_warning_as_near_as_the_praise_undoes_it() -> None:
    keys = Keys.generate()
    praise = parse_review(keys, "lgtm", 1)
    liked = make("liked", reviews=(praise,))
    assert liked.trust == 1
    for distance, expected in ((0, None), (1, None), (2, 1), (None, 1)):
        other = parse_review(keys, "avoid", distance)
        assert replace(liked, reviews=(praise, other)).trust == expected


def parse_review(keys: Keys, label: str, distance: int | None) -> Any:
    from discovery.reviews import Review

    return Review(keys.pubkey, "00" * 32, 38_425, label, 1, "", distance)


def test_an_announcement_read_back_names_its_relays() -> None:
    said = parse_provider_event(announcing(Keys.generate(), "wss://a.example"))
    assert said.relays == ("wss://a.example",)
