"""Providers as JSON documents: what ``/v1/providers`` lists and ``python -m discovery`` prints.

Prices are in sat per 1,000 tokens or characters, as in ``/v1/models``; ``request``, ``image`` and
``audio_minute`` in sat.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeAlias

from discovery.announcement import ModelOffer
from discovery.nostr.keys import hex_to_npub
from discovery.offers import NO_OTHER_PRICES, OtherPrices
from discovery.reviews import summary
from discovery.snapshot import DirectorySnapshot, Provider

Change: TypeAlias = tuple[Literal["provider", "removed"], Provider]

_MSAT_PER_MTOK = 1_000_000
"""msat per million tokens in one sat per 1,000 tokens."""
_MSAT_PER_SAT = 1_000
_MAX_REVIEWS_SHOWN = 50
_PATHS = {
    "chat": "chat/completions",
    "image": "images/generations",
    "images": "images/generations",
    "transcriptions": "audio/transcriptions",
    "translations": "audio/translations",
    "speech": "audio/speech",
}
"""The short endpoint names of model pages, as paths below ``/v1``; others stand for themselves."""


def provider_item(provider: Provider) -> dict[str, Any]:
    """A provider as a list shows it."""
    said = provider.announcement
    event = said.event
    models = tuple(provider.models)
    return {
        "id": said.d,
        "name": said.name,
        "description": said.about,
        "status": provider.status,
        "verified": provider.verified,
        "reason": provider.reason or None,
        "pubkey": provider.pubkey,
        "npub": provider.npub,
        "created_at": said.created_at,
        "last_seen": provider.last_seen,
        "latency_ms": provider.latency_ms,
        "usual_latency_ms": provider.usual_latency_ms,
        "uptime": provider.uptime,
        "kind": event.kind if event else None,
        "content": event.content if event else "",
        "version": said.version or None,
        "endpoint_url": provider.endpoint_url,
        "endpoint_urls": list(provider.endpoint_urls),
        "verified_urls": list(provider.verified_urls),
        "unverified_urls": list(provider.unverified_urls),
        "mint_urls": list(said.mints),
        "relays": list(said.relays),
        "transports": list(said.transports),
        "endpoints": endpoint_paths((*models, *provider.unpriced)),
        "models": list(provider.ids),
        "models_source": provider.models_source or None,
        "pricing": {offer.id: pricing(offer) for offer in models},
        "trust_distance": provider.trust_distance,
        "vouched_distance": provider.vouched_distance,
        "reviews": summary(provider.reviews),
    }


def provider_detail(provider: Provider, others: Iterable[str] = ()) -> dict[str, Any]:
    """One provider with its models and who reviewed it.

    Args:
        others: npubs of those who go by the same name and are as trusted.
    """
    rivals = list(others)
    return provider_item(provider) | {
        "ambiguous": bool(rivals),
        "others": rivals,
        "display_name": provider.announcement.name,
        "models": [
            {
                "id": offer.id,
                "name": offer.name or offer.id,
                "context_window": offer.context or None,
                "max_output_tokens": offer.max_output or None,
                "modalities": list(offer.modalities),
                "endpoints": endpoint_paths((offer,)),
                "pricing": pricing(offer) if offer.priced else None,
            }
            for offer in provider.named
        ],
        "features": _features(provider),
        "reviews": {
            **summary(provider.reviews),
            "newest": [
                {
                    "reviewer": review.reviewer,
                    "reviewer_npub": hex_to_npub(review.reviewer),
                    "kind": review.kind,
                    "label": review.label,
                    "created_at": review.created_at,
                    "text": review.text,
                    "trust_distance": review.distance,
                }
                for review in provider.reviews[:_MAX_REVIEWS_SHOWN]
            ],
        },
    }


def changes(before: DirectorySnapshot, after: DirectorySnapshot) -> Iterator[Change]:
    """Who is new or different in more than what every probe changes, and who is gone."""
    if before is after:
        return
    known, now = before.keyed(), after.keyed()
    for key, provider in now.items():
        earlier = known.get(key)
        if earlier is None or (earlier is not provider and _told(earlier) != _told(provider)):
            yield "provider", provider
    for key, provider in known.items():
        if key not in now:
            yield "removed", provider


def pricing(offer: ModelOffer) -> dict[str, Any]:
    """The prices of one model; those that only some models have stand there if it has them."""
    prices = {
        "prompt": offer.input_per_mtok / _MSAT_PER_MTOK,
        "completion": offer.output_per_mtok / _MSAT_PER_MTOK,
        "request": offer.per_request / _MSAT_PER_SAT,
        "unit": "1k tokens",
        "currency": "sat",
    }
    return prices if offer.other == NO_OTHER_PRICES else prices | _other_pricing(offer.other)


def _other_pricing(other: OtherPrices) -> dict[str, float]:
    """Under the names of ``sats_pricing`` in ``/v1/models``; None and 0 are left out."""
    amounts = {
        "input_cache_read": (other.cached_per_mtok, _MSAT_PER_MTOK),
        "input_cache_write": (other.cache_write_per_mtok, _MSAT_PER_MTOK),
        "internal_reasoning": (other.reasoning_per_mtok, _MSAT_PER_MTOK),
        "image": (other.per_image or None, _MSAT_PER_SAT),
        "audio_minute": (other.per_audio_minute or None, _MSAT_PER_SAT),
        "character": (other.per_mchar or None, _MSAT_PER_MTOK),
    }
    return {name: amount / unit for name, (amount, unit) in amounts.items() if amount is not None}


def endpoint_paths(models: Iterable[ModelOffer]) -> list[str]:
    """Below ``/v1``, without repeats."""
    names = dict.fromkeys(name for offer in models for name in offer.endpoints)
    return [_PATHS.get(name, name) for name in names]


def _told(provider: Provider) -> tuple[object, ...]:
    """What a change of is worth telling: not the latency and time of the last probe."""
    return (
        provider.announcement,
        provider.named,
        provider.verified,
        provider.status,
        provider.reason,
        provider.verified_urls,
        provider.reviews,
        provider.trust_distance,
    )


def _features(provider: Provider) -> list[str]:
    said = provider.announcement
    features = [f"transport:{transport}" for transport in said.transports]
    features += [f"wrap:{kind}" for kind in said.wraps]
    features += [f"nostr:{word}" for word in said.http if not word.isdigit()]
    if said.pubkey_lock:
        features.append("locked-tokens")
    modalities = dict.fromkeys(m for offer in provider.named for m in offer.modalities)
    return features + [f"modality:{modality}" for modality in modalities]
