"""Promise: every Lightning payment ends, whoever spent its coins; its change is booked."""

from __future__ import annotations

import pytest

from node.core.accounts import Operation
from node.core.lightning import Payable, PayoutError
from node.core.money import Msat
from node.demo.mint import EmbeddedMint
from node.demo.purse import Purse
from node.ecash.token import parse_token, serialize_token
from node.errors import InsufficientBalance, Pending
from node.ledger.withdrawals import available
from tests.conftest import OpenPurse
from tests.fakes.mint_proxy import Fault, MintProxy
from tests.integration.bench import Bench, OpenBench, fill_with_one_coin
from tests.integration.test_lightning import (
    assert_coins_are_real,
    earn,
    long_ago,
    operations,
    pay,
)


async def stuck(bench: Bench, proxy: MintProxy, payee: Purse, fault: Fault) -> Operation:
    """A payout of 100 sat that did not reach the mint, or did so unheard."""
    proxy.melt_faults.append(fault)
    with pytest.raises(Pending):
        await pay(bench, (await payee.mint.mint_quote(100, "sat")).request)
    (operation,) = await bench.store.open_operations()
    return operation


async def steal(operation: Operation, thief: Purse, coins: int) -> int:
    """Somebody who has our seed spends the first inputs; what they are worth in sat."""
    stolen = operation.inputs[:coins]
    await thief.receive(serialize_token(thief.mint.url, operation.unit, stolen))
    return sum(proof.amount for proof in stolen)


@pytest.mark.parametrize("every_coin", [False, True])
async def test_a_payout_whose_coins_somebody_else_spent_ends_with_a_loss(
    every_coin: bool,
    mint: EmbeddedMint,
    fee_mint: EmbeddedMint,
    purse: OpenPurse,
    open_bench: OpenBench,
) -> None:
    payee, thief = await purse(fee_mint.url), await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, timeout_s=10)
        await _earn(bench, proxy, await purse(), 300, 200)
        operation = await stuck(bench, proxy, payee, "lose_request")
        lost = await steal(operation, thief, len(operation.inputs) if every_coin else 1)
        assert await bench.wallet.recover() == 1  # the request may yet arrive
        assert (await bench.books()).transit_msat == 102_000
        await long_ago(bench)
        if not every_coin:
            proxy.pending = True
            assert await bench.wallet.recover() == 1  # the others may be paying just now
            proxy.pending = False
        assert await bench.wallet.recover() == 0
        assert await operations(bench, "melt") == [(operation.id, "failed")]
        books = await bench.books()
        assert (books.loss_msat, books.payouts_msat, books.transit_msat) == (lost * 1000, 0, 0)
        assert books.proofs_msat == 300_000 - lost * 1000
        assert books.open_msat == 100_000  # it is not the clients' loss
        await assert_coins_are_real(bench, purse)
        await long_ago(bench)
        again = await open_bench(proxy.url, timeout_s=10)
        assert await again.wallet.recover() == 0
        assert (await again.books()).loss_msat == lost * 1000


async def _earn(bench: Bench, proxy: MintProxy, client: Purse, amount: int, earned: int) -> int:
    """As ``earn``, with coins that came through the proxy."""
    token = serialize_token(proxy.url, "sat", parse_token(await client.fund(amount)).proofs)
    return await earn(bench, token, earned)


async def test_a_payout_whose_coins_went_into_a_swap_that_landed_late_loses_nothing(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    payee, client = await purse(fee_mint.url), await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, timeout_s=10)
        await _earn(bench, proxy, client, 300, 200)
        account = await fill_with_one_coin(bench, client, proxy.url, 128)
        proxy.faults.extend(["late", "refuse"])
        with pytest.raises(Pending):
            await bench.wallet.issue(account, Msat(3_000))
        await long_ago(bench)
        assert await bench.wallet.recover() == 0  # given up: its coin is suspect, and goes first
        operation = await stuck(bench, proxy, payee, "lose_request")
        assert await proxy.land() == [200]
        await long_ago(bench)
        await bench.database.write(
            lambda conn: conn.execute("UPDATE operations SET failed_at = 0 WHERE kind = 'send'")
        )
        assert await bench.wallet.recover() == 0
        assert await operations(bench, "melt") == [(operation.id, "failed")]
        books = await bench.books()
        assert (books.loss_msat, books.transit_msat, books.payouts_msat) == (0, 0, 0)
        await assert_coins_are_real(bench, purse)


async def test_a_payout_ends_when_the_mint_no_longer_knows_its_quote(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    payee = await purse(fee_mint.url)
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, timeout_s=10)
        await _earn(bench, proxy, await purse(), 300, 200)
        await stuck(bench, proxy, payee, "lose_request")
        proxy.forget_quotes = True
        await long_ago(bench)
        assert await bench.wallet.recover() == 1  # the invoice can still be paid
        await bench.database.write(lambda conn: conn.execute("UPDATE payouts SET expires_at = 1"))
        proxy.pending = True
        assert await bench.wallet.recover() == 1
        proxy.pending = False
        assert await bench.wallet.recover() == 0
        books = await bench.books()
        assert (books.payouts_msat, books.transit_msat, books.proofs_msat) == (0, 0, 300_000)


