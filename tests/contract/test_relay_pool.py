"""The pool delivers every valid event once and every publish's true outcome, on any relay."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from math import inf
from pathlib import Path
from typing import Any

import pytest

from discovery.errors import ForbiddenAddress, RelayError
from discovery.nostr.event import Event, Rumor
from discovery.nostr.giftwrap import GIFT_WRAP, unwrap, wrap
from discovery.nostr.keys import Keys
from discovery.nostr.pacing import Inflow
from discovery.nostr.pool import RelayLimits, RelayPool, Subscription
from discovery.nostr.relay import normalize_url
from tests.fakes.relay_proxy import Line, relay_proxy
from tests.fakes.relays import (
    FaultRelay,
    StrictRelay,
    fault_relay,
    free_port,
    mortal_relay,
    sloppy_relay,
    strict_relay,
)

KEYS = Keys.generate()
QUICK = RelayLimits(
    backoff_min_s=0.05, backoff_max_s=0.2, auth_grace_s=0.1, retry_after_closed_s=0.05
)


def note(text: str, kind: int = 1, **changes: Any) -> Event:
    return KEYS.sign(kind, text, **changes)


def pool_of(*relays: FaultRelay | StrictRelay | str, **options: Any) -> RelayPool:
    urls = [relay if isinstance(relay, str) else relay.url for relay in relays]
    return RelayPool(urls, **({"limits": QUICK} | options))


async def take(subscription: Subscription, count: int, timeout_s: float = 10) -> list[Event]:
    async with asyncio.timeout(timeout_s):
        return [await anext(subscription) for _ in range(count)]


async def nothing_comes(subscription: Subscription) -> bool:
    try:
        await take(subscription, 1, timeout_s=0.2)
    except TimeoutError:
        return True
    return False


async def until(condition: Any, timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def strict() -> AsyncIterator[StrictRelay]:
    async with strict_relay() as relay:
        yield relay


@pytest.fixture
async def faulty() -> AsyncIterator[FaultRelay]:
    async with fault_relay() as relay:
        yield relay


# a relay as it should be


async def test_publish_subscribe_and_query(strict: StrictRelay) -> None:
    async with pool_of(strict) as pool:
        first = note("first", created_at=1_700_000_000)
        assert (await pool.publish(first))[strict.url].ok
        subscription = pool.subscribe([{"kinds": [1], "authors": [KEYS.pubkey]}])
        assert await subscription.eose(5)
        second = note("second")
        assert (await pool.publish(second))[strict.url].ok
        assert await take(subscription, 2) == [first, second]
        assert await pool.query([{"kinds": [1]}]) == [second, first]
        assert pool.health()[strict.url].connected


async def test_a_refusal_is_told_in_the_relays_words(strict: StrictRelay) -> None:
    good = note("x")
    forged = Event(good.id, good.pubkey, good.created_at, 1, good.tags, "other", good.sig)
    async with pool_of(strict) as pool:
        result = (await pool.publish(forged))[strict.url]
    assert not result.ok
    assert result.message


async def test_a_gift_wrap_crosses_a_relay_that_demands_authentication() -> None:
    alice, bob = Keys.generate(), Keys.generate()
    rumor = Rumor.new(alice.pubkey, 80, "hello")
    async with (
        strict_relay(auth_dm=True) as relay,
        pool_of(relay, keys=bob) as inbox,
        pool_of(relay, keys=alice) as outbox,
    ):
        subscription = inbox.subscribe([{"kinds": [1059, 21059], "#p": [bob.pubkey]}])
        assert await subscription.eose(5)
        for kind in (21059, GIFT_WRAP):
            results = await outbox.publish(wrap(rumor, alice, bob.pubkey, kind=kind))
            assert results[relay.url].ok, results
            assert unwrap((await take(subscription, 1))[0], bob) == rumor
        assert inbox.health()[relay.url].authenticated


async def test_a_relay_that_demands_authentication_for_everything() -> None:
    async with strict_relay(auth=True) as relay:
        async with pool_of(relay, keys=KEYS) as pool:
            event = note("x")
            assert (await pool.publish(event))[relay.url].ok
            assert await pool.query([{"kinds": [1]}]) == [event]
        async with pool_of(relay) as anonymous:
            result = (await anonymous.publish(note("y")))[relay.url]
            assert not result.ok
            assert "auth-required" in result.message


async def test_the_sloppy_relay(tmp_path: Path) -> None:
    async with sloppy_relay(tmp_path) as relay, pool_of(relay.url) as pool:
        await until(lambda: pool.health()[relay.url].connected)
        subscription = pool.subscribe([{"kinds": [1, 30_078]}])
        assert await subscription.eose(5)
        # it accepts a wrong id when the signature fits the fields; nobody may get to see it
        event = note("x")
        wrong_id = Event("0" * 64, event.pubkey, event.created_at, 1, (), "x", event.sig)
        assert (await pool.publish(wrong_id))[relay.url].ok
        await until(lambda: pool.health()[relay.url].invalid == 1)
        assert (await pool.publish(event))[relay.url].ok
        assert await take(subscription, 1) == [event]
        # refusals come with an empty id
        other = note("y")
        unsigned = Event(other.id, other.pubkey, other.created_at, 1, (), "y", "0" * 128)
        for refused in (note("z" * 70_000), unsigned):
            result = (await pool.publish(refused, timeout_s=30))[relay.url]
            assert not result.ok
            assert "invalid" in result.message
        assert pool.health()[relay.url].connected


# a relay that goes away


async def test_a_subscription_survives_a_relays_restart_with_fresh_filters(
    faulty: FaultRelay,
) -> None:
    sinces = iter(range(1_000, 2_000))
    async with pool_of(faulty) as pool:
        subscription = pool.subscribe(lambda: [{"kinds": [1], "since": next(sinces)}])
        assert await subscription.eose(5)
        await faulty.stop()
        await until(lambda: not pool.health()[faulty.url].connected)
        await faulty.start()
        await faulty.has_received("REQ", 2)
        event = note("after")
        assert (await pool.publish(event))[faulty.url].ok
        assert await take(subscription, 1) == [event]
    assert [frame[2]["since"] for frame in faulty.frames("REQ")] == [1_000, 1_001]


async def test_a_subscription_survives_the_restart_of_a_real_relay() -> None:
    async with mortal_relay() as relay, pool_of(relay.url) as pool:
        subscription = pool.subscribe([{"kinds": [1]}])
        assert await subscription.eose(5)
        await relay.kill()
        await until(lambda: not pool.health()[relay.url].connected)
        await relay.start()
        event = note("after")
        assert (await pool.publish(event))[relay.url].ok
        assert await take(subscription, 1) == [event]


async def test_publishing_waits_for_a_relay_that_comes_back(faulty: FaultRelay) -> None:
    async with pool_of(faulty) as pool:
        await until(lambda: pool.health()[faulty.url].connected)
        await faulty.stop()
        publishing = asyncio.create_task(pool.publish(note("x")))
        await asyncio.sleep(0.3)
        assert not publishing.done()
        await faulty.start()
        assert (await publishing)[faulty.url].ok


async def test_an_event_lost_with_the_connection_is_sent_again(faulty: FaultRelay) -> None:
    faulty.faults.drop_on_event = 2
    async with pool_of(faulty) as pool:
        assert (await pool.publish(note("x")))[faulty.url].ok
    assert faulty.connections == 3
    assert len(faulty.events) == 1


async def test_one_dead_relay_spoils_nothing(strict: StrictRelay) -> None:
    dead = f"ws://127.0.0.1:{free_port()}"
    async with pool_of(dead, strict) as pool:
        event = note("x")
        results = await pool.publish(event, timeout_s=1)
        assert results[strict.url].ok
        assert not results[dead].ok
        assert "timeout" in results[dead].message
        await until(lambda: pool.health()[dead].last_error)
        subscription = pool.subscribe([{"kinds": [1]}])
        assert await subscription.eose(5)
        assert await pool.query([{"kinds": [1]}], timeout_s=60) == [event]


async def test_publish_can_return_before_the_slowest(strict: StrictRelay) -> None:
    async with fault_relay(no_ok=True) as silent, pool_of(silent, strict) as pool:
        results = await pool.publish(note("x"), enough=1, timeout_s=60)
        assert results[strict.url].ok
        assert results[silent.url].message.startswith("pending")
        await silent.has_received("EVENT")


# a relay that misbehaves


async def test_other_peoples_events_are_not_delivered(faulty: FaultRelay) -> None:
    faulty.faults.leak = True
    other = Keys.generate()
    mine, theirs = note("mine"), other.sign(1, "theirs")
    faulty.events += [theirs.to_dict(), mine.to_dict()]
    async with pool_of(faulty) as pool:
        subscription = pool.subscribe([{"authors": [KEYS.pubkey]}])
        assert await subscription.eose(5)
        await faulty.broadcast(other.sign(1, "live").to_dict())
        assert await take(subscription, 1) == [mine]
        assert await nothing_comes(subscription)
        assert pool.health()[faulty.url].unmatched == 2


async def test_a_forged_copy_does_not_shadow_the_real_event(
    faulty: FaultRelay, strict: StrictRelay
) -> None:
    faulty.faults.forged_first = faulty.faults.twice = True
    async with pool_of(faulty, strict) as pool:
        subscription = pool.subscribe([{"kinds": [1]}])
        assert await subscription.eose(5)
        event = note("real")
        results = await pool.publish(event)
        assert results[faulty.url].ok
        assert results[strict.url].ok
        assert await take(subscription, 1) == [event]
        assert await nothing_comes(subscription)
        await until(lambda: sum(h.duplicates for h in pool.health().values()) >= 2)
        health = pool.health()
        assert sum(h.events for h in health.values()) == 1
        # the forged copy is refused, unless the real one came from the other relay before it
        assert health[faulty.url].invalid + health[faulty.url].duplicates == 3 - (
            health[faulty.url].events
        )


async def test_garbage_is_survived(faulty: FaultRelay) -> None:
    event = note("x").to_dict()
    faulty.faults.garbage = [
        "",
        "no json",
        b"\xff\x00",
        "[]",
        "{}",
        "null",
        "1",
        "[" * 5_000,
        '["EVENT"]',
        '["EVENT","nobody",{}]',
        '["EVENT",7,{}]',
        '["EVENT",["x"],{}]',
        '["EOSE"]',
        '["EOSE",{}]',
        '["OK"]',
        '["OK",7,true,""]',
        '["OK","' + "0" * 64 + '",true]',
        '["OK","",false,"who?"]',
        '["CLOSED","nobody","x"]',
        '["CLOSED"]',
        '["NOTICE"]',
        '["NOTICE",{"a":1}]',
        '["AUTH",7]',
        '["AUTH",""]',
        '["AUTH","' + "x" * 5_000 + '"]',
        '["LATER","nip"]',
        json.dumps(["EVENT", "nobody", event]),
    ]
    faulty.events.append(event)
    async with pool_of(faulty, keys=KEYS) as pool:
        subscription = pool.subscribe([{"kinds": [1]}])
        assert (await take(subscription, 1))[0].to_dict() == event
        request = faulty.frames("REQ")[0][1]
        for bad in (
            "x",
            None,
            [],
            {},
            event | {"id": []},
            event | {"tags": "x"},
            {"id": event["id"]},
        ):
            await faulty.say(json.dumps(["EVENT", request, bad]))
        after = note("after")
        assert (await pool.publish(after))[faulty.url].ok
        assert await take(subscription, 1) == [after]
        assert faulty.connections == 1
        assert pool.health()[faulty.url].invalid > 10


async def test_a_message_too_large_costs_the_connection_but_not_the_subscription(
    faulty: FaultRelay,
) -> None:
    limits = RelayLimits(backoff_min_s=0.05, backoff_max_s=0.2, max_message_bytes=10_000)
    async with pool_of(faulty, limits=limits) as pool:
        subscription = pool.subscribe([{"kinds": [1]}])
        assert await subscription.eose(5)
        await faulty.broadcast(note("x" * 20_000).to_dict())
        await faulty.has_received("REQ", 2)
        event = note("after")
        assert (await pool.publish(event))[faulty.url].ok
        assert await take(subscription, 1) == [event]


async def test_a_relay_that_floods_is_read_slowly(faulty: FaultRelay) -> None:
    """What comes too fast waits at the relay's end; nothing that is asked for is lost."""
    event = note("x")
    faulty.events += [note(str(n)).to_dict() for n in range(20)] + [event.to_dict()]
    limits = RelayLimits(max_frames_per_s=50, burst_s=0.1)
    async with pool_of(faulty, limits=limits) as pool:
        began = time.monotonic()
        assert event in await pool.query([{"kinds": [1]}])
        assert time.monotonic() - began > 0.2


