"""A messages call means the same to an upstream that only speaks chat, and its answer comes back
whole however the stream is cut: text byte for byte, the arguments of tools as they were."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from node.core.catalog import Backend, Model
from node.core.money import Msat
from node.core.pricing import Price
from node.core.usage import Usage, usage_from_anthropic
from node.errors import InvalidValue, UpstreamFailed
from node.ports import UpstreamCall, UpstreamReply
from node.service.inference.call import JsonPayload
from node.upstream.translation import MessagesByChat, chat_request, translator_for
from node.upstream.translation_answers import MessageHead, WholeMessage
from node.upstream.translation_stream import MessageStream

MODEL = Model("m", (Backend("u", Price(Msat(1), Msat(1)), "vendor/m"),), 1000, 100)
HEAD = MessageHead("msg_r", "m", ("END",))
TOOL = {
    "name": "weather",
    "description": "d",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def chat(model: Model = MODEL, **fields: Any) -> dict[str, Any]:
    return chat_request({"max_tokens": 50, "messages": [], **fields}, model)


def said(*blocks: dict[str, Any], role: str = "user") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = chat(messages=[{"role": role, "content": list(blocks)}])[
        "messages"
    ]
    return found


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


# --- the request


def test_only_messages_without_a_native_endpoint_are_translated() -> None:
    assert isinstance(translator_for("messages", {"chat", "embeddings"}), MessagesByChat)
    assert translator_for("messages", {"chat", "messages"}) is None
    assert translator_for("messages", {"embeddings"}) is None
    assert translator_for("responses", {"chat"}) is None


def test_a_request_says_the_same() -> None:
    assert chat(
        system=[text("be"), text("brief")],
        messages=[{"role": "user", "content": "hi"}],
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        stop_sequences=["END"],
        metadata={"user_id": "u"},
        tools=[TOOL],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        thinking={"type": "enabled", "budget_tokens": 2000},
        output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}},
        stream=True,
    ) == {
        "messages": [
            {"role": "system", "content": "be\n\nbrief"},
            {"role": "user", "content": "hi"},
        ],
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["END"],
        "user": "u",
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "description": "d",
                    "parameters": TOOL["input_schema"],
                },
            }
        ],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": {"type": "object"}, "strict": True},
        },
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 4095}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 4096}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 16384}}, "high"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "high"),
        ({"thinking": {"type": "disabled"}}, None),
        ({}, None),
    ],
)
def test_a_thinking_budget_becomes_an_effort(fields: dict[str, Any], effort: str | None) -> None:
    assert chat(**fields).get("reasoning_effort") == effort


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_tool_choices(choice: dict[str, Any], expected: Any) -> None:
    assert chat(tools=[TOOL], tool_choice=choice)["tool_choice"] == expected


def test_some_models_take_their_limit_under_another_name_only() -> None:
    model = Model("o", MODEL.backends, 1000, 100, max_completion_tokens_only=True)
    fields = chat(model)
    assert (fields["max_completion_tokens"], "max_tokens" in fields) == (50, False)


def test_images_and_documents_become_parts() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "QUJD"}
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "QUJD"}
    (message,) = said(
        text("look"),
        {"type": "image", "source": source},
        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
        {"type": "document", "title": "T", "source": {"type": "text", "data": "words"}},
        {"type": "document", "title": "a.pdf", "source": pdf},
        {"type": "search_result", "title": "S", "source": "s", "content": [text("found")]},
    )
    assert message["content"] == [
        text("look"),
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        text("T\nwords"),
        {
            "type": "file",
            "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,QUJD"},
        },
        text("S\ns\nfound"),
    ]


def test_results_of_tools_come_before_what_the_user_says_to_them() -> None:
    image = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
    results = [
        {"type": "tool_result", "tool_use_id": "a", "content": "42"},
        {"type": "tool_result", "tool_use_id": "b", "content": [text("x"), image]},
        {"type": "tool_result", "tool_use_id": "c", "is_error": True, "content": "no"},
    ]
    assert said(*results, text("and?")) == [
        {"role": "tool", "tool_call_id": "a", "content": "42"},
        {"role": "tool", "tool_call_id": "b", "content": "x"},
        {"role": "tool", "tool_call_id": "c", "content": "Error: no"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                text("and?"),
            ],
        },
    ]
    assert said(results[0]) == [{"role": "tool", "tool_call_id": "a", "content": "42"}]


def test_an_earlier_answer_keeps_its_text_and_tools_and_loses_its_thoughts() -> None:
    (message,) = said(
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        text("one "),
        text("two"),
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": [1, "ü"]}},
        role="assistant",
    )
    assert message.pop("tool_calls") == [
        {
            "id": "t",
            "type": "function",
            "function": {"name": "f", "arguments": '{"a":[1,"ü"]}'},
        }
    ]
    assert message == {"role": "assistant", "content": "one two"}


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": [{"type": "container_upload"}]}]},
        {"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"tools": [{"type": "bash_20250124", "name": "bash"}]},
        {"tools": [TOOL], "tool_choice": {"type": "some"}},
        {"tools": [TOOL], "tool_choice": "auto"},
        {"metadata": []},
    ],
)
def test_what_chat_has_no_word_for_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        chat(**fields)


# --- whole answers


def whole(answer: dict[str, Any]) -> dict[str, Any]:
    translation = WholeMessage(HEAD)
    assert translation.feed(orjson.dumps(answer)) == b""
    message: dict[str, Any] = orjson.loads(translation.end())
    Message.model_validate(message)  # as the SDK knows it
    return message


def completion(message: dict[str, Any], reason: Any = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": message, "finish_reason": reason, **more}
    return {"id": "c", "choices": [choice], "usage": COUNT}


COUNT = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


def test_an_answer_says_the_same() -> None:
    call = {"id": "t", "function": {"name": "f", "arguments": '{"a": [1, "ü"]}'}}
    message = whole(
        completion(
            {"reasoning_content": "hm", "content": "hello", "tool_calls": [call]}, "tool_calls"
        )
    )
    assert message["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        text("hello"),
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": [1, "ü"]}},
    ]
    assert (message["id"], message["model"], message["stop_reason"]) == ("c", "m", "tool_use")
    counted = Usage(10, 5, cached_tokens=4, reasoning_tokens=2)
    assert usage_from_anthropic(message["usage"]) == counted


@pytest.mark.parametrize(
    ("reason", "stop"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("tool_calls", "tool_use"),
        ("content_filter", "refusal"),
        (None, "end_turn"),
        ({}, "end_turn"),
    ],
)
def test_stop_reasons(reason: Any, stop: str) -> None:
    assert whole(completion({"content": "x"}, reason))["stop_reason"] == stop


def test_a_stop_sequence_is_told_when_the_server_tells_it() -> None:
    message = whole(completion({"content": "x"}, stop_reason="END"))
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "END")
    assert whole(completion({"content": "x"}, stop_reason=7))["stop_reason"] == "end_turn"


@pytest.mark.parametrize(
    ("arguments", "given"),
    [("", {}), ("{}", {}), (None, {}), ("[1]", {"arguments": "[1]"}), ("{", {"arguments": "{"})],
)
def test_arguments_that_are_no_object_are_not_lost(arguments: Any, given: Any) -> None:
    call = {"id": "t", "function": {"name": "f", "arguments": arguments}}
    assert whole(completion({"tool_calls": [call]}))["content"][0]["input"] == given


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [{"message": 3}]}])
def test_what_is_no_answer_is_a_failure(answer: dict[str, Any]) -> None:
    with pytest.raises(UpstreamFailed):
        whole(answer)


# --- streams


def chunk(delta: dict[str, Any] | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": None, **more}
    return b"data: " + orjson.dumps({"id": "c", "choices": [choice]}) + b"\n\n"


def tool_delta(index: int, arguments: str, **more: Any) -> bytes:
    name = {"name": more.pop("name")} if "name" in more else {}
    call = {"index": index, "function": {"arguments": arguments, **name}, **more}
    return chunk({"tool_calls": [call]})


USAGE_CHUNK = b"data: " + orjson.dumps({"id": "c", "choices": [], "usage": COUNT}) + b"\n\n"
DONE = b"data: [DONE]\n\n"
END = chunk(finish_reason="stop") + USAGE_CHUNK + DONE


def translate(parts: Iterable[bytes]) -> list[dict[str, Any]]:
    translation = MessageStream(HEAD)
    data = b"".join([*(translation.feed(part) for part in parts), translation.end()])
    events = []
    for event in data.decode().split("\n\n")[:-1]:
        name, _, line = event.partition("\n")
        document = json.loads(line.removeprefix("data: "))
        assert name == f"event: {document['type']}"
        if document["type"] not in ("ping", "error"):
            known = {**document, "usage": {"output_tokens": 0} | document.get("usage", {})}
            EVENT.validate_python(known)  # the meter counts what the upstream has not
        events.append(document)
    return events


@dataclass
class Read:
    """What a reader makes of the events, who takes them strictly."""

    blocks: list[dict[str, Any]] = field(default_factory=list)
    stop: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    whole: bool = False


def read(events: list[dict[str, Any]]) -> Read:
    found = Read()
    opened = None
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert (opened, event["index"]) == (None, len(found.blocks))
                opened = event["index"]
                found.blocks.append(dict(event["content_block"]))
            case "content_block_delta":
                assert event["index"] == opened
                block, delta = found.blocks[-1], event["delta"]
                if delta["type"] == "input_json_delta":
                    block["json"] = block.get("json", "") + delta["partial_json"]
                else:
                    kind = block["type"]
                    assert delta["type"] == f"{kind}_delta"
                    block[kind] += delta[kind]
            case "content_block_stop":
                assert event["index"] == opened
                opened = None
            case "message_delta":
                assert opened is None
                found.stop, found.usage = event["delta"], event["usage"]
            case "message_stop":
                found.whole = True
    return found


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


JSON_OBJECTS = st.dictionaries(
    st.text(max_size=5), st.text(max_size=20) | st.integers(-9, 9) | st.lists(st.booleans())
)


@given(
    st.lists(st.text(min_size=1, max_size=20), min_size=1),
    st.lists(st.text(min_size=1, max_size=20)),
    st.lists(st.tuples(JSON_OBJECTS, st.integers(1, 9)), max_size=3),
    st.lists(st.integers(0, 10_000), max_size=30),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_a_stream_says_the_same_however_it_is_cut(
    texts: list[str],
    thoughts: list[str],
    tools: list[tuple[dict[str, Any], int]],
    places: list[int],
    end: bytes,
) -> None:
    stream = chunk({"role": "assistant", "content": ""}) + b": keep-alive\n\n"
    stream += b"".join(chunk({"reasoning_content": thought}) for thought in thoughts)
    stream += b"".join(chunk({"content": piece}) for piece in texts)
    for index, (given_input, size) in enumerate(tools):
        stream += tool_delta(index, "", id=f"t{index}", name="f")
        written = json.dumps(given_input, ensure_ascii=False)
        for place in range(0, len(written), size):
            stream += tool_delta(index, written[place : place + size])
    stream += END
    found = read(translate(cut(stream.replace(b"\n", end), places)))
    expected = [
        *([{"type": "thinking", "thinking": "".join(thoughts), "signature": ""}] * bool(thoughts)),
        text("".join(texts)),
    ]
    assert found.blocks[: len(expected)] == expected
    called = found.blocks[len(expected) :]
    assert [json.loads(block["json"]) for block in called] == [given for given, _ in tools]
    assert [block["id"] for block in called] == [f"t{index}" for index in range(len(tools))]
    assert found.whole
    assert found.stop["stop_reason"] == ("tool_use" if tools else "end_turn")
    counted = Usage(10, 5, cached_tokens=4, reasoning_tokens=2)
    assert usage_from_anthropic(found.usage) == counted


def test_events_leave_at_once() -> None:
    translation = MessageStream(HEAD)
    first = translation.feed(chunk({"role": "assistant", "content": ""}))
    assert b"message_start" in first
    assert b'"text_delta","text":"a"' in translation.feed(chunk({"content": "a"}))
    assert translation.feed(b": keep-alive\n\n") == b'event: ping\ndata: {"type":"ping"}\n\n'
    assert b"partial_json" in translation.feed(tool_delta(0, "{", id="t", name="f"))


def test_a_comment_before_the_message_stays_one() -> None:
    assert MessageStream(HEAD).feed(b": wait\n\n") == b": wait\n\n"


def test_tool_calls_that_interleave_are_put_in_order() -> None:
    found = read(
        translate(
            [
                tool_delta(0, '{"a":', id="t0", name="f"),
                tool_delta(1, '{"b":', id="t1", name="g"),
                tool_delta(0, "1}"),
                tool_delta(2, "", id="t2", name="h"),
                tool_delta(1, "2}"),
                chunk({"content": "done"}),
                END,
            ]
        )
    )
    assert [block.get("json") for block in found.blocks] == ['{"a":1}', '{"b":2}', None, None]
    assert [block.get("name") for block in found.blocks] == ["f", "g", "h", None]


def test_calls_that_all_have_the_index_0_are_told_apart_by_their_ids() -> None:
    parts = [tool_delta(0, "{}", id=f"t{n}", name="f") for n in range(3)]
    found = read(translate([*parts, END]))
    assert [(block["id"], block["json"]) for block in found.blocks] == [
        (f"t{n}", "{}") for n in range(3)
    ]


@pytest.mark.parametrize(
    "parts",
    [
        [tool_delta(0, "{}")],
        [
            tool_delta(0, "{", id="t", name="f"),
            chunk({"content": "x"}),
            tool_delta(0, "}"),
        ],
        [
            tool_delta(0, "{", id="t", name="f"),
            tool_delta(1, "{", id="u", name="f"),
            *[tool_delta(1, "x" * (1 << 20))] * 8,
        ],
        [tool_delta(n, "{", id=f"t{n}", name="f") for n in range(1025)],
        [b"x" * (1 << 20)] * 9,
    ],
)
def test_what_cannot_be_put_in_order_or_has_no_bound_is_a_failure(parts: list[bytes]) -> None:
    with pytest.raises(UpstreamFailed):
        translate(parts)


def test_mistrals_thoughts_and_a_refusal() -> None:
    thinking = {"type": "thinking", "thinking": [text("hm")]}
    found = read(translate([chunk({"content": [thinking, text("so")]}), END]))
    assert found.blocks == [{"type": "thinking", "thinking": "hm", "signature": ""}, text("so")]
    refused = read(translate([chunk({"refusal": "no"}), END]))
    assert (refused.blocks, refused.stop["stop_reason"]) == ([text("no")], "refusal")


@pytest.mark.parametrize(
    ("tail", "is_whole"),
    [
        (b"", False),
        (chunk(finish_reason="stop")[:-9], False),
        (chunk(finish_reason="stop"), True),
        (USAGE_CHUNK, True),
        (DONE, True),
        (b"data: [DONE]", True),
        (END + chunk({"content": "x"}), True),
    ],
)
def test_a_stream_that_broke_off_has_no_end(tail: bytes, is_whole: bool) -> None:
    found = read(translate([chunk({"content": "a"}), tail]))
    assert found.whole == is_whole
    assert found.blocks[0]["text"] == "a"


@pytest.mark.parametrize(
    "error", ['{"error":{"message":"secret"}}', '{"object":"error","message":"secret"}']
)
def test_an_error_in_the_stream_ends_it_without_its_text(error: str) -> None:
    events = translate([chunk({"content": "a"}), f"data: {error}\n\n".encode(), END])
    assert events[-1]["type"] == "error"
    assert "secret" not in json.dumps(events)


@given(
    st.lists(
        st.binary(max_size=40)
        | st.sampled_from([END, b"\n\n", chunk({"content": "a"})])
        | st.dictionaries(
            st.sampled_from(["role", "content", "tool_calls", "reasoning", "refusal"]),
            st.none() | st.integers(-9, 9) | st.text(max_size=3) | st.lists(st.dictionaries(
                st.sampled_from(["type", "index", "id", "function", "text"]),
                st.none() | st.integers(0, 2) | st.text(max_size=3),
            ), max_size=2),
        ).map(chunk)
    )
)  # fmt: skip
def test_garbage_raises_only_our_errors(stream: list[bytes]) -> None:
    translation = MessageStream(HEAD)
    try:
        for part in stream:
            translation.feed(part)
    except UpstreamFailed:
        return
    assert isinstance(translation.end(), bytes)


# --- the hook


class Answer:
    """An answer whose bytes are known."""

    backend = MODEL.backends[0]
    resumable = False
    status = 200

    def __init__(self, content_type: str, *parts: bytes) -> None:
        self.content_type = content_type
        self.closed = False
        self._parts = parts

    async def chunks(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part

    async def close(self) -> None:
        self.closed = True


def call(**fields: Any) -> UpstreamCall:
    document = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    return UpstreamCall(
        MODEL,
        "messages",
        "/messages",
        JsonPayload({**document, **fields}, MODEL),
        "req-1",
        headers={"anthropic-version": "2023-06-01"},
    )


async def body(reply: UpstreamReply) -> bytes:
    return b"".join([data async for data in reply.chunks()])


async def test_the_call_goes_to_chat_under_the_upstreams_name_of_the_model() -> None:
    asked = call()
    instead = MessagesByChat().call(asked)
    assert (instead.endpoint, instead.path) == ("chat", "/chat/completions")
    assert (instead.headers, instead.request_id) == ({}, "req-1")
    sent = orjson.loads(instead.payload.encode("other/m"))
    assert (sent["model"], sent["messages"]) == ("other/m", [{"role": "user", "content": "hi"}])


async def test_the_reply_is_translated_as_it_comes_and_closed_with_its_source() -> None:
    asked = call(stop_sequences=["END"])
    source = Answer("text/event-stream", chunk({"content": "a"}), chunk(finish_reason="stop"))
    reply = MessagesByChat().reply(asked, source)
    assert (reply.status, reply.content_type) == (200, "text/event-stream")
    assert reply.backend is source.backend
    assert (await body(reply)).endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
    await reply.close()
    assert source.closed
    answer = orjson.dumps({**completion({"content": "x"}, stop_reason="END"), "id": None})
    reply = MessagesByChat().reply(asked, Answer("application/json", answer[:9], answer[9:]))
    message = orjson.loads(await body(reply))
    assert (message["stop_reason"], message["id"]) == ("stop_sequence", "msg_req-1")
