"""What there is to buy: the providers of the directory as a catalogue, and whom to buy from.

directory ──▶ who may be used, and how ──▶ offers by model ──▶ Catalog, as the pipeline reads it
                                                     └──▶ by profile, at random among the best
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import orjson

from discovery.announcement import is_onion
from discovery.offers import ModelOffer
from discovery.snapshot import DirectorySnapshot, Provider
from node.core.catalog import ENDPOINTS, Backend, Model
from node.core.money import MSAT_PER_SAT, Msat
from node.core.pricing import Price
from node.core.usage import Usage
from node.ecash.token import normalize_mint_url
from node.gateway.journal import Place, Record, Spending
from node.gateway.settings import CarriageName, Profile

Way: TypeAlias = Literal["http", "nostr"]

DEFAULT_CONTEXT = 131_072
"""Tokens of a model that does not say how many it takes."""
DEFAULT_OUTPUT = 4_096
MAX_MODELS = 5_000
MEDIA_ENDPOINTS = frozenset({"images", "transcriptions", "translations", "speech"})
"""What is sold by other things than tokens, of whose prices announcements say nothing."""
TYPICAL_OUTPUT = 500
"""Tokens of an answer, when providers are compared by price."""
TYPICAL_LATENCY_MS = 1_500
BEST = 3
"""Of how many one is drawn."""
COOLDOWN_S = 30
"""How long a provider that failed is asked last; twice as long each time."""
MAX_COOLDOWN_S = 600
HONEST_ANSWERS = 100
"""Answers that have to come for each one that cost too much."""
_PER_MTOK = 1_000_000


@dataclass(frozen=True, slots=True)
class Offer:
    """One model of one provider, and the way to it."""

    place: Place
    way: Way
    model: str
    endpoints: tuple[str, ...]
    price: Price
    context: int
    max_output: int
    mints: tuple[str, ...]
    """That the provider takes, normalised."""
    verified: bool
    latency_ms: int | None
    """As a probe found it."""
    silent: bool = False
    """It did not answer the last probe: there may be another way to it, and others come first."""

    @property
    def key(self) -> tuple[str, str, Way]:
        """Names provider and way."""
        return (self.place.pubkey, self.place.d, self.way)


def ways_to(provider: Provider, carriage: CarriageName, *, selected: bool) -> list[Way]:
    """How a provider can be reached, the preferred way first.

    Over HTTP only an address that is proven to be the provider's, unless it was selected by
    name; over relays the provider's key is proof enough.
    """
    found: list[Way] = []
    urls = [url for url in provider.endpoint_urls if not is_onion(url)]
    reachable = bool(urls) and provider.status != "offline" and (provider.verified or selected)
    if carriage != "nostr" and reachable:
        found.append("http")
    if carriage != "http" and "nostr" in provider.announcement.transports:
        found.append("nostr")
    return found


def offers_of(
    snapshot: DirectorySnapshot,
    *,
    carriage: CarriageName,
    only: Collection[str] = (),
    details: Mapping[str, Mapping[str, Price]],
) -> list[Offer]:
    """All that can be bought.

    Args:
        only: public keys; empty: of everybody.
        details: prices by provider and model, as providers tell them themselves.
    """
    found = []
    for provider in snapshot.providers:
        if only and provider.pubkey not in only:
            continue
        told = details.get(provider.pubkey, {})
        for way in ways_to(provider, carriage, selected=bool(only)):
            place = place_of(provider)
            for model in provider.models:
                endpoints = tuple(e for e in model.endpoints if e in ENDPOINTS)
                price = announced_price(model)
                if model.id not in told and price.free:
                    # what looks free may be sold by the image, or the minute
                    endpoints = tuple(e for e in endpoints if e not in MEDIA_ENDPOINTS)
                if not endpoints or not (model.priced or model.id in told):
                    continue
                context = model.context or DEFAULT_CONTEXT
                found.append(
                    Offer(
                        place=place,
                        way=way,
                        model=model.id,
                        endpoints=endpoints,
                        price=told.get(model.id, price),
                        context=context,
                        max_output=model.max_output or min(context, DEFAULT_OUTPUT),
                        mints=tuple(_mints(provider.announcement.mints)),
                        verified=provider.verified,
                        latency_ms=provider.latency_ms,
                        silent=provider.status == "offline",
                    )
                )
    return found


def place_of(provider: Provider) -> Place:
    """Where a provider is reached."""
    said = provider.announcement
    urls = [url for url in provider.endpoint_urls if not is_onion(url)]
    return Place(
        provider.pubkey, said.d, said.name or provider.npub, next(iter(urls), ""), said.relays
    )


def offer_again(spending: Spending, price: Price) -> Offer:
    """What was bought with ``spending``, whether or not it is still for sale."""
    return Offer(
        place=spending.place,
        way="nostr" if spending.carriage == "nostr" else "http",
        model=spending.model,
        endpoints=(),
        price=price,
        context=0,
        max_output=0,
        mints=(spending.mint,),
        verified=False,
        latency_ms=None,
    )


def announced_price(model: ModelOffer) -> Price:
    """What a model costs by its page."""
    other = model.other
    return Price(
        input_per_mtok=Msat(model.input_per_mtok),
        output_per_mtok=Msat(model.output_per_mtok),
        per_request=Msat(model.per_request),
        cached_per_mtok=_maybe(other.cached_per_mtok),
        cache_write_per_mtok=_maybe(other.cache_write_per_mtok),
        reasoning_per_mtok=_maybe(other.reasoning_per_mtok),
        per_image=Msat(other.per_image),
        per_audio_minute=Msat(other.per_audio_minute),
        per_mchar=Msat(other.per_mchar),
    )


def _maybe(price: int | None) -> Msat | None:
    return None if price is None else Msat(price)


def needs_details(provider: Provider) -> bool:
    """Whether it sells what its announcement tells no price of: pages did not always say it."""
    return any(
        MEDIA_ENDPOINTS.intersection(model.endpoints)
        and not (model.other.per_image or model.other.per_audio_minute or model.other.per_mchar)
        for model in provider.models
    )


def models_of(offers: Iterable[Offer]) -> list[Model]:
    """The offers as a catalogue: one model for all who sell it."""
    by_model: dict[str, list[Offer]] = {}
    for offer in offers:
        if offer.model in by_model or len(by_model) < MAX_MODELS:
            by_model.setdefault(offer.model, []).append(offer)
    return [
        Model(
            id=id_,
            backends=tuple(Backend(backend_name(o), o.price, id_) for o in sellers),
            context_length=max(o.context for o in sellers),
            max_output_tokens=max(o.max_output for o in sellers),
            endpoints=tuple(e for e in ENDPOINTS if any(e in o.endpoints for o in sellers)),
        )
        for id_, sellers in by_model.items()
    ]


def backend_name(offer: Offer) -> str:
    """How an offer's seller is called among the backends of a model."""
    return f"{offer.place.pubkey}:{offer.place.d}:{offer.way}"


