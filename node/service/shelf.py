"""What is for sale at this moment, out of what the operator wants to sell, what the upstreams list
and what a bitcoin costs.

    [[models]] ──────────────┐
    lists of the upstreams ──┼─▶ rebuild ─▶ Catalog.replace ─▶ changed (announcements)
    USD per BTC ─────────────┘

Whatever shows or charges a price reads the catalogue, so all of them show and charge the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import structlog

from node.core.catalog import Catalog, Model
from node.core.plans import BackendPlan, Listed, ListTerms, ModelPlan, merged

log = structlog.get_logger()

MAX_MODELS = 800
"""Most models for sale: clients take no list of more than a MiB."""
RATE_RETRY_S = 30
LIST_RETRY_S = 10
"""What a client is told to wait for a price."""


class Shelf:
    """Keeps the catalogue.

    Args:
        plans: the operator's models.
        terms: of the upstreams whose lists are sold.
        serves: whether calls of an endpoint can be sent to an upstream.
        changed: called after the catalogue has become another.
    """

    def __init__(
        self,
        catalog: Catalog,
        plans: Sequence[ModelPlan],
        terms: Iterable[ListTerms],
        serves: Callable[[str, str], bool],
        changed: Callable[[], object] = lambda: None,
    ) -> None:
        self._catalog = catalog
        self._plans = tuple(plans)
        self._terms = {item.upstream: item for item in terms}
        self._serves = serves
        self._lists: dict[str, Mapping[str, Listed]] = {}
        self._rate: Fraction | None = None
        self.changed = changed
        self.rebuild()

    @property
    def needs_rate(self) -> bool:
        """Whether anything for sale may be priced in USD."""
        return any(plan.in_usd for plan in self._plans) or any(
            terms.default is not None and terms.default.in_usd for terms in self._terms.values()
        )

    def wanted(self) -> list[ModelPlan]:
        """All that could be sold: the operator's models, whether they can be sold now or not, and
        what is listed besides."""
        offered = self._all()
        known = {plan.id for plan in offered}
        unserved = [self._resolved(plan) for plan in self._plans if plan.id not in known]
        return [*offered, *unserved]

    def sell(self, plans: Sequence[ModelPlan], terms: Iterable[ListTerms]) -> None:
        """Other models and terms from now on; calls that run are charged what they began with."""
        self._plans = tuple(plans)
        self._terms = {item.upstream: item for item in terms}
        self.rebuild()

    def listed(self, upstream: str, models: Sequence[Listed] | None) -> None:
        """``upstream`` lists these now; None: it is not known any more."""
        if models is None:
            self._lists.pop(upstream, None)
        else:
            self._lists[upstream] = {model.id: model for model in models}
        self.rebuild()

    def rate(self, usd_per_btc: Fraction | None) -> None:
        """USD per BTC; None: it is not known any more."""
        self._rate = usd_per_btc
        self.rebuild()

    def rebuild(self) -> None:
        """Put on sale what has a price now."""
        models: list[Model] = []
        unpriced: dict[str, int] = {}
        for plan in self._all():
            model = plan.model(self._rate)
            if model is not None:
                models.append(model)
                continue
            if not plan.enabled:
                continue
            waits_s = RATE_RETRY_S if plan.in_usd else LIST_RETRY_S
            unpriced |= dict.fromkeys((plan.id, *plan.aliases), waits_s)
        if len(models) > MAX_MODELS:
            log.warning("too_many_models", count=len(models), sold=MAX_MODELS)
            models = models[:MAX_MODELS]
        if list(self._catalog) == models and self._catalog.unpriced == unpriced:
            return
        self._catalog.replace(models, unpriced)
        log.info("catalogue", models=len(models), without_price=len(unpriced))
        self.changed()

    def _all(self) -> list[ModelPlan]:
        plans = [self._resolved(plan) for plan in self._plans]
        taken = {name for plan in self._plans for name in (plan.id, *plan.aliases)}
        found: dict[str, list[ModelPlan]] = {}
        for upstream, terms in self._terms.items():
            offers = (terms.plan(listed) for listed in self._lists.get(upstream, {}).values())
            wanted = [plan for plan in offers if plan is not None and plan.id not in taken]
            if len(wanted) > terms.max_models:
                log.warning(
                    "too_many_models", upstream=upstream, count=len(wanted), sold=terms.max_models
                )
            for plan in wanted[: terms.max_models]:
                found.setdefault(plan.id, []).append(self._servable(plan))
        plans += [
            merged(known) for some in found.values() if (known := [p for p in some if p.endpoints])
        ]
        return [plan for plan in plans if plan.endpoints]

    def _resolved(self, plan: ModelPlan) -> ModelPlan:
        """With the listed prices of those backends that have none of their own."""
        backends = tuple(self._priced(backend) for backend in plan.backends)
        return self._servable(replace(plan, backends=backends))

    def _priced(self, backend: BackendPlan) -> BackendPlan:
        if backend.tariff is not None:
            return backend
        listed = self._lists.get(backend.upstream, {}).get(backend.upstream_id)
        if listed is None:
            return backend
        tariff = self._terms[backend.upstream].tariff(listed, backend.markup_percent)
        return replace(backend, tariff=tariff)

    def _servable(self, plan: ModelPlan) -> ModelPlan:
        """With those endpoints that a backend of it serves."""
        endpoints = tuple(
            endpoint
            for endpoint in plan.endpoints
            if any(self._serves(backend.upstream, endpoint) for backend in plan.backends)
        )
        return plan if endpoints == plan.endpoints else replace(plan, endpoints=endpoints)
