"""The models this node sells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from node.core.money import Msat
from node.core.pricing import Price
from node.errors import ModelNotFound


@dataclass(frozen=True, slots=True)
class Model:
    """One model for sale."""

    id: str
    upstream: str
    """Name of the upstream that serves it."""
    price: Price
    context_length: int
    max_output_tokens: int
    name: str = ""
    description: str = ""
    upstream_id: str = ""
    """The upstream's name for it; ``id`` when empty."""
    modalities: tuple[str, ...] = ("text",)
    endpoints: tuple[str, ...] = ("chat",)
    created: int = 0

    @property
    def max_prompt_cost(self) -> Msat:
        """Cost in msat of a prompt that fills the context."""
        return self.price.quote(self.context_length, 0)

    @property
    def max_completion_cost(self) -> Msat:
        """Cost in msat of the longest answer."""
        return self.price.quote(0, self.max_output_tokens)

    @property
    def max_cost(self) -> Msat:
        """The most a call can cost, in msat."""
        return self.price.quote(self.context_length, self.max_output_tokens)


class Catalog:
    """The models by id, in the order of the configuration."""

    def __init__(self, models: Iterable[Model]) -> None:
        self._models = {model.id: model for model in models}

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def __len__(self) -> int:
        return len(self._models)

    def get(self, model_id: str) -> Model:
        """The model of that id. Raises ModelNotFound."""
        try:
            return self._models[model_id]
        except KeyError:
            raise ModelNotFound(
                f"this node does not sell {model_id[:100]!r}; see /v1/models", param="model"
            ) from None
