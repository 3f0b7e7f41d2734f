"""What the probes of one provider found, now and over the days."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from discovery.offers import ModelOffer
from discovery.probe import ProbeResult

DAY_S = 86_400
MAX_DAYS = 7


@dataclass(slots=True)
class Day:
    """The probes of one UTC day."""

    number: int
    """Days since 1970."""
    asked: int = 0
    answered: int = 0
    latency_ms: int = 0
    """Of all answers together."""


@dataclass(slots=True)
class Health:
    """Probe results of one address, for the URLs announced then. Times are unix seconds."""

    urls: tuple[str, ...]
    result: ProbeResult | None = None
    asked_at: int = 0
    reached_at: int = 0
    verified_at: int = 0
    verified_urls: tuple[str, ...] = ()
    failures: int = 0
    """In a row."""
    days: list[Day] = field(default_factory=list)
    """At most MAX_DAYS, oldest first."""
    listed: Sequence[ModelOffer] = ()
    """What its own ``/v1/models`` said."""
    listed_at: int = 0

    def record(self, result: ProbeResult, now: int) -> None:
        """Take in one probe. A probe that could not try says nothing about the node."""
        if result.reachable is not None or self.result is None:
            self.result = result
        self.asked_at = now
        if result.reachable:
            self.failures = 0
            self.reached_at = now
            self.verified_at = now if result.verified else 0
            self.verified_urls = result.verified_urls if result.verified else ()
        else:
            self.failures += 1
        if result.reachable is not None:
            day = self._today(now)
            day.asked += 1
            day.answered += result.reachable
            day.latency_ms += result.latency_ms or 0

    def uptime(self) -> float | None:
        """Share of the probes that were answered, 0 to 1; None when it was never asked."""
        asked = sum(day.asked for day in self.days)
        return round(sum(day.answered for day in self.days) / asked, 4) if asked else None

    def usual_latency_ms(self) -> int | None:
        """Mean of the answers of these days."""
        answered = sum(day.answered for day in self.days)
        return round(sum(day.latency_ms for day in self.days) / answered) if answered else None

    def _today(self, now: int) -> Day:
        number = now // DAY_S
        if not self.days or self.days[-1].number != number:
            self.days.append(Day(number))
            oldest = number - MAX_DAYS
            self.days = [day for day in self.days if oldest < day.number <= number][-MAX_DAYS:]
        return self.days[-1]