def test_how_much_is_read_depends_on_frames_and_bytes() -> None:
    inflow = Inflow(100, 1)
    assert [inflow.pause_s(400, 0.0) for _ in range(100)] == pytest.approx([0.0] * 100)
    assert inflow.pause_s(400, 0.0) == pytest.approx(0.01)
    assert inflow.pause_s(400_000, 10.0) == 0.0
    assert inflow.pause_s(400_000, 10.0) == pytest.approx(2 * 0.98 - 1)
    assert Inflow(inf, 10).pause_s(10**9, 0.0) == 0.0


async def test_an_event_too_large_is_dropped(faulty: FaultRelay) -> None:
    limits = RelayLimits(max_event_bytes=1_000)
    small = note("small")
    faulty.events += [note("x" * 1_500).to_dict(), small.to_dict()]
    async with pool_of(faulty, limits=limits) as pool:
        assert await pool.query([{"kinds": [1]}]) == [small]


async def test_a_relay_without_eose_costs_only_the_deadline(faulty: FaultRelay) -> None:
    faulty.faults.no_eose = True
    event = note("x")
    faulty.events.append(event.to_dict())
    async with pool_of(faulty) as pool:
        assert await pool.query([{"kinds": [1]}], timeout_s=0.5) == [event]
        subscription = pool.subscribe([{"kinds": [1]}])
        assert not await subscription.eose(0.2)
        assert await take(subscription, 1) == [event]


