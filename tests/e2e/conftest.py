"""A whole node in a process of its own, with a real mint, relay and model server around it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.core.money import Msat
from node.core.pricing import Price
from node.demo.mint import EmbeddedMint
from node.demo.model_server import ModelServer
from node.demo.nodes import DemoNode, Offer, Surroundings
from node.demo.purse import Purse
from node.demo.relay import EmbeddedRelay
from node.ledger.books import Books, read_books

OFFER = Offer("demo", Price(Msat(10_000_000), Msat(20_000_000), Msat(100)), max_output_tokens=64)
"""10 msat a prompt token, 20 msat a completion token, 0.1 sat a request."""

BODY = {"model": "demo", "messages": [{"role": "user", "content": "what do you sell"}]}


@dataclass
class World:
    """A node and what surrounds it."""

    node: DemoNode
    mint: EmbeddedMint
    relay: EmbeddedRelay
    upstream: ModelServer
    purse: Purse

    def books(self) -> Books:
        """The node's books, which must add up at every moment."""
        books = read_books(self.node.database)
        assert books.problems() == []
        return books

    async def quiet_books(self, timeout_s: float = 20.0) -> Books:
        """The books once nothing is under way any more."""
        async with asyncio.timeout(timeout_s):
            while (books := self.books()).operations_open or books.holds_open:
                await asyncio.sleep(0.05)
        return books

    async def assert_coins_are_real(self) -> None:
        """What the node calls its unspent coins is unspent at the mint, and is what it owes."""

        connection = sqlite3.connect(f"file:{self.node.database}?mode=ro", uri=True)
        try:
            rows = connection.execute(
                "SELECT y, amount FROM proofs WHERE state = 'unspent'"
            ).fetchall()
        finally:
            connection.close()
        if rows:
            states = await self.purse.mint.check_state([y for y, _ in rows])
            assert set(states) == {"UNSPENT"}
        assert sum(amount for _, amount in rows) * 1000 == (await self.quiet_books()).proofs_msat


OpenWorld = Callable[..., Awaitable[World]]


@pytest.fixture
async def open_world(
    mint: EmbeddedMint, relay: EmbeddedRelay, tmp_path: Path
) -> AsyncIterator[OpenWorld]:
    """Starts a world; ``mint_url`` puts something between the node and the mint."""
    async with AsyncExitStack() as stack:

        async def open_it(
            *,
            mint_url: str = "",
            offer: Offer = OFFER,
            environment: Mapping[str, str] | None = None,
        ) -> World:
            upstream = await stack.enter_async_context(ModelServer())
            node = await stack.enter_async_context(
                DemoNode(
                    "node",
                    offer,
                    Surroundings(mint_url or mint.url, relay.url, upstream.url),
                    tmp_path / "node",
                    environment=environment,
                )
            )
            purse = await stack.enter_async_context(Purse(mint.url))
            return World(node, mint, relay, upstream, purse)

        yield open_it


@pytest.fixture
async def world(open_world: OpenWorld) -> AsyncIterator[World]:
    """A world; its books add up when the test is over."""
    opened = await open_world()
    yield opened
    opened.books()


__all__ = ["BODY", "OFFER", "OpenWorld", "World"]
