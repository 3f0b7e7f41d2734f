"""``nodestr demo``: the whole job on one machine, once through, with a balance sheet at the end."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import Any

import aiohttp

from node.demo.client import Customer
from node.demo.purse import Purse
from node.demo.report import DemoFailure, Report, print_object
from node.demo.steps import Walk
from node.demo.world import DemoOptions, World
from node.ops import logging

__all__ = ["DemoOptions", "run_demo"]

SPARE_TOKEN_SAT = 100


async def run_demo(options: DemoOptions) -> int:
    """Run the demo as ``options`` say; returns the exit code.

    Everything it started is stopped when it returns, also after a failure or a signal.
    """
    logging.configure("error", "console")
    demo = _Demo(options)
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if not demo.leave.is_set():
            demo.leave.set()
            if not demo.idle:
                task.cancel()

    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, on_signal)
    try:
        return await demo.run()
    finally:
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(name)


class _Demo:
    def __init__(self, options: DemoOptions) -> None:
        self.leave = asyncio.Event()
        """Set by a signal."""
        self.idle = False
        """The walk is over and the nodes are left running until ``leave``."""
        self._options = options
        self._report = Report(to_stderr=options.json)
        self._facts: dict[str, Any] = {}

    async def run(self) -> int:
        interrupted = False
        try:
            await self._run()
        except asyncio.CancelledError:
            if not self.leave.is_set():
                raise
            interrupted = True
            if task := asyncio.current_task():
                task.uncancel()
        except Exception as error:
            self._report.failed(error)
        ok = self._report.ok and not interrupted
        if self._options.check:
            print_object({**self._report.summary(), "ok": ok, **self._facts})
        return 0 if ok else 1

    async def _run(self) -> None:
        async with AsyncExitStack() as stack:
            world = await stack.enter_async_context(World(self._options, self._report))
            session = await stack.enter_async_context(aiohttp.ClientSession())
            purse = Purse(world.mint, session=session, on_invoice=self._on_invoice())
            customer = Customer(await stack.enter_async_context(purse), session)
            walk = Walk(world, customer, self._report)
            self._facts = _facts(world)
            try:
                await walk.announced()
                await walk.found()
                if self._options.json:
                    await self._serve_programs(world, walk, customer)
                else:
                    await self._walk(world, walk)
            except Exception:
                for node in world.nodes:
                    self._report.log_end(node.name, node.log_end())
                raise
            with self._report.step("stop", "everything stops cleanly") as step:
                await world.close()
                codes = {node.name: node.exit_code for node in world.nodes}
                if any(codes.values()):
                    raise DemoFailure(f"exit codes {codes}")
                step.detail = "both nodes drained and ended with exit code 0"

    async def _walk(self, world: World, walk: Walk) -> None:
        api_key = await walk.key()
        token_key = await walk.token_as_key()
        await walk.x_cashu()
        await walk.nostr()
        await walk.withdrawn(api_key, token_key)
        self._report.sheet(await walk.balanced())
        if self._options.check:
            return
        funded = await walk.funded_key()
        urls = {"mint": world.mint, "relay": world.relay, "upstream": world.upstream}
        self._report.snippets(world.a, world.b, funded, urls)
        await self._stay()

    async def _serve_programs(self, world: World, walk: Walk, customer: Customer) -> None:
        api_key = await walk.funded_key()
        token = await customer.token(SPARE_TOKEN_SAT)
        print_object({**self._facts, "api_key": api_key, "token": token})
        await self._stay()

    async def _stay(self) -> None:
        self.idle = True
        await self.leave.wait()
        self.idle = False

    def _on_invoice(self) -> Any:
        """The embedded mint's invoices pay themselves; those of a real one may be for people."""
        if self._options.mint is None:
            return None

        async def show(invoice: str) -> None:
            self._report.plain(f"pay this, unless the mint does it by itself: {invoice}")

        return show


def _facts(world: World) -> dict[str, Any]:
    """All that outside programs need to attach."""
    return {
        "mint": world.mint,
        "relay": world.relay,
        "upstream": world.upstream,
        "model": world.model,
        "prices": {node.name: node.offer.to_dict() for node in world.nodes},
        "nodes": [node.to_dict() for node in world.nodes],
    }
