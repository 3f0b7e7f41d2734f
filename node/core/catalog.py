"""The models this node sells and the backends that serve them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias, get_args

from node.core.money import Msat
from node.core.pricing import Price, dearest
from node.core.usage import Usage
from node.errors import ModelNotFound, PriceUnknown

Endpoint: TypeAlias = Literal[
    "chat",
    "completions",
    "embeddings",
    "images",
    "transcriptions",
    "translations",
    "speech",
    "responses",
    "messages",
    "moderations",
    "rerank",
]
"""What a model can be used for."""
ENDPOINTS: tuple[Endpoint, ...] = get_args(Endpoint)


@dataclass(frozen=True, slots=True)
class Backend:
    """One upstream that serves a model, and what is charged when it does."""

    upstream: str
    """Name of the upstream."""
    price: Price
    upstream_id: str
    """The upstream's name for the model."""
    priority: int = 0
    """Lower numbers are tried first."""
    weight: int = 1
    """Its share among those of one priority, when they are chosen by weight."""
    context_length: int = 0
    """Tokens it takes at once; 0: as the model says."""


@dataclass(frozen=True)
class Model:
    """One model for sale."""

    id: str
    backends: tuple[Backend, ...]
    """At least one."""
    context_length: int
    max_output_tokens: int
    name: str = ""
    description: str = ""
    modalities: tuple[str, ...] = ("text",)
    """What it understands."""
    endpoints: tuple[str, ...] = ("chat",)
    """Of ``ENDPOINTS``."""
    created: int = 0
    output_modalities: tuple[str, ...] = ("text",)
    """What it makes."""
    aliases: tuple[str, ...] = ()
    """Other names clients may ask for it by."""
    max_completion_tokens_only: bool = False
    """Its upstreams refuse ``max_tokens`` and take ``max_completion_tokens`` in its place."""
    fixed: Mapping[str, str | int | float | bool] = field(default_factory=dict, hash=False)
    """Fields of a request that can have one value only: other values have another price."""

    @cached_property
    def price(self) -> Price:
        """What is announced: no call costs more, whichever backend serves it."""
        return dearest(backend.price for backend in self.backends)

    @cached_property
    def largest_context(self) -> int:
        """The most tokens that any backend takes at once."""
        return max(self.context_length, *(backend.context_length for backend in self.backends), 0)

    @property
    def max_prompt_cost(self) -> Msat:
        """Cost in msat of a prompt that fills the context."""
        return self.price.most(Usage(self.context_length))

    @property
    def max_completion_cost(self) -> Msat:
        """Cost in msat of the longest answer."""
        return self.price.most(Usage(0, self.max_output_tokens))

    @property
    def max_cost(self) -> Msat:
        """The most a text call can cost, in msat."""
        return self.price.most(Usage(self.context_length, self.max_output_tokens))


class Catalog:
    """The models by id, in the order of the configuration. ``replace`` is how prices and
    discovered models change while the node runs; who holds a Model keeps what it was."""

    def __init__(self, models: Iterable[Model] = ()) -> None:
        self._models: dict[str, Model] = {}
        self._names: dict[str, Model] = {}
        self.unpriced: Mapping[str, int] = {}
        """Names of models that are not sold because their price is not known just now, and in how
        many seconds it may be."""
        self.version = 0
        """Counts the replacements."""
        self.replace(models)

    def replace(self, models: Iterable[Model], unpriced: Mapping[str, int] | None = None) -> None:
        """Sell these from now on.

        Args:
            unpriced: see there.
        """
        self._models = {model.id: model for model in models}
        self._names = {alias: model for model in self for alias in model.aliases} | self._models
        self.unpriced = dict(unpriced or {})
        self.version += 1

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def __len__(self) -> int:
        return len(self._models)

    def get(self, model_id: str) -> Model:
        """The model of that id or alias. Raises ModelNotFound, PriceUnknown."""
        model = self._names.get(model_id)
        if model is not None:
            return model
        if model_id in self.unpriced:
            raise PriceUnknown(param="model", retry_after_s=self.unpriced[model_id])
        raise ModelNotFound(
            f"this node does not sell {model_id[:100]!r}; see /v1/models", param="model"
        )
