"""A provider's answer on its way to the program: its change taken out, its charge compared."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from node.core.catalog import Backend
from node.core.money import Msat
from node.errors import InvalidValue, TokenMalformed, UpstreamFailed
from node.gateway.carriage import Answer, CarriageError
from node.gateway.change import ChangeTaker, change_of, without_tokens
from node.gateway.journal import Spending
from node.gateway.offers import Offer, backend_name
from node.gateway.recovery import change_value
from node.gateway.shop import Bought, Shop
from node.gateway.till import Till
from node.service.inference.call import EVENT_STREAM
from node.upstream.errors import error_at_start, says_nothing

PEEK_BYTES = 16 << 10
"""Comments before the first event of a stream that are waited through."""
DRIFT_PERCENT = 2
"""By how much a price may be above what was announced: one that follows a currency moves, and is
not announced anew each time."""


def with_drift(cost: Msat) -> Msat:
    """The most that is no reproach for what costs ``cost`` at the announced price."""
    return Msat(cost + cost * DRIFT_PERCENT // 100)


class ProviderReply:
    """A provider's answer; implements ``ports.UpstreamReply``."""

    resumable = False

    def __init__(
        self,
        shop: Shop,
        till: Till,
        offer: Offer,
        spending: Spending,
        answer: Answer,
        streamed: bool,
    ) -> None:
        self.backend = Backend(backend_name(offer), offer.price, offer.model)
        self.status = answer.status
        kind = answer.headers.get("content-type", "")
        self.content_type = kind.partition(";")[0].strip().lower()
        self._shop = shop
        self._till = till
        self.offer = offer
        self._spending = spending
        self._answer = answer
        self._streamed = streamed
        self._taker = ChangeTaker() if streamed else None
        self._pieces = self._read()
        self._first = b""
        self._change: str | None = None
        self._whole = False
        self._closed = False

    async def begin(self) -> None:
        """Wait for the first bytes that say something. Raises the error they are, CarriageError,
        and UpstreamFailed when there are none."""
        events = self.content_type == EVENT_STREAM
        first = b""
        async for data in self._pieces:
            first += data
            if first and not (events and len(first) < PEEK_BYTES and says_nothing(first)):
                break
        name = self.offer.place.pubkey[:12]
        if not first:
            raise UpstreamFailed(private=f"{name} answered nothing")
        error = error_at_start(name, without_tokens(first), streamed=events)
        if error is not None:
            async for _ in self._pieces:  # the change comes last
                pass
            raise error
        self._first = first

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        if self._first:
            first, self._first = self._first, b""
            yield first
        try:
            async with aclosing(self._pieces) as pieces:
                async for data in pieces:
                    yield data
        except CarriageError as error:
            self._shop.failed(self.offer)
            raise UpstreamFailed(private=str(error)) from None

    async def settle(self, cost: Msat, counted: bool) -> Msat:
        """What was paid, when the price says ``cost``.

        Args:
            counted: the provider said what was used. Else it is estimated here and there, and
                twice as much is no reproach.

        Of an answer that broke off, or was stopped, nobody here knows what it took.
        """
        bought = Bought(self.offer, self._spending.amount, cost, self._change_value())
        if not self._whole:
            self._shop.bought(bought, None)
            return bought.cost
        most = with_drift(cost if counted else Msat(2 * cost))
        await self._till.journal.expect(self._spending.id, most)
        tolerance = await self._till.tolerance(self._spending)
        self._shop.bought(bought, Msat(tolerance + most - cost))
        return bought.cost

    async def close(self) -> None:
        """Let the answer go and see to the money."""
        if not self._closed:
            await self.let_go()
            self._till.later(self._spending)

    async def let_go(self) -> None:
        """Read no more; the money is the caller's to see to. Idempotent."""
        self._closed = True
        await self._pieces.aclose()
        await self._answer.close()

    async def _read(self) -> AsyncGenerator[bytes, None]:
        taker = self._taker
        async for data in self._answer.chunks():
            out = taker.feed(data) if taker is not None else data
            if taker is not None:  # whatever breaks off from here on
                await self._keep(taker.token)
            if out:
                yield out
        rest = taker.end() if taker is not None else b""
        await self._keep((taker.token if taker is not None else None) or change_of(self._answer))
        self._whole = True
        if rest:
            yield rest

    async def _keep(self, change: str | None) -> None:
        if change is not None and change != self._change:
            await self._till.keep(self._spending, change)
            self._change = change

    def _change_value(self) -> Msat | None:
        """Value of the change; nothing when the whole answer came without any."""
        if self._change is None:
            return None
        try:
            return change_value(self._change, self._spending.mint)
        except (TokenMalformed, InvalidValue):
            return None
