"""``POST /v1/completions``: text goes on where a prompt ends."""

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
    model_for,
    wants_change_in_stream,
)
from node.service.inference.estimate import TOKENS_PER_REQUEST
from node.service.inference.fields import ask_for_usage, flag, optional_int
from node.service.inference.inputs import (
    Measured,
    check_context,
    measure_inputs,
    measure_text,
    other_fields,
)
from node.service.inference.metering import meter_for
from node.service.inference.sizes import check_completion
from node.service.json_body import json_object

MAX_PROMPTS = 2048
MAX_CHOICES = 128
"""Largest ``n`` and ``best_of``."""
DEFAULT_MAX_TOKENS = 16
"""What the API has for a request without ``max_tokens``."""

_NOT_PROMPT = frozenset({
    "prompt", "suffix", "model", "stream", "stream_options", "max_tokens", "n", "best_of", "echo",
    "temperature", "top_p", "top_k", "min_p", "stop", "seed", "user", "logprobs", "logit_bias",
    "frequency_penalty", "presence_penalty", "repetition_penalty",
})  # fmt: skip


def prepare_completion(request: Request, catalog: Catalog) -> PreparedCall:
    """Check and bound a completion request.

    The upstream gets the client's JSON with its own model id, the usage chunk always asked for in
    a stream, and ``max_tokens`` always present and never above the model's.

    Raises what ``prepare_chat`` raises.
    """
    document = json_object(request)
    model = model_for(catalog, document.get("model"), "completions")
    prompts = measure_inputs(document.get("prompt"), "prompt", MAX_PROMPTS)
    if any(prompt.unseen for prompt in prompts):
        raise InvalidValue("prompt must hold texts or lists of tokens", param="prompt")
    if document.get("prompt_embeds") is not None:
        raise InvalidValue("prompts are taken as texts or tokens only", param="prompt_embeds")
    check_context(prompts, model.context_length, "prompt")
    stream = flag(document, "stream")
    include_usage = ask_for_usage(document) if stream else False
    limit = _limit(document, model)
    choices = max(
        optional_int(document, "n", most=MAX_CHOICES) or 1,
        optional_int(document, "best_of", most=MAX_CHOICES) or 1,
    )
    # every prompt may get what is printed with it; servers are known to embed what they know
    context = model.context_length
    beside = TOKENS_PER_REQUEST + _suffix(document) + other_fields(document, _NOT_PROMPT)
    bound = sum(_bound(prompt, beside, context) for prompt in prompts)
    generated = limit * choices * len(prompts)
    if flag(document, "echo"):  # some count what they repeat
        generated += bound * choices
    if not stream:
        read = sum(prompt.typical for prompt in prompts) if flag(document, "echo") else 0
        shown = optional_int(document, "n", most=MAX_CHOICES) or 1
        check_completion(document, (limit * len(prompts) + read) * shown)
    return PreparedCall(
        model=model,
        endpoint="completions",
        path="/completions",
        payload=JsonPayload(document, model),
        stream=stream,
        most=Usage(bound, generated),
        typical=Usage(min(sum(prompt.typical for prompt in prompts), bound), source="estimated"),
        make_meter=meter_for,
        include_usage=include_usage,
        change_in_stream=wants_change_in_stream(request),
        accept=(EVENT_STREAM,) if stream else (JSON,),
    )


def _bound(prompt: Measured, beside: int, context: int) -> int:
    return min(prompt.bound + beside, context)


def _suffix(document: dict[str, Any]) -> int:
    suffix = document.get("suffix")
    if suffix is None:
        return 0
    if not isinstance(suffix, str):
        raise InvalidValue("suffix must be a string", param="suffix")
    return measure_text(suffix).bound


def _limit(document: dict[str, Any], model: Model) -> int:
    """Give the upstream an output limit, in tokens: 1 for 0, which some take for no limit."""
    wanted = document.get("max_tokens")
    if wanted is None:
        wanted = DEFAULT_MAX_TOKENS
    if type(wanted) is not int or wanted < 0:
        raise InvalidValue("max_tokens must be an integer of at least 0", param="max_tokens")
    limit = max(1, min(wanted, model.max_output_tokens))
    document["max_tokens"] = limit
    return limit
