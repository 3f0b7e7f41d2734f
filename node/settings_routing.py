"""The sections of the settings about the choice of upstreams and about the exchange rate."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from node.settings_sections import Section
from node.settings_types import Count, Exact, Seconds, WebUrl, Whole, is_loopback


class RoutingSettings(Section):
    """[routing] which upstream serves a call."""

    strategy: Literal["cheapest", "weighted"] = "cheapest"
    """Order among a model's upstreams of one priority: by price, or at random by weight."""
    max_attempts: Annotated[Count, Field(le=32)] = 4
    """Most upstreams asked for one call, until one begins its answer."""
    queue_timeout_s: Annotated[float, Field(ge=0, le=600, allow_inf_nan=False)] = 5
    """How long a call waits when all its upstreams are at their max_concurrency."""
    max_waiting: Annotated[Whole, Field(ge=0)] = 256
    """Most calls that wait."""
    discover_interval_s: Annotated[Seconds, Field(ge=1)] = 3600
    """How often upstreams with discover = true are asked for their models."""
    discover_timeout_s: Seconds = 20
    """Deadline of one such question."""
    discover_max_bytes: Annotated[Count, Field(le=64 * 1024 * 1024)] = 8 * 1024 * 1024
    """Largest answer to it."""


class RateSourceSettings(Section):
    """A source of the exchange rate of one's own."""

    url: WebUrl
    """https URL of a JSON document; a query goes into ``query``."""
    query: Annotated[str, Field(max_length=200, pattern=r"^[!-~]*$")] = ""
    """What stands behind the question mark."""
    path: Annotated[str, Field(min_length=1, max_length=200)]
    """Where USD per BTC stands in it: keys and positions, such as result.XXBTZUSD.c.0"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.url.startswith("https://") and not is_loopback(self.url):
            raise ValueError("url must be https (http is taken for loopback addresses only)")
        return self


class RateSettings(Section):
    """[rates] USD per BTC, for prices in USD; asked for only if there are such."""

    sources: Annotated[
        tuple[
            Literal["coinbase", "kraken", "bitstamp", "binance", "mempool"] | RateSourceSettings,
            ...,
        ],
        Field(min_length=1, max_length=16),
    ] = ("coinbase", "kraken", "bitstamp", "binance", "mempool")
    """Who is asked: presets, or { url = "https://…", path = "data.amount" }."""
    min_sources: Count = 2
    """Sources that have to agree; with fewer the rate is not known."""
    max_deviation_percent: Annotated[Exact, Field(gt=0, le=50)] = Decimal(5)
    """A source that is farther from the median of all does not count."""
    interval_s: Annotated[Seconds, Field(ge=0.1)] = 120
    """How often they are asked."""
    timeout_s: Seconds = 5
    """Deadline of one question."""
    max_age_s: Seconds = 900
    """Models with a price in USD are not sold when the rate is older."""
    min_change_percent: Annotated[Exact, Field(ge=0, le=50)] = Decimal("0.5")
    """Published prices stay while the rate has changed by less."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_sources > len(self.sources):
            raise ValueError("min_sources is above the number of sources")
        if self.max_age_s < self.interval_s:
            raise ValueError("max_age_s is below interval_s")
        return self
