"""Promise: an old backup, put back, credits nothing twice, gives no coin out twice, and says what
was lost and found in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.core.money import Msat
from node.demo.mint import EmbeddedMint
from node.ecash.reconcile import Outcome, Reconciler
from node.ecash.token import parse_token, serialize_token
from node.errors import MintLiquidity, MintUnreachable, Pending, TokenAlreadySpent
from node.ledger.books import Books, read_books
from node.ledger.reconciling import SqliteReconcileStore, read_mark
from node.ops.backup import back_up, restore
from tests.conftest import OpenPurse
from tests.fakes.mint_proxy import MintProxy
from tests.integration.bench import Bench, OpenBench, fill_with_one_coin, new_account

GAP = 400
"""A search ends sooner than a node's, to save time."""


class Machine:
    """A wallet whose database is backed up and put back."""

    def __init__(self, open_bench: OpenBench, database: Path, *urls: str) -> None:
        self._open = open_bench
        self._urls = urls
        self.database = database
        self.backup = database.parent / "backup.db"
        self.bench: Bench

    async def open(self) -> Bench:
        self.bench = await self._open(*self._urls, timeout_s=10)
        return self.bench

    async def put_back(self) -> Reconciler:
        """The node is restored and starts; nothing has been asked yet."""
        await self.bench.database.close()
        restore(self.database, self.backup, force=True)
        await self.open()
        reconciler = self.reconciler()
        assert await reconciler.begin() == list(self._urls)
        return reconciler

    def reconciler(self) -> Reconciler:
        """As a new process has it: it looks at everything at once."""
        return self.bench.wallet.reconciler(SqliteReconcileStore(self.bench.database), GAP)

    async def restart(self) -> list[Outcome]:
        """... recovery is driven, then the mints are asked."""
        reconciler = await self.put_back()
        await self.bench.wallet.recover()
        return await reconciler.run()

    async def suspects(self) -> set[int]:
        rows = await self.bench.database.read(
            lambda conn: conn.execute(
                "SELECT suspect FROM proofs WHERE state = 'unspent'"
            ).fetchall()
        )
        return {row["suspect"] for row in rows}

    async def marked(self) -> bool:
        return await self.bench.database.read(read_mark) is not None


@pytest.fixture
def machine(mint: EmbeddedMint, open_bench: OpenBench, tmp_path: Path) -> Machine:
    return Machine(open_bench, tmp_path / "node.db", mint.url)


def at(url: str, token: str) -> str:
    """The same coins, of a mint known by another address."""
    return serialize_token(url, "sat", parse_token(token).proofs)


async def test_nothing_happened_since(machine: Machine, purse: OpenPurse) -> None:
    client = await purse()
    bench = await machine.open()
    account = (await bench.receive(await client.fund(100), new_account("a"))).account_id
    back_up(machine.database, machine.backup)
    (outcome,) = await machine.restart()
    assert (outcome.status, outcome.lost, outcome.found) == ("checked", 0, 0)
    assert not await machine.marked()
    token = (await machine.bench.wallet.issue(account, Msat(37_000))).token or ""
    assert await client.receive(token) == 37
    assert (await machine.bench.books()).solvent


async def test_what_was_spent_since_is_a_loss_and_what_was_received_is_found(
    machine: Machine, purse: OpenPurse
) -> None:
    client = await purse()
    bench = await machine.open()
    account = (await bench.receive(await client.fund(100), new_account("a"))).account_id
    back_up(machine.database, machine.backup)
    withdrawn = (await bench.wallet.issue(account, Msat(37_000))).token or ""
    assert await client.receive(withdrawn) == 37
    late = await client.fund(50)
    await bench.receive(late, new_account("b"))
    (outcome,) = await machine.restart()
    bench = machine.bench
    assert outcome.found - outcome.lost == 50_000 - 37_000
    books = await bench.books()
    assert (books.open_msat, books.proofs_msat, books.loss_msat) == (100_000, 113_000, -13_000)
    assert books.equity_msat == 13_000
    with pytest.raises(TokenAlreadySpent):
        await bench.receive(late, new_account("again"))
    assert (await bench.books()).open_msat == 100_000
    rest = (await bench.wallet.issue(account, None)).token or ""
    assert await client.receive(rest) == 100
    assert (await bench.books()).proofs_msat == 13_000


