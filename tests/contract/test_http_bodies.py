"""No client fills the node's memory with bodies, and no body is taken that did not come whole."""

from __future__ import annotations

import asyncio
import gzip
import logging
import random
import tracemalloc
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial
from typing import Any

import aiohttp
import brotli
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from node.core.exchange import Receipt, ReplyEvent, Request, Started
from node.errors import InvalidValue
from node.transport.http.body import MAX_ANONYMOUS_BODY_BYTES
from node.transport.http.inflate import ENCODINGS, inflater
from tests.fakes.http_node import AUTH, HEAD, MIB, Node, assert_error, parts, running, wait

CLOSE = b"Connection: close\r\n"


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with running() as node:
        yield node


def sized(body: bytes, *headers: bytes) -> bytes:
    return HEAD + CLOSE + b"".join(headers) + b"Content-Length: %d\r\n\r\n" % len(body) + body


def encoded(encoding: bytes) -> bytes:
    return b"Content-Encoding: " + encoding + b"\r\n"


# --- without credentials


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"x" * (MAX_ANONYMOUS_BODY_BYTES + 1), b"identity"),
        (gzip.compress(b"x" * (MAX_ANONYMOUS_BODY_BYTES + 1)), b"gzip"),
    ],
)
@pytest.mark.parametrize("credentials", [b"", b"Authorization:\r\n", b"X-Cashu: \r\n"])
async def test_a_stranger_may_send_little(
    node: Node, body: bytes, encoding: bytes, credentials: bytes
) -> None:
    answer = await node.raw(sized(body, encoded(encoding), credentials))
    assert_error(answer, 413, "request_too_large")
    assert b"Authorization" in parts(answer)[2]
    assert node.dispatcher.requests == []


@pytest.mark.parametrize("header", [AUTH, b"X-Cashu: cashuBx\r\n"])
async def test_who_has_credentials_may_send_more(node: Node, header: bytes) -> None:
    body = b"x" * (MAX_ANONYMOUS_BODY_BYTES + 1)
    assert parts(await node.raw(sized(body, header)))[0] == 200


async def test_a_token_fits_into_an_anonymous_body(node: Node) -> None:
    assert parts(await node.raw(sized(b"x" * MAX_ANONYMOUS_BODY_BYTES)))[0] == 200


async def test_the_bound_of_a_stranger_is_told_before_the_body(node: Node) -> None:
    reader, writer = await node.connect()
    writer.write(HEAD + b"Expect: 100-continue\r\nContent-Length: 300000\r\n\r\n")
    assert_error(await reader.readuntil(b'"}'), 413, "request_too_large")
    writer.close()


# --- all together


def endless(began: asyncio.Event, go_on: asyncio.Event) -> object:
    async def script(_: Request) -> AsyncGenerator[ReplyEvent, None]:
        began.set()
        await go_on.wait()
        yield Started(200, {})
        yield Receipt()

    return script


async def test_bodies_of_running_requests_share_one_budget() -> None:
    """The second does not fit beside the first; it does once the first is done."""
    began, go_on = asyncio.Event(), asyncio.Event()
    async with running(max_buffered_bytes=MIB) as node, aiohttp.ClientSession() as client:
        node.dispatcher.script = endless(began, go_on)  # type: ignore[assignment]
        headers = {"Authorization": "Bearer sk-x"}
        body = b"x" * (600 << 10)
        first = asyncio.create_task(client.post(node.url, data=body, headers=headers))
        await wait(began)
        for encoding, data in {"identity": body, "gzip": gzip.compress(body)}.items():
            packed = {**headers, "Content-Encoding": encoding}
            async with client.post(node.url, data=data, headers=packed) as second:
                assert second.status == 429
                assert (await second.json())["error"]["code"] == "rate_limit_exceeded"
                assert int(second.headers["Retry-After"]) > 0
        assert len(node.dispatcher.requests) == 1
        go_on.set()
        assert (await first).status == 200
        for _ in range(3):  # nothing that was refused or answered is still counted
            async with client.post(node.url, data=body, headers=headers) as third:
                assert third.status == 200


