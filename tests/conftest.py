"""Real servers for all suites: a Cashu mint, one with input fees, a Nostr relay, paying clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

import aiohttp
import pytest
from hypothesis import settings

from node.demo.mint import EmbeddedMint
from node.demo.process import Child
from node.demo.purse import Purse
from node.demo.relay import EmbeddedRelay
from tests.fakes import forks

settings.register_profile("nodestr", deadline=None)  # no test depends on speed
settings.load_profile("nodestr")


@pytest.fixture(scope="session", autouse=True)
def _forked_nodes() -> Iterator[None]:
    """Nodes and commands start from a process that has imported the program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Child, "launch", staticmethod(forks.launch))
        yield
    forks.stop()


OpenPurse: TypeAlias = Callable[..., Awaitable[Purse]]


@pytest.fixture(scope="session")
def mint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedMint]:
    """A real mint without fees, shared by the whole run: never stop it, start your own."""
    with EmbeddedMint(tmp_path_factory.mktemp("mint")) as running:
        yield running


@pytest.fixture(scope="session")
def fee_mint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedMint]:
    """A real mint that takes 100 ppk an input, shared by the whole run."""
    with EmbeddedMint(tmp_path_factory.mktemp("fee_mint"), input_fee_ppk=100) as running:
        yield running


@pytest.fixture
async def relay() -> AsyncIterator[EmbeddedRelay]:
    """A strict relay of the test's own."""
    async with EmbeddedRelay() as running:
        yield running


@pytest.fixture
async def http_session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client session of the test's own."""
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def purse(mint: EmbeddedMint) -> AsyncIterator[OpenPurse]:
    """Opens paying clients: ``await purse()`` at ``mint``, ``await purse(url)`` elsewhere."""
    async with AsyncExitStack() as stack:

        async def open_purse(mint_url: str = mint.url, **options: Any) -> Purse:
            return await stack.enter_async_context(Purse(mint_url, **options))

        yield open_purse
