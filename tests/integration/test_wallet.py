"""Promise: whatever a mint or the network does to a swap, no sat is lost and none is made."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from node.core.accounts import HoldRequest, NewAccount
from node.core.money import Msat
from node.core.usage import Usage
from node.demo.mint import EmbeddedMint
from node.ecash.token import parse_token, serialize_token
from node.errors import (
    FeesExceedAmount,
    InsufficientBalance,
    MintNotAccepted,
    MintUnreachable,
    NodeError,
    Pending,
    TokenAlreadySpent,
    TokenMalformed,
)
from tests.conftest import OpenPurse
from tests.fakes.mint_proxy import Fault, MintProxy
from tests.integration.bench import PRICE, OpenBench, fill_with_one_coin, new_account


async def test_receive_credits_the_net_and_issue_gives_it_back(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    for served, fee in ((mint, 0), (fee_mint, 1)):
        client = await purse(served.url)
        bench = await open_bench(served.url, timeout_s=10)
        operation = await bench.receive(await client.fund(100), new_account(served.url))
        assert operation.credit == (100 - fee) * 1000
        issued = await bench.wallet.issue(operation.account_id, Msat(37_000))
        assert issued.token is not None
        assert parse_token(issued.token).amount == 37
        received = await client.receive(issued.token)
        assert received == 37 - fee
        assert (await bench.ledger.balance(operation.account_id)).balance == (63 - fee) * 1000
        await bench.books()


async def test_change_comes_from_the_inventory_without_the_mint(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, timeout_s=10)
        token = (await client.fund(60)).strip()
        relabelled = serialize_token(proxy.url, "sat", parse_token(token).proofs)
        operation = await bench.receive(relabelled, new_account("a"))
        issued = await bench.wallet.issue(operation.account_id, Msat(23_000))
        assert parse_token(issued.token or "").amount == 23
        assert proxy.swaps == 1


@pytest.mark.parametrize(
    "fault",
    [
        "lose_answer",
        "lose_request",
        "error_500_after",
        "error_500_before",
        "error_429",
        "hang",
        "garbage",
        "wrong_signatures",
    ],
)
async def test_a_receive_with_an_unknown_outcome_is_pending_then_credited_once(
    fault: Fault, mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    token = await client.fund(21)
    async with MintProxy(mint.url) as proxy:
        relabelled = serialize_token(proxy.url, "sat", parse_token(token).proofs)
        bench = await open_bench(proxy.url)
        await bench.wallet.refresh(proxy.url)
        proxy.faults.append(fault)
        with pytest.raises(Pending):
            await bench.receive(relabelled, new_account("a"))
        assert (await bench.books()).received_msat == 0
        bench = await open_bench(proxy.url, timeout_s=10)  # as after a crash: all memory is gone
        assert await bench.wallet.recover() == 0
        again = await bench.receive(relabelled, new_account("a"))
        assert again.credit == 21_000
        books = await bench.books()
        assert (books.received_msat, books.open_msat) == (21_000, 21_000)
        issued = await bench.wallet.issue(again.account_id, None)
        real = serialize_token(mint.url, "sat", parse_token(issued.token or "").proofs)
        assert await client.receive(real) == 21


async def test_a_swap_the_mint_saw_twice_is_ours(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    token = await client.fund(13)
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, timeout_s=10)
        proxy.faults.append("duplicate")
        relabelled = serialize_token(proxy.url, "sat", parse_token(token).proofs)
        operation = await bench.receive(relabelled, new_account("a"))
        assert operation.credit == 13_000
        await bench.books()


@pytest.mark.parametrize("fault", ["lose_answer", "lose_request", "hang", "garbage"])
async def test_a_send_with_an_unknown_outcome_gives_its_token_when_asked_again(
    fault: Fault, mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url)
        await bench.wallet.refresh(proxy.url)
        account = await fill_with_one_coin(bench, client, proxy.url, 64)
        proxy.faults.append(fault)
        with pytest.raises(Pending):
            await bench.wallet.issue(account, Msat(5_000), request_key="w1")
        assert (await bench.books()).transit_msat == 5_000
        issued_before = (await bench.books()).issued_msat
        bench = await open_bench(proxy.url, timeout_s=10)
        assert await bench.wallet.recover() == 0
        issued = await bench.wallet.issue(account, Msat(5_000), request_key="w1")
        again = await bench.wallet.issue(account, Msat(5_000), request_key="w1")
        assert issued.token == again.token
        real = serialize_token(mint.url, "sat", parse_token(issued.token or "").proofs)
        assert await client.receive(real) == 5
        books = await bench.books()
        assert (books.issued_msat - issued_before, books.transit_msat) == (5_000, 0)
        assert (await bench.ledger.balance(account)).balance == 59_000


async def test_the_same_token_is_one_receive_however_often_it_comes(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    bench = await open_bench(mint.url, timeout_s=10)
    token = await client.fund(9)
    results = await asyncio.gather(*(bench.receive(token, new_account("a")) for _ in range(8)))
    assert {result.id for result in results} == {results[0].id}
    with pytest.raises(TokenAlreadySpent):
        await bench.receive(token, new_account("b"))
    part = serialize_token(mint.url, "sat", parse_token(token).proofs[:1])
    with pytest.raises(TokenAlreadySpent):
        await bench.receive(part, new_account("a"))
    assert (await bench.books()).received_msat == 9_000


async def test_refusals_take_nothing_and_leave_nothing(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    bench = await open_bench(mint.url, timeout_s=10)
    spent = await client.fund(8)
    await client.receive(spent)
    with pytest.raises(TokenAlreadySpent):
        await bench.receive(spent, new_account("a"))
    good = parse_token(await client.fund(8))
    forged = serialize_token(
        mint.url, "sat", [type(p)(p.keyset_id, p.amount, p.secret + "x", p.c) for p in good.proofs]
    )
    with pytest.raises(TokenMalformed):
        await bench.receive(forged, new_account("a"))
    foreign = await (await purse(fee_mint.url)).fund(8)
    with pytest.raises(MintNotAccepted):
        await bench.receive(foreign, new_account("a"))
    # the coins of the forged token are free again, and so is the key of the refused account
    genuine = serialize_token(mint.url, "sat", good.proofs)
    assert (await bench.receive(genuine, new_account("a"))).credit == 8_000
    fee_bench = await open_bench(fee_mint.url, timeout_s=10)
    with pytest.raises(FeesExceedAmount):
        await fee_bench.receive(await (await purse(fee_mint.url)).fund(1), new_account("c"))


async def test_a_mint_that_is_down_touches_no_token(
    tmp_path: Path, purse: OpenPurse, open_bench: OpenBench
) -> None:
    async with EmbeddedMint(tmp_path / "own") as own:
        client = await purse(own.url)
        token = await client.fund(8)
        bench = await open_bench(own.url, timeout_s=10)
        await bench.wallet.refresh(own.url)
        await own.stop()
        with pytest.raises(MintUnreachable):
            await bench.receive(token, new_account("a"))
        assert await bench.store.open_operations() == []
        await own.start()
        assert (await bench.receive(token, new_account("a"))).credit == 8_000


async def test_thirty_withdrawals_at_once_never_overspend_nor_share_a_coin(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    bench = await open_bench(mint.url, timeout_s=30)
    account = (await bench.receive(await client.fund(100), new_account("a"))).account_id

    async def withdraw() -> str | NodeError:
        try:
            return (await bench.wallet.issue(account, Msat(7_000))).token or ""
        except NodeError as error:
            return error

    results = await asyncio.gather(*(withdraw() for _ in range(30)))
    tokens = [result for result in results if isinstance(result, str)]
    assert len(tokens) == 14  # 14 * 7 = 98
    assert all(isinstance(r, InsufficientBalance) for r in results if not isinstance(r, str))
    secrets = [proof.secret for token in tokens for proof in parse_token(token).proofs]
    assert len(secrets) == len(set(secrets))
    assert sum([await client.receive(token) for token in tokens]) == 98
    books = await bench.books()
    assert (books.issued_msat, books.open_msat) == (98_000, 2_000)


async def test_settle_and_close_charges_issues_the_change_and_books_the_dust(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    bench = await open_bench(mint.url, timeout_s=10)
    operation = await bench.receive(await client.fund(60), NewAccount("request", {"r": "request"}))
    hold = await bench.ledger.hold(
        operation.account_id, HoldRequest("id", "x-cashu", "", "m", PRICE, Msat(30_000))
    )
    usage = Usage(3, 4)
    closed = await bench.wallet.settle_and_close(operation.account_id, hold, Msat(10_300), usage)
    assert (closed.cost, closed.dust) == (10_300, 700)
    assert closed.change is not None
    assert await client.receive(closed.change.token or "") == 49
    again = await bench.wallet.settle_and_close(operation.account_id, hold, Msat(10_300), usage)
    assert (again.cost, again.dust, again.change) == (10_300, 0, None)
    books = await bench.books()
    assert (books.revenue_msat, books.dust_msat, books.issued_msat, books.open_msat) == (
        10_300,
        700,
        49_000,
        0,
    )