@pytest.mark.parametrize("end", ["hang up", "time out"])
async def test_a_body_that_never_ends_gives_its_bytes_back(end: str) -> None:
    timeout_s = 0.2 if end == "time out" else 60.0
    async with running(max_buffered_bytes=MIB, body_timeout_s=timeout_s) as node:
        reader, writer = await node.connect()
        head = HEAD + AUTH + b"Content-Length: %d\r\n\r\n" % MIB
        writer.write(head + b"x" * (MIB - 1))
        await writer.drain()
        if end == "time out":
            assert_error(await reader.readuntil(b'"}'), 408, "request_incomplete")
            writer.close()
        else:
            await no_room(node)
            writer.transport.abort()
        async with asyncio.timeout(10):
            while parts(await node.raw(sized(b"x" * MIB, AUTH)))[0] != 200:
                await asyncio.sleep(0.02)


async def no_room(node: Node) -> None:
    """Returns when the budget is used up."""
    async with asyncio.timeout(10):
        while parts(await node.raw(sized(b"xy", AUTH)))[0] != 429:
            await asyncio.sleep(0.02)


async def test_a_withheld_last_byte_holds_no_more_than_was_sent() -> None:
    """A megabyte in a kilobyte of gzip counts as a kilobyte until it has come whole."""
    async with running(max_buffered_bytes=2 * MIB) as node:
        packed = gzip.compress(b"x" * MIB)
        head = HEAD + AUTH + encoded(b"gzip") + b"Content-Length: %d\r\n\r\n" % len(packed)
        withheld = [await node.connect() for _ in range(20)]
        for _, writer in withheld:
            writer.write(head + packed[:-1])
            await writer.drain()
        assert parts(await node.raw(sized(packed, AUTH, encoded(b"gzip"))))[0] == 200
        for reader, writer in withheld:
            writer.write(packed[-1:])
            assert (await reader.readline()).split()[1] == b"200"
            writer.close()
        assert {len(request.body) for request in node.dispatcher.requests} == {MIB}


# --- compression


ONE = b"hello " * 1000


def raw_deflate(body: bytes) -> bytes:
    return zlib.compress(body, wbits=-15)


PACKERS: dict[bytes, list[Callable[[bytes], bytes]]] = {
    b"gzip": [gzip.compress, partial(gzip.compress, compresslevel=0)],
    b"GZip": [gzip.compress],
    b"deflate": [zlib.compress, raw_deflate],
    b"br": [partial(brotli.compress, quality=1)],
    b"zstd": [zstd.compress, partial(zstd.compress, level=1)],
}


@pytest.mark.parametrize(("encoding", "pack"), [(e, p) for e, ps in PACKERS.items() for p in ps])
async def test_a_compressed_body_is_inflated(encoding: bytes, pack: Any) -> None:
    """Empty, short, of many pieces to feed, ending with a piece of output, random."""
    bodies = [
        b"",
        ONE,
        bytes(range(256)) * 3000,
        b"x" * MIB,
        random.Random(1).randbytes(300_000),
        b"y" * (MIB + 100),
    ]
    async with running(max_body_bytes=2 * MIB) as node:
        for body in bodies:
            answer = await node.raw(sized(pack(body), AUTH, encoded(encoding)))
            assert parts(answer)[0] == 200
        assert [request.body for request in node.dispatcher.requests] == bodies


