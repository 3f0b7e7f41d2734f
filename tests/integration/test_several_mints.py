"""Promise: a mint that is down, slow, full or has new keys takes nothing else with it."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from node.core.accounts import HoldRequest, NewAccount, key_hash
from node.core.lightning import OPERATOR
from node.core.money import Msat
from node.core.usage import Usage
from node.demo.mint import EmbeddedMint
from node.ecash.circuit import Circuit
from node.ecash.payment_request import PaymentRequest
from node.ecash.token import parse_token, serialize_token
from node.errors import MintFull, MintLiquidity, MintUnreachable, Pending
from tests.conftest import OpenPurse
from tests.fakes.mint_proxy import MintProxy
from tests.integration.bench import PRICE, Bench, OpenBench, fill_with_one_coin, new_account


def at(url: str, token: str) -> str:
    return serialize_token(url, "sat", parse_token(token).proofs)


def circuit_of(bench: Bench, url: str) -> Circuit:
    return bench.wallet.circuits()[url]


def state(circuit: Circuit) -> str:
    return circuit.state


async def half_open(circuit: Circuit) -> None:
    while state(circuit) == "open":
        await asyncio.sleep(0.01)


async def test_a_mint_that_hangs_holds_up_no_other(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client, other = await purse(), await purse(fee_mint.url)
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, fee_mint.url, timeout_s=60, cooldown_s=60)
        await bench.wallet.refresh(proxy.url)
        proxy.faults.extend(["hang"] * 4)
        stuck = [
            asyncio.create_task(
                bench.receive(at(proxy.url, await client.fund(4)), new_account(str(number)))
            )
            for number in range(4)
        ]
        while not proxy.swaps:
            await asyncio.sleep(0.01)
        for number in range(3):
            token = await other.fund(21)
            operation = await bench.receive(token, new_account(f"live {number}"))
            issued = await bench.wallet.issue(operation.account_id, Msat(7_000))
            assert issued.mint == fee_mint.url
        assert not any(task.done() for task in stuck)
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
    await bench.books()


async def test_a_mint_that_is_down_is_left_alone_and_comes_back(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, cooldown_s=0.2)
        await bench.wallet.refresh(proxy.url)
        circuit = circuit_of(bench, proxy.url)
        known_token = at(proxy.url, await client.fund(4))
        known = await bench.receive(known_token, new_account("known"))
        lost = at(proxy.url, await client.fund(8))
        proxy.faults.append("lose_answer")
        with pytest.raises(Pending):
            await bench.receive(lost, new_account("lost"))
        await proxy.vanish()
        tokens = [at(proxy.url, await client.fund(2)) for _ in range(4)]
        for number, token in enumerate(tokens[:2]):
            with pytest.raises(MintUnreachable):
                await bench.receive(token, new_account(str(number)))
        assert state(circuit) == "open"
        rows = await operations(bench)
        with pytest.raises(MintUnreachable) as refused:
            await bench.receive(tokens[2], new_account("2"))
        assert refused.value.retry_after_s
        assert await operations(bench) == rows, "nothing is journalled for a mint that is not asked"
        # what has begun before is still told, without the mint
        assert (await bench.receive(known_token, new_account("known"))).id == known.id
        assert await bench.wallet.recover() == 1
        await proxy.reappear()
        await half_open(circuit)
        assert await bench.wallet.recover() == 0
        assert state(circuit) == "closed"
        for number, token in enumerate(tokens):
            received = await bench.receive(token, new_account(str(number)))
            assert received.credit == 2_000
        assert (await bench.books()).open_msat == 20_000


async def test_a_client_asks_the_mint_again_after_a_while_before_it_risks_a_token(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, cooldown_s=0.2)
        await bench.wallet.refresh(proxy.url)
        circuit = circuit_of(bench, proxy.url)
        token = at(proxy.url, await client.fund(4))
        await proxy.vanish()
        while state(circuit) == "closed":
            with pytest.raises(MintUnreachable):
                await bench.receive(token, new_account("a"))
        await half_open(circuit)
        rows = await operations(bench)
        with pytest.raises(MintUnreachable):
            await bench.receive(token, new_account("a"))
        assert await operations(bench) == rows
        assert state(circuit) == "open"
        await proxy.reappear()
        await half_open(circuit)
        assert (await bench.receive(token, new_account("a"))).credit == 4_000


async def test_what_needs_a_swap_is_issued_by_a_mint_that_answers(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client, other = await purse(), await purse(fee_mint.url)
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, fee_mint.url, timeout_s=10, cooldown_s=60)
        await bench.wallet.refresh(proxy.url)
        await bench.wallet.refresh(fee_mint.url)
        account = await fill_with_one_coin(bench, client, proxy.url, 64)
        await proxy.vanish()
        circuit = circuit_of(bench, proxy.url)
        while state(circuit) == "closed":
            with pytest.raises(MintUnreachable):
                await bench.wallet.refresh(proxy.url)
        with pytest.raises(MintUnreachable):  # and not "this node does not have it"
            await bench.wallet.issue(account, Msat(5_000))
        await bench.receive(await other.fund(63), OPERATOR)  # nobody's but the node's own
        issued = await bench.wallet.issue(account, Msat(5_000))
        assert issued.mint == fee_mint.url
        asked = PaymentRequest.decode(bench.wallet.payment_request(Msat(1)) or "")
        assert asked.mints == (fee_mint.url,)
    await bench.books()


async def test_who_pays_with_coins_of_two_mints_takes_no_coins_of_who_pays_with_one(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client, other = await purse(), await purse(fee_mint.url)
    bench = await open_bench(mint.url, fee_mint.url)
    mixed = (await bench.receive(await client.fund(60), new_account("mixed"))).account_id
    added = await bench.receive(await other.fund(43), mixed)
    plain = (await bench.receive(await client.fund(61), new_account("plain"))).account_id
    with pytest.raises(MintLiquidity):  # no mint has all that for him
        await bench.wallet.issue(mixed, Msat(60_000 + added.credit))
    first = await bench.wallet.issue(mixed, None)
    assert (first.mint, first.value) == (mint.url, 60_000)
    second = await bench.wallet.issue(mixed, None)
    assert (second.mint, second.value) == (fee_mint.url, added.credit)
    last = await bench.wallet.issue(plain, None)
    assert (last.mint, last.value) == (mint.url, 61_000)
    for operation, wallet in ((first, client), (second, other), (last, client)):
        assert await wallet.receive(operation.token or "")
    assert (await bench.books()).open_msat == 0


async def test_no_more_of_a_mint_is_held_than_its_limit(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, timeout_s=30, max_balance=Msat(40_000))
        tokens = [at(proxy.url, await client.fund(8)) for _ in range(9)]
        results = await asyncio.gather(
            *(bench.receive(t, new_account(str(n))) for n, t in enumerate(tokens)),
            return_exceptions=True,
        )
        assert sum(isinstance(result, MintFull) for result in results) == 4
        done = [n for n, result in enumerate(results) if not isinstance(result, BaseException)]
        assert len(done) == 5
        assert (await bench.books()).open_msat == 40_000
        swaps = proxy.swaps
        full = next(n for n in range(9) if n not in done)
        with pytest.raises(MintFull):
            await bench.receive(tokens[full], new_account(str(full)))
        again = await bench.receive(tokens[done[0]], new_account(str(done[0])))
        assert again.credit == 8_000
        assert proxy.swaps == swaps
        await bench.wallet.issue(again.account_id, Msat(8_000))
        assert (await bench.receive(tokens[full], new_account("x"))).credit == 8_000


async def operations(bench: Bench) -> int:
    return await bench.database.read(
        lambda conn: conn.execute("SELECT COUNT(*) FROM operations").fetchone()[0]
    )


class RotatingMint(EmbeddedMint):
    """A mint whose operator makes a new keyset; the old one stays, inactive."""

    generation = 0

    async def rotate(self) -> None:
        """As by the mint's management interface, which is not installed."""
        await self.stop()
        with closing(sqlite3.connect(self.directory / "database" / "mint.sqlite3")) as database:
            database.execute("UPDATE keysets SET active = 0")
            database.commit()
        self.generation += 1
        await self.start()

    async def __aenter__(self) -> RotatingMint:
        await self.start()
        return self

    def _environment(self) -> dict[str, str]:
        path = f"m/0'/0'/{self.generation}'"
        return super()._environment() | {
            "MINT_DERIVATION_PATH": path,
            "MINT_DERIVATION_PATH_LIST": f'["{path}"]',
        }


