"""One request, exactly once: the log, the dispatcher, the reply. Nothing here knows a relay.

Told to stop (``Request.stop``) a reply ends early but in order, final frame and change included,
and is kept like any other. To cancel the task is for a node that shuts down: nothing is kept.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol
from uuid import uuid4

import structlog

from node.core.exchange import Chunk, Failed, Receipt, ReplyEvent, Request, Started
from node.errors import IdempotencyConflict, InternalError, InvalidValue, NodeError
from node.ports import MessageLog, StoredReply
from node.transport.dm.assembly import CompleteRequest
from node.transport.dm.limits import DmLimits, Pacing
from node.transport.dm.reply import (
    CHANGE_TRAILER,
    COST_TRAILER,
    Channel,
    FramedReply,
    PlainReply,
    ReplyWriter,
    Transcript,
    error_contents,
    error_headers,
    request_id_headers,
)
from node.transport.dm.target import parse_target

_log = structlog.get_logger()
_ASK_AGAIN = frozenset({425, 429, 503})
_REFUSALS = frozenset({400, 401, 402, 404, 405, 422})
_ACCOUNT_PATHS = ("/v1/wallet/", "/v1/balance/")
"""Nothing here costs anything, and nothing here succeeds without a key or a token."""


class Handler(Protocol):
    """What a dispatcher is to a carriage."""

    def handle(self, request: Request) -> AsyncGenerator[ReplyEvent, None]:
        """The events of one request; closed by the caller when the client is gone."""
        ...


def to_request(sender: str, complete: CompleteRequest) -> Request:
    """The neutral form of a complete message. Raises NotFound, InvalidValue."""
    path, query = parse_target(complete.head.url)
    headers = complete.head.headers
    key = headers.get("idempotency-key")
    if key is not None and not (1 <= len(key) <= 255 and key.isprintable()):
        raise InvalidValue("idempotency-key must have 1 to 255 characters", param="headers")
    return Request(
        request_id=uuid4().hex,
        method=complete.head.method,
        path=path,
        headers=headers,
        body=complete.body,
        query=query,
        carriage="nostr",
        peer=sender,
        idempotency_key=key or f"nostr:{sender}:{complete.id}",
        stop=asyncio.Event(),
    )


def counts_as_paid(path: str, status: int, cost: int) -> bool:
    """Whether an answer is none of those that everyone gets a few of for free.

    Args:
        cost: msat charged.
    """
    if path.startswith(_ACCOUNT_PATHS):
        return status == 200
    return cost > 0 and status not in _REFUSALS


@dataclass(slots=True)
class Progress:
    """How far the answer is: what must be known when it breaks off."""

    message_id: str
    writer: ReplyWriter
    transcript: Transcript
    receipt: Receipt
    ask_again: bool = False
    """The answer is to be different next time, so it is not kept for replay."""


class ExchangeRunner:
    """Runs or replays one request and writes its reply to a channel."""

    def __init__(
        self, dispatcher: Handler, log: MessageLog, limits: DmLimits, pacing: Pacing
    ) -> None:
        self._dispatcher = dispatcher
        self._messages = log
        self._limits = limits
        self._pacing = pacing

    async def serve(
        self, request: Request, digest: str, channel: Channel, *, replay: bool = True
    ) -> bool:
        """Answer ``request``; the durable log decides whether it runs or is replayed.

        Returns whether it counts as paid. Raises nothing but CancelledError: what goes wrong
        becomes an error reply.

        Args:
            replay: False for what a relay hands out again on its own: silence when answered.
        """
        try:
            async with asyncio.timeout(self._limits.log_timeout_s):
                record = await self._messages.begin(request.peer, channel.message_id, digest)
        except Exception as error:
            _log.error("dm_log_failed", request_id=request.request_id, reason=_name(error))
            self._refuse(InternalError(), request, channel)
            return False
        if record.state == "conflict":
            self._refuse(IdempotencyConflict(), request, channel)
            return False
        if record.state == "done" and record.reply is not None:
            reply = record.reply
            if replay:
                await self._replay(reply, channel)
            cost = reply.trailers.get(COST_TRAILER, "0")
            return counts_as_paid(request.path, reply.status, int(cost))
        # "started" and not running here: the node stopped meanwhile. The services know the
        # idempotency key and do not charge twice.
        return await self._run(request, channel)

    def _refuse(self, error: NodeError, request: Request, channel: Channel) -> None:
        for content in error_contents(
            error, channel.message_id, request.request_id, frames=channel.frames
        ):
            channel.post(content)

    async def _replay(self, reply: StoredReply, channel: Channel) -> None:
        if await channel.repeat():
            return
        writer = self._writer(channel)
        writer.start(reply.status, reply.headers, live=False)
        await writer.write(reply.body)
        writer.finish(reply.trailers)

    async def _run(self, request: Request, channel: Channel) -> bool:
        progress = Progress(
            channel.message_id,
            self._writer(channel),
            Transcript(self._limits.max_stored_reply_bytes),
            Receipt(),
        )
        try:
            await self._consume(request, progress)
            await self._finish(request, progress)
        except asyncio.CancelledError:
            progress.writer.abort()
            raise
        except Exception as error:
            # No message: it may quote the request. The place is enough to find the bug.
            _log.error(
                "dm_request_failed",
                request_id=request.request_id,
                reason=_name(error),
                where=_place(error),
            )
            await self._break_off(request, progress)
        status, cost = progress.transcript.status, progress.receipt.cost or 0
        return counts_as_paid(request.path, status, cost)

    async def _consume(self, request: Request, progress: Progress) -> None:
        events = self._dispatcher.handle(request)
        try:
            async with asyncio.timeout(self._limits.run_timeout_s):
                async for event in events:
                    await self._take(event, request, progress)
        finally:
            await events.aclose()

    async def _take(self, event: ReplyEvent, request: Request, progress: Progress) -> None:
        match event:
            case Started():
                headers = {**request_id_headers(request.request_id), **event.headers}
                self._start(progress, event.status, headers, live=event.live)
            case Chunk():
                progress.transcript.write(event.data)
                await progress.writer.write(event.data)
            case Receipt():
                progress.receipt = event
            case Failed():
                progress.receipt = event.receipt
                progress.ask_again = event.error.retry is True
                if progress.transcript.begun:
                    raise RuntimeError("the dispatcher failed after it had started")
                await self._fail(event.error, request, progress, event.headers)

    async def _fail(
        self,
        error: NodeError,
        request: Request,
        progress: Progress,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        body = error.body(request.request_id)
        headers = {**headers, **error_headers(error, request.request_id)}
        self._start(progress, error.status, headers, live=False)
        progress.transcript.write(body)
        await progress.writer.write(body)

    def _start(
        self, progress: Progress, status: int, headers: Mapping[str, str], *, live: bool
    ) -> None:
        progress.transcript.start(status, headers)
        progress.writer.start(status, headers, live=live)

    async def _finish(self, request: Request, progress: Progress) -> None:
        """Keep the answer, then let its last frame go: what is lost can be asked for again."""
        if not progress.transcript.begun:
            raise RuntimeError("the dispatcher gave no reply")
        trailers = _trailers(progress.receipt)
        ask_again = progress.ask_again or progress.transcript.status in _ASK_AGAIN
        if not ask_again or CHANGE_TRAILER in trailers:
            await self._keep(request, progress.message_id, progress.transcript.reply(trailers))
        progress.writer.finish(trailers)

    async def _keep(self, request: Request, message_id: str, reply: StoredReply) -> None:
        try:
            async with asyncio.timeout(self._limits.log_timeout_s):
                await self._messages.finish(request.peer, message_id, reply)
        except Exception as error:
            # The client still gets its answer; asking again runs it by its idempotency key.
            _log.error("dm_reply_not_kept", request_id=request.request_id, reason=_name(error))

    async def _break_off(self, request: Request, progress: Progress) -> None:
        """End a reply after a bug. It is not kept, so the same id runs again."""
        error, trailers = InternalError(), _trailers(progress.receipt)
        writer, transcript = progress.writer, progress.transcript
        try:
            if not transcript.begun:
                await self._fail(error, request, progress)
                writer.finish(trailers)
            elif transcript.content_type.startswith("text/event-stream"):
                await writer.write(b"data: " + error.body(request.request_id) + b"\n\n")
                writer.finish(trailers)
            else:
                writer.abort()
        except Exception as failure:
            _log.error("dm_reply_failed", request_id=request.request_id, reason=_name(failure))
            writer.abort()

    def _writer(self, channel: Channel) -> ReplyWriter:
        if channel.frames:
            return FramedReply(channel, self._limits, self._pacing)
        return PlainReply(channel, self._limits)


def _trailers(receipt: Receipt) -> dict[str, str]:
    trailers = {}
    if receipt.change is not None:
        trailers[CHANGE_TRAILER] = receipt.change
    if receipt.cost is not None:
        trailers[COST_TRAILER] = str(receipt.cost)
    return trailers


def _name(error: BaseException) -> str:
    return type(error).__name__


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
