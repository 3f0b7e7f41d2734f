"""One request of the person's program: bought from a provider, paid with a token.

To the pipeline this is both the payer, who costs nothing here, and the model server: ``open``
picks a provider, pays it and begins its answer, and goes on to the next one as long as no byte of
an answer has come.

A request that the program has named (``Idempotency-Key``) has a hold of nothing on the purse, so
the ledger knows it as a node's does: the stored answer for the same again, a conflict for another
body, in progress while it runs. What an earlier process bought under that name is asked for, with
the token that paid it, before anything is bought.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import structlog

from discovery.nostr.keys import hex_to_npub
from node.core.accounts import HoldRequest
from node.core.catalog import Catalog
from node.core.exchange import Receipt, Request
from node.core.money import MSAT_PER_SAT, Msat, to_msat
from node.core.usage import Usage
from node.ecash.payment_request import BadRequest, PaymentRequest
from node.errors import (
    ContextLengthExceeded,
    InsufficientBalance,
    Interrupted,
    InvalidValue,
    NodeError,
    Pending,
    UpstreamFailed,
    UpstreamUnavailable,
)
from node.gateway.asked import Asked
from node.gateway.carriage import Answer, CarriageError, read_all
from node.gateway.change import change_of, without_tokens
from node.gateway.journal import Spending
from node.gateway.offers import Offer, offer_again
from node.gateway.reply import ProviderReply
from node.gateway.shop import Shop
from node.gateway.till import Till
from node.ports import UpstreamCall, UpstreamReply
from node.service.inference.call import EVENT_STREAM, Prepare, PreparedCall
from node.upstream.errors import MAX_ERROR_BYTES, UnknownThere, error_from_answer

log = structlog.get_logger()

BACK_TIMEOUT_S = 3.0
"""How long a failed provider's money is waited for before the next one is paid."""
LOOKS = 6
"""How often, within the deadline for its first byte, a silent provider's token is looked at."""
SLOWEST_BYTES_PER_S = 16 << 10
"""A request that takes longer to be sent is not called unheard before."""
MAX_RAISE = 4
"""How many times what was expected a provider may ask to have set aside,"""
SMALL_SAT = 20
"""unless it is no more than this."""
EARLIER_RETRY_S = 5
"""What a program is told to wait whose earlier purchase has no known end."""
_MONEY_CODES = ("mint_", "token_", "fees_exceed", "insufficient_", "pending")
_NOT_BEGUN = frozenset({"void", "reclaimed"})
_OVER = frozenset({"settled", "lost"})


