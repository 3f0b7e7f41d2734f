"""The selling side of a node, put together: upstreams, their lists, exchange rate and shelf."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial

import aiohttp

from node.background import spawn
from node.core.catalog import ENDPOINTS, Catalog
from node.core.money import to_msat
from node.core.plans import Listed, ListTerms
from node.ops.health import Health
from node.service.shelf import Shelf
from node.settings import Settings
from node.settings_market import UpstreamSettings
from node.settings_routing import RateSettings
from node.upstream.balance import BalanceWatch
from node.upstream.dialects import NATIVE, Translator
from node.upstream.lane import Lane
from node.upstream.listing import Discovery
from node.upstream.rates import PRESETS, Rates, RateSource, RateTerms
from node.upstream.router import Routing, UpstreamRouter
from node.upstream.server import Deadlines, UpstreamServer
from node.upstream.translation import translator_for


class Market:
    """Upstreams and catalogue of one node.

    Args:
        catalog: what this keeps.
    """

    def __init__(
        self, settings: Settings, session: aiohttp.ClientSession, catalog: Catalog
    ) -> None:
        self._catalog = catalog
        self._session = session
        self._tasks: list[asyncio.Task[None]] | None = None
        self._health: Health | None = None
        self._lanes = {item.name: _lane(item, session) for item in settings.upstreams}
        routing = settings.routing
        self.router = UpstreamRouter(
            self._lanes.values(),
            Routing(
                strategy=routing.strategy,
                max_attempts=routing.max_attempts,
                queue_timeout_s=routing.queue_timeout_s,
                max_waiting=routing.max_waiting,
            ),
        )
        self.shelf = Shelf(
            catalog,
            settings.plans(),
            _list_terms(settings),
            lambda upstream, endpoint: self._lanes[upstream].server.serves(endpoint),
        )
        self._awaited = {item.name for item in settings.upstreams if item.discover}
        self._complete = asyncio.Event()
        self._discoveries = {
            name: Discovery(
                self._lanes[name].server,
                partial(self._listed, name),
                interval_s=routing.discover_interval_s,
                timeout_s=routing.discover_timeout_s,
                max_bytes=routing.discover_max_bytes,
            )
            for name in self._awaited
        }
        self._balances = [
            BalanceWatch(self._lanes[item.name], to_msat(item.low_balance_sat, "sat"))
            for item in settings.upstreams
            if item.dialect == "routstr" and item.api_key and item.low_balance_sat
        ]
        self._rates: Rates | None = None
        if self.shelf.needs_rate or any(
            item.discover and item.dialect == "openrouter" for item in settings.upstreams
        ):
            self._awaited.add("")
            self._rates = Rates(
                session, _sources(settings.rates), _terms(settings.rates), self._rate
            )

    def on_change(self, changed: Callable[[], object]) -> None:
        """Call ``changed`` whenever the catalogue has become another."""
        self.shelf.changed = changed

    def change(self, settings: Settings) -> None:
        """Sell what is wanted now; upstreams and rate sources stay those of the start."""
        self.shelf.sell(settings.plans(), _list_terms(settings))
        if self._rates is None and self.shelf.needs_rate:
            self._rates = Rates(
                self._session, _sources(settings.rates), _terms(settings.rates), self._rate
            )
            if self._tasks is not None:
                spawn(self._tasks, "exchange rate", self._rates.run)
            if self._health is not None:
                self._health.add("exchange rate", self._rates.trouble, detail=True)

    def start(self, tasks: list[asyncio.Task[None]]) -> None:
        """Begin to ask for lists, rates and balances."""
        self._tasks = tasks
        for name, discovery in self._discoveries.items():
            spawn(tasks, f"models of {name}", discovery.run)
        for balance in self._balances:
            spawn(tasks, "upstream balance", balance.run)
        if self._rates is not None:
            spawn(tasks, "exchange rate", self._rates.run)

    async def complete(self, timeout_s: float) -> None:
        """Wait until every list and the rate have been read once, at most ``timeout_s``."""
        if self._awaited:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._complete.wait()
            except TimeoutError:
                return

    def add_checks(self, health: Health) -> None:
        """What /health/ready shows of upstreams, rate and catalogue."""
        self._health = health
        lanes = self._lanes
        health.add("upstreams", self._no_upstream)
        health.add("models", lambda: None if len(self._catalog) else "nothing for sale")
        for name, lane in lanes.items():
            health.add(f"upstream {name}", lane.trouble, detail=True)
        if self._rates is not None:
            health.add("exchange rate", self._rates.trouble, detail=True)

    def _no_upstream(self) -> str | None:
        # half-open is not counted: it takes calls to find out
        if self._lanes and all(s.circuit == "open" for s in self.router.states()):
            return "no model server answers"
        return None

    def _listed(self, name: str, models: list[Listed] | None) -> None:
        self.shelf.listed(name, models)
        self._arrived(name)

    def _rate(self, usd_per_btc: Fraction | None) -> None:
        self.shelf.rate(usd_per_btc)
        self._arrived("")

    def _arrived(self, what: str) -> None:
        self._awaited.discard(what)
        if not self._awaited:
            self._complete.set()


def _lane(item: UpstreamSettings, session: aiohttp.ClientSession) -> Lane:
    native = NATIVE[item.dialect]
    translators: dict[str, Translator] = {
        endpoint: translator
        for endpoint in ENDPOINTS
        if (translator := translator_for(endpoint, native)) is not None
    }
    server = UpstreamServer(
        item.name,
        session,
        item.base_url,
        api_key=item.api_key.resolve() if item.api_key else None,
        dialect=item.dialect,
        api_version=item.api_version,
        translators=translators,
        deadlines=Deadlines(
            connect_s=item.connect_timeout_s,
            first_byte_s=item.first_byte_timeout_s,
            whole_s=item.whole_answer_timeout_s,
            chunk_s=item.chunk_timeout_s,
            answer_s=item.answer_timeout_s,
        ),
    )
    return Lane(server, max_concurrency=item.max_concurrency)


def _list_terms(settings: Settings) -> list[ListTerms]:
    terms = (item.list_terms() for item in settings.upstreams)
    return [item for item in terms if item is not None]


def _sources(wanted: RateSettings) -> Sequence[RateSource]:
    sources = []
    for item in wanted.sources:
        if isinstance(item, str):
            sources.append(PRESETS[item])
        else:
            url = f"{item.url}?{item.query}" if item.query else item.url
            sources.append(RateSource(item.url, url, tuple(item.path.split("."))))
    return sources


def _terms(wanted: RateSettings) -> RateTerms:
    return RateTerms(
        min_sources=wanted.min_sources,
        max_deviation=Fraction(wanted.max_deviation_percent) / 100,
        interval_s=wanted.interval_s,
        timeout_s=wanted.timeout_s,
        max_age_s=wanted.max_age_s,
        min_change=Fraction(wanted.min_change_percent) / 100,
    )
