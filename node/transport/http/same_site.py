"""Which pages may ask what only a page of this node may: by Host, Origin and Sec-Fetch-Site."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from aiohttp import web

from node.errors import ForbiddenOrigin

SAFE = ("GET", "HEAD")
"""Methods that change nothing."""


class SameSite:
    """Lets in requests of this node's own pages, and reading ones that are of no page.

    Args:
        origins: gives the base URLs under which the node is known; a browser on one of them is a
            page of ours, and their hosts are names of ours. So are localhost and every address.
    """

    def __init__(self, origins: Callable[[], Iterable[str]]) -> None:
        self._own = origins

    @property
    def _origins(self) -> set[str]:
        return set(filter(None, map(_authority, self._own())))

    def check(self, request: web.BaseRequest) -> None:
        """Raises ForbiddenOrigin unless the request is of a page of ours, or of no page."""
        host = _authority("//" + request.headers.get("Host", ""))
        if host is None or not self._is_ours(host):
            raise ForbiddenOrigin(
                "this is not a name of this node: use an address, or list it in http.public_urls"
                " or admin.hosts",
                param="host",
            )
        site = request.headers.get("Sec-Fetch-Site")
        origin = request.headers.get("Origin")
        if request.method in SAFE:
            if site not in (None, "same-origin", "none"):
                raise ForbiddenOrigin("pages of other sites may not ask this", param="origin")
            return
        if site not in (None, "same-origin"):
            raise ForbiddenOrigin("pages of other sites may not ask this", param="origin")
        if origin is not None:
            theirs = _authority(origin)
            if theirs is None or (theirs != host and theirs not in self._origins):
                raise ForbiddenOrigin("pages of other sites may not ask this", param="origin")
        elif site is None:
            raise ForbiddenOrigin(
                "a request that changes something needs the header Origin", param="origin"
            )

    def _is_ours(self, host: str) -> bool:
        name = host.rpartition(":")[0].strip("[]")
        if name == "localhost" or any(name == o.rpartition(":")[0] for o in self._origins):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _authority(origin: str) -> str | None:
    """``host:port`` of an origin, lower case, with the port of its scheme; 0 without either."""
    try:
        parts = urlsplit(origin)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not host:
        return None
    if port in (None, 80, 443):  # a proxy may have taken TLS off: which of them cannot be told
        port = 0
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
