"""How many requests one account, sender or address may make: the wire contract's C6.

Three fixed windows for each key (a minute, an hour, a day), each beginning with the first request
in it. A request counts in all of them or, when one is full, in none. In memory only: a restart
forgives.

Who counts: an account (a child key by itself) once it is identified, else the address or the
sender of the message. A request that was paid for with its own token counts for nobody: it has
paid for the room it took, and many such clients may share one address (Tor); one whose token was
no good counts.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from node.core.accounts import Account
from node.core.exchange import CREDENTIALS, Request
from node.errors import RateLimitExceeded

MAX_KEYS = 100_000
"""Keys remembered; the one that was quiet longest is forgotten first."""
CONCURRENCY_RETRY_S = 1


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Requests of one key. 0: no limit."""

    per_minute: int = 60
    per_hour: int = 1_000
    per_day: int = 10_000
    max_concurrent: int = 128
    """Paid calls of one account that run at the same time."""
    max_keys: int = MAX_KEYS

    def windows(self) -> tuple[tuple[int, int], ...]:
        """(requests, seconds) of each limit there is."""
        given = ((self.per_minute, 60), (self.per_hour, 3600), (self.per_day, 86_400))
        return tuple((limit, length_s) for limit, length_s in given if limit)


@dataclass(frozen=True, slots=True)
class Quota:
    """Of the window that has least left: its limit, what is left, and seconds until it is anew."""

    limit: int
    remaining: int
    reset_s: float

    def headers(self) -> dict[str, str]:
        """As OpenAI's clients and as others read it; lower-case names."""
        seconds = math.ceil(self.reset_s)
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{seconds}s",
            "x-ratelimit-limit": str(self.limit),
            "x-ratelimit-remaining": str(self.remaining),
            "x-ratelimit-reset": str(seconds),
        }


def has_credentials(request: Request) -> bool:
    """Whether a request names a payer; if it is a good one remains to be seen."""
    return any(request.headers.get(name) for name in CREDENTIALS)


def network_of(address: str) -> str:
    """Who an address belongs to: itself, for IPv6 its network of one subscriber (/64)."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(parsed.ipv4_mapped or (int(parsed) >> 64))


def stranger(request: Request) -> str:
    """The key of whoever is no account: an address, for IPv6 its network, or a sender."""
    peer = network_of(request.peer) if request.carriage == "http" else request.peer
    return f"{request.carriage}:{peer}"


def of_account(account: Account) -> str:
    """The key of an account; a child key is limited by itself."""
    child = "" if account.child_id is None else f":{account.child_id}"
    return f"account:{account.id}{child}"


class Limiter:
    """Counts requests by key.

    Args:
        clock: seconds on a steady clock.
    """

    def __init__(
        self, limits: RateLimits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits or RateLimits()
        self._windows = self._limits.windows()
        self._clock = clock
        self._counts: OrderedDict[str, list[float]] = OrderedDict()
        """For each window: when it ends, and how many requests it holds."""
        self._running: Counter[str] = Counter()

    def change(self, limits: RateLimits) -> None:
        """Other limits from now on; what was counted so far is forgiven."""
        self._limits = limits
        self._windows = limits.windows()
        self._counts.clear()

    def take(self, key: str, headers: dict[str, str]) -> None:
        """Count one request of ``key``; what is left is noted in ``headers``.

        Raises RateLimitExceeded when a window is full.
        """
        if not self._windows:
            return
        now = self._clock()
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = [0.0] * (2 * len(self._windows))
            if len(self._counts) > self._limits.max_keys:
                self._counts.popitem(last=False)
        else:
            self._counts.move_to_end(key)
        tightest: Quota | None = None
        full: Quota | None = None
        for at, (limit, length_s) in enumerate(self._windows):
            if counts[2 * at] <= now:
                counts[2 * at], counts[2 * at + 1] = now + length_s, 0
            left = limit - int(counts[2 * at + 1]) - 1
            quota = Quota(limit, max(0, left), counts[2 * at] - now)
            if tightest is None or quota.remaining < tightest.remaining:
                tightest = quota
            if left < 0 and (full is None or quota.reset_s > full.reset_s):
                full = quota
        assert tightest is not None
        if full is not None:
            headers.update(full.headers())
            raise RateLimitExceeded(retry_after_s=max(1, math.ceil(full.reset_s)))
        for at in range(len(self._windows)):
            counts[2 * at + 1] += 1
        headers.update(tightest.headers())

    def enter(self, key: str) -> None:
        """One more call of ``key`` runs, until ``leave``; an empty key is nobody's.

        Raises RateLimitExceeded when as many run as may.
        """
        most = self._limits.max_concurrent
        if key and most and self._running[key] >= most:
            raise RateLimitExceeded(
                f"{most} requests of this account run already", retry_after_s=CONCURRENCY_RETRY_S
            )
        if key:
            self._running[key] += 1

    def leave(self, key: str) -> None:
        """A call that entered has ended."""
        if not key:
            return
        self._running[key] -= 1
        if not self._running[key]:
            del self._running[key]
