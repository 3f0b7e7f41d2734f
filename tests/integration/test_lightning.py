"""Promise: a paid invoice is credited once and a payout is paid once, whatever fails in between."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator

import pytest

from node.core.accounts import HoldRequest, NewAccount, Operation, key_hash
from node.core.lightning import Invoice, NewInvoice, PayoutError, PayRequest, Room
from node.core.money import Msat
from node.core.usage import Usage
from node.demo.mint import EmbeddedMint
from node.demo.purse import Purse
from node.ecash.bolt11 import read_bolt11
from node.errors import (
    InsufficientBalance,
    InvalidApiKey,
    InvalidValue,
    MintFull,
    MintLiquidity,
    Pending,
    RateLimitExceeded,
)
from node.service.payout import Payouts, PayoutTerms
from tests.conftest import OpenPurse
from tests.fakes.mint_proxy import Fault, MintProxy
from tests.integration.bench import PRICE, Bench, OpenBench, new_account

ROOM = Room(100, 100, 3600)


async def invoice(bench: Bench, name: str, amount: int = 21, into: int | None = None) -> Invoice:
    """An invoice that a client asked for; the mint's wallet pays it by itself."""
    quoted = await bench.lightning.quote(amount)
    now = int(time.time())
    new = NewInvoice(
        hash=hashlib.sha256(name.encode()).hexdigest(),
        purpose="create" if into is None else "topup",
        mint=quoted.mint,
        unit=quoted.unit,
        amount=quoted.amount,
        quote=quoted.quote,
        bolt11=quoted.request.bolt11,
        peer="peer",
        expires_at=now + 3600,
        watch_until=now + 7200,
        max_balance=quoted.max_balance,
    )
    opens = NewAccount("key", {key_hash(f"sk-{name}"): "spend"})
    return await bench.invoices.open_invoice(new, opens if into is None else into, ROOM)


async def credited(bench: Bench, made: Invoice) -> int:
    """What reached the account; as often as it is asked for, the mint is asked, too."""
    return (await bench.ledger.balance(made.account_id)).balance


async def operations(bench: Bench, kind: str) -> list[tuple[str, str]]:
    rows = await bench.database.read(
        lambda conn: conn.execute(
            "SELECT id, state FROM operations WHERE kind = ? ORDER BY rowid", (kind,)
        ).fetchall()
    )
    return [(row["id"], row["state"]) for row in rows]


async def test_a_paid_invoice_opens_an_account_that_was_not_there_before(
    mint: EmbeddedMint, open_bench: OpenBench
) -> None:
    bench = await open_bench(mint.url, timeout_s=10)
    made = await invoice(bench, "a")
    with pytest.raises(InvalidApiKey):
        await bench.ledger.account("sk-a")
    assert await bench.lightning.collect(made) == "paid"
    account = await bench.ledger.account("sk-a")
    assert (account.id, account.funded) == (made.account_id, True)
    assert await credited(bench, made) == 21_000
    stored = await bench.invoices.invoice(made.hash)
    assert stored is not None
    assert (stored.state, stored.operation_id) == ("paid", (await operations(bench, "mint"))[0][0])
    assert stored.paid_at is not None
    assert await bench.lightning.collect(stored) == "paid"
    books = await bench.books()
    assert (books.received_msat, books.open_msat, books.proofs_msat) == (21_000, 21_000, 21_000)


async def test_a_paid_invoice_tops_up(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    bench = await open_bench(mint.url, timeout_s=10)
    first = await bench.receive(await client.fund(5), new_account("key"))
    made = await invoice(bench, "t", 30, into=first.account_id)
    assert await bench.lightning.collect(made) == "paid"
    assert await credited(bench, made) == 35_000
    await bench.books()


@pytest.mark.parametrize(
    "fault",
    ["lose_answer", "lose_request", "error_500_after", "error_500_before", "error_429", "garbage",
     "wrong_signatures", "duplicate", "hang", "refuse", "late"],
)  # fmt: skip
async def test_whatever_happens_to_the_mints_answer_the_invoice_is_credited_once(
    fault: Fault, mint: EmbeddedMint, open_bench: OpenBench
) -> None:
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url)
        made = await invoice(bench, "a")
        proxy.mint_faults.append(fault)
        await bench.lightning.collect(made)
        await bench.books()
        bench = await open_bench(proxy.url)  # a new process
        assert await bench.wallet.recover() == 0
        if fault == "late":
            assert await proxy.land() == [400]  # the quote gives its ecash once
        assert await credited(bench, made) == 21_000
        books = await bench.books()
        assert (books.received_msat, books.operations_open) == (21_000, 0)
        assert len(await operations(bench, "mint")) == 1


