"""What the gateway knows of the market at this moment, and how it has found its providers."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import structlog

from discovery.directory import Directory
from discovery.snapshot import Provider
from node.core.catalog import Catalog, Model
from node.core.money import Msat
from node.core.pricing import Price
from node.core.usage import Usage
from node.errors import ModelNotFound
from node.gateway.carriage import Carriage, CarriageError, read_all
from node.gateway.journal import Journal, Record
from node.gateway.offers import (
    Offer,
    choose,
    models_of,
    needs_details,
    offers_of,
    place_of,
    read_prices,
    ways_to,
)
from node.gateway.settings import GatewaySettings

log = structlog.get_logger()

MAX_LIST_BYTES = 8 << 20
DETAILS_TIMEOUT_S = 15.0
DETAILS_AGE_S = 3_600.0
"""How long prices that a provider told itself are good; after a failure, RETRY_S."""
RETRY_S = 120.0
MAX_ASKING = 4


@dataclass(frozen=True, slots=True)
class Bought:
    """What became of one request."""

    offer: Offer
    amount: Msat
    """Value of the token that paid."""
    expected: Msat
    """What the call costs at the announced price."""
    change: Msat | None
    """Value of the change; None when it did not come with the answer."""

    @property
    def cost(self) -> Msat:
        """What was paid, as far as it is known."""
        return self.expected if self.change is None else Msat(self.amount - self.change)


class Market(Catalog):
    """What all providers sell together."""

    def get(self, model_id: str) -> Model:
        try:
            return super().get(model_id)
        except ModelNotFound:
            raise ModelNotFound(
                f"no provider that was found sells {model_id[:100]!r}; /v1/models lists what there"
                " is",
                param="model",
            ) from None


class Shop:
    """Offers, records and the choice between them.

    Args:
        catalog: what this keeps.
        on_bought: told of every request that was answered.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        journal: Journal,
        directory: Directory,
        carriages: Mapping[str, Carriage],
        catalog: Catalog,
        *,
        on_bought: Callable[[Bought], None] | None = None,
    ) -> None:
        self.settings = settings
        self.catalog = catalog
        self.carriages = carriages
        self._journal = journal
        self._directory = directory
        self._only = settings.pubkeys()
        self._on_bought = on_bought
        self._offers: list[Offer] = []
        self._details: dict[str, Mapping[str, Price]] = {}
        self._ask_again_at: dict[str, float] = {}
        self._rng = random.Random()  # noqa: S311  spreads requests, protects nothing
        self._changed = asyncio.Event()
        self._asking = asyncio.Semaphore(MAX_ASKING)

    # -- keeping up ------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the directory, for ever."""
        asking: set[asyncio.Task[None]] = set()
        try:
            while True:
                changed = asyncio.create_task(self._directory.changed())
                self._rebuild()
                for provider in self._untold():
                    self._ask_again_at[provider.pubkey] = time.monotonic() + RETRY_S
                    task = asyncio.create_task(self._ask(provider))
                    asking.add(task)
                    task.add_done_callback(asking.discard)
                try:
                    await asyncio.wait({changed}, timeout=RETRY_S)
                finally:
                    changed.cancel()
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    def _untold(self) -> list[Provider]:
        """Those that have prices to tell which we do not know, or not any more."""
        return [
            provider
            for provider in self._directory.snapshot().providers
            if needs_details(provider)
            and (not self._only or provider.pubkey in self._only)
            and self._ask_again_at.get(provider.pubkey, 0.0) <= time.monotonic()
            and ways_to(provider, self.settings.carriage, selected=bool(self._only))
        ]

    async def until(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until ``ready``, looking at every change of the offers."""
        try:
            async with asyncio.timeout(timeout_s):
                while not ready():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return ready()
        return True

    def sells(self, model: str = "") -> bool:
        """Whether anybody sells this model, or any."""
        return any(not model or offer.model == model for offer in self._offers)

    def settled(self) -> bool:
        """Whether all that has been found so far has been asked who it is."""
        return all(
            provider.status != "unknown" or not place_of(provider).url
            for provider in self._directory.snapshot().providers
        )

    @property
    def offers(self) -> tuple[Offer, ...]:
        """All that can be bought now."""
        return tuple(self._offers)

    def _rebuild(self) -> None:
        self._offers = offers_of(
            self._directory.snapshot(),
            carriage=self.settings.carriage,
            only=self._only,
            details=self._details,
        )
        self.catalog.replace(models_of(self._offers))
        self._changed.set()

    async def _ask(self, provider: Provider) -> None:
        """Its own list of models, for the prices its announcement does not tell."""
        ways = ways_to(provider, self.settings.carriage, selected=bool(self._only))
        try:
            async with self._asking, asyncio.timeout(DETAILS_TIMEOUT_S):
                answer = await self.carriages[ways[0]].open(
                    place_of(provider), "GET", "/v1/models", {"accept": "application/json"}, b""
                )
                body = await read_all(answer, MAX_LIST_BYTES)
        except (CarriageError, TimeoutError) as error:
            log.info("prices_not_told", provider=provider.pubkey, reason=str(error))
            return
        if answer.status == 200:
            self._details[provider.pubkey] = read_prices(body)
            self._ask_again_at[provider.pubkey] = time.monotonic() + DETAILS_AGE_S
            self._rebuild()

    # -- choosing --------------------------------------------------------------------------

    def pick(
        self, model: str, endpoint: str, typical: Usage, tried: Collection[object]
    ) -> Offer | None:
        """Whom to ask next; None when nobody is left."""
        fitting = [
            offer
            for offer in self._offers
            if offer.model == model and endpoint in offer.endpoints and offer.key not in tried
        ]
        # one way to each, the preferred one; the other is tried when that has failed
        firsts: dict[tuple[str, str], Offer] = {}
        for offer in fitting:
            firsts.setdefault((offer.place.pubkey, offer.place.d), offer)
        return choose(
            list(firsts.values()),
            self._journal.records,
            self.settings.profile,
            typical,
            rng=self._rng,
        )

    # -- remembering -----------------------------------------------------------------------

    def failed(self, offer: Offer) -> None:
        """A provider did not answer as it should."""
        record = self._record(offer)
        self._note(
            offer,
            replace(
                record,
                failed=record.failed + 1,
                failed_in_a_row=record.failed_in_a_row + 1,
                failed_at=int(time.time()),
            ),
        )

    def served(self, offer: Offer, latency_ms: int) -> None:
        """A provider has begun to answer."""
        record = self._record(offer)
        before = record.latency_ms or latency_ms
        self._note(
            offer,
            replace(
                record,
                served=record.served + 1,
                failed_in_a_row=0,
                latency_ms=(2 * before + latency_ms) // 3,
            ),
        )

    def bought(self, bought: Bought, tolerance: Msat | None) -> None:
        """A request was answered and paid for: was it what the price says?

        Args:
            tolerance: how much more it may be; None: as much as it likes.
        """
        if tolerance is not None and bought.cost > bought.expected + tolerance:
            self.overcharged(bought.offer.place.pubkey, bought.cost, bought.expected)
        log.info(
            "bought",
            provider=bought.offer.place.pubkey,
            name=bought.offer.place.name,
            carriage=bought.offer.way,
            model=bought.offer.model,
            paid_msat=bought.amount,
            cost_msat=bought.cost,
            change_msat=bought.change,
        )
        if self._on_bought is not None:
            self._on_bought(bought)

    def overcharged(self, pubkey: str, cost: Msat, expected: Msat | None) -> None:
        """A provider kept more than its price."""
        record = self._journal.records.get(pubkey, Record())
        self._journal.note(pubkey, replace(record, overcharged=record.overcharged + 1))
        log.warning("overcharged", provider=pubkey, cost_msat=cost, expected_msat=expected)

    def _record(self, offer: Offer) -> Record:
        return self._journal.records.get(offer.place.pubkey, Record())

    def _note(self, offer: Offer, record: Record) -> None:
        self._journal.note(offer.place.pubkey, record)
