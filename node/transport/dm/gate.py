"""Who may do how much: token buckets per sender and for all senders together."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from node.errors import RateLimitExceeded
from node.transport.dm.limits import DmLimits

_UNWRAP_BURST_S = 1.0
_MAX_PAYERS = 10_000


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
        left = self._left(key, now)
        amount = min(amount, self._capacity)
        wait_s = 0.0 if left >= amount else (amount - left) / self._rate
        self._set(key, left if wait_s else left - amount, now)
        return wait_s

    def give_back(self, key: str, now: float) -> None:
        """Undo one ``take``."""
        if key in self._buckets:  # a forgotten bucket is a full one
            self._set(key, min(self._capacity, self._left(key, now) + 1), now)

    def _left(self, key: str, now: float) -> float:
        left, when = self._buckets.get(key, (self._capacity, now))
        return min(self._capacity, left + (now - when) * self._rate)

    def _set(self, key: str, left: float, now: float) -> None:
        self._buckets[key] = (left, now)
        self._buckets.move_to_end(key)
        # The longest untouched bucket is the fullest one, so forgetting it gives least away.
        while len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Ticket:
    """What an admitted request holds of the free quotas until its outcome is known."""

    sender: str
    of_total: bool


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
        self._nacks_total = Budget(limits.nacks_total_per_minute)
        self._resends = Budget(limits.resends_per_minute)
        self._payers: OrderedDict[str, float] = OrderedDict()  # until when

    def unwrap_delay_s(self, now: float) -> float:
        """Seconds to wait before the next wrap is decrypted; 0.0 while there is budget."""
        # Each takes its interval on a virtual clock, which may run a second ahead of the real one.
        self._unwraps_until = max(self._unwraps_until, now)
        delay_s = max(0.0, self._unwraps_until - now - _UNWRAP_BURST_S)
        self._unwraps_until += 1 / self._limits.max_unwraps_per_s
        return delay_s

    def admit(self, sender: str, now: float, *, running: int, of_sender: int) -> Ticket:
        """Raise RateLimitExceeded unless one more request of ``sender`` may run.

        It counts as unpaid until ``paid`` is called with its ticket: whether a key or token is
        worth anything only the answer shows.

        Args:
            running, of_sender: requests being answered, in all and of this sender.
        """
        limits = self._limits
        if running >= limits.max_running or of_sender >= limits.max_running_per_sender:
            raise RateLimitExceeded("too many requests at once", retry_after_s=1)
        wait_s = self._requests.take(sender, now)
        if wait_s:
            raise RateLimitExceeded(retry_after_s=int(wait_s) + 1)
        # Anyone can have many keys, so the total is what bounds strangers; it must not let them
        # shut out those who pay.
        ticket = Ticket(sender, of_total=self._payers.get(sender, 0.0) <= now)
        wait_s = self._unpaid.take(sender, now)
        if not wait_s and ticket.of_total:
            wait_s = self._unpaid_total.take("", now)
            if wait_s:
                self._unpaid.give_back(sender, now)
        if wait_s:
            raise RateLimitExceeded("too many unpaid requests", retry_after_s=int(wait_s) + 1)
        return ticket

    def paid(self, ticket: Ticket, now: float) -> None:
        """The request was paid for, or an account stood behind it: it was not a free one."""
        self._unpaid.give_back(ticket.sender, now)
        if ticket.of_total:
            self._unpaid_total.give_back("", now)
        self._payers[ticket.sender] = now + self._limits.payer_lifetime_s
        self._payers.move_to_end(ticket.sender)
        if len(self._payers) > _MAX_PAYERS:
            self._payers.popitem(last=False)

    def may_say_error(self, sender: str, now: float) -> bool:
        """Whether an error about an undispatched message is worth a reply."""
        return not (self._errors.take(sender, now) or self._errors_total.take("", now))

    def may_ask(self, now: float) -> bool:
        """Whether one more request may be asked for its missing parts."""
        return not self._nacks_total.take("", now)

    def may_resend(self, sender: str, frames: int, now: float) -> bool:
        """Whether so many frames may be sent to ``sender`` again."""
        return not self._resends.take(sender, now, frames)
