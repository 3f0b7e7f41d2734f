"""What requests leave behind for the metrics: plain counters, added to once a request.

Prometheus is a matter of the scrape (``node/ops/metrics.py``); here a request costs some additions
and two binary searches, about 1.5 µs. The labels are bounded: endpoints are those of the route
table, statuses and codes those of ``node/errors.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_left

from node.core.exchange import Receipt

DURATION_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0)
"""Upper bounds of the histograms' buckets."""
LAG_INTERVAL_S = 0.5
"""How often the event loop is asked how late it is."""


class Histogram:
    """Durations, counted by bucket.

    Args:
        bounds_s: upper bounds, ascending; one more bucket has all the rest.
    """

    __slots__ = ("_bounds_s", "counts", "sum_s")

    def __init__(self, bounds_s: tuple[float, ...] = DURATION_BOUNDS_S) -> None:
        self._bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def add(self, value_s: float) -> None:
        """Count one."""
        self.counts[bisect_left(self._bounds_s, value_s)] += 1
        self.sum_s += value_s

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, how many were not above it), the last one being "+Inf"."""
        names = [*(str(bound) for bound in self._bounds_s), "+Inf"]
        total, rows = 0, []
        for name, count in zip(names, self.counts, strict=True):
            total += count
            rows.append((name, float(total)))
        return rows


class Traffic:
    """Counts since the start of the process. Implements ``node.service.dispatch.Observer``."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, int], int] = {}
        """By (endpoint, carriage, status); status 0: the client left before there was one."""
        self.errors: dict[str, int] = {}
        """By code."""
        self.durations: dict[str, Histogram] = {}
        """By endpoint: until the answer was complete."""
        self.first_bytes: dict[str, Histogram] = {}
        """By endpoint: until the first byte of the body."""
        self.prompt_tokens = self.completion_tokens = 0
        self.cached_tokens = self.reasoning_tokens = 0
        """Parts of the above."""
        self.charged_msat = 0
        self.change_tokens = 0

    @property
    def tokens(self) -> dict[str, int]:
        """By kind; cached ones are part of the prompt, reasoning is part of the completion."""
        return {
            "prompt": self.prompt_tokens,
            "completion": self.completion_tokens,
            "cached": self.cached_tokens,
            "reasoning": self.reasoning_tokens,
        }

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
        """A request has ended.

        Args:
            endpoint: path of its route, or ``other``.
            code: of the error; "" for none.
            first_byte_s: from the request to the first byte of the body; None without one.
            request_id, model: not counted by, as clients choose them.
        """
        del request_id, model
        key = (endpoint, carriage, status)
        self.requests[key] = self.requests.get(key, 0) + 1
        durations = self.durations.get(endpoint)
        if durations is None:
            durations = self.durations[endpoint] = Histogram()
            self.first_bytes[endpoint] = Histogram()
        durations.add(duration_s)
        if first_byte_s is not None:
            self.first_bytes[endpoint].add(first_byte_s)
        if code:
            self.errors[code] = self.errors.get(code, 0) + 1
        if receipt.change is not None:
            self.change_tokens += 1
        if receipt.cost:
            self.charged_msat += receipt.cost
        usage = receipt.usage
        if usage is not None:
            self.prompt_tokens += usage.prompt_tokens
            self.completion_tokens += usage.completion_tokens
            self.cached_tokens += usage.cached_tokens
            self.reasoning_tokens += usage.reasoning_tokens


class LoopLag:
    """How late the event loop is: what a timer is beyond its time."""

    def __init__(self) -> None:
        self.last_s = 0.0
        self._worst_s = 0.0

    def worst_s(self) -> float:
        """The worst since this was last asked."""
        worst, self._worst_s = max(self._worst_s, self.last_s), 0.0
        return worst

    async def run(self) -> None:
        """Measure for ever."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                due = loop.time() + LAG_INTERVAL_S
                await asyncio.sleep(LAG_INTERVAL_S)
                self.last_s = max(0.0, loop.time() - due)
                self._worst_s = max(self._worst_s, self.last_s)
