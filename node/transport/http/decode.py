"""One HTTP request into one ``core.exchange.Request``: checked, bounded, within a deadline."""

from __future__ import annotations

import random
import re

from aiohttp import web
from multidict import istr

from node.core.exchange import REQUEST_HEADERS, Request
from node.errors import InvalidValue
from node.transport.http.body import BodyLimits, BudgetShare, read_body

MAX_IDEMPOTENCY_KEY_CHARS = 255
_NAMES = tuple((name, istr(name)) for name in sorted(REQUEST_HEADERS))
"""With the form in which they are found without being folded again."""
_REQUEST_ID = istr("X-Request-Id")
_SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,100}")


def request_id(request: web.BaseRequest) -> str:
    """The client's ``X-Request-Id`` when it is at most 100 harmless characters, else a new one."""
    given = request.headers.get(_REQUEST_ID)
    if given is not None and _SAFE_ID.fullmatch(given):
        return given
    # It opens nothing, so it need not be hard to guess: uuid4 asks the kernel, 5 µs more.
    return f"{random.getrandbits(128):032x}"


async def decode(
    request: web.BaseRequest, id_: str, limits: BodyLimits, share: BudgetShare, peer: str
) -> Request:
    """Read the whole request of ``peer``; ``share`` must last as long as its body is needed.

    Raises InvalidValue for a header or the path, and what ``read_body`` raises.
    """
    headers = _headers(request)
    path = request.path
    query: dict[str, str] = {}
    try:
        path.encode()
        if request.query_string:
            query = dict(request.query)
            "".join([*query, *query.values()]).encode()
    except UnicodeEncodeError:
        raise InvalidValue("the request's path is not UTF-8") from None
    return Request(
        request_id=id_,
        method=request.method,
        path=path,
        headers=headers,
        body=await read_body(request, limits, share),
        query=query,
        carriage="http",
        peer=peer,
        idempotency_key=_idempotency_key(headers),
    )


def _headers(request: web.BaseRequest) -> dict[str, str]:
    headers: dict[str, str] = {}
    given = request.headers
    for name, key in _NAMES:
        if key not in given:
            continue
        values = given.getall(key)
        if len(values) > 1 and name != "accept":
            raise InvalidValue(f"the header {name} may be sent once only", param=name)
        value = values[-1]
        if not value.isascii():
            raise InvalidValue(f"the header {name} must be ASCII", param=name)
        headers[name] = value
    return headers


def _idempotency_key(headers: dict[str, str]) -> str | None:
    key = headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY_CHARS:
        raise InvalidValue(
            f"an idempotency key has 1 to {MAX_IDEMPOTENCY_KEY_CHARS} characters",
            param="idempotency-key",
        )
    return key
