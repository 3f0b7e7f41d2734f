"""What a node wants to sell, before it is known what that costs in msat just now."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from fractions import Fraction

from node.core.catalog import Backend, Model
from node.core.tariff import FREE, Tariff
from node.core.usage import Usage

TYPICAL = Usage(3_000, 1_000, images=1, audio_ms=60_000, characters=1_000)
"""The call by which prices are compared."""


_NEWER = re.compile(r"(?:^|/)(?:o[1-9]\b|gpt-5)", re.IGNORECASE)


def takes_only_newer_limit(model_id: str) -> bool:
    """Whether a model of that name refuses ``max_tokens``, as OpenAI's reasoning models do."""
    return _NEWER.search(model_id) is not None


@dataclass(frozen=True, slots=True)
class BackendPlan:
    """One upstream of a model."""

    upstream: str
    upstream_id: str
    tariff: Tariff | None
    """None: what the upstream lists, with ``markup_percent``."""
    priority: int = 0
    weight: int = 1
    markup_percent: Fraction = Fraction(0)
    """On top of what the upstream lists."""
    context_length: int = 0
    """Tokens it takes at once; 0: as the model says."""


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """One model; fields as in ``catalog.Model``."""

    id: str
    backends: tuple[BackendPlan, ...]
    context_length: int
    max_output_tokens: int
    name: str = ""
    description: str = ""
    modalities: tuple[str, ...] = ("text",)
    output_modalities: tuple[str, ...] = ("text",)
    endpoints: tuple[str, ...] = ("chat",)
    aliases: tuple[str, ...] = ()
    created: int = 0
    max_completion_tokens_only: bool = False
    fixed: Mapping[str, str | int | float | bool] = field(default_factory=dict, hash=False)
    enabled: bool = True
    """Whether it is sold; its names stay taken."""

    @property
    def in_usd(self) -> bool:
        """Whether a backend's price depends on the exchange rate."""
        return any(
            backend.tariff is not None and backend.tariff.in_usd for backend in self.backends
        )

    def model(self, usd_per_btc: Fraction | None) -> Model | None:
        """The catalogue's entry, with those backends whose price is known, the likeliest to serve
        first; None without any, and when it is not sold."""
        if not self.enabled:
            return None
        backends = [
            Backend(
                backend.upstream,
                price,
                backend.upstream_id,
                backend.priority,
                backend.weight,
                backend.context_length,
            )
            for backend in self.backends
            if backend.tariff is not None
            and (price := backend.tariff.price(usd_per_btc)) is not None
        ]
        if not backends:
            return None
        backends.sort(key=lambda backend: (backend.priority, backend.price.cost(TYPICAL)))
        return Model(
            id=self.id,
            backends=tuple(backends),
            context_length=self.context_length,
            max_output_tokens=self.max_output_tokens,
            name=self.name or self.id,
            description=self.description,
            modalities=self.modalities,
            endpoints=self.endpoints,
            created=self.created,
            output_modalities=self.output_modalities,
            aliases=self.aliases,
            max_completion_tokens_only=self.max_completion_tokens_only,
            fixed=self.fixed,
        )


@dataclass(frozen=True, slots=True)
class Listed:
    """A model as an upstream lists it."""

    id: str
    tariff: Tariff | None = None
    """None: no price is listed."""
    context_length: int = 0
    """Tokens; 0: not said."""
    max_output_tokens: int = 0
    """Tokens; 0: not said."""
    name: str = ""
    description: str = ""
    modalities: tuple[str, ...] = ("text",)
    output_modalities: tuple[str, ...] = ("text",)
    endpoints: tuple[str, ...] = ()
    """Of ``catalog.ENDPOINTS``; none: not said."""
    created: int = 0
    unmetered: tuple[str, ...] = ()
    """What the upstream charges apart, and this node cannot."""


@dataclass(frozen=True, slots=True)
class ListTerms:
    """On which terms the models that one upstream lists are sold."""

    upstream: str
    only: tuple[str, ...] = ()
    """Patterns of ids; none: all."""
    exclude: tuple[str, ...] = ()
    markup_percent: Fraction = Fraction(0)
    default: Tariff | None = None
    """For what is listed without a price."""
    free: bool = False
    """Give away what has no price otherwise."""
    sell_unmetered: bool = False
    default_context_length: int = 0
    default_max_output_tokens: int = 4096
    endpoints: tuple[str, ...] = ("chat",)
    priority: int = 0
    weight: int = 1
    max_models: int = 300

    def tariff(self, listed: Listed, markup_percent: Fraction | None = None) -> Tariff | None:
        """What this node asks for; None when no price is known. A listed price of nothing at all
        is no price."""
        if listed.tariff is not None and not listed.tariff.free:
            markup = self.markup_percent if markup_percent is None else markup_percent
            return listed.tariff.raised(markup)
        return self.default or (FREE if self.free else None)

    def plan(self, listed: Listed) -> ModelPlan | None:
        """The model for sale; None when it is not, or its price or its context is not known."""
        if (self.only and not _any(self.only, listed.id)) or _any(self.exclude, listed.id):
            return None
        if listed.unmetered and not self.sell_unmetered:
            return None
        tariff = self.tariff(listed)
        context = listed.context_length or self.default_context_length
        if tariff is None or context < 1:
            return None
        backend = BackendPlan(
            self.upstream,
            listed.id,
            tariff,
            self.priority,
            self.weight,
            context_length=context,
        )
        return ModelPlan(
            id=listed.id,
            backends=(backend,),
            context_length=context,
            max_output_tokens=min(
                listed.max_output_tokens or self.default_max_output_tokens, context
            ),
            name=listed.name or listed.id,
            description=listed.description,
            modalities=listed.modalities,
            output_modalities=listed.output_modalities,
            endpoints=listed.endpoints or self.endpoints,
            created=listed.created,
            max_completion_tokens_only=takes_only_newer_limit(listed.id),
        )


def _any(patterns: Iterable[str], model_id: str) -> bool:
    return any(fnmatchcase(model_id, pattern) for pattern in patterns)


def merged(plans: Sequence[ModelPlan]) -> ModelPlan:
    """Plans of one id as one model with all their backends, which promises no more than each of
    them does. A plan that shares no endpoint with those before is left out."""
    result = plans[0]
    for plan in plans[1:]:
        endpoints = _common(result.endpoints, plan.endpoints)
        if not endpoints:
            continue
        result = replace(
            result,
            backends=result.backends + plan.backends,
            context_length=min(result.context_length, plan.context_length),
            max_output_tokens=min(result.max_output_tokens, plan.max_output_tokens),
            modalities=_common(result.modalities, plan.modalities) or ("text",),
            endpoints=endpoints,
        )
    return result


def _common(some: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    wanted = set(others)
    return tuple(item for item in some if item in wanted)