@pytest.mark.parametrize("step", ["quoted", "journalled", "asked", "credited"])
async def test_a_node_killed_between_any_two_steps_credits_once(
    step: str, mint: EmbeddedMint, open_bench: OpenBench
) -> None:
    bench = await open_bench(mint.url, timeout_s=10)
    made = await invoice(bench, "a")
    if step != "quoted":
        keyset = await bench.wallet.active_keyset(made.mint, made.unit)
        operation = await bench.invoices.begin_mint("op", made.hash, keyset)
        assert operation is not None
        if step == "asked":
            async with MintProxy(mint.url) as proxy:
                proxy.mint_faults.append("lose_answer")
                await _send_as_is(bench, operation, proxy.url)
        if step == "credited":
            await bench.wallet.finish(operation, fresh=True)
    bench = await open_bench(mint.url, timeout_s=10)
    await bench.wallet.recover()
    stored = await bench.invoices.invoice(made.hash)
    assert stored is not None
    assert await bench.lightning.collect(stored) == "paid"
    assert await credited(bench, made) == 21_000
    assert (await bench.books()).received_msat == 21_000


async def _send_as_is(bench: Bench, operation: Operation, url: str) -> None:
    """What the operation sends, sent by a process that dies before it hears the answer."""
    import aiohttp

    from node.ecash.mint import MintClient, MintUnknown, mint_body
    from node.ecash.minting import Minting

    crossing = bench.wallet._crossing.kinds["mint"]
    assert isinstance(crossing, Minting)
    coins = crossing._derive(operation)
    async with aiohttp.ClientSession() as session:
        with pytest.raises(MintUnknown):
            await MintClient(session, url).mint(
                mint_body(operation.quote, [m for m, _, _ in coins])
            )


# -- payouts -------------------------------------------------------------------------------


async def earn(bench: Bench, client_token: str, earned: int, name: str = "buyer") -> int:
    """An account that was charged ``earned`` sat; its id."""
    account = (await bench.receive(client_token, new_account(name))).account_id
    hold = await bench.ledger.hold(
        account, HoldRequest(name, None, "", "m", PRICE, Msat(earned * 1000))
    )
    await bench.ledger.settle(hold, Msat(earned * 1000), Usage(1, 1))
    return account


async def pay(bench: Bench, bolt11: str, *, reserve: int = 0, max_fee: int = 10) -> Operation:
    payable = (await bench.lightning.payable())[0]
    return await bench.lightning.pay(
        bench.lightning.read(bolt11),
        "test",
        payable,
        max_fee=Msat(max_fee * 1000),
        reserve=Msat(reserve * 1000),
    )


async def assert_coins_are_real(bench: Bench, client: OpenPurse) -> None:
    """What the wallet calls unspent is unspent at its mint."""
    rows = await bench.database.read(
        lambda conn: conn.execute("SELECT y FROM proofs WHERE state = 'unspent'").fetchall()
    )
    purse = await client()
    assert set(await purse.mint.check_state([row["y"] for row in rows])) <= {"UNSPENT"}


