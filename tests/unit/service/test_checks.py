"""A request is only sold as the operator has set it, and never reaches the operator's own files."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import orjson
import pytest

from node.core.catalog import ENDPOINTS, Backend, Catalog, Model
from node.core.exchange import Request
from node.core.money import Msat
from node.core.pricing import Price
from node.errors import InvalidValue
from node.service.inference.call import Prepare, PreparedCall
from node.service.inference.chat import prepare_chat
from node.service.inference.embeddings import prepare_embeddings
from node.service.inference.images import prepare_image
from node.service.inference.messages import prepare_messages
from node.service.inference.responses import prepare_responses
from node.service.inference.speech import prepare_speech

TOKENS = Price(Msat(1_000_000), Msat(2_000_000), per_image=Msat(9))
MODEL = Model("m", (Backend("u", TOKENS, "m"),), 4_000, 500, endpoints=ENDPOINTS)
ASKED: list[tuple[Prepare, dict[str, Any]]] = [
    (prepare_chat, {"messages": [{"role": "user", "content": "hi"}]}),
    (prepare_messages, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}),
    (prepare_responses, {"input": "hi"}),
    (prepare_embeddings, {"input": "hi"}),
    (prepare_image, {"prompt": "hi"}),
    (prepare_speech, {"input": "hi", "voice": "a"}),
]


def call(prepare: Prepare, body: dict[str, Any], **fixed: str | int | float | bool) -> PreparedCall:
    request = Request("r", "POST", "/", {}, orjson.dumps({"model": "m", **body}))
    prepared = prepare(request, Catalog([replace(MODEL, fixed=fixed)]))
    assert isinstance(prepared, PreparedCall)
    return prepared


def sent(prepared: PreparedCall) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(prepared.payload.encode("m"))
    return document


@pytest.mark.parametrize(("prepare", "body"), ASKED)
def test_what_is_fixed_is_sent_and_nothing_else_is_taken(
    prepare: Prepare, body: dict[str, Any]
) -> None:
    for asked in ({}, {"tier": "plain"}, {"tier": None}):
        made = sent(call(prepare, {**body, **asked}, tier="plain", level=2))
        assert (made["tier"], made["level"]) == ("plain", 2)
    for other in ({"tier": "hd"}, {"level": 3}, {"tier": ["plain"]}):
        with pytest.raises(InvalidValue) as refused:
            call(prepare, {**body, **other}, tier="plain", level=2)
        assert refused.value.param in other


def test_an_image_is_estimated_as_it_is_fixed() -> None:
    fixed: dict[str, Any] = {"quality": "low", "size": "1024x1024"}
    prepared = call(prepare_image, {"prompt": "x"}, **fixed)
    meter = prepared.make_meter(prepared)
    meter.feed(b'{"data":[{"url":"u"}]}')
    assert meter.usage().completion_tokens == 272


@pytest.mark.parametrize(
    ("prepare", "name", "part"),
    [
        (prepare_chat, "messages", {"type": "file", "file": {"file_id": "f"}}),
        (prepare_responses, "input", {"type": "input_file", "file_id": "f"}),
        (prepare_responses, "input", {"type": "input_image", "file_id": "f"}),
        (
            prepare_messages,
            "messages",
            {"type": "image", "source": {"type": "file", "file_id": "f"}},
        ),
        (
            prepare_messages,
            "messages",
            {"type": "document", "source": {"type": "file", "file_id": "f"}},
        ),
    ],
)
def test_files_of_the_operators_account_are_nobody_elses(
    prepare: Prepare, name: str, part: dict[str, Any]
) -> None:
    body = {name: [{"role": "user", "content": [part]}], "max_tokens": 9}
    if name == "input":
        del body["max_tokens"]
    with pytest.raises(InvalidValue):
        call(prepare, body)


def test_a_part_of_no_known_kind_is_looked_into() -> None:
    part = {"type": ["file"], "file": {"file_id": "f"}}
    with pytest.raises(InvalidValue):
        call(prepare_chat, {"messages": [{"role": "user", "content": [part]}]})


def test_a_file_id_that_is_the_clients_own_word_passes() -> None:
    schema = {"type": "object", "properties": {"file_id": {"type": "string"}}}
    tool = {"name": "open", "input_schema": schema}
    use = {"type": "tool_use", "id": "1", "name": "open", "input": {"file_id": "mine"}}
    done = {"type": "tool_result", "tool_use_id": "1", "content": "ok"}
    turns = [
        {"role": "user", "content": 'what is "file_id"?'},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [done]},
    ]
    body = {"messages": turns, "tools": [tool], "max_tokens": 9}
    assert sent(call(prepare_messages, body))["messages"] == turns
    function = {"type": "function", "function": {"name": "open", "parameters": schema}}
    chat = {"messages": [{"role": "user", "content": "file_id"}], "tools": [function]}
    assert sent(call(prepare_chat, chat))["tools"] == [function]
