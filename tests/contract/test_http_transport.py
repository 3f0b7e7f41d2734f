"""The HTTP carriage decodes strictly, streams at once, never leaks, and lets nobody hold it up."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import random
import zlib
from collections.abc import AsyncGenerator, AsyncIterator

import aiohttp
import pytest

from node.core.exchange import Chunk, Failed, Receipt, ReplyEvent, Request, Started
from node.core.money import Msat
from node.errors import InsufficientBalance, RateLimitExceeded, UpstreamFailed
from tests.fakes.http_node import AUTH, HEAD, MIB, Node, assert_error, parts, running, wait


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with running() as node:
        yield node


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


# --- decoding


async def test_a_request_is_decoded(node: Node, client: aiohttp.ClientSession) -> None:
    headers = {
        "Authorization": "Bearer sk-x",
        "X-Cashu": "cashuBx",
        "X-Cashu-Change": "event",
        "Idempotency-Key": "k1",
        "X-Request-Id": "mine-1",
        "Cookie": "a=b",
        "X-Forwarded-For": "6.6.6.6",
    }
    url = node.url + "/v1/models/vendor%2Fm%20x?limit=3&q=%C3%A9"
    async with client.post(url, json={"a": 1}, headers=headers) as response:
        assert response.headers["X-Request-Id"] == "mine-1"
    (request,) = node.dispatcher.requests
    assert request.request_id == "mine-1"
    assert (request.method, request.path) == ("POST", "/v1/models/vendor/m x")
    assert request.query == {"limit": "3", "q": "é"}
    assert request.body == b'{"a": 1}'
    assert (request.carriage, request.peer) == ("http", "127.0.0.1")
    assert request.idempotency_key == "k1"
    assert request.headers == {
        "content-type": "application/json",
        "accept": "*/*",
        "authorization": "Bearer sk-x",
        "x-cashu": "cashuBx",
        "x-cashu-change": "event",
        "idempotency-key": "k1",
    }


@pytest.mark.parametrize("given", ["", "a" * 101, "with space", "<x>", "a\tb"])
async def test_a_strange_request_id_is_replaced(
    node: Node, client: aiohttp.ClientSession, given: str
) -> None:
    async with client.get(node.url, headers={"X-Request-Id": given}) as response:
        id_ = response.headers["X-Request-Id"]
    assert id_ != given
    assert len(id_) == 32
    assert node.dispatcher.requests[0].request_id == id_


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"])
async def test_every_method_and_path_reaches_the_dispatcher(
    node: Node, client: aiohttp.ClientSession, method: str
) -> None:
    async with client.request(method, node.url + "/any/path//x/") as response:
        assert response.status == 200
    (request,) = node.dispatcher.requests
    assert (request.method, request.path) == (method, "/any/path//x/")
    assert request.body == b""


@pytest.mark.parametrize(
    "header",
    [
        b"Authorization: a\r\nAuthorization: b\r\n",
        b"X-Cashu: a\r\nx-cashu: b\r\n",
        b"Authorization: Bearer \xff\xfe\r\n",
        b"X-Cashu: caf\xc3\xa9\r\n",
        b"Idempotency-Key: " + b"k" * 256 + b"\r\n",
        b"Idempotency-Key:\r\n",
    ],
)
async def test_an_ambiguous_or_undecodable_header_is_refused(node: Node, header: bytes) -> None:
    request = HEAD + header + b"Connection: close\r\nContent-Length: 0\r\n\r\n"
    assert_error(await node.raw(request), 400, "invalid_value")
    assert node.dispatcher.requests == []


@pytest.mark.parametrize(
    "target", [b"/v1/\xff\xfe", b"/v1/x?a=\xff", b"/v1/%FF?b=%FF", b"http://b/v1/x", b"/%00"]
)
async def test_any_target_is_decoded_to_utf8_or_refused(node: Node, target: bytes) -> None:
    answer = await node.raw(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert parts(answer)[0] in (200, 400)
    for request in node.dispatcher.requests:
        request.path.encode()
        json.dumps(dict(request.query)).encode()


# --- encoding


async def test_an_answer_has_its_receipt_in_the_headers(
    node: Node, client: aiohttp.ClientSession
) -> None:
    async with client.post(node.url + "/v1/x", data=b"abc") as response:
        assert await response.json() == {"got": 3}
        headers = response.headers
    assert headers["X-Cashu"] == "cashuBchange"
    assert headers["X-Routstr-Cost-Msats"] == "1234"
    assert headers["X-Cashu-Dust-Msats"] == "5"
    assert headers["X-Routstr-Request-Id"] == headers["X-Request-Id"]
    assert "aiohttp" not in headers["Server"]


async def test_what_is_free_has_no_cost(node: Node, client: aiohttp.ClientSession) -> None:
    async def free(_: Request) -> AsyncGenerator[ReplyEvent, None]:
        yield Started(201, {"content-type": "text/plain", "etag": '"x"'})
        yield Receipt()

    node.dispatcher.script = free
    async with client.get(node.url) as response:
        assert (response.status, response.headers["ETag"]) == (201, '"x"')
        assert not {"X-Cashu", "X-Routstr-Cost-Msats"} & set(response.headers)


async def test_a_live_answer_leaves_as_it_comes(node: Node, client: aiohttp.ClientSession) -> None:
    go_on = asyncio.Event()

    async def live(_: Request) -> AsyncGenerator[ReplyEvent, None]:
        yield Started(200, {"content-type": "text/event-stream"}, live=True)
        yield Chunk(b"data: 1\n\n")
        yield Chunk(b"")
        await go_on.wait()
        yield Chunk(b"data: 2\n\n")
        yield Receipt(cost=Msat(1))

    node.dispatcher.script = live
    async with client.post(node.url) as response:
        assert response.content_type == "text/event-stream"
        assert response.headers["X-Accel-Buffering"] == "no"
        assert response.headers["X-Request-Id"]
        assert await response.content.readany() == b"data: 1\n\n"
        go_on.set()
        assert await response.content.read() == b"data: 2\n\n"
    await wait(node.dispatcher.ended)


async def test_a_failure_has_its_status_its_hints_and_its_change(
    node: Node, client: aiohttp.ClientSession
) -> None:
    async def failed(_: Request) -> AsyncGenerator[ReplyEvent, None]:
        yield Failed(UpstreamFailed(private="10.0.0.7"), Receipt(Msat(0), None, "cashuBback"))

    node.dispatcher.script = failed
    async with client.post(node.url) as response:
        document = await response.json()
        text = await response.text()
        assert response.status == 502
        assert response.headers["X-Should-Retry"] == "false"
        assert response.headers["X-Cashu"] == "cashuBback"
        assert response.headers["X-Routstr-Cost-Msats"] == "0"
    assert document["error"]["code"] == "upstream_error"
    assert document["request_id"] == response.headers["X-Request-Id"]
    assert "10.0.0.7" not in text


async def test_the_hints_of_errors(node: Node, client: aiohttp.ClientSession) -> None:
    error = InsufficientBalance()
    error.payment_request = "creqA1"

    async def unpaid(_: Request) -> AsyncGenerator[ReplyEvent, None]:
        yield Failed(error)

    async def limited(_: Request) -> AsyncGenerator[ReplyEvent, None]:
        yield Failed(RateLimitExceeded(retry_after_s=9))

    node.dispatcher.script = unpaid
    async with client.post(node.url) as response:
        assert (response.status, response.headers["X-Cashu"]) == (402, "creqA1")
    node.dispatcher.script = limited
    async with client.post(node.url) as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "9")


async def test_a_bug_is_a_500_without_details(node: Node, client: aiohttp.ClientSession) -> None:
    async def bug(_: Request) -> AsyncGenerator[ReplyEvent, None]:
        raise RuntimeError("secret detail")
        yield Receipt()

    node.dispatcher.script = bug
    async with client.post(node.url) as response:
        assert response.status == 500
        assert (await response.json())["error"]["code"] == "internal_error"
        assert "secret detail" not in await response.text()


async def test_a_bug_in_the_middle_breaks_the_connection(
    node: Node, client: aiohttp.ClientSession
) -> None:
    async def bug(_: Request) -> AsyncGenerator[ReplyEvent, None]:
        yield Started(200, {}, live=True)
        yield Chunk(b"x")
        raise RuntimeError("oops")

    node.dispatcher.script = bug
    with pytest.raises(aiohttp.ClientError):
        async with client.post(node.url) as response:
            await response.read()
    await wait(node.dispatcher.ended)


# --- clients that go away or hold things up


@pytest.mark.parametrize(("started", "is_live"), [(False, False), (True, False), (True, True)])
async def test_a_client_that_hangs_up_ends_the_exchange(
    node: Node, started: bool, is_live: bool
) -> None:
    async def endless(_: Request) -> AsyncGenerator[ReplyEvent, None]:
        if started:
            yield Started(200, {}, live=is_live)
            yield Chunk(b"x")
        await asyncio.Event().wait()

    node.dispatcher.script = endless
    _, writer = await node.connect()
    writer.write(HEAD + b"Content-Length: 0\r\n\r\n")
    await wait(node.dispatcher.began)
    writer.close()
    await wait(node.dispatcher.ended)


async def test_a_client_that_hangs_up_while_chunks_flow_ends_the_exchange(node: Node) -> None:
    async def endless(_: Request) -> AsyncGenerator[ReplyEvent, None]:
        yield Started(200, {}, live=True)
        while True:
            yield Chunk(b"x" * 1000)
            await asyncio.sleep(0)

    node.dispatcher.script = endless
    reader, writer = await node.connect()
    writer.write(HEAD + b"Content-Length: 0\r\n\r\n")
    await reader.readexactly(2000)
    writer.transport.abort()
    await wait(node.dispatcher.ended)


async def test_a_client_that_does_not_read_is_cut_off() -> None:
    sent = 0

    async def endless(_: Request) -> AsyncGenerator[ReplyEvent, None]:
        nonlocal sent
        yield Started(200, {}, live=True)
        while True:
            yield Chunk(b"x" * 65536)
            sent += 65536

    async with running(write_timeout_s=0.2) as node:
        node.dispatcher.script = endless
        _, writer = await node.connect()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(HEAD + b"Content-Length: 0\r\n\r\n")
        await wait(node.dispatcher.ended)
        writer.transport.abort()
    assert sent < 64 * MIB


async def test_a_long_answer_in_one_piece_arrives_or_is_cut_off() -> None:
    body = random.Random(1).randbytes(20 * MIB)

    async def long(_: Request) -> AsyncGenerator[ReplyEvent, None]:
        yield Started(200, {})
        yield Chunk(body)
        yield Receipt(cost=Msat(1))

    async with running(write_timeout_s=30) as node, aiohttp.ClientSession() as http:
        node.dispatcher.script = long
        async with http.get(node.url) as response:
            assert response.content_length == len(body)
            assert await response.read() == body
        async with http.get(node.url) as response:  # over the same connection
            assert await response.read() == body
    async with running(write_timeout_s=0.2) as node:
        node.dispatcher.script = long
        _, writer = await node.connect()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(HEAD + b"Content-Length: 0\r\n\r\n")
        await wait(node.dispatcher.ended)
        writer.transport.abort()


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\n", HEAD + b"X-A: b"])
async def test_headers_that_never_end(data: bytes) -> None:
    async with running(server={"header_timeout_s": 0.2}) as node:
        assert await node.raw(data) == b""
        assert node.dispatcher.requests == []


async def test_headers_that_never_end_on_a_connection_that_was_used() -> None:
    async with running(server={"keepalive_timeout_s": 0.5}) as node:
        answer = await node.raw(HEAD + b"Content-Length: 0\r\n\r\nGET / HTT")
        assert answer.count(b"HTTP/1.1 200") == 1


@pytest.mark.parametrize(
    "body", [b"Content-Length: 100\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"]
)
async def test_a_body_that_never_ends(body: bytes) -> None:
    async with running(body_timeout_s=0.2) as node:
        reader, writer = await node.connect()
        writer.write(HEAD + body)
        answer = await reader.readuntil(b'"}')
        writer.close()
        assert_error(answer, 408, "request_incomplete")
        assert node.dispatcher.requests == []


# --- bounds


async def test_a_body_up_to_the_limit(node: Node, client: aiohttp.ClientSession) -> None:
    headers = {"Authorization": "Bearer sk-x"}
    async with client.post(node.url, data=b"x" * MIB, headers=headers) as response:
        assert await response.json() == {"got": MIB}


async def test_a_body_over_the_limit(node: Node, client: aiohttp.ClientSession) -> None:
    async def chunked() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x" * MIB

    headers = {"Authorization": "Bearer sk-x"}
    for body in (io.BytesIO(b"x" * (10 * MIB)), io.BytesIO(b"x" * (MIB + 1)), chunked()):
        async with client.post(node.url, data=body, headers=headers) as response:
            assert response.status == 413
            assert (await response.json())["error"]["code"] == "request_too_large"
    assert node.dispatcher.requests == []


async def test_compressed_bodies(node: Node, client: aiohttp.ClientSession) -> None:
    bodies = {
        "gzip": gzip.compress(b"hello"),
        "deflate": zlib.compress(b"hello"),
        "identity": b"hello",
    }
    for encoding, body in bodies.items():
        headers = {"Content-Encoding": encoding}
        async with client.post(node.url, data=body, headers=headers) as response:
            assert await response.json() == {"got": 5}
    assert {request.body for request in node.dispatcher.requests} == {b"hello"}


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        (b"gzip", gzip.compress(b"\0" * (64 * MIB)), 413),
        (b"deflate", zlib.compress(b"\0" * (64 * MIB)), 413),
        (b"gzip", b"this is not gzip", 400),
        (b"compress", b"x", 415),
        (b"gzip, gzip", b"x", 415),
    ],
)
async def test_compressed_bodies_that_are_refused(
    node: Node, encoding: bytes, body: bytes, status: int
) -> None:
    head = HEAD + AUTH + b"Connection: close\r\nContent-Encoding: " + encoding
    answer = await node.raw(head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert parts(answer)[0] == status
    assert json.loads(parts(answer)[2])["request_id"]
    assert node.dispatcher.requests == []


async def test_a_large_token_fits_into_a_header(node: Node) -> None:
    token = b"cashuB" + b"x" * 60_000
    request = HEAD + b"Connection: close\r\nContent-Length: 0\r\nX-Cashu: " + token + b"\r\n\r\n"
    assert parts(await node.raw(request))[0] == 200
    assert node.dispatcher.requests[0].headers["x-cashu"] == token.decode()


async def test_a_header_over_the_limit_is_refused_and_not_repeated(
    node: Node, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    token = b"cashuB" + b"secret" * 12_000
    answer = await node.raw(HEAD + b"X-Cashu: " + token + b"\r\n\r\n")
    assert parts(answer)[0] in (400, 413)
    assert json.loads(parts(answer)[2])["error"]["code"] in ("invalid_value", "request_too_large")
    output = capfd.readouterr()
    assert "secretsecret" not in answer.decode() + caplog.text + output.out + output.err
    assert node.dispatcher.requests == []


@pytest.mark.parametrize(
    "request_",
    [
        HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        HEAD + b"Host: b\r\nContent-Length: 0\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: +1\r\n\r\na",
        HEAD + b"Content-Length: 1e1\r\n\r\na",
        HEAD + b"Transfer-Encoding: gzip, chunkedx\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"X-A: b\r\n folded\r\n\r\n",
        HEAD + b"X-A: a\x00b\r\n\r\n",
        HEAD + b"X A: b\r\n\r\n",
        HEAD + b": b\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        HEAD + b"Expect: 200-maybe\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
async def test_ambiguous_or_broken_http_is_refused_in_our_own_words(
    node: Node, request_: bytes
) -> None:
    answer = await node.raw(request_)
    status, headers, body = parts(answer)
    assert 400 <= status < 500
    assert headers["content-type"] == "application/json"
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert node.dispatcher.requests == []


async def test_a_smuggled_second_request_is_not_seen(node: Node) -> None:
    inner = b"POST /smuggled HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
    size = b"%d" % len(inner)
    await node.raw(HEAD + b"Content-Length: " + size + b"\r\nConnection: close\r\n\r\n" + inner)
    both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert parts(await node.raw(HEAD + both + inner))[0] == 400
    assert [request.path for request in node.dispatcher.requests] == ["/v1/x"]
    assert node.dispatcher.requests[0].body == inner


async def test_several_requests_over_one_connection(node: Node) -> None:
    one = b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na"
    two = b"POST /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab"
    answer = await node.raw(one + two)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert [request.path for request in node.dispatcher.requests] == ["/1", "/2"]


async def test_expect_is_answered_before_the_body(node: Node) -> None:
    reader, writer = await node.connect()
    head = HEAD + b"Connection: close\r\nExpect: 100-continue\r\n"
    writer.write(head + b"Content-Length: 3\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"abc")
    assert parts(await reader.read())[2] == b'{"got":3}'
    writer.close()
    reader, writer = await node.connect()
    writer.write(head + b"Content-Length: 99999999\r\n\r\n")
    assert_error(await reader.readuntil(b'"}'), 413, "request_too_large")
    writer.close()


# --- health, start and stop


async def test_health(node: Node, client: aiohttp.ClientSession) -> None:
    async with client.get(node.url + "/health/live") as response:
        assert response.status == 200
    async with client.get(node.url + "/health/ready") as response:
        assert (response.status, (await response.json())["checks"]) == (200, {"database": "ok"})
    node.health.wrong = {"upstream": "no answer"}
    async with client.get(node.url + "/health/ready") as response:
        assert response.status == 503
        assert (await response.json())["checks"]["upstream"] == "no answer"
    async with client.post(node.url + "/health/live") as response:
        assert response.status == 405
    async with client.get(node.url + "/health/other") as response:
        assert response.status == 404
    assert node.dispatcher.requests == []


async def test_stopping_lets_running_requests_finish(client: aiohttp.ClientSession) -> None:
    go_on = asyncio.Event()

    async def slow(_: Request) -> AsyncGenerator[ReplyEvent, None]:
        await go_on.wait()
        yield Started(200, {})
        yield Receipt()

    async with running(server={"drain_timeout_s": 20.0}) as node:
        node.dispatcher.script = slow
        running_request = asyncio.create_task(client.post(node.url))
        await wait(node.dispatcher.began)
        stopping = asyncio.create_task(node.server.stop())
        await asyncio.sleep(0.05)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", int(node.url.rpartition(":")[2]))
        assert not stopping.done()
        go_on.set()
        assert (await running_request).status == 200
        await stopping


async def test_stopping_ends_what_does_not_finish(client: aiohttp.ClientSession) -> None:
    async def endless(_: Request) -> AsyncGenerator[ReplyEvent, None]:
        await asyncio.Event().wait()
        yield Receipt()

    async with running(server={"drain_timeout_s": 0.1}) as node:
        node.dispatcher.script = endless
        request = asyncio.create_task(client.post(node.url))
        await wait(node.dispatcher.began)
        await node.server.stop()
        await wait(node.dispatcher.ended)
        with pytest.raises(aiohttp.ClientError):
            await request


# --- silence


async def test_a_silent_stream_is_kept_alive_and_a_silent_answer_is_not() -> None:
    quiet = asyncio.Event()

    async def stream(request: Request) -> AsyncGenerator[ReplyEvent, None]:
        yield Started(200, {"content-type": "text/event-stream"}, live=True)
        yield Chunk(b"data: 1\n\n")
        await quiet.wait()
        yield Chunk(b"data: 2\n\n")
        yield Receipt()

    async with running(keepalive_s=0.02) as node, aiohttp.ClientSession() as client:
        node.dispatcher.script = stream
        async with client.post(node.url + "/v1/x") as response:
            said = b""
            async with asyncio.timeout(10):
                while said.count(b": keep-alive\n\n") < 3:
                    said += await response.content.readany()
                quiet.set()
                said += await response.read()
        assert said.replace(b": keep-alive\n\n", b"") == b"data: 1\n\ndata: 2\n\n"

        async def slow_json(request: Request) -> AsyncGenerator[ReplyEvent, None]:
            yield Started(200, {"content-type": "application/json"}, live=True)
            await asyncio.sleep(0.1)
            yield Chunk(b"{}")
            yield Receipt()

        node.dispatcher.script = slow_json
        async with client.post(node.url + "/v1/x") as response:
            assert await response.read() == b"{}"


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a\nb", "a\rb", "a\0b"])
@pytest.mark.parametrize("live", [False, True])
async def test_no_header_breaks_out_of_its_line(node: Node, value: str, live: bool) -> None:
    async def script(request: Request) -> AsyncGenerator[ReplyEvent, None]:
        yield Started(200, {"content-type": value}, live)
        yield Chunk(b"x")
        yield Receipt()

    node.dispatcher.script = script
    answer = await node.raw(HEAD + b"Connection: close\r\nContent-Length: 0\r\n\r\n")
    assert b"x-evil" not in answer
    assert not answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("version", "asked", "told", "stays"),
    [
        (b"1.1", b"", None, True),
        (b"1.1", b"Connection: close\r\n", "close", False),
        (b"1.0", b"", None, False),
        (b"1.0", b"Connection: keep-alive\r\n", "keep-alive", True),
    ],
)
async def test_a_connection_stays_as_its_client_wants(
    node: Node, version: bytes, asked: bytes, told: str | None, stays: bool
) -> None:
    one = b"POST /v1/x HTTP/%b\r\nHost: a\r\n%bContent-Length: 1\r\n\r\na" % (version, asked)
    last = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    answer = await node.raw(one + last if stays else one)  # to the end of the connection
    assert parts(answer)[1].get("connection") == told
    assert answer.count(b"HTTP/1.") == len(node.dispatcher.requests) == 1 + stays


async def test_a_stream_to_an_old_client_ends_with_its_connection(node: Node) -> None:
    async def script(request: Request) -> AsyncGenerator[ReplyEvent, None]:
        yield Started(200, {"content-type": "text/event-stream"}, live=True)
        yield Chunk(b"data: 1\n\n")
        yield Chunk(b"data: 2\n\n")
        yield Receipt()

    node.dispatcher.script = script
    head = b"POST /v1/x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n"
    _, headers, body = parts(await node.raw(head))
    assert "transfer-encoding" not in headers
    assert body == b"data: 1\n\ndata: 2\n\n"