async def test_a_relay_that_answers_with_notices_only(faulty: FaultRelay) -> None:
    faulty.faults.notice_only = "rate-limited"
    async with pool_of(faulty) as pool:
        result = (await pool.publish(note("x"), timeout_s=0.5))[faulty.url]
        assert not result.ok
        assert "timeout" in result.message
        assert await pool.query([{"kinds": [1]}], timeout_s=0.2) == []
        assert pool.health()[faulty.url].last_notice == "rate-limited"


@pytest.mark.parametrize("empty_id", [False, True])
async def test_refusals(faulty: FaultRelay, empty_id: bool) -> None:
    faulty.faults.ok_empty_id = empty_id
    async with pool_of(faulty) as pool:
        faulty.faults.ok_false = "blocked: go away"
        result = (await pool.publish(note("x")))[faulty.url]
        assert (result.ok, result.message) == (False, "blocked: go away")
        faulty.faults.ok_false = "duplicate: have it"
        assert (await pool.publish(note("y")))[faulty.url].ok
        assert pool.health()[faulty.url].refused == 1


async def test_empty_ids_answer_events_in_their_order(faulty: FaultRelay) -> None:
    faulty.faults.ok_empty_id = True
    async with pool_of(faulty) as pool:
        results = await asyncio.gather(*(pool.publish(note(str(i))) for i in range(20)))
        assert all(result[faulty.url].ok for result in results)


