"""Two nodes, two relays, a mint, and a gateway in a process of its own with its wallet."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import openai

from node.core.money import Msat
from node.core.pricing import Price
from node.demo.mint import EmbeddedMint
from node.demo.model_server import ModelServer
from node.demo.nodes import DemoNode, Offer, Surroundings
from node.demo.process import Child, free_port
from node.demo.purse import Purse
from node.demo.relay import EmbeddedRelay
from node.ecash.mint import MintClient
from node.gateway.purse import open_purse
from node.ledger.books import read_books
from tests.fakes import forks

TOKENS = Price(Msat(10_000_000), Msat(20_000_000), Msat(100))
"""10 msat a token of input, 20 msat one of output, 100 msat a request."""
DEARER = Price(Msat(200_000_000), Msat(400_000_000), Msat(2000))
"""Twenty times as much: who looks for the cheapest goes there one time in 8,000."""
MORE = (
    Offer("embedder", Price(Msat(10_000_000)), endpoints=("embeddings",)),
    Offer("whisper", Price(per_audio_minute=Msat(60_000)), endpoints=("transcriptions",)),
    Offer("dall-e", Price(per_image=Msat(5_000)), endpoints=("images",)),
)
CHAT: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": "what do you sell"}],
}
NARROW: dict[str, Any] = {"max_tokens": 20}


def offer(price: Price) -> Offer:
    return Offer("demo", price, max_output_tokens=64)


def impatient(url: str) -> dict[str, Any]:
    """An upstream that is given up when it is silent for a while."""
    return {
        "name": "upstream",
        "base_url": url,
        "first_byte_timeout_s": 8,
        "chunk_timeout_s": 8,
    }


@dataclass
class Gateway:
    """``nodestr gateway`` with a wallet of its own."""

    home: Path
    relays: tuple[str, ...]
    flags: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    environment: Mapping[str, str] = field(default_factory=dict)
    child: Child | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def wallet(self) -> Path:
        return self.home / "nodestr" / "wallet.db"

    def env(self) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.home),
            "XDG_DATA_HOME": str(self.home),
            "NODESTR_GATEWAY__RELAYS": json.dumps(self.relays),
            "NODESTR_GATEWAY__ALLOW_PRIVATE_ADDRESSES": "true",
            "NODESTR_GATEWAY__FIND_TIMEOUT_S": "30",
            "NODESTR_GATEWAY__RECOVER_INTERVAL_S": "1",
            **self.environment,
        }

    async def start(self) -> None:
        self.child = Child(
            ["-m", "node", "gateway", "--port", str(self.port), *self.flags],
            directory=self.home,
            environment=self.env(),
            log_file=self.home / "gateway.log",
            stop_timeout_s=30,
        )
        self.child.start()
        await self.ready()

    async def ready(self) -> None:
        """Wait until it knows whom to buy from."""
        assert self.child is not None
        deadline = time.monotonic() + 60
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.get(f"{self.url}/health/ready") as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                assert self.child.running(), self.child.log_end()
                assert time.monotonic() < deadline, self.child.log_end()
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        if self.child is not None:
            await self.child.stop()

    def kill(self) -> None:
        assert self.child is not None
        self.child.kill()

    def log(self) -> list[str]:
        return (self.home / "gateway.log").read_text().splitlines()

    async def run(self, *arguments: str, text: str = "") -> tuple[int, str, str]:
        """Another command of ``nodestr`` with the same wallet: exit code, output, errors."""
        return await forks.server().run(arguments, environment=self.env(), stdin=text.encode())

    async def json(self, *arguments: str) -> dict[str, Any]:
        code, out, err = await self.run(*arguments, "--json")
        assert code == 0, err
        document: dict[str, Any] = json.loads(out)
        return document

    def sdk(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, **options
        )

    async def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as http:
            return await http.post(path, json=body, headers=headers)


@dataclass
class GatewayWorld:
    """``a`` is the cheaper node and sells more; ``upstreams`` are their model servers."""

    a: DemoNode
    b: DemoNode
    upstreams: tuple[ModelServer, ModelServer]
    mint: EmbeddedMint
    relays: tuple[EmbeddedRelay, EmbeddedRelay]
    gateway: Gateway
    put_in: int = 0
    earned_before: int = 0
    """By the nodes, before this gateway."""

    async def fresh(
        self,
        home: Path,
        *flags: str,
        sat: int = 200,
        environment: Mapping[str, str] | None = None,
        start: bool = True,
    ) -> None:
        """Another gateway with a wallet of its own, at the same nodes, mint and relays."""
        for upstream in self.upstreams:
            upstream.fault, upstream.delay_s = None, 0.0
            upstream.calls = upstream.chunks_sent = upstream.disconnects = 0
            upstream.called.clear()
            upstream.disconnected.clear()
            upstream.recorded.clear()
        for node in (self.a, self.b):
            if node.pid is None:
                await node.start()
        self.earned_before = await self.earned()
        self.put_in = 0
        self.gateway = Gateway(home, self.gateway.relays, flags, environment=environment or {})
        await self.pour(sat)
        if start:
            await self.start()

    async def pour(self, sat: int) -> None:
        """Put money into the wallet of a gateway that does not run, without a command."""
        async with Purse(self.mint.url) as payer:
            token = await payer.fund(sat)
        async with (
            aiohttp.ClientSession() as session,
            open_purse(self.gateway.wallet, session, accept=[self.mint.url]) as purse,
        ):
            await purse.receive(token)
        self.put_in += sat

    async def earned(self) -> int:
        """By both nodes, in msat, once nothing is under way there."""
        earned = 0
        for node in (self.a, self.b):
            async with asyncio.timeout(30):
                while True:
                    books = read_books(node.database)
                    assert books.problems() == []
                    if not books.operations_open and not books.holds_open:
                        break
                    await asyncio.sleep(0.05)
            assert books.open_msat == 0
            earned += books.revenue_msat + books.dust_msat
        return earned

    async def fund(self, sat: int) -> None:
        """Put money into the wallet of a gateway that does not run."""
        async with Purse(self.mint.url) as purse:
            token = await purse.fund(sat)
        document = await self.gateway.json("wallet", "receive", token, "--yes")
        assert document["received_msat"] == sat * 1000
        self.put_in += sat

    async def start(self) -> None:
        """Start the gateway; it knows both nodes when this returns."""
        await self.gateway.start()
        async with asyncio.timeout(30), httpx.AsyncClient(base_url=self.gateway.url) as http:
            while True:
                found = (await http.get("/v1/providers", params={"model": "demo"})).json()
                if [p["status"] for p in found["providers"]] == ["online", "online"]:
                    return
                await asyncio.sleep(0.05)

    async def assert_conserved(self) -> None:
        """With the gateway stopped: what was put in is in the purse or was earned by the nodes,
        and what the purse calls coins is unspent at the mint."""
        earned = await self.earned() - self.earned_before
        async with (
            aiohttp.ClientSession() as session,
            open_purse(self.gateway.wallet, session) as purse,
        ):
            assert (await purse.books()).problems() == []
            funds = await purse.funds()
            assert funds.under_way == 0, await purse.journal.latest(100)
            assert sum(funds.by_mint.values()) == funds.balance
            coins = unspent(self.gateway.wallet)
            if coins:
                states = await MintClient(session, self.mint.url).check_state(coins)
                assert set(states) == {"UNSPENT"}
        assert funds.balance + earned == self.put_in * 1000


async def records(world: GatewayWorld) -> dict[str, Any]:
    """What the stopped gateway remembers of its providers."""
    async with (
        aiohttp.ClientSession() as session,
        open_purse(world.gateway.wallet, session) as purse,
    ):
        return dict(purse.journal.records)


async def ask(world: GatewayWorld, **more: Any) -> httpx.Response:
    return await world.gateway.post("/v1/chat/completions", {**CHAT, **NARROW, **more})


async def states(world: GatewayWorld) -> list[str]:
    """States of the spendings, read beside the running gateway."""
    connection = sqlite3.connect(f"file:{world.gateway.wallet}?mode=ro", uri=True)
    try:
        return [row[0] for row in connection.execute("SELECT state FROM gateway_spendings")]
    finally:
        connection.close()


async def killed_while(world: GatewayWorld, moment: str) -> None:
    """Kill the gateway at a moment of some requests, and get the money back by hand."""
    upstream = world.upstreams[0]
    upstream.delay_s = 0.1
    if moment == "working":
        upstream.fault = "stall"
    asking = [asyncio.create_task(ask(world, stream=moment != "working")) for _ in range(3)]
    async with asyncio.timeout(30):
        match moment:
            case "paying":
                while not await states(world):
                    await asyncio.sleep(0.001)
            case "working":
                await upstream.called.wait()
            case "streaming":
                while upstream.chunks_sent < 5:
                    await asyncio.sleep(0.01)
            case "after":
                await asyncio.gather(*asking)
    world.gateway.kill()
    await asyncio.gather(*asking, return_exceptions=True)
    upstream.fault, upstream.delay_s = None, 0.0
    async with asyncio.timeout(60):  # what still runs at the provider is told later
        while True:
            code, _, err = await world.gateway.run("wallet", "recover")
            assert code == 0, err
            if not (await world.gateway.json("wallet", "balance"))["under_way_msat"]:
                break
            await asyncio.sleep(0.2)
    await world.assert_conserved()


def unspent(wallet: Path) -> list[str]:
    """The coins (NUT-00 Y) that a wallet calls its own."""
    connection = sqlite3.connect(f"file:{wallet}?mode=ro", uri=True)
    try:
        rows = connection.execute("SELECT y FROM proofs WHERE state = 'unspent'").fetchall()
    finally:
        connection.close()
    return [row[0] for row in rows]


async def open_gateway_world(
    stack: AsyncExitStack,
    mint: EmbeddedMint,
    home: Path,
    *flags: str,
    environment: Mapping[str, str] | None = None,
    more: tuple[Offer, ...] = (),
    node_environment: Mapping[str, Mapping[str, str]] | None = None,
) -> GatewayWorld:
    """All of it but the gateway, which the caller funds and starts."""
    relays = [await stack.enter_async_context(EmbeddedRelay()) for _ in range(2)]
    upstreams = [await stack.enter_async_context(ModelServer()) for _ in range(2)]
    urls = tuple(relay.url for relay in relays)
    nodes = []
    for name, price, upstream in (("a", TOKENS, upstreams[0]), ("b", DEARER, upstreams[1])):
        node = DemoNode(
            name,
            offer(price),
            Surroundings(mint.url, urls[0], upstream.url),
            home / name,
            environment={
                "NODESTR_NOSTR__RELAYS": json.dumps(urls),
                "NODESTR_UPSTREAMS": json.dumps([impatient(upstream.url)]),
                **(node_environment or {}).get(name, {}),
            },
            more=more if name == "a" else (),
        )
        nodes.append(await stack.enter_async_context(node))
    gateway = Gateway(home, urls, flags, environment=environment or {})
    stack.push_async_callback(gateway.stop)
    return GatewayWorld(
        nodes[0], nodes[1], (upstreams[0], upstreams[1]), mint, (relays[0], relays[1]), gateway
    )
