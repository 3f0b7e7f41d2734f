"""Which outbound URLs are allowed: the defence against being sent to someone's inside (SSRF).

Every URL a stranger named goes through :meth:`NetGuard.check_url`, and the connection itself is
made to the addresses this returns or by :meth:`NetGuard.connector` (aiohttp), which judges the
address that is really dialled: a name that resolves differently the second time gains nothing,
and neither do IP literals, which aiohttp dials without asking a resolver.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from discovery.errors import ForbiddenAddress

HTTP_SCHEMES = ("http", "https")
RELAY_SCHEMES = ("ws", "wss")
MAX_URL_CHARS = 2_048

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""Host name → IP addresses as text. Raises OSError."""

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.IGNORECASE)
# What a lenient parser takes for a number, and so for an IPv4 address: 2130706433, 0x7f.1, 127.1
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)
_URL_CHARS = re.compile(r"[\x21-\x7e]+")
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal", ".home.arpa", ".lan", ".intranet")

_IPv4 = ipaddress.IPv4Address
_IPv6 = ipaddress.IPv6Address

_FORBIDDEN_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",
        ),
    )
)
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_FORBIDDEN_V6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocol assignments, Teredo among them: it tunnels IPv4
            "2001:db8::/32",
            "2002::/16",  # 6to4: tunnels IPv4
            "3fff::/20",
        ),
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP_MARKS = (0x0000_5EFE, 0x0200_5EFE)

# What ``allow_private`` adds. Link-local stays shut: cloud metadata services live there.
_PRIVATE = tuple(
    map(
        ipaddress.ip_network,
        ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7"),
    )
)


