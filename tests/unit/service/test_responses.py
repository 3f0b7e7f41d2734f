"""/v1/responses: what the upstream gets is bounded and stored nowhere, and a stream passes byte for
byte up to the end, which brings the cost."""

from __future__ import annotations

import contextlib
import itertools
import json
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
from node.errors import ContextLengthExceeded, InvalidValue, UpstreamFailed
from node.service.inference.call import PreparedCall
from node.service.inference.responses import ResponsesStreamMeter, prepare_responses

MODEL = Model(
    id="m",
    backends=(Backend("u", Price(Msat(1000), Msat(2000)), "vendor/m"),),
    context_length=100_000,
    max_output_tokens=4_000,
    endpoints=("responses",),
)
CATALOG = Catalog([MODEL])
ERROR: dict[str, Any] = UpstreamFailed().document("req-1")


def prepare(given: Any = "hello", headers: dict[str, str] | None = None, **more: Any) -> Any:
    body = orjson.dumps({"model": "m", "input": given, **more})
    return prepare_responses(Request("r", "POST", "/v1/responses", headers or {}, body), CATALOG)


def sent(call: PreparedCall) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(call.payload.encode("vendor/m"))
    return document


# --- what the upstream gets


def test_the_upstream_gets_a_limit_and_may_store_nothing_and_else_what_the_client_said() -> None:
    extra = {"temperature": 0.5, "instructions": "be brief", "new_field": {"a": [1, None]}}
    call = prepare(**extra)
    assert sent(call) == {
        "model": "vendor/m",
        "input": "hello",
        "max_output_tokens": 4_000,
        "store": False,
        **extra,
    }
    assert (call.path, call.endpoint, call.accept) == (
        "/responses",
        "responses",
        ("application/json",),
    )
    assert sent(prepare(store=True, previous_response_id=None))["store"] is False


@pytest.mark.parametrize(("wanted", "limit"), [(None, 4_000), (7, 7), (10**12, 4_000)])
def test_the_output_is_limited(wanted: int | None, limit: int) -> None:
    call = prepare(max_output_tokens=wanted)
    assert sent(call)["max_output_tokens"] == call.most.completion_tokens == limit


ITEMS = [
    {"role": "user", "content": "hi"},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
    {"role": "assistant", "content": [{"type": "output_text", "text": "hi", "annotations": []}]},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,A"}]},
    {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "A" * 50}}]},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": "' + "ü" * 50},
    {"type": "function_call_output", "call_id": "c", "output": "42"},
    {
        "type": "function_call_output",
        "call_id": "c",
        "output": [{"type": "input_text", "text": ""}],
    },
    {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "thought"}]},
    {"type": "computer_call_output", "call_id": "c", "output": {"image_url": "data:…"}},
]


@pytest.mark.parametrize("item", ITEMS)
def test_what_can_be_seen_is_bounded_by_its_size(item: dict[str, Any]) -> None:
    call = prepare([item])
    size = len(json.dumps({**item, "content": str(item.get("content"))}))
    assert call.most.prompt_tokens < 60_000
    assert call.most.prompt_tokens > prepare([]).most.prompt_tokens
    longer = prepare([item, {"role": "user", "content": "x" * size}])
    assert longer.most.prompt_tokens >= call.most.prompt_tokens + size


@pytest.mark.parametrize(
    "item",
    [
        {"role": "user", "content": [{"type": "input_file", "file_data": "f"}]},
        {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "gAAA"},
        {"type": "compaction", "encrypted_content": "x"},
        {"type": "web_search_call", "id": "w", "status": "completed"},
        {"type": "something_new"},
    ],
)
def test_what_cannot_be_seen_is_bounded_by_the_context(item: dict[str, Any]) -> None:
    assert prepare([item]).most.prompt_tokens == 100_000


@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=200))
def test_text_never_counts_below_its_bytes(text: str, instructions: str, schema: str) -> None:
    tool = {"type": "function", "name": "f", "parameters": {"description": schema}}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": text}]},
        {"type": "function_call_output", "call_id": "c", "output": text},
    ]
    call = prepare(items, instructions=instructions, tools=[tool])
    assert call.most.prompt_tokens >= 2 * len(text.encode()) + len(instructions.encode()) + len(
        json.dumps(tool)
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": {"id": "c"}}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True}, "background"),
        ({"background": 1}, "background"),
        ({"store": "yes"}, "store"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}, {"type": "mcp"}]}, "tools[1].type"),
        ({"tools": [{"type": {}}]}, "tools[0].type"),
        ({"tools": ["function"]}, "tools[0].type"),
        ({"tools": {}}, "tools"),
        ({"input": None}, "input"),
        ({"input": [3]}, "input[0]"),
        ({"input": [{"type": []}]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"content": "x"}]}, "input[0]"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{}]}]}, "input[0].content"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
            "input[0].content",
        ),
        ({"instructions": ["x"]}, "instructions"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_what_is_wrong_or_not_for_sale_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        prepare(**fields)
    assert refused.value.param == param


def test_tools_that_run_at_the_client_are_sold() -> None:
    assert prepare(tools=[{"type": "function", "name": "f"}]).most.prompt_tokens < 10_000
    assert prepare(tools=[{"type": "apply_patch"}]).most.prompt_tokens == 100_000


def test_only_a_sure_excess_is_refused_and_not_when_it_may_be_cut() -> None:
    long = "x" * 100_000 * 256
    assert prepare(long).most.prompt_tokens >= len(long)
    with pytest.raises(ContextLengthExceeded):
        prepare(long + "x")
    assert prepare(long + "x", truncation="auto").most.prompt_tokens == 100_000


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "output", "input_text", "message"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["input", "tools", "stream", "text"]), JSON_VALUES))
def test_hostile_documents_raise_only_our_errors(document: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidValue):
        prepare(**{"input": "x", **document})


