"""A paid call before the upstream: checked, bounded and written anew."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import orjson

from node.core.catalog import Catalog, Model
from node.core.exchange import Request
from node.core.money import Msat
from node.core.usage import Usage
from node.errors import ContextLengthExceeded, InvalidJson, InvalidValue, UpstreamFailed
from node.ports import Payload
from node.service.inference.checks import refuse_file_ids, with_fixed
from node.service.inference.estimate import MAX_BYTES_PER_TOKEN, PromptEstimate

JSON = "application/json"
EVENT_STREAM = "text/event-stream"


class Meter(Protocol):
    """Stands in the answer's way: lets bytes through, reads the usage, and holds the end back
    until the cost is known."""

    @property
    def failure(self) -> UpstreamFailed | None:
        """Set when the upstream reported an error inside an answer that began well: what follows
        is dropped and ``complete`` stays False."""
        ...

    @property
    def complete(self) -> bool:
        """The whole answer has arrived. To be read when the upstream has ended."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Take upstream bytes, none when the upstream has ended; gives what may go to the client
        now. Raises UpstreamFailed when a bound is passed."""
        ...

    def usage(self) -> Usage:
        """The upstream's count, else an estimate of what was seen so far."""
        ...

    def finish(self, cost: Msat, change: str | None) -> bytes:
        """The rest of the answer, with its cost in msat."""
        ...

    def cut(self, cost: Msat, change: str | None) -> bytes:
        """The end of an answer its client wants no more of: without the mark of a whole one."""
        ...

    def abort(self, document: dict[str, Any], change: str | None = None) -> bytes:
        """Bytes that end an answer that broke off: ``document`` is the error's."""
        ...


@dataclass(frozen=True, slots=True)
class PreparedCall:
    """A request the upstream may get and the bounds of what it can consume."""

    model: Model
    endpoint: str
    """Of ``catalog.ENDPOINTS``."""
    path: str
    """Path below the upstream's base URL."""
    payload: Payload
    """What the upstream gets, written by us: it sees what was priced."""
    stream: bool
    most: Usage
    """Never below what the call can consume; sizes the hold."""
    typical: Usage
    """The input, as charged when the upstream does not count."""
    make_meter: Callable[[PreparedCall], Meter]
    include_usage: bool = False
    """The client asked for the usage chunk of the stream."""
    change_in_stream: bool = False
    """The client takes its change in the last chunk (``X-Cashu-Change: event``)."""
    content_type: str | None = None
    """What the client gets, when the meter makes that of an answer of another type."""
    accept: tuple[str, ...] = (JSON,)
    """Content types the answer may have; one that ends in ``/`` stands for all of its kind."""
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Of the client's headers those that the upstream may see; lower-case names."""


Prepare = Callable[[Request, Catalog], PreparedCall | Awaitable[PreparedCall]]
"""Reads a request of one endpoint; the place where a new paid endpoint begins. One that takes
long to read gives others their turn in between."""


_NOT_THE_CLIENTS = frozenset({
    # other models or servers, dearer ones too, on the operator's account (OpenRouter, LiteLLM)
    "models", "route", "provider", "preset", "fallbacks", "model_group", "api_base", "base_url",
    "api_key", "api_version", "custom_llm_provider", "extra_body", "extra_headers", "headers",
    # other names for the limits that are set here (llama.cpp, Ollama, text-generation-webui, TGI)
    "n_predict", "num_predict", "max_new_tokens", "auto_max_new_tokens", "max_length",
    "max_gen_len", "n_cmpl", "options",
})  # fmt: skip
"""What is decided here; it is left out of what the upstream gets."""
_EXTRAS = (
    "plugins", "web_search_options", "data_sources", "search_parameters", "enable_search",
    "web_search",
)  # fmt: skip
"""What a server does for these costs a fee of its own, which no usage shows."""
DEAR_TIERS = frozenset({"priority", "fast", "scale"})


def sold(document: dict[str, Any]) -> dict[str, Any]:
    """``document`` without what is not the client's to choose.

    Raises InvalidValue for what would cost the operator more than is counted.
    """
    for name in _EXTRAS:
        if document.get(name) not in (None, False, []):  # an empty object asks for it, too
            raise InvalidValue(f"{name} is not sold here", param=name)
    tier = document.get("service_tier")
    if isinstance(tier, str) and tier in DEAR_TIERS:
        raise InvalidValue("this service tier is not sold here", param="service_tier")
    if _NOT_THE_CLIENTS.isdisjoint(document):
        return document
    return {name: value for name, value in document.items() if name not in _NOT_THE_CLIENTS}


class JsonPayload:
    """A JSON request.

    Raises InvalidJson when ``document`` is nested too deeply to be written, and what ``sold``,
    ``with_fixed`` and ``refuse_file_ids`` raise.
    """

    content_type = JSON

    def __init__(self, document: dict[str, Any], model: Model) -> None:
        self.document = with_fixed(sold(document), model)
        self._encoded: tuple[str, bytes] | None = None
        refuse_file_ids(self.document, self.encode(model.backends[0].upstream_id))

    def encode(self, upstream_id: str) -> bytes:
        """The body for an upstream that calls the model so."""
        if self._encoded is None or self._encoded[0] != upstream_id:
            try:
                data = orjson.dumps(self.document | {"model": upstream_id})
            except orjson.JSONEncodeError:  # it reads deeper nesting than it writes
                raise InvalidJson("the request is nested too deeply") from None
            self._encoded = (upstream_id, data)
        return self._encoded[1]


def model_for(catalog: Catalog, model_id: object, endpoint: str) -> Model:
    """The model a request names, when it is sold for ``endpoint``.

    Raises InvalidValue and ModelNotFound.
    """
    if not isinstance(model_id, str) or not model_id:
        raise InvalidValue("model must be a string", param="model")
    model = catalog.get(model_id)
    if endpoint not in model.endpoints:
        offered = ", ".join(model.endpoints)
        raise InvalidValue(
            f"this model is not sold for {endpoint}, but for {offered}", param="model"
        )
    return model


def check_fits(estimate: PromptEstimate, model: Model, param: str) -> None:
    """Raises ContextLengthExceeded when a prompt is too long for certain."""
    what = "input" if param == "input" else "prompt"
    if estimate.content_bytes > model.context_length * MAX_BYTES_PER_TOKEN:
        raise ContextLengthExceeded(
            f"the {what} does not fit the model's {model.context_length} tokens", param=param
        )


def prompt_bound(estimate: PromptEstimate, model: Model) -> int:
    """How many tokens a prompt may come to: no more than a backend of the model takes at once.

    A prompt that looks longer than that is held at what its bytes may be: then a context is
    larger than this node was told, or the upstream refuses it.
    """
    context = model.largest_context
    if estimate.unseen:
        return max(context, estimate.typical)
    return estimate.bound if estimate.typical > context else min(estimate.bound, context)


def wants_change_in_stream(request: Request) -> bool:
    """Whether the client takes its change in the stream's last chunk."""
    return request.headers.get("x-cashu-change", "").strip().lower() == "event"