async def test_a_closed_subscription_is_asked_again(faulty: FaultRelay) -> None:
    faulty.faults.closed, faulty.faults.closed_times = "error: shutting down idle subscription", 2
    event = note("x")
    faulty.events.append(event.to_dict())
    async with pool_of(faulty) as pool:
        subscription = pool.subscribe([{"kinds": [1]}])
        assert await take(subscription, 1) == [event]
    assert faulty.connections == 1


async def test_a_closed_query_ends_at_once(faulty: FaultRelay) -> None:
    faulty.faults.closed = "blocked: no"
    async with pool_of(faulty) as pool:
        assert await pool.query([{"kinds": [1]}], timeout_s=60) == []
    assert len(faulty.frames("REQ")) == 1


# relays that lose, limit and are slow


async def test_events_and_oks_that_get_lost_are_sent_again(strict: StrictRelay) -> None:
    limits = RelayLimits(ok_patience_min_s=0.1, ok_patience_max_s=0.2)
    async with relay_proxy(strict.url, seed=3) as proxy, pool_of(proxy.url, limits=limits) as pool:
        listener = pool_of(strict)
        async with listener:
            subscription = listener.subscribe([{"kinds": [1]}])
            assert await subscription.eose()
            assert (await pool.publish(note("first")))[proxy.url].ok  # it says OK at all
            proxy.line = Line(lose=0.4)
            events = [note(f"{number}") for number in range(20)]
            results = await asyncio.gather(*(pool.publish(e, timeout_s=30) for e in events))
            assert all(result[proxy.url].ok for result in results)
            arrived = await take(subscription, 21)
            assert {event.content for event in arrived[1:]} == {event.content for event in events}
            assert await nothing_comes(subscription)
        assert pool.health()[proxy.url].resent > 0


