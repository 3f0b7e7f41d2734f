"""``POST /v1/audio/speech``: a text read aloud, as a file or as events."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from node.core.catalog import Catalog
from node.core.exchange import Request
from node.core.money import ceil_div
from node.core.usage import Usage
from node.errors import InvalidValue
from node.service.inference.bodies import BytesMeter
from node.service.inference.call import (
    EVENT_STREAM,
    JsonPayload,
    Meter,
    PreparedCall,
    model_for,
    wants_change_in_stream,
)
from node.service.inference.estimate import BYTES_PER_TOKEN, TOKENS_PER_REQUEST, utf8_bytes
from node.service.inference.inputs import other_fields
from node.service.inference.media import MediaStreamMeter, Seen, optional_text, with_estimates
from node.service.inference.recording import LONGEST_MS, measure
from node.service.json_body import json_object

SLOWEST = 0.25
FASTEST = 4.0
"""Bounds of ``speed``."""
MS_PER_CHARACTER = 70
"""About 14 characters are read in a second."""
MOST_MS_PER_CHARACTER = 3000
"""An emoji is read as its name."""
AUDIO_TOKENS_PER_S = 21
"""Of the model that is sold by the token: 1,250 a minute."""

PCM_BYTES_PER_S = 48_000
"""Of ``response_format`` pcm: 24,000 samples of 16 bits, one channel."""

_NOT_PROMPT = frozenset({
    "input", "instructions", "model", "voice", "response_format", "speed", "stream_format",
})  # fmt: skip


def prepare_speech(request: Request, catalog: Catalog) -> PreparedCall:
    """Check and bound a request to read ``input`` aloud.

    Raises what ``prepare_chat`` raises.
    """
    document = json_object(request)
    model = model_for(catalog, document.get("model"), "speech")
    text = document.get("input")
    if not isinstance(text, str) or not text:
        raise InvalidValue("input must be a text", param="input")
    if not isinstance(document.get("voice"), str | dict | None):
        raise InvalidValue("voice must be a string or an object", param="voice")
    optional_text(document, "response_format")
    if document.get("stream_format") not in (None, "sse", "audio"):
        raise InvalidValue("stream_format must be sse or audio", param="stream_format")
    stream = document.get("stream_format") == "sse"
    speed = _speed(document)
    size_bytes = utf8_bytes(text) + utf8_bytes(optional_text(document, "instructions") or "")
    usual_ms = round(len(text) * MS_PER_CHARACTER / speed)
    most_ms = min(round(len(text) * MOST_MS_PER_CHARACTER / speed), LONGEST_MS)
    return PreparedCall(
        model=model,
        endpoint="speech",
        path="/audio/speech",
        payload=JsonPayload(document, model),
        stream=stream,
        most=Usage(
            size_bytes + TOKENS_PER_REQUEST + other_fields(document, _NOT_PROMPT),
            model.max_output_tokens,
            audio_ms=most_ms,
            characters=len(text),
        ),
        typical=Usage(
            ceil_div(size_bytes, BYTES_PER_TOKEN),
            source="estimated",
            audio_ms=min(usual_ms, most_ms),
            characters=len(text),
        ),
        make_meter=partial(_meter, pcm=document.get("response_format") == "pcm"),
        change_in_stream=wants_change_in_stream(request),
        accept=(EVENT_STREAM,) if stream else ("audio/", "application/octet-stream"),
    )


def _speed(document: Mapping[str, Any]) -> float:
    value = document.get("speed")
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidValue("speed must be a number", param="speed")
    if not SLOWEST <= value <= FASTEST:
        raise InvalidValue(f"speed must be from {SLOWEST} to {FASTEST}", param="speed")
    return float(value)


def _meter(call: PreparedCall, pcm: bool) -> Meter:
    if call.stream:
        return MediaStreamMeter(call, _count_events)
    return BytesMeter(call, partial(_count_file, pcm=pcm))


def _count_events(call: PreparedCall, seen: Seen) -> Usage:
    return _count(call, seen.counted, None)


def _count_file(call: PreparedCall, data: bytes, pcm: bool) -> Usage:
    """A file brings no count, but the length of most can be measured."""
    wanted = call.model.price.per_audio_minute and data
    return _count(call, None, _length_ms(data, pcm) if wanted else None)


def _length_ms(data: bytes, pcm: bool) -> int | None:
    length = measure(data)
    if length.measured:
        return length.typical_ms
    return ceil_div(len(data) * 1000, PCM_BYTES_PER_S) if pcm else None


def _count(call: PreparedCall, usage: Usage | None, audio_ms: int | None) -> Usage:
    if audio_ms is not None:
        audio_ms = min(audio_ms, call.most.audio_ms)
    spoken_ms = call.typical.audio_ms if audio_ms is None else audio_ms
    return with_estimates(
        call,
        usage,
        output_tokens=ceil_div(spoken_ms * AUDIO_TOKENS_PER_S, 1000),
        audio_ms=audio_ms,
    )
