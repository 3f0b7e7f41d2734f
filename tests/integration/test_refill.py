"""Promise: large coins become the small ones that change needs while nobody waits, at a bounded
price, and whatever happens on the way loses nothing."""

from __future__ import annotations

import asyncio

import pytest

from node.core.accounts import HoldRequest
from node.core.denominations import STOCK
from node.core.money import Msat
from node.core.usage import Usage
from node.demo.mint import EmbeddedMint
from node.ecash.token import parse_token, serialize_token
from tests.conftest import OpenPurse
from tests.fakes.mint_proxy import Fault, MintProxy
from tests.integration.bench import PRICE, Bench, OpenBench, fill_with_one_coin, new_account


async def stock(bench: Bench) -> dict[int, int]:
    rows = await bench.database.read(
        lambda conn: conn.execute(
            "SELECT amount, COUNT(*) AS n FROM proofs WHERE state = 'unspent' AND NOT suspect"
            " GROUP BY amount"
        ).fetchall()
    )
    return {row["amount"]: row["n"] for row in rows}


async def operator_is_closed(bench: Bench) -> bool:
    row = await bench.database.read(
        lambda conn: conn.execute("SELECT state FROM accounts WHERE id = 0").fetchone()
    )
    return bool(row["state"] == "closed")


async def charge(bench: Bench, account: int, cost: Msat) -> None:
    """Let the node earn something."""
    request = HoldRequest("r", None, "", "m", PRICE, cost)
    hold = await bench.ledger.hold(account, request)
    await bench.ledger.settle(hold, cost, Usage(1, 1, "upstream"))


async def test_small_coins_are_made_of_a_large_one_and_change_needs_no_mint(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, timeout_s=30)
        account = await fill_with_one_coin(bench, client, proxy.url, 64)
        before = await bench.books()
        assert await bench.wallet.refill() == 1
        assert await bench.books() == before
        held = await stock(bench)
        assert (held[1], held[2]) == (STOCK, STOCK)
        assert await bench.wallet.refill() == 0, "there is enough now"
        swaps = proxy.swaps
        for sats in (1, 2, 3, 1):
            operation = await bench.wallet.issue(account, Msat(sats * 1000))
            assert await client.receive(at(mint.url, operation.token)) == sats
        assert proxy.swaps == swaps
        await bench.books()


def at(url: str, token: str | None) -> str:
    assert token is not None
    return serialize_token(url, "sat", parse_token(token).proofs)


async def test_the_fee_is_paid_from_earnings_or_the_refill_waits(
    fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse(fee_mint.url)
    bench = await open_bench(fee_mint.url, timeout_s=30)
    operation = await bench.receive(await client.fund(255), new_account("a"))
    while 1 in await stock(bench):
        await bench.wallet.issue(operation.account_id, Msat(1000))
    before = await bench.books()
    assert before.earned_msat == 0
    assert await bench.wallet.refill() == 0
    assert await bench.books() == before

    await charge(bench, operation.account_id, Msat(5000))
    bench = await open_bench(fee_mint.url, timeout_s=30)  # as if a while had gone by
    await bench.wallet.refresh(fee_mint.url)
    assert await bench.wallet.refill() == 1
    after = await bench.books()
    assert after.own_fees_msat == 1000
    assert after.open_msat == before.open_msat - 5000
    assert (await stock(bench))[1] >= STOCK - 1
    assert await operator_is_closed(bench)


@pytest.mark.parametrize(
    "fault", ["lose_answer", "lose_request", "error_500_after", "hang", "garbage", "refuse", "late"]
)
async def test_a_refill_with_an_unknown_outcome_is_recovered(
    fault: Fault, mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url)
        await bench.wallet.refresh(proxy.url)
        account = await fill_with_one_coin(bench, client, proxy.url, 64)
        before = await bench.books()
        proxy.faults.append(fault)
        await bench.wallet.refill()
        under_way = await bench.books()
        assert under_way.transit_msat == 0
        assert under_way.proofs_msat == before.proofs_msat
        assert await bench.wallet.refill() == 0 or fault == "refuse"
        bench = await open_bench(proxy.url, timeout_s=30)
        await bench.wallet.refresh(proxy.url)
        if fault == "late":
            await proxy.land()
        async with asyncio.timeout(30):
            while await bench.wallet.recover():
                await asyncio.sleep(0.05)
        assert await operator_is_closed(bench)
        after = await bench.books()
        assert (after.operations_open, after.open_msat) == (0, before.open_msat)
        token = (await bench.wallet.issue(account, None)).token
        assert await client.receive(at(mint.url, token)) == 64


async def test_nothing_is_refilled_while_a_mint_is_asked(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, timeout_s=30)
        await fill_with_one_coin(bench, client, proxy.url, 64)
        receiving = asyncio.create_task(
            bench.receive(at(proxy.url, await client.fund(5)), new_account("other"))
        )
        while not (await bench.books()).operations_open:
            await asyncio.sleep(0)
        assert await bench.wallet.refill() == 0 or receiving.done()
        assert (await receiving).credit == 5000
