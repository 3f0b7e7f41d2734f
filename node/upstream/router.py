"""Which upstream serves a call, and which one when that fails.

    a model's backends ─ by priority, then cheapest or by weight ─▶ circuit closed, not paused ─▶ a
    free slot ─▶ ask ─┬▶ its answer has begun: the call is served
                      ├▶ the client's mistake: no other server would say otherwise
                      └▶ all else: the next backend

What the pipeline gets has begun, so whatever was tried before has cost nobody anything.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import structlog

from node.core.catalog import Backend
from node.core.plans import TYPICAL
from node.errors import (
    NodeError,
    RateLimitExceeded,
    UpstreamFailed,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from node.ports import UpstreamCall, UpstreamReply
from node.upstream.errors import UnknownThere
from node.upstream.lane import Lane, LaneState
from node.upstream.slots import Slots

log = structlog.get_logger()

_BUSY_RETRY_S = 2
"""What a client is told to wait when there is no free slot."""
_BEST: tuple[type[NodeError], ...] = (
    RateLimitExceeded,
    UpstreamUnavailable,
    UpstreamTimeout,
    UpstreamFailed,
)
"""The most helpful first: the earlier ones say when to come back."""


@dataclass(frozen=True, slots=True)
class Routing:
    """How a call's upstream is chosen."""

    strategy: Literal["cheapest", "weighted"] = "cheapest"
    """Order among backends of one priority."""
    max_attempts: int = 4
    """Most upstreams asked for one call."""
    queue_timeout_s: float = 5.0
    """How long a call waits when all upstreams are full."""
    max_waiting: int = 256
    """Most calls that wait."""


class UpstreamRouter:
    """All upstreams; implements ports.Upstream."""

    def __init__(self, lanes: Iterable[Lane], routing: Routing = Routing()) -> None:
        self._lanes: Mapping[str, Lane] = {lane.name: lane for lane in lanes}
        self._routing = routing
        self._waiting = 0

    def states(self) -> list[LaneState]:
        """Health and load of every upstream, for the operator."""
        return [lane.state() for lane in self._lanes.values()]

    @property
    def waiting(self) -> int:
        """Calls that wait for a slot."""
        return self._waiting

    async def open(self, call: UpstreamCall) -> UpstreamReply:
        """Send ``call`` to one of the model's backends and wait for its answer to begin.

        Raises the client's own mistake, or the most helpful of what the upstreams said; else
        UpstreamUnavailable.
        """
        left = self._order(call)
        if not left:
            raise UpstreamFailed(private=f"no upstream serves {call.endpoint} of {call.model.id}")
        errors: list[NodeError] = []
        ends_at = asyncio.get_running_loop().time() + self._routing.queue_timeout_s
        while left and len(errors) < self._routing.max_attempts:
            way = await self._take(left, ends_at, errors)
            if way is None:
                break
            left.remove(way)
            lane, backend = way
            try:
                return await lane.open(call, backend)
            except NodeError as error:
                if not _another_may_do(error) or _was_at_work(error, call):
                    raise
                errors.append(error)
                log.info(
                    "upstream_attempt_failed",
                    request_id=call.request_id,
                    upstream=lane.name,
                    reason=error.private,
                )
        raise _best(errors)

    def _order(self, call: UpstreamCall) -> list[tuple[Lane, Backend]]:
        ways = [
            (lane, backend)
            for backend in call.model.backends
            if (lane := self._lanes.get(backend.upstream)) and lane.server.serves(call.endpoint)
        ]
        if len(ways) > 1:
            ways.sort(key=self._by_weight if self._routing.strategy == "weighted" else _by_price)
        return ways

    def _by_weight(self, way: tuple[Lane, Backend]) -> tuple[float, ...]:
        # Efraimidis and Spirakis: the largest u^(1/weight) comes first
        _, backend = way
        share = random.random() ** (1 / backend.weight)  # noqa: S311 it only spreads load
        return (backend.priority, -share)

    async def _take(
        self, ways: list[tuple[Lane, Backend]], ends_at: float, errors: list[NodeError]
    ) -> tuple[Lane, Backend] | None:
        """The first of ``ways`` that can be gone, with a slot taken; None when there is none.

        Adds to ``errors`` why one cannot.
        """
        full = []
        closed: list[NodeError] = []
        for way in ways:
            lane, backend = way
            pause_s = lane.paused_s(backend.upstream_id)
            if pause_s:
                closed.append(RateLimitExceeded("the model server is busy", retry_after_s=pause_s))
            elif not lane.breaker.admits:
                closed.append(UpstreamUnavailable(retry_after_s=lane.breaker.retry_after_s))
            elif lane.slots.take():
                return way
            else:
                full.append(way)
        if full and self._waiting < self._routing.max_waiting:
            timeout_s = ends_at - asyncio.get_running_loop().time()
            taken = await self._wait([lane.slots for lane, _ in full], timeout_s)
            if taken is not None:
                return next(way for way in full if way[0].slots is taken)
        if full:
            closed.append(UpstreamUnavailable(retry_after_s=_BUSY_RETRY_S, private="all are full"))
        errors += closed
        return None

    async def _wait(self, slots: list[Slots], timeout_s: float) -> Slots | None:
        self._waiting += 1
        try:
            return await Slots.first(slots, max(0.0, timeout_s))
        except TimeoutError:
            return None
        finally:
            self._waiting -= 1


def _by_price(way: tuple[Lane, Backend]) -> tuple[float, ...]:
    lane, backend = way
    return (backend.priority, backend.price.cost(TYPICAL), lane.slots.running)


def _another_may_do(error: NodeError) -> bool:
    return isinstance(error, (*_BEST, UnknownThere))


def _was_at_work(error: NodeError, call: UpstreamCall) -> bool:
    """A whole answer that did not come in time was being made, and paid for: once is enough."""
    whole = "text/event-stream" not in call.accept
    return whole and isinstance(error, UpstreamTimeout) and error.sent


def _best(errors: list[NodeError]) -> NodeError:
    for kind in _BEST:
        some = [error for error in errors if isinstance(error, kind)]
        if some:
            return min(some, key=lambda error: error.retry_after_s or math.inf)
    return errors[0]
