"""The upstream client sends what it was told, maps every failure, and never waits for ever."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from node.core.catalog import Backend, Model
from node.core.money import Msat
from node.core.pricing import Price
from node.demo.model_server import ModelServer
from node.errors import (
    ContextLengthExceeded,
    InvalidValue,
    NodeError,
    RateLimitExceeded,
    UpstreamFailed,
    UpstreamTimeout,
)
from node.ports import UpstreamCall, UpstreamReply
from node.service.inference.call import JsonPayload
from node.upstream.errors import UnknownThere, error_from_answer
from node.upstream.lane import Lane
from node.upstream.router import UpstreamRouter
from node.upstream.server import Deadlines, UpstreamServer

KEY = "sk-operator-secret-key"
BACKEND = Backend("main", Price(Msat(1), Msat(1)), "m")
MODEL = Model("m", (BACKEND,), 1000, 100)
MESSAGES = [{"role": "user", "content": "why is the sky blue"}]
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def call(model: str = "demo", *, stream: bool = False, **fields: Any) -> UpstreamCall:
    backend = replace(BACKEND, upstream_id=model)
    catalogued = replace(MODEL, backends=(backend,))
    body = {"messages": MESSAGES, "stream": stream, **fields}
    accept = "text/event-stream" if stream else "application/json"
    return UpstreamCall(
        catalogued,
        "chat",
        "/chat/completions",
        JsonPayload(body, catalogued),
        "req-1",
        (accept,),
    )


async def ask(upstream: UpstreamServer, call: UpstreamCall) -> UpstreamReply:
    return await upstream.open(call, call.model.backends[0])


def body_of(call: UpstreamCall) -> bytes:
    return call.payload.encode(call.model.backends[0].upstream_id)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer(api_key=KEY) as server:
        yield server


@pytest.fixture
def upstream(session: aiohttp.ClientSession, server: ModelServer) -> UpstreamServer:
    return UpstreamServer("main", session, server.url + "/", api_key=KEY)


async def read(reply: UpstreamReply) -> bytes:
    try:
        return b"".join([data async for data in reply.chunks()])
    finally:
        await reply.close()


async def failure(awaitable: Awaitable[object]) -> NodeError:
    with pytest.raises(NodeError) as caught:
        await awaitable
    return caught.value


@asynccontextmanager
async def raw_server(answer: bytes, *, close: bool = True) -> AsyncIterator[str]:
    """A server that answers anything with ``answer``."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            if not close:
                await reader.read()
                while await reader.read(65536):
                    pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


async def test_an_answer_in_one_piece(upstream: UpstreamServer, server: ModelServer) -> None:
    reply = await ask(upstream, call())
    assert (reply.status, reply.content_type) == (200, "application/json")
    document = json.loads(await read(reply))
    assert document["choices"][0]["message"]["content"].startswith("You asked: why is the sky")
    assert document["usage"]["completion_tokens"] == server.words
    assert server.calls == 1
    assert server.disconnects == 0


async def test_a_stream_arrives_piece_by_piece(
    upstream: UpstreamServer, server: ModelServer
) -> None:
    server.delay_s = 0.005
    reply = await ask(upstream, call(stream=True, stream_options={"include_usage": True}))
    assert reply.content_type == "text/event-stream"
    pieces = [data async for data in reply.chunks()]
    await reply.close()
    assert len(pieces) > 1
    assert b"".join(pieces).endswith(b"data: [DONE]\n\n")


async def test_the_body_goes_out_as_it_is_and_only_known_headers_do(
    upstream: UpstreamServer, server: ModelServer
) -> None:
    await read(await ask(upstream, call(unknown_field=[1])))
    (recorded,) = server.recorded
    assert recorded.body == json.loads(body_of(call(unknown_field=[1])))
    headers = {name.lower(): value for name, value in recorded.headers.items()}
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["x-request-id"] == "req-1"
    assert headers["content-type"] == headers["accept"] == "application/json"
    assert set(headers) <= {
        "authorization", "x-request-id", "content-type", "accept",
        "host", "content-length", "accept-encoding",
    }  # fmt: skip


async def test_a_large_body(upstream: UpstreamServer, server: ModelServer) -> None:
    image = "A" * (4 << 20)
    await read(await ask(upstream, call(image=image)))
    (recorded,) = server.recorded
    assert recorded.body["image"] == image
    assert recorded.headers["Content-Length"] == str(len(body_of(call(image=image))))


