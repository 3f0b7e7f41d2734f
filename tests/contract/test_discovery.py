"""Over a real relay nodes find each other: what is announced is listed, whoever owns an URL is
verified, whoever claims another's is not, and what is withdrawn disappears."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from discovery.announcement import (
    Announcement,
    ModelOffer,
    build_provider_event,
    default_identifier,
)
from discovery.announcer import AnnouncementSource, Announcer, RelayOutcome
from discovery.directory import Directory, DirectorySnapshot, Provider
from discovery.netguard import NetGuard
from discovery.nostr.keys import Keys
from discovery.nostr.pool import RelayPool
from discovery.probe import Prober, ProbeResult
from tests.fakes.relays import StrictRelay, fault_relay, free_port, sloppy_relay, strict_relay

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def node(handler: Handler) -> AsyncIterator[str]:
    """A server whose ``/v1/info`` is ``handler``; gives its base URL."""
    app = web.Application()
    app.router.add_get("/v1/info", handler)
    server = TestServer(app)
    await server.start_server()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        await server.close()


def says(info: Any) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.json_response(info)

    return handler


@contextlib.asynccontextmanager
async def running(*jobs: Directory | Announcer) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(job.run()) for job in jobs]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError)


async def until(
    directory: Directory, condition: Callable[[DirectorySnapshot], object]
) -> DirectorySnapshot:
    async with asyncio.timeout(20):
        while not condition(directory.snapshot()):
            await directory.changed()
    return directory.snapshot()


def find(snapshot: DirectorySnapshot, keys: Keys) -> Provider | None:
    return next((p for p in snapshot.providers if p.pubkey == keys.pubkey), None)


def knows(keys: Keys, *, models: int) -> Callable[[DirectorySnapshot], bool]:
    """The provider is listed with so many models and has been probed."""

    def check(snapshot: DirectorySnapshot) -> bool:
        provider = find(snapshot, keys)
        return (
            provider is not None
            and len(provider.models) == models
            and provider.reason != "not probed yet"
        )

    return check


def source(name: str, relay: str, *urls: str, models: int = 2) -> AnnouncementSource:
    return AnnouncementSource(
        name=name,
        about=f"node {name}",
        urls=urls,
        mints=("https://mint.example",),
        version="1.0",
        relays=(relay,),
        offers=tuple(ModelOffer(f"{name}-{n}", input_per_mtok=n + 1) for n in range(models)),
    )


@pytest.fixture
async def relay() -> AsyncIterator[StrictRelay]:
    async with strict_relay() as relay:
        yield relay


@pytest.fixture
async def pool(relay: StrictRelay) -> AsyncIterator[RelayPool]:
    async with RelayPool([relay.url]) as pool:
        yield pool


@pytest.fixture
async def prober() -> AsyncIterator[Prober]:
    async with Prober(NetGuard(allow_private=True)) as prober:
        yield prober


def patient(pool: RelayPool, prober: Prober, **options: Any) -> Directory:
    return Directory(pool, probe=prober.probe, debounce_s=0.01, **options)


async def test_nodes_find_each_other_and_an_impostor_is_told_apart(
    relay: StrictRelay, pool: RelayPool, prober: Prober
) -> None:
    honest, impostor, own = Keys.generate(), Keys.generate(), Keys.generate()
    async with node(says({"npub": honest.npub, "name": "honest"})) as url:
        directory = patient(pool, prober, own_pubkey=own.pubkey)
        announcers = [
            Announcer(pool, honest, lambda: source("honest", relay.url, url, models=150)),
            Announcer(pool, impostor, lambda: source("honest", relay.url, url)),
            Announcer(pool, own, lambda: source("own", relay.url, url)),
        ]
        async with running(directory, *announcers):
            await until(directory, knows(honest, models=150))
            snapshot = await until(directory, knows(impostor, models=2))
    assert len(snapshot.providers) == 2
    first, second = snapshot.providers
    assert (first.pubkey, first.verified, first.status) == (honest.pubkey, True, "online")
    assert first.endpoint_url == url
    assert first.verified_urls == (url,)
    assert first.latency_ms is not None
    assert json.loads(first.info)["name"] == "honest"
    assert [m.id for m in first.models] == [f"honest-{n}" for n in range(150)]
    assert first.models[7].input_per_mtok == 8
    assert first.announcement.mints == ("https://mint.example",)
    assert first.announcement.relays == (relay.url,)
    assert first.announcement.transports == ("http", "nostr")
    assert (second.pubkey, second.verified) == (impostor.pubkey, False)
    assert "another key" in second.reason
    assert second.verified_urls == ()


async def test_a_change_in_the_same_second_is_seen(
    relay: StrictRelay, pool: RelayPool, prober: Prober
) -> None:
    keys = Keys.generate()
    now = [source("first", relay.url, models=120)]
    announcer = Announcer(pool, keys, lambda: now[0], debounce_s=0.01)
    directory = patient(pool, prober)
    async with running(directory, announcer):
        await until(directory, knows(keys, models=120))
        now[0] = replace(source("second", relay.url, models=1), version="2.0")
        announcer.changed()
        snapshot = await until(directory, knows(keys, models=1))
    provider = find(snapshot, keys)
    assert provider is not None
    assert provider.announcement.name == "second"
    assert [m.id for m in provider.models] == ["second-0"]
    # without a public URL the relays are the only door, and nothing can be probed
    assert (provider.status, provider.verified) == ("unknown", False)
    assert "only relays" in provider.reason
    # the page that the shorter catalogue left over is gone from the relay
    stored = await pool.query([{"kinds": [30078], "authors": [keys.pubkey]}])
    assert len(stored) == 1
    kinds = [0, 10002, 10050]
    lists = await pool.query([{"kinds": kinds, "authors": [keys.pubkey]}])
    assert sorted(event.kind for event in lists) == kinds


async def test_retract_withdraws_and_announcing_again_returns(
    relay: StrictRelay, pool: RelayPool, prober: Prober
) -> None:
    keys = Keys.generate()
    announcer = Announcer(pool, keys, lambda: source("x", relay.url))
    directory = patient(pool, prober)
    async with running(directory):
        outcomes = await announcer.publish_once()
        assert [outcome.ok for outcome in outcomes.values()] == [True]
        await until(directory, knows(keys, models=2))
        outcomes = await announcer.retract()
        assert [outcome.ok for outcome in outcomes.values()] == [True]
        await until(directory, lambda s: find(s, keys) is None)
        assert await pool.query([{"kinds": [38421, 30078], "authors": [keys.pubkey]}]) == []
        await announcer.publish_once()
        await until(directory, knows(keys, models=2))


async def test_a_sloppy_relay_that_keeps_everything_fools_nobody(
    tmp_path: Path, prober: Prober
) -> None:
    """It knows deletion by id only and does not look at expiration."""
    keys = Keys.generate()
    async with sloppy_relay(tmp_path) as sloppy, RelayPool([sloppy.url]) as pool:
        announcer = Announcer(pool, keys, lambda: source("x", sloppy.url))
        assert (await announcer.publish_once())[sloppy.url].ok
        now = source("y", sloppy.url, models=1)
        second = Announcer(pool, keys, lambda: now)
        assert (await second.publish_once())[sloppy.url].ok
        directory = patient(pool, prober)
        async with running(directory):
            snapshot = await until(directory, knows(keys, models=1))
            assert [p.announcement.name for p in snapshot.providers] == ["y"]
            await second.retract()
            await until(directory, lambda s: s.providers == ())
        late = patient(pool, prober, poll_s=(0.05, 0.1))
        async with running(late):
            fresh = Keys.generate()
            await Announcer(pool, fresh, lambda: source("z", sloppy.url)).publish_once()
            snapshot = await until(late, knows(fresh, models=2))
        assert find(snapshot, keys) is None


async def test_a_later_run_takes_up_where_the_earlier_ended(
    relay: StrictRelay, pool: RelayPool
) -> None:
    keys = Keys.generate()
    ahead = Announcer(
        pool,
        keys,
        lambda: replace(source("x", relay.url, models=120), d="chosen"),
        clock=lambda: time.time() + 60,
    )
    await ahead.publish_once()
    picture = keys.sign(0, '{"name":"x","picture":"https://p.example"}', (), int(time.time()) + 61)
    await pool.publish(picture)
    # the clock of this run is behind the last publication, and it was not told the d tag
    later = Announcer(pool, keys, lambda: source("y", relay.url, models=1))
    outcomes = await later.publish_once()
    assert [outcome.ok for outcome in outcomes.values()] == [True]
    assert later.identifier == "chosen"
    (provider,) = await pool.query([{"kinds": [38421], "authors": [keys.pubkey]}])
    assert provider.first("name") == "y"
    assert len(await pool.query([{"kinds": [30078], "authors": [keys.pubkey]}])) == 1
    (profile,) = await pool.query([{"kinds": [0], "authors": [keys.pubkey]}])
    assert json.loads(profile.content)["picture"] == "https://p.example"
    fresh = Announcer(pool, Keys.generate(), lambda: source("z", relay.url))
    await fresh.publish_once()
    assert fresh.identifier is not None
    assert len(fresh.identifier) == 12


async def test_each_relay_has_its_outcome_and_failed_ones_are_tried_again(
    relay: StrictRelay, prober: Prober
) -> None:
    keys = Keys.generate()
    dead = f"ws://127.0.0.1:{free_port()}"
    async with (
        fault_relay(ok_false="blocked: not here") as grumpy,
        RelayPool([relay.url, grumpy.url, dead], connect_timeout_s=1) as pool,
    ):
        announcer = Announcer(
            pool,
            keys,
            lambda: source("x", relay.url),
            retry_s=0.01,
            max_retry_s=0.02,
            publish_timeout_s=1,
            recall_timeout_s=1,
        )
        async with running(announcer):
            await grumpy.has_received("EVENT", 10)
            outcomes = announcer.outcomes()
            assert outcomes[relay.url].ok
            assert outcomes[relay.url].accepted == outcomes[relay.url].total == 5
            assert not outcomes[grumpy.url].ok
            assert outcomes[grumpy.url].message == "blocked: not here"
            assert not outcomes[dead].ok
            grumpy.faults.ok_false = ""
            async with asyncio.timeout(20):
                while not announcer.outcomes()[grumpy.url].ok:
                    await asyncio.sleep(0.01)
        assert announcer.outcomes()[grumpy.url].attempts > 1
        assert not announcer.outcomes()[dead].ok
        assert {event["kind"] for event in grumpy.events} == {0, 10002, 10050, 30078, 38421}


async def test_the_heartbeat_repeats_with_ever_newer_events() -> None:
    keys = Keys.generate()
    async with fault_relay() as heard, RelayPool([heard.url]) as pool:
        announcer = Announcer(pool, keys, lambda: source("x", heard.url), heartbeat_s=(0.01, 0.02))
        async with running(announcer):
            await heard.has_received("EVENT", 15)
        stamps = [event["created_at"] for event in heard.events if event["kind"] == 38421]
    assert len(stamps) >= 3
    assert stamps == sorted(set(stamps))


async def eventually(
    announcer: Announcer, condition: Callable[[Mapping[str, RelayOutcome]], bool]
) -> Mapping[str, RelayOutcome]:
    async with asyncio.timeout(30):
        while not condition(announcer.outcomes()):
            await asyncio.sleep(0.01)
    return announcer.outcomes()


async def test_one_relay_that_never_answers_delays_no_other(
    relay: StrictRelay, prober: Prober
) -> None:
    keys = Keys.generate()
    async with (
        fault_relay(no_eose=True, no_ok=True) as mute,
        RelayPool([mute.url, relay.url]) as pool,
        RelayPool([relay.url]) as good,
    ):
        directory = patient(pool, prober, query_timeout_s=3_600)
        async with running(directory):
            await mute.has_received("REQ")
            await Announcer(good, keys, lambda: source("x", relay.url)).publish_once()
            await until(directory, knows(keys, models=2))
            again = Keys.generate()
            await Announcer(good, again, lambda: source("y", relay.url)).publish_once()
            await until(directory, knows(again, models=2))


async def test_with_one_relay_of_three_alive_nothing_is_missed(
    relay: StrictRelay, prober: Prober
) -> None:
    """And what is new is there at once: no poll comes in time to bring it."""
    dead = [f"ws://127.0.0.1:{free_port()}" for _ in range(2)]
    owners = [Keys.generate() for _ in range(20)]
    async with (
        RelayPool([dead[0], relay.url, dead[1]], connect_timeout_s=1) as pool,
        RelayPool([relay.url]) as good,
    ):
        directory = patient(pool, prober, poll_s=(3_600, 3_600))
        for keys in owners[:10]:
            await Announcer(good, keys, lambda: source("early", relay.url)).publish_once()
        async with running(directory):
            for keys in owners[:10]:
                await until(directory, knows(keys, models=2))
            for keys in owners[10:]:
                await Announcer(good, keys, lambda: source("late", relay.url)).publish_once()
                await until(directory, knows(keys, models=2))
            assert len(directory.snapshot().providers) == len(owners)


async def test_the_poll_finds_what_the_subscription_missed(
    relay: StrictRelay, prober: Prober
) -> None:
    keys = Keys.generate()
    async with fault_relay() as deaf, RelayPool([deaf.url]) as pool:
        directory = patient(pool, prober, poll_s=(0.05, 0.1))
        async with running(directory):
            await deaf.has_received("REQ")
            now = int(time.time())
            said = Announcement(
                pubkey=keys.pubkey,
                d=default_identifier(keys.pubkey),
                relays=(deaf.url,),
                http=("80", "81"),
                created_at=now,
                expires_at=now + 600,
            )
            # stored behind the relay's back: no live delivery
            deaf.events.append(json.loads(build_provider_event(keys, said).to_json()))
            await until(directory, lambda s: find(s, keys))


# --- probes ------------------------------------------------------------------------------------


async def probe(prober: Prober, keys: Keys, *urls: str) -> ProbeResult:
    return await prober.probe(Announcement(pubkey=keys.pubkey, d="d", urls=urls))


async def test_probe_names_what_is_wrong(prober: Prober) -> None:
    keys = Keys.generate()
    for info, reason in (
        ({"npub": Keys.generate().npub}, "another key"),
        ({"npub": "npub1junk"}, "no key"),
        ({"npub": 7}, "no key"),
        ({}, "no key"),
    ):
        async with node(says(info)) as url:
            result = await probe(prober, keys, url)
        assert (result.verified, result.reachable) == (False, True)
        assert reason in result.reason
    for value in ([1], "text", None):
        async with node(says(value)) as url:
            result = await probe(prober, keys, url)
        assert (result.verified, result.reachable) == (False, False)
        assert "object" in result.reason


async def test_probe_reads_a_bounded_answer_in_bounded_time() -> None:
    keys = Keys.generate()
    good = json.dumps({"npub": keys.npub})

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" " * 65_536)
        return response

    async def dripping(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"{")
        await asyncio.Event().wait()
        return response

    async def redirecting(_: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/elsewhere")

    async def bomb(_: web.Request) -> web.StreamResponse:
        return web.Response(body=gzip.compress(good.encode()), headers={"content-encoding": "gzip"})

    async def broken(_: web.Request) -> web.StreamResponse:
        return web.Response(text=good[:-1])

    async def failing(_: web.Request) -> web.StreamResponse:
        return web.Response(status=503)

    async with (
        Prober(NetGuard(allow_private=True), timeout_s=0.2) as hasty,
        node(dripping) as url,
    ):
        result = await probe(hasty, keys, url)
        assert (result.verified, result.reachable) == (False, False)
        assert "no answer within" in result.reason
    async with Prober(NetGuard(allow_private=True)) as prober:
        for handler, reason in (
            (endless, "too long"),
            (redirecting, "answers 302"),
            (bomb, "compressed"),
            (broken, "not JSON"),
            (failing, "answers 503"),
        ):
            async with node(handler) as url:
                result = await probe(prober, keys, url)
            assert not result.verified
            assert result.reachable is False
            assert reason in result.reason
        result = await probe(prober, keys, f"http://127.0.0.1:{free_port()}")
        assert (result.reachable, result.verified) == (False, False)


async def test_probe_goes_nowhere_it_must_not() -> None:
    keys = Keys.generate()
    calls = 0

    async def inside(_: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        return web.json_response({"npub": keys.npub})

    async with node(inside) as url, Prober(NetGuard()) as prober:
        result = await probe(prober, keys, url)
        assert (result.verified, result.reachable) == (False, False)
        assert "public internet" in result.reason
        onion = await probe(prober, keys, "http://abc.onion")
        assert (onion.verified, onion.reachable) == (False, None)
        assert "Tor" in onion.reason
        nothing = await probe(prober, keys)
        assert (nothing.verified, nothing.reachable) == (False, None)
    assert calls == 0


async def test_an_owner_who_also_claims_anothers_url_is_not_verified(prober: Prober) -> None:
    keys, other = Keys.generate(), Keys.generate()
    async with node(says({"npub": keys.npub})) as own, node(says({"npub": other.npub})) as foreign:
        assert (await probe(prober, keys, own)).verified
        both = await probe(prober, keys, own, foreign)
        assert not both.verified
        assert foreign in both.reason
        gone = f"http://127.0.0.1:{free_port()}"
        half = await probe(prober, keys, gone, own)
        assert half.verified
        assert half.verified_urls == (own,)


async def test_a_foreign_url_behind_the_probed_ones_is_not_shown_as_the_nodes(
    pool: RelayPool, prober: Prober
) -> None:
    keys, other = Keys.generate(), Keys.generate()
    async with (
        node(says({"npub": keys.npub})) as one,
        node(says({"npub": keys.npub})) as two,
        node(says({"npub": keys.npub})) as three,
        node(says({"npub": other.npub})) as foreign,
    ):
        said = Announcement(
            pubkey=keys.pubkey,
            d="d",
            urls=(one, two, three, foreign),
            created_at=int(time.time()),
        )
        directory = patient(pool, prober)
        async with running(directory):
            directory.offer(build_provider_event(keys, said))
            snapshot = await until(directory, lambda s: s.providers and s.providers[0].verified)
    (listed,) = snapshot.providers
    assert set(listed.endpoint_urls) == {one, two, three}
    assert listed.unverified_urls == (foreign,)


async def test_many_announcements_of_one_host_do_not_flood_it() -> None:
    calls = 0

    async def counting(_: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        return web.json_response({})

    async with (
        node(counting) as url,
        Prober(NetGuard(allow_private=True), per_host_per_minute=3) as prober,
    ):
        for _ in range(10):
            assert (await probe(prober, Keys.generate(), url)).reachable
        assert calls == 1
        results = [await probe(prober, Keys.generate(), f"{url}/{n}") for n in range(10)]
    assert calls == 1
    assert [result.reachable for result in results] == [False] * 2 + [None] * 8