async def test_a_payout_pays_the_invoice_and_books_its_cost(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    payee = await purse(fee_mint.url)
    bench = await open_bench(mint.url, timeout_s=10)
    await earn(bench, await (await purse()).fund(300), 200)
    bolt11 = (await payee.mint.mint_quote(100, "sat")).request
    operation = await pay(bench, bolt11)
    assert operation.state == "done"
    books = await bench.books()
    assert (books.payouts_msat, books.own_fees_msat) == (100_000, 1_000)  # FakeWallet takes 1 sat
    assert (books.open_msat, books.transit_msat, books.earned_msat) == (100_000, 0, 99_000)
    assert books.proofs_msat == 199_000
    await assert_coins_are_real(bench, purse)
    with pytest.raises((InvalidValue, PayoutError)):  # whoever notices first, we or the mint
        await pay(bench, bolt11)


async def test_only_what_was_earned_is_paid_out(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    payee = await purse(fee_mint.url)
    bench = await open_bench(mint.url, timeout_s=10)
    await earn(bench, await (await purse()).fund(300), 100)
    for amount, reserve in ((99, 0), (150, 0), (50, 60)):
        with pytest.raises(InsufficientBalance):
            await pay(bench, (await payee.mint.mint_quote(amount, "sat")).request, reserve=reserve)
    with pytest.raises(PayoutError):
        await pay(bench, (await payee.mint.mint_quote(50, "sat")).request, max_fee=1)
    with pytest.raises(MintLiquidity):
        await pay(bench, (await payee.mint.mint_quote(1000, "sat")).request)
    books = await bench.books()
    assert (books.payouts_msat, books.proofs_msat, books.transit_msat) == (0, 300_000, 0)
    assert await operations(bench, "melt") == []
    assert await bench.database.read(
        lambda conn: conn.execute("SELECT 1 FROM proofs WHERE state <> 'unspent'").fetchall()
    ) == []  # fmt: skip


@pytest.mark.parametrize(
    "fault",
    ["lose_answer", "lose_request", "error_500_after", "error_500_before", "error_429", "garbage",
     "wrong_signatures", "duplicate", "hang", "late"],
)  # fmt: skip
async def test_whatever_happens_to_the_mints_answer_a_payout_is_paid_once(
    fault: Fault,
    mint: EmbeddedMint,
    fee_mint: EmbeddedMint,
    purse: OpenPurse,
    open_bench: OpenBench,
) -> None:
    payee = await purse(fee_mint.url)
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url)
        made = await invoice(bench, "a", 300)
        await bench.lightning.collect(made)
        hold = await bench.ledger.hold(
            made.account_id, HoldRequest("r", None, "", "m", PRICE, Msat(200_000))
        )
        await bench.ledger.settle(hold, Msat(200_000), Usage(1, 1))
        proxy.melt_faults.append(fault)
        bolt11 = (await payee.mint.mint_quote(100, "sat")).request
        if fault == "duplicate":  # the second was refused, the first is found
            assert (await pay(bench, bolt11)).state == "done"
        elif fault == "wrong_signatures":  # caught by the DLEQ proofs; NUT-09 has the right ones
            with pytest.raises(Pending):
                await pay(bench, bolt11)
        else:
            with pytest.raises(Pending):
                await pay(bench, bolt11)
            books = await bench.books()
            assert (books.payouts_msat, books.transit_msat) == (0, 102_000)
            with pytest.raises(Pending):  # one at a time
                await pay(bench, (await payee.mint.mint_quote(10, "sat")).request)
        bench = await open_bench(proxy.url)  # a new process
        assert await bench.wallet.recover() == 0
        if fault == "late":
            assert await proxy.land() == [400]
        books = await bench.books()
        assert (books.payouts_msat, books.own_fees_msat) == (100_000, 1_000)
        assert (books.transit_msat, books.proofs_msat) == (0, 199_000)
        await assert_coins_are_real(bench, purse)


async def long_ago(bench: Bench) -> None:
    """Whatever was sent to the mint was sent long ago."""
    await bench.database.write(lambda conn: conn.execute("UPDATE operations SET unknown_at = 0"))


async def just_now(bench: Bench) -> None:
    await bench.database.write(
        lambda conn: conn.execute("UPDATE operations SET unknown_at = unixepoch()")
    )


@pytest.mark.parametrize("finder", ["recovery", "a send that shares its coins"])
async def test_a_payout_that_landed_after_it_was_given_up_is_booked(
    finder: str,
    mint: EmbeddedMint,
    fee_mint: EmbeddedMint,
    purse: OpenPurse,
    open_bench: OpenBench,
) -> None:
    payee = await purse(fee_mint.url)
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url)
        made = await invoice(bench, "a", 300)
        await bench.lightning.collect(made)
        hold = await bench.ledger.hold(
            made.account_id, HoldRequest("r", None, "", "m", PRICE, Msat(200_000))
        )
        await bench.ledger.settle(hold, Msat(200_000), Usage(1, 1))
        proxy.melt_faults.append("late")
        bolt11 = (await payee.mint.mint_quote(100, "sat")).request
        with pytest.raises(Pending):
            await pay(bench, bolt11)
        await long_ago(bench)
        assert await bench.wallet.recover() == 0
        assert (await operations(bench, "melt"))[0][1] == "failed"
        assert (await bench.books()).transit_msat == 0
        with pytest.raises(InvalidValue):  # it may yet be paid
            await pay(bench, bolt11)
        assert await proxy.land() == [200]
        await just_now(bench)
        if finder == "recovery":
            await bench.wallet.recover()
        else:
            assert (await bench.wallet.issue(made.account_id, Msat(64_000))).state == "done"
            await bench.wallet.recover()
        assert (await operations(bench, "melt"))[0][1] == "salvaged"
        books = await bench.books()
        assert (books.payouts_msat, books.own_fees_msat) == (100_000, 1_000)
        await assert_coins_are_real(bench, purse)