async def test_connections_are_reused(upstream: UpstreamServer, session: Any) -> None:
    for _ in range(3):
        await read(await ask(upstream, call()))
    assert len(list(session.connector._conns.values())) == 1


async def test_the_key_shows_nowhere(upstream: UpstreamServer, session: Any) -> None:
    assert KEY not in repr(upstream) + str(vars(UpstreamRouter([Lane(upstream)])))
    async with ModelServer(api_key="another") as server:
        wrong = UpstreamServer("main", session, server.url, api_key=KEY)
        error = await failure(ask(wrong, call()))
    assert isinstance(error, UpstreamFailed)
    assert KEY not in str(error) + repr(error) + error.private


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("status-400", InvalidValue),
        ("status-404", UnknownThere),
        ("context", ContextLengthExceeded),
        ("status-401", UpstreamFailed),
        ("status-500", UpstreamFailed),
        ("status-503", UpstreamFailed),
        ("status-429", RateLimitExceeded),
        ("drop", UpstreamFailed),
    ],
)
async def test_failures_before_the_first_byte(
    upstream: UpstreamServer, fault: str, expected: type[NodeError]
) -> None:
    error = await failure(ask(upstream, call(f"demo#{fault}")))
    assert type(error) is expected
    if expected is RateLimitExceeded:
        assert error.retry_after_s == 7
    if expected is ContextLengthExceeded:
        assert "8192" in error.message
        assert error.param == "messages"
    if expected is UpstreamFailed:
        assert error.message == UpstreamFailed.default
        assert "main" in error.private


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_cut(upstream: UpstreamServer, stream: bool) -> None:
    reply = await ask(upstream, call("demo#cut", stream=stream))
    assert isinstance(await failure(read(reply)), UpstreamFailed)


async def test_a_server_that_never_answers(session: Any, server: ModelServer) -> None:
    deadlines = Deadlines(first_byte_s=0.5, whole_s=0.5)
    upstream = UpstreamServer("main", session, server.url, api_key=KEY, deadlines=deadlines)
    assert isinstance(await failure(ask(upstream, call("demo#hang"))), UpstreamTimeout)
    async with asyncio.timeout(5):
        await server.disconnected.wait()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_that_stops_in_the_middle(
    session: Any, server: ModelServer, stream: bool
) -> None:
    deadlines = Deadlines(chunk_s=0.2)
    upstream = UpstreamServer("main", session, server.url, api_key=KEY, deadlines=deadlines)
    reply = await ask(upstream, call("demo#stall", stream=stream))
    assert isinstance(await failure(read(reply)), UpstreamTimeout)
    async with asyncio.timeout(5):
        await server.disconnected.wait()


async def test_an_answer_that_trickles_for_ever(session: Any, server: ModelServer) -> None:
    server.delay_s, server.words = 0.02, 100_000
    deadlines = Deadlines(answer_s=0.3)
    upstream = UpstreamServer("main", session, server.url, api_key=KEY, deadlines=deadlines)

    async def whole() -> bytes:
        return await read(await ask(upstream, call(stream=True)))

    assert isinstance(await failure(whole()), UpstreamTimeout)


async def test_closing_in_the_middle_stops_the_server(
    upstream: UpstreamServer, server: ModelServer
) -> None:
    server.delay_s, server.words = 0.01, 100_000
    reply = await ask(upstream, call(stream=True))
    async for _ in reply.chunks():
        break
    assert server.disconnects == 0
    await reply.close()
    await reply.close()
    async with asyncio.timeout(5):
        await server.disconnected.wait()
    assert server.chunks_sent < 1000


async def test_cancelling_while_it_waits_stops_the_server(
    upstream: UpstreamServer, server: ModelServer
) -> None:
    task = asyncio.create_task(ask(upstream, call("demo#hang")))
    async with asyncio.timeout(5):
        await server.called.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await server.disconnected.wait()
    assert task.cancelled()


