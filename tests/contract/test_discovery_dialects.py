"""Promise: nodes of every dialect are understood over a real relay and real HTTP, a node without a
URL is asked over its relays, reviews arrive, and a hostile list of models costs little."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from discovery.aggregator import aggregator, choose_probe
from discovery.announcement import Announcement, build_provider_event
from discovery.announcer import Announcer
from discovery.directory import Directory, DirectorySnapshot, Provider
from discovery.netguard import NetGuard
from discovery.nostr.keys import Keys
from discovery.nostr.pool import RelayPool
from discovery.probe import Prober, ProbeResult
from discovery.reviews import KIND_RECOMMENDATION, KIND_REVIEW
from tests.contract.test_discovery import find, source, until
from tests.fakes.relays import StrictRelay, strict_relay

MODELS = {
    "object": "list",
    "data": [
        {"id": "a", "sats_pricing": {"prompt": 0.001, "completion": 0.002}},
        {"id": "b", "pricing": {"prompt": 1e-6, "completion": 2e-6}},
    ],
}


@contextlib.asynccontextmanager
async def server(keys: Keys, models: Any, calls: list[str]) -> AsyncIterator[str]:
    """A node that answers ``/v1/info`` and ``/v1/models``."""

    async def info(_: web.Request) -> web.StreamResponse:
        calls.append("info")
        return web.json_response({"npub": keys.npub})

    async def list_models(request: web.Request) -> web.StreamResponse:
        calls.append("models")
        if callable(models):
            response: web.StreamResponse = await models(request)
            return response
        return web.json_response(models)

    app = web.Application()
    app.router.add_get("/v1/info", info)
    app.router.add_get("/v1/models", list_models)
    test_server = TestServer(app)
    await test_server.start_server()
    try:
        yield f"http://127.0.0.1:{test_server.port}"
    finally:
        await test_server.close()


@pytest.fixture
async def relay() -> AsyncIterator[StrictRelay]:
    async with strict_relay() as relay:
        yield relay


async def known(directory: Directory, keys: Keys, check: Any) -> Provider:
    def fits(snapshot: DirectorySnapshot) -> bool:
        provider = find(snapshot, keys)
        return provider is not None and check(provider)

    found = find(await until(directory, fits), keys)
    assert found is not None
    return found


def legacy(keys: Keys, url: str, *tags: tuple[str, ...], content: str = "") -> Any:
    return keys.sign(38421, content, [("d", "legacy"), ("u", url), *tags], int(time.time()))


async def test_every_dialect_appears(relay: StrictRelay) -> None:
    bare, old, content, modern = (Keys.generate() for _ in range(4))
    calls: list[str] = []
    async with (
        server(bare, MODELS, calls) as url,
        aggregator([relay.url], allow_private=True) as directory,
        RelayPool([relay.url]) as pool,
    ):
        directory_content = orjson.dumps(
            {
                "name": "c",
                "models": [{"id": "m", "sats_pricing": {"prompt": 0.001, "completion": 0}}],
            }
        ).decode()
        for event in (
            legacy(bare, url),
            legacy(old, "http://127.0.0.1:9", ("models", "x", "y")),
            legacy(content, "http://127.0.0.1:9", content=directory_content),
        ):
            assert (await pool.publish(event))[relay.url].ok
        await Announcer(
            pool, modern, lambda: source("modern", relay.url, "http://127.0.0.1:9")
        ).publish_once()
        found = await known(directory, bare, lambda p: p.models)
        assert (found.verified, found.models_source, found.status) == (True, "endpoint", "online")
        assert [(o.id, o.input_per_mtok) for o in found.models] == [("a", 1_000_000)]
        assert [o.id for o in found.unpriced] == ["b"]
        found = await known(directory, old, lambda p: p.status == "offline")
        assert (found.models, [o.id for o in found.unpriced]) == ((), ["x", "y"])
        assert found.models_source == "announcement"
        found = await known(directory, content, lambda p: p.status == "offline")
        assert [(o.id, o.input_per_mtok) for o in found.models] == [("m", 1_000_000)]
        found = await known(directory, modern, lambda p: p.models)
        assert (found.models_source, len(found.models)) == ("pages", 2)
    assert calls.count("models") == 1


async def test_an_impostor_is_not_shown_with_the_models_of_whom_he_points_at(
    relay: StrictRelay,
) -> None:
    owner, impostor = Keys.generate(), Keys.generate()
    calls: list[str] = []
    async with (
        server(owner, MODELS, calls) as url,
        aggregator([relay.url], allow_private=True) as directory,
        RelayPool([relay.url]) as pool,
    ):
        await pool.publish(legacy(impostor, url))
        found = await known(directory, impostor, lambda p: p.status == "online")
        assert (found.verified, found.named) == (False, ())
    assert calls == ["info"]


async def test_reviews_arrive_with_their_keys(relay: StrictRelay) -> None:
    node, friend, critic = (Keys.generate() for _ in range(3))
    now = int(time.time())
    async with (
        aggregator([relay.url], probe=False) as directory,
        RelayPool([relay.url]) as pool,
    ):
        for event in (
            legacy(node, "https://a.example.com"),
            critic.sign(
                KIND_REVIEW,
                "slow",
                [("d", node.pubkey), ("node", node.pubkey), ("t", "avoid")],
                now,
            ),
            friend.sign(
                KIND_RECOMMENDATION,
                "",
                [("d", "legacy"), ("k", "38421"), ("a", f"38421:{node.pubkey}:legacy")],
                now,
            ),
        ):
            assert (await pool.publish(event))[relay.url].ok
        found = await known(directory, node, lambda p: len(p.reviews) == 2)
    assert {(r.reviewer, r.label) for r in found.reviews} == {
        (critic.pubkey, "avoid"),
        (friend.pubkey, "recommended"),
    }


async def test_a_list_of_models_is_bounded() -> None:
    keys = Keys.generate()

    async def huge(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(10_000):
                await response.write(b"[" * 65_536)
        return response

    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    async def text(body: str, status: int = 200) -> web.StreamResponse:
        return web.Response(text=body, status=status)

    many = {"data": [{"id": f"m{n}"} for n in range(5_000)]}
    async with Prober(NetGuard(allow_private=True), timeout_s=1.0) as prober:
        for models in (
            huge,
            slow,
            lambda _: text("[" * 100_000),
            lambda _: text("{}", 500),
            lambda _: text("not JSON"),
        ):
            async with server(keys, models, []) as url:
                assert await prober.models(url) is None
        async with server(keys, many, []) as url:
            assert len(await prober.models(url) or ()) == 2_000
    async with Prober(NetGuard()) as prober:
        assert await prober.models("http://127.0.0.1:9") is None


async def test_who_has_no_url_is_asked_over_relays() -> None:
    asked: list[str] = []

    async def relayed(announcement: Announcement) -> ProbeResult:
        asked.append(announcement.d)
        return ProbeResult(True, True, 5)

    keys = Keys.generate()
    said = Announcement(
        pubkey=keys.pubkey,
        d="relays",
        relays=("wss://relay.example",),
        http=("80", "81"),
        created_at=1,
    )
    build_provider_event(keys, said)
    async with Prober(NetGuard()) as prober:
        probe = choose_probe(prober, relayed)
        assert (await probe(said)).verified
        onion = Announcement(pubkey=keys.pubkey, d="onion", urls=("http://x.onion",))
        assert not (await probe(onion)).verified
    assert asked == ["relays"]
