"""Trouble by chance: a mint behind a bad line, a model server that stumbles, a node that dies."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

from aiohttp import web

from node.demo.model_server import ModelServer
from tests.fakes.mint_proxy import Fault, MintProxy
from tests.soak.node import SoakNode

MONEY_PATHS = ("/v1/swap", "/v1/mint/bolt11", "/v1/melt/bolt11")
FAULTS: tuple[Fault, ...] = (
    "lose_answer",
    "lose_request",
    "error_500_after",
    "error_500_before",
    "error_429",
    "hang",
    "garbage",
    "wrong_signatures",
    "duplicate",
    "late",
    "refuse",
)
UPSTREAM_FAULTS = ("status-500", "status-503", "drop", "cut", "stall", "hang", "error-event")


class ChaosProxy(MintProxy):
    """A MintProxy that throws the dice for every call while ``raging``.

    Args:
        fault_share: how many of the calls that move money meet a fault, 0 to 1; of the others
            it is half of that.
        max_late_s: how long after its connection was dropped a late request reaches the mint.
    """

    def __init__(
        self, target: str, dice: random.Random, fault_share: float, *, max_late_s: float = 4
    ) -> None:
        super().__init__(target)
        self.raging = False
        self.met = dict.fromkeys((*FAULTS, "slow"), 0)
        self._dice = dice
        self._share = fault_share
        self._max_late_s = max_late_s
        self._landing: set[asyncio.Task[None]] = set()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if not self.raging:
            return await super()._handle(request)
        if self._dice.random() < 0.1:
            self.met["slow"] += 1
            await asyncio.sleep(self._dice.uniform(0, 0.5))
        if request.path not in MONEY_PATHS:
            return await self._ask(request)
        if self._dice.random() < self._share:
            fault = self._dice.choice(FAULTS)
            self.met[fault] += 1
            self._faults[request.path].append(fault)
            if fault == "late":
                landing = asyncio.create_task(self._land_later())
                self._landing.add(landing)
                landing.add_done_callback(self._landing.discard)
        return await super()._handle(request)

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        """A call that moves no money: it may fail too, and says nothing when it does."""
        if self._dice.random() >= self._share / 2:
            return await super()._handle(request)
        if self._dice.random() < 0.5:
            self.met["lose_request"] += 1
            return self._drop(request)
        self.met["error_500_before"] += 1
        return web.json_response({}, status=500)

    async def _land_later(self) -> None:
        await asyncio.sleep(self._dice.uniform(0.2, self._max_late_s))
        await self.land()

    async def calm(self) -> None:
        """No more faults; what was late has landed when this returns."""
        self.raging = False
        for faults in self._faults.values():
            faults.clear()
        await asyncio.gather(*self._landing)
        await self.land()


async def stumble(upstream: ModelServer, dice: random.Random) -> None:
    """Let the model server fail now and then, for ever."""
    try:
        while True:
            await asyncio.sleep(dice.uniform(0.5, 3))
            upstream.fault = dice.choice(UPSTREAM_FAULTS)
            upstream.delay_s = dice.choice((0.0, 0.0, 0.02))
            await asyncio.sleep(dice.uniform(0.05, 0.4))
            upstream.fault = None
    finally:
        upstream.fault, upstream.delay_s = None, 0.0


async def fail_at_times(proxy: ChaosProxy, dice: random.Random) -> None:
    """Take the mint away for a while now and then, for ever."""
    while True:
        await asyncio.sleep(dice.uniform(5, 30))
        try:
            await proxy.vanish()
            await asyncio.sleep(dice.uniform(0.1, 3))
        finally:
            await proxy.reappear()


class Killer:
    """Kills the node at random moments and starts it again.

    ``up`` is set while the node serves. ``alive_s``: for how long it is let live, at most.
    """

    def __init__(self, node: SoakNode, dice: random.Random, alive_s: float) -> None:
        self.up = asyncio.Event()
        self.up.set()
        self.kills = 0
        self._node = node
        self._dice = dice
        self._alive_s = alive_s

    async def run(self) -> None:
        """For ever; cancel it with the node up or down, and ``revive``."""
        while True:
            await asyncio.sleep(self._dice.uniform(0.3, self._alive_s))
            await self.strike()

    async def strike(self) -> None:
        """Kill it and start it again; now and then kill it while it starts, too."""
        self.up.clear()
        self._node.kill()
        self.kills += 1
        while self._dice.random() < 0.3:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._node.start(), self._dice.uniform(0.5, 3))
                break
            self.kills += 1
        else:
            await self._node.start()
        self.up.set()
