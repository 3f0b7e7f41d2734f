"""A circuit breaker: whoever failed several times in a row is left alone for a while.

    closed ── threshold failures in a row ──▶ open ── pause ──▶ half-open ─ one call goes through
      ▲                                        ▲                     │
      │                                        └─ it fails: longer ──┤
      └─────────────────────────────────────────── it is answered ───┘

What counts as a failure is for its user to say.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal, TypeAlias

State: TypeAlias = Literal["closed", "open", "half-open"]


class Breaker:
    """The state of one peer.

    Args:
        threshold: failures in a row that open it.
        cooldown_s: how long it stays open the first time; twice as long each time after.
        max_cooldown_s: the longest.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        *,
        threshold: int,
        cooldown_s: float,
        max_cooldown_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threshold = threshold
        self._first_cooldown_s = self._cooldown_s = cooldown_s
        self._max_cooldown_s = max_cooldown_s
        self._clock = clock
        self._failures = 0
        self._open_until: float | None = None
        self._probing = False

    @property
    def state(self) -> State:
        if self._open_until is None:
            return "closed"
        return "open" if self._clock() < self._open_until else "half-open"

    @property
    def retry_after_s(self) -> int:
        """What to tell a client to wait; at least a second."""
        if self._open_until is None:
            return 1
        return max(1, math.ceil(self._open_until - self._clock()))

    @property
    def admits(self) -> bool:
        """Whether a call may go through now."""
        if self._open_until is None:
            return True
        return self.state == "half-open" and not self._probing

    def begin(self) -> bool:
        """An admitted call begins; says whether it is the probe of a half-open circuit. Pass
        that to ``failed`` and to ``end``, which is called in every case."""
        probe = self.state == "half-open"
        self._probing = self._probing or probe
        return probe

    def end(self, probe: bool) -> None:
        """The call is over, whatever came of it."""
        if probe:
            self._probing = False

    def failed(self, probe: bool) -> float | None:
        """A call failed; the seconds for which that opens the circuit, or None."""
        self._failures += 1
        if self._open_until is None:
            if self._failures < self._threshold:
                return None
        elif not probe:
            return None
        pause_s = self._cooldown_s
        self._open_until = self._clock() + pause_s
        self._cooldown_s = min(2 * pause_s, self._max_cooldown_s)
        return pause_s

    def answered(self, *, clears: bool = True) -> bool:
        """A call was answered; says whether that closed the circuit.

        Args:
            clears: the answer proves that all is well again. Otherwise one more failure opens
                the circuit again, for longer.
        """
        closed = self._open_until is not None
        if closed:
            self._open_until = None
            self._failures = self._threshold - 1
        if clears:
            self._failures = 0
            self._cooldown_s = self._first_cooldown_s
        return closed
