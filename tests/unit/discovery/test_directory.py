"""The registry lists the newest, unexpired, undeleted announcements, stays within its bounds and
keeps room for the proven; the directory's snapshot says exactly that and what probes found."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any

import pytest

from discovery.announcement import (
    KIND_PROVIDER,
    Announcement,
    ModelOffer,
    build_deletion,
    build_model_pages,
    build_provider_event,
)
from discovery.directory import Directory, DirectorySnapshot, Probe, Provider
from discovery.nostr.event import Event
from discovery.nostr.keys import Keys
from discovery.nostr.pool import RelayPool
from discovery.probe import ProbeResult
from discovery.registry import Entry, Registry, Trust
from discovery.schedule import Schedule

NOW = 1_790_000_000
A, B, C = Keys.generate(), Keys.generate(), Keys.generate()


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> Registry:
    return Registry(clock=clock)


def provider(
    keys: Keys,
    at: int = NOW,
    *,
    d: str = "d",
    url: str = "https://a.example",
    expires_at: int | None = NOW + 1_000,
    name: str = "",
) -> Event:
    said = Announcement(
        pubkey=keys.pubkey, d=d, name=name, urls=(url,), created_at=at, expires_at=expires_at
    )
    return build_provider_event(keys, said)


def pages(keys: Keys, *ids: str, at: int = NOW, d: str = "d", per_page: int = 100) -> list[Event]:
    return build_model_pages(
        keys,
        d,
        [ModelOffer(id_) for id_ in ids],
        created_at=at,
        expires_at=NOW + 1_000,
        max_models=per_page,
    )


def listed(registry: Registry) -> dict[str, str]:
    """Address → id of the event that counts."""
    return {
        entry.address: entry.announcement.event.id
        for entry in registry
        if entry.announcement and entry.announcement.event
    }


def address(keys: Keys, d: str = "d") -> str:
    return f"{KIND_PROVIDER}:{keys.pubkey}:{d}"


def test_newest_wins_whatever_the_order(registry: Registry) -> None:
    old, new = provider(A, NOW - 10), provider(A, NOW)
    assert registry.offer(new) == address(A)
    assert registry.offer(old) is None
    assert registry.offer(new) is None
    assert listed(registry) == {address(A): new.id}


@pytest.mark.parametrize("turned", [False, True])
def test_of_the_same_second_the_lowest_id_wins(registry: Registry, turned: bool) -> None:
    events = [provider(A, name=f"n{n}") for n in range(4)]
    for event in reversed(events) if turned else events:
        registry.offer(event)
    assert listed(registry) == {address(A): min(event.id for event in events)}


def test_forged_events_change_nothing(registry: Registry) -> None:
    real = provider(A)
    registry.offer(real)
    newer = provider(A, NOW + 5)
    forgeries = [
        Event(newer.id, *_fields(newer), real.sig),
        Event("0" * 64, *_fields(newer), newer.sig),
        Event(newer.id, B.pubkey, *_fields(newer)[1:], newer.sig),
        Event(newer.id, *_fields(newer)[:4], '{"name":"evil"}', newer.sig),
    ]
    for forged in forgeries:
        assert registry.offer(forged) is None
    page = pages(A, "m")[0]
    assert registry.offer(Event(page.id, *_fields(page)[:4], "{}", page.sig)) is None
    deletion = build_deletion(A, [address(A)], created_at=NOW + 5)
    assert registry.offer(Event(deletion.id, *_fields(deletion), real.sig)) is None
    assert listed(registry) == {address(A): real.id}
    # a forgery seen first does not shadow the real one
    assert registry.offer(newer) == address(A)


def _fields(event: Event) -> tuple[str, int, int, tuple[tuple[str, ...], ...], str]:
    return event.pubkey, event.created_at, event.kind, event.tags, event.content


def test_future_and_expired_are_not_listed(registry: Registry, clock: Clock) -> None:
    assert registry.offer(provider(A, NOW + 901, expires_at=None)) is None
    assert registry.offer(provider(A, NOW - 10, expires_at=NOW)) is None
    assert registry.offer(provider(A, NOW - 31 * 86_400, expires_at=None)) is None
    assert registry.offer(provider(A, expires_at=NOW + 10)) is not None
    assert registry.next_expiry() == NOW + 10
    clock.now = NOW + 9
    assert not registry.expire()
    clock.now = NOW + 10
    assert registry.expire()
    assert listed(registry) == {}
    assert registry.next_expiry() is None


def test_an_expired_replacement_withdraws(registry: Registry) -> None:
    registry.offer(provider(A, NOW - 20))
    gone = provider(A, NOW - 10, expires_at=NOW - 5)
    assert registry.offer(gone) == address(A)
    assert listed(registry) == {}
    # and a relay that still has the old one does not bring it back
    assert registry.offer(provider(A, NOW - 20)) is None
    assert registry.offer(provider(A, NOW)) == address(A)


def test_deletion_by_address_reaches_up_to_its_time(registry: Registry) -> None:
    first = provider(A, NOW - 10)
    registry.offer(first)
    assert registry.offer(build_deletion(A, [address(A)], created_at=NOW - 5)) == address(A)
    assert listed(registry) == {}
    assert registry.offer(first) is None
    assert registry.offer(provider(A, NOW - 5)) is None
    newer = provider(A, NOW - 4)
    registry.offer(newer)
    assert listed(registry) == {address(A): newer.id}


def test_deletion_by_id_covers_that_event_only(registry: Registry) -> None:
    first, second = provider(A, NOW - 10), provider(A, NOW)
    registry.offer(A.sign(5, "", [("e", second.id)], NOW + 1))
    assert registry.offer(second) is None
    assert registry.offer(first) == address(A)


def test_nobody_deletes_for_another(registry: Registry) -> None:
    event = provider(A)
    registry.offer(event)
    registry.offer(B.sign(5, "", [("e", event.id), ("a", address(A))], NOW + 1))
    assert listed(registry) == {address(A): event.id}


def test_tombstones_are_bounded(clock: Clock) -> None:
    registry = Registry(clock=clock, tombstones_per_author=3, max_tombstones=2)
    tags = [("e", f"{n:064x}") for n in range(10)] + [("e", "junk" * 10_000)]
    registry.offer(A.sign(5, "", tags, NOW))
    for keys in (B, C):
        registry.offer(build_deletion(keys, [address(keys)], created_at=NOW))
    assert registry.offer(provider(B)) is None
    assert registry.offer(provider(C)) is None


def test_an_author_holds_eight_addresses(registry: Registry) -> None:
    for n in range(12):
        registry.offer(provider(A, d=f"d{n}"))
    assert len(listed(registry)) == 8
    newer = provider(A, NOW + 1, d="d3")
    assert registry.offer(newer) == address(A, "d3")
    assert registry.offer(provider(B)) == address(B)


def test_the_proven_stay_when_a_flood_comes(clock: Clock) -> None:
    registry = Registry(clock=clock, max_entries=20, trusted_room=5)
    proven = [Keys.generate() for _ in range(5)]
    for keys in proven:
        registry.offer(provider(keys))
        registry.mark(address(keys), Trust.PROVEN)
    registry.offer(provider(A))
    registry.mark(address(A), Trust.FAILED)
    for _ in range(14):
        registry.offer(provider(Keys.generate()))
    assert len(registry) == 20
    flood = [Keys.generate() for _ in range(30)]
    for keys in flood:
        registry.offer(provider(keys))
        for page in pages(Keys.generate(), "orphan"):
            registry.offer(page)
    assert len(registry) <= 20
    held = listed(registry)
    assert all(address(keys) in held for keys in proven)
    assert address(A) not in held  # what failed goes first
    assert address(flood[-1]) in held


def test_room_that_the_proven_leave_is_not_for_everyone(clock: Clock) -> None:
    registry = Registry(clock=clock, max_entries=20, trusted_room=5)
    for _ in range(40):
        registry.offer(provider(Keys.generate()))
    assert len(registry) == 15


def test_bytes_are_bounded(clock: Clock) -> None:
    registry = Registry(clock=clock, max_bytes=100_000, max_entry_bytes=20_000)
    registry.offer(provider(A))
    registry.mark(address(A), Trust.PROVEN)
    registry.offer(pages(A, "kept")[0])
    for _ in range(50):
        keys = Keys.generate()
        registry.offer(provider(keys))
        for page in pages(keys, *(f"{n:0200}" for n in range(60)), per_page=15):
            registry.offer(page)
    entries = list(registry)
    assert sum(entry.weight_bytes for entry in entries) <= 100_000
    assert max(entry.weight_bytes for entry in entries) <= 20_000
    kept = registry.get(address(A))
    assert kept is not None
    assert [model.id for model in kept.models] == ["kept"]
    huge = A.sign(KIND_PROVIDER, "x" * 20_000, [("d", "big"), ("u", "https://a.example")], NOW)
    assert registry.offer(huge) is None


def test_pages_of_any_order_and_only_complete_sets(registry: Registry) -> None:
    first = pages(A, "a", "b", at=NOW, per_page=1)
    registry.offer(first[1])
    assert listed(registry) == {}
    registry.offer(provider(A))
    registry.offer(first[0])
    assert models(registry, A) == ["a", "b"]
    second = pages(A, "c", "d", "e", at=NOW + 1, per_page=1)
    registry.offer(second[0])
    registry.offer(second[2])
    assert models(registry, A) == ["a", "b"]
    assert registry.offer(second[1]) == address(A)
    assert models(registry, A) == ["c", "d", "e"]
    registry.offer(pages(A, "f", at=NOW + 2)[0])
    assert models(registry, A) == ["f"]
    registry.offer(second[1])
    assert models(registry, A) == ["f"]


def test_deleted_and_expired_pages_are_not_sold(registry: Registry, clock: Clock) -> None:
    registry.offer(provider(A, expires_at=NOW + 5_000))
    registry.offer(pages(A, "a")[0])
    registry.offer(provider(B, expires_at=NOW + 5_000))
    page = pages(B, "b")[0]
    registry.offer(page)
    registry.offer(B.sign(5, "", [("e", page.id)], NOW + 1))
    assert models(registry, B) == []
    clock.now = NOW + 1_000
    assert registry.expire()
    assert models(registry, A) == []
    assert listed(registry).keys() == {address(A), address(B)}


def models(registry: Registry, keys: Keys) -> list[str]:
    entry = registry.get(address(keys))
    assert entry is not None
    return [model.id for model in entry.models]


def test_another_url_has_to_be_proven_anew(registry: Registry) -> None:
    registry.offer(provider(A))
    registry.mark(address(A), Trust.PROVEN)
    registry.offer(provider(A, NOW + 1))
    assert _trust(registry) is Trust.PROVEN
    registry.offer(provider(A, NOW + 2, url="https://other.example"))
    assert _trust(registry) is Trust.NEW


def _trust(registry: Registry) -> Trust:
    return _entry(registry).trust


def _entry(registry: Registry) -> Entry:
    entry = registry.get(address(A))
    assert entry is not None
    return entry


def test_first_seen_stays_until_the_name_changes(registry: Registry, clock: Clock) -> None:
    registry.offer(provider(A, name="honest"))
    clock.now += 100
    registry.offer(provider(A, NOW + 1, name="honest", url="https://moved.example"))
    assert _entry(registry).first_seen == NOW
    # Who was long known by another name has not owned this one any longer for it.
    registry.offer(provider(A, NOW + 2, name="famous"))
    assert _entry(registry).first_seen == NOW + 100


def test_schedule_gives_what_is_due_and_prefers() -> None:
    schedule = Schedule()
    schedule.plan("a", 5.0)
    schedule.plan("b", 3.0)
    schedule.plan("p", 4.0, preferred=True)
    schedule.plan("b", 6.0)
    schedule.plan("gone", 1.0)
    schedule.cancel("gone")
    assert len(schedule) == 3
    assert schedule.next_at() == 4.0
    assert schedule.pop(3.9) is None
    assert schedule.pop(10.0) == "p"
    assert schedule.pop(10.0, preferred_only=True) is None
    assert [schedule.pop(10.0), schedule.pop(10.0), schedule.pop(10.0)] == ["a", "b", None]
    assert schedule.next_at() is None


# --- the directory around it -------------------------------------------------------------------


class Probes:
    """Answers probes as told and keeps count."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.running = 0
        self.most = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.results: dict[str, ProbeResult] = {}
        self._asked = asyncio.Condition()

    async def begins(self, count: int) -> None:
        """Wait until so many probes have begun."""
        async with asyncio.timeout(10), self._asked:
            await self._asked.wait_for(lambda: len(self.asked) >= count)

    async def asks(self, keys: Keys, count: int) -> None:
        """Wait until ``keys`` has been probed that often."""
        async with asyncio.timeout(10), self._asked:
            await self._asked.wait_for(lambda: self.asked.count(keys.pubkey) >= count)

    async def __call__(self, announcement: Announcement) -> ProbeResult:
        self.running += 1
        self.most = max(self.most, self.running)
        async with self._asked:
            self.asked.append(announcement.pubkey)
            self._asked.notify_all()
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        good = ProbeResult(True, True, 7, verified_urls=announcement.urls, info=b"{}")
        return self.results.get(announcement.pubkey, good)


