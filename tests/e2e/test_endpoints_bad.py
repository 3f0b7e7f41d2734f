"""Promise: on every endpoint a wrong request is refused with its field, a failed one is free."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.shop import CALLS, Shop, opened, shop, wav
from tests.e2e.test_openai_sdk import client

__all__ = ["opened", "shop"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

FORM = {"model": "whisper", "response_format": "json"}


@pytest.mark.parametrize("fault", ["status-500", "garbage", "cut", "drop", "error-body"])
async def test_a_failed_call_costs_nothing(shop: Shop, fault: str) -> None:
    key = await shop.account(20)
    for path, body in CALLS.items():
        shop.upstream.fault = fault
        answer = await shop.post(key, path, body)
        assert answer.status_code == 502, path
        assert answer.json()["error"]["code"] == "upstream_error"
        assert answer.headers["x-routstr-cost-msats"] == "0"
        shop.upstream.fault = None  # a server that always fails would no longer be asked
        await shop.post(key, "/v1/moderations", CALLS["/v1/moderations"])
    assert await shop.earned() == 70 * len(CALLS)


async def test_streams_that_break_off_are_charged_for_what_was_seen(shop: Shop) -> None:
    key = await shop.account(100)
    calls: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"model": "davinci", "prompt": "x", "max_tokens": 8, "stream": True}),
        ("/v1/images/generations",
         {"model": "gpt-image", "prompt": "x", "stream": True, "partial_images": 3}),
        ("/v1/audio/transcriptions", {"model": "gpt-transcribe", "stream": "true"}),
        ("/v1/audio/speech",
         {"model": "gpt-tts", "input": "x" * 300, "voice": "a", "stream_format": "sse"}),
    ]  # fmt: skip
    before = 0
    for fault in ("cut", "error-event"):
        for path, body in calls:
            shop.upstream.fault = fault
            answer = await shop.post(key, path, body)
            assert answer.status_code == 200
            last = answer.text.strip().split("\n\n")[-1]
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "upstream_error"
            assert "10.0.0.7" not in answer.text
            earned = await shop.earned()
            assert earned > before, path
            before = earned
            shop.upstream.fault = None
            await shop.post(key, "/v1/moderations", CALLS["/v1/moderations"])
            before += 70


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/completions", {"prompt": None}, "prompt"),
    ("/v1/completions", {"prompt": []}, "prompt"),
    ("/v1/completions", {"prompt": [{"text": "x", "image": "y"}]}, "prompt"),
    ("/v1/completions", {"prompt": [1, -1]}, "prompt"),
    ("/v1/completions", {"prompt": [["x"]]}, "prompt[0]"),
    ("/v1/completions", {"prompt_embeds": "x"}, "prompt_embeds"),
    ("/v1/completions", {"max_tokens": -1}, "max_tokens"),
    ("/v1/completions", {"best_of": 1000}, "best_of"),
    ("/v1/completions", {"suffix": 3}, "suffix"),
    ("/v1/completions", {"echo": "yes"}, "echo"),
    ("/v1/embeddings", {"input": None}, "input"),
    ("/v1/embeddings", {"input": ["x", 3]}, "input[1]"),
    ("/v1/embeddings", {"input": ["x"] * 3000}, "input"),
    ("/v1/embeddings", {"input": [1] * 9000}, "input"),
    ("/v1/embeddings", {"model": "demo"}, "model"),
    ("/v1/moderations", {"input": 7}, "input"),
    ("/v1/moderations", {"model": 7}, "model"),
    ("/v1/rerank", {"query": ["x"]}, "query"),
    ("/v1/rerank", {"documents": "x"}, "documents"),
    ("/v1/rerank", {"documents": ["x", ["y"]]}, "documents[1]"),
    ("/v1/rerank", {"top_n": 0}, "top_n"),
    ("/v1/images/generations", {"prompt": ""}, "prompt"),
    ("/v1/images/generations", {"n": 11}, "n"),
    ("/v1/images/generations", {"size": 5}, "size"),
    ("/v1/images/generations", {"quality": []}, "quality"),
    ("/v1/images/generations", {"response_format": "png"}, "response_format"),
    ("/v1/images/generations", {"stream": 1}, "stream"),
    ("/v1/images/generations", {"partial_images": 9}, "partial_images"),
    ("/v1/audio/transcriptions", {"model": "nobody"}, "model"),
    ("/v1/audio/transcriptions", {"model": ["whisper", "tts"]}, "model"),
    ("/v1/audio/transcriptions", {"response_format": "docx"}, "response_format"),
    ("/v1/audio/transcriptions", {"stream": "perhaps"}, "stream"),
    ("/v1/audio/translations", {"model": "gpt-transcribe"}, "model"),
    ("/v1/audio/speech", {"input": ""}, "input"),
    ("/v1/audio/speech", {"voice": 3}, "voice"),
    ("/v1/audio/speech", {"speed": 9}, "speed"),
    ("/v1/audio/speech", {"speed": True}, "speed"),
    ("/v1/audio/speech", {"stream_format": "ogg"}, "stream_format"),
    ("/v1/audio/speech", {"response_format": 1}, "response_format"),
]


async def test_bad_input_is_refused_with_its_field(shop: Shop) -> None:
    key = await shop.account(20)
    for path, fields, param in BAD:
        answer = await shop.post(key, path, {**CALLS[path], **fields})
        assert 400 <= answer.status_code < 500, (path, fields, answer.text)
        assert answer.json()["error"]["param"] == param, (path, fields)
        assert answer.headers["x-routstr-cost-msats"] == "0"
    assert shop.upstream.calls == 0


async def test_forms_that_are_none(shop: Shop) -> None:
    key = await shop.account(20)
    headers = {"Authorization": f"Bearer {key}"}
    path = "/v1/audio/transcriptions"
    async with httpx.AsyncClient(base_url=shop.node.url, headers=headers) as http:
        as_json = await http.post(path, json=FORM)
        no_file = await http.post(path, data=FORM, files={"other": b"x"})
        empty = await http.post(path, data=FORM, files={"file": ("a.wav", b"")})
        two = await http.post(path, data=FORM, files=[("file", b"x"), ("file", b"y")])
        large = await http.post(
            path, data={**FORM, "prompt": "x" * 70_000}, files={"file": ("a.wav", wav(0.1))}
        )
        crowded = await http.post(
            path, data={**FORM, "include[]": ["x"] * 70}, files={"file": ("a.wav", wav(0.1))}
        )
        kind = {"content-type": "multipart/form-data; boundary=b"}
        noise = await http.post(path, content=b"noise", headers=kind)
        unended = await http.post(
            path,
            content=b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisp',
            headers=kind,
        )
        unbound = await http.post(
            path, content=b"x", headers={"content-type": kind["content-type"][:19]}
        )
    statuses = {
        "json": as_json, "no file": no_file, "empty": empty, "two": two, "large": large,
        "crowded": crowded, "noise": noise, "unended": unended, "unbound": unbound,
    }  # fmt: skip
    assert {name: answer.status_code for name, answer in statuses.items()} == {
        "json": 415, "no file": 400, "empty": 400, "two": 400, "large": 413,
        "crowded": 413, "noise": 400, "unended": 400, "unbound": 415,
    }  # fmt: skip
    assert shop.upstream.calls == 0


async def test_without_enough_money_nothing_is_asked(shop: Shop) -> None:
    key = await shop.account(1)
    async with client(shop, key) as sdk:
        with pytest.raises(openai.APIStatusError) as poor:
            await sdk.images.generate(model="dall-e", prompt="a fox")
        assert poor.value.status_code == 402
        with pytest.raises(openai.APIStatusError) as poor:
            await sdk.audio.transcriptions.create(model="whisper", file=("a.wav", wav(2.0)))
        assert poor.value.status_code == 402
    assert shop.upstream.calls == 0
