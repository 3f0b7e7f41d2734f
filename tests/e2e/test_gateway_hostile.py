"""Promise: a provider that gives change that is none (given before, of another mint, spent, locked)
is noticed like one that gives nothing, and no purse calls it money."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from discovery.netguard import NetGuard
from node.core.money import Msat
from node.core.pricing import Price
from node.demo.mint import EmbeddedMint
from node.demo.process import free_port
from node.demo.purse import Purse as Payer
from node.gateway.carriage import HttpCarriage
from node.gateway.journal import Place, Spending
from node.gateway.offers import Offer
from node.gateway.purse import Purse, open_purse
from node.gateway.till import Till
from tests.conftest import OpenPurse


class Shop:
    """A provider that redeems what it gets, and gives ``change`` to whoever asks for it."""

    def __init__(self, url: str, payer: Payer) -> None:
        self.url = url
        self.payer = payer
        self.change = ""

    async def refund(self, _: web.Request) -> web.Response:
        if not self.change:
            return web.json_response({}, status=402)
        return web.json_response({"token": self.change})

    def offer(self, mint: str) -> Offer:
        place = Place("a" * 64, "d", "shop", self.url, ())
        return Offer(
            place, "http", "m", ("chat",), Price(Msat(1000)), 1000, 1000, (mint,), True, None
        )


@pytest.fixture
async def shop(purse: OpenPurse) -> AsyncIterator[Shop]:
    port = free_port()
    found = Shop(f"http://127.0.0.1:{port}", await purse())
    app = web.Application()
    app.router.add_post("/v1/balance/refund", found.refund)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield found
    await runner.cleanup()


class Person:
    """A wallet of 100 sat with its till."""

    def __init__(self, purse: Purse, till: Till, noticed: list[str], mint: str) -> None:
        self.purse, self.till, self.noticed, self.mint = purse, till, noticed, mint

    async def buy(self, shop: Shop, sat: int, *, redeem: bool = True) -> Spending:
        """Pay, and get no answer."""
        spending, token = await self.till.pay(
            shop.offer(self.mint), Msat(sat * 1000), Msat(100_000)
        )
        if redeem:
            await shop.payer.receive(token)
        return spending

    async def end(self, spending: Spending) -> Spending:
        """Let it be recovered."""
        await self.till.over(spending, 2)
        return await self.purse.journal.spending(spending.id)


@pytest.fixture
async def person(mint: EmbeddedMint, tmp_path: Path) -> AsyncIterator[Person]:
    async with Payer(mint.url) as payer, opened(tmp_path, mint.url) as person:
        await person.purse.receive(await payer.fund(100))
        yield person


@asynccontextmanager
async def opened(home: Path, *mints: str) -> AsyncIterator[Person]:
    """The wallet at ``home``, which takes coins of these mints from now on."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        purse = await stack.enter_async_context(
            open_purse(home / "wallet.db", session, accept=mints)
        )
        guard = NetGuard(allow_private=True)
        stack.callback(guard.close)
        carriage = await stack.enter_async_context(HttpCarriage(guard))
        noticed: list[str] = []
        till = Till(purse, {"http": carriage}, 86_400, lambda s: noticed.append(s.id))
        yield Person(purse, till, noticed, mints[0])
        await till.wind_up(5)
        assert (await purse.books()).problems() == []


async def test_change_that_was_given_before_is_none(person: Person, shop: Shop) -> None:
    first = await person.buy(shop, 20)
    shop.change = await shop.payer.send(15)
    ended = await person.end(first)
    assert (ended.state, ended.back, person.noticed) == ("settled", 15_000, [])
    second = await person.buy(shop, 20)
    ended = await person.end(second)  # the same token again
    assert (ended.state, ended.back) == ("lost", 0)
    assert person.noticed == [second.id]
    assert (await person.purse.funds()).balance == 100_000 - 20_000 - 20_000 + 15_000


async def test_change_given_twice_at_the_same_time_counts_once(person: Person, shop: Shop) -> None:
    both = [await person.buy(shop, 20), await person.buy(shop, 20)]
    shop.change = await shop.payer.send(15)
    ended = await asyncio.gather(*map(person.end, both))
    assert sorted((s.state, s.back) for s in ended) == [("lost", 0), ("settled", 15_000)]
    assert len(person.noticed) == 1


async def test_a_token_of_ours_that_comes_back_as_change_of_another_counts_once(
    person: Person, shop: Shop
) -> None:
    first = await person.buy(shop, 20, redeem=False)
    second = await person.buy(shop, 20)
    operation = await person.purse.issued(first.id)
    assert operation is not None
    shop.change = operation.token or ""
    ended = await person.end(second)
    assert (ended.state, ended.back) == ("settled", 20_000)
    ended = await person.end(first)
    assert (ended.state, ended.back) == ("lost", 0)
    assert (await person.purse.funds()).balance == 80_000


async def test_change_of_another_mint_is_none_until_that_mint_is_agreed_to(
    tmp_path: Path,
    shop: Shop,
    purse: OpenPurse,
    mint: EmbeddedMint,
    fee_mint: EmbeddedMint,
) -> None:
    shop.change = await (await purse(fee_mint.url)).fund(15)
    async with opened(tmp_path, mint.url) as person:
        await person.purse.receive(await (await purse()).fund(100))
        ended = await person.end(await person.buy(shop, 20))
        assert ended.state == "lost"
        assert f"nodestr wallet receive --mint {fee_mint.url}" in ended.note
        assert person.noticed == [ended.id]
        assert (await person.purse.funds()).under_way == 0
    async with opened(tmp_path, mint.url, fee_mint.url) as person:
        (ended,) = await person.till.recover_all(lost_too=True)
        assert (ended.state, ended.back) == ("settled", 14_000)


async def test_change_that_is_spent_is_none(person: Person, shop: Shop) -> None:
    spending = await person.buy(shop, 20)
    shop.change = await shop.payer.send(15)
    await shop.payer.receive(shop.change)
    ended = await person.end(spending)
    assert (ended.state, person.noticed) == ("lost", [spending.id])


async def test_change_that_is_locked_is_none(person: Person, shop: Shop, purse: OpenPurse) -> None:
    shop.change = await (await purse()).fund(15, lock_to="02" + "79" * 32)
    spending = await person.buy(shop, 20)
    ended = await person.end(spending)
    assert (ended.state, person.noticed) == ("lost", [spending.id])


async def test_change_for_which_nothing_stands_is_none(person: Person, shop: Shop) -> None:
    spending = await person.buy(shop, 20)
    shop.change = "cashuBnone"
    ended = await person.end(spending)
    assert (ended.state, person.noticed) == ("lost", [spending.id])
