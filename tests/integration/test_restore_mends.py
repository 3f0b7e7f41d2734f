"""Promise: what was under way when a backup was put back is not lost, what clients paid since is
kept for them, and the operator can credit it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from node.core.accounts import key_hash
from node.core.lightning import OPERATOR, invoice_hash
from node.core.money import Msat
from node.demo.mint import EmbeddedMint
from node.ecash.token import parse_token, serialize_token
from node.errors import MintUnreachable, NodeError, Pending, TokenAlreadySpent
from node.ledger.claims import Claim, ClaimRefused, SqliteClaims
from node.ledger.transactions import SqliteStatements
from node.ops.backup import back_up
from node.service.invoices import invoice_key
from tests.conftest import OpenPurse
from tests.fakes.mint_proxy import MintProxy
from tests.integration.bench import Bench, OpenBench, new_account
from tests.integration.test_invoices import SECRET, until, watcher
from tests.integration.test_lightning import earn, pay
from tests.integration.test_reconcile import Machine, at


@pytest.fixture
def machine(mint: EmbeddedMint, open_bench: OpenBench, tmp_path: Path) -> Machine:
    return Machine(open_bench, tmp_path / "node.db", mint.url)


@pytest.fixture
async def slow_mint(tmp_path: Path) -> AsyncIterator[EmbeddedMint]:
    """A mint whose Lightning payments stay pending until it is told otherwise."""
    async with EmbeddedMint(
        tmp_path / "slow", settings={"FAKEWALLET_PAY_INVOICE_STATE": "PENDING"}
    ) as running:
        yield running


async def payable(bench: Bench) -> int:
    return (await bench.lightning.payable())[0].available


async def watched(bench: Bench) -> int:
    row = await bench.database.read(
        lambda conn: conn.execute("SELECT COALESCE(SUM(count), 0) FROM watched_counters").fetchone()
    )
    return int(row[0])


async def time_is_over(bench: Bench) -> None:
    await bench.database.write(lambda conn: conn.execute("UPDATE watched_counters SET until = 0"))


async def assert_all_is_real(bench: Bench, client_url: str, purse: OpenPurse) -> None:
    rows = await bench.database.read(
        lambda conn: conn.execute("SELECT y FROM proofs WHERE state = 'unspent'").fetchall()
    )
    client = await purse(client_url)
    assert set(await client.mint.check_state([row["y"] for row in rows])) == {"UNSPENT"}


# -- what was under way --------------------------------------------------------------------


async def test_change_of_a_payout_that_the_backup_does_not_know_is_found_when_it_is_decided(
    slow_mint: EmbeddedMint,
    fee_mint: EmbeddedMint,
    purse: OpenPurse,
    open_bench: OpenBench,
    tmp_path: Path,
) -> None:
    machine = Machine(open_bench, tmp_path / "node.db", slow_mint.url)
    client, payee = await purse(slow_mint.url), await purse(fee_mint.url)
    bench = await machine.open()
    await earn(bench, await client.fund(300), 200)
    back_up(machine.database, machine.backup)
    request = (await payee.mint.mint_quote(100, "sat")).request
    with pytest.raises(Pending):
        await pay(bench, request)
    (outcome,) = await machine.restart()
    assert (outcome.status, outcome.lost) == ("checked", 0)
    assert outcome.pending > 0
    bench = machine.bench
    reconciler = machine.reconciler()
    (outcome,) = await reconciler.run()
    assert outcome.pending > 0
    await bench.wallet.refresh(slow_mint.url)
    late = (await bench.receive(await client.fund(9), new_account("late"))).account_id
    assert await watched(bench) > 0
    await slow_mint.stop()
    slow_mint.settings = {}
    await slow_mint.start()  # it asks after its payments
    async with asyncio.timeout(30):
        while (await machine.reconciler().run())[0].pending:
            await asyncio.sleep(0.1)
    await machine.reconciler().run()
    books = await bench.books()
    paid = 100_000  # and no more than that: what Lightning did not take came back
    assert books.proofs_msat == 309_000 - paid
    assert books.open_msat == 109_000
    assert books.equity_msat == 100_000
    await assert_all_is_real(bench, slow_mint.url, purse)
    await time_is_over(bench)
    await machine.reconciler().run()
    assert await watched(bench) == 0
    assert await machine.reconciler().run() == []
    assert (await bench.wallet.issue(late, Msat(9_000))).state == "done"


@pytest.mark.parametrize("claimed", [False, True])
async def test_a_coin_made_since_that_is_pending_during_the_check_is_not_forgotten(
    claimed: bool, mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench, tmp_path: Path
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        machine = Machine(open_bench, tmp_path / "node.db", proxy.url)
        bench = await machine.open()
        await bench.receive(at(proxy.url, await client.fund(15)), new_account("a"))
        back_up(machine.database, machine.backup)
        second = await bench.receive(at(proxy.url, await client.fund(50)), new_account("b"))
        given = (await bench.wallet.issue(second.account_id, None)).token or ""
        proxy.pending = True
        (outcome,) = await machine.restart()
        assert (outcome.status, outcome.lost, outcome.found) == ("checked", 0, 0)
        bench = machine.bench
        await time_is_over(bench)
        (outcome,) = await machine.reconciler().run()
        assert outcome.pending > 0
        assert await watched(bench) > 0  # however late it is
        proxy.pending = False
        if claimed:
            await client.receive(at(mint.url, given))
        lost = found = 0
        for _ in range(2):
            (outcome,) = await machine.reconciler().run()
            lost, found = lost + outcome.lost, found + outcome.found
        assert outcome.pending == 0
        assert found - lost == (0 if claimed else 50_000)
        assert (await bench.books()).proofs_msat == 15_000 + (0 if claimed else 50_000)
        await assert_all_is_real(bench, mint.url, purse)


async def test_a_database_put_back_by_hand_finds_the_coins_it_does_not_know(
    machine: Machine, purse: OpenPurse
) -> None:
    client = await purse()
    bench = await machine.open()
    await bench.receive(await client.fund(15), new_account("a"))
    back_up(machine.database, machine.backup)
    await bench.receive(await client.fund(50), new_account("b"))
    await bench.database.close()
    machine.database.write_bytes(machine.backup.read_bytes())  # without nodestr restore
    for suffix in ("-wal", "-shm"):
        Path(f"{machine.database}{suffix}").unlink(missing_ok=True)
    bench = await machine.open()
    await bench.receive(await client.fund(3), new_account("c"))
    (outcome,) = await machine.reconciler().run()
    assert (outcome.status, outcome.found) == ("checked", 50_000)
    assert (await bench.books()).claims_msat == 50_000
    assert await watched(bench) == 0


async def test_refused_tokens_leave_no_gap_that_ends_a_search_early(
    mint: EmbeddedMint, purse: OpenPurse, machine: Machine
) -> None:
    client = await purse()
    bench = await machine.open()
    await bench.receive(await client.fund(15), new_account("a"))
    back_up(machine.database, machine.backup)

    async def refused(number: int) -> None:
        proofs = parse_token(await client.fund(63)).proofs
        forged = [replace(p, c=proofs[0].c, dleq=None) for p in proofs]
        with pytest.raises(NodeError):
            await bench.receive(serialize_token(mint.url, "sat", forged), new_account(f"f{number}"))

    for start in range(0, 120, 20):  # always some of them at the same time
        await asyncio.gather(*(refused(start + number) for number in range(20)))
    await bench.receive(await client.fund(50), new_account("b"))
    used = await bench.database.read(
        lambda conn: conn.execute("SELECT MAX(next) FROM counters").fetchone()[0]
    )
    assert used < 20 * 40  # what twenty at one time need, not what all of them did
    (outcome,) = await machine.restart()
    assert (outcome.status, outcome.found) == ("checked", 50_000)


# -- what clients paid ---------------------------------------------------------------------


async def test_what_was_paid_since_is_kept_and_credited_once_to_who_comes(
    machine: Machine, purse: OpenPurse
) -> None:
    client = await purse()
    bench = await machine.open()
    await earn(bench, await client.fund(30), 30)
    back_up(machine.database, machine.backup)
    late = await client.fund(50)
    await bench.receive(late, new_account(key_hash("sk-late")))
    (outcome,) = await machine.restart()
    assert outcome.found == 50_000
    bench = machine.bench
    books = await bench.books()
    assert (books.claims_msat, books.earned_msat, books.equity_msat) == (50_000, 30_000, 80_000)
    assert await payable(bench) == 30_000
    with pytest.raises(TokenAlreadySpent):
        await bench.receive(late, new_account(key_hash("sk-late")))
    claims = SqliteClaims(bench.database)
    claim = Claim(key_hash("sk-late"), Msat(50_000), "")
    done = await claims.credit(claim)
    assert (done.again, done.uncovered) == (False, 0)
    again = await claims.credit(claim)
    assert (again.account_id, again.again) == (done.account_id, True)
    with pytest.raises(ClaimRefused, match="credited before"):
        await claims.credit(replace(claim, amount=Msat(20_000)))
    account = await bench.ledger.account("sk-late")
    assert (await bench.ledger.balance(account.id)).balance == 50_000
    (line,) = (await SqliteStatements(bench.database).page(account.id, None, 5)).lines
    assert (line.type, line.state, line.amount) == ("deposit", "done", 50_000)
    books = await bench.books()
    assert (books.open_msat, books.claims_msat, books.loss_msat) == (50_000, 0, 0)
    assert (books.received_msat, books.earned_msat) == (80_000, 30_000)
    token = (await bench.wallet.issue(account.id, None)).token or ""
    assert await client.receive(token) == 50


async def test_a_claim_that_nothing_covers_is_the_nodes_loss(
    machine: Machine, purse: OpenPurse
) -> None:
    client = await purse()
    bench = await machine.open()
    account = await earn(bench, await client.fund(130), 30)
    back_up(machine.database, machine.backup)
    await machine.restart()
    bench = machine.bench
    claims = SqliteClaims(bench.database)
    done = await claims.credit(Claim(key_hash("sk-late"), Msat(20_000), ""))
    assert (done.opened, done.uncovered) == (True, 20_000)
    books = await bench.books()
    assert (books.open_msat, books.equity_msat) == (120_000, 10_000)
    assert (books.loss_msat, books.earned_msat) == (20_000, 10_000)
    with pytest.raises(ClaimRefused):
        await claims.release(Msat(1))
    assert (await bench.ledger.balance(account)).balance == 100_000


async def test_released_coins_are_the_nodes_own(machine: Machine, purse: OpenPurse) -> None:
    client = await purse()
    bench = await machine.open()
    await bench.receive(await client.fund(15), new_account("a"))
    back_up(machine.database, machine.backup)
    await bench.receive(await client.fund(50), new_account("b"))
    await machine.restart()
    bench = machine.bench
    claims = SqliteClaims(bench.database)
    assert await payable(bench) == 0
    assert await claims.release(Msat(20_000)) == 20_000
    assert await payable(bench) == 20_000
    assert await claims.release(None) == 30_000
    assert await claims.release(None) == 0
    books = await bench.books()
    assert (books.claims_msat, books.earned_msat) == (0, 50_000)


async def test_an_invoice_of_before_the_backup_that_was_paid_since_is_credited_by_itself(
    machine: Machine, purse: OpenPurse
) -> None:
    bench = await machine.open()
    made = await watcher(bench).create(40, "peer", None)
    back_up(machine.database, machine.backup)
    await until(watcher(bench), made.invoice_id, "paid")
    reconciler = await machine.put_back()
    bench = machine.bench
    stored = await bench.invoices.invoice(made.invoice.hash)
    assert stored is not None
    assert await bench.lightning.collect(stored) == "unknown"  # the mint is not checked yet
    assert (await bench.books()).received_msat == 0
    with pytest.raises(ClaimRefused):
        await SqliteClaims(bench.database).credit(_claim(made.invoice_id, 40))
    (outcome,) = await reconciler.run()
    assert outcome.found == 40_000
    with pytest.raises(ClaimRefused, match="by itself"):
        await SqliteClaims(bench.database).credit(_claim(made.invoice_id, 40))
    progress = await until(watcher(bench), made.invoice_id, "paid")
    assert progress.api_key is not None
    account = await bench.ledger.account(progress.api_key)
    assert (await bench.ledger.balance(account.id)).balance == 40_000
    books = await bench.books()
    assert (books.received_msat, books.claims_msat, books.loss_msat) == (40_000, 0, 0)
    with pytest.raises(ClaimRefused, match="was credited"):
        await SqliteClaims(bench.database).credit(_claim(made.invoice_id, 40))
    client = await purse()
    assert await client.receive((await bench.wallet.issue(account.id, None)).token or "") == 40


async def test_an_operation_of_the_backup_over_an_invoice_that_another_took_is_credited(
    mint: EmbeddedMint, open_bench: OpenBench, tmp_path: Path
) -> None:
    async with MintProxy(mint.url) as proxy:
        machine = Machine(open_bench, tmp_path / "node.db", proxy.url)
        bench = await machine.open()
        made = await watcher(bench).create(40, "peer", None)
        proxy.mint_faults += ["lose_request"]
        async with asyncio.timeout(20):
            while not await bench.store.open_operations():
                await bench.lightning.collect(made.invoice)
                await asyncio.sleep(0.05)
        back_up(machine.database, machine.backup)
        (first,) = await bench.store.open_operations()
        await bench.invoices.fail_mint(first, "start_again")  # as when its keyset is retired
        await until(watcher(bench), made.invoice_id, "paid")  # by another operation
        await machine.restart()
        bench = machine.bench
        assert await bench.wallet.recover() == 0
        await until(watcher(bench), made.invoice_id, "paid")
        books = await bench.books()
        assert (books.received_msat, books.open_msat, books.operations_open) == (40_000, 40_000, 0)
        assert (books.claims_msat, books.loss_msat) == (0, 0)


async def test_an_invoice_of_after_the_backup_is_credited_by_the_operator(
    machine: Machine, purse: OpenPurse
) -> None:
    client = await purse()
    bench = await machine.open()
    await bench.receive(await client.fund(15), new_account("a"))
    back_up(machine.database, machine.backup)
    made = await watcher(bench).create(40, "peer", None)
    await until(watcher(bench), made.invoice_id, "paid")
    (outcome,) = await machine.restart()
    assert outcome.found == 40_000
    bench = machine.bench
    claims = SqliteClaims(bench.database)
    done = await claims.credit(_claim(made.invoice_id, 40))
    assert (done.opened, done.uncovered) == (True, 0)
    assert (await claims.credit(_claim(made.invoice_id, 40))).again
    progress = await watcher(bench).status(made.invoice_id)  # as the client asks
    assert (progress.status, progress.invoice.value) == ("paid", 40_000)
    account = await bench.ledger.account(progress.api_key or "")
    assert (await bench.ledger.balance(account.id)).balance == 40_000
    books = await bench.books()
    assert (books.claims_msat, books.loss_msat, books.open_msat) == (0, 0, 55_000)


def _claim(invoice_id: str, amount: int) -> Claim:
    key = key_hash(invoice_key(SECRET, invoice_id))
    return Claim(key, Msat(amount * 1000), "", invoice_id=invoice_id)


async def test_without_a_restore_nothing_is_credited(machine: Machine) -> None:
    bench = await machine.open()
    claims = SqliteClaims(bench.database)
    with pytest.raises(ClaimRefused, match="never restored"):
        await claims.credit(Claim(key_hash("sk-a"), Msat(1000), ""))
    made = await watcher(bench).create(40, "peer", None)
    assert not await bench.invoices.credit_restored(made.invoice.mint, made.invoice.quote, None, "")
    assert made.invoice.hash == invoice_hash(made.invoice_id)
    assert (await bench.books()).received_msat == 0


# -- capital -------------------------------------------------------------------------------


async def test_capital_makes_an_insolvent_node_solvent_and_can_be_paid_out(
    machine: Machine, purse: OpenPurse
) -> None:
    client = await purse()
    bench = await machine.open()
    account = (await bench.receive(await client.fund(64), new_account("a"))).account_id
    back_up(machine.database, machine.backup)
    await client.receive((await bench.wallet.issue(account, Msat(24_000))).token or "")
    await machine.restart()
    bench = machine.bench
    assert (await bench.books()).equity_msat == -24_000
    token = await client.fund(100)
    operation = await bench.receive(token, OPERATOR)
    assert operation.credit == 100_000
    books = await bench.books()
    assert (books.capital_msat, books.equity_msat, books.earned_msat) == (100_000, 76_000, 76_000)
    assert (books.received_msat, books.revenue_msat) == (164_000, 0)
    assert (await bench.receive(token, OPERATOR)).id == operation.id
    assert await payable(bench) == 76_000
    with pytest.raises(TokenAlreadySpent):
        await bench.receive(token, account)
    assert (await bench.books()).capital_msat == 100_000


async def test_capital_whose_answer_was_lost_is_booked_by_recovery(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url)
        token = at(proxy.url, await client.fund(100))
        proxy.faults.append("lose_answer")
        with pytest.raises(Pending):
            await bench.receive(token, OPERATOR)
        assert (await bench.books()).capital_msat == 0
        bench = await open_bench(proxy.url)
        assert await bench.wallet.recover() == 0
        assert (await bench.books()).capital_msat == 100_000
        await proxy.vanish()
        with pytest.raises((MintUnreachable, Pending)):
            await bench.receive(at(proxy.url, await client.fund(5)), OPERATOR)
        assert (await bench.books()).capital_msat == 100_000


@pytest.mark.parametrize("running", [False, True])
async def test_coins_that_a_search_missed_are_found_when_their_counters_come_up(
    running: bool, machine: Machine, purse: OpenPurse
) -> None:
    client = await purse()
    bench = await machine.open()
    await bench.receive(await client.fund(15), new_account("a"))
    back_up(machine.database, machine.backup)
    gap = 1000  # much more than the search goes through
    await bench.database.write(
        lambda conn: conn.execute("UPDATE counters SET next = next + ?", (gap,))
    )
    await bench.receive(await client.fund(50), new_account("b"))
    (outcome,) = await machine.restart()
    assert outcome.found == 0
    bench = machine.bench
    if running:  # the node has looked ahead when it started, and saw nothing
        await bench.receive(await client.fund(4), new_account("d"))
    await bench.database.write(  # as after some time of service
        lambda conn: conn.execute("UPDATE counters SET next = ?", (gap + 2,))
    )
    await bench.receive(await client.fund(63), new_account("c"))
    for _ in range(2):
        await machine.reconciler().run()
    books = await bench.books()
    assert (books.claims_msat, books.open_msat) == (50_000, 78_000 + running * 4_000)
    assert books.operations_open == 0
