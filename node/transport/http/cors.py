"""Leave for web pages of any origin to use ``/v1`` (CORS, Fetch standard).

Nothing here goes by cookies, so a page can do no more than its own keys and tokens let it. What
is not under ``/v1`` stays closed to pages.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

MAX_AGE_S = 86_400
"""How long a browser may remember the answer to a preflight; browsers cap it lower."""
ALLOW_METHODS = "GET, HEAD, POST, DELETE, OPTIONS"
ALLOW_HEADERS = (
    "authorization, content-type, x-cashu, x-cashu-change, idempotency-key, x-request-id,"
    " if-none-match, refund-lnurl, key-expiry-time, *"
)
"""``*`` is for what SDKs add of their own; it never covers ``authorization``."""
EXPOSE_HEADERS = (
    "x-cashu, x-cashu-dust-msats, x-routstr-cost-msats, x-routstr-request-id, x-request-id,"
    " retry-after, x-should-retry, etag, idempotent-replayed, x-ratelimit-limit-requests,"
    " x-ratelimit-remaining-requests, x-ratelimit-reset-requests, x-ratelimit-limit,"
    " x-ratelimit-remaining, x-ratelimit-reset"
)


_READABLE: Mapping[str, str] = {
    "access-control-allow-origin": "*",
    "access-control-expose-headers": EXPOSE_HEADERS,
}
_CLOSED: Mapping[str, str] = {}


def is_open(path: str) -> bool:
    """Whether pages of other origins may make requests there."""
    return path.startswith("/v1/")


def answer_headers(path: str) -> Mapping[str, str]:
    """What lets pages read an answer from there."""
    return _READABLE if is_open(path) else _CLOSED


def preflight(headers: Mapping[str, str]) -> web.Response:
    """The answer to OPTIONS on an open path, with ``headers`` as every answer there has them."""
    return web.Response(
        status=204,
        headers={
            **headers,
            "access-control-allow-methods": ALLOW_METHODS,
            "access-control-allow-headers": ALLOW_HEADERS,
            "access-control-max-age": str(MAX_AGE_S),
        },
    )
