"""The load generator: HTTP/1.1 by hand over kept-alive connections. ``python -m bench.load``.

See ``wire`` for its manners. Every answer is checked; the first that is wrong ends the round.
"""

from __future__ import annotations

import asyncio
import re
import resource
import time
from collections.abc import Coroutine, Mapping
from typing import Any, cast
from urllib.parse import urlsplit

import uvloop

from bench.wire import Expectation, Job, Outcome, answer, read_job, say

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 120.0
"""For everything that is under way when the window ends."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_STAMP = re.compile(rb'"content":"(\d{6,})"')
_SHOWN_BYTES = 300


class WrongAnswerError(Exception):
    """A server did not answer as it must."""


class Load:
    """One round: its connections, its clock and what was seen."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.expect: Expectation = job.expect
        self.contains = tuple(text.encode() for text in job.expect.contains)
        self.measuring = False
        self.requests = 0
        self._newlines = 0
        self.latency_us: list[int] = []
        self.first_us: list[int] = []
        self.transit_us: list[int] = []
        self._payloads = [_payload(job, headers) for headers in job.headers]
        self._fresh = iter(self._payloads)
        self._answered = asyncio.Event()
        self._failed: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def run(self) -> Outcome:
        """Warm up, measure, let what is under way end. Raises WrongAnswerError."""
        clients = [Client(self, number) for number in range(self.job.clients)]
        host, port = _address(self.job.url)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            for client in clients:
                await loop.create_connection(client.itself, host, port)
        if not self.job.once:
            for client in clients:
                client.send()
            await self._idle(clients)
        self.measuring = True
        usage = resource.getrusage(resource.RUSAGE_SELF)
        say("begin")
        began = time.monotonic()
        for number, client in enumerate(clients):
            client.idle.clear()
            loop.call_later(self.job.spread_s * number / len(clients), client.go)
        if self.job.once:
            await self._idle(clients)
        else:
            await asyncio.wait({self._failed}, timeout=self.job.seconds)
            if not self.requests:
                await self._or_failed(self._answered.wait())
        seconds = time.monotonic() - began
        self.measuring = False
        say("end")
        now = resource.getrusage(resource.RUSAGE_SELF)
        await self._idle(clients)
        for client in clients:
            client.close()
        return Outcome(
            seconds=seconds,
            requests=self.requests,
            events=self._newlines // 2,
            cpu_s=now.ru_utime + now.ru_stime - usage.ru_utime - usage.ru_stime,
            latency_us=tuple(self.latency_us),
            first_us=tuple(self.first_us),
            transit_us=tuple(self.transit_us),
        )

    def payload(self, number: int) -> bytes | None:
        """The next request of client ``number``; None when there is none left."""
        if self.job.once:
            return next(self._fresh, None)
        return self._payloads[number % len(self._payloads)]

    def note_answer(self, began_ns: int, first_ns: int) -> None:
        """A right answer is complete."""
        if self.measuring:
            self.requests += 1
            self.latency_us.append((time.monotonic_ns() - began_ns) // 1000)
            self.first_us.append((first_ns - began_ns) // 1000)
            self._answered.set()

    def note_body(self, data: bytes) -> None:
        """Bytes of a stream's body."""
        if not self.measuring:
            return
        self._newlines += data.count(b"\n")
        if self.expect.stamped:
            now = time.monotonic_ns()
            self.transit_us += [(now - int(stamp)) // 1000 for stamp in _STAMP.findall(data)]

    def fail(self, what: str) -> None:
        if not self._failed.done():
            self._failed.set_exception(WrongAnswerError(what))

    async def _idle(self, clients: list[Client]) -> None:
        async def all_idle() -> None:
            for client in clients:
                await client.idle.wait()

        await self._or_failed(all_idle())

    async def _or_failed(self, waiting: Coroutine[Any, Any, object]) -> None:
        task: asyncio.Future[object] = asyncio.create_task(waiting)
        done, _ = await asyncio.wait(
            {task, self._failed}, timeout=ANSWER_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        task.cancel()
        if not done:
            raise WrongAnswerError("no answer in time")
        if self._failed.done():
            self._failed.result()


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, load: Load, number: int) -> None:
        self.idle = asyncio.Event()
        self._load = load
        self._number = number
        self._transport: asyncio.Transport | None = None
        self._closing = False
        self._reset()

    def _reset(self) -> None:
        self._raw = bytearray()
        """What arrived and is not understood yet."""
        self._body = bytearray()
        self._in_body = self._chunked = False
        self._size = 0
        self._began_ns = self._first_ns = 0

    def itself(self) -> Client:
        """For ``create_connection``."""
        return self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.idle.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closing:
            self._load.fail(f"the connection was lost: {exc}")

    def close(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.close()

    def go(self) -> None:
        """Send the next request, unless the window is over or none is left."""
        if self._load.measuring:
            self.send()
        else:
            self.idle.set()

    def send(self) -> None:
        payload = self._load.payload(self._number)
        if payload is None or self._transport is None:
            self.idle.set()
            return
        self.idle.clear()
        self._began_ns = time.monotonic_ns()
        self._transport.write(payload)

    def data_received(self, data: bytes) -> None:
        self._raw += data
        if not self._in_body and not self._read_head():
            return
        if self._chunked:
            whole = self._read_chunks()
        else:
            whole = len(self._raw) >= self._size
            if whole:
                self._take(bytes(self._raw[: self._size]))
        if whole:
            self._finish()

    def _read_head(self) -> bool:
        end = self._raw.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._raw[:end])
        del self._raw[: end + 4]
        if head[9:12] != b"200":
            self._load.fail(f"status {head[9:12]!r}: {bytes(self._raw[:_SHOWN_BYTES])!r}")
            return False
        length = _LENGTH.search(head)
        self._chunked = _CHUNKED.search(head) is not None
        if length is None and not self._chunked:
            self._load.fail("an answer without a length")
            return False
        self._size = int(length[1]) if length else 0
        self._in_body = True
        return True

    def _read_chunks(self) -> bool:
        """Take the whole chunks that are here; says whether the last one was."""
        raw, start = self._raw, 0
        pieces = []
        last = False
        while (line_end := raw.find(b"\r\n", start)) >= 0:
            size = int(raw[start:line_end], 16)
            end = line_end + 2 + size + 2
            if len(raw) < end:
                break
            pieces.append(bytes(raw[line_end + 2 : end - 2]))
            start = end
            if size == 0:
                last = True
                break
        del raw[:start]
        if data := b"".join(pieces):
            self._take(data)
        return last

    def _take(self, data: bytes) -> None:
        if not self._first_ns:
            self._first_ns = time.monotonic_ns()
        self._body += data
        if self._load.expect.events:
            self._load.note_body(data)

    def _finish(self) -> None:
        if problem := self._problem():
            self._load.fail(f"{problem}: {bytes(self._body[-_SHOWN_BYTES:])!r}")
            return
        self._load.note_answer(self._began_ns, self._first_ns)
        self._reset()
        if self._load.measuring:
            self.send()
        else:
            self.idle.set()

    def _problem(self) -> str:
        expect, body = self._load.expect, self._body
        if expect.events:
            if not body.endswith(b"data: [DONE]\n\n"):
                return "a stream without an end"
            if body.count(b"data: ") != expect.events:
                return f"a stream of {body.count(b'data: ')} events instead of {expect.events}"
        return "" if all(text in body for text in self._load.contains) else "a wrong body"


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def _payload(job: Job, headers: Mapping[str, str]) -> bytes:
    parts = urlsplit(job.url)
    body = job.body.encode()
    lines = [
        f"POST {parts.path} HTTP/1.1",
        f"host: {parts.netloc}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def main() -> None:
    """Do the one job that standard input holds."""
    load = Load(read_job())
    answer(await load.run())


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