async def test_a_refused_payout_gives_its_coins_back_at_once(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    payee = await purse(fee_mint.url)
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url)
        made = await invoice(bench, "a", 300)
        await bench.lightning.collect(made)
        hold = await bench.ledger.hold(
            made.account_id, HoldRequest("r", None, "", "m", PRICE, Msat(200_000))
        )
        await bench.ledger.settle(hold, Msat(200_000), Usage(1, 1))
        proxy.melt_faults.append("refuse")
        bolt11 = (await payee.mint.mint_quote(100, "sat")).request
        with pytest.raises(PayoutError):
            await pay(bench, bolt11)
        books = await bench.books()
        assert (books.payouts_msat, books.transit_msat, books.proofs_msat) == (0, 0, 300_000)
        assert (await pay(bench, bolt11)).state == "done"  # surely unpaid: the same may go again


@pytest.fixture(params=["FAILED", "PENDING"])
async def troubled_mint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[str, EmbeddedMint]]:
    """A mint whose Lightning node fails, or never finishes, a payment."""
    state = str(request.param)
    settings = {"FAKEWALLET_PAY_INVOICE_STATE": state, "FAKEWALLET_PAYMENT_STATE": state}
    directory = tmp_path_factory.mktemp("troubled")
    async with EmbeddedMint(directory, settings=settings) as running:
        yield state, running


async def test_a_payment_that_fails_or_hangs_at_the_mints_lightning_node(
    troubled_mint: tuple[str, EmbeddedMint],
    fee_mint: EmbeddedMint,
    purse: OpenPurse,
    open_bench: OpenBench,
) -> None:
    state, own = troubled_mint
    payee = await purse(fee_mint.url)
    bench = await open_bench(own.url, timeout_s=10)
    await earn(bench, await (await purse(own.url)).fund(300), 200)
    bolt11 = (await payee.mint.mint_quote(100, "sat")).request
    with pytest.raises(PayoutError if state == "FAILED" else Pending):
        await pay(bench, bolt11)
    books = await bench.books()
    if state == "FAILED":
        assert (books.transit_msat, books.earned_msat, books.proofs_msat) == (0, 200_000, 300_000)
        return
    await long_ago(bench)
    assert await bench.wallet.recover() == 1  # pending is pending, however long
    assert (books.transit_msat, books.payouts_msat) == (102_000, 0)
    await own.stop()
    own.settings = {"FAKEWALLET_PAYMENT_STATE": "SETTLED"}
    await own.start()
    bench = await open_bench(own.url, timeout_s=10)
    async with asyncio.timeout(20):  # the mint looks at its payments in its own time
        while await bench.wallet.recover():
            await asyncio.sleep(0.1)
    books = await bench.books()
    assert (books.transit_msat, books.payouts_msat) == (0, 100_000)


# -- bounds --------------------------------------------------------------------------------


async def test_an_invoice_nobody_paid_leaves_nothing(
    tmp_path_factory: pytest.TempPathFactory, open_bench: OpenBench
) -> None:
    unpaid = {"FAKEWALLET_BRR": "FALSE"}
    async with EmbeddedMint(tmp_path_factory.mktemp("unpaid"), settings=unpaid) as own:
        bench = await open_bench(own.url, timeout_s=10)
        made = await invoice(bench, "a")
        assert await bench.lightning.collect(made) == "unpaid"
        await bench.invoices.forget(made.hash)
        assert await bench.invoices.invoice(made.hash) is None
        counts = await bench.database.read(
            lambda conn: conn.execute(
                "SELECT (SELECT COUNT(*) FROM accounts WHERE id >= 100),"
                " (SELECT COUNT(*) FROM api_keys)"
            ).fetchone()
        )
        assert tuple(counts) == (0, 0)


async def test_unpaid_invoices_are_bounded(mint: EmbeddedMint, open_bench: OpenBench) -> None:
    bench = await open_bench(mint.url, timeout_s=10)
    await invoice(bench, "a")
    for room in (Room(1, 5, 3600), Room(5, 1, 3600)):
        with pytest.raises(RateLimitExceeded):
            await bench.invoices.check_room("peer", room)
    await bench.invoices.check_room("another", Room(5, 1, 3600))


