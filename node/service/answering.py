"""One call from its hold to its receipt: open the upstream, pass chunks on, settle or release.

Who takes its events (``Pipeline.run``) calls ``Answer.end`` in any case; what a client that went
away has seen is settled there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import replace

import structlog

from node.core.exchange import Chunk, Failed, Receipt, ReplyEvent, Request, Started
from node.core.money import Msat
from node.core.usage import Usage
from node.errors import AnswerTooLarge, InternalError, Interrupted, NodeError, UpstreamFailed
from node.ports import Upstream, UpstreamCall, UpstreamReply
from node.service.buffers import Room
from node.service.inference.call import EVENT_STREAM, JSON, Meter, PreparedCall
from node.service.payers import Payer, Refused
from node.service.stopping import Stopped, StopScope

log = structlog.get_logger()

HEAR_OUT_S = 1.0
"""How long a stream is read on after its client has left, for the count at its end."""
_CANCELLED = "cancelled by its sender; what the model server had done by then was charged"


def _most(call: PreparedCall) -> Usage:
    """What is charged for an answer of which nothing can be counted: its input, and the most it
    may have."""
    typical = call.typical
    return replace(
        call.most,
        prompt_tokens=typical.prompt_tokens,
        audio_ms=typical.audio_ms or call.most.audio_ms,
        source="estimated",
    )


_CLOSING: set[asyncio.Task[None]] = set()


async def _close_opened(opening: asyncio.Task[UpstreamReply]) -> None:
    (opened,) = await asyncio.gather(opening, return_exceptions=True)
    if not isinstance(opened, BaseException):
        await opened.close()


class Answer:
    """One call after its hold.

    Args:
        patience_s: a live stream begins after that, even when nothing has come from the model
            server yet; not where the answer may turn out to be no stream.
        room: for an answer that cannot pass as it comes.
    """

    def __init__(
        self,
        request: Request,
        call: PreparedCall,
        payer: Payer,
        upstream: Upstream,
        patience_s: float,
        room: Room,
    ) -> None:
        self._share = room.share()
        self._request = request
        self._call = call
        self.payer = payer
        self._upstream = upstream
        self._meter: Meter = call.make_meter(call)
        # Over Nostr the change has its place behind the last byte, whoever pays.
        behind = call.change_in_stream or request.carriage == "nostr"
        self._live = call.stream and (payer.live or behind)
        begins_early = self._live and request.carriage == "http" and JSON not in call.accept
        self._patience_s = patience_s if begins_early else None
        self._opening: asyncio.Task[UpstreamReply] | None = None
        self._reply: UpstreamReply | None = None
        self._asked = False
        self._served = False
        """Some of the answer has gone to the client."""
        self._closed = False
        self.whole = False
        """Nothing was missing at its end."""
        self._stop = StopScope(request.stop, payer.refused)

    async def events(self) -> AsyncGenerator[ReplyEvent, None]:
        """What the client gets. Raises Refused, before anything."""
        meter = self._meter
        started = stopped = False
        failure: NodeError | None = None
        try:
            reply = await self._open(self._patience_s)
            if reply is None:
                async with self._stop:
                    await self.payer.secured()
                started = True
                yield self._started()
                reply = await self._open(None)
                assert reply is not None
            chunks = aiter(reply.chunks())
            while True:
                if self._stop.armed:
                    async with self._stop:
                        data = await anext(chunks, None)
                else:
                    data = await anext(chunks, None)
                if data is None:
                    meter.feed(b"")
                    break
                out = meter.feed(data)
                if len(out) != len(data):
                    more = self._share.more(len(data) - len(out))
                    if more:
                        async with self._stop:
                            await self._share.take(more)
                if out:
                    if not started:
                        async with self._stop:
                            await self.payer.secured()
                        started = True
                        yield self._started()
                    self._served = True
                    yield Chunk(out)
                if meter.failure is not None:
                    raise meter.failure
            if not meter.complete:
                raise meter.failure or UpstreamFailed(private="the answer broke off")
        except Refused:
            self._closed = True
            raise
        except Stopped:
            stopped = not meter.complete  # all of it may be here already
        except NodeError as error:
            failure = error
        except Exception:  # a bug must not keep the client's money held
            log.exception("internal_error", request_id=self._request.request_id)
            failure = InternalError()
        try:
            ending = await self._ending(started, stopped, failure)
        except Refused:  # only before anything was sent
            self._closed = True
            raise
        self.whole = failure is None and not stopped
        for event in ending:
            yield event

    async def _ending(
        self, started: bool, stopped: bool, failure: NodeError | None
    ) -> list[ReplyEvent]:
        """Settle or release, and what the client gets last. Raises Refused."""
        if stopped:
            return await self._stopped(started)
        request_id = self._request.request_id
        if failure is not None and not self._served:
            log.warning("upstream_failed", request_id=request_id, reason=failure.private)
            if isinstance(failure, AnswerTooLarge):
                receipt = await self._settle(_most(self._call))
            else:
                receipt = await self._release()
            if not started:
                return [Failed(failure, receipt)]
        else:
            receipt = await self._settle()
        events: list[ReplyEvent] = [] if started else [self._started()]
        if failure is None:
            tail = self._meter.finish(receipt.cost or Msat(0), receipt.change)
        else:
            tail = self._meter.abort(failure.document(request_id), receipt.change)
        return [*events, Chunk(tail), receipt]

    async def end(self) -> None:
        """Settle what a client that went away has seen, and let the upstream go."""
        self._stop.close()
        try:
            if not self._closed:
                usage = self._meter.usage() if self._asked else None
                try:
                    usage = await self._hear_out() or usage
                finally:
                    with contextlib.suppress(Refused):  # its money never came: nothing to settle
                        await self._settle_if_asked(usage)
        finally:
            self._share.close()
            await self._let_go()

    async def _hear_out(self) -> Usage | None:
        """What the end of a stream says it took, when it comes at once: who leaves as soon as the
        text is there has had the reasoning before it, too."""
        reply = self._reply
        if reply is None or not (self._served and self._call.stream and reply.resumable):
            return None
        try:
            async with asyncio.timeout(HEAR_OUT_S):
                async for data in reply.chunks():
                    self._meter.feed(data)
                    if self._meter.complete:
                        return self._meter.usage()
        except (TimeoutError, NodeError):
            pass
        return None

    async def _open(self, timeout_s: float | None) -> UpstreamReply | None:
        """Ask the upstream; None when it has not begun to answer in that time, and goes on.

        Raises what ``Upstream.open`` raises, and Stopped.
        """
        if self._opening is None and timeout_s is None:
            async with self._stop:
                self._asked = True
                self._reply = await self._upstream.open(self._upstream_call())
            return self._reply
        async with self._stop:
            self._asked = True
            if self._opening is None:
                opening = self._upstream.open(self._upstream_call())
                self._opening = asyncio.ensure_future(opening)
            done, _ = await asyncio.wait({self._opening}, timeout=timeout_s)
        if done:
            self._reply = self._opening.result()
        return self._reply

    def _upstream_call(self) -> UpstreamCall:
        call = self._call
        return UpstreamCall(
            model=call.model,
            endpoint=call.endpoint,
            path=call.path,
            payload=call.payload,
            request_id=self._request.request_id,
            accept=call.accept,
            headers=call.headers,
        )

    async def _let_go(self) -> None:
        """Stop the upstream when it still works. Idempotent."""
        opening, self._opening = self._opening, None
        if opening is not None and self._reply is None:
            opening.cancel()
            # apart: it may have opened all the same, and then is closed whoever cancels this
            closing = asyncio.ensure_future(_close_opened(opening))
            _CLOSING.add(closing)
            closing.add_done_callback(_CLOSING.discard)
            await asyncio.shield(closing)
        if self._reply is not None:
            await self._reply.close()

    async def _stopped(self, started: bool) -> list[ReplyEvent]:
        """The end of an answer its client wants no more of."""
        await self._let_go()
        receipt = await self._settle_if_asked()
        if not self._call.stream:
            return [Failed(Interrupted(_CANCELLED), receipt)]
        events: list[ReplyEvent] = [] if started else [self._started()]
        tail = self._meter.cut(receipt.cost or Msat(0), receipt.change)
        return [*events, Chunk(tail), receipt]

    def _started(self) -> Started:
        content_type = self._reply.content_type if self._reply else self._call.accept[0]
        content_type = self._call.content_type or content_type
        if content_type.startswith("text/") and content_type != EVENT_STREAM:
            content_type += "; charset=utf-8"  # clients guess otherwise
        headers = {"content-type": content_type, "cache-control": "no-store"}
        return Started(200, headers, self._live)

    async def _settle_if_asked(self, usage: Usage | None = None) -> Receipt:
        # The model server's work on the prompt is charged for, whatever has come of it.
        return await (self._settle(usage) if self._asked else self._release())

    async def _settle(self, usage: Usage | None = None) -> Receipt:
        self._closed = True
        usage = usage or self._meter.usage()
        if self._reply is not None:
            cost = self._reply.backend.price.cost(usage)
        else:  # it is not known who had begun: nobody is charged for the dearest
            cost = min(backend.price.cost(usage) for backend in self._call.model.backends)
        receipt = await self.payer.settle(cost, usage)
        if receipt.cost is not None and receipt.cost < cost:
            # the upstream counted more than can be: a context or a limit it does not keep to
            log.error(
                "cost_above_hold",
                request_id=self._request.request_id,
                model=self._call.model.id,
                cost_msat=cost,
                charged_msat=receipt.cost,
            )
        return receipt

    async def _release(self) -> Receipt:
        self._closed = True
        return await self.payer.release()