async def test_a_payout_made_is_not_given_up_when_the_mint_forgets_its_quote(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    payee = await purse(fee_mint.url)
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, timeout_s=10)
        await _earn(bench, proxy, await purse(), 300, 200)
        await stuck(bench, proxy, payee, "lose_answer")
        proxy.forget_quotes = True
        await long_ago(bench)
        await bench.database.write(lambda conn: conn.execute("UPDATE payouts SET expires_at = 1"))
        assert await bench.wallet.recover() == 1
        proxy.forget_quotes = False
        assert await bench.wallet.recover() == 0
        assert (await bench.books()).payouts_msat == 100_000


async def paid_long_ago(bench: Bench, ago_s: int) -> None:
    await bench.database.write(
        lambda conn: conn.execute("UPDATE payouts SET paid_at = unixepoch() - ?", (ago_s,))
    )


async def test_change_that_comes_late_is_booked_even_by_another_process(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    payee = await purse(fee_mint.url)
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, timeout_s=10)
        await _earn(bench, proxy, await purse(), 300, 200)
        proxy.hide_change = True
        with pytest.raises(Pending):
            await pay(bench, (await payee.mint.mint_quote(100, "sat")).request)
        assert await bench.wallet.recover() == 1
        await paid_long_ago(bench, 50)
        bench = await open_bench(proxy.url, timeout_s=10)  # a restart does not make it wait anew
        assert await bench.wallet.recover() == 1
        await paid_long_ago(bench, 61)
        assert await bench.wallet.recover() == 0
        books = await bench.books()
        assert (books.payouts_msat, books.transit_msat) == (100_000, 0)
        missing = books.own_fees_msat - 1_000
        assert missing > 0
        assert books.proofs_msat == 199_000 - missing
        await bench.wallet.recover()
        assert (await bench.books()).own_fees_msat == missing + 1_000
        proxy.hide_change = False
        bench = await open_bench(proxy.url, timeout_s=10)
        await paid_long_ago(bench, 90_000)  # nobody looks for ever
        await bench.wallet.recover()
        assert (await bench.books()).own_fees_msat == missing + 1_000
        await paid_long_ago(bench, 80_000)
        for _ in range(2):
            bench = await open_bench(proxy.url, timeout_s=10)
            await bench.wallet.recover()
            books = await bench.books()
            assert (books.own_fees_msat, books.proofs_msat) == (1_000, 199_000)
        await assert_coins_are_real(bench, purse)


async def test_more_change_than_is_missing_is_not_taken(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    payee = await purse(fee_mint.url)
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, timeout_s=10)
        await _earn(bench, proxy, await purse(), 300, 200)
        proxy.hide_change = True
        with pytest.raises(Pending):
            await pay(bench, (await payee.mint.mint_quote(100, "sat")).request)
        await paid_long_ago(bench, 61)
        await bench.wallet.recover()
        before = await bench.books()
        await bench.database.write(lambda conn: conn.execute("UPDATE payouts SET missing = 1"))
        proxy.hide_change = False
        await bench.wallet.recover()
        after = await bench.books()
        assert (after.own_fees_msat, after.proofs_msat) == (
            before.own_fees_msat,
            before.proofs_msat,
        )


async def test_earnings_that_pay_for_a_swap_under_way_are_not_paid_out(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    payee, client = await purse(mint.url), await purse(fee_mint.url)
    async with MintProxy(fee_mint.url) as proxy:
        bench = await open_bench(proxy.url, timeout_s=10)
        await _earn(bench, proxy, client, 150, 100)
        account = await fill_with_one_coin(bench, client, proxy.url, 512)
        earned = (await bench.books()).earned_msat
        proxy.faults.append("lose_request")
        with pytest.raises(Pending):
            await bench.wallet.issue(account, Msat(101_000))
        (send,) = await bench.store.open_operations()
        assert send.fee > send.surcharge == 0
        fee = Msat(send.fee * 1000)
        assert (await bench.books()).earned_msat == earned  # not booked yet
        assert await bench.database.read(available) == earned - fee
        (payable,) = await bench.lightning.payable()
        assert payable.available <= earned - fee
        for amount in range(90, 99):  # just what there would be without that fee, whatever it is
            bolt11 = (await payee.mint.mint_quote(amount, "sat")).request
            try:
                await pay(bench, bolt11)
                break
            except InsufficientBalance:
                continue
        assert await bench.wallet.recover() == 0
        assert (await bench.books()).earned_msat >= 0


async def test_a_mint_without_a_keyset_of_the_unit_pays_nothing(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    payee = await purse(fee_mint.url)
    bench = await open_bench(mint.url, timeout_s=10)
    bolt11 = (await payee.mint.mint_quote(10, "sat")).request
    payable = Payable(mint.url, "msat", Msat(20_000))
    with pytest.raises(PayoutError):
        await bench.lightning.pay(
            bench.lightning.read(bolt11), "test", payable, max_fee=Msat(5_000)
        )
