"""Promise: tokens that queue for a mint go together, and a bad one among them harms no other."""

from __future__ import annotations

import asyncio

import pytest

from node.demo.mint import EmbeddedMint
from node.ecash.token import parse_token, serialize_token
from node.errors import NodeError, Pending, TokenAlreadySpent
from tests.conftest import OpenPurse
from tests.fakes.mint_proxy import MintProxy
from tests.integration.bench import Bench, OpenBench, new_account


async def receive_all(bench: Bench, tokens: list[str]) -> list[object]:
    return await asyncio.gather(
        *(bench.receive(token, new_account(f"a{n}")) for n, token in enumerate(tokens)),
        return_exceptions=True,
    )


async def fund(client: object, proxy: MintProxy, count: int) -> list[str]:
    return [
        serialize_token(proxy.url, "sat", parse_token(await client.fund(11)).proofs)  # type: ignore[attr-defined]
        for _ in range(count)
    ]


@pytest.mark.parametrize("fees", [False, True])
async def test_what_waits_goes_together(
    fees: bool,
    mint: EmbeddedMint,
    fee_mint: EmbeddedMint,
    purse: OpenPurse,
    open_bench: OpenBench,
) -> None:
    served = fee_mint if fees else mint
    client = await purse(served.url)
    async with MintProxy(served.url) as proxy:
        bench = await open_bench(proxy.url, timeout_s=30)
        await bench.wallet.refresh(proxy.url)
        tokens = await fund(client, proxy, 12)
        results = await receive_all(bench, tokens)
        assert not [result for result in results if isinstance(result, BaseException)]
        assert fees or proxy.swaps <= 4  # two alone, the rest together
        fee = 1_000 if fees else 0
        assert (await bench.books()).open_msat == 12 * (11_000 - fee)


async def test_a_spent_token_in_a_batch_is_found_and_the_others_are_taken(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, timeout_s=30)
        await bench.wallet.refresh(proxy.url)
        tokens = await fund(client, proxy, 9)
        real = serialize_token(mint.url, "sat", parse_token(tokens[5]).proofs)
        await client.receive(real)
        results = await receive_all(bench, tokens)
        bad = [n for n, result in enumerate(results) if isinstance(result, NodeError)]
        assert bad == [5]
        assert isinstance(results[5], TokenAlreadySpent)
        assert (await bench.books()).open_msat == 8 * 11_000


async def test_a_batch_with_an_unknown_outcome_is_recovered_one_by_one(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url)
        await bench.wallet.refresh(proxy.url)
        tokens = await fund(client, proxy, 7)
        proxy.faults.extend(["lose_answer"] * 7)
        results = await receive_all(bench, tokens)
        assert all(isinstance(result, Pending) for result in results)
        proxy.faults.clear()
        bench = await open_bench(proxy.url, timeout_s=30)
        assert await bench.wallet.recover() == 0
        assert (await bench.books()).open_msat == 7 * 11_000