# --- streams

RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 5,
    "model": "vendor/m",
    "status": "in_progress",
    "error": None,
    "output": [],
    "usage": None,
}
USAGE = {
    "input_tokens": 12,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 17,
}
DONE = {**RESPONSE, "status": "completed", "output": [{"type": "message"}], "usage": USAGE}


def typed(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


BEFORE = (
    typed("response.created", sequence_number=0, response=RESPONSE)
    + b": keep-alive\n\n"
    + typed("response.output_text.delta", sequence_number=1, delta="Hello wörld")
    + typed("response.output_text.delta", sequence_number=2, delta=' "response.completed" ')
    + typed("response.output_text.done", sequence_number=3, text="Hello")
)
END = typed("response.completed", sequence_number=4, response=DONE)


def meter(**fields: Any) -> ResponsesStreamMeter:
    made = prepare(stream=True, **fields)
    meter = made.make_meter(made)
    assert isinstance(meter, ResponsesStreamMeter)
    return meter


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


def data_of(event: bytes) -> dict[str, Any]:
    lines = event.decode().splitlines()
    assert lines[0].startswith("event: ")
    document: dict[str, Any] = json.loads(lines[1].removeprefix("data: "))
    assert document["type"] == lines[0].removeprefix("event: ")
    return document


@given(st.lists(st.integers(0, 5000)), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_a_stream_passes_unchanged_except_its_end(places: list[int], end: bytes) -> None:
    reading = meter()
    before = BEFORE.replace(b"\n", end)
    out = b"".join(
        reading.feed(part) for part in cut(before + END.replace(b"\n", end), places)
    ) + reading.feed(b"")
    assert out.removesuffix(b"\n") == before.removesuffix(b"\n")
    assert reading.complete
    assert reading.usage() == Usage(12, 5, cached_tokens=4, reasoning_tokens=2)
    last = data_of(reading.finish(Msat(321), None))
    assert last == {
        "type": "response.completed",
        "sequence_number": 4,
        "response": {**DONE, "usage": {**USAGE, "cost": 321}},
    }


def test_every_event_leaves_at_once_and_nothing_follows_the_end() -> None:
    reading = meter()
    for event in BEFORE.split(b"\n\n")[:-1]:
        assert reading.feed(event + b"\n\n") == event + b"\n\n"
    assert reading.feed(END) == b""
    assert reading.feed(b"data: [DONE]\n\n" + BEFORE) == b""
    assert reading.finish(Msat(1), None).count(b"\n\n") == 1


def test_change_comes_in_the_last_event_to_a_client_that_takes_it_there() -> None:
    for headers, change in (({}, None), ({"x-cashu-change": "event"}, "cashuBtoken")):
        reading = meter(headers=headers)
        reading.feed(BEFORE + END)
        assert data_of(reading.finish(Msat(1), "cashuBtoken")).get("x_cashu") == change
        assert data_of(reading.abort(ERROR, "cashuBtoken")).get("x_cashu") == change


def test_an_incomplete_response_is_a_whole_answer() -> None:
    reading = meter()
    part = {**DONE, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    assert reading.feed(typed("response.incomplete", response=part)) == b""
    assert reading.complete
    assert data_of(reading.finish(Msat(1), None))["response"]["status"] == "incomplete"


@pytest.mark.parametrize("usage", [None, {}, {"input_tokens": -1, "output_tokens": 2}])
def test_without_a_believable_count_what_was_seen_is_counted(usage: object) -> None:
    reading = meter()
    reading.feed(BEFORE + typed("response.completed", response={**DONE, "usage": usage}))
    seen = reading.usage()
    assert (seen.source, seen.completion_tokens) == ("estimated", 10)  # 40 bytes of deltas
    field = data_of(reading.finish(Msat(7), None))["response"]["usage"]
    assert (field["estimated"], field["cost"]) == (True, 7)
    assert field["total_tokens"] == field["input_tokens"] + field["output_tokens"]


@pytest.mark.parametrize(
    "tail", [b"", b"event: response.completed\n", END[:-3], b'data: {"type":"response.comple']
)
def test_a_stream_that_broke_off_is_not_complete(tail: bytes) -> None:
    reading = meter()
    reading.feed(BEFORE + tail)
    assert not reading.complete
    error = data_of(reading.abort(ERROR))
    assert (error["type"], error["sequence_number"]) == ("error", 4)
    assert error["message"] == error["error"]["message"] == ERROR["error"]["message"]
    assert (error["code"], error["request_id"]) == ("upstream_error", "req-1")


def test_the_last_blank_line_may_be_missing() -> None:
    for missing in (1, 2):
        reading = meter()
        assert reading.feed(BEFORE + END[:-missing]) == BEFORE
        assert reading.complete
        assert data_of(reading.finish(Msat(1), None))["response"]["usage"]["cost"] == 1


@pytest.mark.parametrize(
    "event",
    [
        typed("error", code="x", message="secret"),
        b'event: error\ndata: {"message":"secret"}\n\n',
        b'data: {"error":{"message":"secret"}}\n\n',
    ],
)
def test_an_error_inside_the_stream_is_a_failure_and_is_not_passed_on(event: bytes) -> None:
    reading = meter()
    assert reading.feed(BEFORE + event + END) == BEFORE
    assert isinstance(reading.failure, UpstreamFailed)
    assert not reading.complete
    assert data_of(reading.abort(ERROR))["type"] == "error"


def test_a_failed_response_is_told_as_the_dialect_has_it_and_without_what_went_wrong() -> None:
    reading = meter()
    failed = {**DONE, "status": "failed", "error": {"code": "x", "message": "secret"}}
    reading.feed(BEFORE)
    assert reading.feed(typed("response.failed", sequence_number=9, response=failed)) == b""
    assert reading.failure is not None
    assert reading.usage() == Usage(12, 5, cached_tokens=4, reasoning_tokens=2)
    end = data_of(reading.abort(ERROR))
    assert (end["type"], end["sequence_number"]) == ("response.failed", 9)
    assert end["response"]["error"]["message"] == ERROR["error"]["message"]
    assert "secret" not in json.dumps(end)


def test_what_its_client_wants_no_more_of_ends_incomplete() -> None:
    reading = meter()
    reading.feed(BEFORE)
    end = data_of(reading.cut(Msat(5), None))
    assert (end["type"], end["sequence_number"]) == ("response.incomplete", 4)
    assert end["response"]["id"] == "resp_1"
    assert end["response"]["incomplete_details"] == {"reason": "cancelled"}
    assert end["response"]["usage"]["cost"] == 5


def test_a_stream_event_is_bounded() -> None:
    call = prepare(stream=True)
    reading = ResponsesStreamMeter(call)
    with pytest.raises(UpstreamFailed):
        for _ in range(200):
            reading.feed(b"x" * (64 << 10))


@given(st.lists(st.binary(max_size=40) | st.sampled_from([BEFORE, END, b"\n\n", b"data: {}\n\n"])))
def test_garbage_raises_only_our_errors(stream: list[bytes]) -> None:
    reading = meter()
    for part in stream:
        reading.feed(part)
    assert reading.complete in (True, False)
    assert reading.usage().completion_tokens >= 0
    for end in (reading.finish(Msat(1), None), reading.cut(Msat(1), None), reading.abort(ERROR)):
        assert end.endswith(b"\n\n")


# --- whole answers


def body_meter(raw: bytes) -> Any:
    call = prepare()
    reading = call.make_meter(call)
    for place in range(0, len(raw), 7):
        assert reading.feed(raw[place : place + 7]) == b""
    return reading


def test_an_answer_gets_its_cost() -> None:
    reading = body_meter(json.dumps(DONE).encode())
    assert reading.complete
    assert reading.usage() == Usage(12, 5, cached_tokens=4, reasoning_tokens=2)
    assert json.loads(reading.finish(Msat(9), None)) == {**DONE, "usage": {**USAGE, "cost": 9}}


def test_an_answer_without_usage_is_counted() -> None:
    text = {"type": "output_text", "text": "x" * 40}
    answer = {**DONE, "usage": None, "output": [{"type": "message", "content": [text]}]}
    reading = body_meter(json.dumps(answer).encode())
    assert (reading.usage().completion_tokens, reading.usage().source) == (10, "estimated")


@pytest.mark.parametrize("status", ["failed", "cancelled", "queued", "in_progress"])
def test_what_is_no_answer_is_not_complete(status: str) -> None:
    reading = body_meter(json.dumps({**DONE, "status": status}).encode())
    assert not reading.complete
    assert reading.failure is not None
