"""What is for sale, at which prices, and the model servers behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from node.admin.exchange import AdminRequest, AdminRoute
from node.admin.parts import DeskParts
from node.core.catalog import Backend, Model
from node.core.plans import ModelPlan
from node.core.pricing import Price
from node.errors import InvalidValue
from node.ops.redaction import redact
from node.settings_market import ModelSettings

MAX_ERROR_CHARS = 300


class MarketSection:
    """``/models``, ``/models/{id}`` and ``/upstreams``."""

    def __init__(self, parts: DeskParts) -> None:
        self._parts = parts

    def routes(self) -> Iterable[AdminRoute]:
        yield AdminRoute("GET", "/models", answer=self._models)
        yield AdminRoute("PATCH", "/models/{id}", answer=self._change)
        yield AdminRoute("GET", "/upstreams", answer=self._upstreams)

    async def _models(self, request: AdminRequest) -> dict[str, Any]:
        del request
        return {"models": self._documents()}

    async def _change(self, request: AdminRequest) -> dict[str, Any]:
        """Change fields of a [[models]] entry; null takes the change of a field back."""
        id_ = request.parameters["id"]
        if not request.document:
            raise InvalidValue("name the fields to change")
        told = await self._parts.change_settings({"models": {id_: dict(request.document)}})
        found = [model for model in self._documents() if model["id"] == id_]
        return {"model": found[0] if found else None, **told}

    def _documents(self) -> list[dict[str, Any]]:
        configured = {model.id: model for model in self._parts.settings().models}
        overridden = set(self._parts.overridden_models())
        sold = {model.id: model for model in self._parts.catalog}
        return [
            _document(plan, sold.get(plan.id), configured.get(plan.id), plan.id in overridden)
            for plan in self._parts.stock.wanted()
        ]

    async def _upstreams(self, request: AdminRequest) -> dict[str, Any]:
        del request
        counts = Counter(
            name for model in self._parts.catalog for name in {b.upstream for b in model.backends}
        )
        urls = {upstream.name: upstream.base_url for upstream in self._parts.settings().upstreams}
        return {
            "upstreams": [
                {
                    "name": lane.name,
                    "dialect": lane.dialect,
                    "base_url": urls.get(lane.name),
                    "state": lane.circuit,
                    "trouble": lane.trouble,
                    "in_use": lane.running,
                    "waiting": lane.waiting,
                    "max_concurrency": lane.max_concurrency or None,
                    "paused_models": lane.paused,
                    "models": counts[lane.name],
                    "answered": lane.answered,
                    "failed": lane.failed,
                    "last_error": redact(lane.last_error)[:MAX_ERROR_CHARS] or None,
                    "balance_msat": lane.balance_msat,
                }
                for lane in self._parts.upstreams()
            ]
        }


def _document(
    plan: ModelPlan, sold: Model | None, configured: ModelSettings | None, overridden: bool
) -> dict[str, Any]:
    price = None if sold is None else sold.price
    prices = {} if sold is None else {_key(backend): backend.price for backend in sold.backends}
    source = "override" if overridden else "settings" if configured else "discovered"
    return {
        "id": plan.id,
        "name": plan.name or plan.id,
        "description": plan.description,
        "free": price is not None and price == Price(),
        "source": source,
        "aliases": list(plan.aliases),
        "endpoints": list(plan.endpoints),
        "context_length": plan.context_length,
        "max_output_tokens": plan.max_output_tokens,
        "on_sale": sold is not None,
        "why_not": None if sold is not None else _why_not(plan),
        "price": None if price is None else price_document(price),
        "max_cost_msat": None if sold is None else sold.max_cost,
        "configured": (
            {} if configured is None else configured.model_dump(mode="json", exclude_unset=True)
        ),
        "backends": [
            {
                "upstream": backend.upstream,
                "upstream_id": backend.upstream_id,
                "priority": backend.priority,
                "weight": backend.weight,
                "price": (
                    price_document(prices[name])
                    if (name := (backend.upstream, backend.upstream_id)) in prices
                    else None
                ),
            }
            for backend in plan.backends
        ],
    }


def _key(backend: Backend) -> tuple[str, str]:
    return backend.upstream, backend.upstream_id


def price_document(price: Price) -> dict[str, int | None]:
    """A price in msat; None where another kind's holds."""
    return {
        "input_msat_per_mtok": price.input_per_mtok,
        "output_msat_per_mtok": price.output_per_mtok,
        "per_request_msat": price.per_request,
        "cached_msat_per_mtok": price.cached_per_mtok,
        "cache_write_msat_per_mtok": price.cache_write_per_mtok,
        "reasoning_msat_per_mtok": price.reasoning_per_mtok,
        "per_image_msat": price.per_image,
        "per_audio_minute_msat": price.per_audio_minute,
        "per_mchar_msat": price.per_mchar,
    }


def _why_not(plan: ModelPlan) -> str:
    if not plan.enabled:
        return "it is switched off"
    if not plan.endpoints:
        return "no upstream of it can be sent the calls of its endpoints"
    if plan.in_usd:
        return "its price is in USD and the exchange rate is not known now"
    if any(backend.tariff is None for backend in plan.backends):
        return "its upstream lists no price for it now"
    return "there are more models than can be sold"
