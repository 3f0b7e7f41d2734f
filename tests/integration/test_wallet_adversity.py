"""Promise: late swaps, backups, locked coins, fees and failing disks cost nobody a sat."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from coincurve import PrivateKey, PublicKeyXOnly

from node.core.accounts import HoldRequest, NewAccount
from node.core.ecash import Token
from node.core.money import Msat
from node.core.usage import Usage
from node.demo.mint import EmbeddedMint
from node.ecash.token import parse_token, serialize_token
from node.errors import (
    InsufficientBalance,
    MintUnreachable,
    Pending,
    TokenAlreadySpent,
    TokenMalformed,
)
from node.ledger.database import StorageError
from node.service.accounts import coins_digest
from tests.conftest import OpenPurse
from tests.fakes.mint_proxy import MintProxy
from tests.integration.bench import PRICE, Bench, OpenBench, fill_with_one_coin, new_account


def at(url: str, token: str) -> str:
    """The same coins, of a mint known by another address."""
    return serialize_token(url, "sat", parse_token(token).proofs)


async def long_ago(bench: Bench) -> None:
    """Whatever was sent to the mint was sent long ago."""
    await bench.database.write(lambda conn: conn.execute("UPDATE operations SET unknown_at = 0"))


async def just_now(bench: Bench) -> None:
    await bench.database.write(
        lambda conn: conn.execute("UPDATE operations SET unknown_at = unixepoch()")
    )


async def states(bench: Bench) -> list[str]:
    rows = await bench.database.read(
        lambda conn: conn.execute("SELECT state FROM operations ORDER BY rowid").fetchall()
    )
    return [row["state"] for row in rows]


async def test_a_refusal_is_no_proof_that_an_earlier_request_will_not_land(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url)
        await bench.wallet.refresh(proxy.url)
        token = at(proxy.url, await client.fund(21))
        proxy.faults.extend(["late", "refuse"])
        with pytest.raises(Pending):
            await bench.receive(token, new_account("a"))
        assert await bench.wallet.recover() == 1  # refused, and still not given up
        assert await proxy.land() == [200]
        assert await bench.wallet.recover() == 0
        assert (await bench.books()).open_msat == 21_000


@pytest.mark.parametrize("finder", ["the client", "recovery"])
async def test_a_receive_that_landed_after_it_was_given_up_is_credited(
    finder: str, mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url)
        await bench.wallet.refresh(proxy.url)
        token = at(proxy.url, await client.fund(21))
        proxy.faults.extend(["late", "refuse"])
        with pytest.raises(Pending):
            await bench.receive(token, new_account("a"))
        await long_ago(bench)
        assert await bench.wallet.recover() == 0
        assert await states(bench) == ["failed"]
        await just_now(bench)
        assert await proxy.land() == [200]
        if finder == "recovery":
            await bench.wallet.recover()
            assert (await bench.books()).open_msat == 21_000
        operation = await bench.receive(token, new_account("a"))
        assert (operation.state, operation.credit) == ("done", 21_000)
        assert (await bench.books()).open_msat == 21_000


@pytest.mark.parametrize("finder", ["the client", "recovery"])
async def test_a_send_that_landed_after_it_was_given_up_leaves_no_dead_coin(
    finder: str, mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url)
        await bench.wallet.refresh(proxy.url)
        account = await fill_with_one_coin(bench, client, proxy.url, 64)
        proxy.faults.extend(["late", "refuse"])
        with pytest.raises(Pending):
            await bench.wallet.issue(account, Msat(5_000))
        await long_ago(bench)
        await bench.wallet.recover()
        assert (await bench.ledger.balance(account)).balance == 64_000
        assert (await states(bench))[-1] == "failed"
        await just_now(bench)
        assert await proxy.land() == [200]
        if finder == "recovery":
            await bench.wallet.recover()
            assert (await states(bench))[-1] == "salvaged"
        before = await bench.books()
        # the coins of the failed send are dead now; what is given out must be good
        for amount in (32, 5, 27):
            issued = await bench.wallet.issue(account, Msat(amount * 1000))
            assert await client.receive(at(mint.url, issued.token or "")) == amount
        after = await bench.books()
        assert after.issued_msat - before.issued_msat == 64_000


async def test_coins_of_a_failed_send_are_not_given_out_as_they_are(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url)
        await bench.wallet.refresh(proxy.url)
        account = await fill_with_one_coin(bench, client, proxy.url, 64)
        proxy.faults.extend(["late", "refuse"])
        with pytest.raises(Pending):
            await bench.wallet.issue(account, Msat(5_000))
        await long_ago(bench)
        await bench.wallet.recover()
        suspects = await bench.database.read(
            lambda conn: conn.execute("SELECT secret FROM proofs WHERE suspect").fetchall()
        )
        assert suspects
        given: set[str] = set()
        for amount in (32, 16, 8, 4, 2, 1, 1):
            issued = await bench.wallet.issue(account, Msat(amount * 1000))
            given |= {proof.secret for proof in parse_token(issued.token or "").proofs}
        assert not given & {row["secret"] for row in suspects}
        await bench.books()


async def test_a_mint_that_vanishes_while_it_is_asked_what_happened_proves_nothing(
    tmp_path: Path, purse: OpenPurse, open_bench: OpenBench
) -> None:
    async with EmbeddedMint(tmp_path / "own") as own:
        client = await purse(own.url)
        async with MintProxy(own.url) as proxy:
            bench = await open_bench(proxy.url)
            await bench.wallet.refresh(proxy.url)
            token = at(proxy.url, await client.fund(21))
            proxy.faults.append("duplicate")
            proxy.vanish_after_swap = True
            with pytest.raises(Pending):
                await bench.receive(token, new_account("a"))
            assert await states(bench) == ["intent"]
            await proxy.reappear()
            assert await bench.wallet.recover() == 0
            assert (await bench.books()).open_msat == 21_000


async def test_a_stale_list_of_open_operations_never_sends_what_has_failed(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url)
        await bench.wallet.refresh(proxy.url)
        token = at(proxy.url, await client.fund(21))
        proxy.faults.append("late")
        with pytest.raises(Pending):
            await bench.receive(token, new_account("a"))
        stale = (await bench.store.open_operations())[0]
        proxy.faults.append("refuse")
        await long_ago(bench)
        await bench.wallet.recover()
        swaps = proxy.swaps
        assert (await bench.wallet.finish(stale)).state == "failed"
        assert proxy.swaps == swaps


async def test_a_database_from_a_backup_neither_repeats_counters_nor_credits_spent_coins(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    bench = await open_bench(mint.url, timeout_s=10)
    await bench.receive(await client.fund(15), new_account("before"))
    backup = await bench.database.read(lambda conn: conn.serialize())
    lost = await client.fund(31)
    await bench.receive(lost, new_account("after"))
    path = Path(
        await bench.database.read(
            lambda conn: conn.execute("PRAGMA database_list").fetchone()["file"]
        )
    )
    await bench.database.close()
    for leftover in path.parent.glob("node.db-*"):
        leftover.unlink()
    path.write_bytes(backup)
    bench = await open_bench(mint.url, timeout_s=10)
    with pytest.raises(TokenAlreadySpent):
        await bench.receive(lost, new_account("thief"))
    fresh = await bench.receive(await client.fund(31), new_account("victim"))
    assert fresh.credit == 31_000
    assert (await bench.books()).open_msat == 46_000


async def test_change_is_kept_for_its_owner_when_no_mint_can_give_it(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    bench = await open_bench(mint.url, timeout_s=10)
    operation = await bench.receive(await client.fund(60), NewAccount("request", {"r": "request"}))
    hold = await bench.ledger.hold(
        operation.account_id, HoldRequest("id", "x-cashu", "", "m", PRICE, Msat(30_000))
    )
    bench = await open_bench()  # no mint is configured any more
    closed = await bench.wallet.settle_and_close(
        operation.account_id, hold, Msat(10_300), Usage(1, 1)
    )
    assert (closed.cost, closed.dust, closed.change, closed.open) == (10_300, 0, None, True)
    assert (await bench.books()).open_msat == 49_700
    bench = await open_bench(mint.url, timeout_s=10)
    later = await bench.wallet.close_idle(operation.account_id)
    assert later.change is not None
    assert await client.receive(later.change.token or "") == 49
    assert (await bench.books()).dust_msat == 700


async def test_less_than_a_sat_left_at_a_node_with_an_msat_mint_is_settled(
    tmp_path: Path, purse: OpenPurse, open_bench: OpenBench
) -> None:
    async with EmbeddedMint(tmp_path / "both", units=("sat", "msat")) as both:
        client = await purse(both.url)
        bench = await open_bench(both.url, timeout_s=10, units=("sat", "msat"))
        operation = await bench.receive(
            await client.fund(10), NewAccount("request", {"r": "request"})
        )
        hold = await bench.ledger.hold(
            operation.account_id, HoldRequest("id", "x-cashu", "", "m", PRICE, Msat(10_000))
        )
        closed = await bench.wallet.settle_and_close(
            operation.account_id, hold, Msat(9_600), Usage(1, 1)
        )
        assert (closed.cost, closed.dust, closed.change) == (9_600, 400, None)
        msat_client = await purse(both.url, unit="msat")
        paid = await bench.receive(
            await msat_client.fund(20_000), NewAccount("request", {"s": "request"})
        )
        hold = await bench.ledger.hold(
            paid.account_id, HoldRequest("id", "x-cashu", "", "m", PRICE, Msat(12_000))
        )
        closed = await bench.wallet.settle_and_close(
            paid.account_id, hold, Msat(10_300), Usage(1, 1)
        )
        assert closed.change is not None
        assert (closed.change.unit, closed.change.amount, closed.dust) == ("msat", 9_700, 0)
        books = await bench.books()
        assert (books.holds_open, books.revenue_msat) == (0, 19_900)


async def test_a_settlement_whose_commit_fails_is_tried_again(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    bench = await open_bench(mint.url, timeout_s=10)
    account = (await bench.receive(await client.fund(9), new_account("a"))).account_id
    hold = await bench.ledger.hold(account, HoldRequest("id", None, "", "m", PRICE, Msat(5_000)))

    def spoil(conn: sqlite3.Connection) -> None:
        conn.execute("PRAGMA defer_foreign_keys = ON")
        conn.execute("INSERT INTO api_keys VALUES ('nobody', 99999, 'spend')")

    spoiled = bench.database.write(spoil)
    settling = bench.ledger.settle(hold, Msat(1_000), Usage(1, 1))  # in the same transaction
    with pytest.raises(StorageError):
        await spoiled
    assert await asyncio.wait_for(settling, 10) == 1_000
    books = await bench.books()
    assert (books.revenue_msat, books.holds_open) == (1_000, 0)


async def test_the_mints_fees_never_make_the_node_owe_more_than_it_has(
    fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse(fee_mint.url)
    bench = await open_bench(fee_mint.url, timeout_s=10)
    account = (await bench.receive(await client.fund(100), new_account("a"))).account_id
    received = 0
    while True:
        try:
            issued = await bench.wallet.issue(account, Msat(3_000))
        except InsufficientBalance:
            break
        received += issued.amount
        books = await bench.books()
        assert books.proofs_msat >= books.open_msat + books.transit_msat
    rest = (await bench.ledger.balance(account)).balance
    if rest:
        received += (await bench.wallet.issue(account, None)).amount
    books = await bench.books()
    assert books.own_fees_msat == books.revenue_msat  # each fee was charged to who caused it
    assert received * 1000 + books.revenue_msat + books.open_msat == 99_000


async def test_a_token_that_fees_bring_below_the_price_is_not_spent(
    fee_mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse(fee_mint.url)
    bench = await open_bench(fee_mint.url, timeout_s=10)
    token = await client.fund(60)
    with pytest.raises(InsufficientBalance):
        await bench.receive(token, new_account("a"), at_least=Msat(60_000))
    assert not await client.spent(token)
    assert await bench.store.open_operations() == []


async def test_a_locked_coin_without_its_signature_opens_nothing(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    bench = await open_bench(mint.url, timeout_s=10)
    owner = PrivateKey()
    locked = await client.fund(20, lock_to=owner.public_key.format().hex())
    signed = _sign(parse_token(locked), owner)
    assert coins_digest(parse_token(locked)) != coins_digest(parse_token(signed))
    with pytest.raises(TokenMalformed):  # without its witness it is not even offered to the mint
        await bench.receive(locked, new_account("thief"))
    assert (await bench.receive(signed, new_account("owner"))).credit == 20_000
    with pytest.raises(TokenMalformed):
        await bench.receive(locked, new_account("owner"))
    assert (await bench.receive(signed, new_account("owner"))).credit == 20_000


def _sign(token: Token, key: PrivateKey) -> str:
    proofs = []
    for proof in token.proofs:
        message = hashlib.sha256(proof.secret.encode()).digest()
        signature = key.sign_schnorr(message, secrets.token_bytes(32))
        assert PublicKeyXOnly(key.public_key_xonly.format()).verify(signature, message)
        proofs.append(replace(proof, witness=json.dumps({"signatures": [signature.hex()]})))
    return serialize_token(token.mint, token.unit, proofs)


async def test_recovery_at_a_dead_mint_does_not_delay_another(
    tmp_path: Path, mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as slow, MintProxy(mint.url) as quick:
        bench = await open_bench(slow.url, quick.url)
        for proxy in (slow, quick):
            await bench.wallet.refresh(proxy.url)
        for number, proxy in enumerate([slow, slow, quick]):
            proxy.faults.append("lose_request")
            with pytest.raises(Pending):
                token = at(proxy.url, await client.fund(3))
                await bench.receive(token, new_account(f"a{number}"))
        slow.faults.extend(["hang", "hang"])
        recovering = asyncio.create_task(bench.wallet.recover())
        async with asyncio.timeout(5):
            while (await bench.books()).open_msat != 3_000:
                await asyncio.sleep(0.01)
        assert not recovering.done()
        assert await recovering == 2


async def test_a_mint_that_never_answered_is_unreachable_and_nothing_is_begun(
    purse: OpenPurse, open_bench: OpenBench
) -> None:
    nowhere = "http://127.0.0.1:9"
    bench = await open_bench(nowhere)
    with pytest.raises(MintUnreachable):
        await bench.receive(at(nowhere, await (await purse()).fund(5)), new_account("a"))
    assert await states(bench) == []


async def test_refused_tokens_leave_no_gap_in_the_counters(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    bench = await open_bench(mint.url, timeout_s=10)
    await bench.receive(await client.fund(7), new_account("a"))
    before = await _counters(bench)
    spent = await client.fund(8)
    await client.receive(spent)
    with pytest.raises(TokenAlreadySpent):
        await bench.receive(spent, new_account("b"))
    good = parse_token(await client.fund(8))
    forged = [replace(p, secret=p.secret[::-1], dleq=None) for p in good.proofs]
    with pytest.raises(TokenMalformed):
        await bench.receive(serialize_token(mint.url, "sat", forged), new_account("c"))
    assert await _counters(bench) == before
    await bench.receive(await client.fund(9), new_account("d"))
    assert (await bench.books()).open_msat == 16_000


async def _counters(bench: Bench) -> list[int]:
    rows = await bench.database.read(
        lambda conn: conn.execute("SELECT next FROM counters").fetchall()
    )
    return [row["next"] for row in rows]
