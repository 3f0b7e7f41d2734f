"""What every client has: its dice, its money, and notes of what it is owed."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

from tests.soak.client import Answer, Client
from tests.soak.pocket import Coin, Pocket, Side
from tests.soak.prompts import published_price
from tests.soak.records import Account, Bill, Contest, Opening, Payment, Topup

MOST_ACCOUNTS = 6


class Notebook:
    """One client.

    Args:
        max_cost_msat: the most a chat may cost, as a 402 of the node said.
        up: set while the node serves; nothing begins while it is not.
    """

    def __init__(
        self,
        name: str,
        dice: random.Random,
        client: Client,
        pocket: Pocket,
        sides: tuple[Side, ...],
        max_cost_msat: int,
        up: asyncio.Event,
    ) -> None:
        self.name = name
        self.client = client
        self.pocket = pocket
        self.max_cost_msat = max_cost_msat
        self.payments: list[Payment] = []
        self.accounts: list[Account] = []
        self.openings: list[Opening] = []
        self.topups: list[Topup] = []
        self.contests: list[Contest] = []
        self.bills: list[Bill] = []
        self.bills_lost = 0
        self.done: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self._dice = dice
        self._sides = sides
        self._up = up
        self._number = 0

    def problem(self, text: str) -> None:
        """Something that must never happen."""
        self.pocket.problems.append(text)

    async def ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, **more: Any
    ) -> Answer | None:
        """``Client.call``, counted."""
        answer = await self.client.call(method, path, body, **more)
        said = "none" if answer is None else answer.code or str(answer.status)
        self.answers[f"{path.split('?')[0][:24]} {said}"] += 1
        if answer is not None and answer.status == 500:
            self.problem(f"{method} {path}: {answer.body[:200]!r}")
        return answer

    async def _fund(self, amount: int) -> Coin:
        return await self.pocket.fund(self._dice.choice(self._sides), amount)

    def _account(self) -> Account | None:
        return self._dice.choice(self.accounts[-MOST_ACCOUNTS:]) if self.accounts else None

    def _some(self) -> int | None:
        return None if self._dice.random() < 0.2 else self._dice.randint(1, 40)

    def _id(self) -> str:
        self._number += 1
        return f"{self.name}-{self._number}"

    def _cost(self, answer: Answer) -> int | None:
        """What a whole answer says it cost, which must be the published price of its usage."""
        cost, usage = answer.cost, answer.usage
        if cost is not None and usage is not None:
            price = published_price(usage["prompt_tokens"], usage["completion_tokens"])
            if cost != price:
                self.problem(f"charged {cost} msat for what costs {price}")
        return cost