async def test_nobody_listens(session: Any, unused_tcp_port_factory: Callable[[], int]) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port_factory()}/v1"
    error = await failure(ask(UpstreamServer("main", session, url), call()))
    assert isinstance(error, UpstreamFailed)
    assert error.status == 502


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 99999999\r\n\r\n" + b"[" * 50_000,
        b"HTTP/1.1 503 Oops\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_a_server_that_talks_nonsense(session: Any, answer: bytes) -> None:
    async with raw_server(answer) as url:
        error = await failure(ask(UpstreamServer("main", session, url), call()))
    assert type(error) is UpstreamFailed


@pytest.mark.parametrize(
    "answer",
    [
        JSON_HEAD + b"Content-Length: 100\r\n\r\n{",
        JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
        JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        JSON_HEAD + b"Content-Encoding: gzip\r\nContent-Length: 9\r\n\r\nnot gzip!",
    ],
)
async def test_a_body_that_is_broken(session: Any, answer: bytes) -> None:
    async def whole() -> bytes:
        return await read(await ask(UpstreamServer("main", session, url), call()))

    async with raw_server(answer) as url:
        assert type(await failure(whole())) is UpstreamFailed


async def test_json_is_no_answer_to_a_stream(session: Any) -> None:
    async with raw_server(JSON_HEAD + b"Content-Length: 2\r\n\r\n{}") as url:
        error = await failure(ask(UpstreamServer("main", session, url), call(stream=True)))
    assert type(error) is UpstreamFailed


async def test_an_error_without_end_is_not_read_to_the_end(session: Any) -> None:
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 99999999\r\n\r\n"
    async with raw_server(head + b'{"error"' + b" " * 100_000, close=False) as url:
        error = await failure(ask(UpstreamServer("main", session, url), call()))
    assert type(error) is InvalidValue


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "max_tokens is too large", "param": "max_tokens"}}, "max_tokens is"),
        (
            {"object": "error", "message": "temperature\n must be\x00 < 2"},
            "temperature must be < 2",
        ),
        ({"detail": "n is wrong"}, "n is wrong"),
        ({"error": "just words"}, "just words"),
        ({"error": {"message": ["x"]}}, "the model server does not"),
        ({"error": None}, "the model server does not"),
        ([], "the model server does not"),
        (7, "the model server does not"),
    ],
)
def test_the_clients_mistake_is_explained(body: object, message: str) -> None:
    error = error_from_answer("main", 400, {}, json.dumps(body).encode())
    assert type(error) is InvalidValue
    assert error.message.startswith(message)


@pytest.mark.parametrize(
    "private",
    ["http://10.1.2.3:8000/v1", "https://user:pw@host/x", "10.1.2.3", "10.1.2.3:8000",
     "[fe80::1]:80", "sk-abcdef123456", "org-AbCdEf123", "Bearer abc", KEY],
)  # fmt: skip
def test_nothing_private_of_the_upstream_is_passed_on(private: str) -> None:
    body = json.dumps({"error": {"message": f"bad request to ({private}) by you"}}).encode()
    error = error_from_answer("main", 400, {"X-Secret": "s3"}, body, hide=KEY)
    assert private not in error.message
    assert "s3" not in error.message
    assert error.message.startswith("bad request to (")


def test_a_long_message_is_shortened_and_a_strange_param_dropped() -> None:
    details = {"message": "x" * 5000 + "\ud800", "param": "<script>"}
    error = error_from_answer("main", 400, {}, json.dumps({"error": details}).encode())
    assert len(error.message) == 300
    assert error.param is None
    error.body("r")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("999999999", 3600),
        ("99999999999999999999", None),
        ("-1", None),
        ("soon", None),
        ("", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 3600),
        ("Wed, 21 Oct 2015 07:28:00", None),
    ],
)
def test_retry_after(header: str, seconds: int | None) -> None:
    error = error_from_answer("main", 429, {"Retry-After": header}, b"")
    assert error.retry_after_s == seconds


@pytest.mark.parametrize("message", ["maximum context length is 10", "exceeds context window"])
def test_a_long_prompt_is_recognised_by_its_words(message: str) -> None:
    body = json.dumps({"error": {"message": message}}).encode()
    assert type(error_from_answer("main", 400, {}, body)) is ContextLengthExceeded


async def test_the_router_picks_by_name(upstream: UpstreamServer, server: ModelServer) -> None:
    await read(await UpstreamRouter([Lane(upstream)]).open(call()))
    assert server.calls == 1
    error = await failure(UpstreamRouter([]).open(call()))
    assert isinstance(error, UpstreamFailed)
