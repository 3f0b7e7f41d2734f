"""One request of the person's program: bought from a provider, paid with a token.

To the pipeline this is both the payer, who costs nothing here, and the model server: ``open``
picks a provider, pays it and begins its answer, and goes on to the next one as long as no byte of
an answer has come.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog

from discovery.nostr.keys import hex_to_npub
from node.core.accounts import HoldRequest
from node.core.catalog import Backend, Catalog
from node.core.exchange import Receipt, Request
from node.core.money import MSAT_PER_SAT, Msat, to_msat
from node.core.usage import Usage
from node.ecash.payment_request import BadRequest, PaymentRequest
from node.errors import (
    ContextLengthExceeded,
    InsufficientBalance,
    InvalidValue,
    NodeError,
    TokenMalformed,
    UpstreamFailed,
    UpstreamUnavailable,
)
from node.gateway.carriage import Answer, CarriageError, read_all
from node.gateway.change import ChangeTaker
from node.gateway.journal import Spending
from node.gateway.offers import Offer, backend_name
from node.gateway.shop import Bought, Shop
from node.gateway.till import Till, change_value
from node.ports import UpstreamCall, UpstreamReply
from node.service.inference.call import EVENT_STREAM, Prepare, PreparedCall
from node.upstream.errors import (
    MAX_ERROR_BYTES,
    UnknownThere,
    error_at_start,
    error_from_answer,
    says_nothing,
)

log = structlog.get_logger()

PEEK_BYTES = 16 << 10
"""Comments before the first event of a stream that are waited through."""
BACK_TIMEOUT_S = 3.0
"""How long a failed provider's money is waited for before the next one is paid."""
MAX_RAISE = 4
"""How many times what was expected a provider may ask to have set aside,"""
SMALL_SAT = 20
"""unless it is no more than this."""
_MONEY_CODES = ("mint_", "token_", "fees_exceed", "insufficient_", "pending")


class Purchase:
    """Implements ``service.payers.Payer`` and ``ports.Upstream`` for one request."""

    live = True
    limit_key = ""
    refused: asyncio.Event | None = None

    def __init__(self, shop: Shop, till: Till, request: Request) -> None:
        self._shop = shop
        self._till = till
        self._request = request
        self._prepared: PreparedCall | None = None
        self._reply: _Reply | None = None

    def prepared_by(self, prepare: Prepare) -> Prepare:
        """``prepare``, of which the bounds are kept: they say how much to pay."""

        async def run(request: Request, catalog: Catalog) -> PreparedCall:
            result = prepare(request, catalog)
            prepared = await result if inspect.isawaitable(result) else result
            self._prepared = prepared
            return prepared

        return run

    # -- the payer: the person at this machine ---------------------------------------------

    async def begin(self, request: HoldRequest) -> None:
        """Nothing is set aside here: the token that leaves is."""

    async def secured(self) -> None:
        return

    async def settle(self, cost: Msat, usage: Usage) -> Receipt:
        """Compare what the provider kept with the announced price."""
        if self._reply is None:
            return Receipt(cost=cost, usage=usage)
        counted = usage.source == "upstream"
        return Receipt(cost=await self._reply.settle(cost, counted), usage=usage)

    async def release(self) -> Receipt:
        return Receipt(cost=Msat(0))

    async def hold_id(self) -> int:
        return 0

    # -- the model server: whoever sells ---------------------------------------------------

    async def open(self, call: UpstreamCall) -> UpstreamReply:
        """Raises what ``ports.Upstream.open`` raises, and InsufficientBalance."""
        assert self._prepared is not None
        tried: set[object] = set()
        failure: NodeError | None = None
        poor: InsufficientBalance | None = None
        asked = 0
        while asked < self._shop.settings.max_attempts:
            offer = self._shop.pick(call.model.id, call.endpoint, self._prepared.typical, tried)
            if offer is None:
                break
            tried.add(offer.key)
            try:
                reply = await self._buy(offer, call)
            except InsufficientBalance as error:
                poor = error  # another may cost less
                continue
            except (InvalidValue, ContextLengthExceeded) as error:
                if not isinstance(error, UnknownThere):
                    raise
                failure = error
            except NodeError as error:
                failure = error
            else:
                self._reply = reply
                self._request.answer_headers["x-nodestr-provider"] = hex_to_npub(offer.place.pubkey)
                return reply
            asked += 1
            log.warning(
                "provider_failed",
                provider=offer.place.pubkey,
                carriage=offer.way,
                reason=failure.private or failure.message,
            )
        raise failure or poor or UpstreamUnavailable("no provider of that model can be used now")

    async def _buy(self, offer: Offer, call: UpstreamCall) -> _Reply:
        """Pay one provider and begin its answer.

        It says what it wants when that is more than was expected (402); that is paid once.
        """
        assert self._prepared is not None
        cap = Msat(self._shop.settings.max_price_sat * MSAT_PER_SAT)
        wanted = offer.price.most(self._prepared.most)
        most = max(MAX_RAISE * wanted, to_msat(SMALL_SAT, "sat"))
        for attempt in (1, 2):
            spending, token = await self._till.pay(offer, wanted, cap)
            try:
                more = await self._ask(offer, call, spending, token)
            except BaseException as error:
                if isinstance(error, NodeError):
                    await self._till.over(spending, BACK_TIMEOUT_S)
                else:  # our client is gone
                    self._till.later(spending)
                raise
            if isinstance(more, _Reply):
                return more
            await self._till.over(spending, BACK_TIMEOUT_S)
            if attempt == 2 or not wanted < more <= most:
                break
            wanted = more
        self._shop.failed(offer)
        raise UpstreamFailed(private="the provider asks for more than it asked for")

    async def _ask(
        self, offer: Offer, call: UpstreamCall, spending: Spending, token: str
    ) -> _Reply | Msat:
        """The answer as it begins, or how much the provider wants. Raises a NodeError."""
        streamed = call.accept[0] == EVENT_STREAM
        headers = {
            **call.headers,
            "content-type": call.payload.content_type,
            "accept": ", ".join(f"{kind}*" if kind.endswith("/") else kind for kind in call.accept),
            "x-cashu": token,
        }
        if streamed:
            headers["x-cashu-change"] = "event"
        began = time.monotonic()
        carriage = self._shop.carriages[offer.way]
        reply: _Reply | None = None
        try:
            async with asyncio.timeout(self._shop.settings.first_byte_timeout_s):
                answer = await carriage.open(
                    offer.place,
                    "POST",
                    f"/v1{call.path}",
                    headers,
                    call.payload.encode(offer.model),
                )
                if answer.status == 402:
                    await answer.close()
                    return _asked(answer)
                if not 200 <= answer.status < 300:
                    raise await self._refusal(offer, spending, answer)
                reply = _Reply(self._shop, self._till, offer, spending, answer, streamed)
                await reply.begin()
        except BaseException as error:
            if reply is not None:
                await reply.let_go()
            if isinstance(error, CarriageError | TimeoutError):
                self._shop.failed(offer)
                reason = str(error) or "no answer in time"
                raise UpstreamFailed(private=reason) from None
            if isinstance(error, NodeError) and not _is_clients(error):
                self._shop.failed(offer)
            raise
        self._shop.served(offer, round((time.monotonic() - began) * 1000))
        return reply

    async def _refusal(self, offer: Offer, spending: Spending, answer: Answer) -> NodeError:
        """The error of an answer that is none, and the change that came with it."""
        change = _change_of(answer)
        if change is not None:
            await self._till.keep(spending, change)
        try:
            body = await read_all(answer, MAX_ERROR_BYTES)
        except CarriageError:
            body = b""
        error = error_from_answer(offer.place.pubkey[:12], answer.status, answer.headers, body)
        if isinstance(error, InvalidValue) and any(
            f'"code":"{code}'.encode() in body.replace(b'": "', b'":"') for code in _MONEY_CODES
        ):
            return UpstreamFailed(private=error.private)  # it is about our token: ask another
        return error