async def test_unpaid_invoices_count_against_what_may_be_held_of_a_mint(
    tmp_path_factory: pytest.TempPathFactory, open_bench: OpenBench
) -> None:
    unpaid = {"FAKEWALLET_BRR": "FALSE"}
    async with EmbeddedMint(tmp_path_factory.mktemp("unpaid"), settings=unpaid) as own:
        bench = await open_bench(own.url, timeout_s=10, max_balance=Msat(40_000))
        outcomes = await asyncio.gather(
            *(invoice(bench, str(n), 15) for n in range(4)), return_exceptions=True
        )
        assert sum(isinstance(outcome, Invoice) for outcome in outcomes) == 2
        assert {type(outcome) for outcome in outcomes} == {Invoice, MintFull}
        with pytest.raises(MintFull):
            await bench.lightning.quote(11)
        assert (await bench.lightning.quote(10)).amount == 10
        await bench.database.write(lambda conn: conn.execute("UPDATE invoices SET expires_at = 1"))
        assert (await bench.lightning.quote(40)).amount == 40


# -- the operator's payouts ----------------------------------------------------------------


class _Payee:
    """Has its invoices made by another mint."""

    def __init__(self, client: Purse) -> None:
        self._client = client
        self.asked: list[int] = []

    def check(self, destination: str) -> None:
        assert destination == "me@example.com"

    async def invoice(self, destination: str, amount: Msat, *, or_less: bool = False) -> PayRequest:
        self.check(destination)
        self.asked.append(amount)
        return read_bolt11((await self._client.mint.mint_quote(amount // 1000, "sat")).request)


async def test_payouts_keep_to_floor_cap_and_reserve(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    payee = _Payee(await purse(mint.url))
    bench = await open_bench(fee_mint.url, timeout_s=10)  # it takes a fee for our coins, too
    client = await purse(fee_mint.url)
    await earn(bench, await client.fund(1000), 300)
    barred: list[str] = []
    terms = PayoutTerms(
        "me@example.com", floor=Msat(120_000), cap=Msat(150_000), reserve=Msat(50_000)
    )
    payouts = Payouts(bench.lightning, payee, terms, lambda: barred[0] if barred else None)
    barred.append("insolvent")
    with pytest.raises(PayoutError, match="insolvent"):
        await payouts.once()
    barred.clear()
    first = await payouts.once()
    assert first is not None
    assert 140 <= first.amount <= 150  # the cap, fees included
    assert await payouts.once() is None  # below the floor now
    with pytest.raises(PayoutError):
        await payouts.pay("me@example.com", Msat(200_000))
    last = await payouts.pay("me@example.com")  # by hand: all but the reserve
    books = await bench.books()
    assert books.payouts_msat == (first.amount + last.amount) * 1000
    assert 50_000 <= books.earned_msat < 75_000
    assert (books.open_msat, books.solvent) == (699_000, True)
    with pytest.raises(PayoutError):
        await payouts.pay("me@example.com", Msat(50_000))
    y = await bench.database.read(
        lambda conn: conn.execute("SELECT y FROM proofs WHERE state = 'unspent'").fetchall()
    )
    assert set(await client.mint.check_state([row["y"] for row in y])) == {"UNSPENT"}


async def test_payouts_that_race_never_pay_more_than_was_earned(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    payee = await purse(fee_mint.url)
    bench = await open_bench(mint.url, timeout_s=10)
    account = await earn(bench, await (await purse()).fund(300), 150)
    invoices = [(await payee.mint.mint_quote(60, "sat")).request for _ in range(10)]
    outcomes = await asyncio.gather(
        *(pay(bench, bolt11) for bolt11 in invoices),
        *(bench.wallet.issue(account, Msat(10_000)) for _ in range(15)),
        return_exceptions=True,
    )
    paid = [o for o in outcomes[:10] if isinstance(o, Operation)]
    assert {type(o) for o in outcomes[:10]} <= {Operation, Pending, MintLiquidity}
    assert [o for o in outcomes[10:] if isinstance(o, BaseException)] == []
    books = await bench.books()
    assert books.payouts_msat == 60_000 * len(paid) <= 150_000
    assert (books.open_msat, books.issued_msat, books.solvent) == (0, 150_000, True)
    await assert_coins_are_real(bench, purse)