async def test_more_paid_out_than_is_left_is_insolvency(machine: Machine, purse: OpenPurse) -> None:
    client = await purse()
    bench = await machine.open()
    account = (await bench.receive(await client.fund(64), new_account("a"))).account_id
    back_up(machine.database, machine.backup)
    await client.receive((await bench.wallet.issue(account, Msat(24_000))).token or "")
    (outcome,) = await machine.restart()
    books = await machine.bench.books()
    assert books.problems() == []
    assert (books.solvent, books.equity_msat) == (False, -24_000)
    assert outcome.lost - outcome.found == 24_000


async def test_a_coin_given_out_since_is_not_given_to_another(
    machine: Machine, purse: OpenPurse
) -> None:
    client = await purse()
    bench = await machine.open()
    account = (await bench.receive(await client.fund(15), new_account("a"))).account_id
    back_up(machine.database, machine.backup)
    unclaimed = (await bench.wallet.issue(account, Msat(7_000))).token or ""
    (outcome,) = await machine.restart()
    bench = machine.bench
    assert (outcome.lost, outcome.found) == (0, 0)
    assert await machine.suspects() == {1}
    other = (await bench.wallet.issue(account, Msat(7_000))).token or ""
    given = {proof.secret for proof in parse_token(unclaimed).proofs}
    assert not given & {proof.secret for proof in parse_token(other).proofs}
    assert await client.receive(other) == 7
    await bench.books()


async def test_a_coin_claimed_after_the_check_costs_the_node_and_blocks_nobody(
    machine: Machine, purse: OpenPurse
) -> None:
    client = await purse()
    bench = await machine.open()
    account = (await bench.receive(await client.fund(15), new_account("a"))).account_id
    back_up(machine.database, machine.backup)
    unclaimed = (await bench.wallet.issue(account, Msat(7_000))).token or ""
    await machine.restart()
    bench = machine.bench
    assert await client.receive(unclaimed) == 7
    with pytest.raises(Pending):
        await bench.wallet.issue(account, Msat(9_000))
    assert await bench.wallet.recover() == 1  # could be our own request, still on its way
    await bench.database.write(lambda conn: conn.execute("UPDATE operations SET unknown_at = 0"))
    assert await bench.wallet.recover() == 0
    books = await bench.books()
    assert books.loss_msat > 0
    assert books.open_msat == 15_000
    assert books.proofs_msat == 15_000 - books.loss_msat


