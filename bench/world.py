"""Everything that runs during the benchmark, each part in a process of its own (the relay is
inside the benchmark's)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import aiohttp

from bench.plan import MODEL, TOKEN_SAT
from node.core.money import Msat
from node.core.pricing import Price
from node.demo.client import Customer
from node.demo.mint import EmbeddedMint
from node.demo.nodes import DemoNode, Offer, Surroundings
from node.demo.process import Child, free_port
from node.demo.purse import Purse
from node.demo.relay import EmbeddedRelay

ROOT = Path(__file__).parents[1]
"""The checkout that is measured."""
ACCOUNT_SAT = 1 << 20
OFFER = Offer(MODEL, Price(Msat(5_000_000), Msat(20_000_000), Msat(100)))
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
_POLL_S = 0.005
_READY_TIMEOUT_S = 5.0
_FUNDING_AT_ONCE = 4


class Program:
    """A child that serves HTTP on loopback.

    Args:
        arguments: what follows ``python``; run in the checkout.
        path: answers 200 once it is ready.
    """

    def __init__(
        self, name: str, arguments: Collection[str], directory: Path, port: int, path: str = "/"
    ) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.start_s: list[float] = []
        """From each start to its first 200."""
        self._port = port
        self._path = path
        directory.mkdir(parents=True, exist_ok=True)
        self._child = Child(
            tuple(arguments),
            directory=ROOT,
            environment={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(directory)},
            log_file=directory / f"{name}.log",
            stop_timeout_s=STOP_TIMEOUT_S,
        )

    @property
    def pid(self) -> int:
        assert self._child.pid is not None
        return self._child.pid

    async def start(self) -> None:
        """Raises RuntimeError with the end of its log."""
        began = time.monotonic()
        self._child.start()
        while not await self._ready():
            if not self._child.running() or time.monotonic() - began > START_TIMEOUT_S:
                end = self._child.log_end()
                self._child.kill()
                raise RuntimeError(f"{self.name} did not start:\n{end}")
            await asyncio.sleep(_POLL_S)
        self.start_s.append(time.monotonic() - began)

    async def stop(self) -> None:
        """Idempotent."""
        await self._child.stop()

    async def _ready(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            return False
        try:
            writer.write(
                f"GET {self._path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n".encode()
            )
            async with asyncio.timeout(_READY_TIMEOUT_S):
                return (await reader.readline()).startswith(b"HTTP/1.1 200")
        except (OSError, TimeoutError):
            return False
        finally:
            writer.close()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a run needs.

    ``mint_url``: a running real mint whose invoices pay themselves; else a nutshell is started.
    ``profile``: the node runs under cProfile, on the fast double, and its profile goes there.
    """

    groups: Collection[str]
    accounts: int
    mint_url: str | None = None
    profile: Path | None = None


class World:
    """``async with``: entering starts everything and opens the accounts, leaving stops it.

    Raises RuntimeError when a part does not start.
    """

    def __init__(self, wanted: Wanted, directory: Path) -> None:
        self.servers: dict[str, Program] = {}
        self.keys: list[str] = []
        """API keys of the accounts at the node."""
        self.npub = ""
        self.relay_url = ""
        self._wanted = wanted
        self._directory = directory
        self._stack = AsyncExitStack()
        self._customers: dict[str, Customer] = {}

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def tokens(self, server: str, count: int) -> list[str]:
        """Fresh tokens that pay for one call each at ``server``."""
        return await self._each(count, lambda: self._customers[server].token(TOKEN_SAT))

    async def _start(self) -> None:
        wanted = self._wanted
        session = await self._stack.enter_async_context(aiohttp.ClientSession())
        relay = await self._stack.enter_async_context(EmbeddedRelay())
        self.relay_url = relay.url
        stub = await self._serve("stub", "bench.stub")
        if wanted.profile is None:
            await self._serve("proxy", "bench.proxy", stub.url)
        double = ""
        if "token" in wanted.groups or wanted.profile is not None:
            double = (await self._serve("mint", "bench.mint")).url
        if wanted.profile is not None:
            await self._open_node("node", double, session)
        else:
            await self._open_node("node", await self._real_mint(), session)
            if double:
                await self._open_node("node-fast", double, session)
        await self._open_accounts()

    async def _serve(self, name: str, module: str, *arguments: str) -> Program:
        port = free_port()
        command = ["-m", module, str(port), *arguments]
        path = "/v1/keysets" if name == "mint" else "/"
        return await self._run(Program(name, command, self._directory, port, path))

    async def _run(self, program: Program) -> Program:
        self.servers[program.name] = program
        self._stack.push_async_callback(program.stop)
        await program.start()
        return program

    async def _real_mint(self) -> str:
        if self._wanted.mint_url:
            return self._wanted.mint_url
        mint = EmbeddedMint(self._directory / "nutshell")
        return (await self._stack.enter_async_context(mint)).url

    async def _open_node(self, name: str, mint_url: str, session: aiohttp.ClientSession) -> None:
        around = Surroundings(mint_url, self.relay_url, f"{self.servers['stub'].url}/v1")
        files = DemoNode(name, OFFER, around, self._directory / name)
        files.write_files()
        command = ["serve", "--config", str(files.config_file)]
        if self._wanted.profile is not None:
            command = ["-m", "bench.profiled", str(self._wanted.profile), *command]
        else:
            command = ["-m", "node", *command]
        await self._run(Program(name, command, self._directory, files.port, "/health/ready"))
        if name == "node":
            self.npub = files.keys.npub
        purse = await self._stack.enter_async_context(Purse(mint_url, session=session))
        self._customers[name] = Customer(purse, session)

    async def _open_accounts(self) -> None:
        customer, url = self._customers["node"], self.servers["node"].url

        async def open_one() -> str:
            token = await customer.token(ACCOUNT_SAT)
            answer, _ = await customer.call(
                "POST", f"{url}/v1/wallet/create", json={"cashu_token": token}
            )
            return str(answer["api_key"])

        self.keys = await self._each(self._wanted.accounts, open_one)

    @staticmethod
    async def _each(count: int, make: Callable[[], Awaitable[str]]) -> list[str]:
        """``make`` so many times, a few at once."""
        gate = asyncio.Semaphore(_FUNDING_AT_ONCE)

        async def one() -> str:
            async with gate:
                return await make()

        return list(await asyncio.gather(*(one() for _ in range(count))))
