"""Promise: many clients that read slowly cost bounded memory, harm nobody, and all pay."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Self

import httpx
import pytest
from aiohttp import web

from node.core.money import Msat
from node.core.pricing import Price
from node.demo.nodes import Offer
from tests.e2e.conftest import BODY, OpenWorld, World

CLIENTS = 1000 if os.environ.get("NODESTR_SOAK") else 60
CHUNKS, CHUNK_BYTES = 400, 5_000
"""2 MB for each answer, which the node must not hold in its memory."""
MAX_GROWTH_MB = 40 + CLIENTS * 0.7
RECEIVE_BUFFER_BYTES = 4096
OFFER = Offer("demo", Price(Msat(1_000_000), Msat(2_000_000)), 8192, CHUNKS)


def resident_mb(world: World) -> float:
    status = Path(f"/proc/{world.node.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


class Talker:
    """A model server of few, long words."""

    def __init__(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        usage = {"prompt_tokens": 5, "completion_tokens": body["max_tokens"]}
        choices = [{"index": 0, "delta": {"content": "x" * CHUNK_BYTES}}]
        if not body.get("stream"):
            return web.json_response({"choices": [], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(body["max_tokens"]):
            await response.write(b"data: %s\n\n" % json.dumps({"choices": choices}).encode())
        last = json.dumps({"choices": [], "usage": usage}).encode()
        await response.write(b"data: %s\n\ndata: [DONE]\n\n" % last)
        return response


class Slow:
    """A client that stops reading in the middle of a stream."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        body = json.dumps({**BODY, "stream": True, "max_tokens": CHUNKS}).encode()
        self._request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nAuthorization: Bearer %s\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (key.encode(), len(body), body)
        )
        self.said = b""
        self._socket = socket.socket()

    async def begin(self) -> None:
        loop = asyncio.get_running_loop()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._socket.setblocking(False)
        await loop.sock_connect(self._socket, ("127.0.0.1", self._port))
        await loop.sock_sendall(self._socket, self._request)
        while b"data: " not in self.said:
            piece = await loop.sock_recv(self._socket, 1024)
            assert piece, self.said
            self.said += piece

    async def finish(self) -> None:
        loop = asyncio.get_running_loop()
        while piece := await loop.sock_recv(self._socket, 1 << 16):
            self.said = (self.said + piece)[-1000:]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
async def talker() -> AsyncIterator[Talker]:
    async with Talker() as talker:
        yield talker


@pytest.fixture
def crowd() -> Iterator[list[Slow]]:
    clients: list[Slow] = []
    yield clients
    for client in clients:
        client.close()


async def test_slow_readers(open_world: OpenWorld, talker: Talker, crowd: list[Slow]) -> None:
    world = await open_world(
        offer=OFFER,
        environment={
            "NODESTR_LIMITS__MAX_CONCURRENT_PER_ACCOUNT": "0",
            "NODESTR_UPSTREAMS": json.dumps([{"name": "upstream", "base_url": talker.url}]),
        },
    )
    async with httpx.AsyncClient(base_url=world.node.url, timeout=60) as http:
        created = await http.post(
            "/v1/wallet/create",
            json={"cashu_token": await world.purse.fund(CLIENTS * 20)},
        )
        short = BODY | {"max_tokens": 8}
        key = created.json()["api_key"]
        quick = {"Authorization": f"Bearer {key}"}
        answer = await http.post("/v1/chat/completions", json=short, headers=quick)
        assert answer.status_code == 200
        before_mb = resident_mb(world)

        crowd += [Slow(world.node.port, key) for _ in range(CLIENTS)]
        async with asyncio.timeout(240):
            for start in range(0, CLIENTS, 50):
                await asyncio.gather(*(client.begin() for client in crowd[start : start + 50]))
            held_mb = await _settled_memory(world)
            print(f"{CLIENTS} slow readers: {before_mb:.0f} -> {held_mb:.0f} MB")
            assert held_mb - before_mb < MAX_GROWTH_MB

            for _ in range(5):
                answer = await http.post("/v1/chat/completions", json=short, headers=quick)
                assert answer.status_code == 200
            await asyncio.gather(*(client.finish() for client in crowd))
    assert all(b"data: [DONE]" in client.said for client in crowd)
    books = await world.quiet_books(60)
    assert books.held_msat == 0
    assert books.revenue_msat >= CLIENTS * CHUNKS * 2


async def _settled_memory(world: World) -> float:
    """Once it has stopped growing, in MB."""
    last = resident_mb(world)
    for _ in range(20):
        await asyncio.sleep(0.5)
        now = resident_mb(world)
        if now - last < 1:
            break
        last = now
    return resident_mb(world)
