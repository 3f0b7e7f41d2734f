"""The node in Prometheus' text format. ``METRICS`` is every name there is (docs/metrics.md).

Counters of requests come from ``node/ops/traffic.py``. Everything else is read when it is asked
for: from the database over a connection and a thread of its own, from the watchdog's last reading,
and from the parts of the running node. No label holds anything that a client chooses.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from node import __version__
from node.core.circuit import Breaker
from node.core.money import to_msat
from node.ledger.books import open_read_only
from node.ops.health import OK, Health
from node.ops.traffic import LoopLag, Traffic
from node.ops.watchdog import Watchdog
from node.upstream.lane import LaneState

CONTENT_TYPE = CONTENT_TYPE_LATEST
JOURNAL_AGE_S = 300.0
"""Finished operations are counted again after this: all of the journal has to be read for it."""
BUSY_S = 2.0
"""A scrape within this of the last one gets the same text."""

Labels = tuple[str, ...]
Samples = Iterable[tuple[Labels, float]]


@dataclass(frozen=True, slots=True)
class Described:
    """What a metric is."""

    kind: str
    """counter, gauge or histogram."""
    help: str
    labels: Labels = ()


METRICS: Mapping[str, Described] = {
    "nodestr_info": Described("gauge", "1; which version runs.", ("version",)),
    "nodestr_uptime_seconds": Described("gauge", "Since the process began to serve."),
    "nodestr_requests_total": Described(
        "counter",
        "Requests that ended; status 0: the client left before there was one.",
        ("endpoint", "carriage", "status"),
    ),
    "nodestr_errors_total": Described("counter", "Errors by code (docs/errors.md).", ("code",)),
    "nodestr_rate_limited_total": Described("counter", "Requests refused with 429."),
    "nodestr_request_duration_seconds": Described(
        "histogram", "Until the answer was complete.", ("endpoint",)
    ),
    "nodestr_first_byte_seconds": Described(
        "histogram", "Until the first byte of the answer's body.", ("endpoint",)
    ),
    "nodestr_requests_running": Described("gauge", "Requests under way."),
    "nodestr_tokens_total": Described(
        "counter",
        "Tokens served; cached are part of prompt, reasoning is part of completion.",
        ("kind",),
    ),
    "nodestr_charged_msat_total": Described("counter", "Charged to clients since the start, msat."),
    "nodestr_change_tokens_total": Described("counter", "Answers that carried change."),
    "nodestr_earned_msat": Described(
        "gauge", "The node's own by the books, payouts and losses taken off, msat."
    ),
    "nodestr_revenue_msat": Described("gauge", "Charged to clients in all its life, msat."),
    "nodestr_payouts_msat": Described("gauge", "Paid to the operator in all its life, msat."),
    "nodestr_liabilities_msat": Described("gauge", "Owed to clients, msat."),
    "nodestr_solvency_margin_msat": Described(
        "gauge", "Our coins less what is owed, msat; below zero the node is insolvent."
    ),
    "nodestr_books_ok": Described("gauge", "1 when the books add up."),
    "nodestr_holds_open": Described("gauge", "Requests with money set aside."),
    "nodestr_holds_msat": Described("gauge", "Money set aside for them, msat."),
    "nodestr_accounts_open": Described("gauge", "Accounts that are not closed."),
    "nodestr_operations": Described(
        "gauge",
        "Operations in the journal by state; finished ones are up to 5 min old.",
        ("kind", "state"),
    ),
    "nodestr_operation_oldest_seconds": Described("gauge", "Age of the oldest unfinished one."),
    "nodestr_coins": Described("gauge", "Our unspent coins, by mint.", ("mint",)),
    "nodestr_coins_msat": Described("gauge", "What they are worth, msat.", ("mint",)),
    "nodestr_mint_up": Described("gauge", "1 while the mint answers.", ("mint",)),
    "nodestr_upstream_up": Described("gauge", "1 while the model server answers.", ("upstream",)),
    "nodestr_upstream_calls_total": Described(
        "counter", "Calls by how they ended: answered, failed.", ("upstream", "result")
    ),
    "nodestr_upstream_running": Described("gauge", "Calls under way.", ("upstream",)),
    "nodestr_upstream_waiting": Described("gauge", "Calls that wait for a slot.", ("upstream",)),
    "nodestr_relay_up": Described("gauge", "1 while the relay is connected.", ("relay",)),
    "nodestr_relay_events_total": Described(
        "counter", "Events by what became of them.", ("relay", "result")
    ),
    "nodestr_directory_providers": Described("gauge", "Other nodes that are known."),
    "nodestr_models": Described("gauge", "Models for sale."),
    "nodestr_ready": Described("gauge", "1 when /health/ready says 200."),
    "nodestr_health_check": Described("gauge", "1 when the check passes.", ("check",)),
    "nodestr_event_loop_lag_seconds": Described(
        "gauge", "Worst delay of the event loop since the last scrape."
    ),
    "nodestr_database_bytes": Described("gauge", "Size of the database and its log."),
}


@dataclass(frozen=True, slots=True)
class RelayCounts:
    """One relay, for the metrics."""

    connected: bool
    events: int
    invalid: int
    published: int
    refused: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the numbers come from; functions are called at each scrape."""

    database: Path
    traffic: Traffic
    lag: LoopLag
    health: Health
    watchdog: Watchdog
    running: Callable[[], int]
    mints: Mapping[str, Breaker]
    upstreams: Callable[[], Iterable[LaneState]]
    relays: Callable[[], Mapping[str, RelayCounts]]
    providers: Callable[[], int]
    models: Callable[[], int]


