"""Which address a request comes from: limits count against it.

Without trusted proxies it is the address of the connection, whatever headers say. Behind trusted
ones it is the last address in ``X-Forwarded-For`` that none of them has: those before it are what
the client says of itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import TypeAlias

import structlog
from aiohttp import web
from multidict import istr

log = structlog.get_logger()

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
_FORWARDED = istr("X-Forwarded-For")
MAX_HOPS = 20
"""Addresses of the header that are looked at, from its end."""


class PeerFinder:
    """Finds the client's address.

    Args:
        trusted: networks of the proxies that are believed.
    """

    def __init__(self, trusted: Iterable[Network] = ()) -> None:
        self._trusted = tuple(trusted)
        self._warned = False

    def address(self, request: web.BaseRequest) -> str:
        """The address, as text; empty when the connection has none."""
        direct = request.remote or ""
        if _FORWARDED not in request.headers:
            return direct
        forwarded = request.headers.getall(_FORWARDED)
        if not self._trusts(direct):
            self._warn(direct)
            return direct
        peer = direct
        for hop in reversed(",".join(forwarded).split(",")[-MAX_HOPS:]):
            address = _address(hop)
            if address is None:
                break
            peer = address
            if not self._trusts(address):
                break
        return peer

    def _trusts(self, address: str) -> bool:
        if not self._trusted or not address:
            return False
        parsed = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
            parsed = parsed.ipv4_mapped
        return any(parsed in network for network in self._trusted)

    def _warn(self, direct: str) -> None:
        """Once: behind a proxy that is not trusted all clients share one limit."""
        if self._warned or not _is_private(direct):
            return
        self._warned = True
        log.warning(
            "proxy_not_trusted",
            address=direct,
            advice="list it in http.trusted_proxies, or all its clients share one limit",
        )


def _address(hop: str) -> str | None:
    text = hop.strip().strip('"')
    if text.startswith("["):  # [2001:db8::1]:443
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:  # 192.0.2.1:443
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def _is_private(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_private
    except ValueError:
        return False
