"""Promise: the operator takes out as tokens what is earned and no more, once for each key, and no
kill, race or failing mint loses a sat of it or touches what clients are owed."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from node.core.accounts import HoldRequest, Operation
from node.core.lightning import OPERATOR, PayoutError, PayRequest
from node.core.money import Msat
from node.core.usage import Usage
from node.demo.mint import EmbeddedMint
from node.demo.purse import Purse
from node.ecash.token import parse_token, serialize_token
from node.errors import (
    IdempotencyConflict,
    InsufficientBalance,
    InvalidValue,
    MintLiquidity,
    MintUnreachable,
    NodeError,
    Pending,
)
from node.ledger import journal_reports
from node.ledger.reconciling import SqliteReconcileStore, mark_restored
from node.ledger.reports import Reader
from node.service.payout import Payouts, PayoutTerms
from tests.conftest import OpenPurse
from tests.fakes.mint_proxy import Fault, MintProxy
from tests.integration.bench import PRICE, Bench, OpenBench, fill_with_one_coin, new_account
from tests.integration.kill_scenarios import KILLED
from tests.integration.withdrawal_kills import CHARGED_SAT, WANTED
from tests.integration.zygote import Zygote, zygote_of

ALL = os.environ.get("NODESTR_SOAK") == "1"
SAMPLES = 10


async def charge(bench: Bench, account: int, sat: int, name: str = "r") -> None:
    """The node earns ``sat`` from an account."""
    request = HoldRequest(name, None, "", "m", PRICE, Msat(sat * 1000))
    hold = await bench.ledger.hold(account, request)
    await bench.ledger.settle(hold, Msat(sat * 1000), Usage(1, 1))


async def earn(bench: Bench, client: Purse, paid: int, charged: int) -> int:
    """A client's account that paid ``paid`` and was charged ``charged`` sat; its id."""
    account = (await bench.receive(await client.fund(paid), new_account("client"))).account_id
    await charge(bench, account, charged)
    return account


async def take(bench: Bench, sat: int, key: str = "key-0001", **options: Any) -> Operation:
    return await bench.wallet.issue(OPERATOR, Msat(sat * 1000), request_key=key, **options)


async def test_earnings_become_a_token_that_can_be_spent(
    mint: EmbeddedMint, open_bench: OpenBench, purse: OpenPurse
) -> None:
    bench, client = await open_bench(mint.url, timeout_s=10), await purse()
    account = await earn(bench, client, 100, 37)
    operation = await take(bench, 30)
    assert operation.token is not None
    assert parse_token(operation.token).amount == 30
    assert await client.receive(operation.token) == 30
    books = await bench.books()
    assert (books.payouts_msat, books.earned_msat, books.revenue_msat) == (30_000, 7_000, 37_000)
    assert (books.issued_msat, books.liabilities_msat) == (0, 63_000)
    rest = await bench.wallet.issue(account, None)
    assert await client.receive(rest.token or "") == 63  # the client has all that is its own
    await bench.books()


async def test_the_same_key_gives_the_same_token_and_takes_nothing_again(
    mint: EmbeddedMint, open_bench: OpenBench, purse: OpenPurse
) -> None:
    bench, client = await open_bench(mint.url, timeout_s=10), await purse()
    await earn(bench, client, 64, 40)
    first = await take(bench, 16)
    both = await asyncio.gather(*(take(bench, 16) for _ in range(4)))
    assert {operation.token for operation in both} == {first.token}
    bench = await open_bench(mint.url, timeout_s=10)
    assert (await take(bench, 16)).token == first.token
    with pytest.raises(IdempotencyConflict):
        await take(bench, 17)
    assert (await bench.books()).payouts_msat == 16_000
    with pytest.raises(InvalidValue):
        await bench.wallet.issue(OPERATOR, Msat(1000))


@pytest.mark.parametrize("fees", [False, True])
async def test_never_more_than_is_free(
    fees: bool,
    mint: EmbeddedMint,
    fee_mint: EmbeddedMint,
    open_bench: OpenBench,
    purse: OpenPurse,
) -> None:
    url = (fee_mint if fees else mint).url
    bench, client = await open_bench(url, timeout_s=10), await purse(url)
    account = await earn(bench, client, 100, 37)
    with pytest.raises(InsufficientBalance):
        await take(bench, 38)
    with pytest.raises(InsufficientBalance):
        await take(bench, 30, reserve=Msat(8_000))
    taken = 0
    for number in range(60):
        try:
            taken += (await take(bench, 3, f"key-{number}", reserve=Msat(1_000))).amount
        except (InsufficientBalance, MintLiquidity):
            break
    assert taken in ((36,) if not fees else range(12, 37, 3))
    books = await bench.books()
    assert books.earned_msat >= 1_000
    assert books.equity_msat >= 1_000
    free = (await bench.ledger.balance(account)).free
    rest = await bench.wallet.issue(account, None)
    assert rest.value >= free - 4_000  # but for a mint's fee
    assert await client.receive(rest.token or "") > 0


