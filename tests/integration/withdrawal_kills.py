"""What is killed: earnings that become tokens of the operator's; see ``kill_scenarios``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from node.core.accounts import HoldRequest
from node.core.lightning import OPERATOR
from node.core.money import Msat
from node.core.usage import Usage
from node.errors import InsufficientBalance, MintLiquidity, Pending
from node.ledger.books import account_discrepancies, stranded_in_transit, sum_books
from tests.integration import kill_scenarios
from tests.integration.bench import PRICE, Bench, new_account
from tests.integration.lightning_kills import parts

CHARGED_SAT = 41
WANTED = {"first-withdrawal": 9, "second-withdrawal": 7, "third-withdrawal": 13}
"""Idempotency keys and sats."""


async def withdraw(bench: Bench, key: str) -> str:
    """The token of that key."""
    operation = await bench.wallet.issue(OPERATOR, Msat(WANTED[key] * 1000), request_key=key)
    assert operation.token
    return operation.token


async def play(task: dict[str, Any]) -> None:
    """A client pays, is charged, and withdraws; meanwhile the operator takes what is earned."""
    async with parts(task) as (bench, _):
        account = (await bench.receive(task["tokens"][0], new_account("client"))).account_id
        hold = await bench.ledger.hold(
            account, HoldRequest("r", None, "", "m", PRICE, Msat(CHARGED_SAT * 1000))
        )
        await bench.ledger.settle(hold, Msat(CHARGED_SAT * 1000), Usage(1, 1))

        async def take(key: str) -> None:
            token = await withdraw(bench, key)
            with (Path(task["directory"]) / "got").open("a") as file:
                file.write(f"{key} {token}\n")

        await take("first-withdrawal")
        await asyncio.gather(
            take("second-withdrawal"),
            take("third-withdrawal"),
            bench.wallet.issue(account, Msat(5000), request_key="client"),
        )


async def settle(task: dict[str, Any]) -> dict[str, Any]:
    """After the kill: start again, recover, ask with every key again; then what there is."""
    tokens: dict[str, str] = {}
    async with parts(task) as (bench, _):
        async with asyncio.timeout(40):
            while await bench.wallet.recover():
                await asyncio.sleep(0.05)
            for key in WANTED:
                while True:
                    try:
                        tokens[key] = await withdraw(bench, key)
                    except Pending:
                        await asyncio.sleep(0.05)
                        continue
                    except (InsufficientBalance, MintLiquidity):
                        pass  # nothing was charged before it died
                    break
        books = await bench.database.read(sum_books)
        problems = books.problems()
        for look in (account_discrepancies, stranded_in_transit):
            problems += await bench.database.read(look)
        coins = await bench.database.read(
            lambda conn: [
                row["y"] for row in conn.execute("SELECT y FROM proofs WHERE state = 'unspent'")
            ]
        )
        return {
            "problems": problems,
            "tokens": tokens,
            "charged_msat": books.revenue_msat,
            "payouts_msat": books.payouts_msat,
            "equity_msat": books.equity_msat,
            "transit_msat": books.transit_msat,
            "left_open": books.holds_open + books.operations_open,
            "coins": coins,
        }


if __name__ == "__main__":
    kill_scenarios.play = play
    kill_scenarios.settle = settle
    kill_scenarios.main()
