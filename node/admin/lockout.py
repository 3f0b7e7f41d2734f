"""Wrong passwords make who sends them wait: by address, and all strangers together.

    failure  1 … free     no wait
             free + 1 …   1 s, 2 s, 4 s …
             max_tries    ``lockout_s``
    all      more than ``max_tries_overall`` in ``lockout_s``: addresses from which nobody has
             logged in wait until it is over

Who has to wait is refused before the password is looked at. In memory only, and bounded: a
restart forgives.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from node.errors import RateLimitExceeded

MAX_ADDRESSES = 10_000
"""Addresses whose failures are remembered; those before are forgotten, the overall count is not."""
MAX_KNOWN = 100
"""Addresses remembered as the operator's."""


@dataclass(frozen=True, slots=True)
class LockoutTerms:
    """How many wrong passwords cost how much time."""

    free_tries: int = 3
    first_delay_s: float = 1.0
    max_tries: int = 10
    lockout_s: float = 900.0
    max_tries_overall: int = 100


@dataclass(slots=True)
class _Record:
    failures: int = 0
    retry_at: float = 0.0
    forget_at: float = 0.0


class Lockout:
    """Counts failures.

    Args:
        clock: seconds on a steady clock.
    """

    def __init__(
        self, terms: LockoutTerms | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.terms = terms or LockoutTerms()
        self._clock = clock
        self._records: OrderedDict[str, _Record] = OrderedDict()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._overall = 0
        self._overall_until = 0.0

    def begin(self, address: str) -> None:
        """A password is about to be checked: it counts as wrong until :meth:`succeed`.

        Raises RateLimitExceeded when the address has to wait.
        """
        terms, now = self.terms, self._clock()
        if now >= self._overall_until:
            self._overall, self._overall_until = 0, now + terms.lockout_s
        record = self._records.get(address)
        if record is not None and now >= record.forget_at:
            del self._records[address]
            record = None
        if record is not None and now < record.retry_at:
            raise _wait(record.retry_at - now)
        if address not in self._known:
            if self._overall >= terms.max_tries_overall:
                raise _wait(self._overall_until - now)
            self._overall += 1
        if record is None:
            record = self._records[address] = _Record()
        self._records.move_to_end(address)
        if len(self._records) > MAX_ADDRESSES:
            self._records.popitem(last=False)
        record.failures += 1
        record.retry_at = now + self._delay_s(record.failures)
        record.forget_at = now + terms.lockout_s

    def succeed(self, address: str) -> None:
        """The password was right: what the address did before is forgiven."""
        self._records.pop(address, None)
        if address not in self._known:
            self._overall = max(0, self._overall - 1)
        self._known[address] = None
        self._known.move_to_end(address)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def failures(self, address: str) -> int:
        """How many wrong passwords the address has sent lately."""
        record = self._records.get(address)
        return record.failures if record is not None else 0

    def _delay_s(self, failures: int) -> float:
        terms = self.terms
        if failures >= terms.max_tries:
            return terms.lockout_s
        if failures <= terms.free_tries:
            return 0.0
        return min(terms.lockout_s, terms.first_delay_s * 2.0 ** (failures - terms.free_tries - 1))


def _wait(seconds: float) -> RateLimitExceeded:
    return RateLimitExceeded(
        "too many wrong passwords; wait, then try again",
        retry_after_s=max(1, math.ceil(seconds)),
    )
