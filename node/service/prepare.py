"""A paid call before the upstream: the client's request checked, bounded and written anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from node.core.catalog import Catalog, Model
from node.core.exchange import Request
from node.errors import ContextLengthExceeded, InvalidJson, InvalidValue
from node.service.estimate import MAX_BYTES_PER_TOKEN, estimate_prompt
from node.service.json_body import json_object

CHAT_PATH = "/chat/completions"
MAX_CHOICES = 128
"""Largest ``n`` of a request."""


@dataclass(frozen=True, slots=True)
class PreparedCall:
    """A request the upstream may get and the bounds of what it can consume."""

    model: Model
    path: str
    """Path below the upstream's base URL."""
    body: bytes
    """JSON for the upstream, written by us: it sees what was priced."""
    stream: bool
    include_usage: bool
    """The client asked for the usage chunk of the stream."""
    max_prompt_tokens: int
    max_completion_tokens: int
    """Of all choices together."""
    estimated_prompt_tokens: int
    """Charged when the upstream does not count."""
    change_in_stream: bool
    """The client takes its change in the last chunk (``X-Cashu-Change: event``)."""


def prepare_chat(request: Request, catalog: Catalog) -> PreparedCall:
    """Check and bound a chat completion request.

    The upstream gets the client's JSON with these changes: its own model id, the usage chunk
    always asked for in a stream, and an output limit always present and never above the
    model's, so that the bounds hold.

    Raises:
        UnsupportedMedia, RequestTooLarge: see ``json_object``.
        InvalidJson, InvalidValue: with ``param`` where one field is wrong.
        ModelNotFound, ContextLengthExceeded: the latter only when it is certain.
    """
    document = json_object(request)
    model_id = document.get("model")
    if not isinstance(model_id, str) or not model_id:
        raise InvalidValue("model must be a string", param="model")
    model = catalog.get(model_id)
    if "chat" not in model.endpoints:
        raise InvalidValue("this model does not take chat completions", param="model")

    estimate = estimate_prompt(document)
    if estimate.content_bytes > model.context_length * MAX_BYTES_PER_TOKEN:
        raise ContextLengthExceeded(
            f"the prompt does not fit the model's {model.context_length} tokens", param="messages"
        )
    stream = _flag(document, "stream")
    include_usage = _prepare_stream_options(document) if stream else False
    per_choice = _prepare_output_limit(document, model)
    choices = _optional_int(document, "n", most=MAX_CHOICES) or 1
    document["model"] = model.upstream_id or model.id
    bound = model.context_length if estimate.unseen else estimate.bound
    return PreparedCall(
        model=model,
        path=CHAT_PATH,
        body=_encode(document),
        stream=stream,
        include_usage=include_usage,
        max_prompt_tokens=min(bound, model.context_length),
        max_completion_tokens=per_choice * choices,
        estimated_prompt_tokens=min(estimate.typical, bound, model.context_length),
        change_in_stream=request.headers.get("x-cashu-change", "").strip().lower() == "event",
    )


def _encode(document: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError:  # it reads deeper nesting than it writes
        raise InvalidJson("the request is nested too deeply") from None


def _flag(document: dict[str, Any], name: str, *, param: str = "") -> bool:
    value = document.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidValue(f"{param or name} must be true or false", param=param or name)
    return value


def _optional_int(document: dict[str, Any], name: str, *, most: int | None = None) -> int | None:
    value = document.get(name)
    if value is None:
        return None
    if type(value) is not int or value < 1 or (most is not None and value > most):
        limits = "of at least 1" if most is None else f"from 1 to {most}"
        raise InvalidValue(f"{name} must be an integer {limits}", param=name)
    return value


def _prepare_stream_options(document: dict[str, Any]) -> bool:
    """Ask the upstream for usage; says whether the client had asked."""
    options = document.get("stream_options")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise InvalidValue("stream_options must be an object", param="stream_options")
    asked = _flag(options, "include_usage", param="stream_options.include_usage")
    document["stream_options"] = {**options, "include_usage": True}
    return asked


def _prepare_output_limit(document: dict[str, Any], model: Model) -> int:
    """Give the upstream a limit for each choice, at most the model's; returns it in tokens."""
    names = ("max_completion_tokens", "max_tokens")
    wanted = {name: _optional_int(document, name) for name in names}
    limit = min([model.max_output_tokens, *(value for value in wanted.values() if value)])
    used = [name for name, value in wanted.items() if value] or ["max_tokens"]
    for name in names:
        if name in used:
            document[name] = limit
        else:
            document.pop(name, None)
    return limit
