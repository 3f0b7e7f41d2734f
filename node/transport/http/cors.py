"""Leave for web pages of any origin to use ``/v1`` (CORS, Fetch standard).

Nothing here goes by cookies, so a page can do no more than its own keys and tokens let it. What
is not under ``/v1`` stays closed to pages.
"""

from __future__ import annotations

from aiohttp import web

from node.transport.http.encode import common_headers

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


def is_open(request: web.BaseRequest) -> bool:
    """Whether pages of other origins may make this request."""
    return request.path.startswith("/v1/")


def preflight(request_id: str) -> web.Response:
    """The answer to OPTIONS on an open path."""
    return web.Response(
        status=204,
        headers={
            **common_headers(request_id),
            "access-control-allow-methods": ALLOW_METHODS,
            "access-control-allow-headers": ALLOW_HEADERS,
            "access-control-max-age": str(MAX_AGE_S),
        },
    )


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Signal handler for ``on_response_prepare``: every answer of an open path may be read."""
    if is_open(request):
        response.headers["access-control-allow-origin"] = "*"
        response.headers["access-control-expose-headers"] = EXPOSE_HEADERS
