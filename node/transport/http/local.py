"""Keeping an endpoint on this machine for the programs of this machine.

A web page in the same browser can send requests to loopback, also under a name of its own that it
makes resolve to 127.0.0.1. So the Host must be one that means this machine, an Origin must be one
that was allowed, and a key must be right where there is one.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection
from urllib.parse import urlsplit

from aiohttp import web

from node.errors import ForbiddenOrigin, InvalidApiKey, NodeError
from node.transport.http.decode import request_id
from node.transport.http.encode import error_response
from node.transport.http.server import App

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


def local_only(
    app: App, *, hosts: Collection[str] = (), origins: Collection[str] = (), key: str = ""
) -> App:
    """``app``, for whom it is meant.

    Args:
        hosts: names and addresses, without port, by which it may be called besides LOCAL_HOSTS.
        origins: of web pages that may ask; ``*`` stands for all.
        key: that must come as an API key; empty: none.
    """
    names = {host.lower() for host in (*LOCAL_HOSTS, *hosts)}

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        try:
            _check(request, names, origins, key)
        except NodeError as error:
            return error_response(error, request_id(request))
        return await app(request)

    return handle


def _check(
    request: web.BaseRequest, names: Collection[str], origins: Collection[str], key: str
) -> None:
    if _host_name(request.headers.get("Host", "")) not in names:
        raise ForbiddenOrigin("this endpoint is for programs of its own machine")
    origin = request.headers.get("Origin")
    if origin is not None and "*" not in origins and origin not in origins:
        raise ForbiddenOrigin("web pages of that origin may not use this endpoint")
    if key and request.method != "OPTIONS" and not request.path.startswith("/health/"):
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = request.headers.get("X-API-Key", "")
        # bytes that are no UTF-8 come as surrogates
        sent = given.strip().encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(sent, key.encode()):
            raise InvalidApiKey("this gateway wants the key it was started with")


def _host_name(host: str) -> str:
    """A Host header without its port; empty when it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