def read_prices(document: bytes) -> dict[str, Price]:
    """Model → price, of a provider's ``GET /v1/models``; what is not plausible is left out."""
    try:
        data: Any = orjson.loads(document)
        entries = data["data"]
    except (ValueError, TypeError, KeyError):
        return {}
    found = {}
    for entry in entries if isinstance(entries, list) else []:
        price = _price(entry.get("sats_pricing")) if isinstance(entry, dict) else None
        if price is not None and isinstance(entry.get("id"), str):
            found[entry["id"]] = price
    return found


def _price(sats: object) -> Price | None:
    """A price told in sat (per token, request, image, minute, character)."""
    if not isinstance(sats, dict):
        return None

    def msat(name: str, per: int = 1) -> Msat | None:
        value = sats.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        amount = value * MSAT_PER_SAT * per
        return Msat(round(amount)) if 0 <= amount < 2**53 else None

    prompt, completion = msat("prompt", _PER_MTOK), msat("completion", _PER_MTOK)
    if prompt is None or completion is None:
        return None
    return Price(
        input_per_mtok=prompt,
        output_per_mtok=completion,
        per_request=msat("request") or Msat(0),
        cached_per_mtok=msat("input_cache_read", _PER_MTOK),
        cache_write_per_mtok=msat("input_cache_write", _PER_MTOK),
        reasoning_per_mtok=msat("internal_reasoning", _PER_MTOK),
        per_image=msat("image") or Msat(0),
        per_audio_minute=msat("audio_minute") or Msat(0),
        per_mchar=msat("character", _PER_MTOK) or Msat(0),
    )


def _mints(urls: Iterable[str]) -> Iterable[str]:
    for url in urls:
        try:
            yield normalize_mint_url(url)
        except ValueError:
            continue


# -- whom to buy from --------------------------------------------------------------------------


def weight(offer: Offer, record: Record, profile: Profile, typical: Usage) -> float:
    """How much an offer is worth choosing; above zero."""
    usage = replace(typical, completion_tokens=typical.completion_tokens or TYPICAL_OUTPUT)
    cost = max(1, offer.price.cost(usage))
    latency_ms = max(1, record.latency_ms or offer.latency_ms or TYPICAL_LATENCY_MS)
    # of those nobody has dealt with a third is expected to go wrong
    trust = (record.served + 2.0) / (record.served + 3.0 * record.failed + 3.0)
    trust *= (1.0 if offer.verified else 0.5) * 0.1**record.overcharged
    match profile:
        case "cheap":
            return trust / cost**3
        case "fast":
            return trust / latency_ms**3
        case "trusted":
            return trust**3 * (1 + record.served) / cost


def choose(
    offers: Sequence[Offer],
    records: Mapping[str, Record],
    profile: Profile,
    typical: Usage,
    *,
    rng: random.Random,
    now: float | None = None,
) -> Offer | None:
    """One of the offers: by weight among the best; those that failed lately or are silent only
    when there is nobody else, and those that took too much only when nobody else is left.

    None when there is none.
    """
    clock = time.time() if now is None else now
    honest = [offer for offer in offers if not shunned(_record(records, offer))]
    rested = [
        offer
        for offer in honest
        if not offer.silent and not cools_down(_record(records, offer), clock)
    ]
    ranked = sorted(
        (
            (weight(offer, _record(records, offer), profile, typical), position, offer)
            for position, offer in enumerate(rested or honest or offers)
        ),
        key=lambda entry: (-entry[0], entry[1]),
    )[:BEST]
    if not ranked:
        return None
    best = ranked[0][0]
    weights = [entry[0] / best for entry in ranked]
    return rng.choices([entry[2] for entry in ranked], weights)[0]


def shunned(record: Record) -> bool:
    """Whether a provider took more than its price so often that others are asked first, whatever
    they cost."""
    return record.overcharged * HONEST_ANSWERS > record.served


def cools_down(record: Record, now: float) -> bool:
    """Whether a provider failed so lately that others are asked first."""
    if not record.failed_in_a_row:
        return False
    doublings = min(record.failed_in_a_row - 1, 10)
    return now - record.failed_at < min(COOLDOWN_S << doublings, MAX_COOLDOWN_S)


def _record(records: Mapping[str, Record], offer: Offer) -> Record:
    return records.get(offer.place.pubkey, Record())
