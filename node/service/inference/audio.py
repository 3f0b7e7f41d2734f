"""``POST /v1/audio/transcriptions`` and ``/v1/audio/translations``: a form with a recording.

Priced by the minute or by the token. Answers are JSON, text with or without times, or events. Model
servers count in JSON alone, so they are asked for that where the client wants the text of it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import orjson

from node.core.catalog import Catalog
from node.core.exchange import Request
from node.core.money import Msat, ceil_div
from node.core.usage import MAX_AUDIO_S, Usage
from node.errors import InvalidValue
from node.service.inference.bodies import BytesMeter, DocumentMeter
from node.service.inference.call import (
    EVENT_STREAM,
    JSON,
    Meter,
    PreparedCall,
    model_for,
    wants_change_in_stream,
)
from node.service.inference.estimate import BYTES_PER_TOKEN, TOKENS_PER_REQUEST, utf8_bytes
from node.service.inference.media import NAMES, MediaStreamMeter, Seen, counted, with_estimates
from node.service.inference.multipart import Form, FormPayload, read_form
from node.service.inference.recording import measure

TOKENS_PER_S = 10
"""Of the known models that are sold by the token."""
MOST_TOKENS_PER_S = 50
"""What an encoder makes of a second at most."""

_DOCUMENTS = frozenset({"json", "verbose_json", "diarized_json"})
_TEXTS = frozenset({"text", "srt", "vtt"})
_PLAIN = "text/plain"
_TEXT_TYPES = (_PLAIN, "text/vtt", "text/srt", "application/x-subrip", JSON)
_VERBOSE = frozenset({"task", "language", "duration", "words", "segments"})
"""What an answer has beside its text when its length was asked for, too."""
_TRUE, _FALSE = frozenset({"true", "1"}), frozenset({"false", "0", ""})
_READ = frozenset({"model", "stream", "response_format"})


def prepare_transcription(request: Request, catalog: Catalog) -> Awaitable[PreparedCall]:
    """Check and bound a transcription; see ``prepare_audio``."""
    return prepare_audio(request, catalog, "transcriptions")


def prepare_translation(request: Request, catalog: Catalog) -> Awaitable[PreparedCall]:
    """Check and bound a translation into English; see ``prepare_audio``."""
    return prepare_audio(request, catalog, "translations")


async def prepare_audio(request: Request, catalog: Catalog, endpoint: str) -> PreparedCall:
    """Check and bound a request with a recording.

    The upstream gets a form of our own making: the client's fields, its own model id, and the
    file, whose name and type are cleaned.

    Raises:
        what ``multipart.read_form`` raises.
        InvalidValue: with ``param`` where one field is wrong.
        ModelNotFound.
    """
    form = await read_form(request)
    model = model_for(catalog, form.get("model"), endpoint)
    answer = form.get("response_format") or "json"
    if answer not in _DOCUMENTS | _TEXTS:
        raise InvalidValue(
            f"response_format must be one of {', '.join(sorted(_DOCUMENTS | _TEXTS))}",
            param="response_format",
        )
    stream = _flag(form, "stream")
    length = await asyncio.to_thread(measure, form.file.data)
    size_bytes = sum(utf8_bytes(value) for name, value in form.fields if name not in _READ)
    usual = ceil_div(length.typical_ms * TOKENS_PER_S, 1000)
    most = ceil_div(length.most_ms * MOST_TOKENS_PER_S, 1000) + size_bytes + TOKENS_PER_REQUEST
    blind = bool(model.price.per_audio_minute) and not length.measured
    asked = answer if stream else _asked_of_upstream(answer, blind)
    bound = min(most, model.context_length)
    if stream:
        accept: tuple[str, ...] = (EVENT_STREAM, JSON)  # some models do not stream
    else:
        accept = (JSON,) if answer in _DOCUMENTS else _TEXT_TYPES
    return PreparedCall(
        model=model,
        endpoint=endpoint,
        path=f"/audio/{endpoint}",
        payload=FormPayload(form, model, {} if asked == answer else {"response_format": asked}),
        stream=stream,
        # those who count seconds round up
        most=Usage(bound, model.max_output_tokens, audio_ms=ceil_div(length.most_ms, 1000) * 1000),
        typical=Usage(
            min(usual + ceil_div(size_bytes, BYTES_PER_TOKEN), bound),
            source="estimated",
            audio_ms=length.typical_ms,
        ),
        make_meter=partial(_meter, answer=answer),
        content_type=_PLAIN if answer == "text" and not stream else None,
        change_in_stream=wants_change_in_stream(request),
        accept=accept,
    )


def _flag(form: Form, name: str) -> bool:
    value = (form.get(name) or "").strip().lower()
    if value not in _TRUE | _FALSE:
        raise InvalidValue(f"{name} must be true or false", param=name)
    return value in _TRUE


def _asked_of_upstream(answer: str, blind: bool) -> str:
    """The format that brings a count, if there is one from which ``answer`` can be made.

    Args:
        blind: the length is charged, and the file does not show it. Servers that cannot tell it
            refuse this format, and then nothing is charged.
    """
    if answer in ("json", "text") and blind:
        return "verbose_json"
    return "json" if answer == "text" else answer


def _meter(call: PreparedCall, answer: str) -> Meter:
    if call.stream:
        return MediaStreamMeter(call, _count, _document_meter)
    if answer == "text":
        return _TextMeter(call, _read_text, may_be_empty=True)
    if answer in _TEXTS:
        return BytesMeter(call, _read_text, may_be_empty=True)
    return _BriefMeter(call, _read_document, NAMES) if answer == "json" else _document_meter(call)


class _TextMeter(BytesMeter):
    """The text of a JSON answer; what is no JSON passes as it is."""

    def finish(self, cost: Msat, change: str | None) -> bytes:
        data = super().finish(cost, change)
        text = _document(data).get("text")
        return text.encode() + b"\n" if isinstance(text, str) else data


class _BriefMeter(DocumentMeter):
    """A JSON answer without what its client has not asked for."""

    def finish(self, cost: Msat, change: str | None) -> bytes:
        document = _document(super().finish(cost, change))
        return orjson.dumps({k: v for k, v in document.items() if k not in _VERBOSE})


def _document_meter(call: PreparedCall) -> Meter:
    return DocumentMeter(call, _read_document, NAMES)


def _read_document(call: PreparedCall, document: Mapping[str, Any]) -> Usage:
    text = document.get("text")
    return _count(
        call,
        Seen(
            counted(document.get("usage")),
            text_bytes=utf8_bytes(text) if isinstance(text, str) else 0,
            audio_ms=_duration_ms(document.get("duration")),
        ),
    )


def _read_text(call: PreparedCall, data: bytes) -> Usage:
    document = _document(data)
    return _read_document(call, document) if document else _count(call, Seen(text_bytes=len(data)))


def _document(data: bytes) -> dict[str, Any]:
    """The object that ``data`` is; empty when it is none."""
    if data[:1] != b"{":
        return {}
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _duration_ms(value: object) -> int | None:
    """Of a verbose answer, in seconds; None when it cannot be believed."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return math.ceil(value * 1000) if 0 <= value <= MAX_AUDIO_S else None


def _count(call: PreparedCall, seen: Seen) -> Usage:
    tokens = ceil_div(seen.text_bytes, BYTES_PER_TOKEN)
    usage = with_estimates(call, seen.counted, output_tokens=tokens, audio_ms=seen.audio_ms)
    if not call.model.price.per_audio_minute:
        return usage
    return replace(usage, audio_ms=min(usage.audio_ms, call.most.audio_ms))
