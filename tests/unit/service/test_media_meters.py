"""Answers of every form pass whole, are counted in every dialect, and an error is no answer."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from node.core.catalog import Backend, Catalog, Model
from node.core.exchange import Request
from node.core.money import Msat
from node.core.pricing import Price
from node.core.usage import Usage
from node.errors import UpstreamFailed
from node.service.inference.audio import prepare_audio
from node.service.inference.call import Meter, PreparedCall
from node.service.inference.completions import prepare_completion
from node.service.inference.embeddings import prepare_embeddings
from node.service.inference.images import prepare_image
from node.service.inference.rerank import prepare_rerank
from node.service.inference.speech import prepare_speech
from tests.unit.service.test_recording import adts, wav

BY_TOKEN = Price(Msat(1_000_000), Msat(2_000_000))
BY_MINUTE = Price(per_audio_minute=Msat(60_000))
BY_IMAGE = Price(per_image=Msat(9))


def catalog(price: Price) -> Catalog:
    endpoints = ("completions", "embeddings", "images", "rerank", "speech", "transcriptions")
    return Catalog([Model("m", (Backend("u", price, "m"),), 4_000, 500, endpoints=endpoints)])


def request(body: Any, **headers: str) -> Request:
    return Request("r", "POST", "/", headers, orjson.dumps({"model": "m", **body}))


async def transcription(
    price: Price, recording: bytes = wav(8000, 1, 1, 20_000), **fields: str
) -> PreparedCall:
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in {"model": "m", **fields}.items()
    ]
    file = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    body = b"".join([*parts, file, recording, b"\r\n--b--\r\n"])
    head = {"content-type": "multipart/form-data; boundary=b"}
    return await prepare_audio(
        Request("r", "POST", "/", head, body), catalog(price), "transcriptions"
    )


def run(call: PreparedCall, answer: bytes, cost: int = 5) -> tuple[Meter, bytes]:
    meter = call.make_meter(call)
    out = meter.feed(answer) + meter.feed(b"")
    assert meter.complete, meter.failure
    return meter, out + meter.finish(Msat(cost), None)


def last_event(out: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(out.strip().split(b"data: ")[-1])
    return document


# --- documents


def test_a_vector_is_not_touched_and_the_cost_is_beside_it() -> None:
    call = prepare_embeddings(request({"input": "x"}), catalog(BY_TOKEN))
    answer: dict[str, Any] = {
        "data": [{"embedding": "AAAA/+8="}, {"embedding": [0.1, -1e-9, 3]}],
        "x": {"y": 1},
    }
    usage: dict[str, Any] = {"prompt_tokens": 4, "total_tokens": 4}
    meter, out = run(call, orjson.dumps({**answer, "usage": usage}))
    assert json.loads(out) == {**answer, "usage": {**usage, "cost": 5}}
    assert meter.usage() == Usage(4)


@pytest.mark.parametrize("usage", [{}, {"usage": None}, {"usage": {"prompt_tokens": -1}}])
def test_who_does_not_count_is_estimated_and_it_says_so(usage: dict[str, Any]) -> None:
    call = prepare_embeddings(request({"input": "x" * 40}), catalog(BY_TOKEN))
    meter, out = run(call, orjson.dumps({"data": [], **usage}))
    assert meter.usage() == Usage(10, source="estimated")
    assert json.loads(out)["usage"]["estimated"] is True


@pytest.mark.parametrize(
    "counted",
    [
        {"usage": {"total_tokens": 7}},
        {"usage": {"prompt_tokens": 7, "total_tokens": 7}},
        {"meta": {"billed_units": {"search_units": 1}, "tokens": {"input_tokens": 7}}},
    ],
)
def test_rerank_in_the_dialects_of_three_vendors(counted: dict[str, Any]) -> None:
    call = prepare_rerank(request({"query": "q", "documents": ["d"]}), catalog(BY_TOKEN))
    meter, out = run(call, orjson.dumps({"results": [], **counted}))
    assert meter.usage() == Usage(7)
    assert json.loads(out)["usage"]["total_tokens"] == 7


def test_images_are_counted_in_the_answer() -> None:
    call = prepare_image(request({"prompt": "x", "n": 3}), catalog(BY_IMAGE))
    data = [{"b64_json": "A"}, {"url": "u"}, {"revised_prompt": "x"}]
    meter, out = run(call, orjson.dumps({"data": data}))
    assert meter.usage() == Usage(images=2)
    assert json.loads(out) == {"data": data, "usage": {"cost": 5}}
    assert run(call, b'{"data":[]}')[0].usage() == Usage()


def test_images_by_token_keep_their_details() -> None:
    call = prepare_image(request({"prompt": "x"}), catalog(BY_TOKEN))
    usage = {"input_tokens": 5, "output_tokens": 272, "total_tokens": 277,
             "input_tokens_details": {"text_tokens": 5}}  # fmt: skip
    meter, out = run(call, orjson.dumps({"data": [{"b64_json": "A"}], "usage": usage}))
    assert meter.usage() == Usage(5, 272, images=1)
    assert json.loads(out)["usage"] == {**usage, "cost": 5}


def test_images_have_one_count_and_it_is_ours() -> None:
    others = {"num_images": 10, "num_images_per_prompt": 10, "batch_size": 10, "samples": 10,
              "num_outputs": 10}  # fmt: skip
    call = prepare_image(request({"prompt": "x", "n": 2, **others}), catalog(BY_IMAGE))
    assert orjson.loads(call.payload.encode("m")) == {"model": "m", "prompt": "x", "n": 2}


def test_more_images_than_asked_for_cost_what_was_held_and_the_operator_is_told() -> None:
    call = prepare_image(request({"prompt": "x", "n": 2}), catalog(BY_IMAGE))
    for made, told in ((3, 1), (2, 0)):
        meter = call.make_meter(call)
        meter.feed(orjson.dumps({"data": [{"url": "u"}] * made}))
        with capture_logs() as logs:
            assert (meter.usage(), meter.usage()) == (Usage(images=2), Usage(images=2))
        assert [line["log_level"] for line in logs] == ["error"] * told


# --- sound


@pytest.mark.parametrize(
    ("wanted", "sound", "ms"),
    [
        ("pcm", bytes(48_000), 1_000),
        ("pcm", wav(24_000, 1, 2, 12_000), 500),  # a server that knows only files
        ("wav", wav(24_000, 1, 2, 12_000), 500),
        ("mp3", b"no header that is known", 140),  # as usual for two characters
        ("aac", adts(30), 1_920),
    ],
)
def test_sound_is_as_long_as_it_is_not_as_it_is_large(wanted: str, sound: bytes, ms: int) -> None:
    body = {"input": "hi", "voice": "a", "response_format": wanted}
    call = prepare_speech(request(body), catalog(BY_MINUTE))
    meter = call.make_meter(call)
    meter.feed(sound)
    assert meter.usage().audio_ms == ms


async def test_json_is_asked_for_where_text_is_wanted() -> None:
    """Model servers count in JSON alone."""
    call = await transcription(BY_MINUTE, response_format="text")
    assert b'name="response_format"\r\n\r\njson\r\n' in call.payload.encode("m")
    assert call.content_type == "text/plain"
    meter = call.make_meter(call)
    meter.feed('{"text":"é","usage":{"type":"duration","seconds":2}}'.encode())
    assert meter.usage() == Usage(audio_ms=2_000)
    assert meter.finish(Msat(1), None) == "é\n".encode()
    for other in ("srt", "vtt", "verbose_json"):
        call = await transcription(BY_MINUTE, response_format=other)
        assert other.encode() in call.payload.encode("m")
        assert call.content_type is None


@pytest.mark.parametrize("wanted", ["json", "text"])
async def test_who_is_paid_by_the_minute_says_how_long_what_shows_no_length_is(wanted: str) -> None:
    call = await transcription(BY_MINUTE, b"caff" + bytes(500), response_format=wanted)
    assert b"\r\n\r\nverbose_json\r\n" in call.payload.encode("m")
    answer = {
        "task": "x",
        "language": "y",
        "duration": 1.5,
        "text": "a",
        "segments": [],
        "words": 1,
    }
    meter = call.make_meter(call)
    meter.feed(orjson.dumps(answer))
    assert meter.usage() == Usage(audio_ms=1_500)
    out = meter.finish(Msat(7), None)
    brief = {"text": "a", "usage": {"type": "duration", "seconds": 2, "cost": 7}}
    assert out == b"a\n" if wanted == "text" else json.loads(out) == brief
    call = await transcription(BY_TOKEN, b"caff" + bytes(500), response_format=wanted)
    assert b"verbose_json" not in call.payload.encode("m")


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        ({"text": "a", "usage": {"type": "duration", "seconds": 2}}, Usage(audio_ms=2_000)),
        ({"text": "a", "duration": 2.25}, Usage(audio_ms=2_250)),
        ({"text": "a", "duration": 99}, Usage(audio_ms=3_000)),  # never above the hold
        ({"text": "a"}, Usage(audio_ms=2_500, source="estimated")),
        ({"text": "a", "duration": "2"}, Usage(audio_ms=2_500, source="estimated")),
        ({"text": "a", "duration": -1}, Usage(audio_ms=2_500, source="estimated")),
        (
            {"text": "a", "usage": {"input_tokens": 9, "output_tokens": 1}},
            Usage(9, 1, "estimated", audio_ms=2_500),
        ),
    ],
)
async def test_a_minute_is_the_upstreams_or_the_answers_or_the_files(
    answer: dict[str, Any], usage: Usage
) -> None:
    meter, _ = run(await transcription(BY_MINUTE), orjson.dumps(answer))
    assert meter.usage() == usage


async def test_tokens_of_sound_are_estimated_when_only_time_is_told() -> None:
    call = await transcription(BY_TOKEN)
    answer = {"text": "x" * 40, "usage": {"type": "duration", "seconds": 3}}
    meter, _ = run(call, orjson.dumps(answer))
    assert meter.usage() == Usage(25, 10, "estimated", audio_ms=3_000)


@pytest.mark.parametrize("form", ["text", "srt", "vtt"])
async def test_texts_pass_byte_for_byte(form: str) -> None:
    call = await transcription(BY_MINUTE, response_format=form)
    for text in (b"", b"WEBVTT\n\n", "é\r\n".encode(), b'{"odd": "text'):
        meter, out = run(call, text)
        assert out == text
        assert meter.usage() == Usage(audio_ms=2_500, source="estimated")
    meter, _ = run(call, b'{"text":"a","duration":1.5}')
    assert meter.usage() == Usage(audio_ms=1_500)


@given(st.binary(min_size=1, max_size=200))
def test_sound_passes_byte_for_byte(sound: bytes) -> None:
    call = prepare_speech(request({"input": "hi"}), catalog(Price(per_mchar=Msat(1))))
    if sound.lstrip()[:1] != b"{":
        assert run(call, sound)[1] == sound
    meter = call.make_meter(call)
    assert meter.feed(sound) == b""
    assert not meter.complete  # there may be more
    assert meter.usage().characters == 2


@pytest.mark.parametrize("answer", [b'{"error":{"message":"no"}}', b' {"error":"no"}'])
async def test_an_error_with_a_good_status_is_a_failure(answer: bytes) -> None:
    calls = [
        prepare_speech(request({"input": "hi"}), catalog(BY_TOKEN)),
        prepare_image(request({"prompt": "hi", "stream": True}), catalog(BY_TOKEN)),
        prepare_image(request({"prompt": "hi"}), catalog(BY_TOKEN)),
        prepare_embeddings(request({"input": "hi"}), catalog(BY_TOKEN)),
        await transcription(BY_TOKEN, response_format="text"),
        await transcription(BY_TOKEN, stream="true"),
    ]
    for call in calls:
        meter = call.make_meter(call)
        meter.feed(answer)
        meter.feed(b"")
        assert not meter.complete
        assert isinstance(meter.failure, UpstreamFailed)


def test_no_sound_is_a_failure() -> None:
    meter = (call := prepare_speech(request({"input": "hi"}), catalog(BY_TOKEN))).make_meter(call)
    meter.feed(b"")
    assert not meter.complete
    assert meter.failure is not None


# --- streams

DELTA = b'data: {"type":"transcript.text.delta","delta":"hello "}\n\n'
DONE = {"type": "transcript.text.done", "text": "hello hello"}
COUNTED = {"type": "tokens", "input_tokens": 30, "output_tokens": 2, "total_tokens": 32}
COMMENT = b": keep-alive\n\n"


def data(document: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"


@given(st.lists(st.integers(1, 40), max_size=30), st.booleans(), st.booleans())
async def test_a_stream_passes_however_it_is_cut(
    sizes: list[int], done_mark: bool, blank: bool
) -> None:
    call = await transcription(BY_TOKEN, stream="true")
    body = DELTA + COMMENT + DELTA + data({**DONE, "usage": COUNTED}) + COMMENT
    if done_mark:
        body += b"data: [DONE]\n\n"
    elif not blank:
        body = body.removesuffix(COMMENT)[:-1]  # the blank line is missing
    meter, out, rest = call.make_meter(call), b"", body
    for size in sizes:
        out += meter.feed(rest[:size])
        rest = rest[size:]
    out += meter.feed(rest)
    out += meter.feed(b"")
    assert meter.complete
    assert meter.usage() == Usage(30, 2)
    assert out.replace(COMMENT, b"") == DELTA * 2
    end = meter.finish(Msat(5), None)
    assert end == data({**DONE, "usage": {**COUNTED, "cost": 5}}) + (
        b"data: [DONE]\n\n" if done_mark else b""
    )


async def test_a_stream_without_a_count_is_estimated_by_what_was_said() -> None:
    meter, out = run(await transcription(BY_TOKEN, stream="true"), DELTA * 4 + data(DONE))
    assert meter.usage() == Usage(25, 6, "estimated")
    assert last_event(out)["usage"]["estimated"] is True


async def test_chunks_in_the_chat_dialect() -> None:
    chunk = {"object": "transcription.chunk", "choices": [{"delta": {"content": "hello"}}]}
    usage = {"prompt_tokens": 30, "completion_tokens": 2, "total_tokens": 32}
    call = await transcription(BY_TOKEN, stream="true")
    body = data(chunk) * 2 + data({"choices": [], "usage": usage}) + b"data: [DONE]\n\n"
    meter, out = run(call, body)
    assert meter.usage() == Usage(30, 2)
    assert out.startswith(data(chunk) * 2)
    assert out.endswith(b"data: [DONE]\n\n")
    meter, out = run(call, data(chunk) + b"data: [DONE]\n\n")
    assert out == data(chunk) + b"data: [DONE]\n\n"
    assert meter.usage().source == "estimated"


async def test_a_model_that_does_not_stream_answers_in_one_piece() -> None:
    call = await transcription(BY_MINUTE, stream="true")
    meter, out = run(call, b' {"text":"hello","usage":{"type":"duration","seconds":3}}')
    assert json.loads(out)["usage"]["cost"] == 5
    assert meter.usage() == Usage(audio_ms=3_000)
    assert meter.cut(Msat(5), None) == b""


@pytest.mark.parametrize(
    "tail", [b"", b'data: {"error":{"message":"no"}}\n\n', b'data: {"type":"error"}\n\n']
)
async def test_a_stream_that_breaks_off_is_not_whole(tail: bytes) -> None:
    call = await transcription(BY_TOKEN, stream="true")
    meter = call.make_meter(call)
    assert meter.feed(DELTA + tail) == DELTA
    meter.feed(b"")
    assert not meter.complete
    assert meter.usage() == Usage(25, 2, "estimated")
    assert json.loads(meter.abort({"error": {}})[6:]) == {"error": {}}


PARTIAL = (
    b"event: image_generation.partial_image\n"
    b'data: {"type":"image_generation.partial_image","b64_json":"AAAA"}\n\n'
)
COMPLETED = (
    b"event: image_generation.completed\n"
    b'data: {"type":"image_generation.completed","b64_json":"AAAA",'
    b'"usage":{"input_tokens":3,"output_tokens":100}}\n\n'
)


def test_each_image_of_a_stream_is_counted_once() -> None:
    body = {"prompt": "x", "stream": True, "partial_images": 1, "n": 2}
    call = prepare_image(request(body), catalog(BY_TOKEN))
    meter, out = run(call, PARTIAL + COMPLETED + PARTIAL + COMPLETED)
    assert out.startswith(PARTIAL + COMPLETED + PARTIAL + b"event: image_generation.completed\n")
    assert meter.usage() == Usage(6, 200, images=2)
    assert last_event(out)["usage"]["cost"] == 5


def test_whoever_leaves_after_a_look_has_had_the_image() -> None:
    body = {"prompt": "x", "stream": True, "partial_images": 1}
    call = prepare_image(request(body), catalog(BY_IMAGE))
    meter = call.make_meter(call)
    meter.feed(PARTIAL)
    assert meter.usage() == Usage(images=1)
    assert call.make_meter(call).usage() == Usage()


def test_change_comes_in_the_last_event() -> None:
    body = {"input": "x", "stream_format": "sse"}
    call = prepare_speech(request(body, **{"x-cashu-change": "event"}), catalog(BY_TOKEN))
    for end in (b'data: {"type":"speech.audio.done"}\n\n', b"data: [DONE]\n\n"):
        meter = call.make_meter(call)
        meter.feed(b'data: {"type":"speech.audio.delta","audio":"AA"}\n\n' + end)
        out = meter.finish(Msat(5), "cashuBchange")
        assert json.loads(out.split(b"\n\n")[0][6:])["x_cashu"] == "cashuBchange"
    meter = call.make_meter(call)
    assert json.loads(meter.cut(Msat(5), "cashuBchange")[6:])["x_cashu"] == "cashuBchange"


def test_a_completion_ends_as_one() -> None:
    body = {"prompt": "x", "stream": True, "stream_options": {"include_usage": True}}
    call = prepare_completion(request(body), catalog(BY_TOKEN))
    chunk = {"id": "c", "object": "text_completion", "choices": [{"index": 0, "text": "hello"}]}
    meter, out = run(call, data(chunk) + b"data: [DONE]\n\n")
    last = json.loads(out.split(b"\n\n")[1][6:])
    assert (last["object"], last["id"], last["usage"]["estimated"]) == (
        "text_completion",
        "c",
        True,
    )
    assert meter.usage().completion_tokens == 2


def test_what_is_too_large_is_not_kept() -> None:
    call = prepare_speech(request({"input": "hi"}), catalog(BY_TOKEN))
    meter = call.make_meter(call)
    with pytest.raises(UpstreamFailed):
        for _ in range(65):
            meter.feed(bytes(1 << 20))
    streamed = prepare_image(request({"prompt": "x", "stream": True}), catalog(BY_TOKEN))
    meter = streamed.make_meter(streamed)
    with pytest.raises(UpstreamFailed):
        for _ in range(33):
            meter.feed(b"data: " + bytes(1 << 20))
