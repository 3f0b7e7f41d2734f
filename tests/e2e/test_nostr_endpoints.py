"""Promise: every endpoint under ``/v1/`` answers over Nostr, whatever goes in or comes out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import pytest_asyncio

from node.client.nostr import ClientReply, NostrClient
from node.core.money import Msat
from node.core.pricing import Price
from node.demo.mint import EmbeddedMint
from node.demo.model_server import ModelServer
from node.demo.model_server.media import spoken
from node.demo.model_server.texts import vector
from node.demo.nodes import DemoNode, Offer, Surroundings
from node.demo.purse import Purse
from node.demo.relay import EmbeddedRelay
from tests.e2e.conftest import OFFER
from tests.e2e.shop import CALLS, MORE, Shop, wav
from tests.fakes.dialect_server import DialectServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

ECHO = Offer(
    "echo",
    Price(Msat(10_000_000), Msat(20_000_000), Msat(100)),
    max_output_tokens=64,
    endpoints=("responses",),
)
MEGABYTE = 1_000_000


class EverythingNode(DemoNode):
    """A node that sells a model for every endpoint, from two model servers."""

    def __init__(self, responses: str, *more: Any, **options: Any) -> None:
        self._responses = responses
        super().__init__(*more, **options)

    def _config(self, key_file: Any) -> str:
        server = f'[[upstreams]]\nname = "echo"\nbase_url = "{self._responses}"\n'
        table = ECHO.to_table() | {"upstream": "echo"}
        model = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        return "\n".join([super()._config(key_file), server, "[[models]]", *model, ""])


@dataclass
class Everything(Shop):
    """What a case may use."""

    client: NostrClient = field(kw_only=True)
    key: str = ""

    async def ask(
        self,
        method: str,
        url: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> ClientReply:
        """A request with the account's key, unless it pays otherwise."""
        given = {"authorization": f"Bearer {self.key}"} | dict(headers or {})
        if "x-cashu" in given:
            del given["authorization"]
        return await self.client.request(
            self.node.keys.npub, method, url, headers=given, body=body, **more
        )

    async def post(self, url: str, document: Mapping[str, Any], **more: Any) -> ClientReply:  # type: ignore[override]
        body = json.dumps(document).encode()
        return await self.ask("POST", url, body, {"content-type": "application/json"}, **more)

    async def upload(self, url: str, fields: Mapping[str, str], file: bytes) -> ClientReply:
        form = httpx.Request(
            "POST", "http://x", data=fields, files={"file": ("a.wav", file, "audio/wav")}
        )
        headers = {"content-type": form.headers["content-type"]}
        return await self.ask("POST", url, form.read(), headers)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def everything(
    mint: EmbeddedMint, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Everything]:
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(EmbeddedRelay())
        upstream = await stack.enter_async_context(ModelServer())
        dialects = await stack.enter_async_context(DialectServer(dialects=("responses",)))
        around = Surroundings(mint.url, relay.url, upstream.url)
        home = tmp_path_factory.mktemp("everything") / "node"
        node = EverythingNode(dialects.url, "node", OFFER, around, home, more=MORE)
        await stack.enter_async_context(node)
        purse = await stack.enter_async_context(Purse(mint.url))
        client = await stack.enter_async_context(NostrClient([relay.url]))
        shop = Everything(node, mint, relay, upstream, purse, client=client)
        shop.key = await shop.account(3000)
        yield shop
        assert (await shop.quiet_books()).problems() == []


Case = Callable[[Everything], Awaitable[None]]
CASES: dict[tuple[str, str], Case] = {}


def case(method: str, path: str) -> Callable[[Case], Case]:
    def keep(function: Case) -> Case:
        CASES[method, path] = function
        return function

    return keep


def good(reply: ClientReply) -> Any:
    """The document of a good answer."""
    assert reply.status == 200, reply.body[:300]
    assert reply.headers["content-type"].startswith("application/json")
    return reply.json()


@case("POST", "/v1/chat/completions")
async def _(shop: Everything) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "what do you sell"}]}
    whole = await shop.post("/v1/chat/completions", body)
    text = good(whole)["choices"][0]["message"]["content"]
    streamed = await shop.post("/v1/chat/completions", {**body, "stream": True})
    events = [line[6:] for line in streamed.body.decode().splitlines() if line]
    assert events[-1] == "[DONE]"
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == text
    assert whole.trailers["x-cost-msat"] == streamed.trailers["x-cost-msat"]


@case("POST", "/v1/messages")
async def _(shop: Everything) -> None:
    body = {
        "model": "demo", "max_tokens": 9, "messages": [{"role": "user", "content": "what is sold"}]
    }  # fmt: skip
    assert good(await shop.post("/v1/messages", body))["content"][0]["text"]
    streamed = await shop.post("/v1/messages", {**body, "stream": True})
    assert b"event: message_stop" in streamed.body


