"""Promise: an endpoint for this machine answers nobody else: no foreign name, page or key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from aiohttp import web

from node.transport.http.local import local_only
from node.transport.http.runner import HttpServer

Open = Callable[..., Awaitable[httpx.AsyncClient]]


async def hello(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="hello")


@pytest.fixture
async def serve() -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def serve_it(**allowed: Any) -> httpx.AsyncClient:
            server = HttpServer(local_only(hello, **allowed), drain_timeout_s=1)
            await server.start()
            stack.push_async_callback(server.stop)
            url = f"http://127.0.0.1:{server.port}"
            return await stack.enter_async_context(httpx.AsyncClient(base_url=url))

        yield serve_it


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("localhost:8900", 200), ("[::1]:80", 200), ("LOCALHOST", 200),
        ("evil.example.com", 403), ("127.0.0.1.evil.example.com", 403), ("localhost@evil", 403),
        ("", 403), ("[::1", 403), ("my.box:1", 200),
    ],
)  # fmt: skip
async def test_names(serve: Open, host: str, status: int) -> None:
    http = await serve(hosts=("my.box",))
    assert (await http.get("/v1/models", headers={"Host": host})).status_code == status


@pytest.mark.parametrize(
    ("allowed", "origin", "status"),
    [
        ((), None, 200), ((), "null", 403), ((), "http://localhost:3000", 403),
        (("http://localhost:3000",), "http://localhost:3000", 200),
        (("http://localhost:3000",), "http://localhost:3001", 403), (("*",), "null", 200),
    ],
)  # fmt: skip
async def test_pages(
    serve: Open, allowed: tuple[str, ...], origin: str | None, status: int
) -> None:
    http = await serve(origins=allowed)
    headers = {} if origin is None else {"Origin": origin}
    for method in ("GET", "OPTIONS", "POST"):
        answer = await http.request(method, "/v1/models", headers=headers)
        assert answer.status_code == status, method


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401), ({"Authorization": "Bearer secret"}, 200), ({"X-API-Key": "secret"}, 200),
        ({"Authorization": "Bearer secre"}, 401), ({"Authorization": "Basic secret"}, 401),
        ({"X-API-Key": "ä"}, 401), ({"Authorization": "Bearer \udcff"}, 401),
    ],
)  # fmt: skip
async def test_keys(serve: Open, headers: dict[str, str], status: int) -> None:
    http = await serve(key="secret")
    raw = {name: value.encode("utf-8", "surrogateescape") for name, value in headers.items()}
    assert (await http.get("/v1/models", headers=raw)).status_code == status
    assert (await http.get("/health/live")).status_code == 200
