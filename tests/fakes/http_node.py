"""A served HTTP carriage with doubles behind it, and raw connections to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from node.core.exchange import Chunk, Receipt, ReplyEvent, Request, Started
from node.core.money import Msat
from node.transport.http.runner import HttpServer
from node.transport.http.server import create_app

MIB = 1 << 20
HEAD = b"POST /v1/x HTTP/1.1\r\nHost: a\r\n"
AUTH = b"Authorization: Bearer sk-x\r\n"
Script = Callable[[Request], AsyncGenerator[ReplyEvent, None]]


class ScriptedDispatcher:
    """Plays one script for every request and remembers what it saw."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.began = asyncio.Event()
        self.ended = asyncio.Event()
        self.script: Script = whole

    async def handle(self, request: Request) -> AsyncGenerator[ReplyEvent, None]:
        self.requests.append(request)
        self.began.set()
        events = self.script(request)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()
            self.ended.set()

    def is_paid(self, method: str, path: str) -> bool:
        return path == "/v1/paid"


async def whole(request: Request) -> AsyncGenerator[ReplyEvent, None]:
    yield Started(200, {"content-type": "application/json"})
    yield Chunk(b'{"got":')
    yield Chunk(str(len(request.body)).encode() + b"}")
    yield Receipt(cost=Msat(1234), change="cashuBchange", dust=Msat(5))


class ScriptedHealth:
    def __init__(self) -> None:
        self.wrong: dict[str, str] = {}

    def live(self) -> bool:
        return True

    async def ready(self) -> tuple[bool, dict[str, str]]:
        return not self.wrong, {"database": "ok", **self.wrong}


class Node:
    """A served application with its doubles."""

    def __init__(self, server: HttpServer, dispatcher: ScriptedDispatcher, health: Any) -> None:
        self.server, self.dispatcher, self.health = server, dispatcher, health
        self.url = f"http://127.0.0.1:{server.port}"

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.server.port)

    async def raw(self, data: bytes) -> bytes:
        """All that comes back on a fresh connection until the server closes it."""
        reader, writer = await self.connect()
        try:
            writer.write(data)
            async with asyncio.timeout(10):
                return await reader.read()
        finally:
            writer.close()


@asynccontextmanager
async def running(*, server: dict[str, Any] | None = None, **limits: Any) -> AsyncIterator[Node]:
    dispatcher, health = ScriptedDispatcher(), ScriptedHealth()
    app = create_app(dispatcher, health=health, **{"max_body_bytes": MIB, **limits})
    http = HttpServer(app, **{"drain_timeout_s": 1.0, **(server or {})})
    await http.start()
    try:
        yield Node(http, dispatcher, health)
    finally:
        await http.stop()


async def wait(event: asyncio.Event) -> None:
    async with asyncio.timeout(5):
        await event.wait()


def parts(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, body


def assert_error(answer: bytes, status: int, code: str) -> None:
    got, headers, body = parts(answer)
    document = json.loads(body)
    assert (got, document["error"]["code"]) == (status, code)
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"] == document["request_id"]
