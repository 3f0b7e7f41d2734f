"""What was answered under an idempotency key: kept, and given again to who asks again."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace

import structlog

from node.core.exchange import Chunk, Receipt, ReplyEvent, Request, Started, StoredAnswer
from node.core.money import Msat
from node.ports import AnswerStore
from node.service.answering import Answer
from node.service.payers import Payer, Refused

log = structlog.get_logger()

MAX_STORED_BYTES = 8 << 20
"""Longest answer that is kept."""


class Replay:
    """The answers to requests that their clients have named.

    Args:
        answers: keeps them; None keeps nothing, and such a request is not run again either.
    """

    def __init__(self, answers: AnswerStore | None, max_stored_bytes: int) -> None:
        self._answers = answers
        self._max_stored_bytes = max_stored_bytes

    async def find(
        self, request: Request, refused: Refused, digest: str
    ) -> list[ReplyEvent] | None:
        """What was answered to the request that ``request`` repeats; None when nothing is kept.

        Args:
            digest: of ``request``; what was answered to another body is never found.
        """
        if self._answers is None or refused.answered is None or not _is_named(request):
            return None
        key = request.idempotency_key or ""
        stored = await self._answers.find(refused.answered.hold_id, key, digest)
        if stored is None:
            return None
        headers = {"content-type": stored.content_type, "cache-control": "no-store"}
        return [
            Started(stored.status, headers | {"idempotent-replayed": "true"}),
            Chunk(stored.body),
            replace(refused.receipt, cost=stored.cost),
        ]

    def recorded(
        self, request: Request, answer: Answer, digest: str
    ) -> AsyncGenerator[ReplyEvent, None]:
        """The events of ``answer``, kept for when ``request`` comes again if that may be."""
        events = answer.events()
        if self._answers is None or not _is_named(request):
            return events
        return self._record(self._answers, request, answer, events, digest)

    async def _record(
        self,
        answers: AnswerStore,
        request: Request,
        answer: Answer,
        events: AsyncGenerator[ReplyEvent, None],
        digest: str,
    ) -> AsyncGenerator[ReplyEvent, None]:
        """They are kept before the last of them leaves.

        An answer that broke off, was stopped, or is too long is not kept.
        """
        started: Started | None = None
        body = bytearray()
        last: Chunk | None = None
        try:
            async for event in events:
                if isinstance(event, Chunk):
                    if len(body) <= self._max_stored_bytes:
                        body += event.data
                    before, last = last, event
                    if before is not None:
                        yield before
                    continue
                if isinstance(event, Started):
                    started = event
                elif isinstance(event, Receipt) and last is not None:
                    if answer.whole and started and len(body) <= self._max_stored_bytes:
                        type_ = started.headers["content-type"]
                        cost = event.cost or Msat(0)
                        stored = StoredAnswer(started.status, type_, bytes(body), cost)
                        await _keep(answers, request, answer.payer, digest, stored)
                    yield last
                yield event
        finally:
            await events.aclose()


def _is_named(request: Request) -> bool:
    """Whether the client itself has named its request."""
    return "idempotency-key" in request.headers


async def _keep(
    answers: AnswerStore, request: Request, payer: Payer, digest: str, stored: StoredAnswer
) -> None:
    try:
        hold_id = await payer.hold_id()
        await answers.keep(hold_id, request.idempotency_key or "", digest, stored)
    except Exception as error:  # the client has paid and gets its answer all the same
        log.error("answer_not_kept", request_id=request.request_id, reason=type(error).__name__)
