"""``POST /v1/chat/completions``."""

from __future__ import annotations

from typing import Any

from node.core.catalog import Catalog, Model
from node.core.exchange import Request
from node.core.usage import Usage
from node.errors import InvalidValue
from node.service.inference.call import (
    EVENT_STREAM,
    JSON,
    JsonPayload,
    PreparedCall,
    check_fits,
    model_for,
    prompt_bound,
    wants_change_in_stream,
)
from node.service.inference.checks import refuse_long_caches
from node.service.inference.estimate import estimate_prompt
from node.service.inference.fields import ask_for_usage, flag, limit_output, optional_int
from node.service.inference.metering import meter_for
from node.service.inference.sizes import fit_chat
from node.service.json_body import json_object

MAX_CHOICES = 128
"""Largest ``n`` of a request."""


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
    model = model_for(catalog, document.get("model"), "chat")
    refuse_long_caches(document, request.body)
    _check_modalities(document, model)
    estimate = estimate_prompt(document)
    check_fits(estimate, model, "messages")
    stream = flag(document, "stream")
    include_usage = ask_for_usage(document) if stream else False
    choices = optional_int(document, "n", most=MAX_CHOICES) or 1
    if not stream:
        fit_chat(document, model, choices)
    per_choice = limit_output(
        document, model, ("max_completion_tokens", "max_tokens"), default="max_tokens"
    )
    bound = prompt_bound(estimate, model)
    return PreparedCall(
        model=model,
        endpoint="chat",
        path="/chat/completions",
        payload=JsonPayload(document, model),
        stream=stream,
        most=Usage(bound, per_choice * choices),
        typical=Usage(min(estimate.typical, bound), source="estimated"),
        make_meter=meter_for,
        include_usage=include_usage,
        change_in_stream=wants_change_in_stream(request),
        accept=(EVENT_STREAM,) if stream else (JSON,),
    )


def _check_modalities(document: dict[str, Any], model: Model) -> None:
    """Sound and images are dearer than text: only models sold with them give them."""
    wanted = document.get("modalities")
    if wanted is None:
        return
    if not isinstance(wanted, list):
        raise InvalidValue("modalities must be a list", param="modalities")
    for kind in wanted:
        if kind != "text" and kind not in model.output_modalities:
            raise InvalidValue("this model is sold for text", param="modalities")
