"""SIGKILL for the node and its relays, in any order, while requests are under way."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

from node.demo.nodes import DemoNode
from tests.fakes.relays import MortalRelay


class Mortality:
    """Kills one after the other and starts it again; at times before the last one is back.

    Args:
        count: how many kills.
        every_s: between two of them, on average.
    """

    def __init__(
        self,
        node: DemoNode,
        relays: Sequence[MortalRelay],
        dice: random.Random,
        *,
        count: int,
        every_s: float = 1.0,
    ) -> None:
        self.kills: Counter[str] = Counter()
        self._node = node
        self._relays = relays
        self._dice = dice
        self._count = count
        self._every_s = every_s
        self._reviving: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Kill all of them in turn, in any order, again and again; everything runs at the end."""
        names = ["node", *(f"relay {number}" for number in range(len(self._relays)))]
        order: list[str] = []
        while len(order) < self._count:
            order += self._dice.sample(names, len(names))
        for name in order[: self._count]:
            await asyncio.sleep(self._dice.uniform(0, 2 * self._every_s))
            await self._back(name)
            self.kills[name] += 1
            self._reviving[name] = asyncio.create_task(self._strike(name))
        for name in names:
            await self._back(name)

    async def _back(self, name: str) -> None:
        if (task := self._reviving.pop(name, None)) is not None:
            await task

    async def _strike(self, name: str) -> None:
        if name == "node":
            self._node.kill()
            await self._node.start()
            return
        relay = self._relays[int(name.removeprefix("relay "))]
        await relay.kill()
        await asyncio.sleep(self._dice.uniform(0, self._every_s))
        await relay.start()
