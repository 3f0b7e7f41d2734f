"""Promise: an invoice is credited whenever it is paid, watched or not, and forgotten when never."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from node.core.lightning import invoice_hash
from node.demo.mint import EmbeddedMint
from node.ecash.mint import MintClient
from node.errors import (
    IdempotencyConflict,
    InvalidApiKey,
    InvalidValue,
    MintUnreachable,
    NotFound,
    RateLimitExceeded,
)
from node.service.invoices import InvoiceLimits, Invoices, Progress
from tests.fakes.mint_proxy import MintProxy
from tests.integration.bench import Bench, OpenBench

SECRET = b"s" * 32
UNPAID = {"FAKEWALLET_BRR": "FALSE"}


@pytest.fixture
async def slow_payers(tmp_path: Path) -> AsyncIterator[EmbeddedMint]:
    """A mint whose invoices nobody pays, until ``pay_all``."""
    async with EmbeddedMint(tmp_path / "slow", settings=UNPAID) as running:
        yield running


async def pay_all(mint: EmbeddedMint) -> None:
    await mint.stop()
    mint.settings = {}
    await mint.start()


def watcher(bench: Bench, limits: InvoiceLimits | None = None) -> Invoices:
    """As a new process has it."""
    return Invoices(
        bench.lightning, bench.invoices, bench.ledger, SECRET, limits or InvoiceLimits()
    )


async def until(invoices: Invoices, invoice_id: str, status: str) -> Progress:
    """Look until an invoice has that status; it must get there."""
    async with asyncio.timeout(20):
        while (progress := await invoices.status(invoice_id)).status != status:
            await invoices.look()
            await asyncio.sleep(0.05)
    return progress


async def expire(bench: Bench, *, over: bool = False) -> None:
    """All invoices have expired; ``over``: and have been watched for long enough."""
    watched = ", watch_until = 1001" if over else ""
    await bench.database.write(
        lambda conn: conn.execute(
            f"UPDATE invoices SET created_at = 500, expires_at = 1000{watched}"
        )
    )


async def test_a_payment_after_the_expiry_is_credited_by_the_next_process_too(
    slow_payers: EmbeddedMint, open_bench: OpenBench
) -> None:
    bench = await open_bench(slow_payers.url, timeout_s=10)
    invoices = watcher(bench)
    made = await invoices.create(50, "peer", None)
    await invoices.look()
    assert (await invoices.status(made.invoice_id)).status == "pending"
    with pytest.raises(NotFound):
        await invoices.status(made.invoice_id + "x")
    await expire(bench)
    assert (await invoices.status(made.invoice_id)).status == "expired"
    await pay_all(slow_payers)
    bench = await open_bench(slow_payers.url, timeout_s=10)
    invoices = watcher(bench)
    progress = await until(invoices, made.invoice_id, "paid")
    assert progress.api_key is not None
    account = await bench.ledger.account(progress.api_key)
    assert (await bench.ledger.balance(account.id)).balance == 50_000
    assert (await until(invoices, made.invoice_id, "paid")).api_key == progress.api_key
    await bench.books()


async def test_who_does_not_know_the_id_gets_no_key(
    slow_payers: EmbeddedMint, open_bench: OpenBench
) -> None:
    bench = await open_bench(slow_payers.url, timeout_s=10)
    made = await watcher(bench).create(50, "peer", None)
    stored = await bench.database.read(lambda conn: conn.serialize())
    assert invoice_hash(made.invoice_id).encode() in stored
    assert made.invoice_id.encode() not in stored
    assert made.invoice_id not in repr(made)
    with pytest.raises(InvalidApiKey):  # not funded
        await bench.ledger.account(watcher(bench)._api_key(made.invoice_id))


async def test_an_invoice_that_was_never_paid_is_forgotten_only_when_its_mint_says_so(
    slow_payers: EmbeddedMint, open_bench: OpenBench
) -> None:
    bench = await open_bench(slow_payers.url, timeout_s=10)
    made = await watcher(bench).create(50, "peer", None)
    await expire(bench, over=True)
    await slow_payers.stop()
    invoices = watcher(bench)
    await invoices.look()
    await asyncio.gather(*invoices._asking.values())
    assert (await invoices.status(made.invoice_id)).status == "expired"
    await slow_payers.start()
    invoices = watcher(bench)
    await invoices.look()
    await asyncio.gather(*invoices._asking.values())
    with pytest.raises(NotFound):
        await invoices.status(made.invoice_id)


async def test_what_a_client_may_ask_for_is_bounded(
    slow_payers: EmbeddedMint, open_bench: OpenBench
) -> None:
    bench = await open_bench(slow_payers.url, timeout_s=10)
    invoices = watcher(bench, InvoiceLimits(min_sat=5, max_sat=10, max_open_per_peer=1))
    for amount in (4, 11):
        with pytest.raises(InvalidValue):
            await invoices.create(amount, "a", None)
    await invoices.create(5, "a", None)
    with pytest.raises(RateLimitExceeded):
        await invoices.create(5, "a", None)
    await invoices.create(10, "b", None)
    await expire(bench)  # expired ones stand in nobody's way
    await invoices.create(5, "a", None)


async def test_the_next_mint_is_asked_when_one_is_away(
    mint: EmbeddedMint, open_bench: OpenBench
) -> None:
    nowhere = "http://127.0.0.1:9"
    bench = await open_bench(nowhere, mint.url, timeout_s=5)
    made = await watcher(bench).create(7, "peer", None)
    assert made.invoice.mint == mint.url
    bench = await open_bench(nowhere)
    with pytest.raises(MintUnreachable):
        await watcher(bench).create(7, "peer", None)


async def test_ecash_that_an_abandoned_operation_got_is_found(
    mint: EmbeddedMint, open_bench: OpenBench
) -> None:
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url)
        invoices = watcher(bench)
        made = await invoices.create(21, "peer", None)
        proxy.mint_faults.append("late")
        assert await bench.lightning.collect(made.invoice) == "unknown"
        first = (await bench.store.open_operations())[0]
        await bench.invoices.fail_mint(first, "start_again")  # as when its keyset is retired
        assert await proxy.land() == [200]
        stored = await bench.invoices.invoice(made.invoice.hash)
        assert stored is not None
        assert stored.operation_id is None
        await bench.lightning.collect(stored)
        assert await bench.wallet.recover() == 0
        assert (await until(invoices, made.invoice_id, "paid")).status == "paid"
        assert (await bench.ledger.balance(stored.account_id)).balance == 21_000
        books = await bench.books()
        assert (books.received_msat, books.operations_open) == (21_000, 0)


async def test_thirty_watchers_credit_once(
    mint: EmbeddedMint, open_bench: OpenBench, http_session: aiohttp.ClientSession
) -> None:
    bench = await open_bench(mint.url, timeout_s=10)
    made = await watcher(bench).create(21, "peer", None)
    asking = MintClient(http_session, mint.url)
    async with asyncio.timeout(20):  # its invoices pay themselves, in their own time
        while (await asking.mint_quote_state(made.invoice.quote)).state == "UNPAID":
            await asyncio.sleep(0.02)
    outcomes = await asyncio.gather(*(bench.lightning.collect(made.invoice) for _ in range(30)))
    assert set(outcomes) == {"paid"}
    books = await bench.books()
    assert (books.received_msat, books.open_msat) == (21_000, 21_000)
    stored = await bench.invoices.invoice(made.invoice.hash)
    assert stored is not None
    assert stored.paid_at is not None
    assert abs(stored.paid_at - time.time()) < 60


KEY = "0c9be8e9-35a5-4d1f-8e6a-6cf6d2f0a6f1"


async def test_asking_again_under_the_same_key_gives_the_same_invoice(
    slow_payers: EmbeddedMint, open_bench: OpenBench
) -> None:
    bench = await open_bench(slow_payers.url, timeout_s=10)
    invoices = watcher(bench, InvoiceLimits(max_open_per_peer=1))
    made = await asyncio.gather(*(invoices.create(50, "peer", None, KEY) for _ in range(5)))
    assert len({(m.invoice_id, m.invoice.bolt11, m.payment_hash) for m in made}) == 1
    bench = await open_bench(slow_payers.url, timeout_s=10)  # the answer was lost with the process
    invoices = watcher(bench)
    again = await invoices.create(50, "another address", None, KEY)
    assert (again.invoice_id, again.invoice.bolt11) == (made[0].invoice_id, made[0].invoice.bolt11)
    with pytest.raises(IdempotencyConflict):
        await invoices.create(51, "peer", None, KEY)
    await pay_all(slow_payers)
    bench = await open_bench(slow_payers.url, timeout_s=10)
    invoices = watcher(bench)
    await until(invoices, again.invoice_id, "paid")
    paid = await invoices.create(50, "peer", None, KEY)
    assert (paid.invoice_id, paid.invoice.state) == (again.invoice_id, "paid")
    assert (await bench.books()).received_msat == 50_000
    rows = await bench.database.read(
        lambda conn: conn.execute("SELECT COUNT(*) FROM invoices").fetchone()
    )
    assert rows[0] == 1


async def test_a_key_names_an_invoice_of_one_account_only_and_tells_nothing(
    slow_payers: EmbeddedMint, open_bench: OpenBench
) -> None:
    bench = await open_bench(slow_payers.url, timeout_s=10)
    invoices = watcher(bench)
    opened = await invoices.create(50, "peer", None, KEY)
    mine, other = [(await invoices.create(5, "peer", None)).invoice.account_id for _ in range(2)]
    topups = [await invoices.create(50, "peer", account, KEY) for account in (mine, other)]
    assert len({opened.invoice_id, *(made.invoice_id for made in topups)}) == 3
    assert (await invoices.create(50, "peer", mine, KEY)).invoice_id == topups[0].invoice_id
    assert (await invoices.create(7, "peer", mine, "1")).invoice.account_id == mine
    stored = await bench.database.read(lambda conn: conn.serialize())
    for secret in (KEY, opened.invoice_id):
        assert secret.encode() not in stored
    elsewhere = Invoices(bench.lightning, bench.invoices, bench.ledger, b"o" * 32, InvoiceLimits())
    assert (await elsewhere.create(50, "peer", None, KEY)).invoice_id != opened.invoice_id


async def test_a_key_that_could_be_guessed_opens_no_account(
    slow_payers: EmbeddedMint, open_bench: OpenBench
) -> None:
    bench = await open_bench(slow_payers.url, timeout_s=10)
    with pytest.raises(InvalidValue) as refused:
        await watcher(bench).create(50, "peer", None, "k" * 21)
    assert refused.value.param == "idempotency-key"