async def test_a_relay_that_never_says_ok_soon_gets_each_event_once(faulty: FaultRelay) -> None:
    faulty.faults.no_ok = True
    limits = RelayLimits(ok_patience_min_s=0.02, ok_patience_max_s=0.02, max_unanswered_events=3)
    async with pool_of(faulty, limits=limits) as pool:
        for number in range(4):
            assert not (await pool.publish(note(f"{number}"), timeout_s=0.5))[faulty.url].ok
    assert len(faulty.frames("EVENT")) == 4 + 3


async def test_a_request_that_got_lost_is_sent_again(strict: StrictRelay) -> None:
    limits = RelayLimits(retry_after_silence_s=0.1)
    lossy = Line(lose=1.0)
    async with (
        relay_proxy(strict.url, line=lossy) as proxy,
        pool_of(proxy.url, limits=limits) as pool,
    ):
        subscription = pool.subscribe([{"kinds": [1]}])
        await until(lambda: proxy.met["lost"] == 1)
        lossy.lose = 0.0
        assert await subscription.eose()
        assert (await pool.publish(note("x")))[proxy.url].ok
        assert (await take(subscription, 1))[0].content == "x"


async def test_a_relay_without_eose_is_asked_a_few_times_only(faulty: FaultRelay) -> None:
    faulty.faults.no_eose = True
    limits = RelayLimits(retry_after_silence_s=0.01, max_silent_retries=2)
    async with pool_of(faulty, limits=limits) as pool:
        subscription = pool.subscribe([{"kinds": [1]}])
        await faulty.has_received("REQ", 3)
        assert await nothing_comes(subscription)
    assert len(faulty.frames("REQ")) == 3


async def test_events_slow_down_for_a_relay_that_limits_and_speed_up_again(
    strict: StrictRelay,
) -> None:
    line = Line(events_per_s=20, burst=3)
    limits = RelayLimits(pace_first_s=0.02)
    async with (
        relay_proxy(strict.url, line=line) as proxy,
        pool_of(proxy.url, limits=limits) as pool,
    ):
        events = [note(f"{number}") for number in range(20)]
        results = await asyncio.gather(*(pool.publish(e, timeout_s=60) for e in events))
        assert all(result[proxy.url].ok for result in results)
        assert any(result[proxy.url].limited for result in results)
        health = pool.health()[proxy.url]
        assert health.limited > 0
        assert health.interval_s > 0
        assert health.limited < 4 * len(events)  # it did not hammer
        line.events_per_s = None
        number = 0
        while pool.health()[proxy.url].interval_s:
            assert (await pool.publish(note(f"more {number}")))[proxy.url].ok
            number += 1