@pytest.mark.parametrize("encoding", [b"br", b"zstd"])
async def test_a_bomb_is_refused_before_it_unfolds(node: Node, encoding: bytes) -> None:
    bomb = PACKERS[encoding][0](b"\0" * (64 * MIB))
    tracemalloc.start()
    answer = await node.raw(sized(bomb, AUTH, encoded(encoding)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert_error(answer, 413, "request_too_large")
    assert peak < 32 * MIB
    assert node.dispatcher.requests == []


@pytest.mark.parametrize("encoding", [b"br", b"zstd"])
async def test_a_modern_stream_must_be_whole_and_alone(node: Node, encoding: bytes) -> None:
    packed = PACKERS[encoding][0](ONE)
    bad = [packed[:-1], packed[:5], packed + b"x", packed + packed, packed + b"x" * 100_000]
    for body in (*bad, b"\xff" * 100):
        assert_error(await node.raw(sized(body, AUTH, encoded(encoding))), 400, "invalid_value")
    assert node.dispatcher.requests == []


@given(st.binary(max_size=2000), st.sampled_from(sorted(ENCODINGS)))
def test_garbage_is_our_own_error(data: bytes, encoding: str) -> None:
    stream = inflater(encoding, data[0] if data else 0)
    try:
        stream.feed(data)
        while not stream.hungry:
            stream.feed(b"")
    except InvalidValue:
        pass


async def test_output_that_waits_behind_the_last_input_is_fetched() -> None:
    """The last byte of this stream stands for more than one step of inflating gives."""
    body = b"x" * (MIB + 100)
    async with running(max_body_bytes=2 * MIB) as node:
        packed = zlib.compress(body, wbits=-15)
        assert parts(await node.raw(sized(packed, AUTH, encoded(b"deflate"))))[0] == 200
        assert node.dispatcher.requests[0].body == body


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 20])
@pytest.mark.parametrize("encoding", [b"gzip", b"deflate"])
async def test_a_truncated_compressed_body_is_refused(
    node: Node, encoding: bytes, cut: int
) -> None:
    """Also when only the trailer, which holds the checksum, is missing."""
    body = gzip.compress(ONE) if encoding == b"gzip" else zlib.compress(ONE)
    answer = await node.raw(sized(body[:-cut], encoded(encoding)))
    assert_error(answer, 400, "invalid_value")
    assert node.dispatcher.requests == []


async def test_what_is_not_as_it_was_compressed_is_refused(node: Node) -> None:
    body = gzip.compress(ONE)
    wrong_checksum = body[:-8] + bytes([body[-8] ^ 1]) + body[-7:]
    for bad in (wrong_checksum, body + b"x", body + body, body + b"\0" * 100_000):
        assert_error(await node.raw(sized(bad, encoded(b"gzip"))), 400, "invalid_value")
    assert node.dispatcher.requests == []


# --- the log


@pytest.mark.parametrize(
    "request_",
    [
        sized(b"xy", encoded(b"zstd")),
        sized(b"xy", encoded(b"br")),
        sized(b"this is not gzip at all", encoded(b"gzip")),
        sized(b"this is not gzip at all", encoded(b"deflate")),
        HEAD + encoded(b"gzip") + encoded(b"gzip") + b"Content-Length: 2\r\n\r\nxy",
        HEAD + encoded(b"compress") + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcdeXX\r\n",
        HEAD + encoded(b"compress") + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        HEAD + encoded(b"compress") + b"Transfer-Encoding: chunked\r\n\r\nnot a size\r\n",
    ],
)
@pytest.mark.parametrize("later", [False, True])
async def test_a_body_that_is_refused_leaves_no_error_in_the_log(
    node: Node, request_: bytes, later: bool, caplog: pytest.LogCaptureFixture
) -> None:
    head, blank, body = request_.partition(b"\r\n\r\n")
    reader, writer = await node.connect()
    with caplog.at_level(logging.WARNING):
        writer.write(head + blank + (b"" if later else body))
        if later:  # the answer is given before the body is there
            await asyncio.sleep(0.05)
            writer.write(body)
        status = int((await reader.readline()).split()[1])
        writer.write_eof()
        async with asyncio.timeout(10):
            await reader.read()
        writer.close()
    assert status in (400, 415)
    assert caplog.records == []
    assert node.dispatcher.requests == []