@case("POST", "/v1/responses")
async def _(shop: Everything) -> None:
    body = {"model": "echo", "input": "one two three"}
    assert good(await shop.post("/v1/responses", body))["status"] == "completed"
    streamed = await shop.post("/v1/responses", {**body, "stream": True})
    assert b"event: response.completed" in streamed.body


for _path in ("completions", "embeddings", "moderations", "rerank", "images/generations"):

    @case("POST", f"/v1/{_path}")
    async def _(shop: Everything, path: str = f"/v1/{_path}") -> None:
        document = good(await shop.post(path, CALLS[path]))
        assert document.get("choices") or document.get("data") or document.get("results")


@case("POST", "/v1/audio/speech")
async def _(shop: Everything) -> None:
    text = "a" * 1000
    body = {"model": "tts", "voice": "a", "input": text, "response_format": "wav"}
    reply = await shop.post("/v1/audio/speech", body)
    assert (reply.status, reply.headers["content-type"]) == (200, "audio/wav")
    assert reply.body == spoken(text)


for _path in ("/v1/audio/transcriptions", "/v1/audio/translations"):

    @case("POST", _path)
    async def _(shop: Everything, path: str = _path) -> None:
        large = wav(MEGABYTE / 16_000)
        assert len(large) > MEGABYTE
        document = good(await shop.upload(path, {"model": "whisper"}, large))
        assert document["text"]
        assert shop.upstream.recorded[-1].body["file"] == large


@case("GET", "/v1/models")
async def _(shop: Everything) -> None:
    models = {model["id"] for model in good(await shop.ask("GET", "/v1/models"))["data"]}
    assert {"demo", "echo", "whisper"} <= models


@case("GET", "/v1/models/{id}")
async def _(shop: Everything) -> None:
    assert good(await shop.ask("GET", "/v1/models/demo"))["id"] == "demo"


@case("GET", "/v1/info")
async def _(shop: Everything) -> None:
    assert good(await shop.ask("GET", "/v1/info"))["npub"] == shop.node.keys.npub


@case("GET", "/v1/providers")
async def _(shop: Everything) -> None:
    reply = await shop.ask("GET", "/v1/providers?limit=5")
    assert "providers" in good(reply)
    tag = {"if-none-match": reply.headers["etag"]}
    again = await shop.ask("GET", "/v1/providers?limit=5", headers=tag)
    assert (again.status, again.body) in ((304, b""), (200, again.body))


@case("GET", "/v1/providers/stream")
async def _(shop: Everything) -> None:
    reply = await shop.ask("GET", "/v1/providers/stream")
    assert (reply.status, reply.json()["error"]["code"]) == (400, "invalid_value")  # HTTP only


@case("GET", "/v1/market/{model}")
async def _(shop: Everything) -> None:
    assert (await shop.ask("GET", "/v1/market/demo")).status in (200, 404)


@case("GET", "/v1/providers/{name}")
async def _(shop: Everything) -> None:
    assert (await shop.ask("GET", "/v1/providers/nobody-has-this-name")).status == 404


@case("POST", "/v1/wallet/create")
async def _(shop: Everything) -> None:
    token = await shop.purse.fund(5)
    assert good(await shop.post("/v1/wallet/create", {"cashu_token": token}))["balance"] == 5


@case("GET", "/v1/wallet/balance")
async def _(shop: Everything) -> None:
    assert good(await shop.ask("GET", "/v1/wallet/balance"))["balance"] > 0


@case("POST", "/v1/wallet/topup")
async def _(shop: Everything) -> None:
    token = await shop.purse.fund(5)
    assert good(await shop.post("/v1/wallet/topup", {"cashu_token": token}))["amount_added"] == 5


@case("POST", "/v1/wallet/withdraw")
async def _(shop: Everything) -> None:
    token = good(await shop.post("/v1/wallet/withdraw", {"amount": 3}))["cashu_token"]
    assert await shop.purse.receive(token) == 3


@case("GET", "/v1/wallet/transactions")
async def _(shop: Everything) -> None:
    assert good(await shop.ask("GET", "/v1/wallet/transactions?limit=2"))["transactions"]


@case("GET", "/v1/wallet/change/{request_id}")
async def _(shop: Everything) -> None:
    paid = {"x-cashu": await shop.purse.fund(60)}
    body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "x"}]}).encode()
    reply = await shop.ask("POST", "/v1/chat/completions", body, paid)
    url = f"/v1/wallet/change/{reply.headers['x-request-id']}"
    found = good(await shop.ask("GET", url, headers=paid))
    assert found["token"] == reply.change
    assert await shop.purse.receive(found["token"]) == found["sats"]