async def test_a_limit_that_lasts_is_the_result(strict: StrictRelay) -> None:
    line = Line(events_per_s=0.0, burst=0)
    limits = RelayLimits(pace_first_s=0.3)
    async with (
        relay_proxy(strict.url, line=line) as proxy,
        pool_of(proxy.url, limits=limits) as pool,
    ):
        result = (await pool.publish(note("x"), timeout_s=1.0))[proxy.url]
        assert (result.ok, result.limited) == (False, True)
        assert result.message == "rate-limited: slow down"
        await until(lambda: pool.health()[proxy.url].interval_s >= 0.3)
        await pool.publish(note("y"), timeout_s=2.0)
        assert "takes an event every" in str(pool.trouble(proxy.url))


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels have no such switch")
async def test_frames_are_acknowledged_when_they_are_read(faulty: FaultRelay) -> None:
    """A relay with Nagle's algorithm would hold the next small frame back for 40 ms."""
    at_once = 0
    async with pool_of(faulty) as pool:
        for number in range(20):
            assert (await pool.publish(note(str(number))))[faulty.url].ok
            at_once += faulty.unacknowledged_bytes() == 0
    assert at_once > 10  # left to the kernel it is 0; all but a few, as the machine may be busy


async def test_many_large_events_at_once_cost_no_connection(strict: StrictRelay) -> None:
    async with pool_of(strict) as pool:
        events = [note("x" * 20_000 + str(number)) for number in range(400)]
        results = await asyncio.gather(*(pool.publish(e, timeout_s=60) for e in events))
        assert all(result[strict.url].ok for result in results)
        assert pool.health()[strict.url].connects == 1


# a list of relays that changes


async def test_the_list_of_relays_changes_while_it_is_in_use(strict: StrictRelay) -> None:
    async with fault_relay() as old, fault_relay() as new, pool_of(strict, old) as pool:
        subscription = pool.subscribe([{"kinds": [1]}])
        assert await subscription.eose()
        await pool.set_urls([strict.url, new.url + "/"])
        assert pool.urls == (strict.url, new.url)
        await new.has_received("REQ")
        await old.has_received("CLOSE")
        assert set(await pool.publish(note("x"))) == {strict.url, new.url}
        await take(subscription, 1)
        await until(lambda: pool.health()[new.url].connected)
        await new.broadcast(note("from the new one").to_dict())
        assert [event.content for event in await take(subscription, 1)] == ["from the new one"]
        await old.broadcast(note("from the old one").to_dict())
        assert await nothing_comes(subscription)
        assert pool.trouble(old.url) == "not in use"
        assert pool.health()[strict.url].connects == 1
        assert old.frames("EVENT") == []


async def test_a_bad_list_of_relays_changes_nothing(strict: StrictRelay) -> None:
    async with pool_of(strict) as pool:
        with pytest.raises(RelayError):
            await pool.set_urls(["ws://127.0.0.1:1", "https://example.com"])
        assert pool.urls == (strict.url,)
        assert (await pool.publish(note("x")))[strict.url].ok
    with pytest.raises(RelayError):
        await pool.set_urls([strict.url])


async def test_a_relay_in_use_for_someone_becomes_one_of_ours(faulty: FaultRelay) -> None:
    async with fault_relay() as own, pool_of(own, guest_idle_s=0.05) as pool:
        subscription = pool.subscribe([{"kinds": [1]}])
        assert (await pool.publish(note("x"), urls=[faulty.url]))[faulty.url].ok
        await pool.set_urls([faulty.url])
        await faulty.has_received("REQ")
        assert (await pool.publish(note("y")))[faulty.url].ok
        assert (await take(subscription, 1))[0].content in ("x", "y")
    assert faulty.connections == 1


# authentication


@pytest.mark.parametrize(
    "refusal", ["auth-required: who are you?", "ERROR: auth-required: who?", "restricted: denied"]
)
@pytest.mark.parametrize("no_ok", [False, True])
async def test_refused_requests_and_events_are_sent_again_after_auth(
    faulty: FaultRelay, refusal: str, no_ok: bool
) -> None:
    faulty.faults.auth_required, faulty.faults.auth_no_ok = refusal, no_ok
    event = note("x")
    async with pool_of(faulty, keys=KEYS) as pool:
        subscription = pool.subscribe([{"kinds": [1]}])
        assert (await pool.publish(event))[faulty.url].ok
        assert await take(subscription, 1) == [event]
        assert await subscription.eose(5)
    assert faulty.connections == 1
    assert len(faulty.frames("AUTH")) == 1


