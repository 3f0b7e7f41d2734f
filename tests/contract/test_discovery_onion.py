"""Onion services are asked through the operator's SOCKS5 proxy, names and all, and nothing else is;
without a proxy, or with one that is down, they are unknown and not offline."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from aiohttp import web

from discovery.aggregator import choose_probe
from discovery.announcement import Announcement
from discovery.netguard import NetGuard
from discovery.nostr.keys import Keys
from discovery.probe import Prober, ProbeResult
from tests.contract.test_discovery import node, probe, says
from tests.fakes.relays import free_port
from tests.fakes.socks import SocksServer, socks_server

ONION = "a" * 56 + ".onion"
OTHER = "b" * 56 + ".onion"


@contextlib.asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[Prober, SocksServer]]:
    """A prober on the public internet, with a proxy that leads ONION to ``url``."""
    port = urlsplit(url).port
    assert port is not None
    async with (
        socks_server({ONION: port}) as proxy,
        Prober(NetGuard(), socks_proxy=proxy.url) as prober,
    ):
        yield prober, proxy


async def test_an_onion_service_proves_its_key() -> None:
    keys = Keys.generate()
    async with node(says({"npub": keys.npub})) as url, proxied(url) as (prober, proxy):
        result = await probe(prober, keys, f"http://{ONION}")
        assert (result.verified, result.reachable) == (True, True)
        assert result.verified_urls == (f"http://{ONION}",)
        impostor = await probe(prober, Keys.generate(), f"http://{ONION}")
        assert (impostor.verified, impostor.reachable) == (False, True)
        gone = await probe(prober, keys, f"http://{OTHER}:8080")
        assert (gone.verified, gone.reachable) == (False, False)
        assert proxy.asked == [(ONION, 80), (OTHER, 8080)]


async def test_nothing_else_goes_through_the_proxy() -> None:
    keys = Keys.generate()
    async with node(says({"npub": keys.npub})) as url, proxied(url) as (prober, proxy):
        for url_ in (url, "http://localhost.onion", "http://127.0.0.1.onion", "http://abc.onion"):
            result = await probe(prober, keys, url_)
            assert (result.verified, result.reachable) == (False, False)
        assert proxy.asked == []


async def test_a_redirect_from_an_onion_service_is_not_followed() -> None:
    async def elsewhere(_: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(f"http://{OTHER}/v1/info")

    async with node(elsewhere) as url, proxied(url) as (prober, proxy):
        result = await probe(prober, Keys.generate(), f"http://{ONION}")
        assert "answers 302" in result.reason
        assert proxy.asked == [(ONION, 80)]


async def test_a_proxy_that_is_down_says_nothing_about_the_node() -> None:
    async with Prober(NetGuard(), socks_proxy=f"socks5://127.0.0.1:{free_port()}") as prober:
        result = await probe(prober, Keys.generate(), f"http://{ONION}")
        assert (result.verified, result.reachable) == (False, None)
        assert "proxy" in result.reason
        assert await prober.models(f"http://{ONION}") is None


async def test_without_a_proxy_a_node_with_relays_is_asked_there() -> None:
    keys = Keys.generate()
    said = Announcement(
        pubkey=keys.pubkey,
        d="d",
        urls=(f"http://{ONION}",),
        relays=("wss://relay.example",),
        http=("80",),
    )

    async def over_relays(_: Announcement) -> ProbeResult:
        return ProbeResult(True, True, 5)

    async with Prober(NetGuard()) as prober:
        assert (await choose_probe(prober, over_relays)(said)).verified
        assert (await prober.probe(said)).reachable is None
