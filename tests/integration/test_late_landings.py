"""Promise: what lands at the mint after it was given up is credited once, and ends all that waited
for it; whoever asks meanwhile is not told that the money is gone."""

from __future__ import annotations

import time

import pytest

from node.demo.mint import EmbeddedMint
from node.ecash.token import parse_token, serialize_token
from node.errors import Pending
from tests.conftest import OpenPurse
from tests.fakes.mint_proxy import MintProxy
from tests.integration.bench import OpenBench, new_account
from tests.integration.test_lightning import invoice

DAY_S = 86_400


async def test_a_token_that_landed_late_is_not_called_spent_to_who_tries_again(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url)
        await bench.wallet.refresh(proxy.url)
        proofs = parse_token(await client.fund(21)).proofs
        token = serialize_token(proxy.url, "sat", proofs)
        proxy.faults += ["late", "lose_request"]
        with pytest.raises(Pending):
            await bench.receive(token, new_account("a"))
        (first,) = await bench.store.open_operations()
        await bench.store.fail(first, "token_malformed")  # as after ABANDON_AFTER_S
        with pytest.raises(Pending):
            await bench.receive(token, new_account("a"))  # tries again
        assert await proxy.land() == [200]
        failed = await bench.store.operation(first.id)
        assert await bench.wallet._crossing.landed_late(failed)  # recovery is the first to look
        assert await bench.wallet.recover() == 0
        found = await bench.receive(token, new_account("a"))
        assert (found.id, found.state) == (first.id, "done")
        books = await bench.books()
        assert (books.received_msat, books.open_msat, books.operations_open) == (21_000, 21_000, 0)


async def test_an_invoice_whose_ecash_landed_late_leaves_no_operation_open(
    mint: EmbeddedMint, open_bench: OpenBench
) -> None:
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url)
        made = await invoice(bench, "a")
        proxy.mint_faults += ["late", "lose_request"]
        assert await bench.lightning.collect(made) == "unknown"
        (first,) = await bench.store.open_operations()
        await bench.invoices.fail_mint(first, "start_again")  # as when its keyset is retired
        stored = await bench.invoices.invoice(made.hash)
        assert stored is not None
        assert await bench.lightning.collect(stored) == "unknown"  # taken up anew
        assert len(await bench.store.open_operations()) == 1
        assert await proxy.land() == [200]
        failed = await bench.store.operation(first.id)
        minting = bench.wallet._crossing.kinds["mint"]
        assert await minting.landed_late(failed)  # recovery is the first to look
        assert await bench.wallet.recover() == 0
        books = await bench.books()
        assert (books.received_msat, books.open_msat, books.operations_open) == (21_000, 21_000, 0)
        assert await bench.invoices.exposure(made.mint) == 21_000
        again = await bench.invoices.invoice(made.hash)
        assert again is not None
        assert (again.state, again.operation_id) == ("paid", first.id)


async def test_what_was_unknown_for_days_before_it_failed_is_watched_from_then_on(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url)
        await bench.wallet.refresh(proxy.url)
        proofs = parse_token(await client.fund(21)).proofs
        token = serialize_token(proxy.url, "sat", proofs)
        proxy.faults.append("late")
        with pytest.raises(Pending):
            await bench.receive(token, new_account("a"))
        long_ago = int(time.time()) - 3 * DAY_S
        await bench.database.write(
            lambda conn: conn.execute("UPDATE operations SET unknown_at = ?", (long_ago,))
        )
        proxy.faults.append("refuse")
        await bench.wallet.recover()  # the mint is there again, knows nothing, and refuses
        (failed,) = await bench.store.failed_unknown(DAY_S)
        assert await proxy.land() == [200]
        await bench.wallet.recover()
        assert (await bench.store.operation(failed.id)).state == "done"
        assert (await bench.books()).open_msat == 21_000


async def test_a_token_that_was_given_out_pays_the_node_that_gave_it(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    bench = await open_bench(mint.url, timeout_s=10)
    account = (await bench.receive(await client.fund(63), new_account("a"))).account_id
    for number in range(4):
        given = await bench.wallet.issue(account, None)
        back = await bench.receive(given.token or "", new_account(f"b{number}"))
        assert back.value == 63_000
        account = back.account_id
    books = await bench.books()
    assert (books.open_msat, books.proofs_msat) == (63_000, 63_000)
