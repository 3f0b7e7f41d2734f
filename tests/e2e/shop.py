"""A node that sells a model for every endpoint, one for all tests of a module."""

from __future__ import annotations

import io
import wave
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio

from node.core.money import Msat
from node.core.pricing import Price
from node.demo.mint import EmbeddedMint
from node.demo.model_server import ModelServer
from node.demo.nodes import DemoNode, Offer, Surroundings
from node.demo.purse import Purse
from node.demo.relay import EmbeddedRelay
from tests.e2e.conftest import OFFER, World

TOKENS = Price(Msat(10_000_000), Msat(20_000_000), Msat(100))
"""10 msat a token of input, 20 msat one of output, 100 msat a request."""
MORE = (
    Offer("davinci", TOKENS, endpoints=("completions",), max_output_tokens=64),
    Offer("embedder", Price(Msat(10_000_000)), endpoints=("embeddings",)),
    Offer("moderator", Price(per_request=Msat(70)), endpoints=("moderations",)),
    Offer("reranker", Price(Msat(10_000_000)), endpoints=("rerank",)),
    Offer("reranker-cohere", Price(Msat(10_000_000)), endpoints=("rerank",)),
    Offer("dall-e", Price(per_image=Msat(5_000)), endpoints=("images",)),
    Offer("gpt-image", Price(Msat(10_000), Msat(1_000_000)), max_output_tokens=6500,
          context_length=8192, endpoints=("images",)),
    Offer("whisper", Price(per_audio_minute=Msat(60_000)),
          endpoints=("transcriptions", "translations")),
    Offer("gpt-transcribe", TOKENS, endpoints=("transcriptions",)),
    Offer("tts", Price(per_mchar=Msat(10_000_000)), endpoints=("speech",)),
    Offer("gpt-tts", Price(Msat(10_000_000), Msat(20_000_000)), endpoints=("speech",)),
)  # fmt: skip


@dataclass
class Shop(World):
    """``before``: what the node had earned when the test began."""

    before: int = 0

    async def earned(self) -> int:
        """Msat since the test began, once nothing is under way."""
        books = await self.quiet_books()
        assert books.held_msat == 0
        return books.revenue_msat - self.before

    async def account(self, amount_sat: int) -> str:
        """The key of a new account."""
        async with httpx.AsyncClient() as http:
            answer = await http.post(
                f"{self.node.url}/v1/wallet/create",
                json={"cashu_token": await self.purse.fund(amount_sat)},
            )
        return str(answer.json()["api_key"])

    async def post(self, key: str, path: str, body: dict[str, Any]) -> httpx.Response:
        """A call; what goes to ``/audio/trans…`` brings half a second of silence."""
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=self.node.url, headers=headers, timeout=30) as http:
            if "/audio/trans" in path:
                return await http.post(path, data=body, files={"file": ("a.wav", wav(0.5))})
            return await http.post(path, json=body)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(
    mint: EmbeddedMint, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Shop]:
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(EmbeddedRelay())
        upstream = await stack.enter_async_context(ModelServer())
        home = tmp_path_factory.mktemp("shop") / "node"
        node = DemoNode("node", OFFER, Surroundings(mint.url, relay.url, upstream.url), home,
                        more=MORE)  # fmt: skip
        await stack.enter_async_context(node)
        purse = await stack.enter_async_context(Purse(mint.url))
        yield Shop(node, mint, relay, upstream, purse)


@pytest.fixture
def shop(opened: Shop) -> Iterator[Shop]:
    """The shop as if it were new; its books add up when the test is over."""
    opened.upstream.fault = None
    opened.upstream.calls = 0
    opened.upstream.recorded.clear()
    opened.before = opened.books().revenue_msat
    yield opened
    opened.books()


def wav(seconds: float) -> bytes:
    target = io.BytesIO()
    with wave.open(target, "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(8000)
        opened.writeframes(bytes(round(seconds * 8000) * 2))
    return target.getvalue()


CALLS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "davinci", "prompt": "x"},
    "/v1/embeddings": {"model": "embedder", "input": "x"},
    "/v1/moderations": {"model": "moderator", "input": "x"},
    "/v1/rerank": {"model": "reranker", "query": "x", "documents": ["x"]},
    "/v1/images/generations": {"model": "dall-e", "prompt": "x"},
    "/v1/audio/transcriptions": {"model": "whisper"},
    "/v1/audio/translations": {"model": "whisper"},
    "/v1/audio/speech": {"model": "tts", "input": "x", "voice": "a"},
}
