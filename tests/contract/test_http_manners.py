"""HTTP keeps its manners: HEAD, Allow, ETag, no HTTP/0.9, costs told, open to web pages."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
import pytest

from discovery.snapshot import DirectorySnapshot
from node.core.catalog import Catalog
from node.core.exchange import Chunk, Failed, Receipt, ReplyEvent, Request, Started
from node.core.money import Msat
from node.errors import MissingKey
from node.service.dispatch import Dispatcher, Reply, Route
from node.service.routes import routes
from node.transport.http.runner import HttpServer
from node.transport.http.server import create_app
from tests.fakes.http_node import HEAD, Node, ScriptedHealth, parts, running


@asynccontextmanager
async def serving(table: list[Route]) -> AsyncIterator[str]:
    """The real dispatcher behind the carriage; gives the base URL."""
    http = HttpServer(create_app(Dispatcher(table), health=ScriptedHealth()), drain_timeout_s=1.0)
    await http.start()
    try:
        yield f"http://127.0.0.1:{http.port}"
    finally:
        await http.stop()


async def plain(_: Request, params: Mapping[str, str]) -> Reply:
    return Reply({"params": dict(params)}, headers={"x-own": "1"})


async def refused(_: Request) -> AsyncGenerator[ReplyEvent, None]:
    yield Failed(MissingKey())


async def paid(_: Request) -> AsyncGenerator[ReplyEvent, None]:
    yield Started(200, {"content-type": "application/json"})
    yield Chunk(b"{}")
    yield Receipt(cost=Msat(7))


TABLE = [
    Route("GET", "/v1/a", "", plain),
    Route("POST", "/v1/a", "", plain),
    Route("GET", "/v1/b/{id:path}", "", plain),
    Route("POST", "/v1/refused", "", streaming=refused),
    Route("POST", "/v1/paid", "", streaming=paid, bare=True),
]


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with serving(TABLE) as url:
        yield url


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with running() as node:
        yield node


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


# --- methods


@pytest.mark.parametrize("path", ["/v1/a", "/v1/b/x/y", "/health/live"])
async def test_head_is_get_without_the_body(
    url: str, client: aiohttp.ClientSession, path: str
) -> None:
    async with client.get(url + path) as got:
        body = await got.read()
    async with client.head(url + path) as response:
        assert response.status == 200
        assert response.headers["Content-Length"] == str(len(body))
        assert response.headers["Content-Type"] == got.headers["Content-Type"]
        assert response.headers.get("X-Own") == got.headers.get("X-Own")
        assert await response.read() == b""
    async with client.get(url + path) as again:  # the connection is still in step
        assert await again.read() == body


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/v1/a", "GET, HEAD, POST"),
        ("POST", "/v1/b/x", "GET, HEAD"),
        ("GET", "/v1/paid", "POST"),
        ("HEAD", "/v1/paid", "POST"),
        ("GET", "/paid", "POST"),
        ("POST", "/health/live", "GET, HEAD"),
    ],
)
async def test_405_says_what_is_allowed(
    url: str, client: aiohttp.ClientSession, method: str, path: str, allow: str
) -> None:
    async with client.request(method, url + path) as response:
        assert (response.status, response.headers["Allow"]) == (405, allow)


@pytest.mark.parametrize("target", [b"/v1/a", b"/health/live", b"/"])
async def test_http_0_9_is_refused(node: Node, target: bytes) -> None:
    answer = await node.raw(b"GET " + target + b"\r\n\r\n")
    assert parts(answer)[0] == 400
    assert b'"invalid_value"' in answer
    assert node.dispatcher.requests == []


# --- ETag


async def test_what_a_client_has_already_is_not_sent_again(client: aiohttp.ClientSession) -> None:
    unused, wallet = object(), _Anything()
    table = routes(unused, wallet, Catalog([]), unused, DirectorySnapshot, wallet)  # type: ignore[arg-type]
    async with serving(table) as url:
        async with client.get(url + "/v1/providers") as response:
            assert response.status == 200
            tag = response.headers["ETag"]
        async with client.get(url + "/v1/providers", headers={"If-None-Match": tag}) as response:
            assert (response.status, response.headers["ETag"]) == (304, tag)
            assert await response.read() == b""
        async with client.get(url + "/v1/providers", headers={"If-None-Match": '"x"'}) as response:
            assert response.status == 200


class _Anything:
    """Stands where only the names of methods matter."""

    def __getattr__(self, name: str) -> str:
        return name


# --- cost


async def test_every_answer_of_a_paid_endpoint_says_what_it_cost(
    url: str, client: aiohttp.ClientSession
) -> None:
    async def cost(path: str, **options: object) -> tuple[int, str | None]:
        async with client.post(url + path, **options) as response:  # type: ignore[arg-type]
            return response.status, response.headers.get("X-Routstr-Cost-Msats")

    assert await cost("/v1/paid") == (200, "7")
    assert await cost("/paid") == (200, "7")
    assert await cost("/v1/refused") == (401, "0")
    assert await cost("/v1/paid", data=b"x" * 300_000) == (413, "0")
    assert await cost("/v1/paid", headers={"Content-Encoding": "compress"}) == (415, "0")
    assert await cost("/v1/a") == (200, None)
    assert await cost("/v1/a", data=b"x" * 300_000) == (413, None)


# --- web pages


async def test_a_preflight_is_answered(node: Node, client: aiohttp.ClientSession) -> None:
    headers = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-cashu",
    }
    async with client.options(node.url + "/v1/chat/completions", headers=headers) as response:
        assert (response.status, await response.read()) == (204, b"")
        answer = response.headers
    assert answer["Access-Control-Allow-Origin"] == "*"
    assert {"GET", "POST", "HEAD"} <= set(answer["Access-Control-Allow-Methods"].split(", "))
    assert {
        "authorization", "content-type", "x-cashu", "x-cashu-change", "idempotency-key",
        "x-request-id",
    } <= set(answer["Access-Control-Allow-Headers"].split(", "))  # fmt: skip
    assert int(answer["Access-Control-Max-Age"]) > 0
    assert "Access-Control-Allow-Credentials" not in answer
    assert node.dispatcher.requests == []


async def live(_: Request) -> AsyncGenerator[ReplyEvent, None]:
    yield Started(200, {"content-type": "text/event-stream"}, live=True)
    yield Chunk(b"data: 1\n\n")
    yield Receipt()


async def test_web_pages_may_read_every_answer(node: Node, client: aiohttp.ClientSession) -> None:
    """Whole, live and refused ones."""
    seen = []
    for script, options in (
        (node.dispatcher.script, {}),
        (live, {}),
        (live, {"headers": {"Content-Encoding": "compress"}}),
        (refused, {}),
    ):
        node.dispatcher.script = script
        async with client.post(node.url + "/v1/x", **options) as response:  # type: ignore[arg-type]
            seen.append(response.status)
            assert response.headers["Access-Control-Allow-Origin"] == "*"
            exposed = set(response.headers["Access-Control-Expose-Headers"].split(", "))
        assert {
            "x-cashu", "x-routstr-cost-msats", "x-routstr-request-id", "x-request-id",
            "x-cashu-dust-msats", "retry-after",
        } <= exposed  # fmt: skip
    assert seen == [200, 200, 415, 401]


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/admin", "/admin/x", "/v10/x"])
@pytest.mark.parametrize("method", ["OPTIONS", "GET"])
async def test_other_paths_stay_closed_to_web_pages(
    node: Node, client: aiohttp.ClientSession, path: str, method: str
) -> None:
    headers = {"Origin": "https://app.example", "Access-Control-Request-Method": "GET"}
    async with client.request(method, node.url + path, headers=headers) as response:
        assert not [name for name in response.headers if name.lower().startswith("access-")]


async def test_a_request_that_cannot_be_read_is_not_opened(node: Node) -> None:
    answer = await node.raw(HEAD + b"Content-Length: -1\r\n\r\n")
    assert b"access-control" not in answer.lower()
