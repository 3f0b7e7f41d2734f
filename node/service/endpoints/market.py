"""``GET /v1/market/{model}``: the order book of one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from discovery.market import order_book
from discovery.snapshot import DirectorySnapshot
from node.errors import ModelNotFound
from node.service.endpoints.providers import Query


def market(snapshot: DirectorySnapshot, model: str, query: Mapping[str, str]) -> dict[str, Any]:
    """Who sells the model, for how much, over which carriages; see ``discovery.market``.

    Args:
        query: the filters of ``/v1/providers``: ``mint, transport, status, verified,
            max_prompt_price, max_completion_price, pubkey, limit``.

    Raises InvalidValue with the parameter's name, ModelNotFound when nobody sells it.
    """
    wanted = Query.parse({**query, "model": model, "sort": "rank", "cursor": ""})
    selling = snapshot.selling(model)
    if not selling:
        raise ModelNotFound("nobody announces this model", param="model")
    return order_book(model, filter(wanted.matches, selling), wanted.limit)