async def test_a_refused_authentication_is_a_result(faulty: FaultRelay) -> None:
    faulty.faults.auth_required = "auth-required: members only"
    faulty.faults.auth_refused = "restricted: not a member"
    async with pool_of(faulty, keys=KEYS) as pool:
        result = (await pool.publish(note("x")))[faulty.url]
        assert not result.ok
        assert await pool.query([{"kinds": [1]}], timeout_s=60) == []
        assert not pool.health()[faulty.url].authenticated


async def test_without_keys_a_challenge_is_not_answered(faulty: FaultRelay) -> None:
    faulty.faults.auth_required = "auth-required: who are you?"
    async with pool_of(faulty) as pool:
        assert not (await pool.publish(note("x")))[faulty.url].ok
        assert await pool.query([{"kinds": [1]}], timeout_s=60) == []
    assert not faulty.frames("AUTH")


# bounds


async def test_a_slow_consumer_loses_the_oldest_and_is_told(faulty: FaultRelay) -> None:
    events = [note(str(i), created_at=1_700_000_000 + i) for i in range(10)]
    faulty.events += [event.to_dict() for event in events]
    async with pool_of(faulty) as pool:
        subscription = pool.subscribe([{"kinds": [1]}], queue_size=3)
        assert await subscription.eose(5)
        assert await take(subscription, 3) == events[-3:]
        assert subscription.dropped == 7


async def test_a_query_takes_so_many_events_from_one_relay_and_no_more(
    faulty: FaultRelay, strict: StrictRelay
) -> None:
    faulty.events += [note(str(i), created_at=1_700_000_000 + i).to_dict() for i in range(20)]
    faulty.faults.no_eose = True
    honest = note("honest")
    async with pool_of(faulty, strict) as pool:
        await pool.publish(honest, urls=[strict.url])
        found = await pool.query([{"kinds": [1]}], timeout_s=60, max_events_per_relay=5)
        assert honest in found
        assert len(found) == 6


async def test_a_closed_subscription_ends_and_is_closed_at_the_relay(faulty: FaultRelay) -> None:
    async with pool_of(faulty) as pool:
        async with pool.subscribe([{"kinds": [1]}]) as subscription:
            assert await subscription.eose(5)
        await faulty.has_received("CLOSE")
        assert [event async for event in subscription] == []


async def test_closing_the_pool_ends_whoever_waits(faulty: FaultRelay) -> None:
    faulty.faults.no_eose = faulty.faults.no_ok = True
    pool = pool_of(faulty)
    await pool.start()
    subscription = pool.subscribe([{"kinds": [1]}])
    waiting = [
        asyncio.create_task(take(subscription, 1, 60)),
        asyncio.create_task(subscription.eose(60)),
        asyncio.create_task(pool.publish(note("x"), timeout_s=60)),
        asyncio.create_task(pool.query([{}], timeout_s=60)),
    ]
    await faulty.has_received("EVENT")
    await faulty.has_received("REQ", 2)
    await pool.close()
    async with asyncio.timeout(5):
        taken, eose, published, queried = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(taken, StopAsyncIteration | RuntimeError)
    assert eose is False
    assert isinstance(published, dict)
    assert not published[faulty.url].ok
    assert queried == []
    assert not (await pool.publish(note("y")))[faulty.url].ok
    await pool.close()


# relays outside the pool, and the guard


async def test_a_relay_outside_the_pool_is_connected_kept_and_let_go(
    faulty: FaultRelay, strict: StrictRelay
) -> None:
    async with pool_of(strict, guest_idle_s=0.3) as pool:
        for i in range(3):
            assert (await pool.publish(note(str(i)), urls=[faulty.url + "/"]))[faulty.url + "/"].ok
        assert faulty.connections == 1
        assert len(await pool.query([{"kinds": [1]}], urls=[faulty.url])) == 3
        await until(lambda: not faulty._clients)
        assert (await pool.publish(note("again"), urls=[faulty.url]))[faulty.url].ok
        assert faulty.connections == 2
        assert pool.urls == (strict.url,)


