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

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable

from node.core.accounts import HoldRequest
from node.core.catalog import Catalog
from node.core.exchange import Failed, Receipt, ReplyEvent, Request
from node.core.money import Msat
from node.errors import Answered, InsufficientBalance, NodeError
from node.ports import AnswerStore, Upstream
from node.service.answering import Answer
from node.service.buffers import Room
from node.service.inference.call import Prepare, PreparedCall
from node.service.inference.multipart import form_digest
from node.service.limits import Limiter
from node.service.payers import Payer, Refused
from node.service.replay import MAX_STORED_BYTES, Replay

PATIENCE_S = 15.0
"""Proxies and clients give a connection up on which nothing comes for a minute or less."""


class Pipeline:
    """Runs paid calls.

    Args:
        choose_payer: the payer a request names; raises NodeErrors.
        payment_request: a NUT-18 request for so many msat.
        limiter: bounds how many calls of one account run at the same time.
        answers: keeps what was answered under an idempotency key, of at most
            ``max_stored_bytes``; None keeps nothing, and such a request is not run again either.
        patience_s: a live stream begins after that, so that its carriage can keep it alive, even
            when nothing has come from the model server yet; not where the answer may turn out to
            be no stream.
        room: for answers that cannot pass as they come.
    """

    def __init__(
        self,
        catalog: Catalog,
        choose_payer: Callable[[Request], Awaitable[Payer]],
        upstream: Upstream,
        payment_request: Callable[[Msat], str | None],
        limiter: Limiter | None = None,
        answers: AnswerStore | None = None,
        *,
        max_stored_bytes: int = MAX_STORED_BYTES,
        patience_s: float = PATIENCE_S,
        room: Room | None = None,
    ) -> None:
        self._room = room or Room()
        self._payment_request = payment_request
        self._catalog = catalog
        self._choose_payer = choose_payer
        self._upstream = upstream
        self._limiter = limiter or Limiter()
        self._patience_s = patience_s
        self._replay = Replay(answers, max_stored_bytes)

    async def run(self, request: Request, prepare: Prepare) -> AsyncGenerator[ReplyEvent, None]:
        """The events of one call. Close the generator when the client is gone."""
        max_cost = Msat(0)
        digest = running = ""
        answer: Answer | None = None
        refused: Refused | None = None
        try:
            try:
                # first, because whoever cannot pay should not make us read megabytes of JSON
                payer = await self._choose_payer(request)
                self._limiter.enter(payer.limit_key)
                running = payer.limit_key
                prepared = prepare(request, self._catalog)
                call = prepared if isinstance(prepared, PreparedCall) else await prepared
                if request.idempotency_key:
                    digest = _digest(request)
                request.notes["model"] = call.model.id
                price = call.model.price
                max_cost = price.most(call.most)
                await payer.begin(
                    HoldRequest(
                        request_id=request.request_id,
                        request_key=request.idempotency_key,
                        digest=digest,
                        model=call.model.id,
                        price=price,
                        max_cost=max_cost,
                    )
                )
            except Refused as error:
                refused = error
            except NodeError as error:
                refused = Refused(error, Receipt(), error if isinstance(error, Answered) else None)
            else:
                answer = Answer(request, call, payer, self._upstream, self._patience_s, self._room)
                events = self._replay.recorded(request, answer, digest)
                try:
                    async for event in events:
                        yield event
                except Refused as error:
                    refused = error
                finally:
                    await events.aclose()
            if refused is not None:
                replayed = await self._replay.find(request, refused, digest)
                for event in replayed or [self._failed(refused, max_cost)]:
                    yield event
        finally:
            try:
                if answer is not None:
                    await answer.end()
            finally:
                self._limiter.leave(running)

    def _failed(self, refused: Refused, max_cost: Msat) -> Failed:
        """NUT-24: a 402 says what to pay and where."""
        if isinstance(refused.error, InsufficientBalance):
            refused.error.payment_request = self._payment_request(max_cost)
        return Failed(refused.error, refused.receipt)


def _digest(request: Request) -> str:
    """Of what is asked for: the same idempotency key with another digest is a conflict."""
    form = form_digest(request.headers.get("content-type", ""), request.body)
    body = request.body if form is None else form.encode()
    return hashlib.sha256(f"{request.method} {request.path}\n".encode() + body).hexdigest()
