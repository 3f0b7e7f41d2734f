"""Promise: what an expired key has reaches its address once, or stays with the key; never both."""

from __future__ import annotations

import asyncio
import time

import pytest

from node.core.accounts import NewAccount, Operation, key_hash
from node.core.keys import Terms
from node.core.lightning import OPERATOR, PayoutError, PayRequest
from node.core.money import Msat
from node.demo.mint import EmbeddedMint
from node.demo.purse import Purse
from node.ecash.bolt11 import read_bolt11
from node.ecash.token import parse_token, serialize_token
from node.errors import (
    InsufficientBalance,
    InvalidValue,
    KeyExpired,
    MintLiquidity,
    NodeError,
    Pending,
)
from node.ledger.books import sum_books
from node.ledger.keys import SqliteKeys, check_terms
from node.ledger.reconciling import mark_restored
from node.ledger.transactions import SqliteStatements
from node.service.refunds import Refunds, RefundTerms
from tests.conftest import OpenPurse
from tests.fakes.mint_proxy import Fault, MintProxy
from tests.integration.bench import Bench, OpenBench, fill_with_one_coin, new_account
from tests.integration.test_lightning import (
    assert_coins_are_real,
    earn,
    just_now,
    long_ago,
    operations,
)
from tests.integration.test_melts_end import paid_long_ago, steal

ADDRESS = "me@example.com"
TERMS = RefundTerms(floor=Msat(20_000), retry_s=60.0, max_retry_s=200.0)


