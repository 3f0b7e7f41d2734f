"""The exchange rate is what several sources agree on, or not known: lying, slow, silent and
redirecting sources change nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from fractions import Fraction
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from node.upstream.rates import MAX_DOCUMENT_BYTES, PRESETS, Rates, RateSource, RateTerms, agreed

TERMS = RateTerms(timeout_s=30.0)

# what each of them answers, as of a day in 2026
DOCUMENTS = {
    "coinbase": '{"data":{"amount":"100000.10","base":"BTC","currency":"USD"}}',
    "kraken": '{"error":[],"result":{"XXBTZUSD":{"a":["1","1","1"],"c":["100000.2","0.001"]}}}',
    "bitstamp": '{"timestamp":"1790000000","last":"100000.30","open":"1"}',
    "binance": '{"symbol":"BTCUSDT","price":"100000.40000000"}',
    "mempool": '{"time":1790000000,"USD":100000.5,"EUR":90000}',
}


class Exchange:
    """Answers ``/<name>`` with what it was told."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = dict(DOCUMENTS)
        self.asked: list[str] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        self.asked.append(name)
        if name == "elsewhere":
            return web.Response(text=DOCUMENTS["coinbase"], content_type="application/json")
        answer = self.answers[name]
        if isinstance(answer, int):
            return web.Response(status=answer, headers={"Location": f"{self.url}/elsewhere"})
        if answer is None:
            await asyncio.Event().wait()
        return web.Response(text=answer, content_type="application/json")

    def sources(self) -> list[RateSource]:
        return [replace(s, url=f"{self.url}/{name}") for name, s in PRESETS.items()]


@asynccontextmanager
async def exchange() -> AsyncIterator[Exchange]:
    it = Exchange()
    app = web.Application()
    app.router.add_get("/{name}", it.handle)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        it.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield it
    finally:
        await runner.cleanup()


class Watched:
    def __init__(
        self, session: aiohttp.ClientSession, source: Exchange, terms: RateTerms = TERMS
    ) -> None:
        self.now = 0.0
        self.told: list[Fraction | None] = []
        self.rates = Rates(
            session, source.sources(), terms, self.told.append, clock=lambda: self.now
        )


@pytest.fixture
async def source() -> AsyncIterator[Exchange]:
    async with exchange() as it:
        yield it


@pytest.fixture
async def watched(source: Exchange) -> AsyncIterator[Watched]:
    async with aiohttp.ClientSession() as session:
        yield Watched(session, source)


async def test_the_median_of_all_presets(watched: Watched, source: Exchange) -> None:
    await watched.rates.refresh()
    assert sorted(source.asked) == sorted(DOCUMENTS)
    assert watched.told == [Fraction("100000.3")]
    assert watched.rates.current == Fraction("100000.3")


@pytest.mark.parametrize(
    "lie",
    [
        '{"data":{"amount":"1.00"}}', '{"data":{"amount":"99999999"}}', '{"data":{"amount":"0"}}',
        '{"data":{"amount":"-100000"}}', '{"data":{"amount":"NaN"}}', '{"data":{"amount":true}}',
        '{"data":{"amount":"1e999999999"}}', '{"data":[]}', "[]", "null", "", "<html>",
        "[" * 50_000,
        '{"data":{"amount":1' + "0" * 5_000 + "}}", 500, 302, " " * (MAX_DOCUMENT_BYTES + 1),
    ],
)  # fmt: skip
async def test_one_liar_changes_nothing(watched: Watched, source: Exchange, lie: Any) -> None:
    source.answers["coinbase"] = lie
    await watched.rates.refresh()
    assert watched.told == [Fraction("100000.35")]
    assert "elsewhere" not in source.asked


async def test_a_slow_source_is_not_waited_for(source: Exchange) -> None:
    source.answers["kraken"] = None
    async with aiohttp.ClientSession() as session:
        watched = Watched(session, source, replace(TERMS, timeout_s=1.5))
        async with asyncio.timeout(10):
            await watched.rates.refresh()
    assert watched.rates.current is not None


async def test_too_few_or_disagreeing_sources_are_no_rate(
    watched: Watched, source: Exchange
) -> None:
    for name in ("kraken", "bitstamp", "binance", "mempool"):
        source.answers[name] = 503
    await watched.rates.refresh()
    assert (watched.told, watched.rates.trouble()) == ([], "not known")
    source.answers["kraken"] = DOCUMENTS["kraken"].replace("100000.2", "120000.0")
    await watched.rates.refresh()
    assert watched.told == []


async def test_what_is_too_old_is_not_known(watched: Watched, source: Exchange) -> None:
    await watched.rates.refresh()
    source.answers = dict.fromkeys(DOCUMENTS, 503)
    watched.now = TERMS.max_age_s - 1
    await watched.rates.refresh()
    assert watched.rates.trouble() is None
    watched.now = TERMS.max_age_s
    await watched.rates.refresh()
    assert watched.rates.trouble() == "not known"
    assert watched.told == [Fraction("100000.3"), None]
    source.answers = dict(DOCUMENTS)
    await watched.rates.refresh()
    assert watched.told[-1] == Fraction("100000.3")


async def test_it_is_forgotten_at_its_age_and_not_at_the_next_question(source: Exchange) -> None:
    terms = replace(TERMS, interval_s=1000.0, max_age_s=0.2)
    told: list[Fraction | None] = []
    gone = asyncio.Event()

    def tell(rate: Fraction | None) -> None:
        told.append(rate)
        if rate is None:
            gone.set()

    async with aiohttp.ClientSession() as session:
        task = asyncio.create_task(Rates(session, source.sources(), terms, tell).run())
        async with asyncio.timeout(10):
            await gone.wait()
        task.cancel()
    assert told == [Fraction("100000.3"), None]


async def test_small_changes_are_not_published_but_keep_it_fresh(
    watched: Watched, source: Exchange
) -> None:
    def all_say(rate: str) -> None:
        for name, text in DOCUMENTS.items():
            source.answers[name] = json.dumps(_replaced(json.loads(text), rate))

    all_say("100000")
    await watched.rates.refresh()
    all_say("100499")
    watched.now = TERMS.max_age_s - 1
    await watched.rates.refresh()
    assert watched.told == [Fraction(100_000)]
    watched.now += TERMS.max_age_s - 1
    all_say("100501")
    await watched.rates.refresh()
    assert watched.told == [Fraction(100_000), Fraction(100_501)]


def _replaced(value: Any, rate: str) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(item, rate) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, rate) for item in value]
    return rate


RATES = st.lists(st.fractions(100, 10**9), max_size=9)


@given(RATES)
def test_a_rate_is_within_what_most_sources_say(rates: list[Fraction]) -> None:
    rate = agreed(rates, TERMS)
    if rate is None:
        return
    near = [r for r in rates if abs(r - rate) <= rate * Fraction(11, 100)]
    assert len(near) * 2 > len(rates)
    assert len(near) >= TERMS.min_sources
    assert min(near) <= rate <= max(near)


def test_what_is_agreed() -> None:
    hundred = [Fraction(n) for n in (100, 101, 102)]
    assert agreed(hundred, TERMS) == 101
    assert agreed([*hundred, Fraction(1000)], TERMS) == 101
    assert agreed([Fraction(100), Fraction(200)], TERMS) is None
    assert agreed([Fraction(100)], TERMS) is None
    assert agreed([Fraction(100)], replace(TERMS, min_sources=1)) == 100
    assert agreed([Fraction(n) for n in (100, 100, 200, 200)], TERMS) is None