def is_public(address: _IPv4 | _IPv6) -> bool:
    """Is this a unicast address of the public internet, also inside any wrapping it carries?"""
    if isinstance(address, _IPv4):
        return not any(address in network for network in _FORBIDDEN_V4)
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    embedded = _IPv4(int(address) & 0xFFFF_FFFF)
    if address in _NAT64:
        return is_public(embedded)
    if (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP_MARKS and not is_public(embedded):
        return False
    return address in _GLOBAL_V6 and not any(address in network for network in _FORBIDDEN_V6)


class NetGuard:
    """Judges outbound URLs and addresses.

    Args:
        allow_private: also let loopback and private networks through (demo, tests).
        resolve: host name → addresses; the system's resolver in own threads when omitted, so
            that slow names cannot starve the rest of the process.
        resolve_timeout_s: deadline for one look-up.
    """

    def __init__(
        self,
        *,
        allow_private: bool = False,
        resolve: Resolve | None = None,
        resolve_timeout_s: float = 5.0,
    ) -> None:
        self._allow_private = allow_private
        self._threads: ThreadPoolExecutor | None = None
        self._resolve = resolve or self._system_resolve
        self._resolve_timeout_s = resolve_timeout_s

    async def check_url(self, url: str, schemes: Sequence[str] = HTTP_SCHEMES) -> list[str]:
        """The addresses ``url`` leads to; connect to these and to no others.

        Raises ForbiddenAddress unless ``url`` is well-formed and all of them are allowed.
        """
        return await self.addresses(_host(url, schemes))

    async def check_relay_url(self, url: str) -> list[str]:
        """:meth:`check_url` for ``ws`` and ``wss``: the ``guard`` a relay pool takes."""
        return await self.check_url(url, RELAY_SCHEMES)

    async def addresses(self, host: str) -> list[str]:
        """The addresses of ``host``, a name or an IP literal; at least one.

        Raises ForbiddenAddress when the host is malformed, does not resolve in time, or when
        any of its addresses is forbidden.
        """
        literal = _literal(host)
        if literal is not None:
            found: Sequence[str] = [str(literal)]
        else:
            self._check_name(host)
            try:
                async with asyncio.timeout(self._resolve_timeout_s):
                    found = await self._resolve(host)
            except TimeoutError:
                raise ForbiddenAddress("the host name was not resolved in time") from None
            except (OSError, UnicodeError):
                raise ForbiddenAddress("the host name does not resolve") from None
        if not found:
            raise ForbiddenAddress("the host name has no address")
        for address in found:
            self.check_address(address)
        return list(dict.fromkeys(found))

    def check_address(self, address: str) -> None:
        """Raise ForbiddenAddress unless this IP address may be dialled."""
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            raise ForbiddenAddress("not an IP address") from None
        if isinstance(ip, _IPv6) and ip.scope_id is not None:
            raise ForbiddenAddress("an address with a zone is local")
        if is_public(ip):
            return
        plain = ip.ipv4_mapped or ip if isinstance(ip, _IPv6) else ip
        if not (self._allow_private and any(plain in network for network in _PRIVATE)):
            raise ForbiddenAddress("the address is not one of the public internet")

    def connector(self, *, limit: int = 100, limit_per_host: int = 0) -> aiohttp.TCPConnector:
        """An aiohttp connector that dials allowed addresses only. The caller closes it.

        A forbidden address appears as ``aiohttp.ClientConnectorError``. Redirects are the
        caller's to refuse (``allow_redirects=False``).
        """
        return aiohttp.TCPConnector(
            resolver=_GuardedResolver(self),
            socket_factory=self._socket,
            use_dns_cache=False,
            limit=limit,
            limit_per_host=limit_per_host,
        )

    def close(self) -> None:
        """Let the resolver threads go. Idempotent."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    def _check_name(self, host: str) -> None:
        name = host.lower()
        if len(name) > 253 or not _HOST_NAME.fullmatch(name):
            raise ForbiddenAddress("malformed host name")
        if name.endswith(".onion"):
            raise ForbiddenAddress("an onion service is reached through Tor only")
        local = name == "localhost" or name.endswith(_LOCAL_SUFFIXES)
        if local and not self._allow_private:
            raise ForbiddenAddress("the host name is a local one")

    def _socket(self, addr_info: tuple[Any, ...]) -> socket.socket:
        family, kind, proto, _, address = addr_info
        try:
            self.check_address(address[0])
        except ForbiddenAddress as error:
            raise OSError(str(error)) from None
        return socket.socket(family=family, type=kind, proto=proto)

    async def _system_resolve(self, host: str) -> Sequence[str]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(4, thread_name_prefix="netguard")
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        )
        return [str(info[4][0]) for info in found]


class _GuardedResolver(AbstractResolver):
    """aiohttp's way to ask the guard at the moment of connecting."""

    def __init__(self, guard: NetGuard) -> None:
        self._guard = guard

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        try:
            addresses = await self._guard.addresses(host)
        except ForbiddenAddress as error:
            raise OSError(str(error)) from None
        results = [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
        ]
        return [r for r in results if family in (socket.AF_UNSPEC, r["family"])]

    async def close(self) -> None:
        """The guard outlives its connectors."""


def _host(url: str, schemes: Sequence[str]) -> str:
    """The host of ``url``. Raises ForbiddenAddress for what two parsers could read differently."""
    if len(url) > MAX_URL_CHARS or not _URL_CHARS.fullmatch(url) or "\\" in url:
        raise ForbiddenAddress("malformed URL")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ForbiddenAddress("malformed URL") from None
    if parts.scheme not in schemes:
        raise ForbiddenAddress(f"the scheme must be one of {', '.join(schemes)}")
    if "@" in parts.netloc:
        raise ForbiddenAddress("credentials do not belong into a URL")
    if not host or port == 0 or parts.netloc.endswith(":"):
        raise ForbiddenAddress("malformed URL")
    return host


def _literal(host: str) -> _IPv4 | _IPv6 | None:
    """The IP address ``host`` is, None for a name. Raises ForbiddenAddress for odd spellings."""
    if ":" in host:
        try:
            return _IPv6(host)
        except ValueError:
            raise ForbiddenAddress("malformed address") from None
    if not _NUMERIC_LABEL.fullmatch(host.rstrip(".").rpartition(".")[2]):
        return None
    try:
        return _IPv4(host)
    except ValueError:
        raise ForbiddenAddress("an IPv4 address is written as four decimal numbers") from None