class _Payee:
    """Has its invoices made by another mint."""

    def __init__(self, client: Purse) -> None:
        self._client = client
        self.asked: list[int] = []
        self.away = False
        self.most = 1 << 50

    def check(self, destination: str) -> None:
        assert destination == ADDRESS

    async def invoice(self, destination: str, amount: Msat, *, or_less: bool = False) -> PayRequest:
        self.check(destination)
        assert or_less
        amount = min(amount, Msat(self.most))
        self.asked.append(amount)
        if self.away:
            raise PayoutError("the payee does not answer")
        return read_bolt11((await self._client.mint.mint_quote(amount // 1000, "sat")).request)


class _Shop:
    """A bench, an account on it that has expired, and what refunds it."""

    def __init__(self, bench: Bench, payee: _Payee, barred: list[str] | None = None) -> None:
        self.bench = bench
        self.keys = SqliteKeys(bench.database, lambda _: None)
        self.payee = payee
        self.refunds = Refunds(
            bench.lightning, payee, self.keys, TERMS, lambda: barred[0] if barred else None
        )

    async def open(self, client: Purse, url: str, amount: int, name: str = "mortal") -> int:
        token = serialize_token(url, "sat", parse_token(await client.fund(amount)).proofs)
        terms = Terms(int(time.time()) + 1_000, ADDRESS)
        new = NewAccount("key", {key_hash(f"sk-{name}"): "spend"}, terms=terms)
        return (await self.bench.wallet.receive(self.bench.wallet.accept(token), new)).account_id

    async def expire(self) -> None:
        await self.bench.database.write(
            lambda conn: conn.execute("UPDATE account_terms SET expires_at = unixepoch() - 5")
        )

    async def balance(self, account: int) -> int:
        return (await self.bench.ledger.balance(account)).balance

    async def try_now(self) -> int:
        """A round of refunds, whenever the last try was."""
        await self.bench.database.write(lambda conn: conn.execute("UPDATE refunds SET next_at = 0"))
        return await self.refunds.once()

    async def statement(self, account: int) -> list[tuple[str, str, int]]:
        page = await SqliteStatements(self.bench.database).page(account, None, 50)
        assert len({line.id for line in page.lines}) == len(page.lines)
        assert sum(line.amount for line in page.lines) == await self.balance(account)
        return [(line.type, line.state, line.amount) for line in page.lines]


async def test_an_expired_key_is_refunded_once_and_pays_what_that_costs(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    shop = _Shop(await open_bench(mint.url, timeout_s=10), _Payee(await purse(fee_mint.url)))
    account = await shop.open(await purse(), mint.url, 300)
    assert await shop.refunds.once() == 0
    with pytest.raises(InvalidValue, match="not expired"):
        await shop.refunds.refund(account, ADDRESS)
    await shop.expire()
    with pytest.raises(KeyExpired):
        await shop.bench.database.read(lambda c: check_terms(c, account, int(time.time())))
    assert await shop.refunds.once() == 1
    assert shop.payee.asked == [294_000] * 2  # 2 % are left for Lightning, which takes 1 sat
    books = await shop.bench.books()
    assert (books.issued_msat, books.own_fees_msat, books.payouts_msat) == (294_000, 1_000, 0)
    assert (books.open_msat, books.transit_msat, books.earned_msat) == (5_000, 0, 0)
    await assert_coins_are_real(shop.bench, purse)
    assert await shop.statement(account) == [
        ("reversal", "done", 2_000),
        ("refund", "done", -297_000),
        ("deposit", "done", 300_000),
    ]
    assert await shop.try_now() == 0  # below the floor
    assert (await shop.bench.wallet.issue(account, None)).amount == 5  # ... and its holder's
    assert (await shop.bench.books()).open_msat == 0


async def test_nothing_is_refunded_that_is_in_use_or_small_or_may_not_be(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    barred = ["insolvent"]
    bench = await open_bench(mint.url, timeout_s=10)
    shop = _Shop(bench, _Payee(await purse(fee_mint.url)), barred)
    client = await purse()
    large = await shop.open(client, mint.url, 64)
    await shop.open(client, mint.url, 16, "small")
    await bench.wallet.receive(bench.wallet.accept(await client.fund(64)), new_account("immortal"))
    await shop.expire()
    assert await shop.refunds.once() == 0
    barred.clear()
    await bench.database.write(
        lambda conn: conn.execute("UPDATE accounts SET held_msat = 1000 WHERE id = ?", (large,))
    )
    assert await shop.refunds.once() == 0
    await bench.database.write(lambda conn: conn.execute("UPDATE accounts SET held_msat = 0"))
    await bench.database.write(mark_restored)
    assert await shop.refunds.once() == 0  # it may have been refunded after the backup
    await bench.database.write(
        lambda conn: conn.execute("UPDATE meta SET value = '1' WHERE key = 'restored_at'")
    )
    assert shop.payee.asked == []
    assert await shop.refunds.once() == 1
    assert len(shop.payee.asked) == 1


async def test_an_address_that_does_not_answer_is_asked_ever_more_seldom(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    shop = _Shop(await open_bench(mint.url, timeout_s=10), _Payee(await purse(fee_mint.url)))
    account = await shop.open(await purse(), mint.url, 64)
    await shop.expire()
    shop.payee.away = True
    pauses = []
    for _ in range(4):
        assert await shop.try_now() == 0
        assert await shop.refunds.once() == 0  # not at once again
        rows = await shop.bench.database.read(
            lambda conn: conn.execute("SELECT next_at - unixepoch() FROM refunds").fetchall()
        )
        pauses.append(rows[0][0])
    assert [round(pause, -1) for pause in pauses] == [60, 120, 200, 200]
    assert len(shop.payee.asked) == 4
    assert await shop.balance(account) == 64_000
    assert await operations(shop.bench, "melt") == []
    shop.payee.away = False
    assert await shop.try_now() == 1


@pytest.mark.parametrize(
    "fault",
    ["lose_answer", "lose_request", "error_500_after", "error_500_before", "error_429", "garbage",
     "wrong_signatures", "duplicate", "hang", "late", "refuse"],
)  # fmt: skip
async def test_whatever_happens_to_the_mints_answer_a_refund_is_made_once(
    fault: Fault,
    mint: EmbeddedMint,
    fee_mint: EmbeddedMint,
    purse: OpenPurse,
    open_bench: OpenBench,
) -> None:
    payee = _Payee(await purse(fee_mint.url))
    async with MintProxy(mint.url) as proxy:
        timeout_s = 1.0 if fault == "hang" else 10.0
        shop = _Shop(await open_bench(proxy.url, timeout_s=timeout_s), payee)
        account = await shop.open(await purse(), proxy.url, 300)
        await shop.expire()
        proxy.melt_faults.append(fault)
        made = await shop.refunds.once()
        assert made == (fault == "duplicate")
        if fault == "refuse":  # surely not paid: all of it is back at once
            assert await shop.balance(account) == 300_000
        elif not made:
            assert (await shop.bench.books()).transit_msat == 297_000  # the mint asks 3 at most
            assert await shop.try_now() == 0
            with pytest.raises(PayoutError):  # what is left pays for nothing
                await shop.refunds.refund(account, ADDRESS)
            with pytest.raises(InsufficientBalance):  # it cannot be withdrawn, too
                await shop.bench.wallet.issue(account, Msat(10_000))
        shop = _Shop(await open_bench(proxy.url, timeout_s=10), payee)  # a new process
        assert await shop.bench.wallet.recover() == 0
        if fault == "late":
            assert await proxy.land() == [400]
        assert await shop.try_now() == (fault == "refuse")
        books = await shop.bench.books()
        assert (books.issued_msat, books.own_fees_msat) == (294_000, 1_000)
        assert (books.open_msat, books.transit_msat, books.proofs_msat) == (5_000, 0, 5_000)
        await assert_coins_are_real(shop.bench, purse)


@pytest.mark.parametrize("withdrawn", [0, 150, 300])
async def test_a_refund_that_lands_after_it_was_given_up_is_paid_by_who_has_the_money(
    withdrawn: int,
    mint: EmbeddedMint,
    fee_mint: EmbeddedMint,
    purse: OpenPurse,
    open_bench: OpenBench,
) -> None:
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, fee_mint.url, timeout_s=10)
        shop = _Shop(bench, _Payee(await purse(fee_mint.url)))
        account = await shop.open(await purse(), proxy.url, 300)
        await shop.expire()
        proxy.melt_faults.append("late")
        assert await shop.refunds.once() == 0
        await long_ago(bench)
        assert await bench.wallet.recover() == 0
        assert await shop.balance(account) == 300_000
        with pytest.raises(Pending, match="earlier payment"):  # its invoice is still good
            await shop.refunds.refund(account, ADDRESS)
        assert await shop.try_now() == 0
        await earn(bench, await (await purse(fee_mint.url)).fund(500), 400)
        if withdrawn:  # with coins of another mint, so that those of the refund stay as they are
            await bench.wallet.issue(account, Msat(withdrawn * 1000), only=fee_mint.url)
        before = await bench.books()
        assert await proxy.land() == [200]
        await just_now(bench)
        await bench.wallet.recover()
        assert [state for _, state in await operations(bench, "melt")] == ["salvaged"]
        books = await bench.books()
        has = 300 - withdrawn  # and 295 were spent: 294 arrived, 1 went to Lightning
        assert await shop.balance(account) == max(0, has - 295) * 1000
        assert books.issued_msat - before.issued_msat == min(has, 294) * 1000
        assert books.loss_msat == max(0, 294 - has) * 1000
        assert books.own_fees_msat - before.own_fees_msat == 1_000
        assert before.proofs_msat - books.proofs_msat == 295_000
        await shop.statement(account)


async def test_after_its_invoice_has_expired_a_refund_that_was_given_up_is_tried_again(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    async with MintProxy(mint.url) as proxy:
        shop = _Shop(await open_bench(proxy.url, timeout_s=10), _Payee(await purse(fee_mint.url)))
        await shop.open(await purse(), proxy.url, 300)
        await shop.expire()
        proxy.melt_faults.append("lose_request")
        assert await shop.refunds.once() == 0
        await long_ago(shop.bench)
        assert await shop.bench.wallet.recover() == 0
        assert await shop.try_now() == 0
        await shop.bench.database.write(
            lambda conn: conn.execute("UPDATE payouts SET expires_at = unixepoch() - 1")
        )
        assert await shop.try_now() == 1
        assert (await shop.bench.books()).issued_msat == 294_000


async def test_a_refund_whose_coins_somebody_else_spent_is_not_the_clients_loss(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    async with MintProxy(mint.url) as proxy:
        shop = _Shop(await open_bench(proxy.url, timeout_s=10), _Payee(await purse(fee_mint.url)))
        account = await shop.open(await purse(), proxy.url, 300)
        await shop.expire()
        proxy.melt_faults.append("lose_request")
        assert await shop.refunds.once() == 0
        (operation,) = await shop.bench.store.open_operations()
        lost = await steal(operation, await purse(), 1)
        await long_ago(shop.bench)
        assert await shop.bench.wallet.recover() == 0
        assert await shop.balance(account) == 300_000
        books = await shop.bench.books()
        assert (books.loss_msat, books.transit_msat) == (lost * 1000, 0)
        assert not books.solvent


async def test_change_that_comes_late_is_the_accounts(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    async with MintProxy(mint.url) as proxy:
        shop = _Shop(await open_bench(proxy.url, timeout_s=10), _Payee(await purse(fee_mint.url)))
        account = await shop.open(await purse(), proxy.url, 300)
        await shop.expire()
        proxy.hide_change = True
        assert await shop.refunds.once() == 0
        await paid_long_ago(shop.bench, 61)
        assert await shop.bench.wallet.recover() == 0
        books = await shop.bench.books()
        assert (books.issued_msat, books.open_msat) == (294_000, await shop.balance(account))
        assert await shop.balance(account) < 5_000
        proxy.hide_change = False
        shop = _Shop(await open_bench(proxy.url, timeout_s=10), shop.payee)
        await shop.bench.wallet.recover()
        assert await shop.balance(account) == 5_000
        books = await shop.bench.books()
        assert (books.issued_msat, books.own_fees_msat, books.earned_msat) == (294_000, 1_000, 0)
        await shop.statement(account)
        await assert_coins_are_real(shop.bench, purse)


async def test_the_node_bears_what_a_mint_keeps_beyond_what_was_set_aside(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, timeout_s=10)
        shop = _Shop(bench, _Payee(await purse(fee_mint.url)))
        client = await purse()
        account = await shop.open(client, proxy.url, 40)
        await fill_with_one_coin(bench, client, proxy.url, 256)  # all that is left is large
        before = await bench.books()
        await shop.expire()
        proxy.hide_change = True
        assert await shop.refunds.once() == 0
        (melt,) = await bench.store.open_operations()
        most = (melt.amount + melt.fee) * 1000
        await paid_long_ago(bench, 61)
        assert await bench.wallet.recover() == 0
        assert await shop.balance(account) == 40_000 - most
        books = await bench.books()
        paid = sum(proof.amount for proof in melt.inputs) * 1000
        assert paid > most
        assert books.own_fees_msat - before.own_fees_msat == paid - melt.value
        assert books.earned_msat - before.earned_msat == most - paid
        proxy.hide_change = False
        bench = await open_bench(proxy.url, timeout_s=10)
        await bench.wallet.recover()
        books = await bench.books()
        assert (await bench.ledger.balance(account)).balance == 40_000 - melt.value - 1_000
        assert books.earned_msat == before.earned_msat


async def test_refunds_and_withdrawals_that_race_pay_no_more_than_there_is(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    payee = await purse(mint.url)
    bench = await open_bench(fee_mint.url, timeout_s=10)
    shops = [_Shop(bench, _Payee(payee)) for _ in range(3)]
    client = await purse(fee_mint.url)
    account = await shops[0].open(client, fee_mint.url, 500)
    await bench.wallet.receive(bench.wallet.accept(await client.fund(500)), new_account("other"))
    await shops[0].expire()
    outcomes = await asyncio.gather(
        *(shop.refunds.refund(account, ADDRESS) for shop in shops),
        *(bench.wallet.issue(account, Msat(30_000)) for _ in range(6)),
        *(shop.refunds.once() for shop in shops),
        return_exceptions=True,
    )
    failed = [o for o in outcomes if isinstance(o, BaseException)]
    assert {type(o) for o in failed} <= {
        Pending, InsufficientBalance, MintLiquidity, PayoutError,
    }  # fmt: skip
    while await bench.wallet.recover():
        await asyncio.sleep(0.01)
    issued = sum(o.amount for o in outcomes if isinstance(o, Operation)) * 1000
    books = await bench.books()
    assert books.issued_msat >= issued > 0
    assert books.issued_msat + books.open_msat <= 1000_000
    assert books.open_msat >= await shops[0].balance(account) >= 0
    await assert_coins_are_real(bench, lambda: purse(fee_mint.url))


async def test_a_balance_beyond_what_one_payment_carries_is_paid_bit_by_bit(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    bench = await open_bench(mint.url, fee_mint.url, timeout_s=10)
    shop = _Shop(bench, _Payee(await purse(fee_mint.url)))
    account = await shop.open(await purse(), mint.url, 300)
    more = await (await purse(fee_mint.url)).fund(100)
    added = await bench.wallet.receive(bench.wallet.accept(more), account)
    found = await bench.lightning.payable(account)
    assert [payable.available for payable in found] == [300_000, added.credit]
    await shop.expire()
    shop.payee.most = 150_000
    rounds = 0
    while await shop.bench.books() and (await bench.lightning.payable(account))[0].mint == mint.url:
        assert await shop.refunds.once() == 1
        rounds += 1
    assert rounds >= 2
    books = await bench.books()
    assert books.issued_msat > 250_000
    assert books.earned_msat == 0  # all of it was the account's, what it cost, too
    assert await shop.balance(account) == books.open_msat


async def test_a_refund_is_no_payout_and_hinders_none(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    payee = await purse(fee_mint.url)
    async with MintProxy(mint.url) as proxy:
        shop = _Shop(await open_bench(proxy.url, timeout_s=10), _Payee(payee))
        client = await purse()
        token = serialize_token(proxy.url, "sat", parse_token(await client.fund(300)).proofs)
        await earn(shop.bench, token, 200)
        await shop.open(client, proxy.url, 64)
        await shop.expire()
        proxy.melt_faults.append("lose_request")
        assert await shop.refunds.once() == 0
        bench = shop.bench
        request = bench.lightning.read((await payee.mint.mint_quote(100, "sat")).request)
        (payable,) = await bench.lightning.payable(OPERATOR)
        assert payable.available <= 200_000
        paid = await bench.lightning.pay(request, "test", payable, max_fee=Msat(5_000))
        assert (paid.state, paid.account_id) == ("done", OPERATOR)
        assert await bench.wallet.recover() == 0
        books = await bench.database.read(sum_books)
        assert books.problems() == []
        assert (books.payouts_msat, books.issued_msat) == (100_000, shop.payee.asked[-1])


def test_an_address_nobody_could_pay_is_refused() -> None:
    from discovery.netguard import NetGuard
    from node.ecash.lnurl import LnurlPayee

    refunds = Refunds(
        None,  # type: ignore[arg-type]
        LnurlPayee(NetGuard()),
        None,  # type: ignore[arg-type]
        TERMS,
    )
    refunds.check("me@example.com")
    for address in ("", "me", "lnbc1…", "http://example.com", "me@exam ple.com"):
        with pytest.raises(InvalidValue) as refused:
            refunds.check(address)
        assert isinstance(refused.value, NodeError)
        assert refused.value.param == "refund_address"
