"""The way to onion services: through the operator's SOCKS5 proxy (Tor); nothing else goes there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import aiohttp
from aiohttp_socks import ProxyConnectionError, ProxyConnector, ProxyError, ProxyTimeoutError

from discovery.errors import ForbiddenAddress, ProxyUnavailable

_SERVICE = re.compile(r"(?:[a-z0-9_-]{1,63}\.){0,4}[a-z2-7]{56}\.onion")


def onion_connector(proxy: str, *, limit: int = 16) -> aiohttp.BaseConnector:
    """Connects through ``proxy``, ``socks5://host:port``, which resolves the names."""
    return ProxyConnector.from_url(proxy, rdns=True, limit=limit)


def check_onion(url: str) -> None:
    """Raise ForbiddenAddress unless the host is an onion service: to no other the proxy is asked
    for, lest it lead to where the guard of addresses does not look."""
    if not _SERVICE.fullmatch(urlsplit(url).hostname or ""):
        raise ForbiddenAddress("not the address of an onion service")


@contextmanager
def proxy_errors() -> Iterator[None]:
    """The proxy library's exceptions as ours: ProxyUnavailable when the proxy itself is not there,
    OSError when the service is not, TimeoutError."""
    try:
        yield
    except ProxyConnectionError:
        raise ProxyUnavailable("the Tor proxy does not answer") from None
    except ProxyTimeoutError:
        raise TimeoutError from None
    except ProxyError:
        raise ConnectionError("the onion service cannot be reached") from None
