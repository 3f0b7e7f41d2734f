"""/v1/messages: what the upstream gets is bounded, and a stream passes byte for byte up to the end,
which brings the cost."""

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
from node.core.exchange import REQUEST_HEADERS, Request
from node.core.money import Msat
from node.core.pricing import Price
from node.core.usage import Usage
from node.errors import ContextLengthExceeded, InvalidValue, MissingKey, UpstreamFailed
from node.service.accounts import bearer
from node.service.inference.call import PreparedCall
from node.service.inference.estimate import estimate_prompt
from node.service.inference.messages import prepare_messages
from node.service.inference.messages_meter import MessagesStreamMeter
from node.upstream.translation import chat_request

MODEL = Model(
    id="m",
    backends=(Backend("u", Price(Msat(1000), Msat(2000)), "vendor/m"),),
    context_length=100_000,
    max_output_tokens=4_000,
    endpoints=("messages",),
)
CATALOG = Catalog([MODEL])
HELLO = [{"role": "user", "content": "hello"}]
ERROR: dict[str, Any] = UpstreamFailed().document("req-1")


def prepare(headers: dict[str, str] | None = None, **fields: Any) -> Any:
    body = orjson.dumps({"model": "m", "messages": HELLO, "max_tokens": 100, **fields})
    return prepare_messages(Request("r", "POST", "/v1/messages", headers or {}, body), CATALOG)


def sent(call: PreparedCall) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(call.payload.encode("vendor/m"))
    return document


def user(*blocks: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(blocks)}]


# --- what the upstream gets


def test_the_upstream_gets_its_own_model_id_and_else_what_the_client_said() -> None:
    extra = {"temperature": 0.5, "system": "be brief", "top_k": 3, "new_field": {"a": [1, None]}}
    call = prepare(**extra)
    assert sent(call) == {"model": "vendor/m", "messages": HELLO, "max_tokens": 100, **extra}
    assert (call.path, call.endpoint, call.most.completion_tokens) == ("/messages", "messages", 100)
    assert call.headers == {"anthropic-version": "2023-06-01"}


def test_the_output_is_limited_and_the_thinking_within_it() -> None:
    thinking = {"type": "enabled", "budget_tokens": 10_000}
    document = sent(prepare(max_tokens=20_000, thinking=thinking))
    assert document["max_tokens"] == 4_000
    assert document["thinking"] == {"type": "enabled", "budget_tokens": 3_999}
    kept = {"type": "enabled", "budget_tokens": 2_000}
    assert sent(prepare(max_tokens=20_000, thinking=kept))["thinking"] == kept


def test_only_betas_that_cost_nothing_go_along() -> None:
    given = {
        "anthropic-version": "2024-01-02",
        "anthropic-beta": "effort-2025-11-24, context-1m-2025-08-07,new-2026-02-01",
    }
    assert prepare(given).headers == {
        "anthropic-version": "2024-01-02",
        "anthropic-beta": "effort-2025-11-24",
    }
    assert prepare({"anthropic-beta": "new-2026-02-01"}).headers.keys() == {"anthropic-version"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("anthropic-version", "latest"),
        ("anthropic-beta", "a b"),
        ("anthropic-beta", "x" * 65),
        ("anthropic-beta", ",".join(["beta"] * 17)),
    ],
)
def test_headers_are_checked_before_they_go_anywhere(name: str, value: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        prepare({name: value})
    assert refused.value.param == name


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({"x-api-key": "sk-1"}, "sk-1"),
        ({"x-api-key": "cashuBx"}, "cashuBx"),
        ({"x-api-key": "sk-1", "authorization": "Bearer sk-2"}, "sk-2"),
        ({"x-api-key": "sk-1", "authorization": "Basic x"}, None),
        ({"x-api-key": " "}, None),
        ({}, None),
    ],
)
def test_a_key_may_stand_where_anthropics_sdk_puts_it(
    headers: dict[str, str], key: str | None
) -> None:
    request = Request("r", "POST", "/v1/messages", headers)
    if key is None:
        with pytest.raises(MissingKey):
            bearer(request)
    else:
        assert bearer(request) == key
    assert {"x-api-key", "anthropic-version", "anthropic-beta"} <= REQUEST_HEADERS