async def test_what_is_kept_for_claims_stays(
    mint: EmbeddedMint, open_bench: OpenBench, purse: OpenPurse
) -> None:
    """Coins that the books give to claims are not earned."""
    bench, client = await open_bench(mint.url, timeout_s=10), await purse()
    await earn(bench, client, 64, 32)
    await bench.database.write(
        lambda conn: conn.execute(
            "INSERT INTO transfers (source, destination, amount_msat, reference, created_at)"
            " VALUES (3, 10, 20000, 'test', 0)"
        )
    )
    with pytest.raises(InsufficientBalance):
        await take(bench, 13)
    assert (await take(bench, 12)).state == "done"


async def test_with_a_swap_the_fee_is_the_operators(
    fee_mint: EmbeddedMint, open_bench: OpenBench, purse: OpenPurse
) -> None:
    url = fee_mint.url
    bench, client = await open_bench(url, timeout_s=10), await purse(url)
    account = await fill_with_one_coin(bench, client, url, 64)
    balance = (await bench.ledger.balance(account)).free
    await charge(bench, account, 20)
    before = await bench.books()
    operation = await take(bench, 5)
    assert (operation.fee, operation.surcharge) == (1, 1)
    after = await bench.books()
    assert after.payouts_msat - before.payouts_msat == 5_000
    assert before.earned_msat - after.earned_msat == 6_000
    assert after.own_fees_msat - before.own_fees_msat == 1_000
    assert (await bench.ledger.balance(account)).free == balance - 20_000


@pytest.mark.parametrize("fault", ["lose_answer", "lose_request", "hang"])
async def test_a_lost_answer_of_the_mint_is_pending_and_then_the_token(
    fault: Fault, mint: EmbeddedMint, open_bench: OpenBench, purse: OpenPurse
) -> None:
    async with MintProxy(mint.url) as proxy:
        bench, client = await open_bench(proxy.url, timeout_s=1), await purse()
        account = await fill_with_one_coin(bench, client, proxy.url, 64)
        await charge(bench, account, 20)
        proxy.faults.append(fault)
        with pytest.raises((Pending, MintUnreachable)):
            await take(bench, 5)
        books = await bench.books()
        assert books.payouts_msat == 0
        bench = await open_bench(proxy.url, timeout_s=5)
        async with asyncio.timeout(30):
            while await bench.wallet.recover():
                await asyncio.sleep(0.05)
        operation = await take(bench, 5)
        token = parse_token(operation.token or "")
        await client.receive(serialize_token(mint.url, "sat", token.proofs))
        assert (await bench.books()).payouts_msat == 5_000


async def test_a_refused_swap_gives_the_earnings_back_and_the_key_is_free(
    mint: EmbeddedMint, open_bench: OpenBench, purse: OpenPurse
) -> None:
    async with MintProxy(mint.url) as proxy:
        bench, client = await open_bench(proxy.url, timeout_s=5), await purse()
        account = await fill_with_one_coin(bench, client, proxy.url, 64)
        await charge(bench, account, 20)
        before = await bench.books()
        proxy.faults.append("refuse")
        with pytest.raises(NodeError):
            await take(bench, 5)
        books = await bench.books()
        assert (books.transit_msat, books.earned_msat) == (0, before.earned_msat)
        state = await bench.database.read(
            lambda conn: conn.execute("SELECT state FROM accounts WHERE id = 0").fetchone()[0]
        )
        assert state == "closed"  # the operator's account holds nothing and is never opened
        assert (await take(bench, 5)).state == "done"
        await bench.books()


class _Payee:
    """Asks for whatever it is given."""

    def __init__(self, bench: Bench, payee: Purse) -> None:
        self._bench, self._payee = bench, payee

    def check(self, destination: str) -> None:
        raise NotImplementedError

    async def invoice(self, destination: str, amount: Msat, *, or_less: bool = False) -> PayRequest:
        quote = await self._payee.mint.mint_quote(amount // 1000, "sat")
        return self._bench.lightning.read(quote.request)


async def test_racing_a_payout_and_clients_never_more_than_is_free(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, open_bench: OpenBench, purse: OpenPurse
) -> None:
    bench, client = await open_bench(mint.url, timeout_s=10), await purse()
    other = await purse(fee_mint.url)
    account = await earn(bench, client, 300, 120)
    terms = PayoutTerms(address="me@example.com", reserve=Msat(2_000))
    payouts = Payouts(bench.lightning, _Payee(bench, other), terms)

    async def payout() -> int:
        return (await payouts.pay("me@example.com", Msat(60_000))).amount

    async def withdraw(number: int) -> int:
        return (await take(bench, 25, f"key-{number}", reserve=Msat(2_000))).amount

    async def client_withdraws(number: int) -> int:
        await bench.wallet.issue(account, Msat(20_000), request_key=f"client-{number}")
        return 0

    results = await asyncio.gather(
        payout(),
        *(withdraw(number) for number in range(6)),
        *(client_withdraws(number) for number in range(9)),
        return_exceptions=True,
    )
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, NodeError | PayoutError):
            raise result
    books = await bench.books()
    taken = sum(result for result in results if isinstance(result, int))
    assert books.payouts_msat == taken * 1000
    assert 0 < books.payouts_msat <= 118_000
    assert books.equity_msat >= 2_000
    assert books.issued_msat == 180_000  # every client has its own
    assert (await bench.ledger.balance(account)).balance == 0


