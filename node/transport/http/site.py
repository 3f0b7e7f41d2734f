"""The node's web pages: files of the package, read once, under paths that are known beforehand.

What is asked for is looked up among those paths; no path of a request ever reaches the disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from importlib import resources
from importlib.resources.abc import Traversable

from aiohttp import web

from node.errors import MethodNotAllowed
from node.transport.http.encode import common_headers

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none';"
    " form-action 'self'"
)
"""Nothing from outside and nothing inline, neither script nor style."""
PAGE_HEADERS: Mapping[str, str] = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "permissions-policy": (
        "accelerometer=(), camera=(), geolocation=(), gyroscope=(), magnetometer=(),"
        " microphone=(), payment=(), usb=()"
    ),
    "cross-origin-resource-policy": "same-origin",
    # what a browser has is asked for by its ETag: pages and scripts are never of two versions
    "cache-control": "no-cache",
}
CONTENT_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""By suffix. Files of any other are not served."""
_METHODS = ("GET", "HEAD")
_INDEX = "index.html"
_PAGES: Mapping[str, str] = {"/": "home", "/providers": "providers", "/docs": "docs"}
"""Where the page of a folder is; its other files are below ``/static/<folder>/``."""
_ADMIN = "/admin"
_TAG = re.compile(r'(?:W/)?("[^"]*")|\*')


@dataclass(frozen=True, slots=True)
class Asset:
    """One file as it is served."""

    body: bytes
    content_type: str
    etag: str
    """Strong, in its quotes."""

    @classmethod
    def of(cls, body: bytes, content_type: str) -> Asset:
        """With the tag of this body."""
        return cls(body, content_type, f'"{blake2b(body, digest_size=12).hexdigest()}"')


class Site:
    """What is served, in memory.

    Args:
        pages: ``/``, ``/providers`` and ``/docs``.
        admin: ``/admin`` and what is below ``/admin/static/``. Whatever pages there are come with
            the files they share, below ``/static/``.
        root: the folder ``web``; the package's own by default.

    Raises OSError when the package is not whole.
    """

    def __init__(
        self, *, pages: bool = True, admin: bool = False, root: Traversable | None = None
    ) -> None:
        if root is None:
            root = resources.files("node") / "web"
        assets: dict[str, Asset] = {}
        if pages:
            for path, folder in _PAGES.items():
                _add(assets, root / folder, path, f"/static/{folder}/")
        if admin:
            _add(assets, root / "admin", _ADMIN, f"{_ADMIN}/static/")
        if assets:
            _add(assets, root / "shared", "", "/static/")
            assets["/favicon.ico"] = assets["/static/icon.svg"]
        self._assets = assets

    @property
    def paths(self) -> frozenset[str]:
        """All that is served."""
        return frozenset(self._assets)

    def handle(self, http_request: web.BaseRequest, id_: str) -> web.StreamResponse | None:
        """The answer; None when the path is none of the site's.

        Raises MethodNotAllowed for anything but GET and HEAD.
        """
        path = http_request.path
        asset = self._assets.get(path)
        moved = None
        if asset is None and path.endswith("/"):
            moved = path[:-1]
            asset = self._assets.get(moved)
        if asset is None:
            return None
        if http_request.method not in _METHODS:
            raise MethodNotAllowed(allow=_METHODS)
        headers = {**common_headers(id_), **PAGE_HEADERS}
        if moved is not None:
            return web.Response(status=308, headers=headers | {"location": moved})
        headers["etag"] = asset.etag
        if _has(http_request.headers.getall("If-None-Match", ()), asset.etag):
            return web.Response(status=304, headers=headers)
        headers["content-type"] = asset.content_type
        return web.Response(body=asset.body, headers=headers)


def _add(assets: dict[str, Asset], folder: Traversable, page: str, prefix: str) -> None:
    """The files of a folder: its index as ``page``, the others below ``prefix``."""
    for name, file in _files(folder):
        content_type = CONTENT_TYPES.get(name[name.rfind(".") :])
        if content_type is not None:
            path = page if name == _INDEX else prefix + name
            assets[path] = Asset.of(file.read_bytes(), content_type)


def _files(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    """All files below, by their path relative to the folder."""
    for entry in folder.iterdir():
        name = prefix + entry.name
        if entry.is_dir():
            yield from _files(entry, f"{name}/")
        else:
            yield name, entry


def _has(if_none_match: tuple[str, ...] | list[str], etag: str) -> bool:
    """Whether one of the headers names this version (RFC 9110, compared weakly)."""
    return any(
        found.group() == "*" or found.group(1) == etag
        for header in if_none_match
        for found in _TAG.finditer(header)
    )