class _Unheard(UpstreamFailed):
    """There was no answer, and what the provider made of the request nobody here knows."""


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
        self._reply: ProviderReply | None = None
        self._hold: int | None = None
        self._paid: list[str] = []
        """The spendings of this request, in this process."""

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
        """Take the name of a named request. No money is set aside: the token that leaves is.

        Raises IdempotencyConflict, IdempotencyInProgress, Answered.
        """
        self._hold = await self._till.purse.hold(request)

    async def secured(self) -> None:
        return

    async def settle(self, cost: Msat, usage: Usage) -> Receipt:
        """Compare what the provider kept with the announced price."""
        ended = self._end(usage)
        if self._reply is not None:
            cost = await self._reply.settle(cost, usage.source == "upstream")
        await ended
        return Receipt(cost=cost, usage=usage)

    async def release(self) -> Receipt:
        await self._end(None)
        return Receipt(cost=Msat(0))

    async def hold_id(self) -> int:
        return self._hold or 0

    def _end(self, usage: Usage | None) -> Awaitable[object]:
        """Give the name up (None), or keep it for good; begun before anybody waits."""
        if self._hold is None:
            return asyncio.sleep(0)
        return self._till.purse.end_hold(self._hold, usage)

    # -- the model server: whoever sells ---------------------------------------------------

    async def open(self, call: UpstreamCall) -> UpstreamReply:
        """Raises what ``ports.Upstream.open`` raises, and InsufficientBalance; of a named request
        Pending and Interrupted, when it was bought before and its answer is not to be had."""
        reply = await self._earlier(call) if self._hold is not None else None
        if reply is None:
            reply = await self._buy_somewhere(call)
        self._reply = reply
        self._request.answer_headers["x-nodestr-provider"] = hex_to_npub(reply.offer.place.pubkey)
        return reply

    async def _buy_somewhere(self, call: UpstreamCall) -> ProviderReply:
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
                return await self._buy(offer, call)
            except InsufficientBalance as error:
                poor = error  # another may cost less
                continue
            except (InvalidValue, ContextLengthExceeded) as error:
                if not isinstance(error, UnknownThere):
                    raise
                failure = error
            except NodeError as error:
                failure = error
            asked += 1
            _note_failure(offer, failure)
        raise failure or poor or UpstreamUnavailable("no provider of that model can be used now")

    async def _earlier(self, call: UpstreamCall) -> ProviderReply | None:
        """The answer that was bought under the request's name before; None when nothing was.

        Raises Pending while the money's whereabouts are not known, Interrupted when it is spent
        and no answer is to be had for it.
        """
        for spending in await self._till.journal.named(self._request.idempotency_key or ""):
            if spending.state in _NOT_BEGUN:
                continue
            asked = await self._till.journal.asked(spending.id)
            token = await self._till.resume(spending.id)
            if asked is None or token is None:
                await self._till.over(spending, BACK_TIMEOUT_S)
            else:
                offer = offer_again(spending, asked.price)
                try:
                    answer = await self._ask(offer, call, spending, token, asked)
                except NodeError as error:
                    _note_failure(offer, error)
                    await self._till.over(spending, BACK_TIMEOUT_S)
                except BaseException:
                    self._till.later(spending)
                    raise
                else:
                    if isinstance(answer, ProviderReply):
                        return answer
                    await self._till.over(spending, BACK_TIMEOUT_S)
            spending = await self._till.journal.spending(spending.id)
            if spending.state in _OVER and await self._till.cost_something(spending):
                raise Interrupted(
                    "this request was paid for before and its answer is not to be had any more;"
                    " it is not bought again under the same key"
                )
            if spending.state not in _OVER | _NOT_BEGUN:
                raise Pending(
                    "this request was paid for before, and the provider cannot be asked for its"
                    " answer now; ask again",
                    retry_after_s=EARLIER_RETRY_S,
                )
        return None

    async def _buy(self, offer: Offer, call: UpstreamCall) -> ProviderReply:
        """Pay one provider and begin its answer.

        It says what it wants when that is more than was expected (402); that is paid once.
        """
        assert self._prepared is not None
        wanted = offer.price.most(self._prepared.most)
        most = max(MAX_RAISE * wanted, to_msat(SMALL_SAT, "sat"))
        asked = await self._asked(offer, call)
        for attempt in (1, 2):
            spending, token = await self._till.pay(offer, wanted, await self._cap(), asked)
            self._paid.append(spending.id)
            try:
                more = await self._ask(offer, call, spending, token, asked)
            except BaseException as error:
                if isinstance(error, NodeError):
                    if not isinstance(error, _Unheard):  # who refuses takes nothing
                        await self._till.journal.expect(spending.id, Msat(0))
                    await self._till.over(spending, BACK_TIMEOUT_S)
                else:  # our client is gone
                    self._till.later(spending)
                raise
            if isinstance(more, ProviderReply):
                return more
            await self._till.journal.expect(spending.id, Msat(0))
            await self._till.over(spending, BACK_TIMEOUT_S)
            kept = (await self._till.journal.spending(spending.id)).state not in _NOT_BEGUN
            if attempt == 2 or kept or not wanted < more <= most:
                break
            wanted = more
        self._shop.failed(offer)
        raise UpstreamFailed(private="the provider asks for more than it asked for")

    async def _cap(self) -> Msat:
        """What may still be set aside: what those who were asked before have not given back
        counts."""
        most = self._shop.settings.max_price_sat * MSAT_PER_SAT
        before = [await self._till.journal.spending(id_) for id_ in self._paid]
        return Msat(most - sum(s.cost for s in before if s.state not in _NOT_BEGUN))

    async def _asked(self, offer: Offer, call: UpstreamCall) -> Asked:
        """What the provider is to be asked. Raises UpstreamFailed when there is no way to it."""
        headers = {
            **call.headers,
            "content-type": call.payload.content_type,
            "accept": ", ".join(f"{kind}*" if kind.endswith("/") else kind for kind in call.accept),
        }
        if call.accept[0] == EVENT_STREAM:
            headers["x-cashu-change"] = "event"
        try:
            secret = await self._shop.carriages[offer.way].secret(offer.place)
        except CarriageError as error:
            self._shop.failed(offer)
            raise UpstreamFailed(private=str(error)) from None
        return Asked(
            path=f"/v1{call.path}",
            headers=headers,
            body=call.payload.encode(offer.model),
            price=offer.price,
            secret=secret,
            request_key=self._request.idempotency_key if self._hold is not None else None,
        )

    async def _ask(
        self, offer: Offer, call: UpstreamCall, spending: Spending, token: str, asked: Asked
    ) -> ProviderReply | Msat:
        """The answer as it begins, or how much the provider wants. Raises a NodeError."""
        streamed = call.accept[0] == EVENT_STREAM
        headers = {**asked.headers, "x-cashu": token}
        if asked.request_key is not None:
            headers["idempotency-key"] = spending.id  # the program's own might tell something
        body = call.payload.encode(offer.model) if asked.body is None else asked.body
        began = time.monotonic()
        reply: ProviderReply | None = None
        try:
            async with (
                asyncio.timeout(self._shop.settings.first_byte_timeout_s) as deadline,
                self._watched(spending, deadline, len(body)),
            ):
                answer = await self._shop.carriages[offer.way].open(
                    offer.place,
                    "POST",
                    asked.path,
                    headers,
                    body,
                    name=spending.id if asked.repeatable else None,
                    secret=asked.secret,
                )
                if answer.status == 402:
                    await answer.close()
                    return _demanded(answer)
                if not 200 <= answer.status < 300:
                    raise await self._refusal(offer, spending, answer)
                reply = ProviderReply(self._shop, self._till, offer, spending, answer, streamed)
                await reply.begin()
        except BaseException as error:
            if reply is not None:
                await reply.let_go()
            if isinstance(error, CarriageError | TimeoutError):
                self._shop.failed(offer)
                reason = str(error) or "no answer in time"
                raise _Unheard(private=reason) from None
            if isinstance(error, NodeError) and not _is_clients(error):
                self._shop.failed(offer)
            raise
        self._shop.served(offer, round((time.monotonic() - began) * 1000))
        return reply

    @asynccontextmanager
    async def _watched(
        self, spending: Spending, deadline: asyncio.Timeout, body_bytes: int
    ) -> AsyncIterator[None]:
        """Give up early on a provider that is silent and has not redeemed its token: it is taken
        back first, so that whoever was only slow is not paid and owes no answer."""
        silent_s = self._shop.settings.first_byte_timeout_s / LOOKS
        silent_s += body_bytes / SLOWEST_BYTES_PER_S

        async def watch() -> None:
            while True:
                await asyncio.sleep(silent_s)
                if await self._till.withdraw(spending):
                    deadline.reschedule(asyncio.get_running_loop().time())
                    return

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _refusal(self, offer: Offer, spending: Spending, answer: Answer) -> NodeError:
        """The error of an answer that is none, and the change that came with it."""
        change = change_of(answer)
        if change is not None:
            await self._till.keep(spending, change)
        try:
            body = without_tokens(await read_all(answer, MAX_ERROR_BYTES))
        except CarriageError:
            body = b""
        error = error_from_answer(offer.place.pubkey[:12], answer.status, answer.headers, body)
        if isinstance(error, InvalidValue) and any(
            f'"code":"{code}'.encode() in body.replace(b'": "', b'":"') for code in _MONEY_CODES
        ):
            return UpstreamFailed(private=error.private)  # it is about our token: ask another
        return error


def _note_failure(offer: Offer, failure: NodeError) -> None:
    log.warning(
        "provider_failed",
        provider=offer.place.pubkey,
        carriage=offer.way,
        reason=failure.private or failure.message,
    )


def _demanded(answer: Answer) -> Msat:
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