async def test_after_a_restore_the_mint_is_asked_first(
    mint: EmbeddedMint, open_bench: OpenBench, purse: OpenPurse
) -> None:
    bench, client = await open_bench(mint.url, timeout_s=10), await purse()
    await earn(bench, client, 100, 37)
    await bench.database.write(mark_restored)
    bench = await open_bench(mint.url, timeout_s=10)
    reconciler = bench.wallet.reconciler(SqliteReconcileStore(bench.database))
    await reconciler.begin()
    with pytest.raises(MintLiquidity):
        await take(bench, 5)
    await reconciler.run()
    assert await client.receive((await take(bench, 5)).token or "") == 5
    await bench.books()


async def test_the_list_shows_no_token(
    mint: EmbeddedMint, open_bench: OpenBench, purse: OpenPurse, tmp_path: Path
) -> None:
    bench, client = await open_bench(mint.url, timeout_s=10), await purse()
    await earn(bench, client, 100, 50)
    made = [await take(bench, 2, f"key-{number}") for number in range(3)]
    await bench.wallet.refill()
    reader = Reader(tmp_path / "node.db")
    rows, following = await reader.read(lambda conn: journal_reports.withdrawals(conn, None, 2))
    more, end = await reader.read(lambda conn: journal_reports.withdrawals(conn, following, 2))
    assert [row.id for row in (*rows, *more)] == [operation.id for operation in reversed(made)]
    assert end is None
    assert rows[0].idempotency_key == "key-2"
    assert "cashu" not in repr(rows)


@pytest.mark.timeout(3600 if ALL else 240)
@pytest.mark.parametrize("fees", [False, True])
async def test_killed_anywhere_a_withdrawal_is_made_once(
    fees: bool, mint: EmbeddedMint, fee_mint: EmbeddedMint, tmp_path: Path
) -> None:
    url = (fee_mint if fees else mint).url
    async with Purse(url) as purse, zygote_of("tests.integration.withdrawal_kills") as zygote:

        async def task(step: int, name: str) -> dict[str, Any]:
            directory = tmp_path / name
            directory.mkdir()
            tokens = [await purse.fund(120)]
            return {"step": step, "directory": str(directory), "mint": url, "tokens": tokens}

        low, high = 1, 1024  # about how many resumptions the whole journey takes
        while high - low > 8:
            middle = (low + high) // 2
            code, _ = await zygote.run(await task(middle, f"length-{middle}"))
            assert code in (0, KILLED)
            low, high = (middle, high) if code == KILLED else (low, middle)
        whole = await task(1 << 30, "whole")
        assert (await zygote.run(whole))[0] == 0
        await check(zygote, purse, whole, charged=True)
        steps = list(range(1, low + 1))
        if not ALL:
            today = datetime.datetime.now(datetime.UTC).date().isoformat()
            steps = sorted(random.Random(f"{today} withdrawals {fees}").sample(steps, SAMPLES))
        for step in steps:
            killed = await task(step, str(step))
            code, _ = await zygote.run(killed)
            assert code in (0, KILLED), step
            await check(zygote, purse, killed)


async def check(
    zygote: Zygote, purse: Purse, task: dict[str, Any], *, charged: bool = False
) -> None:
    """Start again after the kill: every token that was seen is the one of its key, and good."""
    step = task["step"]
    code, output = await zygote.run({**task, "step": 0})
    assert code == 0, step
    after = json.loads(output)
    assert (after["problems"], after["left_open"], after["transit_msat"]) == ([], 0, 0), step
    assert after["charged_msat"] in ((0, CHARGED_SAT * 1000) if not charged else (41_000,)), step
    told = Path(task["directory"]) / "got"
    got = dict(line.split() for line in told.read_text().splitlines()) if told.exists() else {}
    assert {key: after["tokens"].get(key) for key in got} == got, step
    if after["charged_msat"]:
        assert set(after["tokens"]) == set(WANTED), step
    worth = sum(parse_token(token).amount for token in after["tokens"].values())
    assert after["payouts_msat"] == worth * 1000, step
    assert after["equity_msat"] >= 0, step
    assert len(set(after["tokens"].values())) == len(after["tokens"]), step
    for token in after["tokens"].values():
        await purse.receive(token)
    if after["coins"]:
        assert set(await purse.mint.check_state(after["coins"])) == {"UNSPENT"}, step
