"""Promise: a token whose answer arrives while another is asked for is not given a second time."""

from __future__ import annotations

import asyncio
from typing import Any

from node.core.accounts import Account, Operation
from node.core.money import Msat
from node.service.accounts import Accounts

ACCOUNT = Account(100, "spend", funded=True)


def operation(name: str) -> Operation:
    return Operation(name, "send", "done", 100, "https://m", "sat", 2, 0, (), (), token=name)


class Outside:
    """Ledger, wallet and store at once; what it reads is as old as the moment it was asked."""

    def __init__(self) -> None:
        self.issued: list[Operation] = []
        self.delivered: set[str] = set()
        self.while_reading: Any = None

    async def has_admin_key(self, _account: int) -> bool:
        return False

    async def issue(self, _account: int, _amount: Msat | None, **_: Any) -> Operation:
        self.issued.append(operation(f"token-{len(self.issued)}"))
        return self.issued[-1]

    async def finish(self, operation: Operation) -> Operation:
        return operation

    async def undelivered(self, _account: int) -> list[Operation]:
        seen = [o for o in self.issued if o.id not in self.delivered]
        if self.while_reading is not None:
            self.while_reading()
        for _ in range(3):
            await asyncio.sleep(0)
        return seen

    async def last_send(self, _account: int) -> None:
        return None

    def mark_delivered(self, name: str) -> asyncio.Future[None]:
        self.delivered.add(name)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


async def test_an_answer_that_arrives_during_the_look_up_is_not_given_again() -> None:
    outside: Any = Outside()
    accounts = Accounts(outside, outside, outside, b"secret")
    first = await accounts.withdraw(ACCOUNT, Msat(2_000))
    outside.while_reading = lambda: accounts.handed_over(first, True)
    second = await accounts.withdraw(ACCOUNT, Msat(2_000))
    assert second.token != first.token


async def test_an_answer_that_got_lost_is_given_again() -> None:
    outside: Any = Outside()
    accounts = Accounts(outside, outside, outside, b"secret")
    first = await accounts.withdraw(ACCOUNT, Msat(2_000))
    accounts.handed_over(first, False)
    assert (await accounts.withdraw(ACCOUNT, Msat(2_000))).token == first.token