async def test_relays_outside_the_pool_are_bounded_in_number(strict: StrictRelay) -> None:
    async with (
        fault_relay() as one,
        fault_relay() as two,
        pool_of(strict, max_guests=1) as pool,
    ):
        assert (await pool.publish(note("a"), urls=[one.url]))[one.url].ok
        one.faults.no_ok = True
        slow = asyncio.create_task(pool.publish(note("b"), urls=[one.url], timeout_s=60))
        await one.has_received("EVENT", 2)
        refused = (await pool.publish(note("c"), urls=[two.url]))[two.url]
        assert "too many" in refused.message
        await one.say(json.dumps(["OK", one.events[-1]["id"], True, ""]))
        assert (await slow)[one.url].ok
        assert (await pool.publish(note("d"), urls=[two.url]))[two.url].ok
        await until(lambda: not one._clients)


async def test_the_guard_sees_every_url_before_each_connect(
    faulty: FaultRelay, strict: StrictRelay
) -> None:
    seen: list[str] = []

    async def guard(url: str) -> None:
        seen.append(url)
        if url == strict.url:
            raise ForbiddenAddress("a private address")

    async with pool_of(faulty, guard=guard) as pool:
        assert (await pool.publish(note("x")))[faulty.url].ok
        result = (await pool.publish(note("x"), urls=[strict.url], timeout_s=60))[strict.url]
        assert not result.ok
        assert result.message.startswith("forbidden")
        faulty.drop_everyone()
        await until(lambda: faulty.connections == 2)
        assert not await pool.query([{}], urls=[strict.url], timeout_s=0.5)
    assert seen.count(faulty.url) == 2
    assert seen.count(strict.url) >= 1


async def test_the_connection_goes_to_the_address_the_guard_allowed(faulty: FaultRelay) -> None:
    port = faulty.url.rsplit(":", 1)[1]

    async def guard(url: str) -> list[str]:
        return ["127.0.0.2", "127.0.0.1"]

    url = f"ws://relay.invalid:{port}"
    async with pool_of(url, guard=guard) as pool:
        assert (await pool.publish(note("x")))[url].ok


async def test_a_redirect_is_not_followed(faulty: FaultRelay) -> None:
    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 302 Found\r\nLocation: {faulty.url}\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(redirect, "127.0.0.1", 0)
    url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, pool_of(url) as pool:
        await until(lambda: "redirect" in pool.health()[url].last_error)
    assert faulty.connections == 0


async def test_a_server_that_never_answers_the_handshake_times_out() -> None:
    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silence, "127.0.0.1", 0)
    url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, pool_of(url, connect_timeout_s=0.2) as pool:
        await until(lambda: pool.health()[url].last_error == "timed out")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "relay",
        "http://relay",
        "ws://",
        "ws://u:p@relay",
        "ws://relay:x",
        "ws://a b",
        "ws://[::1",
    ],
)
async def test_what_is_no_relay_url_is_refused(url: str, strict: StrictRelay) -> None:
    with pytest.raises(RelayError):
        RelayPool([url])
    async with pool_of(strict) as pool:
        assert (await pool.publish(note("x"), urls=[url]))[url].message.startswith("unusable")
        assert await pool.query([{}], urls=[url], timeout_s=60) == []


def test_spellings_of_one_relay_are_one() -> None:
    spellings = ["wss://Relay.example", "wss://relay.example/", "wss://relay.example:443"]
    assert {normalize_url(url) for url in spellings} == {"wss://relay.example"}
    assert normalize_url("ws://[::1]:7777/x?y=1#z") == "ws://[::1]:7777/x?y=1"


async def test_health_tells_when_a_relay_was_last_alive(faulty: FaultRelay) -> None:
    async with pool_of(faulty) as pool:
        assert pool.health()[faulty.url].last_alive_at is None
        await until(lambda: pool.health()[faulty.url].connected)
        alive = pool.health()[faulty.url].last_alive_at
        assert alive is not None
        assert alive <= time.time()
        await faulty.stop()
        await until(lambda: not pool.health()[faulty.url].connected)
        lost = pool.health()[faulty.url]
        assert lost.last_alive_at == pool.health()[faulty.url].last_alive_at
        assert lost.last_error
