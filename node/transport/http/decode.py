"""One HTTP request into one ``core.exchange.Request``: checked, bounded, within a deadline."""

from __future__ import annotations

import asyncio
import re
import uuid

from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError
from aiohttp.web_protocol import RequestPayloadError

from node.core.exchange import Request
from node.errors import InvalidValue, RequestIncomplete, RequestTooLarge, UnsupportedMedia

HEADERS = frozenset(
    {"content-type", "accept", "authorization", "x-cashu", "x-cashu-change", "idempotency-key"}
)
"""The headers that mean something here. Nothing else goes further than this file."""
_ENCODINGS = frozenset({"", "identity", "gzip", "deflate"})
MAX_IDEMPOTENCY_KEY_CHARS = 255
_SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,100}")


def request_id(request: web.BaseRequest) -> str:
    """The client's ``X-Request-Id`` when it is at most 100 harmless characters, else a new one."""
    given = request.headers.get("X-Request-Id", "")
    return given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex


async def decode(
    request: web.BaseRequest, id_: str, *, max_body_bytes: int, body_timeout_s: float
) -> Request:
    """Read the whole request.

    Raises:
        InvalidValue, UnsupportedMedia: a header or the body's encoding.
        RequestTooLarge: the body, counted after decompression.
        RequestIncomplete: the body did not arrive within ``body_timeout_s``.
    """
    headers = _headers(request)
    path = request.path
    try:
        path.encode()
        query = dict(request.query)
        "".join([*query, *query.values()]).encode()
    except UnicodeEncodeError:
        raise InvalidValue("the request's path is not UTF-8") from None
    return Request(
        request_id=id_,
        method=request.method,
        path=path,
        headers=headers,
        body=await _body(request, max_body_bytes, body_timeout_s),
        query=query,
        carriage="http",
        peer=request.remote or "",
        idempotency_key=_idempotency_key(headers),
    )


def _headers(request: web.BaseRequest) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        name = name.lower()
        if name not in HEADERS:
            continue
        if name in headers and name != "accept":
            raise InvalidValue(f"the header {name} may be sent once only", param=name)
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


def check_body_headers(request: web.BaseRequest, max_body_bytes: int) -> None:
    """Refuse by the headers alone what must not be read. Raises RequestTooLarge and
    UnsupportedMedia."""
    if (request.content_length or 0) > max_body_bytes:
        raise RequestTooLarge(f"the body may have {max_body_bytes} bytes")
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        raise UnsupportedMedia("a body may be sent plain or as gzip or deflate")


async def _body(request: web.BaseRequest, max_body_bytes: int, timeout_s: float) -> bytes:
    check_body_headers(request, max_body_bytes)
    content = request.content
    if content.at_eof():
        return b""
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            while data := await content.readany():
                if len(body) + len(data) > max_body_bytes:
                    raise RequestTooLarge(f"the body may have {max_body_bytes} bytes")
                body += data
    except TimeoutError:
        raise RequestIncomplete("the body did not arrive in time") from None
    except (RequestPayloadError, ContentEncodingError, web.PayloadAccessError):
        raise InvalidValue("the body cannot be decoded") from None
    return bytes(body)
