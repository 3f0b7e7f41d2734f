"""What other software says is for sale, in its own ways, as the one view: ``ModelOffer``.

    list of models    ``/v1/models`` of a node: ``sats_pricing`` in sat per token, or ``pricing``
                      in sat per 1,000 tokens
    JSON content      the same objects, or bare ids, under ``models`` in an announcement's content
    tags              ``["models", id, id …]``, ``["model", id]``, ``["model-cap", id, "k:v,…"]``

Prices become integer msat per million tokens, rounded up: nobody is shown less than he pays. Who
names no price in sat has an offer that is not ``priced``. Everything here is hostile input.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any

from discovery.nostr.event import Event
from discovery.offers import (
    MAX_MODELS,
    MAX_PRICE,
    ModelOffer,
    OtherPrices,
    announceable,
    one_name,
    one_other,
    words,
)
from discovery.wire import MAX_IDENTIFIER_CHARS, clean, text_field

_SAT_PER_TOKEN = Decimal(1_000_000_000)
"""msat per million tokens in one sat per token."""
_SAT_PER_1K = Decimal(1_000_000)
_MSAT = Decimal(1_000)
_MAX_NUMBER_CHARS = 40
_MODALITY_CAPS = {"vision": "image", "audio": "audio"}
_URL_FIELDS = ("endpoint_url", "endpoint", "http_url", "url", "onion_url")
_URL_LISTS = ("endpoint_urls", "endpoints", "urls")
_MINT_FIELDS = ("mint_urls", "mints", "mint")


def read_models(entries: object, *, max_models: int = MAX_MODELS) -> tuple[ModelOffer, ...]:
    """The models in a list of objects or ids; what is neither, or has no usable id, is left out."""
    if isinstance(entries, Mapping):
        entries = entries.get("data", entries.get("models"))
    if not isinstance(entries, list):
        return ()
    offers: dict[str, ModelOffer] = {}
    for entry in entries[:max_models]:
        offer = _named(entry) if isinstance(entry, str) else _model(entry)
        if offer is not None:
            offers.setdefault(offer.id, offer)
    return tuple(offers.values())


def claimed_models(event: Event, content: Mapping[str, Any]) -> tuple[ModelOffer, ...]:
    """The models that an announcement itself names, in its content or in its tags."""
    offers = {offer.id: offer for offer in read_models(content.get("models"))}
    ids = [id_ for tag in event.tags if tag[0] == "models" for id_ in tag[1:]]
    for id_ in (*ids, *event.values("model")):
        offer = _named(id_)
        if offer is not None and len(offers) < MAX_MODELS:
            offers.setdefault(offer.id, offer)
    for tag in event.tags:
        if tag[0] == "model-cap" and len(tag) > 2 and tag[1] in offers:
            offers[tag[1]] = _capable(offers[tag[1]], tag[2])
    return tuple(offers.values())


def content_urls(content: Mapping[str, Any]) -> list[str]:
    """Base URLs that a JSON content names, unchecked."""
    return [*_texts(content, _URL_FIELDS), *_texts(content, _URL_LISTS)]


def content_mints(content: Mapping[str, Any]) -> list[str]:
    """Mints that a JSON content names, unchecked."""
    return _texts(content, _MINT_FIELDS)


def _texts(content: Mapping[str, Any], fields: Iterable[str]) -> list[str]:
    found: list[str] = []
    for name in fields:
        value = content.get(name)
        found += [value] if isinstance(value, str) else []
        found += [v for v in value if isinstance(v, str)] if isinstance(value, list) else []
    return found


def _model(entry: object) -> ModelOffer | None:
    if not isinstance(entry, Mapping) or entry.get("enabled") is False:
        return None
    bare = _named(text_field(entry, "id"))
    if bare is None:
        return None
    top = _object(entry, "top_provider")
    architecture = _object(entry, "architecture")
    modalities = [
        word
        for side in ("input_modalities", "output_modalities")
        for word in words(architecture.get(side))
    ]
    offer = bare._replace(
        name=one_name(text_field(entry, "name")),
        context=_count(entry.get("context_length"), entry.get("context_window")),
        max_output=_count(entry.get("max_output_tokens"), top.get("max_completion_tokens")),
        modalities=words(modalities) or ("text",),
        endpoints=words(entry.get("endpoints")) or ("chat",),
    )
    prices = _prices(entry)
    if prices is None:
        return offer
    prompt, completion, request, other = prices
    priced = offer._replace(
        input_per_mtok=prompt,
        output_per_mtok=completion,
        per_request=request,
        priced=True,
        other=other,
    )
    return priced if announceable(priced) else offer


def _prices(entry: Mapping[str, Any]) -> tuple[int, int, int, OtherPrices] | None:
    """msat per million tokens in and out, msat per request, and what else has a price; None when
    not said in sat."""
    table = _object(entry, "sats_pricing")
    factor = _SAT_PER_TOKEN
    if not table:
        table = _object(entry, "pricing")
        factor = _SAT_PER_1K
        unit, currency = text_field(table, "unit").lower(), text_field(table, "currency").lower()
        if currency not in ("sat", "sats") or unit not in ("1k tokens", "1k", "1000 tokens"):
            return None
    prompt, completion = (
        _amount(table.get("prompt"), factor),
        _amount(table.get("completion"), factor),
    )
    request = _amount(table.get("request", 0), _MSAT)
    if prompt is None or completion is None or request is None:
        return None
    # a zero for one of these says in the tables of the network that it has no price of its own
    other = one_other(
        *(
            _amount(table.get(name), factor) or None
            for name in ("input_cache_read", "input_cache_write", "internal_reasoning")
        ),
        _amount(table.get("image"), _MSAT) or 0,
        _amount(table.get("audio_minute"), _MSAT) or 0,
        _amount(table.get("character"), factor) or 0,
    )
    if not (prompt or completion or request) and any(other):
        return None  # sold by the image, say: to show it as free would be wrong
    return prompt, completion, request, other


def _amount(value: object, factor: Decimal) -> int | None:
    """``value`` times ``factor``, rounded up; None for no number, below zero or too large."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    text = str(value)
    if len(text) > _MAX_NUMBER_CHARS:
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    if not number.is_finite() or number < 0 or number > MAX_PRICE:
        return None
    amount = int((number * factor).to_integral_value(ROUND_CEILING))
    return amount if amount <= MAX_PRICE else None


def _count(*values: object) -> int:
    for value in values:
        if type(value) is int and 0 < value <= MAX_PRICE:
            return value
    return 0


def _named(id_: str) -> ModelOffer | None:
    if not id_ or clean(id_, MAX_IDENTIFIER_CHARS) != id_:
        return None
    return ModelOffer(sys.intern(str(id_)), priced=False)


def _capable(offer: ModelOffer, capabilities: str) -> ModelOffer:
    """``max_tokens:128000,vision:true``: the first is the context length, of all who wrote it."""
    said = dict(part.partition(":")[::2] for part in capabilities[:500].split(","))
    length = said.get("max_tokens", "")
    context = int(length) if length.isascii() and length.isdigit() and len(length) < 10 else 0
    more = tuple(word for cap, word in _MODALITY_CAPS.items() if said.get(cap) == "true")
    modalities = tuple(dict.fromkeys((*offer.modalities, *more)))
    return offer._replace(context=offer.context or context, modalities=modalities)


def _object(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}