@pytest.mark.parametrize("fee_ppk", [0, 100])
async def test_after_a_rotation_old_coins_come_in_and_go_out(
    fee_ppk: int, tmp_path: Path, purse: OpenPurse, open_bench: OpenBench
) -> None:
    fee = 1 if fee_ppk else 0
    async with RotatingMint(tmp_path / "mint", input_fee_ppk=fee_ppk) as mint:
        client = await purse(mint.url)
        bench = await open_bench(mint.url, timeout_s=10, cooldown_s=0.2)
        before = (await bench.receive(await client.fund(60), new_account("a"))).account_id
        old_tokens = [await client.fund(20) for _ in range(3)]
        (old_id,) = {k.id for k in await client.mint.keysets() if k.active}
        await mint.rotate()
        listed = {k.id: k.active for k in await client.mint.keysets()}
        assert listed[old_id] is False
        assert list(listed.values()).count(True) == 1
        # the node has not heard of it: its first swap is refused, and then goes through
        received = await bench.receive(old_tokens[0], new_account("b"))
        assert received.credit == (20 - fee) * 1000
        assert {output.keyset_id for output in received.outputs} == listed.keys() - {old_id}
        # a new process, which never saw the old keyset's keys in this life
        bench = await open_bench(mint.url, timeout_s=10)
        await bench.wallet.refresh(mint.url)
        await bench.receive(old_tokens[1], new_account("c"))
        for amount in (7, 30):  # old coins of the inventory, given out or swapped
            issued = await bench.wallet.issue(before, Msat(amount * 1000))
            assert await client.receive(issued.token or "") == amount - fee
        paid = await bench.receive(old_tokens[2], NewAccount("request", {"r": "request"}))
        hold = await bench.ledger.hold(
            paid.account_id, HoldRequest("id", "x-cashu", "", "m", PRICE, Msat(15_000))
        )
        closed = await bench.wallet.settle_and_close(
            paid.account_id, hold, Msat(3_000), Usage(1, 1)
        )
        assert closed.change is not None
        assert parse_token(closed.change.token or "").amount == 20 - fee - 3
        await bench.books()