async def test_an_operation_open_in_the_backup_is_finished_once(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench, tmp_path: Path
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        machine = Machine(open_bench, tmp_path / "node.db", proxy.url)
        bench = await machine.open()
        await bench.wallet.refresh(proxy.url)
        token = at(proxy.url, await client.fund(21))
        proxy.faults.append("lose_answer")
        with pytest.raises(Pending):
            await bench.receive(token, new_account("a"))
        back_up(machine.database, machine.backup)
        assert await bench.wallet.recover() == 0
        operation = await bench.receive(token, new_account("a"))
        given = (await bench.wallet.issue(operation.account_id, Msat(5_000))).token or ""
        assert await client.receive(at(mint.url, given)) == 5
        reconciler = await machine.put_back()
        (outcome,) = await reconciler.run()
        assert outcome.status == "waits"  # for recovery, which has not run yet
        assert machine.bench.wallet.sources() == []
        await machine.bench.wallet.recover()
        (outcome,) = await reconciler.run()
        books = await machine.bench.books()
        assert (books.open_msat, books.received_msat) == (21_000, 21_000)
        assert outcome.lost - outcome.found == 5_000
        assert await machine.suspects() == {1}


async def test_a_mint_that_is_not_there_stays_out_of_use_until_it_is(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench, tmp_path: Path
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        machine = Machine(open_bench, tmp_path / "node.db", proxy.url, mint.url)
        bench = await machine.open()
        token = at(proxy.url, await client.fund(15))
        account = (await bench.receive(token, new_account("a"))).account_id
        back_up(machine.database, machine.backup)
        spent = (await bench.wallet.issue(account, Msat(7_000), only=proxy.url)).token or ""
        assert await client.receive(at(mint.url, spent)) == 7
        await proxy.vanish()
        outcomes = {outcome.mint: outcome.status for outcome in await machine.restart()}
        assert outcomes == {proxy.url: "unreachable", mint.url: "checked"}
        bench = machine.bench
        assert await machine.marked()
        assert {source.mint for source in bench.wallet.sources()} == {mint.url}
        await proxy.reappear()
        with pytest.raises(MintUnreachable):
            await bench.receive(at(proxy.url, await client.fund(3)), new_account("b"))
        reconciler = machine.reconciler()
        outcome = next(o for o in await reconciler.run() if o.mint == proxy.url)
        assert (outcome.status, outcome.lost) == ("checked", 7_000)
        assert not await machine.marked()
        assert {source.mint for source in bench.wallet.sources()} == {proxy.url, mint.url}
        assert await reconciler.run() == []
        await bench.books()


async def test_a_coin_in_a_payment_of_somebody_is_parked_until_the_mint_decides(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench, tmp_path: Path
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        machine = Machine(open_bench, tmp_path / "node.db", proxy.url)
        bench = await machine.open()
        token = at(proxy.url, await client.fund(15))
        account = (await bench.receive(token, new_account("a"))).account_id
        back_up(machine.database, machine.backup)
        given = (await bench.wallet.issue(account, Msat(7_000))).token or ""
        proxy.pending = True
        (outcome,) = await machine.restart()
        assert (outcome.status, outcome.pending > 0, outcome.lost) == ("checked", True, 0)
        bench = machine.bench
        assert not await machine.marked()  # the mint is checked, the coins wait by themselves
        with pytest.raises(MintLiquidity):
            await bench.wallet.issue(account, Msat(1_000))
        assert (await bench.books()).proofs_msat == 15_000
        await machine.open()  # a restart forgets nothing
        bench = machine.bench
        reconciler = machine.reconciler()
        assert await reconciler.begin() == []
        (outcome,) = await reconciler.run()
        assert outcome.pending > 0
        proxy.pending = False
        assert await client.receive(at(mint.url, given)) == 7
        (outcome,) = await reconciler.run()
        assert (outcome.pending, outcome.lost) == (0, 7_000)
        assert await reconciler.run() == []
        assert (await bench.books()).proofs_msat == 8_000
        await bench.wallet.refresh(proxy.url)
        assert (await bench.wallet.issue(account, Msat(8_000))).state == "done"


async def test_at_a_mint_with_fees_the_books_still_say_what_the_mint_says(
    fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench, tmp_path: Path
) -> None:
    client = await purse(fee_mint.url)
    machine = Machine(open_bench, tmp_path / "node.db", fee_mint.url)
    bench = await machine.open()
    account = await fill_with_one_coin(bench, client, fee_mint.url, 64)
    back_up(machine.database, machine.backup)
    token = (await bench.wallet.issue(account, Msat(20_000))).token or ""  # by a swap
    assert await client.receive(token) == 19
    before = await bench.books()
    (outcome,) = await machine.restart()
    books = await machine.bench.books()
    assert outcome.status == "checked"
    assert books.proofs_msat == before.proofs_msat  # what is at the mint, whatever we forgot
    rows = await machine.bench.database.read(
        lambda conn: conn.execute("SELECT y FROM proofs WHERE state = 'unspent'").fetchall()
    )
    assert set(await client.mint.check_state([row["y"] for row in rows])) == {"UNSPENT"}


async def test_checking_twice_changes_nothing(machine: Machine, purse: OpenPurse) -> None:
    client = await purse()
    bench = await machine.open()
    await bench.receive(await client.fund(30), new_account("a"))
    back_up(machine.database, machine.backup)
    await bench.receive(await client.fund(12), new_account("b"))
    await machine.restart()
    before = await machine.bench.books()
    assert before.loss_msat == -12_000
    assert read_books(machine.database) == before
    back_up(machine.database, machine.backup.with_name("second.db"))
    machine.backup = machine.backup.with_name("second.db")
    (outcome,) = await machine.restart()
    assert (outcome.lost, outcome.found) == (0, 0)
    assert _money(await machine.bench.books()) == _money(before)


def _money(books: Books) -> tuple[int, ...]:
    return books.open_msat, books.proofs_msat, books.loss_msat
