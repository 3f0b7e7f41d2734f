"""The parts of the demo: a mint, a relay, a model server and two nodes, all on loopback.

Each of the first three may be a real one instead.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from node.demo.mint import EmbeddedMint
from node.demo.model_server import ModelServer
from node.demo.nodes import DemoNode, Surroundings, two_offers
from node.demo.relay import EmbeddedRelay
from node.demo.report import DemoFailure, Report
from node.ecash.token import normalize_mint_url


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line asks for.

    ``upstream`` and ``model`` go together, as do ``upstream`` and ``upstream_key_env``.
    """

    check: bool = False
    """Verify, stop, print one JSON object as the last line."""
    json: bool = False
    """Print one JSON object as the first line, keep running."""
    upstream: str | None = None
    """Base URL of a real model server, with /v1."""
    upstream_key_env: str | None = None
    """Environment variable that holds its key."""
    model: str | None = None
    mint: str | None = None
    relay: str | None = None


class World:
    """Use with ``async with``: entering starts everything, leaving stops what still runs.

    Raises DemoFailure when a part does not start.
    """

    def __init__(self, options: DemoOptions, report: Report) -> None:
        self._options = options
        self._report = report
        self._stack = AsyncExitStack()
        self.mint = normalize_mint_url(options.mint) if options.mint else ""
        self.relay = (options.relay or "").rstrip("/")
        self.upstream = (options.upstream or "").rstrip("/")
        self.model = options.model or ""
        self.nodes: tuple[DemoNode, ...] = ()

    @property
    def a(self) -> DemoNode:
        return self.nodes[0]

    @property
    def b(self) -> DemoNode:
        return self.nodes[1]

    async def close(self) -> None:
        """Stop everything, the nodes first. Idempotent."""
        await self._stack.aclose()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _start(self) -> None:
        home = Path(
            self._stack.enter_context(
                tempfile.TemporaryDirectory(prefix="nodestr-demo-", ignore_cleanup_errors=True)
            )
        )
        await self._start_mint(home / "mint")
        await self._start_relay()
        await self._start_upstream()
        await self._start_nodes(home)

    async def _start_mint(self, directory: Path) -> None:
        if self.mint:
            return
        with self._report.step("mint", "a Cashu mint (nutshell, its invoices pay themselves)") as s:
            self.mint = (await self._stack.enter_async_context(EmbeddedMint(directory))).url
            s.detail = self.mint

    async def _start_relay(self) -> None:
        if self.relay:
            return
        with self._report.step("relay", "a Nostr relay") as step:
            self.relay = (await self._stack.enter_async_context(EmbeddedRelay())).url
            step.detail = self.relay

    async def _start_upstream(self) -> None:
        if self.upstream:
            return
        with self._report.step("upstream", "an OpenAI-compatible model server") as step:
            server = await self._stack.enter_async_context(ModelServer())
            self.upstream, self.model = server.url, server.models[0]
            step.detail = f"{self.upstream} serves {self.model}"

    async def _start_nodes(self, home: Path) -> None:
        surroundings = Surroundings(self.mint, self.relay, self.upstream, self._upstream_key())
        self.nodes = tuple(
            DemoNode(name, offer, surroundings, home / name)
            for name, offer in zip(("node-a", "node-b"), two_offers(self.model), strict=True)
        )
        with self._report.step("nodes", "two nodes, each with its own key, database, prices") as s:
            for node in self.nodes:
                self._stack.push_async_callback(node.stop)
            try:
                async with asyncio.TaskGroup() as group:
                    for node in self.nodes:
                        group.create_task(node.start())
            except* RuntimeError as errors:
                for node in self.nodes:
                    self._report.log_end(node.name, node.log_end())
                raise DemoFailure("; ".join(map(str, errors.exceptions))) from None
            s.detail = " and ".join(node.url for node in self.nodes)

    def _upstream_key(self) -> tuple[str, str] | None:
        name = self._options.upstream_key_env
        if name is None:
            return None
        value = os.environ.get(name)
        if not value:
            raise DemoFailure(f"--upstream-key-env: ${name} is not set")
        return name, value
