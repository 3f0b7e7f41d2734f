"""``POST /v1/embeddings``. Vectors pass as they come, numbers or base64."""

from __future__ import annotations

from functools import partial

from node.core.catalog import Catalog
from node.core.exchange import Request
from node.core.usage import Usage
from node.service.inference.bodies import DocumentMeter
from node.service.inference.call import JsonPayload, PreparedCall, model_for
from node.service.inference.inputs import (
    check_context,
    measure_inputs,
    other_fields,
    read_input_usage,
)
from node.service.inference.sizes import check_vectors
from node.service.json_body import json_object

MAX_INPUTS = 2048
MAX_STRUCTURE = 400_000
"""Of the body: 300,000 tokens, the most that is sold at once elsewhere, are as many commas."""

_NOT_INPUT = frozenset({"input", "model", "encoding_format", "dimensions", "user"})


def prepare_embeddings(request: Request, catalog: Catalog) -> PreparedCall:
    """Check and bound a request for embeddings.

    ``input`` is a text, a list of tokens, or a list of up to MAX_INPUTS of either. Any other field
    may be printed into each of them.

    Raises what ``prepare_chat`` raises.
    """
    document = json_object(request, max_structure=MAX_STRUCTURE)
    model = model_for(catalog, document.get("model"), "embeddings")
    inputs = measure_inputs(document.get("input"), "input", MAX_INPUTS)
    check_vectors(document, len(inputs))
    context = model.context_length
    if not isinstance(document.get("truncate_prompt_tokens"), int) and not document.get("truncate"):
        check_context(inputs, context, "input")
    beside = other_fields(document, _NOT_INPUT)
    within = [measured.within(context) for measured in inputs]
    return PreparedCall(
        model=model,
        endpoint="embeddings",
        path="/embeddings",
        payload=JsonPayload(document, model),
        stream=False,
        most=Usage(sum(min(measured.bound + beside, context) for measured in within)),
        typical=Usage(sum(measured.typical for measured in within), source="estimated"),
        make_meter=partial(
            DocumentMeter, read=read_input_usage, names=("prompt_tokens", None), only_usage=True
        ),
    )
