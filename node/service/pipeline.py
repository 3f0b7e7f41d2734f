"""The one way a paid call goes: payer → prepare → begin → forward → meter → settle.

    begin ──▶ open upstream ──▶ chunks … ──▶ settle ──▶ Receipt
      │            │             │  │
      │            │             │  └─ upstream breaks off: settle what was seen, SSE error
      │            │             └──── client gone or cancels: settle what was seen
      │            └────────────────── upstream fails before the first byte: release
      └─────────────────────────────── cannot pay: nothing happened

A payer's money may still be on its way when the upstream is asked (a token at its mint). Then the
first byte waits for it, and a refusal stops the upstream.

Settled or released exactly once: the payer's hold makes a second attempt a no-op, and both make
sure of their effect before they first wait, so a cancelled task changes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable

import structlog

from node.core.accounts import HoldRequest
from node.core.catalog import Catalog
from node.core.exchange import Chunk, Failed, Receipt, ReplyEvent, Request, Started
from node.core.money import Msat
from node.errors import InsufficientBalance, InternalError, Interrupted, NodeError, UpstreamFailed
from node.ports import Upstream, UpstreamCall, UpstreamReply
from node.service.inference.call import Meter, Prepare, PreparedCall
from node.service.payers import Payer, Refused
from node.service.stopping import Stopped, StopScope

log = structlog.get_logger()

_CANCELLED = "cancelled by its sender; what the model server had done by then was charged"


class Pipeline:
    """Runs paid calls.

    Args:
        choose_payer: the payer a request names; raises NodeErrors.
        payment_request: a NUT-18 request for so many msat.
    """

    def __init__(
        self,
        catalog: Catalog,
        choose_payer: Callable[[Request], Awaitable[Payer]],
        upstream: Upstream,
        payment_request: Callable[[Msat], str | None],
    ) -> None:
        self._payment_request = payment_request
        self._catalog = catalog
        self._choose_payer = choose_payer
        self._upstream = upstream

    async def run(self, request: Request, prepare: Prepare) -> AsyncGenerator[ReplyEvent, None]:
        """The events of one call. Close the generator when the client is gone."""
        max_cost = Msat(0)
        try:
            # first, because whoever cannot pay should not make us read megabytes of JSON
            payer = await self._choose_payer(request)
            call = prepare(request, self._catalog)
            price = call.model.price
            max_cost = price.most(call.most)
            await payer.begin(
                HoldRequest(
                    request_id=request.request_id,
                    request_key=request.idempotency_key,
                    digest=_digest(request) if request.idempotency_key else "",
                    model=call.model.id,
                    price=price,
                    max_cost=max_cost,
                )
            )
        except Refused as refused:
            self._ask_for_payment(refused.error, max_cost)
            yield Failed(refused.error, refused.receipt)
            return
        except NodeError as error:
            self._ask_for_payment(error, max_cost)
            yield Failed(error)
            return
        answer = _Answer(request, call, payer, self._upstream)
        try:
            async with contextlib.aclosing(answer.events()) as events:
                async for event in events:
                    if isinstance(event, Failed):
                        self._ask_for_payment(event.error, max_cost)
                    yield event
        finally:
            await answer.end()

    def _ask_for_payment(self, error: NodeError, max_cost: Msat) -> None:
        """NUT-24: a 402 says what to pay and where."""
        if isinstance(error, InsufficientBalance):
            error.payment_request = self._payment_request(max_cost)


def _digest(request: Request) -> str:
    """Of what is asked for: the same idempotency key with another digest is a conflict."""
    return hashlib.sha256(f"{request.method} {request.path}\n".encode() + request.body).hexdigest()


class _Answer:
    """One call after its hold."""

    def __init__(
        self, request: Request, call: PreparedCall, payer: Payer, upstream: Upstream
    ) -> None:
        self._request = request
        self._call = call
        self._payer = payer
        self._upstream = upstream
        self._meter: Meter = call.make_meter(call)
        self._reply: UpstreamReply | None = None
        self._asked = False
        self._closed = False
        self._stop = StopScope(request.stop, payer.refused)

    async def events(self) -> AsyncGenerator[ReplyEvent, None]:
        call, meter = self._call, self._meter
        started = stopped = False
        failure: NodeError | None = None
        try:
            async with self._stop:
                self._asked = True
                self._reply = await self._upstream.open(
                    UpstreamCall(
                        model=call.model,
                        endpoint=call.endpoint,
                        path=call.path,
                        payload=call.payload,
                        request_id=self._request.request_id,
                        accept=call.accept,
                        headers=call.headers,
                    )
                )
            chunks = aiter(self._reply.chunks())
            while True:
                async with self._stop:
                    data = await anext(chunks, None)
                if data is None:
                    break
                out = meter.feed(data)
                if out:
                    if not started:
                        async with self._stop:
                            await self._payer.secured()
                        started = True
                        yield self._started()
                    yield Chunk(out)
                if meter.failure is not None:
                    raise meter.failure
            if not meter.complete:
                raise meter.failure or UpstreamFailed(private="the answer broke off")
        except Refused as refused:
            yield self._refusal(refused)
            return
        except Stopped:
            stopped = not meter.complete  # all of it may be here already
        except NodeError as error:
            failure = error
        except Exception:  # a bug must not keep the client's money held
            log.exception("internal_error", request_id=self._request.request_id)
            failure = InternalError()
        try:
            for event in await self._ending(started, stopped, failure):
                yield event
        except Refused as refused:  # only before anything was sent
            yield self._refusal(refused)

    async def _ending(
        self, started: bool, stopped: bool, failure: NodeError | None
    ) -> list[ReplyEvent]:
        """Settle or release, and what the client gets last. Raises Refused."""
        if stopped:
            return await self._stopped(started)
        request_id = self._request.request_id
        if failure is not None and not started:
            log.warning("upstream_failed", request_id=request_id, reason=failure.private)
            return [Failed(failure, await self._release())]
        receipt = await self._settle()
        events: list[ReplyEvent] = [] if started else [self._started()]
        if failure is None:
            tail = self._meter.finish(receipt.cost or Msat(0), receipt.change)
        else:
            tail = self._meter.abort(failure.document(request_id), receipt.change)
        return [*events, Chunk(tail), receipt]

    def _refusal(self, refused: Refused) -> Failed:
        self._closed = True
        return Failed(refused.error, refused.receipt)

    async def end(self) -> None:
        """Settle what a client that went away has seen, and let the upstream go."""
        self._stop.close()
        try:
            if not self._closed:
                with contextlib.suppress(Refused):  # its money never came: nothing to settle
                    await self._settle_if_asked()
        finally:
            if self._reply is not None:
                await self._reply.close()

    async def _stopped(self, started: bool) -> list[ReplyEvent]:
        """The end of an answer its client wants no more of."""
        if self._reply is not None:
            await self._reply.close()
        receipt = await self._settle_if_asked()
        if not self._call.stream:
            return [Failed(Interrupted(_CANCELLED), receipt)]
        events: list[ReplyEvent] = [] if started else [self._started()]
        tail = self._meter.cut(receipt.cost or Msat(0), receipt.change)
        return [*events, Chunk(tail), receipt]

    def _started(self) -> Started:
        content_type = self._reply.content_type if self._reply else self._call.accept[0]
        headers = {"content-type": content_type, "cache-control": "no-store"}
        live = self._call.stream and (self._payer.live or self._call.change_in_stream)
        return Started(200, headers, live)

    async def _settle_if_asked(self) -> Receipt:
        # The model server's work on the prompt is charged for, whatever has come of it.
        return await (self._settle() if self._asked else self._release())

    async def _settle(self) -> Receipt:
        self._closed = True
        usage = self._meter.usage()
        if self._reply is not None:
            cost = self._reply.backend.price.cost(usage)
        else:  # it is not known who had begun: nobody is charged for the dearest
            cost = min(backend.price.cost(usage) for backend in self._call.model.backends)
        return await self._payer.settle(cost, usage)

    async def _release(self) -> Receipt:
        self._closed = True
        return await self._payer.release()
