"""The body of a request: awaited, inflated and counted, so that nobody fills the memory.

A compressed body is inflated when all of it has arrived: who withholds its last byte holds no
more than was sent.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from node.errors import (
    InvalidValue,
    RateLimitExceeded,
    RequestIncomplete,
    RequestTooLarge,
    UnsupportedMedia,
)

MAX_BODY_BYTES = 32 << 20
"""Room for a few photographs in base64."""
MAX_ANONYMOUS_BODY_BYTES = 256 << 10
"""Without credentials. The largest such request opens an account: a token of 100,000 bytes."""
MAX_BUFFERED_BYTES = 256 << 20
"""Of all requests together."""
BODY_TIMEOUT_S = 60.0
BUSY_RETRY_S = 5
"""When to ask again where there was no room for the body."""

_CREDENTIALS = ("authorization", "x-cashu")
_PLAIN = frozenset({"", "identity"})
_COMPRESSED = frozenset({"gzip", "deflate"})
_INFLATE_IN_BYTES = 64 << 10
_INFLATE_OUT_BYTES = 1 << 20
"""What is inflated at once; other requests have their turn in between."""


class BodyBudget:
    """The bytes of request bodies that may be in memory, of all requests together."""

    def __init__(self, max_bytes: int = MAX_BUFFERED_BYTES) -> None:
        self._max_bytes = max_bytes
        self.used_bytes = 0

    @contextmanager
    def share(self) -> Iterator[BudgetShare]:
        """What one request takes; given back at the end."""
        share = BudgetShare(self)
        try:
            yield share
        finally:
            share.give(share.taken_bytes)

    def has_room(self, size_bytes: int) -> bool:
        return self.used_bytes + size_bytes <= self._max_bytes


class BudgetShare:
    """One request's part of a BodyBudget."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.taken_bytes = 0

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
            request.headers.get(name) for name in _CREDENTIALS
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
        encoding = ",".join(request.headers.getall("Content-Encoding", ())).strip().lower()
        if encoding not in _PLAIN | _COMPRESSED:
            raise UnsupportedMedia("a body may be sent plain or as gzip or deflate")
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
    body = bytearray()
    try:
        async with asyncio.timeout(limits.timeout_s):
            while data := await content.readany():
                limits.check_size(request, len(body) + len(data))
                share.take(len(data))
                body += data
    except TimeoutError:
        raise RequestIncomplete("the body did not arrive in time") from None
    except (RequestPayloadError, web.PayloadAccessError):
        raise InvalidValue("the body cannot be decoded") from None
    if encoding in _PLAIN or not body:
        return bytes(body)
    inflated = await _inflate(request, body, encoding, limits, share)
    share.give(len(body))
    return inflated


async def _inflate(
    request: web.BaseRequest,
    body: bytearray,
    encoding: str,
    limits: BodyLimits,
    share: BudgetShare,
) -> bytes:
    """One whole gzip or deflate stream (RFC 1952, 1950, 1951), its checksum verified."""
    stream = zlib.decompressobj(_window_bits(encoding, body[0]))
    inflated = bytearray()
    with memoryview(body) as view:
        for start in range(0, len(body), _INFLATE_IN_BYTES):
            data: bytes | memoryview = view[start : start + _INFLATE_IN_BYTES]
            more = True
            while more:
                try:
                    piece = stream.decompress(data, _INFLATE_OUT_BYTES)
                except zlib.error:
                    raise InvalidValue("the body cannot be decompressed") from None
                limits.check_size(request, len(inflated) + len(piece))
                share.take(len(piece))
                inflated += piece
                data = stream.unconsumed_tail
                more = not stream.eof and (bool(data) or len(piece) == _INFLATE_OUT_BYTES)
                if len(piece) == _INFLATE_OUT_BYTES:
                    await asyncio.sleep(0)
            if stream.eof and (stream.unused_data or start + _INFLATE_IN_BYTES < len(body)):
                raise InvalidValue("something follows the compressed body")
    if not stream.eof:
        raise InvalidValue("the compressed body is not whole")
    return bytes(inflated)


def _window_bits(encoding: str, first_byte: int) -> int:
    if encoding == "gzip":
        return 16 + zlib.MAX_WBITS
    # some clients leave the header of RFC 1950 out
    return zlib.MAX_WBITS if first_byte & 0x0F == 8 else -zlib.MAX_WBITS
