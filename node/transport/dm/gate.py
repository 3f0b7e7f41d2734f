"""Who may do how much: token buckets per sender and for all senders together."""

from __future__ import annotations

from collections import OrderedDict

from node.errors import RateLimitExceeded
from node.transport.dm.limits import DmLimits

_UNWRAP_BURST_S = 1.0


class Budget:
    """Token buckets by key, bounded in keys.

    Args:
        per_minute: how fast a bucket fills.
        burst: how much it holds; a minute's worth when omitted.
    """

    def __init__(
        self, per_minute: float, *, burst: float | None = None, max_keys: int = 10_000
    ) -> None:
        self._rate = per_minute / 60
        self._capacity = per_minute if burst is None else burst
        self._max_keys = max_keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # left, when

    def take(self, key: str, now: float, amount: float = 1.0) -> float:
        """Take ``amount``; 0.0 when it was there, else the seconds until it will be (not taken).

        Args:
            now: seconds on a steady clock.
        """
        left, when = self._buckets.get(key, (self._capacity, now))
        left = min(self._capacity, left + (now - when) * self._rate)
        amount = min(amount, self._capacity)
        wait_s = 0.0 if left >= amount else (amount - left) / self._rate
        self._buckets[key] = (left if wait_s else left - amount, now)
        self._buckets.move_to_end(key)
        # The longest untouched bucket is the fullest one, so forgetting it gives least away.
        while len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        return wait_s


class Gate:
    """The budgets of the Nostr carriage. ``now`` is seconds on a steady clock throughout."""

    def __init__(self, limits: DmLimits) -> None:
        self._limits = limits
        self._unwraps_until = 0.0
        self._requests = Budget(limits.requests_per_minute)
        self._unpaid = Budget(limits.unpaid_per_minute)
        self._unpaid_total = Budget(limits.unpaid_total_per_minute)
        self._errors = Budget(limits.errors_per_minute)
        self._errors_total = Budget(limits.errors_total_per_minute)
        self._resends = Budget(limits.resends_per_minute)

    def unwrap_delay_s(self, now: float) -> float:
        """Seconds to wait before the next wrap is decrypted; 0.0 while there is budget."""
        # Each takes its interval on a virtual clock, which may run a second ahead of the real one.
        self._unwraps_until = max(self._unwraps_until, now)
        delay_s = max(0.0, self._unwraps_until - now - _UNWRAP_BURST_S)
        self._unwraps_until += 1 / self._limits.max_unwraps_per_s
        return delay_s

    def admit(self, sender: str, now: float, *, paying: bool, running: int, of_sender: int) -> None:
        """Raise RateLimitExceeded unless one more request of ``sender`` may run.

        Args:
            paying: it names a key or carries a token; whether that is worth anything shows later.
            running, of_sender: requests being answered, in all and of this sender.
        """
        limits = self._limits
        if running >= limits.max_running or of_sender >= limits.max_running_per_sender:
            raise RateLimitExceeded("too many requests at once", retry_after_s=1)
        wait_s = self._requests.take(sender, now)
        if not paying:
            wait_s = wait_s or self._unpaid.take(sender, now) or self._unpaid_total.take("", now)
        if wait_s:
            raise RateLimitExceeded(retry_after_s=int(wait_s) + 1)

    def may_say_error(self, sender: str, now: float) -> bool:
        """Whether an error about an undispatched message is worth a reply."""
        return not (self._errors.take(sender, now) or self._errors_total.take("", now))

    def may_resend(self, sender: str, frames: int, now: float) -> bool:
        """Whether so many frames may be sent to ``sender`` again."""
        return not self._resends.take(sender, now, frames)