async def test_keys_of_an_old_keyset_are_asked_for_when_its_coins_come(
    tmp_path: Path, purse: OpenPurse, open_bench: OpenBench
) -> None:
    async with RotatingMint(tmp_path / "mint") as mint:
        client = await purse(mint.url)
        token = await client.fund(20)
        await mint.rotate()
        bench = await open_bench(mint.url, timeout_s=10, require_dleq=True)
        assert (await bench.receive(token, new_account("a"))).credit == 20_000


async def test_nobody_takes_the_coins_that_anothers_change_needs(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    """A withdrawal at another mint gets what is not owed to those who paid with that mint's."""
    a, b = mint.url, fee_mint.url
    at_a, at_b = await purse(a), await purse(b)
    bench = await open_bench(a, b)
    wallet = bench.wallet
    x = (await bench.receive(await at_a.fund(100), new_account("x"))).account_id
    y = (await bench.receive(await at_b.fund(64), new_account("y"))).account_id
    request = NewAccount("request", {key_hash("r", "request"): "request"})
    r = (await bench.receive(await at_b.fund(64), request)).account_id
    with pytest.raises(MintLiquidity):
        await wallet.issue(x, Msat(99_000), only=b)
    with pytest.raises(MintLiquidity):
        await wallet.issue(y, Msat(60_000), only=a)
    closed = await wallet.close_idle(r)
    assert not closed.open
    assert closed.change is not None

    moved = await wallet.issue(x, Msat(40_000))
    assert moved.mint == a
    books = await bench.books()
    assert books.problems() == []