for _method in ("GET", "POST"):

    @case(_method, "/v1/balance/create")
    async def _(shop: Everything, method: str = _method) -> None:
        token = await shop.purse.fund(5)
        if method == "GET":
            url = f"/v1/balance/create?initial_balance_token={token.replace('=', '%3D')}"
            made = await shop.ask("GET", url)
        else:
            made = await shop.post("/v1/balance/create", {"initial_balance_token": token})
        assert good(made)["balance"] == 5000


@case("GET", "/v1/balance/info")
async def _(shop: Everything) -> None:
    assert good(await shop.ask("GET", "/v1/balance/info"))["api_key"]


@case("POST", "/v1/balance/topup")
async def _(shop: Everything) -> None:
    good(await shop.post("/v1/balance/topup", {"cashu_token": await shop.purse.fund(5)}))


@case("POST", "/v1/balance/refund")
async def _(shop: Everything) -> None:
    made = await shop.post("/v1/wallet/create", {"cashu_token": await shop.purse.fund(7)})
    other = {"authorization": f"Bearer {good(made)['api_key']}"}
    token = good(await shop.ask("POST", "/v1/balance/refund", headers=other))["token"]
    assert await shop.purse.receive(token) == 7


@case("POST", "/v1/balance/child-key")
async def _(shop: Everything) -> None:
    assert len(good(await shop.post("/v1/balance/child-key", {"count": 2}))["api_keys"]) == 2


@case("DELETE", "/v1/balance/child-key")
async def _(shop: Everything) -> None:
    made = good(await shop.post("/v1/balance/child-key", {"count": 1}))
    body = json.dumps({"child_key": made["api_keys"][0]}).encode()
    assert good(await shop.ask("DELETE", "/v1/balance/child-key", body))["success"]


@case("POST", "/v1/balance/child-key/reset")
async def _(shop: Everything) -> None:
    limited = {"count": 1, "balance_limit": 1000}
    made = good(await shop.post("/v1/balance/child-key", limited))
    good(await shop.post("/v1/balance/child-key/reset", {"child_key": made["api_keys"][0]}))


@case("POST", "/v1/balance/lightning/invoice")
async def _(shop: Everything) -> None:
    wanted = {"amount_sats": 5, "purpose": "create"}
    assert good(await shop.post("/v1/balance/lightning/invoice", wanted))["bolt11"]


@case("GET", "/v1/balance/lightning/invoice/{secret}/status")
async def _(shop: Everything) -> None:
    wanted = {"amount_sats": 6, "purpose": "create"}
    made = good(await shop.post("/v1/balance/lightning/invoice", wanted))
    url = f"/v1/balance/lightning/invoice/{made['invoice_id']}/status"
    assert good(await shop.ask("GET", url))["amount_sats"] == 6


async def test_every_endpoint_of_the_table_has_a_case(everything: Everything) -> None:
    """A new route needs a line above."""
    async with httpx.AsyncClient() as http:
        paths = (await http.get(f"{everything.node.url}/openapi.json")).json()["paths"]
    served = {
        (method.upper(), path)
        for path, methods in paths.items()
        for method in methods
        if path.startswith("/v1/") and method in ("get", "post", "put", "patch", "delete")
    }
    assert {(method, _unnamed(path)) for method, path in served} == {
        (method, _unnamed(path)) for method, path in CASES
    }


def _unnamed(path: str) -> str:
    return "/".join("{}" if part.startswith("{") else part for part in path.split("/"))


@pytest.mark.parametrize(("method", "path"), list(CASES))
async def test_it_answers_over_nostr(everything: Everything, method: str, path: str) -> None:
    await CASES[method, path](everything)


async def test_a_megabyte_in_and_a_megabyte_out(everything: Everything) -> None:
    shop = everything
    asked = [f"text {number}" for number in range(16)]
    body = {
        "model": "embedder", "input": asked, "dimensions": 4096, "encoding_format": "float",
        "user": "u" * 200,
    }  # fmt: skip
    reply = await shop.post("/v1/embeddings", body)
    assert len(reply.body) > MEGABYTE
    assert [item["embedding"] for item in good(reply)["data"]] == [
        pytest.approx(vector(text, 4096)) for text in asked
    ]
    prompt = "word " * (MEGABYTE // 5)
    large = await shop.post("/v1/moderations", {"model": "moderator", "input": prompt})
    assert len(good(large)["results"]) == 1
    sound = await shop.post(
        "/v1/audio/speech",
        {"model": "tts", "voice": "a", "input": "b" * 4096, "response_format": "wav"},
    )
    assert sound.body == spoken("b" * 4096)


@pytest.mark.parametrize("path", ["/openapi.json", "/lightning/invoice", "/chat/completions"])
async def test_what_is_not_under_v1_is_not_there(everything: Everything, path: str) -> None:
    assert (await everything.ask("GET", path)).status == 404