BLOCKS = [
    {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}},
    {"type": "tool_use", "id": "t", "name": "f", "input": {"a": ["ü" * 50]}},
    {"type": "tool_result", "tool_use_id": "t", "content": "42"},
    {"type": "tool_result", "tool_use_id": "t"},
    {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "42"}]},
    {"type": "document", "title": "T", "source": {"type": "text", "data": "text"}},
    {
        "type": "search_result",
        "title": "T",
        "source": "s",
        "content": [{"type": "text", "text": ""}],
    },
]


@pytest.mark.parametrize("block", BLOCKS)
def test_what_can_be_seen_is_bounded_by_its_size(block: dict[str, Any]) -> None:
    call = prepare(messages=user(block))
    assert prepare(messages=user()).most.prompt_tokens < call.most.prompt_tokens < 60_000
    longer = prepare(messages=user(block, {"type": "text", "text": "x" * 500}))
    assert longer.most.prompt_tokens >= call.most.prompt_tokens + 500


@pytest.mark.parametrize(
    "block",
    [
        {"type": "document", "source": {"type": "base64", "data": "AA"}},
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "document"}]},
        {"type": "server_tool_use"},
        {"type": "something_new"},
    ],
)
def test_what_cannot_be_seen_is_bounded_by_the_context(block: dict[str, Any]) -> None:
    assert prepare(messages=user(block)).most.prompt_tokens == 100_000


@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=200))
def test_text_never_counts_below_its_bytes(text: str, system: str, schema: str) -> None:
    tool = {"name": "f", "input_schema": {"description": schema}}
    blocks = user(
        {"type": "tool_result", "tool_use_id": "t", "content": text}, {"type": "text", "text": text}
    )
    call = prepare(messages=blocks, system=[{"type": "text", "text": system}], tools=[tool])
    least = 2 * len(text.encode()) + len(system.encode()) + len(json.dumps(tool))
    assert call.most.prompt_tokens >= least


OBJECTS = st.dictionaries(
    st.text(max_size=5), st.text(max_size=30) | st.lists(st.integers(-9, 9) | st.just('"\\"'))
)
TEXT_BLOCKS = st.text(max_size=30).map(lambda text: {"type": "text", "text": text})
USER_BLOCKS = st.one_of(
    TEXT_BLOCKS,
    st.just({"type": "image", "source": {"type": "url", "url": "https://example.com/x.png"}}),
    st.fixed_dictionaries(
        {"type": st.just("tool_result"), "tool_use_id": st.text(max_size=9)},
        optional={"content": st.lists(TEXT_BLOCKS), "is_error": st.booleans()},
    ),
    st.builds(
        lambda title, text: {
            "type": "document",
            "title": title,
            "source": {"type": "text", "data": text},
        },
        st.text(max_size=9),
        st.text(max_size=30),
    ),
)
CALLS = st.fixed_dictionaries(
    {"type": st.just("tool_use"), "id": st.text(max_size=9), "name": st.text(max_size=9)},
    optional={"input": OBJECTS},
)


