"""The body of a request: awaited, inflated and counted, so that nobody fills the memory.

A compressed body is inflated when all of it has arrived: who withholds its last byte holds no
more than was sent.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError
from multidict import istr

from node.core.exchange import CREDENTIALS
from node.errors import (
    InvalidValue,
    RateLimitExceeded,
    RequestIncomplete,
    RequestTooLarge,
    UnsupportedMedia,
)
from node.transport.http.inflate import ENCODINGS, inflater

MAX_BODY_BYTES = 32 << 20
"""Room for a few photographs in base64."""
MAX_ANONYMOUS_BODY_BYTES = 256 << 10
"""Without credentials. The largest such request opens an account: a token of 100,000 bytes."""
MAX_BUFFERED_BYTES = 256 << 20
"""Of all requests together."""
BODY_TIMEOUT_S = 60.0
BUSY_RETRY_S = 5
"""When to ask again where there was no room for the body."""

_CONTENT_ENCODING = istr("Content-Encoding")
_PLAIN = frozenset({"", "identity"})
_INFLATE_IN_BYTES = 64 << 10
"""What is inflated at once; other requests have their turn in between."""


class BodyBudget:
    """The bytes of request bodies that may be in memory, of all requests together."""

    def __init__(self, max_bytes: int = MAX_BUFFERED_BYTES) -> None:
        self._max_bytes = max_bytes
        self.used_bytes = 0

    def share(self) -> BudgetShare:
        """What one request takes; ``with`` gives it back at the end."""
        return BudgetShare(self)

    def has_room(self, size_bytes: int) -> bool:
        return self.used_bytes + size_bytes <= self._max_bytes


class BudgetShare:
    """One request's part of a BodyBudget."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.taken_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.give(self.taken_bytes)

    def take(self, size_bytes: int) -> None:
        """Raises RateLimitExceeded when the others leave no room."""
        if not self._budget.has_room(size_bytes):
            raise RateLimitExceeded(
                "the node has too many large requests at once", retry_after_s=BUSY_RETRY_S
            )
        self._budget.used_bytes += size_bytes
        self.taken_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        self._budget.used_bytes -= size_bytes
        self.taken_bytes -= size_bytes


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Bounds of one body; sizes count after decompression."""

    max_bytes: int = MAX_BODY_BYTES
    max_anonymous_bytes: int = MAX_ANONYMOUS_BODY_BYTES
    """Of a request without ``Authorization`` and ``X-Cashu``."""
    timeout_s: float = BODY_TIMEOUT_S

    def check_size(self, request: web.BaseRequest, size_bytes: int) -> None:
        """Raises RequestTooLarge."""
        if size_bytes > self.max_bytes:
            raise RequestTooLarge(f"the body may have {self.max_bytes} bytes")
        if size_bytes > self.max_anonymous_bytes and not any(
            request.headers.get(name) for name in CREDENTIALS
        ):
            raise RequestTooLarge(
                f"without Authorization or X-Cashu the body may have {self.max_anonymous_bytes}"
                " bytes"
            )

    def check_headers(self, request: web.BaseRequest) -> str:
        """Refuse by the headers alone what must not be read; gives the encoding of the body.

        Raises RequestTooLarge and UnsupportedMedia.
        """
        self.check_size(request, request.content_length or 0)
        if _CONTENT_ENCODING not in request.headers:
            return ""
        encoding = ",".join(request.headers.getall(_CONTENT_ENCODING)).strip().lower()
        if encoding not in _PLAIN | ENCODINGS:
            raise UnsupportedMedia("a body may be sent plain or as gzip, deflate, br or zstd")
        return encoding


async def read_body(request: web.BaseRequest, limits: BodyLimits, share: BudgetShare) -> bytes:
    """Read the body to its end.

    Raises:
        RequestTooLarge, UnsupportedMedia, RateLimitExceeded.
        RequestIncomplete: it did not arrive within the limits' time.
        InvalidValue: it cannot be decoded, or its compressed form is not whole.
    """
    encoding = limits.check_headers(request)
    content = request.content
    if content.at_eof():
        return b""
    try:
        if content.is_eof():  # all of it came together with the headers, as most do
            body = content.read_nowait()
            limits.check_size(request, len(body))
            share.take(len(body))
        else:
            body = await _arriving(request, limits, share)
    except TimeoutError:
        raise RequestIncomplete("the body did not arrive in time") from None
    except (RequestPayloadError, web.PayloadAccessError):
        raise InvalidValue("the body cannot be decoded") from None
    if encoding in _PLAIN or not body:
        return body
    inflated = await _inflate(request, body, encoding, limits, share)
    share.give(len(body))
    return inflated


async def _arriving(request: web.BaseRequest, limits: BodyLimits, share: BudgetShare) -> bytes:
    body = bytearray()
    async with asyncio.timeout(limits.timeout_s):
        while data := await request.content.readany():
            limits.check_size(request, len(body) + len(data))
            share.take(len(data))
            body += data
    return bytes(body)


async def _inflate(
    request: web.BaseRequest,
    body: bytes,
    encoding: str,
    limits: BodyLimits,
    share: BudgetShare,
) -> bytes:
    """The one whole stream that ``body`` is."""
    stream = inflater(encoding, body[0])
    inflated = bytearray()
    for start in range(0, len(body), _INFLATE_IN_BYTES):
        data = bytes(body[start : start + _INFLATE_IN_BYTES])
        if stream.ended:
            raise InvalidValue("something follows the compressed body")
        while True:
            piece = stream.feed(data)
            limits.check_size(request, len(inflated) + len(piece))
            share.take(len(piece))
            inflated += piece
            if stream.hungry:
                break
            data = b""
            await asyncio.sleep(0)
    if stream.excess:
        raise InvalidValue("something follows the compressed body")
    if not stream.ended:
        raise InvalidValue("the compressed body is not whole")
    return bytes(inflated)
