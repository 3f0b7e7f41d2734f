"""USD per BTC, from several public sources.

    ask all at once ─▶ drop what is no price ─▶ drop what is far from the median of all ─▶
    enough are left, and more than half of those who answered? ─▶ their median is the rate

Otherwise the last rate stays until it is too old, and then there is none: nothing is ever guessed.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import aiohttp
import structlog
from yarl import URL

from node.core.tariff import exact
from node.upstream.fetching import FetchFailed, fetch_json

log = structlog.get_logger()

MAX_DOCUMENT_BYTES = 64 << 10
"""Largest answer of a source."""
PLAUSIBLE = (Fraction(100), Fraction(1_000_000_000))
"""USD per BTC outside of this is a mistake of units."""


@dataclass(frozen=True, slots=True)
class RateSource:
    """Where a rate stands."""

    name: str
    url: str
    path: tuple[str, ...]
    """Keys, and positions in lists."""


PRESETS = {
    source.name: source
    for source in (
        RateSource(
            "coinbase", "https://api.coinbase.com/v2/prices/BTC-USD/spot", ("data", "amount")
        ),
        RateSource(
            "kraken",
            "https://api.kraken.com/0/public/Ticker?pair=XBTUSD",
            ("result", "XXBTZUSD", "c", "0"),
        ),
        RateSource("bitstamp", "https://www.bitstamp.net/api/v2/ticker/btcusd/", ("last",)),
        RateSource(
            "binance", "https://api.binance.com/api/v3/ticker/price?symbol=BTCUSDT", ("price",)
        ),
        RateSource("mempool", "https://mempool.space/api/v1/prices", ("USD",)),
    )
}


@dataclass(frozen=True, slots=True)
class RateTerms:
    """When a rate is believed."""

    min_sources: int = 2
    max_deviation: Fraction = Fraction(5, 100)
    """Part of the median by which a source may differ from it."""
    interval_s: float = 120.0
    timeout_s: float = 5.0
    max_age_s: float = 900.0
    min_change: Fraction = Fraction(5, 1000)
    """Part of the published rate by which a new one differs at least, to be published."""


class Rates:
    """Keeps the rate.

    Args:
        changed: told the published rate when it changes, and None when there is none any more.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        sources: Sequence[RateSource],
        terms: RateTerms,
        changed: Callable[[Fraction | None], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._sources = tuple(sources)
        self._terms = terms
        self._changed = changed
        self._clock = clock
        self._published: Fraction | None = None
        self._as_of = 0.0

    @property
    def current(self) -> Fraction | None:
        """The published USD per BTC; None when it is not known."""
        return self._published

    def trouble(self) -> str | None:
        """What is wrong, in a few words."""
        return "not known" if self._published is None else None

    async def run(self) -> None:
        """Ask at every interval, and forget the rate the moment it is too old."""
        while True:
            begun_at = self._clock()
            await self.refresh()
            pause_s = max(0.0, begun_at + self._terms.interval_s - self._clock())
            if self._published is not None:
                left_s = self._as_of + self._terms.max_age_s - self._clock()
                if left_s < pause_s:
                    await asyncio.sleep(max(0.0, left_s) + 0.01)  # never a tick too early
                    self._expire()
                    pause_s = max(0.0, begun_at + self._terms.interval_s - self._clock())
            await asyncio.sleep(pause_s)

    async def refresh(self) -> None:
        """Ask all sources once."""
        asked_at = self._clock()
        answers = await asyncio.gather(*(self._ask(source) for source in self._sources))
        rate = agreed([rate for rate in answers if rate is not None], self._terms)
        if rate is None:
            log.warning("exchange_rate_unknown", answers=sum(a is not None for a in answers))
            self._expire()
            return
        self._as_of = asked_at
        old = self._published
        if old is None or abs(rate - old) > old * self._terms.min_change:
            self._published = rate
            log.info("exchange_rate", usd_per_btc=f"{float(rate):.2f}")
            self._changed(rate)

    def _expire(self) -> None:
        if self._published is not None:
            age_s = self._clock() - self._as_of
            if age_s >= self._terms.max_age_s:
                self._published = None
                log.error("exchange_rate_too_old", age_s=round(age_s))
                self._changed(None)

    async def _ask(self, source: RateSource) -> Fraction | None:
        try:
            document = await fetch_json(
                self._session,
                URL(source.url),
                timeout_s=self._terms.timeout_s,
                max_bytes=MAX_DOCUMENT_BYTES,
            )
        except FetchFailed as error:
            log.info("exchange_rate_source_failed", source=source.name, reason=str(error))
            return None
        rate = exact(_at(document, source.path))
        if rate is None or not PLAUSIBLE[0] <= rate <= PLAUSIBLE[1]:
            log.warning("exchange_rate_source_failed", source=source.name, reason="no rate")
            return None
        return rate


def agreed(rates: Sequence[Fraction], terms: RateTerms) -> Fraction | None:
    """The median of those rates that are near the median of all; None when they are too few."""
    if len(rates) < terms.min_sources:
        return None
    middle = statistics.median(rates)
    near = [rate for rate in rates if abs(rate - middle) <= middle * terms.max_deviation]
    if len(near) < terms.min_sources or 2 * len(near) <= len(rates):
        return None
    return statistics.median(near)


def _at(document: Any, path: Sequence[str]) -> object:
    for key in path:
        if isinstance(document, dict):
            document = document.get(key)
        elif isinstance(document, list) and key.isdecimal() and int(key[:9]) < len(document):
            document = document[int(key[:9])]
        else:
            return None
    return document
