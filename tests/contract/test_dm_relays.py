"""Promise: requests over Nostr are answered once and whole, whatever the relays are like."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from node.client.nostr import NostrClient, Patience, ReplyTimeout
from node.core.exchange import Chunk, Receipt, Request, Started
from node.transport.dm.assembly import AssemblyLimits
from node.transport.dm.cutter import MIN_PART_BYTES
from node.transport.dm.limits import DmLimits
from tests.contract.test_dm_transport import CHANGE, PAID, Node, node_at
from tests.fakes import stranger
from tests.fakes.relay_proxy import Line, RelayProxy, relay_proxy
from tests.fakes.relays import FaultRelay, StrictRelay, fault_relay, free_port, strict_relay
from tests.fakes.stranger import SdkClient

QUICK = Patience(gap_s=0.2, max_gap_s=1.0, idle_s=1.0, max_idle_s=4.0)
BODY = bytes(range(256)) * 240
"""Four parts, and four frames."""
WAIT_S = 20.0


@contextlib.asynccontextmanager
async def behind(line: Line) -> AsyncIterator[RelayProxy]:
    """A strict relay behind a line."""
    async with strict_relay() as relay, relay_proxy(relay.url, seed=5, line=line) as proxy:
        yield proxy


async def echoed(node: Node, client: NostrClient, body: bytes = BODY, **more: Any) -> None:
    """One request and its answer, both of them whole, run once."""
    before = len(node.dispatcher.requests)
    reply = await client.request(
        node.pubkey, "POST", "/v1/echo", headers=PAID, body=body, timeout_s=60, **more
    )
    assert (reply.status, reply.body, reply.change) == (200, body, CHANGE)
    assert len(node.dispatcher.requests) == before + 1


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    "line",
    [
        Line(lose=0.2),
        Line(repeat=0.5, reorder=0.5, hold_s=0.1),
        Line(delay_s=(0.0, 0.3)),
        Line(refuse=0.4),
        Line(no_eose=True),
        Line(flood=3),
        Line(lose=0.1, repeat=0.1, reorder=0.2, refuse=0.1, flood=1),
    ],
    ids=["loss", "order", "slow", "refusals", "no EOSE", "flood", "all"],
)
async def test_a_bad_line_spoils_nothing(line: Line, plain: bool) -> None:
    async with behind(Line()) as proxy, node_at(proxy.url) as node:
        patience = Patience(gap_s=0.2, max_gap_s=1.0, idle_s=1.0, connect_timeout_s=1.0)
        async with NostrClient([proxy.url], patience=patience) as client:
            proxy.line = line
            await echoed(node, client, plain=plain)


async def test_connections_that_break_spoil_nothing() -> None:
    async with (
        behind(Line(close=0.02, truncate=0.02)) as first,
        behind(Line(close=0.02, truncate=0.02)) as second,
        node_at([first.url, second.url]) as node,
        NostrClient([first.url, second.url], patience=QUICK) as client,
    ):
        for _ in range(3):
            await echoed(node, client)


async def test_a_relay_that_is_down_costs_nothing() -> None:
    dead = f"ws://127.0.0.1:{free_port()}"
    async with (
        behind(Line()) as proxy,
        node_at([dead, proxy.url]) as node,
        NostrClient([dead, proxy.url], patience=QUICK) as client,
    ):
        await echoed(node, client)
        assert client.pubkey
        assert node.pool.trouble(dead) == "not connected"
        assert node.pool.trouble(proxy.url) is None


async def test_relays_may_go_down_one_after_the_other() -> None:
    async with (
        behind(Line()) as first,
        behind(Line()) as second,
        node_at([first.url, second.url]) as node,
        NostrClient([first.url, second.url], patience=QUICK) as client,
    ):
        for down, up in ((first, second), (second, first)):
            up.line.down = False
            await until_connected(node, up.url)
            down.line.down = True
            down.cut()
            await echoed(node, client)


async def until_connected(node: Node, url: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while node.pool.trouble(url) is not None:
            await asyncio.sleep(0.02)


async def test_a_relay_that_limits_the_rate_gets_its_frames_slower() -> None:
    async with (
        behind(Line(events_per_s=15, burst=2)) as proxy,
        node_at(proxy.url) as node,
        NostrClient([proxy.url], patience=QUICK) as client,
    ):
        await echoed(node, client)
        assert node.pool.health()[proxy.url].connects == 1


async def test_the_interval_of_a_stream_grows_while_relays_complain_and_shrinks_again() -> None:
    async with (
        behind(Line(events_per_s=8, burst=1)) as proxy,
        node_at(proxy.url) as node,
        NostrClient([proxy.url], take_stored=False, patience=QUICK) as client,
    ):

        async def live(request: Request) -> Any:
            yield Started(200, {"content-type": "text/event-stream"}, live=True)
            for number in range(60):
                yield Chunk(b"%04d" % number)
                await asyncio.sleep(0.05)
            yield Receipt(change=CHANGE)

        node.dispatcher.scripts["/v1/live"] = live
        reply = await client.request(node.pubkey, "POST", "/v1/live", headers=PAID)
        assert reply.body == b"".join(b"%04d" % number for number in range(60))
        # Without a complaint it would have been a frame every 0.1 s.
        assert proxy.met["refused"] < 25


@pytest.mark.parametrize("refused", [21059, 1059])
async def test_a_kind_that_a_relay_refuses_gives_way_to_the_other(refused: int) -> None:
    line = Line(refuse_kinds=frozenset({refused}))
    async with (
        behind(line) as proxy,
        node_at(proxy.url) as node,
        NostrClient([proxy.url], stored=refused == 1059, patience=QUICK) as client,
    ):
        await echoed(node, client)
        before = proxy.met["refused"]
        await echoed(node, client)
        if refused == 21059:
            assert proxy.met["refused"] == before  # it is known by now


async def test_a_client_of_one_kind_gets_no_other() -> None:
    line = Line(refuse_kinds=frozenset({21059}))
    async with (
        behind(line) as proxy,
        node_at(proxy.url) as node,
        NostrClient([proxy.url], take_stored=False, patience=QUICK) as client,
    ):
        with pytest.raises(ReplyTimeout):
            await client.request(node.pubkey, "GET", "/v1/models", timeout_s=1.0)
        assert node.dispatcher.requests == []


@pytest.mark.parametrize("limit", [30_000, 12_000])
@pytest.mark.parametrize("plain", [False, True])
async def test_events_get_smaller_for_a_relay_that_refuses_large_ones(
    limit: int, plain: bool
) -> None:
    async with (
        behind(Line(max_event_bytes=limit)) as proxy,
        node_at(proxy.url) as node,
        NostrClient([proxy.url], patience=QUICK) as client,
    ):
        if plain:  # its parts are numbered: cut once, by what was learned before
            await echoed(node, client)
        await echoed(node, client, plain=plain)


async def test_a_large_request_is_not_cut_smaller_while_one_relay_takes_it() -> None:
    async with (
        behind(Line(max_event_bytes=12_000)) as small,
        behind(Line()) as large,
        node_at([small.url, large.url]) as node,
        NostrClient([small.url, large.url], patience=QUICK) as client,
    ):
        await echoed(node, client)
        assert large.met["passed"] < 60


async def test_a_relay_that_takes_nothing_ends_at_the_deadline() -> None:
    async with (
        behind(Line(max_event_bytes=500)) as proxy,
        node_at(proxy.url) as node,
        NostrClient([proxy.url], patience=QUICK) as client,
    ):
        with pytest.raises(ReplyTimeout):
            await client.request(
                node.pubkey, "POST", "/v1/echo", body=BODY, headers=PAID, timeout_s=2.0
            )
        assert node.dispatcher.requests == []
        assert MIN_PART_BYTES > 500


async def test_the_node_asks_for_parts_that_are_missing_of_a_request_with_frames() -> None:
    async with strict_relay() as relay, node_at(relay.url) as node:
        async with SdkClient(relay.url, node.pubkey, [21059]) as sdk:
            parts = stranger.in_parts(BODY, 16_384, headers=PAID, frames=True)
            assert len(parts) == 4
            await sdk.send(parts[0], parts[2])
            (asked,) = await sdk.replies(1)
            assert asked == {"id": "m", "nack": [1, 3]}
            sdk.arrived.clear()
            await sdk.send(parts[1], parts[3])
            assert (await sdk.framed("m")).body == BODY
        async with SdkClient(relay.url, node.pubkey, [21059]) as old:
            parts = stranger.in_parts(BODY, 16_384, headers=PAID)
            await old.send(*parts[1:])
            await asyncio.sleep(2.5)  # it would have been asked after one
            await old.send(parts[0])
            assert {reply["partIndex"] for reply in await old.replies(4)} == {0, 1, 2, 3}


async def test_our_client_sends_only_the_parts_it_is_asked_for(relay: StrictRelay) -> None:
    async with (
        relay_proxy(relay.url, seed=11, line=Line()) as proxy,
        node_at(relay.url) as node,
        NostrClient([proxy.url], take_stored=False, patience=Patience(idle_s=60.0)) as client,
    ):
        proxy.line = Line(lose=0.3)
        body = BODY * 4
        asking = asyncio.create_task(echoed(node, client, body))
        async with asyncio.timeout(WAIT_S):
            while not node.dispatcher.requests:
                await asyncio.sleep(0.05)
        proxy.line = Line()
        await asking


class ForgetfulRelay(FaultRelay):
    """Loses the first copy of the second part."""

    def __init__(self) -> None:
        super().__init__()
        self._passed = 0

    async def broadcast(self, *events: dict[str, Any]) -> None:
        self._passed += 1
        if self._passed != 2:
            await super().broadcast(*events)


async def test_our_client_begins_anew_when_the_node_forgot_its_parts() -> None:
    limits = DmLimits(assembly=AssemblyLimits(deadline_s=0.3, max_nacks=0), sweep_s=0.05)
    relay = ForgetfulRelay()
    await relay.start()
    try:
        async with (
            node_at(relay.url, limits) as node,
            NostrClient([relay.url], take_stored=False, patience=Patience(idle_s=60.0)) as client,
        ):
            await echoed(node, client, bytes(20_000))
            assert node.server.counts["request_incomplete"] == 1
    finally:
        await relay.stop()


@pytest.fixture
async def relay() -> AsyncIterator[StrictRelay]:
    async with strict_relay() as running:
        yield running


async def test_the_relay_that_a_client_names_is_tried_with_the_other_kind_too() -> None:
    line = Line(refuse_kinds=frozenset({21059}))
    async with (
        behind(line) as theirs,
        strict_relay() as ours,
        node_at(ours.url) as node,
        SdkClient(theirs.url, node.pubkey, [1059]) as listener,
        SdkClient(ours.url, node.pubkey, [21059]) as speaker,
    ):
        speaker.keys = listener.keys
        headers = {"content-type": "application/json", "authorization": "Bearer sk-x"}
        await speaker.send(
            stranger.message(headers=headers, relays=[theirs.url], wrap=[21059, 1059], frames=True)
        )
        reply = (await listener.replies(1))[0]
        assert reply["status"] == 200
        assert listener.wraps[0]["kind"] == 1059


async def test_relays_that_demand_auth_and_lose_frames() -> None:
    async with (
        strict_relay(auth=True) as relay,
        fault_relay(auth_required="auth-required: who are you?") as other,
        node_at([relay.url, other.url]) as node,
        NostrClient([relay.url, other.url], patience=QUICK) as client,
    ):
        await echoed(node, client)
