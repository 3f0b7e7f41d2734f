"""Promise: a call paid with a token costs three commits and one request to the mint, and nothing of
it waits for anything else."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from node.core.accounts import HoldRequest
from node.core.exchange import Receipt, Request
from node.core.money import Msat
from node.core.usage import Usage
from node.demo.mint import EmbeddedMint
from node.ecash.token import parse_token, serialize_token
from node.errors import Pending
from node.ledger.database import Database
from node.service.accounts import Accounts
from node.service.payers import Payer, Refused, choose_payer
from tests.conftest import OpenPurse
from tests.fakes.mint_proxy import MintProxy
from tests.integration.bench import PRICE, Bench, OpenBench

HOLD = HoldRequest("r", None, "", "m", PRICE, Msat(5000))


async def trace(database: Database) -> list[str]:
    """The commits of the writer from now on."""
    commits: list[str] = []

    def note(statement: str) -> None:
        if statement == "COMMIT":
            commits.append(statement)

    def work(conn: sqlite3.Connection) -> None:
        conn.set_trace_callback(note)

    await database.write(work)
    await database.write(lambda conn: None)
    commits.clear()
    return commits


async def payer(bench: Bench, token: str) -> Payer:
    accounts = Accounts(bench.ledger, bench.wallet, bench.store, b"k" * 32)
    request = Request("id", "POST", "/v1/chat/completions", {"x-cashu": token}, b"{}")
    return await choose_payer(request, accounts, bench.ledger, bench.wallet)


def at(url: str, token: str) -> str:
    return serialize_token(url, "sat", parse_token(token).proofs)


async def test_a_call_costs_three_commits_and_one_swap(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, timeout_s=30)
        await bench.wallet.refresh(proxy.url)
        tokens = [at(proxy.url, await client.fund(60)) for _ in range(4)]
        for token in tokens:
            commits = await trace(bench.database)
            swaps, requests = proxy.swaps, proxy.requests
            paying = await payer(bench, token)
            await paying.begin(HOLD)
            assert len(commits) == 1, "the intent is on disk before the mint is asked"
            await paying.secured()
            assert len(commits) == 2, "the credit and the hold share a commit"
            receipt = await paying.settle(Msat(2000), Usage(1, 1, "upstream"))
            assert len(commits) == 3, "so do the charge and the change"
            assert (proxy.swaps - swaps, proxy.requests - requests) == (1, 1)
            assert receipt.change is not None
            assert await client.receive(at(mint.url, receipt.change)) == 58
            await bench.books()


async def test_a_hold_is_not_left_behind_when_nobody_waits_for_the_mint_any_more(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    """The swap takes longer than the caller waits: no hold may be made for it afterwards."""
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, timeout_s=3)
        await bench.wallet.refresh(proxy.url)
        token = at(proxy.url, await client.fund(60))
        proxy.faults.append("hang")
        paying = await payer(bench, token)
        await paying.begin(HOLD)
        with pytest.raises(Refused) as refused:
            await paying.secured()
        assert isinstance(refused.value.error, Pending)
        async with asyncio.timeout(30):
            while await bench.wallet.recover():
                await asyncio.sleep(0.05)
        books = await bench.books()
        assert (books.open_msat, books.held_msat, books.holds_open) == (60_000, 0, 0)
        receipt = await _paid(bench, token)
        assert receipt.change is not None
        assert await client.receive(at(mint.url, receipt.change)) == 58


async def _paid(bench: Bench, token: str) -> Receipt:
    paying = await payer(bench, token)
    await paying.begin(HOLD)
    return await paying.settle(Msat(2000), Usage(1, 1, "upstream"))
