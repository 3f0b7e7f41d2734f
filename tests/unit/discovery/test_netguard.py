"""No URL that a stranger names, however it is spelled, leads inside; the check holds at the very
moment of connecting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from discovery.errors import ForbiddenAddress
from discovery.netguard import NetGuard, is_public

PUBLIC = "93.184.216.34"


async def resolve_public(host: str) -> Sequence[str]:
    return [PUBLIC]


FORBIDDEN_URLS = [
    "http://127.0.0.1/",
    "http://127.1/",
    "http://127.000.000.001/",
    "http://0177.0.0.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://127.0.0.0x1/",
    "http://017700000001/",
    "http://0/",
    "http://0.0.0.0/",
    "http://10.1.2.3/",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://169.254.169.254/latest/meta-data",
    "http://192.0.0.192/",
    "http://192.88.99.1/",
    "http://198.18.0.1/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://[::]/",
    "http://[::1]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::127.0.0.1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[64:ff9b::127.0.0.1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[64:ff9b:1::7f00:1]/",
    "http://[2002:7f00:1::]/",
    "http://[2001:0:7f00:1::]/",
    "http://[2001:db8::1]/",
    "http://[2606:4700::5efe:10.0.0.1]/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fec0::1]/",
    "http://[fd00::1]/",
    "http://[ff02::1]/",
    "http://[::1/",
    "http://localhost/",
    "http://LOCALHOST/",
    "http://localhost./",
    "http://127.0.0.1./",
    "http://example.com./",
    "http://a.localhost/",
    "http://metadata.google.internal/",
    "http://printer.local/",
    "http://abcdef.onion/",
    "http://user@example.com/",
    "http://user:pw@example.com/",
    "http://example.com@127.0.0.1/",
    "http://127.0.0.1\\@example.com/",
    "http://example.com\\.evil/",
    "http://exa mple.com/",
    "http://example.com/\n",
    "http://exam\tple.com/",
    "http://example.com:0/",
    "http://example.com:99999/",
    "http://example.com:/",
    "http://ex%61mple.com/",
    "http://127。0。0。1/",
    "http://①②⑦.⓪.⓪.①/",
    "http://-a.example/",
    "http://a..example/",
    "http://" + "a" * 64 + ".example/",
    "http:///path",
    "http://",
    "//example.com/",
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://example.com/",
    "ws://example.com/",
    "example.com",
    "",
    "http://example.com/" + "a" * 3_000,
]


@pytest.mark.parametrize("url", FORBIDDEN_URLS)
async def test_forbidden(url: str) -> None:
    with pytest.raises(ForbiddenAddress):
        await NetGuard(resolve=resolve_public).check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "https://api.example.com:8443/v1?x=1",
        "https://xn--bcher-kva.example/",
        f"http://{PUBLIC}/",
        "http://[2606:4700::1111]/",
        "http://[64:ff9b::93.184.216.34]/",
    ],
)
async def test_allowed(url: str) -> None:
    assert await NetGuard(resolve=resolve_public).check_url(url)


async def test_relay_urls_have_the_same_guard() -> None:
    guard = NetGuard(resolve=resolve_public)
    assert await guard.check_relay_url("wss://relay.example/") == [PUBLIC]
    for url in ("https://relay.example", "ws://127.0.0.1:80", "ws://[::1]"):
        with pytest.raises(ForbiddenAddress):
            await guard.check_relay_url(url)


async def test_one_forbidden_address_among_many_is_enough() -> None:
    async def mixed(host: str) -> Sequence[str]:
        return [PUBLIC, "10.0.0.1"]

    with pytest.raises(ForbiddenAddress):
        await NetGuard(resolve=mixed).check_url("http://mixed.example")


@pytest.mark.parametrize("answer", [[], ["not an address"], [""]])
async def test_odd_resolver_answers(answer: list[str]) -> None:
    async def odd(host: str) -> Sequence[str]:
        return answer

    with pytest.raises(ForbiddenAddress):
        await NetGuard(resolve=odd).check_url("http://odd.example")


async def test_a_name_that_does_not_resolve_is_refused_in_time() -> None:
    async def missing(host: str) -> Sequence[str]:
        raise OSError("no such name")

    async def never(host: str) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(ForbiddenAddress, match="does not resolve"):
        await NetGuard(resolve=missing).check_url("http://missing.example")
    with pytest.raises(ForbiddenAddress, match="in time"):
        await NetGuard(resolve=never, resolve_timeout_s=0.01).check_url("http://slow.example")


async def test_private_networks_only_when_allowed_and_metadata_never() -> None:
    guard = NetGuard(allow_private=True)
    for url in ("http://127.0.0.1:1/", "http://[::1]/", "http://10.0.0.1/", "http://[fd00::1]/"):
        assert await guard.check_url(url)
    assert "127.0.0.1" in await guard.check_url("http://localhost:1/")
    for url in (
        "http://169.254.169.254/",
        "http://0.0.0.0/",
        "http://2130706433/",
        "http://a@[::1]",
    ):
        with pytest.raises(ForbiddenAddress):
            await guard.check_url(url)
    guard.close()


@given(st.ip_addresses(v=4))
def test_wrapped_addresses_are_judged_by_what_they_wrap(inner: object) -> None:
    for wrapped in (f"::ffff:{inner}", f"64:ff9b::{inner}"):
        assert is_public(ip_address(wrapped)) == is_public(ip_address(str(inner)))
    assert not is_public(ip_address(f"::{inner}"))


@given(st.ip_addresses())
def test_nothing_that_python_calls_private_is_public(ip: IPv4Address | IPv6Address) -> None:
    if is_public(ip) and ip not in ip_network("64:ff9b::/96"):
        assert ip.is_global
        assert not ip.is_multicast


@given(st.text(max_size=60))
def test_any_text_is_judged_without_surprise(text: str) -> None:
    async def judge() -> None:
        for url in (text, f"http://{text}", f"http://{text}/"):
            try:
                await NetGuard(resolve=resolve_public).check_url(url)
            except ForbiddenAddress:
                continue

    asyncio.run(judge())


@pytest.fixture
async def inside() -> AsyncIterator[TestServer]:
    """A server on loopback that must not be reached."""
    app = web.Application()

    async def secret(_: web.Request) -> web.Response:
        return web.json_response({"secret": True})

    app.router.add_get("/", secret)
    server = TestServer(app)
    await server.start_server()
    yield server
    await server.close()


async def test_the_connector_refuses_literals_and_names(inside: TestServer) -> None:
    async def lies(host: str) -> Sequence[str]:
        return ["127.0.0.1"]

    guard = NetGuard(resolve=lies)
    async with aiohttp.ClientSession(connector=guard.connector()) as session:
        for host in ("127.0.0.1", "2130706433", "evil.example", "[::ffff:127.0.0.1]", "localhost"):
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"http://{host}:{inside.port}/")
    connector = NetGuard(allow_private=True).connector()
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"http://127.0.0.1:{inside.port}/") as response,
    ):
        assert response.status == 200


async def test_a_name_that_turns_after_the_check_is_refused(inside: TestServer) -> None:
    answers = [[PUBLIC], ["127.0.0.1"]]

    async def rebinding(host: str) -> Sequence[str]:
        return answers.pop(0)

    guard = NetGuard(resolve=rebinding)
    url = f"http://rebind.example:{inside.port}/"
    assert await guard.check_url(url) == [PUBLIC]
    async with aiohttp.ClientSession(connector=guard.connector()) as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(url)
    assert answers == []
