"""Promise: the operator's list of relays changes while requests are served; others are guarded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path

from discovery.netguard import NetGuard
from node.building import relay_pool
from node.client.nostr import NostrClient, Patience
from node.core.exchange import ReplyEvent, Request
from node.settings import load
from tests.contract.test_dm_relays import echoed, until_connected
from tests.contract.test_dm_transport import CHANGE, PAID, Node, echo, node_at
from tests.fakes.relays import fault_relay, strict_relay
from tests.unit.test_settings import MINIMAL

QUICK = Patience(gap_s=0.2, max_gap_s=1.0, idle_s=1.0, max_idle_s=4.0)
WAIT_S = 20.0


async def test_requests_come_over_the_relays_of_the_moment() -> None:
    async with strict_relay() as old, strict_relay() as new, node_at(old.url) as node:
        await node.pool.set_urls([old.url, new.url])
        await until_connected(node, new.url)
        async with NostrClient([new.url], patience=QUICK) as client:
            await echoed(node, client)
            await node.pool.set_urls([new.url])
            assert list(node.pool.health()) == [new.url]
            await echoed(node, client)
        assert node.pool.trouble(old.url) == "not in use"


async def test_a_reply_that_is_being_written_goes_on_over_the_new_relay() -> None:
    async with strict_relay() as old, strict_relay() as new, node_at(old.url) as node:
        asked, more = asyncio.Event(), asyncio.Event()

        async def slowly(request: Request) -> AsyncGenerator[ReplyEvent, None]:
            asked.set()
            await more.wait()
            async for event in echo(request):
                yield event

        node.dispatcher.scripts["/v1/echo"] = slowly
        async with NostrClient([old.url, new.url], patience=QUICK) as client:
            asking = asyncio.create_task(
                client.request(node.pubkey, "POST", "/v1/echo", headers=PAID, body=b"still here")
            )
            await asyncio.wait_for(asked.wait(), WAIT_S)
            await node.pool.set_urls([new.url])
            more.set()
            reply = await asking
    assert (reply.status, reply.body, reply.change) == (200, b"still here", CHANGE)
    assert len(node.dispatcher.requests) == 1


async def test_relays_that_clients_name_are_guarded_and_the_operators_are_not(
    tmp_path: Path,
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        ours = await stack.enter_async_context(strict_relay())
        inside = await stack.enter_async_context(fault_relay())
        guard = NetGuard()
        stack.callback(guard.close)
        node = Node(ours.url, None)
        config = tmp_path / "node.toml"
        config.write_text(f'{MINIMAL}[nostr]\nrelays = ["{ours.url}"]\n')
        settings = load(config)
        node.open_pool = lambda: relay_pool(settings, node.keys, guard)
        await node.start()
        stack.push_async_callback(node.stop)
        names_it = NostrClient([ours.url, inside.url], patience=QUICK)
        client = await stack.enter_async_context(names_it)
        before = inside.connections
        await echoed(node, client)
        await echoed(node, client)
        assert inside.connections == before
        assert node.pool.trouble(ours.url) is None
