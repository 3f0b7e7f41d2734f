"""``/v1/models`` and ``/v1/info`` as JSON-able documents.

Only here do prices become floats, because the network's clients read them as JSON numbers in
satoshi. Each is one division of integers: finite, and the nearest float there is.
"""

from __future__ import annotations

from typing import Any

from node.core.catalog import Catalog, Model
from node.core.identity import NodeInfo
from node.core.money import MSAT_PER_SAT
from node.core.pricing import Price

_PER_MTOK = 1_000_000
OWNER = "nodestr"
"""``owned_by`` of a model whose id names no vendor."""


def models_document(catalog: Catalog) -> dict[str, Any]:
    """The answer of ``GET /v1/models``: an OpenAI list."""
    return {"object": "list", "data": [model_document(model) for model in catalog]}


def model_document(model: Model) -> dict[str, Any]:
    """One model: OpenAI's fields, and what the network's clients need to choose and to pay.

    ``pricing`` is in sat per 1,000 tokens; ``sats_pricing`` is in sat per token, per request, per
    image made, per minute of audio and per character read aloud, its ``max_*`` in sat per call.
    What is not priced apart from other tokens, or not at all, is left out of it.
    """
    price = model.price
    owner, slash, _ = model.id.partition("/")
    made = model.output_modalities
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": owner if slash and owner else OWNER,
        "name": model.name or model.id,
        "description": model.description,
        "context_length": model.context_length,
        "architecture": {
            "modality": f"{'+'.join(model.modalities)}->{'+'.join(made)}",
            "input_modalities": list(model.modalities),
            "output_modalities": list(made),
            "tokenizer": "Other",
            "instruct_type": None,
        },
        "root": model.id,
        "parent": None,
        "permission": [],
        "pricing": {
            "prompt": price.input_per_mtok * 1000 / (_PER_MTOK * MSAT_PER_SAT),
            "completion": price.output_per_mtok * 1000 / (_PER_MTOK * MSAT_PER_SAT),
            "unit": "1k tokens",
            "currency": "sat",
        },
        "sats_pricing": {
            "prompt": price.input_per_mtok / (_PER_MTOK * MSAT_PER_SAT),
            "completion": price.output_per_mtok / (_PER_MTOK * MSAT_PER_SAT),
            "request": price.per_request / MSAT_PER_SAT,
            "image": price.per_image / MSAT_PER_SAT,
            **_details(price),
            "max_prompt_cost": model.max_prompt_cost / MSAT_PER_SAT,
            "max_completion_cost": model.max_completion_cost / MSAT_PER_SAT,
            "max_cost": model.max_cost / MSAT_PER_SAT,
        },
    }


def _details(price: Price) -> dict[str, float]:
    """Prices that only some models have, under the names the network's other nodes use."""
    per_mtok = {
        "input_cache_read": price.cached_per_mtok,
        "input_cache_write": price.cache_write_per_mtok,
        "internal_reasoning": price.reasoning_per_mtok,
        "character": price.per_mchar or None,
    }
    details = {
        name: amount / (_PER_MTOK * MSAT_PER_SAT)
        for name, amount in per_mtok.items()
        if amount is not None
    }
    if price.per_audio_minute:
        details["audio_minute"] = price.per_audio_minute / MSAT_PER_SAT
    return details


def info_document(info: NodeInfo) -> dict[str, Any]:
    """The answer of ``GET /v1/info``. ``npub`` is what proves to a prober whose URL this is."""
    return {
        "name": info.name,
        "description": info.about,
        "version": info.version,
        "npub": info.npub,
        "mints": list(info.mints),
        "pubkey_lock": info.pubkey_lock or None,
        "http_url": info.http_urls[0] if info.http_urls else None,
        "http_urls": list(info.http_urls),
        "onion_url": info.onion_url,
        "relays": list(info.relays),
        "transports": list(info.transports),
        "wraps": list(info.wraps) if info.relays else [],
    }