@contextlib.asynccontextmanager
async def running(directory: Directory) -> AsyncIterator[None]:
    task = asyncio.create_task(directory.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(directory: Directory, condition: Callable[[DirectorySnapshot], object]) -> None:
    async with asyncio.timeout(10):
        while not condition(directory.snapshot()):
            await directory.changed()


def make(probe: Probe | None, clock: Clock, **options: Any) -> Directory:
    return Directory(RelayPool([]), probe=probe, clock=clock, debounce_s=0.0, **options)


def find(snapshot: DirectorySnapshot, keys: Keys) -> Provider | None:
    return next((p for p in snapshot.providers if p.pubkey == keys.pubkey), None)


def is_verified(keys: Keys) -> Callable[[DirectorySnapshot], bool]:
    def check(snapshot: DirectorySnapshot) -> bool:
        provider = find(snapshot, keys)
        return provider is not None and provider.verified

    return check


def has_status(keys: Keys, status: str) -> Callable[[DirectorySnapshot], bool]:
    def check(snapshot: DirectorySnapshot) -> bool:
        provider = find(snapshot, keys)
        return provider is not None and provider.status == status

    return check


async def test_snapshot_is_immutable_and_rebuilt_only_on_change(clock: Clock) -> None:
    directory = make(None, clock, own_pubkey=C.pubkey)
    for event in (provider(A), provider(B), provider(C), *pages(A, "m")):
        directory.offer(event)
    snapshot = directory.rebuild()
    assert {p.pubkey for p in snapshot.providers} == {A.pubkey, B.pubkey}
    assert {p.status for p in snapshot.providers} == {"unknown"}
    assert directory.rebuild() is snapshot
    directory.offer(provider(A))
    assert directory.rebuild() is snapshot
    directory.offer(pages(A, "m2", at=NOW + 1)[0])
    changed = directory.rebuild()
    assert changed.etag != snapshot.etag
    assert next(p for p in snapshot.providers if p.pubkey == A.pubkey).models[0].id == "m"
    with pytest.raises(AttributeError):
        changed.providers = ()  # type: ignore[misc]


async def test_who_sells_what_is_known_after_every_change(clock: Clock) -> None:
    """The index of sellers is kept over snapshots, and never beyond what it says."""
    directory = make(None, clock)
    owners = [Keys.generate() for _ in range(4)]
    chance = random.Random(7)
    names = ["m1", "m2", "m3"]
    earlier: list[tuple[DirectorySnapshot, dict[str, tuple[Provider, ...]]]] = []
    for step in range(60):
        keys, at = chance.choice(owners), NOW + step
        match chance.choice(("announce", "models", "delete", "health")):
            case "announce":
                directory.offer(provider(keys, at, expires_at=NOW + 1_000, name=f"n{step}"))
            case "models":
                sold = chance.sample(names, chance.randrange(4))
                for page in pages(keys, *sold, at=at):
                    directory.offer(page)
            case "delete":
                directory.offer(build_deletion(keys, [address(keys)], created_at=at))
            case "health":
                health = directory._prospector.health.get(address(keys))
                if health is not None:
                    good = chance.choice((True, False))
                    health.record(ProbeResult(good, True, step, ""), at)
                    directory._probed(address(keys))
        snapshot = directory.rebuild()
        expected = {
            name: tuple(p for p in snapshot.providers if any(o.id == name for o in p.named))
            for name in names
        }
        assert {name: snapshot.selling(name) for name in names} == expected
        earlier.append((snapshot, expected))
    assert any(before.sellers is after.sellers for (before, _), (after, _) in pairwise(earlier))
    for snapshot, expected in earlier:
        fresh = DirectorySnapshot(snapshot.providers, sellers=snapshot.sellers)
        assert {name: fresh.selling(name) for name in names} == expected


async def test_newcomers_are_probed_at_once_and_within_bounds(clock: Clock) -> None:
    probes = Probes()
    probes.gate.clear()
    directory = make(probes, clock, probe_concurrency=4, probe_reserve=1)
    async with running(directory):
        for _ in range(10):
            directory.offer(provider(Keys.generate()))
        await until(directory, lambda s: len(s.providers) == 10)
        await probes.begins(3)
        assert probes.most == 3  # the fourth place is kept for the proven
        probes.gate.set()
        await until(directory, lambda s: all(p.verified for p in s.providers))
    assert probes.most == 3
    assert len(probes.asked) == 10
    assert {p.status for p in directory.snapshot().providers} == {"online"}
    assert {p.latency_ms for p in directory.snapshot().providers} == {7}


async def test_a_failed_probe_is_repeated_soon_and_a_good_one_later(clock: Clock) -> None:
    probes = Probes()
    probes.results[A.pubkey] = ProbeResult(False, False, None, "down")
    directory = make(probes, clock, retry_s=0.01, reprobe_s=3_600.0)
    async with running(directory):
        directory.offer(provider(A))
        directory.offer(provider(B))
        await until(directory, has_status(A, "offline"))
        await probes.asks(A, 3)
        del probes.results[A.pubkey]
        await until(directory, is_verified(A))
    assert probes.asked.count(B.pubkey) == 1


async def test_a_node_that_goes_down_stays_verified_for_a_while(clock: Clock) -> None:
    probes = Probes()
    directory = make(probes, clock, retry_s=0.01, reprobe_s=0.01, verified_ttl_s=100)
    async with running(directory):
        directory.offer(provider(A, expires_at=None))
        await until(directory, is_verified(A))
        probes.results[A.pubkey] = ProbeResult(False, False, None, "down")
        await until(directory, has_status(A, "offline"))
        assert directory.snapshot().providers[0].verified
        clock.now = NOW + 101
        await until(directory, lambda s: not is_verified(A)(s))
        probes.results[A.pubkey] = ProbeResult(False, True, 3, "names another key")
        await until(directory, has_status(A, "online"))
        assert not directory.snapshot().providers[0].verified
        assert directory.snapshot().providers[0].reason == "names another key"


async def test_moving_to_another_url_loses_the_proof_at_once(clock: Clock) -> None:
    probes = Probes()
    directory = make(probes, clock)
    async with running(directory):
        directory.offer(provider(A))
        await until(directory, is_verified(A))
        probes.gate.clear()
        directory.offer(provider(A, NOW + 1, url="https://victim.example"))
        assert not directory.rebuild().providers[0].verified
        assert directory.snapshot().providers[0].verified_urls == ()
        probes.results[A.pubkey] = ProbeResult(False, True, 3, "names another key")
        probes.gate.set()
        await until(directory, has_status(A, "online"))
        assert not directory.snapshot().providers[0].verified


async def test_of_a_verified_node_only_proven_urls_are_to_be_used(clock: Clock) -> None:
    own, stolen, onion = "https://own.example", "https://victim.example", "http://x.onion"
    urls = (own, stolen, onion)
    event = build_provider_event(
        A, Announcement(pubkey=A.pubkey, d="d", urls=urls, created_at=NOW, expires_at=NOW + 1_000)
    )
    probes = Probes()
    probes.results[A.pubkey] = ProbeResult(True, True, 7, verified_urls=(own,))
    directory = make(probes, clock)
    async with running(directory):
        probes.gate.clear()
        directory.offer(event)
        await until(directory, lambda s: find(s, A))
        (before,) = directory.snapshot().providers
        assert set(before.endpoint_urls) == set(before.unverified_urls) == set(urls)
        probes.gate.set()
        await until(directory, is_verified(A))
    (after,) = directory.snapshot().providers
    assert (after.endpoint_url, after.endpoint_urls) == (own, (own,))
    assert set(after.unverified_urls) == {stolen, onion}
    assert after.first_seen == NOW


async def test_a_broken_probe_does_not_end_the_directory(clock: Clock) -> None:
    async def broken(_: Announcement) -> ProbeResult:
        raise RuntimeError("bug")

    directory = make(broken, clock)
    async with running(directory):
        directory.offer(provider(A))
        await until(directory, lambda s: s.providers and "itself failed" in s.providers[0].reason)
        directory.offer(provider(B))
        await until(directory, lambda s: len(s.providers) == 2)


async def test_verified_and_online_come_first(clock: Clock) -> None:
    probes = Probes()
    probes.results[A.pubkey] = ProbeResult(False, False, None, "down")
    probes.results[B.pubkey] = ProbeResult(False, True, 1, "names no key")
    directory = make(probes, clock)
    async with running(directory):
        for keys in (A, B, C):
            directory.offer(provider(keys))
        await until(
            directory,
            lambda s: (
                len(s.providers) == 3 and all(p.reason != "not probed yet" for p in s.providers)
            ),
        )
    order = [p.pubkey for p in directory.snapshot().providers]
    assert order == [C.pubkey, B.pubkey, A.pubkey]


async def test_expiry_leaves_the_snapshot_by_itself(clock: Clock) -> None:
    directory = make(None, clock)
    async with running(directory):
        directory.offer(provider(A, expires_at=NOW + 1))
        directory.offer(provider(B))
        await until(directory, lambda s: len(s.providers) == 2)
        clock.now = NOW + 1
        # the next change, whatever it is, must not bring the expired one back
        directory.offer(provider(C))
        await until(directory, lambda s: find(s, C) and not find(s, A))
        assert find(directory.snapshot(), B)


async def test_hostile_events_do_not_stop_it(clock: Clock) -> None:
    directory = make(None, clock)
    for kind in (0, 1, 5, 30078, KIND_PROVIDER):
        for content in ("", "[" * 10_000, "\x00", "{}"):
            for tags in ([], [("d",)], [("d", "d"), ("u", "http://[")], [("e", "x"), ("a", "y")]):
                directory.offer(A.sign(kind, content, tags, NOW))
    assert directory.rebuild().providers == ()
