"""A client's address is what the connection or a trusted proxy says, never what the client says."""

from __future__ import annotations

import ipaddress

import pytest
from aiohttp.test_utils import make_mocked_request

from node.transport.http.peer import PeerFinder

PROXY = "10.0.0.1"


def seen(remote: str, *forwarded: str, trusted: tuple[str, ...] = ("10.0.0.0/8",)) -> str:
    headers = [("X-Forwarded-For", value) for value in forwarded]
    request = make_mocked_request("GET", "/", headers=dict(headers)).clone(remote=remote)
    finder = PeerFinder([ipaddress.ip_network(network) for network in trusted])
    return finder.address(request)


@pytest.mark.parametrize(
    ("remote", "forwarded", "address"),
    [
        ("192.0.2.9", "198.51.100.7", "192.0.2.9"),  # nobody's proxy
        (PROXY, "198.51.100.7", "198.51.100.7"),
        (PROXY, "203.0.113.1, 198.51.100.7", "198.51.100.7"),  # the first is the client's word
        (PROXY, "198.51.100.7, 10.1.1.1", "198.51.100.7"),  # two of our proxies
        (PROXY, "10.9.9.9", "10.9.9.9"),
        (PROXY, "198.51.100.7, garbage", PROXY),
        (PROXY, "", PROXY),
        (PROXY, "198.51.100.7:4711", "198.51.100.7"),
        (PROXY, "[2001:db8::1]:443", "2001:db8::1"),
        (PROXY, "2001:db8::1", "2001:db8::1"),
        ("::ffff:10.0.0.1", "198.51.100.7", "198.51.100.7"),
    ],
)
def test_the_address(remote: str, forwarded: str, address: str) -> None:
    assert seen(remote, forwarded) == address


def test_no_proxy_is_trusted_unless_told() -> None:
    assert seen("127.0.0.1", "198.51.100.7", trusted=()) == "127.0.0.1"
    assert seen(PROXY, *[]) == PROXY
