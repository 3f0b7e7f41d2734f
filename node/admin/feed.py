"""The last requests, and those that come: what the dispatcher tells of each that has ended.

A request costs one ``append``; documents are made for whoever looks. Nothing of what was asked or
answered is in it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, NamedTuple

from node.admin.exchange import AdminRequest, AdminRoute
from node.admin.query import limit_of
from node.admin.ring import Ring
from node.core.exchange import Receipt

MAX_REQUESTS = 500
"""Requests remembered."""


class Served(NamedTuple):
    """A request that has ended."""

    request_id: str
    at: float
    """Unix seconds of its end."""
    endpoint: str
    model: str
    carriage: str
    status: int
    """0: the client left before there was one."""
    code: str
    cost_msat: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    duration_s: float
    first_byte_s: float | None


class Feed:
    """Remembers requests. Implements ``node.service.dispatch.Observer``.

    Args:
        clock: unix seconds.
    """

    def __init__(self, size: int = MAX_REQUESTS, *, clock: Callable[[], float] = time.time) -> None:
        self.ring: Ring[Served] = Ring(size)
        self._clock = clock

    def served(
        self,
        endpoint: str,
        carriage: str,
        status: int,
        code: str,
        receipt: Receipt,
        duration_s: float,
        first_byte_s: float | None,
        request_id: str = "",
        model: str = "",
    ) -> None:
        """A request has ended; arguments as for ``Observer.served``."""
        usage = receipt.usage
        self.ring.add(
            Served(
                request_id,
                self._clock(),
                endpoint,
                model,
                carriage,
                status,
                code,
                receipt.cost,
                usage.prompt_tokens if usage else None,
                usage.completion_tokens if usage else None,
                duration_s,
                first_byte_s,
            )
        )


def document(item: Served) -> dict[str, Any]:
    """A FeedItem."""
    first_byte_s = item.first_byte_s
    return {
        **item._asdict(),
        "at": round(item.at, 3),
        "model": item.model or None,
        "duration_s": round(item.duration_s, 4),
        "first_byte_s": None if first_byte_s is None else round(first_byte_s, 4),
    }


class FeedSection:
    """``/requests`` and ``/requests/stream``."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def routes(self) -> Iterable[AdminRoute]:
        yield AdminRoute("GET", "/requests", answer=self._recent)
        yield AdminRoute("GET", "/requests/stream", stream=self._stream)

    async def _recent(self, request: AdminRequest) -> dict[str, Any]:
        limit = limit_of(request, default=50, most=MAX_REQUESTS)
        return {"requests": [document(item) for item in self._feed.ring.last(limit)]}

    async def _stream(self, request: AdminRequest) -> AsyncIterator[dict[str, Any]]:
        del request
        async for item in self._feed.ring.follow():
            yield document(item)
