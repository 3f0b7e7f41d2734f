"""How fast a relay wants its events, learned from what it answers; how long an OK takes; and how
much of what a relay sends is read."""

from __future__ import annotations

import asyncio
from typing import Final

_FASTEST_S: Final = 0.005
"""Below this interval there is no pace to keep."""
_GAIN: Final = 0.125
_SPREAD: Final = 4.0
_FRAME_BYTES: Final = 4_096
"""A longer frame counts as several."""


def is_rate_limit(message: str) -> bool:
    """Whether an OK or NOTICE says that we send too fast; some relays leave out the prefix."""
    text = message.lower()
    return "rate-limit" in text or "rate limit" in text or "slow down" in text


class Pacer:
    """The pace of one relay: as fast as we like until it complains.

    A complaint doubles the interval between events, each event taken makes it a tenth shorter.

    Args:
        first_s: the interval after the first complaint.
        max_s: the longest interval.
    """

    def __init__(self, first_s: float = 0.1, max_s: float = 10.0) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._next_at = 0.0
        self._refused_at = -max_s
        self.interval_s = 0.0
        """Between two events; 0 while the relay takes whatever comes."""
        self.waiting = 0
        """Events that wait for their turn."""

    async def turn(self) -> None:
        """Wait until the next event may be sent."""
        self.waiting += 1
        try:
            clock = asyncio.get_running_loop().time
            # The moment moves while we sleep: others take their turn, or the pace changes.
            while self.interval_s and self._next_at > clock():  # noqa: ASYNC110
                await asyncio.sleep(self._next_at - clock())
            self._next_at = max(clock(), self._next_at) + self.interval_s
        finally:
            self.waiting -= 1

    def refused(self) -> None:
        """The relay said that it was too fast. What was under way meanwhile counts as one."""
        now = asyncio.get_running_loop().time()
        if now - self._refused_at >= self.interval_s:
            self._refused_at = now
            self.interval_s = min(max(self.interval_s * 2, self._first_s), self._max_s)
        self._next_at = max(self._next_at, now + self.interval_s)

    def accepted(self) -> None:
        """The relay took an event."""
        self.interval_s *= 0.9
        if self.interval_s < _FASTEST_S:
            self.interval_s = 0.0


class RoundTrip:
    """How long to wait for an OK before the event is sent again (after RFC 6298).

    Args:
        min_s, max_s: bounds of what is waited.
    """

    def __init__(self, min_s: float, max_s: float) -> None:
        self._min_s = min_s
        self._max_s = max_s
        self._mean_s: float | None = None
        self._deviation_s = 0.0

    @property
    def known(self) -> bool:
        """Whether the relay has ever answered: one that never does is not asked again."""
        return self._mean_s is not None

    @property
    def patience_s(self) -> float:
        mean_s = self._mean_s or 0.0
        return min(max(mean_s + _SPREAD * self._deviation_s, self._min_s), self._max_s)

    def took(self, duration_s: float) -> None:
        """An OK came after so long, to an event that was sent once."""
        if self._mean_s is None:
            self._mean_s, self._deviation_s = duration_s, duration_s / 2
            return
        self._deviation_s += 2 * _GAIN * (abs(duration_s - self._mean_s) - self._deviation_s)
        self._mean_s += _GAIN * (duration_s - self._mean_s)


class Inflow:
    """How much is read of a relay: what it sends faster waits in its own buffers.

    Args:
        per_s: frames of up to 4 KiB in a second, on average.
        burst_s: how many seconds' worth may come at once.
    """

    def __init__(self, per_s: float, burst_s: float) -> None:
        self._per_s = per_s
        self._burst_s = burst_s
        self._paid_until = 0.0

    def pause_s(self, size: int, now: float) -> float:
        """How long to read no further after a frame of ``size``; ``now`` on a steady clock."""
        self._paid_until = max(self._paid_until, now) + (1 + size // _FRAME_BYTES) / self._per_s
        return max(0.0, self._paid_until - now - self._burst_s)
