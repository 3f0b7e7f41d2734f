"""Events on their way to one relay: sent again without an OK, finished by the one that comes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from discovery.nostr.limits import Counters, PublishResult, RelayLimits
from discovery.nostr.outgoing import Outgoing
from discovery.nostr.pacing import RoundTrip

_RESEND_GROWTH: Final = 1.5


def _new_answer() -> asyncio.Future[PublishResult | None]:
    return asyncio.get_running_loop().create_future()


@dataclass(slots=True)
class Publish:
    """One event; ``answer`` is None when the connection ended first."""

    frame: str
    answer: asyncio.Future[PublishResult | None] = field(default_factory=_new_answer)
    waiting: int = 0
    refused: bool = False
    """Waits for AUTH."""
    auth_retried: bool = False


class Publishes:
    """What was published over one connection and has no OK yet.

    Args:
        outgoing: where frames go.
    """

    def __init__(self, outgoing: Outgoing, limits: RelayLimits, counters: Counters) -> None:
        self._outgoing = outgoing
        self._limits = limits
        self._counters = counters
        self._open: dict[str, Publish] = {}
        self._round_trip = RoundTrip(limits.ok_patience_min_s, limits.ok_patience_max_s)
        self._ok_without_id = False
        self._resent_in_vain = 0

    async def publish(self, event_id: str, frame: str) -> PublishResult | None:
        """Send an EVENT frame and wait for its OK; None when the connection ends first.

        Waits without a limit of its own: the caller brings the deadline. Sent again when the OK
        takes far longer than it does otherwise.
        """
        publish = self._open.get(event_id)
        first = publish is None
        if publish is None:
            if len(self._open) >= self._limits.max_pending_oks:
                return PublishResult(False, "busy: too many events wait for this relay's answer")
            publish = self._open[event_id] = Publish(frame)
        publish.waiting += 1
        try:
            if self._outgoing.lost:
                return None
            if first:
                await self._deliver(publish)
            else:
                await asyncio.wait({publish.answer})
            return publish.answer.result()
        finally:
            publish.waiting -= 1
            if publish.waiting == 0:
                self._open.pop(event_id, None)

    def answered(self, event_id: str) -> Publish | None:
        """The publish that an OK is about, if it still waits for one.

        Args:
            event_id: nostr-relay refuses with an empty one; it works through events in their order.
        """
        if event_id:
            publish = self._open.get(event_id)
            return publish if publish is not None and not publish.answer.done() else None
        self._ok_without_id = True
        return next(self._waiting(), None)

    def refused(self) -> list[Publish]:
        """Those that wait for AUTH."""
        return [publish for publish in self._waiting() if publish.refused]

    def lost(self) -> None:
        """The connection has ended: no more OKs."""
        for publish in self._waiting():
            publish.answer.set_result(None)

    def _waiting(self) -> Iterator[Publish]:
        return (publish for publish in self._open.values() if not publish.answer.done())

    async def _deliver(self, publish: Publish) -> None:
        """Send it until it is answered."""
        clock = asyncio.get_running_loop().time
        for attempt in itertools.count():
            await self._outgoing.room()
            self._outgoing.send(publish.frame)
            sent_at = clock()
            if self._may_resend:
                wait_s = self._round_trip.patience_s * _RESEND_GROWTH**attempt
            else:
                wait_s = None
            await asyncio.wait({publish.answer}, timeout=wait_s)
            if publish.answer.done():
                if attempt == 0 and publish.answer.result() and not publish.auth_retried:
                    self._round_trip.took(clock() - sent_at)
                return
            self._counters.resent += 1
            if not self._round_trip.known:
                self._resent_in_vain += 1

    @property
    def _may_resend(self) -> bool:
        if self._ok_without_id:  # one more OK would count for another event
            return False
        known = self._round_trip.known
        return known or self._resent_in_vain < self._limits.max_unanswered_events