@given(
    st.lists(st.lists(USER_BLOCKS), min_size=1),
    st.lists(TEXT_BLOCKS | CALLS),
    st.text(max_size=20) | st.lists(TEXT_BLOCKS),
    st.lists(
        st.fixed_dictionaries(
            {"name": st.text(max_size=9), "input_schema": OBJECTS},
            optional={"description": st.text(max_size=30)},
        )
    ),
)
def test_a_translated_call_is_within_the_same_bound(
    said: list[Any], answered: list[Any], system: Any, tools: list[Any]
) -> None:
    messages = [{"role": "user", "content": blocks} for blocks in said]
    messages.insert(1, {"role": "assistant", "content": answered})
    call = prepare(messages=messages, system=system, tools=tools)
    translated = estimate_prompt(chat_request(sent(call), MODEL))
    assert call.most.prompt_tokens >= min(translated.bound, 100_000)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": ["x"]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": user({})}, "messages[0].content"),
        ({"messages": user({"type": "text", "text": 3})}, "messages[0].content"),
        ({"system": 3}, "system"),
        ({"thinking": "much"}, "thinking"),
        ({"thinking": {"budget_tokens": True}}, "thinking.budget_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"context_management": {"edits": []}}, "context_management"),
        ({"speed": "fast"}, "speed"),
        ({"inference_geo": "us"}, "inference_geo"),
        ({"tools": {"name": "f"}}, "tools"),
        ({"tools": ["f"]}, "tools[0].type"),
        ({"tools": [{"type": {}}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}, {"type": "web_search_20250305"}]}, "tools[1].type"),
    ],
)
def test_what_is_wrong_or_not_for_sale_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        prepare(**fields)
    assert refused.value.param == param


def test_nesting_is_bounded() -> None:
    block: dict[str, Any] = {"type": "text", "text": "x"}
    for _ in range(10):
        block = {"type": "tool_result", "tool_use_id": "t", "content": [block]}
    with pytest.raises(InvalidValue):
        prepare(messages=user(block))


def test_tools_whose_definition_only_the_server_knows_are_bounded_by_the_context() -> None:
    assert prepare(tools=[{"type": "custom", "name": "f"}]).most.prompt_tokens < 10_000
    tools = [{"type": "bash_20250124", "name": "bash"}]
    assert prepare(tools=tools).most.prompt_tokens == 100_000


def test_only_a_sure_excess_is_refused() -> None:
    text = "x" * 100_000 * 256
    assert prepare(messages=[{"role": "user", "content": text}]).most.prompt_tokens >= len(text)
    with pytest.raises(ContextLengthExceeded):
        prepare(messages=[{"role": "user", "content": text + "x"}])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "role", "content", "text", "source", "tool_result", "document"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["messages", "tools", "system", "thinking"]), JSON_VALUES))
def test_hostile_documents_raise_only_our_errors(document: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidValue):
        prepare(**document)


# --- streams


def typed(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


START_USAGE = {"input_tokens": 10, "cache_read_input_tokens": 3, "output_tokens": 1}
START = typed("message_start", message={"id": "msg_1", "usage": START_USAGE})
PING = typed("ping")
CONTENT = (
    PING
    + typed("content_block_start", index=0, content_block={"type": "text", "text": ""})
    + typed("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hello wörld"})
    + typed("content_block_delta", index=0, delta={"type": "text_delta", "text": "message_stop"})
    + typed("content_block_stop", index=0)
)
STOP_REASON = {"stop_reason": "end_turn", "stop_sequence": None}
DELTA = typed("message_delta", delta=STOP_REASON, usage={"output_tokens": 7})
STOP = typed("message_stop")


def meter(**fields: Any) -> MessagesStreamMeter:
    call = prepare(stream=True, **fields)
    reading = call.make_meter(call)
    assert isinstance(reading, MessagesStreamMeter)
    return reading


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


