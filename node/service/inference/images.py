"""``POST /v1/images/generations``: priced per image, or by the tokens of the gpt-image family."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import structlog

from node.core.catalog import Catalog, Model
from node.core.exchange import Request
from node.core.money import ceil_div
from node.core.usage import Usage
from node.errors import InvalidValue
from node.service.inference.bodies import DocumentMeter
from node.service.inference.call import (
    EVENT_STREAM,
    JSON,
    JsonPayload,
    Meter,
    PreparedCall,
    model_for,
    wants_change_in_stream,
)
from node.service.inference.checks import with_fixed
from node.service.inference.estimate import BYTES_PER_TOKEN, TOKENS_PER_REQUEST, utf8_bytes
from node.service.inference.fields import flag, optional_int
from node.service.inference.inputs import other_fields
from node.service.inference.media import (
    NAMES,
    Count,
    MediaStreamMeter,
    Seen,
    counted,
    optional_text,
    with_estimates,
)
from node.service.json_body import json_object

log = structlog.get_logger()

MAX_IMAGES = 10
"""Largest ``n``."""
MAX_PARTIAL_IMAGES = 3
PARTIAL_IMAGE_TOKENS = 100
"""What one adds to the output."""

_TOKENS = {"low": 272, "medium": 1056, "high": 4160}
"""Of a square image of 1024 pixels, by quality."""
_SQUARE = 1024 * 1024
_OTHER_COUNTS = (
    "num_images", "num_images_per_prompt", "num_outputs", "batch_size", "batch_count", "samples",
    "n_iter", "num_samples",
)  # fmt: skip
"""Names that servers have for ``n``, which alone is counted."""
_NOT_PROMPT = frozenset({
    "prompt", "model", "n", "size", "quality", "stream", "partial_images", "response_format",
    "background", "moderation", "output_compression", "output_format", "user", "style", "seed",
    "width", "height", "steps", "guidance_scale",
})  # fmt: skip


def prepare_image(request: Request, catalog: Catalog) -> PreparedCall:
    """Check and bound a request for images.

    The model's longest output is the most tokens one image has: no request can limit it.

    Raises what ``prepare_chat`` raises.
    """
    document = json_object(request)
    model = model_for(catalog, document.get("model"), "images")
    for name in _OTHER_COUNTS:
        document.pop(name, None)
    document = with_fixed(document, model)
    prompt = document.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise InvalidValue("prompt must be a text", param="prompt")
    images = optional_int(document, "n", most=MAX_IMAGES) or 1
    stream = flag(document, "stream")
    partials = _partial_images(document)
    for name in ("size", "quality"):
        optional_text(document, name)
    if document.get("response_format") not in (None, "url", "b64_json"):
        raise InvalidValue("response_format must be url or b64_json", param="response_format")
    count = _Counter(images, _usual_tokens(document, model))
    size_bytes = utf8_bytes(prompt)
    per_image = model.max_output_tokens + partials * PARTIAL_IMAGE_TOKENS
    return PreparedCall(
        model=model,
        endpoint="images",
        path="/images/generations",
        payload=JsonPayload(document, model),
        stream=stream,
        most=Usage(
            size_bytes + TOKENS_PER_REQUEST + other_fields(document, _NOT_PROMPT),
            images * per_image,
            images=images,
        ),
        typical=Usage(ceil_div(size_bytes, BYTES_PER_TOKEN), source="estimated"),
        make_meter=partial(_meter, count=count),
        change_in_stream=wants_change_in_stream(request),
        accept=(EVENT_STREAM, JSON) if stream else (JSON,),
    )


def _partial_images(document: Mapping[str, Any]) -> int:
    value = document.get("partial_images")
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= MAX_PARTIAL_IMAGES:
        raise InvalidValue(
            f"partial_images must be an integer from 0 to {MAX_PARTIAL_IMAGES}",
            param="partial_images",
        )
    return value


def _usual_tokens(document: Mapping[str, Any], model: Model) -> int:
    """What an image has when the upstream does not say: by quality and size as far as told."""
    width, _, height = str(document.get("size")).partition("x")
    area = _SQUARE
    if width.isascii() and width.isdigit() and height.isascii() and height.isdigit():
        area = min(int(width[:5]) * int(height[:5]), 16 * _SQUARE)
    tokens = _TOKENS.get(str(document.get("quality")), _TOKENS["medium"])
    return min(ceil_div(tokens * area, _SQUARE), model.max_output_tokens)


def _meter(call: PreparedCall, count: Count) -> Meter:
    whole = partial(_body_meter, count=count)
    return MediaStreamMeter(call, count, whole) if call.stream else whole(call)


def _body_meter(call: PreparedCall, count: Count) -> Meter:
    def read(call: PreparedCall, document: Mapping[str, Any]) -> Usage:
        return count(call, Seen(counted(document.get("usage")), _made(document)))

    return DocumentMeter(call, read, NAMES)


def _made(document: Mapping[str, Any]) -> int:
    """Images in an answer."""
    data = document.get("data")
    if not isinstance(data, list):
        return 0
    return sum(
        isinstance(item, dict) and any(item.get(name) for name in ("b64_json", "url"))
        for item in data
    )


class _Counter:
    """Counts the images of one answer.

    Args:
        most: images that were asked for, and money was set aside for.
        tokens: of one image, when the upstream does not say.
    """

    def __init__(self, most: int, tokens: int) -> None:
        self._most = most
        self._tokens = tokens
        self._told = False

    def __call__(self, call: PreparedCall, seen: Seen) -> Usage:
        if seen.images > self._most and not self._told:
            # the operator pays for them, and someone has found out how to ask for them
            self._told = True
            log.error(
                "more_images_than_asked_for",
                model=call.model.id,
                asked=self._most,
                made=seen.images,
            )
        images = min(seen.images, self._most)
        usage = with_estimates(call, seen.counted, output_tokens=images * self._tokens, audio_ms=0)
        return Usage(
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.source,
            usage.cached_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            images=images,
        )
