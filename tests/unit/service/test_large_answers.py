"""Promise: an answer above our bounds is refused before or paid for, and a large one is passed on
without being taken apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from functools import partial
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.catalog import Backend, Catalog, Model
from node.core.exchange import Failed, Receipt, Request
from node.core.money import Msat
from node.core.pricing import Price
from node.core.usage import Usage
from node.errors import InvalidValue, UpstreamFailed
from node.ports import UpstreamCall, UpstreamReply
from node.service.buffers import FREE_BYTES, Room
from node.service.inference import metering
from node.service.inference.bodies import DocumentMeter
from node.service.inference.call import Prepare, PreparedCall
from node.service.inference.chat import prepare_chat
from node.service.inference.completions import prepare_completion
from node.service.inference.embeddings import prepare_embeddings
from node.service.inference.inputs import read_input_usage
from node.service.inference.metering import MAX_REPLY_BYTES, BodyMeter, StreamMeter
from node.service.payers import Payer
from node.service.pipeline import Pipeline
from tests.unit.service.test_stopping import MODEL, WAIT_S, Purse

BIG = Model(
    "big",
    (Backend("u", Price(Msat(1), Msat(1)), "x"),),
    200_000,
    100_000,
    endpoints=("chat", "completions", "embeddings"),
)


def request(path: str, stop: asyncio.Event | None = None, **fields: Any) -> Request:
    return Request("r", "POST", path, {}, orjson.dumps(fields), stop=stop)


class Fixed:
    """A model server with one answer, given in pieces."""

    backend = MODEL.backends[0]
    status = 200
    resumable = False

    def __init__(self, *pieces: bytes, content_type: str = "application/json") -> None:
        self.content_type = content_type
        self.pieces = pieces
        self.read = 0
        self.closed = 0

    async def open(self, call: UpstreamCall) -> UpstreamReply:
        return self

    async def chunks(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            self.read += 1
            yield piece

    async def close(self) -> None:
        self.closed += 1


def pipeline(upstream: Any, purse: Purse, room: Room | None = None) -> Pipeline:
    async def choose(_: Request) -> Payer:
        return purse

    return Pipeline(Catalog([MODEL]), choose, upstream, lambda _: None, room=room)


def chat(stop: asyncio.Event | None = None, **fields: Any) -> Request:
    messages = [{"role": "user", "content": "?"}]
    return request("/v1/chat/completions", stop, model="m", messages=messages, **fields)


def bounded(meter: Any, **bounds: int) -> Prepare:
    def prepare(asked: Request, catalog: Catalog) -> PreparedCall | Awaitable[PreparedCall]:
        return replace(prepare_chat(asked, catalog), make_meter=partial(meter, **bounds))

    return prepare


# --- what is above our bounds


@pytest.mark.parametrize(
    ("meter", "bounds", "stream"),
    [(BodyMeter, {"max_reply_bytes": 99}, False), (StreamMeter, {"max_event_bytes": 99}, True)],
)
async def test_our_own_bound_is_not_free(meter: Any, bounds: dict[str, int], stream: bool) -> None:
    purse = Purse()
    kind = "text/event-stream" if stream else "application/json"
    server = Fixed(b'data: {"a":"' + b"x" * 60, b"x" * 60, content_type=kind)
    asked = chat(n=3, max_tokens=5, stream=stream)
    events = [e async for e in pipeline(server, purse).run(asked, bounded(meter, **bounds))]
    (failed,) = events
    assert isinstance(failed, Failed)
    assert failed.error.code == "answer_too_large"
    assert "charged" in failed.error.message
    assert "nothing was charged" not in failed.error.message
    assert purse.ends == ["settled"]
    usage = failed.receipt.usage
    assert usage is not None
    assert (usage.completion_tokens, usage.source) == (15, "estimated")
    assert failed.receipt.cost == MODEL.backends[0].price.cost(usage)
    assert server.closed == 1


async def test_an_upstream_that_breaks_off_is_free() -> None:
    purse = Purse()
    server = Fixed(b'{"choices": [')
    events = [e async for e in pipeline(server, purse).run(chat(), prepare_chat)]
    (failed,) = events
    assert isinstance(failed, Failed)
    assert type(failed.error) is UpstreamFailed
    assert purse.ends == ["released"]


def asked_chat(**fields: Any) -> dict[str, Any]:
    asked = request("/", model="big", messages=[{"role": "user", "content": "?"}], **fields)
    call = prepare_chat(asked, Catalog([BIG]))
    document: dict[str, Any] = orjson.loads(call.payload.encode("x"))
    assert call.most.completion_tokens == document["max_tokens"] * document.get("n", 1)
    return document


def test_choices_and_probabilities_have_to_fit() -> None:
    many = {"n": 128, "logprobs": True, "top_logprobs": 20}
    with pytest.raises(InvalidValue) as refused:
        asked_chat(**many, max_tokens=8000)
    assert refused.value.param == "max_tokens"
    fits = asked_chat(**many)["max_tokens"]  # the client named none
    assert 100 < fits < 8000
    assert asked_chat(**many, max_tokens=fits)["max_tokens"] == fits
    with pytest.raises(InvalidValue):
        asked_chat(**many, max_tokens=fits + 1)
    assert asked_chat(**many, max_tokens=8000, stream=True)["max_tokens"] == 8000
    assert asked_chat(max_tokens=100_000)["max_tokens"] == 100_000
    assert asked_chat(n=64)["max_tokens"] == 100_000
    with pytest.raises(InvalidValue):
        asked_chat(logprobs=True, top_logprobs=10**15)


def test_completions_have_to_fit() -> None:
    def ask(**fields: Any) -> PreparedCall:
        return prepare_completion(request("/", model="big", **fields), Catalog([BIG]))

    ask(prompt=["a"] * 2048, logprobs=5)
    ask(prompt="a", n=128, max_tokens=60_000, stream=True, logprobs=5)
    with pytest.raises(InvalidValue):
        ask(prompt="a", n=128, max_tokens=60_000, logprobs=5)
    with pytest.raises(InvalidValue):
        ask(prompt="a " * 50_000, echo=True, logprobs=20, n=128, max_tokens=1)


def test_vectors_have_to_fit() -> None:
    def ask(count: int, **fields: Any) -> PreparedCall:
        asked = request("/", model="big", input=["x"] * count, **fields)
        return prepare_embeddings(asked, Catalog([BIG]))

    ask(2048, encoding_format="base64")
    ask(2048, dimensions=1024)
    ask(900)
    for count, fields in (
        (2048, {}),
        (2048, {"dimensions": 4096, "encoding_format": "float"}),
        (1, {"dimensions": MAX_REPLY_BYTES}),
    ):
        with pytest.raises(InvalidValue) as refused:
            ask(count, **fields)
        assert refused.value.param == "input"
    with pytest.raises(InvalidValue):
        ask(1, dimensions=0)


# --- large answers


def read(call: PreparedCall, body: bytes, **fields: Any) -> tuple[DocumentMeter, bytes]:
    meter = DocumentMeter(call, read_input_usage, ("prompt_tokens", None), **fields)
    for at in range(0, len(body), 100_000):
        assert meter.feed(body[at : at + 100_000]) == b""
    meter.feed(b"")
    assert meter.complete
    return meter, meter.finish(Msat(9), None)


VECTORS = prepare_embeddings(request("/", model="big", input=["x"]), Catalog([BIG]))
USAGE = {"prompt_tokens": 3, "total_tokens": 3, "details": {"a": 1, "b{}": "}"}}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=9,
)
NAMES = st.sampled_from(["a", "usage", "error_of", 'x"usage', "data"]) | st.text(max_size=5)


@given(st.dictionaries(NAMES.filter(lambda name: name != "error"), VALUES), st.booleans())
def test_a_large_answer_is_the_same_as_a_small_one(before: dict[str, Any], last: bool) -> None:
    """Where the usage is found without taking the answer apart, and where it is not."""
    document = {**before, "usage": USAGE} if last else {"usage": USAGE, **before, "usage_": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metering, "LARGE_BYTES", 1)
        meter, out = read(VECTORS, orjson.dumps(document), only_usage=True)
        usage = meter.usage()
    small, same = read(VECTORS, orjson.dumps(document))
    assert orjson.loads(out) == orjson.loads(same)
    assert usage == small.usage()


@pytest.mark.parametrize("tail", [b"", b', "system_fingerprint": null, "tier" : "a" ', b" \n"])
def test_vectors_are_not_parsed(tail: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = b'{"data": [' + b"0.12345678901234567," * 100_000 + b"1]"
    body = vectors + b', "usage": {"prompt_tokens": 3, "total_tokens": 3}' + tail + b"}\n"
    largest = 0
    loads = orjson.loads

    def watched(data: Any) -> Any:
        nonlocal largest
        largest = max(largest, len(data))
        return loads(data)

    monkeypatch.setattr("node.service.inference.metering.orjson.loads", watched)
    meter, out = read(VECTORS, body, only_usage=True)
    assert 0 < largest < 100
    assert out.startswith(vectors)
    assert loads(out)["usage"] == {"prompt_tokens": 3, "total_tokens": 3, "cost": 9}
    assert meter.usage() == Usage(3)


@pytest.mark.parametrize(
    "body",
    [
        b'{"x": {"usage": {"prompt_tokens": 99}}}',  # of something within
        b'{"a": "b", "x\\"usage": {"prompt_tokens": 99}}',  # of another name
        b'[{"usage": {"prompt_tokens": 99}}',  # no object
        b'{"error": {"a": 1}, "usage": {"prompt_tokens": 99}}',
        b'{"data": [1, 2, 3',
    ],
)
def test_what_is_not_plain_to_see_is_parsed(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def meter_of() -> DocumentMeter:
        meter = DocumentMeter(VECTORS, read_input_usage, ("prompt_tokens", None), only_usage=True)
        meter.feed(body)
        meter.feed(b"")
        return meter

    small = meter_of()
    expected = (small.complete, small.usage())
    monkeypatch.setattr(metering, "LARGE_BYTES", 1)
    large = meter_of()
    assert (large.complete, large.usage()) == expected


def test_half_of_a_large_answer_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who hangs up in the middle of it stops nobody else."""
    meter = DocumentMeter(VECTORS, read_input_usage, ("prompt_tokens", None), only_usage=True)
    meter.feed(b'{"data": [' + b"0.12345678901234567," * 100_000)
    monkeypatch.setattr("node.service.inference.metering.orjson.loads", pytest.fail)
    assert meter.usage() == VECTORS.typical
    assert not meter.complete