class Metrics:
    """Renders the metrics of one node.

    Args:
        clock: seconds on a steady clock.
    """

    def __init__(self, sources: Sources, clock: Callable[[], float] = time.monotonic) -> None:
        self._sources = sources
        self._clock = clock
        self._began = clock()
        self._rendering = asyncio.Lock()
        self._last: tuple[float, bytes] | None = None
        self._journal: tuple[float, dict[Labels, float]] | None = None
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)

    async def render(self) -> bytes:
        """The text of a scrape. Raises sqlite3.Error when the database cannot be read."""
        async with self._rendering:
            now = self._clock()
            if self._last is not None and now - self._last[0] < BUSY_S:
                return self._last[1]
            stored = await asyncio.to_thread(self._stored)
            ready, checks = await self._sources.health.ready()
            samples = {**self._live(), **stored}
            samples["nodestr_ready"] = [((), float(ready))]
            samples["nodestr_health_check"] = [
                ((name,), float(result == OK)) for name, result in checks.items()
            ]
            text = await asyncio.to_thread(self._text, samples)
            self._last = (now, text)
            return text

    def _text(self, samples: Mapping[str, Samples]) -> bytes:
        registry = CollectorRegistry()
        registry.register(_Families([*_families(samples), *self._histograms()]))
        return generate_latest(registry) + generate_latest(self._process)

    def _histograms(self) -> Iterator[Metric]:
        traffic = self._sources.traffic
        for name, histograms in (
            ("nodestr_request_duration_seconds", traffic.durations),
            ("nodestr_first_byte_seconds", traffic.first_bytes),
        ):
            described = METRICS[name]
            family = HistogramMetricFamily(name, described.help, labels=described.labels)
            for endpoint, histogram in list(histograms.items()):
                family.add_metric([endpoint], histogram.buckets(), histogram.sum_s)
            yield family

    def _live(self) -> dict[str, Samples]:
        """What is in memory."""
        sources, traffic = self._sources, self._sources.traffic
        lanes = list(sources.upstreams())
        relays = sources.relays()
        found: dict[str, Samples] = {
            "nodestr_info": [((__version__,), 1.0)],
            "nodestr_uptime_seconds": _one(self._clock() - self._began),
            "nodestr_requests_total": [
                ((endpoint, carriage, str(status)), float(count))
                for (endpoint, carriage, status), count in traffic.requests.items()
            ],
            "nodestr_errors_total": [((c,), float(n)) for c, n in traffic.errors.items()],
            "nodestr_rate_limited_total": _one(
                sum(count for (_, _, status), count in traffic.requests.items() if status == 429)
            ),
            "nodestr_requests_running": _one(sources.running()),
            "nodestr_tokens_total": [((k,), float(n)) for k, n in traffic.tokens.items()],
            "nodestr_charged_msat_total": _one(traffic.charged_msat),
            "nodestr_change_tokens_total": _one(traffic.change_tokens),
            "nodestr_mint_up": [
                ((url,), float(circuit.state == "closed")) for url, circuit in sources.mints.items()
            ],
            "nodestr_upstream_up": [((s.name,), float(s.circuit != "open")) for s in lanes],
            "nodestr_upstream_calls_total": [
                ((lane.name, result), float(count))
                for lane in lanes
                for result, count in (("answered", lane.answered), ("failed", lane.failed))
            ],
            "nodestr_upstream_running": [((s.name,), float(s.running)) for s in lanes],
            "nodestr_upstream_waiting": [((s.name,), float(s.waiting)) for s in lanes],
            "nodestr_relay_up": [((url,), float(r.connected)) for url, r in relays.items()],
            "nodestr_relay_events_total": [
                ((url, result), float(count))
                for url, r in relays.items()
                for result, count in (
                    ("received", r.events),
                    ("invalid", r.invalid),
                    ("published", r.published),
                    ("refused", r.refused),
                )
            ],
            "nodestr_directory_providers": _one(sources.providers()),
            "nodestr_models": _one(sources.models()),
            "nodestr_event_loop_lag_seconds": _one(sources.lag.worst_s()),
        }
        reading = sources.watchdog.last
        if reading is not None:
            books = reading.books
            found |= {
                "nodestr_earned_msat": _one(books.earned_msat),
                "nodestr_revenue_msat": _one(books.revenue_msat),
                "nodestr_payouts_msat": _one(books.payouts_msat),
                "nodestr_liabilities_msat": _one(books.liabilities_msat),
                "nodestr_solvency_margin_msat": _one(books.equity_msat),
                "nodestr_books_ok": _one(not reading.problems),
            }
        return found

    def _stored(self) -> dict[str, Samples]:
        """What is in the database; runs in a thread."""
        path = self._sources.database
        with closing(open_read_only(path)) as connection:
            connection.execute("BEGIN")
            holds, held_msat = connection.execute(
                "SELECT COUNT(*), COALESCE(SUM(max_cost_msat), 0) FROM holds WHERE state = 'held'"
            ).fetchone()
            (accounts,) = connection.execute(
                "SELECT COUNT(*) FROM accounts WHERE state = 'open'"
            ).fetchone()
            (oldest,) = connection.execute(
                "SELECT MIN(created_at) FROM operations WHERE state = 'intent'"
            ).fetchone()
            coins = connection.execute(
                "SELECT mint, unit, COUNT(*), SUM(amount) FROM proofs WHERE state = 'unspent'"
                " GROUP BY mint, unit"
            ).fetchall()
            operations = self._operations(connection)
        counts: dict[str, float] = dict.fromkeys(self._sources.mints, 0.0)
        worth = dict(counts)
        for mint, unit, count, amount in coins:
            counts[mint] = counts.get(mint, 0.0) + count
            worth[mint] = worth.get(mint, 0.0) + to_msat(amount, unit)
        return {
            "nodestr_holds_open": _one(holds),
            "nodestr_holds_msat": _one(held_msat),
            "nodestr_accounts_open": _one(accounts),
            "nodestr_operations": operations.items(),
            "nodestr_operation_oldest_seconds": _one(
                0 if oldest is None else max(0.0, time.time() - oldest)
            ),
            "nodestr_coins": [((mint,), count) for mint, count in counts.items()],
            "nodestr_coins_msat": [((mint,), amount) for mint, amount in worth.items()],
            "nodestr_database_bytes": _one(
                sum(_size(path.with_name(path.name + end)) for end in ("", "-wal"))
            ),
        }

    def _operations(self, connection: sqlite3.Connection) -> dict[Labels, float]:
        now = self._clock()
        if self._journal is None or now - self._journal[0] > JOURNAL_AGE_S:
            rows = connection.execute(
                "SELECT kind, state, COUNT(*) FROM operations WHERE state <> 'intent'"
                " GROUP BY kind, state"
            )
            self._journal = (now, {(kind, state): float(n) for kind, state, n in rows})
        open_ones = connection.execute(
            "SELECT kind, COUNT(*) FROM operations WHERE state = 'intent' GROUP BY kind"
        )
        found: dict[Labels, float] = {
            (kind, "intent"): 0.0 for kind in ("receive", "send", "mint", "melt")
        }
        found |= {(kind, "intent"): float(count) for kind, count in open_ones}
        return found | self._journal[1]


class _Families(Collector):
    """Gives what was put together."""

    def __init__(self, families: list[Metric]) -> None:
        self._collected = families

    def collect(self) -> list[Metric]:
        return self._collected


def _families(samples: Mapping[str, Samples]) -> Iterator[Metric]:
    for name, rows in samples.items():
        described = METRICS[name]
        make = CounterMetricFamily if described.kind == "counter" else GaugeMetricFamily
        family = make(name, described.help, labels=described.labels)
        for labels, value in rows:
            family.add_metric(labels, value)
        yield family


def _one(value: float) -> list[tuple[Labels, float]]:
    return [((), float(value))]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
