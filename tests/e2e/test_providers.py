"""Promise: a node shows the market over HTTP and over Nostr, still after a restart; the commands
show it without a node; and what a node announces is what it charges."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from discovery.announcement import Announcement, ModelOffer
from discovery.announcer import AnnouncementSource, Announcer
from discovery.netguard import NetGuard
from discovery.nostr.event import Event
from discovery.nostr.keys import Keys
from discovery.nostr.pool import RelayPool
from discovery.offers import parse_model_pages
from node.client.nostr import NostrClient
from node.nostr_probe import NostrProber
from tests.e2e.conftest import BODY, World
from tests.e2e.test_accounts import open_account

OTHER = Keys.generate()


async def announce_another(world: World, price: int = 3_000_000) -> None:
    """A second provider, who sells what the node sells; reachable through relays only."""
    async with RelayPool([world.relay.url]) as pool:
        announcer = Announcer(
            pool,
            OTHER,
            lambda: AnnouncementSource(
                name="other",
                relays=(world.relay.url,),
                offers=(ModelOffer("demo", "", price, price), ModelOffer("org/model", "", 1, 2)),
            ),
        )
        outcomes = await announcer.publish_once()
    assert all(outcome.ok for outcome in outcomes.values())


async def listed(http: httpx.AsyncClient, **query: str) -> list[dict[str, Any]]:
    async with asyncio.timeout(20):
        while True:
            found = (await http.get("/v1/providers", params=query)).json()["providers"]
            if found:
                return list(found)
            await asyncio.sleep(0.05)


async def command(*arguments: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": "", "COLUMNS": "200", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), err.decode()


async def test_the_market_over_both_carriages_and_after_a_restart(world: World) -> None:
    await announce_another(world)
    async with httpx.AsyncClient(base_url=world.node.url, timeout=20) as http:
        (other,) = await listed(http, model="demo")
        assert (other["name"], other["transports"]) == ("other", ["nostr"])
        answer = await http.get("/v1/market/org/model")
        book = answer.json()
        assert [ask["npub"] for ask in book["asks"]] == [OTHER.npub]
        assert book["asks"][0]["output_per_mtok"] == 2
        assert (
            await http.get(
                "/v1/market/org/model", headers={"if-none-match": answer.headers["etag"]}
            )
        ).status_code in (200, 304)
        assert (await http.get("/v1/market/unknown")).status_code == 404
        assert (await http.get("/v1/market/demo?limit=0")).status_code == 400
    async with NostrClient([world.relay.url]) as client:
        reply = await client.request(world.node.keys.npub, "GET", "/v1/market/demo", timeout_s=20)
        assert (reply.status, reply.json()["asks"][0]["npub"]) == (200, OTHER.npub)
        reply = await client.request(
            world.node.keys.npub, "GET", "/v1/providers/stream", timeout_s=20
        )
        assert reply.status == 400
    await world.node.stop()
    assert (world.node.directory / "data" / "directory.db").exists()
    await world.node.start()
    async with httpx.AsyncClient(base_url=world.node.url, timeout=20) as http:
        first = (await http.get("/v1/providers")).json()["providers"]
    assert [provider["npub"] for provider in first] == [OTHER.npub]


async def test_the_stream_tells_what_comes_and_does_not_hold_up_the_stop(world: World) -> None:
    async with (
        httpx.AsyncClient(base_url=world.node.url, timeout=20) as http,
        http.stream("GET", "/v1/providers/stream", params={"model": "demo"}) as answer,
    ):
        assert answer.headers["content-type"] == "text/event-stream"
        lines = answer.aiter_lines()
        assert await anext(lines) == "event: ready"
        await announce_another(world)
        async for line in lines:
            if line.startswith("data: ") and "demo" in line:
                assert json.loads(line[6:])["npub"] == OTHER.npub
                break
        await asyncio.wait_for(world.node.stop(), 4)
        async for _ in lines:
            pass


async def test_the_pages_say_what_is_charged(world: World) -> None:
    key = await open_account(world, 100)
    async with RelayPool([world.relay.url]) as pool:
        events: list[Event] = []
        async with asyncio.timeout(20):
            while not events:
                filters = [{"kinds": [30078], "authors": [world.node.keys.pubkey]}]
                events = await pool.query(filters, timeout_s=5)
    (offer,) = parse_model_pages(events) or []
    async with httpx.AsyncClient(base_url=world.node.url, timeout=20) as http:
        answer = await http.post(
            "/v1/chat/completions", json=BODY, headers={"authorization": f"Bearer {key}"}
        )
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    tokens = (
        usage["prompt_tokens"] * offer.input_per_mtok
        + usage["completion_tokens"] * offer.output_per_mtok
    )
    assert usage["cost"] == -(-tokens // 1_000_000) + offer.per_request
    # the demo's nodes are configured to take their announcement back
    await world.node.stop()
    async with RelayPool([world.relay.url]) as pool:
        author = [world.node.keys.pubkey]
        left = await pool.query([{"kinds": [38421, 30078], "authors": author}], timeout_s=20)
    assert all(event.expiration and event.expiration < time.time() + 60 for event in left)


async def test_a_node_is_proven_over_its_relays(world: World) -> None:
    prober = NostrProber(NetGuard(allow_private=True).check_relay_url, timeout_s=20)
    said = Announcement(
        pubkey=world.node.keys.pubkey, d="d", relays=(world.relay.url,), http=("80", "81")
    )
    result = await prober.probe(said)
    assert (result.verified, result.reachable, result.reason) == (True, True, "")
    assert json.loads(result.info)["npub"] == world.node.keys.npub
    hurried = NostrProber(NetGuard(allow_private=True).check_relay_url, timeout_s=0.5)
    result = await hurried.probe(replace(said, pubkey=OTHER.pubkey))
    assert (result.verified, result.reachable) == (False, False)
    guarded = NostrProber(NetGuard().check_relay_url, timeout_s=0.5, connect_timeout_s=0.5)
    assert not (await guarded.probe(said)).verified


async def test_the_commands_show_the_market_without_a_node(world: World) -> None:
    await announce_another(world)
    relay = ("--relay", world.relay.url)
    code, out, err = await command("-m", "node", "providers", *relay, "--json", "--model", "demo")
    assert code == 0, err
    found = json.loads(out)["providers"]
    # by price: the other sells for less
    assert [p["name"] for p in found] == ["other", "node"]
    code, out, err = await command(
        "-m", "node", "providers", *relay, "--verify", "--allow-private", "--wait", "30"
    )
    assert code == 0, err
    row = next(line for line in out.splitlines() if world.node.keys.npub[:20] in line)
    assert "online" in row
    assert "yes" in row
    code, out, err = await command(
        "-m", "discovery", *relay, "--once", "4", "--allow-private", "--no-probe"
    )
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert {(line["event"], line["provider"]["name"]) for line in lines} == {
        ("provider", "other"),
        ("provider", "node"),
    }
    code, _, err = await command("-m", "node", "providers", *relay, "--sort", "price")
    assert (code, "model" in err) == (1, True)


async def test_announce_shows_what_a_running_node_says(world: World) -> None:
    config = ("--config", str(world.node.config_file))
    code, out, err = await command("-m", "node", "announce", "--dry-run", "--json", *config)
    assert code == 0, err
    events = [Event.parse(json.loads(line)) for line in out.splitlines()]
    assert {event.kind for event in events} == {0, 10002, 10050, 30078, 38421}
    assert events[-1].pubkey == world.node.keys.pubkey
    code, out, err = await command("-m", "node", "announce", "--dry-run", *config)
    assert code == 0, err
    assert "kind 38421" in out
    assert "bytes" in out
    code, out, err = await command("-m", "node", "announce", *config)
    assert code == 0, err
    assert f"{world.relay.url}  5 of 5  taken" in out


@pytest.mark.parametrize("relay", ["http://no.relay", "junk", "ws://127.0.0.1:9"])
async def test_a_bad_relay_is_one_line(relay: str) -> None:
    code, _, err = await command("-m", "node", "providers", "--relay", relay, "--wait", "2")
    assert code == 1
    assert err.startswith("nodestr: ")
    assert len(err.splitlines()) == 1