def events_of(data: bytes) -> list[dict[str, Any]]:
    events = []
    for event in data.decode().split("\n\n")[:-1]:
        name, _, line = event.partition("\n")
        events.append(json.loads(line.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


@given(st.lists(st.integers(0, 5000)), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_a_stream_passes_unchanged_except_its_end(places: list[int], end: bytes) -> None:
    reading = meter()
    stream = (START + CONTENT + DELTA + STOP).replace(b"\n", end)
    out = b"".join(reading.feed(part) for part in cut(stream, places)) + reading.feed(b"")
    assert out.removesuffix(b"\n") == (START + CONTENT).replace(b"\n", end).removesuffix(b"\n")
    assert reading.complete
    assert reading.usage() == Usage(13, 7, cached_tokens=3)
    assert events_of(reading.finish(Msat(321), None)) == [
        {
            "type": "message_delta",
            "delta": STOP_REASON,
            "usage": {"output_tokens": 7, "cost": 321},
        },
        {"type": "message_stop"},
    ]


def test_every_event_leaves_at_once_until_the_last_ones() -> None:
    reading = meter()
    for event in (START + CONTENT).split(b"\n\n")[:-1]:
        assert reading.feed(event + b"\n\n") == event + b"\n\n"
    assert reading.feed(DELTA) == b""
    assert reading.feed(PING) == PING
    assert reading.feed(STOP + CONTENT) == b""


def test_a_delta_that_was_not_the_last_keeps_its_place() -> None:
    reading = meter()
    early = typed("message_delta", delta={"stop_reason": None}, usage={"output_tokens": 2})
    reading.feed(START)
    assert reading.feed(early) == b""
    assert reading.feed(CONTENT) == PING + early + CONTENT.removeprefix(PING)
    assert reading.feed(early + DELTA) == early
    assert reading.usage().completion_tokens == 7


@pytest.mark.parametrize(
    ("start", "delta", "usage"),
    [
        ({"input_tokens": 10, "output_tokens": 0}, {"output_tokens": 7}, Usage(10, 7)),
        # some servers know the input only at the end
        (
            {"input_tokens": 0, "output_tokens": 0},
            {"input_tokens": 4, "cache_read_input_tokens": 6, "output_tokens": 7},
            Usage(10, 7, cached_tokens=6),
        ),
        (
            {"input_tokens": 10, "cache_creation_input_tokens": 5},
            {"input_tokens": 0, "output_tokens": 7},
            Usage(15, 7, cache_write_tokens=5),
        ),
        (
            {"input_tokens": 10},
            {"output_tokens": 7, "output_tokens_details": {"thinking_tokens": 3}},
            Usage(10, 7, reasoning_tokens=3),
        ),
    ],
)
def test_the_count_comes_in_two_parts(start: Any, delta: Any, usage: Usage) -> None:
    reading = meter()
    reading.feed(typed("message_start", message={"usage": start}))
    reading.feed(typed("message_delta", delta=STOP_REASON, usage=delta))
    assert reading.complete
    assert reading.usage() == usage


def test_what_was_seen_is_counted_upon_the_input_that_was_told() -> None:
    reading = meter()
    reading.feed(START + CONTENT)
    # 28 bytes as JSON writes them
    assert reading.usage() == Usage(13, 7, "estimated", cached_tokens=3)
    assert not reading.complete
    (end,) = events_of(reading.cut(Msat(5), None))
    assert end["delta"]["stop_reason"] is None
    assert end["usage"] == {
        "input_tokens": 10,
        "output_tokens": 7,
        "estimated": True,
        "cost": 5,
    }


@pytest.mark.parametrize("usage", [None, {}, {"output_tokens": -1}, {"output_tokens": True}])
def test_without_a_believable_count_what_was_seen_is_counted(usage: object) -> None:
    reading = meter()
    reading.feed(typed("message_start", message={}) + CONTENT)
    reading.feed(typed("message_delta", delta=STOP_REASON, usage=usage) + STOP)
    seen = reading.usage()
    assert (seen.source, seen.completion_tokens) == ("estimated", 7)
    assert seen.prompt_tokens > 0
    delta, _ = events_of(reading.finish(Msat(1), None))
    assert delta["usage"]["output_tokens"] == 7


def test_thinking_and_the_arguments_of_tools_are_output() -> None:
    for delta in (
        {"type": "thinking_delta", "thinking": "x" * 40},
        {"type": "input_json_delta", "partial_json": "x" * 40},
    ):
        reading = meter()
        reading.feed(typed("content_block_delta", index=0, delta=delta))
        assert reading.usage().completion_tokens == 10


def test_change_comes_with_the_count_to_a_client_that_takes_it_there() -> None:
    for headers, change in (({}, None), ({"x-cashu-change": "event"}, "cashuBtoken")):
        reading = meter(headers=headers)
        reading.feed(START + CONTENT + DELTA + STOP)
        delta, stop = events_of(reading.finish(Msat(1), "cashuBtoken"))
        assert delta.get("x_cashu") == change
        assert stop == {"type": "message_stop"}
        (error,) = events_of(reading.abort(ERROR, "cashuBtoken"))
        assert error.get("x_cashu") == change


@pytest.mark.parametrize("tail", [b"", DELTA[:-9], b"event: message_stop\n"])
def test_a_stream_that_broke_off_is_not_complete(tail: bytes) -> None:
    reading = meter()
    reading.feed(START + CONTENT + tail)
    assert not reading.complete
    (error,) = events_of(reading.abort(ERROR))
    assert error == {"type": "error", **ERROR}


def test_the_stop_event_or_the_last_blank_line_may_be_missing() -> None:
    for tail in (DELTA, DELTA[:-1], DELTA + STOP[:-2]):
        reading = meter()
        assert reading.feed(START + CONTENT + tail) == START + CONTENT
        assert reading.complete
        assert [event["type"] for event in events_of(reading.finish(Msat(1), None))] == [
            "message_delta",
            "message_stop",
        ]


@pytest.mark.parametrize(
    "event",
    [
        typed("error", error={"type": "overloaded_error", "message": "secret"}),
        b'event: error\ndata: {"message":"secret"}\n\n',
        b'data: {"error":{"message":"secret"}}\n\n',
    ],
)
def test_an_error_inside_the_stream_is_a_failure_and_is_not_passed_on(event: bytes) -> None:
    reading = meter()
    assert reading.feed(START + event + CONTENT) == START
    assert isinstance(reading.failure, UpstreamFailed)
    assert not reading.complete


@given(
    st.lists(
        st.binary(max_size=40)
        | st.sampled_from([START, CONTENT, DELTA, STOP, b"\n\n", b'data: {"type":"message_start"}'])
    )
)
def test_garbage_raises_only_our_errors(stream: list[bytes]) -> None:
    reading = meter()
    for part in stream:
        reading.feed(part)
    assert reading.complete in (True, False)
    assert reading.usage().completion_tokens >= 0
    for end in (reading.finish(Msat(1), None), reading.cut(Msat(1), None), reading.abort(ERROR)):
        assert end.endswith(b"\n\n")


# --- whole answers

MESSAGE = {
    "type": "message",
    "content": [{"type": "text", "text": "x" * 40}],
    "usage": {"input_tokens": 10, "cache_read_input_tokens": 3, "output_tokens": 7},
}


def body_meter(document: dict[str, Any]) -> Any:
    call = prepare()
    reading = call.make_meter(call)
    assert reading.feed(json.dumps(document).encode()) == b""
    return reading


def test_an_answer_gets_its_cost() -> None:
    reading = body_meter(MESSAGE)
    assert reading.complete
    assert reading.usage() == Usage(13, 7, cached_tokens=3)
    answer = json.loads(reading.finish(Msat(9), None))
    assert answer == {**MESSAGE, "usage": {**MESSAGE["usage"], "cost": 9}}  # type: ignore[dict-item]


def test_an_answer_without_usage_is_counted_with_the_arguments_of_its_tools() -> None:
    tool = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": "x" * 34}}
    answer = {**MESSAGE, "usage": {}, "content": [*MESSAGE["content"], tool]}  # type: ignore[misc]
    reading = body_meter(answer)
    assert reading.usage().source == "estimated"
    assert 20 <= reading.usage().completion_tokens <= 24


def test_an_error_with_a_good_status_is_not_complete() -> None:
    reading = body_meter({"type": "error", "error": {"message": "secret"}})
    assert not reading.complete
    assert reading.failure is not None
