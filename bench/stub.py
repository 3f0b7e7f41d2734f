"""An OpenAI-compatible model server that costs next to nothing: ``python -m bench.stub PORT``.

Every chat gets the same answer, with usage. A stream has ``max_tokens`` events of text, written one
by one; ``interval_ms=N`` anywhere in the prompt puts that pause before each and makes its text the
time it was written (monotonic, nanoseconds).
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from typing import cast

import uvloop

TEXT = "a node sells answers for ecash and nobody asks who pays while relays carry letters"
TOKENS = len(TEXT.split())
PROMPT_TOKENS = 24

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_STREAM = re.compile(rb'"stream": ?true')
_USAGE = re.compile(rb'"include_usage": ?true')
_MAX_TOKENS = re.compile(rb'"max_tokens": ?(\d+)')
_INTERVAL = re.compile(rb"interval_ms=(\d+)")


def _usage(completion_tokens: int) -> bytes:
    return (
        b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
        b'"prompt_tokens_details":{"cached_tokens":0}}'
    ) % (PROMPT_TOKENS, completion_tokens, PROMPT_TOKENS + completion_tokens)


BODY = (
    b'{"id":"chatcmpl-bench0000000000000000000001","object":"chat.completion",'
    b'"created":1790000000,"model":"bench","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"%s","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":%s,'
    b'"system_fingerprint":"fp_bench"}'
) % (TEXT.encode(), _usage(TOKENS))
_ANSWER = (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s") % (
    len(BODY),
    BODY,
)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_STREAM_END = b"0\r\n\r\n"
_HEALTHY = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok"


def _event(choices: bytes, rest: bytes = b"") -> bytes:
    return (
        b'data: {"id":"chatcmpl-bench0000000000000000000001","object":"chat.completion.chunk",'
        b'"created":1790000000,"model":"bench","system_fingerprint":"fp_bench","choices":[%s]%s}'
        b"\n\n"
    ) % (choices, rest)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _delta(text: bytes) -> bytes:
    return _event(b'{"index":0,"delta":{"content":"%s"},"finish_reason":null}' % text)


WORD = _delta(b"a word ")
_STOP = _chunk(_event(b'{"index":0,"delta":{},"finish_reason":"stop"}'))
_WORD_CHUNK = _chunk(WORD)
_DONE = _chunk(b"data: [DONE]\n\n")


class Connection(asyncio.Protocol):
    """One kept-alive connection; requests on it come one after another."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._paused = False
        self._left = 0
        """Events the running stream still has to send."""
        self._end = b""
        self._interval_s = 0.0
        self._next_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._left and not self._interval_s:
            self._go_on()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = _LENGTH.search(head)
        size = int(length[1]) if length else 0
        if len(rest) < size:
            return
        self._received = rest[size:]
        self._answer(head, rest[:size])

    def _answer(self, head: bytes, body: bytes) -> None:
        assert self._transport is not None
        if not head.startswith(b"POST"):
            self._transport.write(_HEALTHY)
        elif _STREAM.search(body):
            self._begin_stream(body)
        else:
            self._transport.write(_ANSWER)

    def _begin_stream(self, body: bytes) -> None:
        assert self._transport is not None
        wanted, interval = _MAX_TOKENS.search(body), _INTERVAL.search(body)
        tokens = int(wanted[1]) if wanted else TOKENS
        usage = _chunk(_event(b"", b',"usage":' + _usage(tokens))) if _USAGE.search(body) else b""
        self._end = _STOP + usage + _DONE + _STREAM_END
        self._left = tokens
        self._interval_s = int(interval[1]) / 1000 if interval else 0.0
        self._transport.write(_STREAM_HEAD)
        if self._interval_s:
            self._next_at = self._loop.time() + self._interval_s
            self._loop.call_at(self._next_at, self._tick)
        else:
            self._loop.call_soon(self._go_on)

    def _tick(self) -> None:
        """One event of a stream that takes its time."""
        if self._transport is None:
            return
        self._transport.write(_chunk(_delta(b"%d" % time.monotonic_ns())))
        self._left -= 1
        if self._left:
            self._next_at += self._interval_s
            self._loop.call_at(self._next_at, self._tick)
        else:
            self._transport.write(self._end)

    def _go_on(self) -> None:
        """One event of a stream that goes as fast as it can; other streams come in between."""
        if self._transport is None or self._paused:
            return
        self._left -= 1
        if self._left:
            self._transport.write(_WORD_CHUNK)
            self._loop.call_soon(self._go_on)
        else:
            self._transport.write(_WORD_CHUNK + self._end)


async def serve(port: int) -> None:
    """Serve on loopback until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))
