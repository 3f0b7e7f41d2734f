"""Images, transcriptions and speech of the model server.

A model with ``gpt`` in its name counts tokens, as OpenAI's do; the others are sold by the piece.
"""

from __future__ import annotations

import base64
import io
import math
import struct
import wave
import zlib
from typing import Any

from node.demo.model_server.answer import Answered, sse, token_counts, words

IMAGE_TOKENS = {"low": 272, "medium": 1056, "high": 4160}
SAMPLES_PER_S = 8000
MS_PER_CHARACTER = 70
IMAGE_URL = "http://images.example/"


def image(body: dict[str, Any], fault: str, length: int) -> Answered:
    """``POST /v1/images/generations``: a pixel whose colour depends on the prompt."""
    prompt, made = str(body["prompt"]), 0 if fault == "empty" else int(body.get("n") or 1)
    by_token = "gpt" in str(body["model"])
    size, quality = str(body.get("size") or "1024x1024"), str(body.get("quality") or "medium")
    partials = int(body.get("partial_images") or 0)
    per_image = IMAGE_TOKENS.get(quality, IMAGE_TOKENS["medium"]) + 100 * partials
    usage = token_counts(len(prompt.split()), per_image * made, fault) if by_token else {}
    pictures = [base64.b64encode(picture(prompt, index)).decode() for index in range(made)]
    if body.get("stream"):
        kind = "image_generation"
        common = {"created_at": 0, "size": size, "quality": quality, "output_format": "png"}
        events = [
            sse(
                {
                    "type": f"{kind}.partial_image",
                    "b64_json": pictures[0],
                    "partial_image_index": index,
                    **common,
                },
                name=f"{kind}.partial_image",
            )
            for index in range(partials)
        ]
        last = {"type": f"{kind}.completed", "b64_json": pictures[0], **common, **usage}
        return Answered.stream([*events, sse(last, name=f"{kind}.completed")], end=b"")
    as_url = not by_token and body.get("response_format") != "b64_json"
    data = [
        {"url": f"{IMAGE_URL}{index}.png"} if as_url else {"b64_json": picture_}
        for index, picture_ in enumerate(pictures)
    ]
    return Answered.document({"created": 0, "data": data, **usage})


def picture(prompt: str, index: int) -> bytes:
    """A PNG of one pixel."""
    colour = struct.pack(">I", zlib.crc32(f"{prompt} {index}".encode()))[:3]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" + colour)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def transcript(body: dict[str, Any], fault: str, length: int) -> Answered:
    """``POST /v1/audio/transcriptions`` and translations: words that depend on the file."""
    recording: bytes = body["file"]
    said = [] if fault == "empty" else words(recording, min(length, 8))
    text, by_token = " ".join(said), "gpt" in str(body["model"])
    seconds = wav_seconds(recording)
    kind = str(body.get("response_format") or "json")
    if by_token:
        usage = token_counts(round(seconds * 10), len(said), fault)
    elif fault in ("no-usage", "bad-usage"):
        usage = {"usage": {"type": "duration", "seconds": -5}} if fault == "bad-usage" else {}
    else:
        usage = {"usage": {"type": "duration", "seconds": math.ceil(seconds)}}
    if by_token and body.get("stream") == "true":
        events = [sse({"type": "transcript.text.delta", "delta": f"{word} "}) for word in said]
        return Answered.stream(
            [*events, sse({"type": "transcript.text.done", "text": text, **usage})], end=b""
        )
    match kind:
        case "json":
            return Answered.document({"text": text, **usage})
        case "verbose_json":
            segment = {"id": 0, "start": 0.0, "end": seconds, "text": text}
            return Answered.document(
                {
                    "task": "transcribe",
                    "language": "english",
                    "duration": seconds,
                    "text": text,
                    "segments": [segment],
                    **usage,
                }
            )
        case "srt":
            text = f"1\n00:00:00,000 --> 00:00:01,000\n{text}\n"
        case "vtt":
            text = f"WEBVTT\n\n00:00.000 --> 00:01.000\n{text}\n"
    return Answered.whole("text/plain; charset=utf-8", text.encode())


def wav_seconds(recording: bytes) -> float:
    """Raises ValueError when it is no WAV file."""
    try:
        with wave.open(io.BytesIO(recording)) as opened:
            return float(opened.getnframes() / opened.getframerate())
    except (wave.Error, EOFError) as error:
        raise ValueError("not a WAV file") from error


def speech(body: dict[str, Any], fault: str, length: int) -> Answered:
    """``POST /v1/audio/speech``: a tone that lasts as long as the text is."""
    text = str(body["input"])
    sound = b"" if fault == "empty" else spoken(text)
    if body.get("stream_format") == "sse":
        pieces = [sound[start : start + 4000] for start in range(0, len(sound), 4000)]
        events = [
            sse({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()})
            for piece in pieces
        ]
        seconds = len(text) * MS_PER_CHARACTER / 1000
        usage = token_counts(len(text.split()), round(seconds * 21), fault)
        return Answered.stream([*events, sse({"type": "speech.audio.done", **usage})], end=b"")
    kind = str(body.get("response_format") or "mp3")
    return Answered.whole("audio/mpeg" if kind == "mp3" else f"audio/{kind}", sound)


def spoken(text: str) -> bytes:
    """A WAV file."""
    target = io.BytesIO()
    with wave.open(target, "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(1)
        opened.setframerate(SAMPLES_PER_S)
        tone = bytes(range(0, 256, 8))
        samples = len(text) * MS_PER_CHARACTER * SAMPLES_PER_S // 1000
        opened.writeframes((tone * (1 + samples // len(tone)))[:samples])
    return target.getvalue()
