"""Promise: every call of the ``openai`` SDK besides chat works here and costs its price."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from typing import Any

import httpx
import pytest

from node.demo.model_server.media import IMAGE_TOKENS, picture, spoken
from node.demo.model_server.texts import vector
from tests.e2e.shop import CALLS, Shop, opened, shop, wav
from tests.e2e.test_openai_sdk import client
from tests.fakes.stranger import SdkClient, in_parts, message

__all__ = ["opened", "shop"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

FORM = {"model": "whisper", "response_format": "json"}


async def test_completions_whole_and_streamed(shop: Shop) -> None:
    key = await shop.account(100)
    async with client(shop, key) as sdk:
        whole = await sdk.completions.create(model="davinci", prompt="once upon a", max_tokens=5)
        assert whole.usage is not None
        assert whole.usage.model_extra is not None
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 5)
        assert whole.usage.model_extra["cost"] == 100 + 30 + 100
        stream = await sdk.completions.create(
            model="davinci",
            prompt="once upon a",
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
        )
        text, costs = "", []
        async for chunk in stream:
            text += "".join(choice.text for choice in chunk.choices)
            if chunk.usage is not None:
                costs.append((chunk.usage.model_extra or {})["cost"])
        assert text.strip() == whole.choices[0].text
        assert costs == [230]
        several = await sdk.completions.create(
            model="davinci", prompt=[[1, 2, 3], [4, 5]], max_tokens=2, n=2
        )
        assert several.usage is not None
        assert (several.usage.prompt_tokens, several.usage.completion_tokens) == (5, 8)
    assert await shop.earned() == 2 * 230 + 100 + 50 + 160


async def test_embeddings_as_base64_and_as_numbers_and_of_tokens(shop: Shop) -> None:
    key = await shop.account(100)
    async with client(shop, key) as sdk:
        packed = await sdk.embeddings.create(model="embedder", input=["one two", "three"])
        assert shop.upstream.recorded[-1].body["encoding_format"] == "base64"
        assert [item.embedding for item in packed.data] == [
            pytest.approx(vector(text, 8)) for text in ("one two", "three")
        ]
        assert (packed.usage.prompt_tokens, packed.usage.model_extra) == (3, {"cost": 30})
        plain = await sdk.embeddings.create(
            model="embedder", input="one two", encoding_format="float", dimensions=4
        )
        assert plain.data[0].embedding == vector("one two", 4)
        tokens = await sdk.embeddings.create(model="embedder", input=[[1, 2, 3], [4]])
        assert tokens.usage.prompt_tokens == 4
        raw = await sdk.embeddings.with_raw_response.create(model="embedder", input="one two")
        document = raw.http_response.json()
        packed_floats = struct.pack("<8f", *vector("one two", 8))
        assert document["data"][0]["embedding"] == base64.b64encode(packed_floats).decode()
        assert raw.headers["x-routstr-cost-msats"] == "20"
    assert await shop.earned() == 30 + 20 + 40 + 20


async def test_moderations_need_no_model(shop: Shop) -> None:
    key = await shop.account(10)
    async with client(shop, key) as sdk:
        harmless = await sdk.moderations.create(input="a walk in the park")
        assert not harmless.results[0].flagged
        mixed = await sdk.moderations.create(model="moderator", input=["walk", "kill"])
        assert [result.flagged for result in mixed.results] == [False, True]
        picture_and_text: Any = [
            {"type": "text", "text": "kill"},
            {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        ]
        assert (await sdk.moderations.create(input=picture_and_text)).results[0].flagged
    assert shop.upstream.recorded[0].body["model"] == "moderator"
    assert await shop.earned() == 3 * 70


@pytest.mark.parametrize("model", ["reranker", "reranker-cohere"])
async def test_rerank_in_the_shapes_of_its_vendors(shop: Shop, model: str) -> None:
    key = await shop.account(10)
    body = {"model": model, "query": "red fox", "documents": ["a blue fox", {"text": "red fox"}]}
    async with httpx.AsyncClient() as http:
        answer = await http.post(
            f"{shop.node.url}/v1/rerank",
            json={**body, "top_n": 1},
            headers={"Authorization": f"Bearer {key}"},
        )
    document = answer.json()
    assert [result["index"] for result in document["results"]] == [1]
    assert document["usage"]["cost"] == 10 * (3 + 2 + 2 + 2)
    assert "estimated" not in document["usage"]


async def test_images_by_the_piece(shop: Shop) -> None:
    key = await shop.account(100)
    async with client(shop, key) as sdk:
        urls = await sdk.images.generate(model="dall-e", prompt="a fox", n=2, size="1024x1024")
        assert [item.url for item in urls.data or []] == [
            "http://images.example/0.png",
            "http://images.example/1.png",
        ]
        assert urls.usage is not None
        assert urls.usage.model_extra is not None
        assert urls.usage.model_extra["cost"] == 10_000
        assert "estimated" not in urls.usage.model_extra
        packed = await sdk.images.generate(
            model="dall-e", prompt="a fox", response_format="b64_json", quality="hd"
        )
        assert base64.b64decode((packed.data or [])[0].b64_json or "") == picture("a fox", 0)
        shop.upstream.fault = "empty"
        assert (await sdk.images.generate(model="dall-e", prompt="a fox")).data == []
    assert await shop.earned() == 15_000


async def test_images_by_the_token_and_in_parts(shop: Shop) -> None:
    key = await shop.account(100)
    async with client(shop, key) as sdk:
        whole = await sdk.images.generate(model="gpt-image", prompt="a red fox", quality="low")
        assert whole.usage is not None
        assert whole.usage.model_extra is not None
        assert (whole.usage.input_tokens, whole.usage.output_tokens) == (3, 272)
        assert whole.usage.model_extra["cost"] == 272 + 1  # 3 tokens of input are 0.03 msat
        stream = await sdk.images.generate(
            model="gpt-image", prompt="a red fox", stream=True, partial_images=2
        )
        events = [event async for event in stream]
        kinds = ["partial_image", "partial_image", "completed"]
        assert [event.type for event in events] == [f"image_generation.{kind}" for kind in kinds]
        assert base64.b64decode(events[-1].b64_json) == picture("a red fox", 0)
        usage: Any = getattr(events[-1], "usage", None)
        assert usage.output_tokens == IMAGE_TOKENS["medium"] + 200
        assert usage.model_extra["cost"] == 1257
        shop.upstream.fault = "no-usage"
        guessed = await sdk.images.generate(model="gpt-image", prompt="a red fox", quality="low")
        assert guessed.usage is not None
        assert guessed.usage.model_extra is not None
        assert guessed.usage.model_extra["estimated"] is True
        assert guessed.usage.output_tokens == 272
    assert await shop.earned() == 273 + 1257 + 273


@pytest.mark.parametrize("kind", ["json", "verbose_json", "text", "srt", "vtt"])
async def test_a_transcription_costs_its_minutes_whatever_its_form(shop: Shop, kind: Any) -> None:
    key = await shop.account(10)
    async with client(shop, key) as sdk:
        raw = await sdk.audio.transcriptions.with_raw_response.create(
            model="whisper",
            file=('../kl ü"ng.wav', wav(2.5), "audio/wav"),
            response_format=kind,
            language="en",
            prompt="Zürich",
            temperature=0.5,
        )
    sent = shop.upstream.recorded[-1]
    assert sent.body["file"] == wav(2.5)
    assert sent.body["file_name"].endswith("ng.wav")
    assert not set(sent.body["file_name"]) & set('/\\"\n')
    assert (sent.body["file_type"], sent.body["model"]) == ("audio/wav", "whisper")
    assert (sent.body["language"], sent.body["prompt"]) == ("en", "Zürich")
    # the server counts in whole seconds where it counts, else the length is measured
    cost = 2500 if kind in ("srt", "vtt") else 3000
    assert raw.headers["x-routstr-cost-msats"] == str(cost)
    if "json" in kind:
        assert raw.http_response.json()["usage"] == {"type": "duration", "seconds": 3, "cost": 3000}
        assert raw.http_response.json()["text"]
    else:
        assert raw.headers["content-type"] == "text/plain; charset=utf-8"
        assert raw.http_response.text
    assert await shop.earned() == cost


async def test_a_transcription_in_pieces_and_a_translation(shop: Shop) -> None:
    key = await shop.account(100)
    async with client(shop, key) as sdk:
        stream = await sdk.audio.transcriptions.create(
            model="gpt-transcribe", file=("a.wav", wav(1.0)), stream=True
        )
        events: list[Any] = [event async for event in stream]
        assert {event.type for event in events[:-1]} == {"transcript.text.delta"}
        last = events[-1]
        assert last.type == "transcript.text.done"
        assert "".join(event.delta for event in events[:-1]).strip() == last.text
        assert last.usage is not None
        assert last.usage.model_extra is not None
        cost = 100 + 10 * 10 + 20 * 8
        assert last.usage.model_extra["cost"] == cost
        # a model that does not stream answers in one piece
        whole = await sdk.audio.transcriptions.create(
            model="whisper", file=("a.wav", wav(1.0)), stream=True
        )
        assert [event async for event in whole] == []
        translated = await sdk.audio.translations.create(model="whisper", file=("a.wav", wav(1.0)))
        assert translated.text
    assert await shop.earned() == cost + 2 * 1000


async def test_speech_as_a_file_and_as_events(shop: Shop) -> None:
    key = await shop.account(100)
    text = "hello from the open market"
    async with client(shop, key) as sdk:
        answer = await sdk.audio.speech.create(
            model="tts", voice="alloy", input=text, response_format="wav"
        )
        assert answer.content == spoken(text)
        assert answer.response.headers["content-type"] == "audio/wav"
        assert answer.response.headers["x-routstr-cost-msats"] == str(10 * len(text))
        async with sdk.audio.speech.with_streaming_response.create(
            model="tts", voice="alloy", input=text
        ) as streamed:
            assert b"".join([data async for data in streamed.iter_bytes()]) == spoken(text)
        async with sdk.audio.speech.with_streaming_response.create(
            model="gpt-tts", voice="alloy", input=text, stream_format="sse"
        ) as streamed:
            events = [
                json.loads(line[6:]) async for line in streamed.iter_lines() if line[:5] == "data:"
            ]
    sound = b"".join(base64.b64decode(event.get("audio", "")) for event in events)
    assert sound == spoken(text)
    tokens = round(len(text) * 0.07 * 21)
    assert events[-1]["type"] == "speech.audio.done"
    assert events[-1]["usage"]["cost"] == 10 * 5 + 20 * tokens
    revenue = 2 * 10 * len(text) + 50 + 20 * tokens
    assert await shop.earned() == revenue


async def test_the_first_five_answer_without_the_prefix(shop: Shop) -> None:
    key = await shop.account(20)
    bare = {"completions", "embeddings", "images/generations", "audio/transcriptions"}
    for path, body in CALLS.items():
        short = path.removeprefix("/v1")
        answer = await shop.post(key, short, body)
        assert answer.status_code == (200 if short[1:] in bare else 404), short


async def test_over_nostr_forms_go_in_and_sound_comes_out(shop: Shop) -> None:
    """Both are larger than one message; change comes in the last one."""
    form = httpx.Request(
        "POST", "http://x", data=FORM, files={"file": ("a.wav", wav(4.0), "audio/wav")}
    )
    text = "sealed letters between keys that never met " * 3
    async with SdkClient(shop.relay.url, shop.node.keys.pubkey, [21059]) as stranger:
        paid = {"x-cashu": await shop.purse.fund(20), "content-type": form.headers["content-type"]}
        await stranger.send(
            *in_parts(
                form.read(), 16_000, message_id="in", url="/v1/audio/transcriptions",
                headers=paid, frames=True,
            )
        )  # fmt: skip
        written = await stranger.framed("in")
        assert (written.status, written.headers["content-type"]) == (200, "application/json")
        assert json.loads(written.body)["usage"] == {"type": "duration", "seconds": 4, "cost": 4000}
        assert shop.upstream.recorded[-1].body["file"] == wav(4.0)
        assert await shop.purse.receive(written.trailers["x-cashu"]) == 16
        body = json.dumps({"model": "tts", "voice": "a", "input": text, "response_format": "wav"})
        paid = {"x-cashu": await shop.purse.fund(20), "content-type": "application/json"}
        await stranger.send(
            message(body.encode(), "out", "/v1/audio/speech", headers=paid, frames=True)
        )
        read = await stranger.framed("out")
        assert (read.status, read.headers["content-type"]) == (200, "audio/wav")
        assert read.body == spoken(text)
        assert int(read.trailers["x-cost-msat"]) == 10 * len(text)
        # http2nostr knows no frames
        paid = {"x-cashu": await shop.purse.fund(20), "content-type": "application/json"}
        stranger.arrived.clear()
        await stranger.send(message(body.encode(), "plain", "/v1/audio/speech", headers=paid))
        async with asyncio.timeout(20):
            count = (await stranger.replies(1))[0]["parts"]
            parts = sorted(await stranger.replies(count), key=lambda part: int(part["partIndex"]))
        assert count > 1
        assert b"".join(base64.b64decode(part["bodyBase64"]) for part in parts) == spoken(text)
        # half of a file is none, but the server has read the text
        shop.upstream.fault = "stall"
        shop.upstream.called.clear()
        paid = {"x-cashu": await shop.purse.fund(20), "content-type": "application/json"}
        await stranger.send(
            message(body.encode(), "stopped", "/v1/audio/speech", headers=paid, frames=True)
        )
        await asyncio.wait_for(shop.upstream.called.wait(), 20)
        await stranger.send({"id": "stopped", "cancel": True})
        stopped = await stranger.framed("stopped")
        assert (stopped.status, int(stopped.trailers["x-cost-msat"])) == (409, 10 * len(text))
        assert await shop.purse.receive(stopped.trailers["x-cashu"]) == 20 - 2
        await stranger.send(
            message(b"noise", "bad", "/v1/audio/transcriptions", headers=paid, frames=True)
        )
        assert (await stranger.framed("bad")).status in (400, 415)


async def test_a_repeated_key_gets_the_same_sound_and_is_charged_once(shop: Shop) -> None:
    key = await shop.account(20)
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "again"}
    body = {"model": "tts", "voice": "a", "input": "hello", "response_format": "wav"}
    async with httpx.AsyncClient(base_url=shop.node.url, headers=headers) as http:
        answers = [await http.post("/v1/audio/speech", json=body) for _ in range(2)]
    assert {answer.content for answer in answers} == {spoken("hello")}
    assert {answer.headers["content-type"] for answer in answers} == {"audio/wav"}
    assert await shop.earned() == 50
    assert shop.upstream.calls == 1
