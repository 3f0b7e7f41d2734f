"""The order book of one model: who sells it, for how much, and over which carriages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from discovery.announcement import ModelOffer
from discovery.documents import pricing
from discovery.reviews import summary
from discovery.snapshot import Provider

PRICES = ("input_per_mtok", "output_per_mtok", "per_request")


class Ask(NamedTuple):
    """One provider's offer of the model. They sort as in the book: those that count first, then by
    price."""

    counts_not: bool
    """It does not make the market: who is not proven, or not there, could say any price."""
    total: int
    per_request: int
    pubkey: str
    d: str
    number: int
    """No two are equal, so that nothing behind this is compared."""
    provider: Provider
    offer: ModelOffer


def total_price(offer: ModelOffer) -> int:
    """msat for a million tokens in and a million out: by what offers are compared."""
    return offer.input_per_mtok + offer.output_per_mtok


def order_book(model: str, providers: Iterable[Provider], limit: int) -> dict[str, Any]:
    """The book as a JSON document.

    Args:
        providers: of whom offers are taken.
        limit: most asks shown; the figures are of all.
    """
    asks: list[Ask] = []
    unpriced = 0
    for provider in providers:
        offer = provider.offer(model)
        if offer is not None and offer.priced:
            asks.append(
                Ask(
                    not (provider.verified and provider.status == "online"),
                    total_price(offer),
                    offer.per_request,
                    provider.pubkey,
                    provider.announcement.d,
                    len(asks),
                    provider,
                    offer,
                )
            )
        else:
            unpriced += offer is not None
    asks.sort()
    counted = [ask.offer for ask in asks if not ask.counts_not]
    return {
        "object": "market",
        "model": model,
        "unit": "msat",
        "providers": len(asks),
        "counted": len(counted),
        "unpriced": unpriced,
        "prices": {
            name: _figures([getattr(offer, name) for offer in counted]) if counted else None
            for name in PRICES
        },
        "asks": [_ask(ask) for ask in asks[:limit]],
    }


def _figures(prices: Sequence[int]) -> dict[str, Any]:
    """Best, median, worst and what lies between the ends; integers, the median rounded up."""
    ordered = sorted(prices)
    middle = len(ordered) // 2
    median = -(-(ordered[middle] + ordered[~middle]) // 2)
    low, high = ordered[0], ordered[-1]
    return {
        "min": low,
        "median": median,
        "max": high,
        "spread": high - low,
        "spread_percent": round(100 * (high - low) / median, 2) if median else None,
    }


def _ask(ask: Ask) -> dict[str, Any]:
    provider, offer = ask.provider, ask.offer
    said = provider.announcement
    return {
        "id": said.d,
        "name": said.name,
        "pubkey": provider.pubkey,
        "npub": provider.npub,
        "verified": provider.verified,
        "status": provider.status,
        "counted": not ask.counts_not,
        "uptime": provider.uptime,
        "latency_ms": provider.latency_ms,
        "transports": list(said.transports),
        "endpoint_url": provider.endpoint_url,
        "relays": list(said.relays),
        "mint_urls": list(said.mints),
        "context_window": offer.context or None,
        "max_output_tokens": offer.max_output or None,
        **{name: getattr(offer, name) for name in PRICES},
        **offer.other._asdict(),
        "pricing": pricing(offer),
        "models_source": provider.models_source or None,
        "trust_distance": provider.trust_distance,
        "vouched_distance": provider.vouched_distance,
        "reviews": summary(provider.reviews),
    }
