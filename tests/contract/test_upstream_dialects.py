"""Each dialect is addressed as its servers want it, and a client decides nothing about it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from node.core.catalog import ENDPOINTS, Backend, Catalog, Model
from node.core.exchange import Request
from node.core.money import Msat
from node.core.pricing import Price
from node.errors import UpstreamFailed
from node.ports import UpstreamCall, UpstreamReply
from node.service.inference.call import JsonPayload
from node.service.inference.chat import prepare_chat
from node.upstream.dialects import DIALECTS, NATIVE, DialectName, base_of
from node.upstream.server import UpstreamServer

KEY = "sk-of-the-operator"
BACKEND = Backend("u", Price(Msat(1), Msat(1)), "their/model name")
MODEL = Model("ours", (BACKEND,), 1000, 100)


@dataclass
class Recorder:
    """A server that answers anything with an empty object."""

    root: str = ""
    requests: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((request.raw_path, headers, await request.json()))
        return web.json_response({})


@asynccontextmanager
async def recorder() -> AsyncIterator[Recorder]:
    it = Recorder()
    app = web.Application()
    app.router.add_route("*", "/{any:.*}", it.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        it.root = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield it
    finally:
        await runner.cleanup()


def call(endpoint: str, path: str, **headers: str) -> UpstreamCall:
    return UpstreamCall(
        MODEL, endpoint, path, JsonPayload({"x": 1}, MODEL), "req-1", headers=headers
    )


async def send(
    dialect: DialectName,
    base: str,
    asked: UpstreamCall,
    api_version: str = "",
    api_key: str | None = KEY,
) -> tuple[str, dict[str, str], dict[str, Any]]:
    async with recorder() as server, aiohttp.ClientSession() as session:
        upstream = UpstreamServer(
            "u",
            session,
            server.root + base,
            api_key=api_key,
            dialect=dialect,
            api_version=api_version,
        )
        reply = await upstream.open(asked, BACKEND)
        await reply.close()
        (request,) = server.requests
        return request


CHAT = call("chat", "/chat/completions")


@pytest.mark.parametrize(
    ("dialect", "base", "path"),
    [
        ("openai", "/v1", "/v1/chat/completions"),
        ("openai", "/api/openai", "/api/openai/chat/completions"),
        ("vllm", "/v1/", "/v1/chat/completions"),
        ("ollama", "", "/v1/chat/completions"),
        ("ollama", "/v1", "/v1/chat/completions"),
        ("openrouter", "", "/api/v1/chat/completions"),
        ("openrouter", "/api", "/api/v1/chat/completions"),
        ("openrouter", "/api/v1", "/api/v1/chat/completions"),
        ("routstr", "", "/v1/chat/completions"),
        ("routstr", "/v1/", "/v1/chat/completions"),
        ("anthropic", "", "/v1/chat/completions"),
    ],
)
async def test_where_a_chat_goes(dialect: DialectName, base: str, path: str) -> None:
    asked, headers, body = await send(dialect, base, CHAT)
    assert asked == path
    assert headers["authorization"] == f"Bearer {KEY}"
    assert body == {"x": 1, "model": "their/model name"}


@pytest.mark.parametrize("base", ["", "/openai", "/openai/v1", "/openai/v1/"])
async def test_azure(base: str) -> None:
    asked, headers, _ = await send("azure", base, CHAT)
    assert asked == "/openai/v1/chat/completions"
    assert headers["api-key"] == KEY
    assert "authorization" not in headers
    asked, headers, _ = await send("azure", base, CHAT, "2024-10-21")
    assert asked == (
        "/openai/deployments/their%2Fmodel%20name/chat/completions?api-version=2024-10-21"
    )
    assert headers["api-key"] == KEY
    asked, _, body = await send("azure", base, call("responses", "/responses"), "preview")
    assert asked == "/openai/responses?api-version=preview"
    assert body["model"] == "their/model name"


async def test_anthropic() -> None:
    asked, headers, _ = await send("anthropic", "/v1", call("messages", "/messages"))
    assert asked == "/v1/messages"
    assert headers["x-api-key"] == KEY
    assert headers["anthropic-version"] == "2023-06-01"
    assert "authorization" not in headers


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_clients_headers_stay_here(dialect: DialectName) -> None:
    ours = {
        "authorization": "Bearer mine", "x-api-key": "mine", "api-key": "mine", "cookie": "a=b",
        "x-cashu": "cashuB", "host": "example.com", "openai-organization": "mine",
        "anthropic-beta": "context-1m", "x-forwarded-for": "1.2.3.4", "idempotency-key": "k",
        "anthropic-version": "2024-01-01",
    }  # fmt: skip
    endpoint = "messages" if "messages" in NATIVE[dialect] else "chat"
    _, headers, _ = await send(dialect, "/v1", call(endpoint, "/x", **ours))
    passed = {name for name, value in ours.items() if headers.get(name) == value}
    assert passed == ({"anthropic-version", "anthropic-beta"} if dialect == "anthropic" else set())
    _, headers, _ = await send(
        dialect,
        "/v1",
        call(
            endpoint,
            "/x",
            **{"anthropic-version": "x\r\nx-api-key: mine", "anthropic-beta": "a\r\nx: y"},
        ),
    )
    assert "anthropic-beta" not in headers
    assert headers.get("anthropic-version") in (None, "2023-06-01")


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_without_a_key_none_is_sent(dialect: DialectName) -> None:
    _, headers, _ = await send(dialect, "/v1", CHAT, api_key=None)
    assert not {"authorization", "x-api-key", "api-key"} & headers.keys()


def test_every_dialect_says_what_it_has() -> None:
    assert set(NATIVE) == set(DIALECTS)
    for native in NATIVE.values():
        assert "chat" in native
        assert native <= set(ENDPOINTS)
    assert base_of("openai", "https://x.example.com/v1/") == "https://x.example.com/v1"


class Shouting:
    """Serves messages through chat, for the test of the hook."""

    def call(self, call: UpstreamCall) -> UpstreamCall:
        return replace(call, endpoint="chat", path="/chat/completions")

    def reply(self, call: UpstreamCall, reply: UpstreamReply) -> UpstreamReply:
        reply.content_type = f"text/{call.endpoint}"
        return reply


async def test_an_endpoint_may_be_translated() -> None:
    asked = call("messages", "/messages")
    async with recorder() as server, aiohttp.ClientSession() as session:
        plain = UpstreamServer("u", session, server.root)
        assert not plain.serves("messages")
        with pytest.raises(UpstreamFailed):
            await plain.open(asked, BACKEND)
        able = UpstreamServer("u", session, server.root, translators={"messages": Shouting()})
        assert able.serves("messages")
        reply = await able.open(asked, BACKEND)
        await reply.close()
        assert reply.content_type == "text/messages"
        assert [path for path, *_ in server.requests] == ["/chat/completions"]


@pytest.mark.parametrize("sent", [{}, {"max_tokens": 7}, {"max_completion_tokens": 7}])
async def test_an_upstream_that_refuses_max_tokens(sent: dict[str, int]) -> None:
    model = replace(MODEL, max_completion_tokens_only=True)
    body = {"model": "ours", "messages": [{"role": "user", "content": "x"}], **sent}
    request = Request("r", "POST", "/v1/chat/completions", {}, json.dumps(body).encode())
    asked = prepare_chat(request, Catalog([model]))
    assert asked.most.completion_tokens == (7 if sent else 100)
    document = json.loads(asked.payload.encode("theirs"))
    assert document["max_completion_tokens"] == asked.most.completion_tokens
    assert "max_tokens" not in document


async def test_compressed_answers_are_decoded_and_streams_are_not_compressed() -> None:
    _, headers, _ = await send("openai", "/v1", CHAT)
    assert "gzip" in headers["accept-encoding"]
    stream = replace(CHAT, accept=("text/event-stream", "application/json"))
    _, headers, _ = await send("openai", "/v1", stream)
    assert headers["accept-encoding"] == "identity"

    async def zipped(request: web.Request) -> web.Response:
        response = web.json_response({"text": "x" * 1000})
        coding = request.headers["Accept-Encoding"].partition(",")[0]
        response.enable_compression(web.ContentCoding(coding))
        return response

    app = web.Application()
    app.router.add_post("/{any:.*}", zipped)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            reply = await UpstreamServer("u", session, url).open(CHAT, BACKEND)
            body = b"".join([data async for data in reply.chunks()])
            await reply.close()
            assert body == b'{"text": "' + b"x" * 1000 + b'"}'
    finally:
        await runner.cleanup()
