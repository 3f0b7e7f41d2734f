"""From the rounds to one number each: the median of the rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.plan import Case
from bench.rounds import Sample

PER_EVENT = ("stream", "pace")
"""Scenarios that are about the events of a stream rather than about requests."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One case with so many clients; None where it does not apply."""

    case: Case
    clients: int
    rounds: int
    requests: int
    """Of all rounds; all were answered rightly."""
    per_s: float
    """Requests, or events of streams."""
    cpu_ms: float
    """Of the server, for each of them."""
    loop_cpu_ms: float
    """The event loop's part of it; the rest is the threads'."""
    p50_ms: float
    """Of a request; of an event where it has a stamp."""
    p99_ms: float
    first_p50_ms: float | None

    def document(self) -> dict[str, Any]:
        """As JSON."""
        document = asdict(self)
        case = document.pop("case")
        names = {name: case[name] for name in ("group", "scenario", "server", "payment")}
        return names | {"title": self.case.title} | document


def summarise(samples: Sequence[Sample]) -> list[Summary]:
    """In the order of the samples' first appearance."""
    found: dict[tuple[Case, int], list[Sample]] = {}
    for sample in samples:
        found.setdefault((sample.case, sample.clients), []).append(sample)
    return [_summary(case, clients, rounds) for (case, clients), rounds in found.items()]


def _summary(case: Case, clients: int, rounds: Sequence[Sample]) -> Summary:
    per_event = case.scenario in PER_EVENT
    stamped = case.scenario == "pace"

    def median(value: Callable[[Sample], float]) -> float:
        return statistics.median(value(sample) for sample in rounds)

    def count(sample: Sample) -> int:
        return max(sample.outcome.events if per_event else sample.outcome.requests, 1)

    def times(sample: Sample) -> Sequence[int]:
        return sample.outcome.transit_us if stamped else sample.outcome.latency_us

    firsts = [sample.outcome.first_us for sample in rounds if sample.outcome.first_us]
    return Summary(
        case=case,
        clients=clients,
        rounds=len(rounds),
        requests=sum(sample.outcome.requests for sample in rounds),
        per_s=median(lambda sample: count(sample) / sample.outcome.seconds),
        cpu_ms=median(lambda sample: sample.cpu.all_s * 1000 / count(sample)),
        loop_cpu_ms=median(lambda sample: sample.cpu.main_s * 1000 / count(sample)),
        p50_ms=median(lambda sample: percentile(times(sample), 50) / 1000),
        p99_ms=median(lambda sample: percentile(times(sample), 99) / 1000),
        first_p50_ms=(
            statistics.median(percentile(first, 50) for first in firsts) / 1000 if firsts else None
        ),
    )


def percentile(values: Sequence[int], percent: float) -> float:
    """Nearest rank; 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return float(ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)])