class _Reply:
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
        self._offer = offer
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
        name = self._offer.place.pubkey[:12]
        if not first:
            raise UpstreamFailed(private=f"{name} answered nothing")
        error = error_at_start(name, first, streamed=events)
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
            self._shop.failed(self._offer)
            raise UpstreamFailed(private=str(error)) from None

    async def settle(self, cost: Msat, counted: bool) -> Msat:
        """What was paid, when the price says ``cost``.

        Args:
            counted: the provider said what was used. Else it is estimated here and there, and
                twice as much is no reproach.

        Of an answer that broke off, or was stopped, nobody here knows what it took.
        """
        bought = Bought(self._offer, self._spending.amount, cost, self._change_value())
        if not self._whole:
            self._shop.bought(bought, None)
            return bought.cost
        expected = cost if counted else Msat(2 * cost)
        await self._till.journal.expect(self._spending.id, expected)
        tolerance = await self._till.tolerance(self._spending)
        self._shop.bought(bought, Msat(tolerance + expected - cost))
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
            if out:
                yield out
        rest = taker.end() if taker is not None else b""
        change = (taker.token if taker is not None else None) or _change_of(self._answer)
        if change is not None:
            await self._till.keep(self._spending, change)
            self._change = change
        self._whole = True
        if rest:
            yield rest

    def _change_value(self) -> Msat | None:
        """Value of the change; nothing when the whole answer came without any."""
        if self._change is None:
            return None
        try:
            return change_value(self._change, self._spending.mint)
        except (TokenMalformed, InvalidValue):
            return None


def _change_of(answer: Answer) -> str | None:
    """The change in headers or trailers."""
    for fields in (answer.trailers, answer.headers):
        token = fields.get("x-cashu", "")
        if token.startswith("cashu"):
            return token
    return None


def _asked(answer: Answer) -> Msat:
    """What a 402 asks for; nothing when it cannot be read."""
    try:
        request = PaymentRequest.decode(answer.headers.get("x-cashu", ""))
        return to_msat(request.amount or 0, request.unit or "sat")
    except (BadRequest, KeyError):
        return Msat(0)


def _is_clients(error: NodeError) -> bool:
    """Whether it is the request that is wrong, and not the provider."""
    return isinstance(error, InvalidValue | ContextLengthExceeded) and not isinstance(
        error, UnknownThere
    )