async def test_answers_wait_for_room_and_none_fails() -> None:
    """Two large answers at a time and room for one: the second is read when the first is gone."""
    room = Room(FREE_BYTES)
    piece = b'"' + b"x" * (FREE_BYTES - 3) + b'",'
    end = b'1],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
    purses = [Purse(), Purse()]
    servers = [Fixed(b'{"a":[', *[piece] * 6, end) for _ in purses]
    runs = [
        pipeline(server, purse, room).run(chat(), prepare_chat)
        for server, purse in zip(servers, purses, strict=True)
    ]
    first = await asyncio.wait_for(anext(runs[0]), WAIT_S)
    second = asyncio.ensure_future(anext(runs[1]))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not isinstance(first, Failed)
    assert servers[0].read == 8
    assert servers[1].read < 5
    assert not second.done()
    assert purses[1].ends == []
    async with asyncio.timeout(WAIT_S):
        *_, receipt = [event async for event in runs[0]]
        assert isinstance(receipt, Receipt)
        await second
        *_, receipt = [event async for event in runs[1]]
    assert isinstance(receipt, Receipt)
    assert [purse.ends for purse in purses] == [["settled"], ["settled"]]
    assert room.taken_bytes == 0


async def test_who_waits_for_room_can_be_told_to_stop() -> None:
    room = Room(1)
    other, filler = room.share(), room.share()
    await other.take(1)
    stop, purse = asyncio.Event(), Purse()
    server = Fixed(b"{" + b" " * (2 * FREE_BYTES), b"}")
    task = asyncio.ensure_future(anext(pipeline(server, purse, room).run(chat(stop), prepare_chat)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    stop.set()
    assert isinstance(await asyncio.wait_for(task, WAIT_S), Failed)
    assert purse.ends == ["settled"]
    other.close()
    filler.close()


# --- an upstream that opens while its call is let go


class Late(Fixed):
    """Answers although it was cancelled, as one whose answer had just come."""

    content_type = "text/event-stream"

    def __init__(self) -> None:
        super().__init__(content_type="text/event-stream")
        self.asked = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.go = asyncio.Event()

    async def open(self, call: UpstreamCall) -> UpstreamReply:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            await self.go.wait()
        return self


async def test_a_second_cancellation_leaves_nothing_open() -> None:
    late, purse = Late(), Purse()

    async def use() -> None:
        async for _ in pipeline(late, purse).run(chat(stream=True), prepare_chat):
            pass

    task = asyncio.create_task(use())
    await asyncio.wait_for(late.asked.wait(), WAIT_S)
    task.cancel()
    await asyncio.wait_for(late.cancelled.wait(), WAIT_S)
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), WAIT_S)
    assert late.closed == 0
    late.go.set()
    async with asyncio.timeout(WAIT_S):
        while not late.closed:
            await asyncio.sleep(0)
    assert purse.ends == ["settled"]
