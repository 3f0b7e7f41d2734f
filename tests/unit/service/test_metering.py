"""What the upstream gets is bounded, and an answer passes unchanged, counted and priced."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.catalog import Backend, Catalog, Model
from node.core.exchange import Request
from node.core.money import Msat
from node.core.pricing import Price
from node.core.usage import Usage
from node.errors import (
    ContextLengthExceeded,
    InvalidJson,
    InvalidValue,
    ModelNotFound,
    UpstreamFailed,
)
from node.service.inference.call import PreparedCall
from node.service.inference.chat import prepare_chat
from node.service.inference.estimate import PromptEstimate, _add_json
from node.service.inference.metering import BodyMeter, StreamMeter, meter_for

MODEL = Model(
    id="m",
    backends=(Backend("u", Price(Msat(1000), Msat(2000)), "vendor/m"),),
    context_length=100_000,
    max_output_tokens=4_000,
)
EMBEDDER = Model(
    "e", (Backend("u", Price(Msat(1), Msat(1)), "e"),), 1000, 1, endpoints=("embeddings",)
)
CATALOG = Catalog([MODEL, EMBEDDER])
HELLO = [{"role": "user", "content": "hello"}]


def request(body: object, **headers: str) -> Request:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return Request("r", "POST", "/v1/chat/completions", headers, raw)


def prepare(**fields: Any) -> PreparedCall:
    return prepare_chat(request({"model": "m", "messages": HELLO, **fields}), CATALOG)


def sent(call: PreparedCall) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(call.payload.encode("vendor/m"))
    return document


# --- what the upstream gets


def test_the_upstream_gets_its_own_model_id_and_a_limit_and_else_what_the_client_said() -> None:
    extra = {"temperature": 0.5, "tools": [], "some_new_field": {"a": [1, None]}, "seed": 3}
    call = prepare(**extra)
    assert sent(call) == {"model": "vendor/m", "messages": HELLO, "max_tokens": 4_000, **extra}
    assert (call.path, call.stream, call.include_usage) == ("/chat/completions", False, False)


@pytest.mark.parametrize(
    ("fields", "limits", "bound"),
    [
        ({}, {"max_tokens": 4_000}, 4_000),
        ({"max_tokens": 7}, {"max_tokens": 7}, 7),
        ({"max_tokens": 10**15}, {"max_tokens": 4_000}, 4_000),
        ({"max_completion_tokens": 9}, {"max_tokens": 9}, 9),  # some know only the older name
        ({"max_completion_tokens": None}, {"max_tokens": 4_000}, 4_000),
        (
            {"max_completion_tokens": 9, "max_tokens": 5},
            {"max_tokens": 5},
            5,
        ),
        ({"max_tokens": 7, "n": 3}, {"max_tokens": 7}, 21),
        ({"n": None}, {"max_tokens": 4_000}, 4_000),
    ],
)
def test_the_output_is_limited(fields: dict[str, Any], limits: dict[str, int], bound: int) -> None:
    call = prepare(**fields)
    document = sent(call)
    names = ("max_tokens", "max_completion_tokens")
    assert {name: document[name] for name in names if name in document} == limits
    assert call.most.completion_tokens == bound


@pytest.mark.parametrize("asked", [True, False, None])
def test_a_stream_always_asks_for_usage(asked: bool | None) -> None:
    options = {} if asked is None else {"stream_options": {"include_usage": asked, "x": 1}}
    call = prepare(stream=True, **options)
    assert sent(call)["stream_options"]["include_usage"] is True
    assert call.include_usage is bool(asked)
    if options:
        assert sent(call)["stream_options"]["x"] == 1


def test_change_in_the_stream_is_asked_for_by_a_header() -> None:
    body = {"model": "m", "messages": HELLO}
    assert prepare_chat(request(body, **{"x-cashu-change": "Event"}), CATALOG).change_in_stream
    assert not prepare_chat(request(body), CATALOG).change_in_stream


DEEP = b'{"model":"m","messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
DEEP_UNKNOWN = (
    b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":'
    + b"[" * 500
    + b"]" * 500
    + b"}"
)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'"\\ud800"',
        b'{"model": NaN}',
        b'{"a": Infinity}',
        DEEP,
        DEEP_UNKNOWN,
        DEEP_UNKNOWN.replace(b"temperature", b"whatever"),
    ],
)
def test_what_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidJson):
        prepare_chat(request(body), CATALOG)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
        ({"model": "e"}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [*HELLO, {"content": "x"}]}, "messages[1]"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        (
            {"stream": True, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage",
        ),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"n": 10_000}, "n"),
        *(
            ({name: value}, name)
            for name in ("max_tokens", "max_completion_tokens")
            for value in (0, -1, True, 1.0, "5", [])
        ),
    ],
)
def test_a_wrong_value_names_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        prepare(**fields)
    assert caught.value.param == param


def test_an_unknown_model() -> None:
    with pytest.raises(ModelNotFound):
        prepare(model="gpt-nothing")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(
            ["model", "messages", "n", "max_tokens", "stream", "stream_options", "tools"]
        ),
        JSON_VALUES | st.just("m") | st.just(HELLO),
    )
)
def test_hostile_documents_raise_only_our_errors(document: dict[str, Any]) -> None:
    try:
        call = prepare_chat(request(document), CATALOG)
    except (InvalidJson, InvalidValue, ModelNotFound, ContextLengthExceeded):
        return
    assert 1 <= call.most.prompt_tokens <= MODEL.context_length
    assert call.typical.prompt_tokens <= call.most.prompt_tokens


# --- the bound of the prompt


def rendered_bytes(document: dict[str, Any]) -> int:
    """The prompt as a wordy chat template writes it; a byte tokeniser counts one token a byte."""
    text = "".join(
        message["role"]
        + (message.get("content") or "")
        + json.dumps(message.get("tool_calls", []), indent=4)
        for message in document["messages"]
    )
    for name in ("tools", "response_format"):
        text += json.dumps(document.get(name, {}), indent=4, ensure_ascii=True)
    return len(text.encode())


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": TEXT},
        optional={"tool_calls": st.lists(st.dictionaries(TEXT, TEXT, max_size=3), max_size=2)},
    ),
    min_size=1,
    max_size=4,
)


@given(MESSAGES, st.lists(JSON_VALUES.map(lambda v: {"type": "function", "v": v})), JSON_VALUES)
def test_the_bound_is_never_below_the_count(
    messages: list[dict[str, Any]], tools: list[Any], schema: object
) -> None:
    document = {"messages": messages, "tools": tools, "response_format": schema}
    call = prepare(**document)
    if call.most.prompt_tokens < MODEL.context_length:
        assert rendered_bytes(document) <= call.most.prompt_tokens


@given(JSON_VALUES.map(lambda value: [value]) | st.dictionaries(st.text(max_size=9), JSON_VALUES))
def test_a_layout_is_counted_as_it_would_be_printed(value: Any) -> None:
    empty = prepare(response_format=[]).most.prompt_tokens - 2
    printed = json.dumps(value, indent=4)
    assert prepare(response_format=value).most.prompt_tokens - empty >= len(printed)
    if printed.isascii() and "\\u" not in printed:
        assert prepare(response_format=value).most.prompt_tokens - empty == len(printed)


def test_deep_items_are_counted_without_being_printed() -> None:
    """Printed with an indent, 90,000 items at depth 240 are 90 MB."""
    depth, items = 240, 90_000
    value: list[Any] = list(range(items))
    for _ in range(depth - 1):
        value = [value]
    tracemalloc.start()
    try:
        _add_json(estimate := PromptEstimate(bound=0), value)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert estimate.bound > items * depth * 4
    assert peak < 30 << 20


def test_more_text_means_a_higher_bound() -> None:
    short = prepare(messages=[{"role": "user", "content": "é"}])
    long = prepare(messages=[{"role": "user", "content": "é" * 1001}])
    assert long.most.prompt_tokens == short.most.prompt_tokens + 2000
    parts = prepare(messages=[{"role": "user", "content": [{"type": "text", "text": "é" * 1001}]}])
    assert parts.most.prompt_tokens == long.most.prompt_tokens
    assert short.typical.prompt_tokens < long.typical.prompt_tokens < 600


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "file": {"file_data": "f"}},
        {"type": "video_url", "video_url": {"url": "https://x"}},
        {"type": "input_audio", "input_audio": {"url": "https://x"}},
        {"type": "something_new"},
    ],
)
def test_what_cannot_be_measured_is_bounded_by_the_context(part: dict[str, Any]) -> None:
    call = prepare(messages=[{"role": "user", "content": [part]}])
    assert call.most.prompt_tokens == MODEL.context_length


@pytest.mark.parametrize(
    "field",
    [
        {"web_search_options": {}},
        {"tools": [{"type": "web_search"}]},
        {"plugins": [1]},
        {"data_sources": [{"type": "azure_search"}]},
        {"service_tier": "priority"},
    ],
)
def test_what_costs_the_operator_more_than_is_counted_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue) as refused:
        prepare(**field)
    assert refused.value.param == next(iter(field))


def test_no_other_name_for_the_limit_gets_through() -> None:
    names = ("n_predict", "num_predict", "max_new_tokens", "max_length", "options")
    document = sent(prepare(max_tokens=1, **dict.fromkeys(names, 7000)))
    assert document["max_tokens"] == 1
    assert not document.keys() & set(names)


def test_sound_is_only_for_models_sold_with_it() -> None:
    assert prepare(modalities=["text"]).model is MODEL
    with pytest.raises(InvalidValue):
        prepare(modalities=["text", "audio"])


def test_a_cache_of_an_hour_is_refused() -> None:
    def ask(ttl: str) -> PreparedCall:
        part = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": ttl}}
        return prepare(messages=[{"role": "user", "content": [part]}])

    assert ask("5m").stream is False
    with pytest.raises(InvalidValue):
        ask("1h")


def test_a_prompt_longer_than_the_context_seems_is_held_by_its_bytes() -> None:
    text = "x" * 1_000_000  # 250,000 tokens of text as text goes
    call = prepare(messages=[{"role": "user", "content": text}])
    assert call.most.prompt_tokens >= 1_000_000


def test_an_early_count_does_not_hide_what_came_after_it() -> None:
    meter = StreamMeter(prepare(stream=True))
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    meter.feed(b"data: %s\n\n" % orjson.dumps({"choices": [{"delta": {}}], "usage": usage}))
    words = orjson.dumps({"choices": [{"delta": {"content": "word"}}]})
    meter.feed(b"data: %s\n\n" % words * 50)
    assert meter.usage().completion_tokens == 50


def test_the_choice_of_model_and_server_is_not_the_clients() -> None:
    routing = {"models": ["dear"], "route": "fallback", "provider": {"order": ["x"]}, "preset": "p"}
    call = prepare(**routing, service_tier="default", plugins=[], transforms=["middle-out"])
    document = sent(call)
    assert not routing.keys() & document.keys()
    assert document["transforms"] == ["middle-out"]


def test_a_template_of_the_clients_is_bounded_by_the_context() -> None:
    assert prepare(chat_template="x").most.prompt_tokens == MODEL.context_length


def test_an_image_counts_the_same_by_url_and_inline() -> None:
    def bound(url: str) -> int:
        part = {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
        return prepare(messages=[{"role": "user", "content": [part]}]).most.prompt_tokens

    assert bound("https://x") == bound("data:image/png;base64," + "A" * 100_000)
    assert 48_000 < bound("https://x") < MODEL.context_length


def test_the_bound_stops_at_the_context_and_only_a_sure_excess_is_refused() -> None:
    words = "word " * 30_000  # 150,000 bytes, at most 100,000 tokens for all we know
    assert prepare(messages=[{"role": "user", "content": words}]).most.prompt_tokens == 100_000
    with pytest.raises(ContextLengthExceeded):
        prepare(messages=[{"role": "user", "content": " " * (100_000 * 256 + 1)}])


# --- streams


def event(document: object, end: bytes = b"\n\n") -> bytes:
    return b"data: " + orjson.dumps(document) + end


def delta(text: str, **more: Any) -> dict[str, Any]:
    return {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 5,
        "model": "vendor/m",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
        **more,
    }


USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
USAGE_CHUNK = {**delta(""), "choices": [], "usage": USAGE}
DONE = b"data: [DONE]\n\n"
TEXTS = [delta("Hello"), delta(' "usage" '), delta(" [DONE] wörld", usage=None)]
HEAD = b": keep-alive\n\n" + event(TEXTS[0]) + event(TEXTS[1], b"\r\n\r\n") + event(TEXTS[2])


def chunks_of(stream: bytes) -> list[dict[str, Any]]:
    lines = [line[6:] for line in stream.splitlines() if line.startswith(b"data: ")]
    return [orjson.loads(line) for line in lines if line != b"[DONE]"]


def run(stream: list[bytes], **fields: Any) -> tuple[StreamMeter, bytes]:
    meter = StreamMeter(prepare(stream=True, **fields))
    return meter, b"".join(meter.feed(data) for data in stream)


@given(st.lists(st.integers(0, 2000), max_size=30))
def test_a_stream_passes_unchanged_except_its_end(places: list[int]) -> None:
    stream = HEAD + event(USAGE_CHUNK) + DONE
    edges = [0, *sorted(place % len(stream) for place in places), len(stream)]
    meter, out = run([stream[a:b] for a, b in itertools.pairwise(edges)])
    assert out == HEAD
    assert meter.complete
    assert meter.usage() == Usage(11, 3)
    assert meter.finish(Msat(9), None) == DONE


def test_every_event_leaves_at_once() -> None:
    meter, _ = run([])
    for text in TEXTS:
        assert meter.feed(event(text)) == event(text)
    assert meter.feed(b": ping\n\n") == b": ping\n\n"
    assert meter.feed(event(USAGE_CHUNK)) == b""
    assert meter.feed(DONE) == b""


def test_a_client_that_asked_gets_the_usage_chunk_with_the_cost() -> None:
    chunk = {**USAGE_CHUNK, "usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 1}}}
    meter, _ = run([HEAD, event(chunk), DONE], stream_options={"include_usage": True})
    tail = meter.finish(Msat(123), None)
    assert tail.endswith(b"\n\n" + DONE)
    (last,) = chunks_of(tail)
    assert last == {**chunk, "usage": {**chunk["usage"], "cost": 123}}


def test_change_comes_in_the_last_chunk_to_a_client_that_takes_it_there() -> None:
    body = {"model": "m", "messages": HELLO, "stream": True}
    call = prepare_chat(request(body, **{"x-cashu-change": "event"}), CATALOG)
    meter = StreamMeter(call)
    meter.feed(HEAD + event(USAGE_CHUNK) + DONE)
    (last,) = chunks_of(meter.finish(Msat(1), "cashuBx"))
    assert last["x_cashu"] == "cashuBx"
    assert last["choices"] == []
    (error,) = chunks_of(StreamMeter(call).abort({"error": {"code": "c"}}, "cashuBy"))
    assert error == {"error": {"code": "c"}, "x_cashu": "cashuBy"}
    other, _ = run([HEAD, DONE])
    assert b"cashu" not in other.finish(Msat(1), "cashuBx") + other.abort({}, "cashuBy")


def test_content_beside_the_usage_is_not_lost() -> None:
    last = {**delta(" end"), "usage": USAGE}
    meter, out = run([HEAD, event(last), DONE])
    assert out.startswith(HEAD)
    assert chunks_of(out)[-1] == delta(" end")
    assert meter.usage() == Usage(11, 3)
    meter, _ = run([HEAD, event(last), DONE], stream_options={"include_usage": True})
    (chunk,) = chunks_of(meter.finish(Msat(1), None))
    assert chunk["choices"] == []
    assert chunk["usage"] == {**USAGE, "cost": 1}


@pytest.mark.parametrize(
    "usage", [{}, "x", {"prompt_tokens": -1, "completion_tokens": 2}, {"prompt_tokens": 1e9}]
)
def test_without_a_believable_count_what_was_seen_is_counted(usage: object) -> None:
    chunk = {**USAGE_CHUNK, "usage": usage}
    meter, _ = run([HEAD, event(chunk), DONE], stream_options={"include_usage": True})
    counted = meter.usage()
    assert counted.source == "estimated"
    assert counted.completion_tokens >= 3
    assert 0 < counted.prompt_tokens < 100
    (last,) = chunks_of(meter.finish(Msat(1), None))
    assert last["usage"]["estimated"] is True
    assert last["usage"]["completion_tokens"] == counted.completion_tokens


def test_a_missing_usage_chunk_is_made() -> None:
    meter, out = run([HEAD, DONE], stream_options={"include_usage": True})
    assert out == HEAD
    (last,) = chunks_of(meter.finish(Msat(4), None))
    assert {name: last[name] for name in ("id", "created", "model", "object", "choices")} == {
        "id": "c1",
        "created": 5,
        "model": "vendor/m",
        "object": "chat.completion.chunk",
        "choices": [],
    }
    assert last["usage"]["cost"] == 4


def test_an_empty_answer_is_input_only() -> None:
    role = {**delta(""), "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    meter, _ = run([event(role), DONE])
    assert meter.complete
    assert meter.usage().completion_tokens == 0
    assert meter.usage().prompt_tokens > 0


def test_an_estimate_grows_with_what_was_seen_and_stays_within_the_limit() -> None:
    meter, _ = run([], max_tokens=50)
    seen = []
    for _ in range(100):
        meter.feed(event(delta("word ")))
        seen.append(meter.usage().completion_tokens)
    assert seen[9] >= 10
    assert seen == sorted(seen)
    assert seen[-1] == 50


@pytest.mark.parametrize(
    "field",
    [
        {"reasoning_content": "thinking"},
        {"reasoning": "thinking"},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": "b"}'}}]},
        {"refusal": "no"},
    ],
)
def test_text_is_seen_wherever_it_comes(field: dict[str, Any]) -> None:
    chunk = {**delta(""), "choices": [{"index": 0, "delta": field}]}
    meter, _ = run([event(chunk), event(chunk)])
    assert meter.usage().completion_tokens >= 2


@pytest.mark.parametrize(
    "tail", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\n\n", b"data:[DONE]\r\n\r\n", b""]
)
def test_the_end_is_recognised(tail: bytes) -> None:
    usage = event(USAGE_CHUNK) if not tail else b""
    meter, out = run([HEAD, usage + tail])
    assert meter.complete
    assert out == HEAD
    assert meter.finish(Msat(1), None) == DONE


@pytest.mark.parametrize("tail", [b"", b"data: [DO", b'data: {"id":"c1","choi'])
def test_a_cut_stream_is_not_complete(tail: bytes) -> None:
    meter, out = run([HEAD, tail])
    assert not meter.complete
    assert out == HEAD
    assert chunks_of(meter.abort({"error": {"code": "upstream_error"}})) == [
        {"error": {"code": "upstream_error"}}
    ]


def test_nothing_follows_the_end() -> None:
    meter, out = run([HEAD + DONE + event(delta("more"))])
    assert out == HEAD
    assert meter.feed(event(delta("more"))) == b""


@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "CUDA at 10.0.0.7"}},
        {"object": "error", "message": "CUDA at 10.0.0.7", "code": 500},
    ],
)
def test_an_error_inside_the_stream_is_a_failure_and_is_not_passed_on(
    error: dict[str, Any],
) -> None:
    meter, out = run([HEAD, event(error), DONE])
    assert out == HEAD
    assert isinstance(meter.failure, UpstreamFailed)
    assert not meter.complete


def test_the_words_error_and_done_in_a_text_are_only_text() -> None:
    texts = [
        delta('{"error": {"x": 1}} data: [DONE]'),
        delta("", choices=[{"index": 0, "logprobs": {"content": [{"token": "error"}]}}]),
    ]
    meter, out = run([event(text) for text in texts])
    assert out == b"".join(map(event, texts))
    assert meter.failure is None


def test_a_stream_event_is_bounded() -> None:
    meter = StreamMeter(prepare(stream=True), max_event_bytes=1000)
    for _ in range(10):
        assert meter.feed(b"x" * 100) == b""
    with pytest.raises(UpstreamFailed):
        meter.feed(b"x")


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_garbage_raises_only_our_errors(stream: list[bytes]) -> None:
    meter, _ = run(stream)
    meter.usage()
    meter.finish(Msat(1), None)


# --- answers in one piece

ANSWER = {
    "id": "c1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi there, you"}}],
    "usage": USAGE,
    "unknown": [1, {"a": None}],
}


def body_meter(*parts: bytes, **fields: Any) -> BodyMeter:
    meter = BodyMeter(prepare(**fields))
    for part in parts:
        assert meter.feed(part) == b""
    return meter


def test_an_answer_gets_its_cost() -> None:
    raw = orjson.dumps(ANSWER)
    meter = body_meter(raw[:20])
    assert not meter.complete
    meter.feed(raw[20:])
    assert meter.complete
    assert meter.usage() == Usage(11, 3)
    assert orjson.loads(meter.finish(Msat(77), "cashuB")) == {
        **ANSWER,
        "usage": {**USAGE, "cost": 77},
    }


def test_an_answer_without_usage_is_counted() -> None:
    answer = {name: value for name, value in ANSWER.items() if name != "usage"}
    meter = body_meter(orjson.dumps(answer))
    assert meter.usage().source == "estimated"
    assert meter.usage().completion_tokens >= 3
    assert orjson.loads(meter.finish(Msat(1), None))["usage"]["estimated"] is True
    empty = body_meter(orjson.dumps({"choices": [{"message": {"content": ""}}]}))
    assert empty.usage().completion_tokens == 0


@pytest.mark.parametrize("raw", [b"", b"<html>", b"[]", b'{"a":', b'{"error": {"message": "x"}}'])
def test_what_is_not_an_answer_is_not_complete(raw: bytes) -> None:
    meter = body_meter(raw)
    assert not meter.complete
    assert (meter.failure is not None) == (b"error" in raw)
    meter.usage()


def test_an_answer_is_bounded() -> None:
    meter = BodyMeter(prepare(), max_reply_bytes=10)
    meter.feed(b"x" * 10)
    with pytest.raises(UpstreamFailed):
        meter.feed(b"x")


def test_the_meter_fits_the_call() -> None:
    assert isinstance(meter_for(prepare(stream=True)), StreamMeter)
    assert isinstance(meter_for(prepare()), BodyMeter)
