"""``/v1/models`` and ``/v1/info`` as JSON-able documents.

Only here do prices become floats, because the network's clients read them as JSON numbers in
satoshi. Each is one division of integers: finite, and the nearest float there is.
"""

from __future__ import annotations

from typing import Any

from node.core.catalog import Catalog, Model
from node.core.identity import NodeInfo
from node.core.money import MSAT_PER_SAT

_PER_MTOK = 1_000_000
OWNER = "nodestr"
"""``owned_by`` of a model whose id names no vendor."""


def models_document(catalog: Catalog) -> dict[str, Any]:
    """The answer of ``GET /v1/models``: an OpenAI list."""
    return {"object": "list", "data": [model_document(model) for model in catalog]}


def model_document(model: Model) -> dict[str, Any]:
    """One model: OpenAI's fields, and what the network's clients need to choose and to pay.

    ``pricing`` is in sat per 1,000 tokens; ``sats_pricing`` is in sat per token, per request and
    per image, its ``max_*`` in sat per call.
    """
    price = model.price
    owner, slash, _ = model.id.partition("/")
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": owner if slash and owner else OWNER,
        "name": model.name or model.id,
        "description": model.description,
        "context_length": model.context_length,
        "architecture": {
            "modality": f"{'+'.join(model.modalities)}->text",
            "input_modalities": list(model.modalities),
            "output_modalities": ["text"],
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
            "image": 0.0,
            "max_prompt_cost": model.max_prompt_cost / MSAT_PER_SAT,
            "max_completion_cost": model.max_completion_cost / MSAT_PER_SAT,
            "max_cost": model.max_cost / MSAT_PER_SAT,
        },
    }


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
