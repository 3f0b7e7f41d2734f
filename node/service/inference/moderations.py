"""``POST /v1/moderations``."""

from __future__ import annotations

from functools import partial

from node.core.catalog import Catalog, Model
from node.core.exchange import Request
from node.core.usage import Usage
from node.errors import InvalidValue
from node.service.inference.bodies import DocumentMeter
from node.service.inference.call import JsonPayload, PreparedCall, model_for
from node.service.inference.inputs import measure_inputs, other_fields, read_input_usage
from node.service.json_body import json_object

MAX_INPUTS = 2048

_NOT_INPUT = frozenset({"input", "model"})


def prepare_moderation(request: Request, catalog: Catalog) -> PreparedCall:
    """Check and bound a moderation request.

    The API lets a client leave the model out; then it is the first that is sold for this.

    Raises what ``prepare_chat`` raises.
    """
    document = json_object(request)
    model_id = document.get("model")
    model = _first(catalog) if model_id is None else model_for(catalog, model_id, "moderations")
    inputs = measure_inputs(document.get("input"), "input", MAX_INPUTS)
    context = model.context_length
    beside = other_fields(document, _NOT_INPUT)
    within = [measured.within(context) for measured in inputs]
    return PreparedCall(
        model=model,
        endpoint="moderations",
        path="/moderations",
        payload=JsonPayload(document, model),
        stream=False,
        most=Usage(sum(min(measured.bound + beside, context) for measured in within)),
        typical=Usage(sum(measured.typical for measured in within), source="estimated"),
        make_meter=partial(DocumentMeter, read=read_input_usage, names=("prompt_tokens", None)),
    )


def _first(catalog: Catalog) -> Model:
    for model in catalog:
        if "moderations" in model.endpoints:
            return model
    raise InvalidValue("this node sells no model for moderations", param="model")
