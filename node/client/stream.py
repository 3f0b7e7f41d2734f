"""One request of a client and its answer as it comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import orjson

from node.transport.dm.assembly import ReplyAssembler, ReplyError
from node.transport.dm.codec import ReplyPiece, build_cancel, build_nack
from node.transport.dm.cutter import OMITTED_HEADER


class ReplyTimeout(ReplyError):
    """The reply was not complete in time."""


@dataclass(frozen=True, slots=True)
class Patience:
    """When the client asks again."""

    gap_s: float = 1.0
    """From noticing a gap to asking for it; doubles each time."""
    max_gap_s: float = 10.0
    idle_s: float = 10.0
    """Of silence, before asking for what comes next or sending the request again; doubles."""
    max_idle_s: float = 60.0
    publish_timeout_s: float = 10.0
    connect_timeout_s: float = 10.0
    cancel_timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class ClientReply:
    """A complete answer. Header and trailer names are lower-case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    trailers: Mapping[str, str] = field(repr=False)

    def json(self) -> Any:
        """The body as JSON. Raises ValueError when it is not."""
        return orjson.loads(self.body)

    @property
    def change(self) -> str | None:
        """The Cashu token that came back, if any."""
        token = self.trailers.get("x-cashu") or self.headers.get("x-cashu", "")
        return token if token.startswith("cashu") else None  # a 402 asks for money there

    @property
    def change_omitted(self) -> bool:
        """There is change, too large to travel beside the answer: ``POST /v1/balance/refund``
        with the token that paid gives it."""
        return OMITTED_HEADER in self.trailers or OMITTED_HEADER in self.headers


class ReplyStream:
    """One request and its answer as it comes: iterate it for body bytes, in order.

    Made by ``NostrClient.stream``; the request is sent on the first wait. Leaving early with
    ``aclose`` (or the end of ``async with``) tells the node to stop; to stop and still get the
    change, ``cancel`` and read on.
    """

    def __init__(
        self,
        message_id: str,
        contents: Sequence[str],
        *,
        publish: Callable[[Sequence[str]], Awaitable[bool]],
        forget: Callable[[], object],
        timeout_s: float,
        max_reply_bytes: int,
        patience: Patience,
    ) -> None:
        self.id = message_id
        """The message id: what asks for the same answer again."""
        self._contents = contents
        self._publish = publish
        self._forget = forget
        self._patience = patience
        self._assembler = ReplyAssembler(max_reply_bytes=max_reply_bytes)
        self._timeout_s = timeout_s
        self._deadline: float | None = None
        self._news = asyncio.Event()
        self._failure: ReplyError | None = None
        self._restarts = 0
        self._gap_s = patience.gap_s
        self._idle_s = patience.idle_s
        self._heard_at = 0.0
        self._closed = False

    @property
    def status(self) -> int | None:
        """HTTP status; None before the answer began."""
        return self._assembler.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._assembler.headers

    @property
    def trailers(self) -> Mapping[str, str]:
        """Complete after the last byte: ``x-cashu`` (change), ``x-cost-msat``."""
        return self._assembler.trailers

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Raises ReplyTimeout, ReplyError."""
        while not (data := self._assembler.take()):
            if self._assembler.complete:
                await self.aclose()
                raise StopAsyncIteration
            await self._progress()
        return data

    async def started(self) -> int:
        """Wait for the status. Raises ReplyTimeout, ReplyError."""
        while self._assembler.status is None:
            await self._progress()
        return self._assembler.status

    async def read(self) -> ClientReply:
        """Wait for the whole answer. Raises ReplyTimeout, ReplyError."""
        while not self._assembler.complete:
            await self._progress()
        status = await self.started()
        return ClientReply(status, self.headers, self._assembler.take(), self.trailers)

    async def cancel(self) -> None:
        """Tell the node to stop, unless the answer is complete or was not asked for. It then ends
        the answer early: what it had generated is charged, and the trailers bring the change."""
        if self._deadline is None or self._assembler.complete:
            return
        try:
            async with asyncio.timeout(self._patience.cancel_timeout_s):
                await self._publish([build_cancel(self.id)])
        except TimeoutError:
            return

    async def aclose(self) -> None:
        """Stop listening; tell the node to stop when the answer is not complete. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._forget()
        await self.cancel()

    def receive(self, piece: ReplyPiece) -> None:
        """Take a piece that arrived."""
        try:
            new = self._assembler.add(piece)
        except ReplyError as error:
            self._failure = error
            new = True
        if new:
            self._heard_at = time.monotonic()
            self._gap_s, self._idle_s = self._patience.gap_s, self._patience.idle_s
            self._news.set()

    async def _progress(self) -> None:
        """Wait until something new is here, asking again for what does not come."""
        if self._closed:
            raise ReplyError("the stream is closed")
        begins = self._deadline is None
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._timeout_s
        try:
            async with asyncio.timeout_at(self._deadline):
                if begins:
                    await self._send()
                await self._wait_for_news()
                if self._restarts != self._assembler.restarts:
                    self._restarts = self._assembler.restarts
                    if self._assembler.empty:  # the bytes were not those of the digest
                        await self._send()
        except TimeoutError:
            raise ReplyTimeout(f"no complete reply within {self._timeout_s:g} s") from None
        if self._failure is not None:
            raise self._failure

    async def _wait_for_news(self) -> None:
        while not self._news.is_set():
            wait_s = self._gap_s if self._assembler.missing(1) else self._idle_s
            try:
                async with asyncio.timeout(self._heard_at + wait_s - time.monotonic()):
                    await self._news.wait()
            except TimeoutError:
                await self._ask_again()
        self._news.clear()

    async def _send(self) -> None:
        taken = await self._publish(self._contents)
        self._heard_at = time.monotonic()
        if not taken:
            self._idle_s = self._patience.gap_s

    async def _ask_again(self) -> None:
        """A gap is asked for by number; silence by the next number, then by the request."""
        patience = self._patience
        if missing := self._assembler.missing():
            self._gap_s = min(self._gap_s * 2, patience.max_gap_s)
            await self._publish([build_nack(self.id, missing)])
            if self._gap_s < patience.max_gap_s:
                self._heard_at = time.monotonic()
                return
        elif not self._assembler.empty and self._idle_s == patience.idle_s:
            self._idle_s = min(self._idle_s * 2, patience.max_idle_s)
            await self._publish([build_nack(self.id, [self._assembler.expected])])
            self._heard_at = time.monotonic()
            return
        self._idle_s = min(self._idle_s * 2, patience.max_idle_s)
        await self._send()
