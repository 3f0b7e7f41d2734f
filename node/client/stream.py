"""One request of a client and its answer as it comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import orjson

from node.transport.dm.assembly import ReplyAssembler, ReplyError
from node.transport.dm.codec import Nack, ReplyPiece
from node.transport.dm.cutter import OMITTED_HEADER
from node.transport.dm.writing import build_cancel, build_nack

_INCOMPLETE = 408
_MAX_ANEW = 3


class MessageTooLarge(Exception):
    """Relays refused a request's first part; it has to be cut into smaller ones."""


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
        cut: Callable[[], Sequence[str]],
        *,
        publish: Callable[[Sequence[str], Callable[[str], object]], Awaitable[bool]],
        forget: Callable[[], object],
        timeout_s: float,
        max_reply_bytes: int,
        patience: Patience,
    ) -> None:
        self.id = message_id
        """The message id: what asks for the same answer again."""
        self._cut = cut
        self._contents: Sequence[str] = ()
        self._begun_anew = 0
        self._taken: set[str] = set()  # of the contents, what a relay has
        self._sending: asyncio.Task[None] | None = None
        self._resending: asyncio.Task[bool] | None = None
        self._saying: asyncio.Task[bool] | None = None
        self._publish = publish
        self._forget = forget
        self._patience = patience
        self._assembler = ReplyAssembler(max_reply_bytes=max_reply_bytes)
        self._timeout_s = timeout_s
        self._deadline: float | None = None
        self._news = asyncio.Event()
        self._failure: Exception | None = None
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
                await self._publish([build_cancel(self.id)], _ignore)
        except TimeoutError:
            return

    async def aclose(self) -> None:
        """Stop listening; tell the node to stop when the answer is not complete. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._forget()
        begun = (self._sending, self._resending, self._saying)
        tasks = [task for task in begun if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.cancel()

    def receive(self, piece: ReplyPiece | Nack) -> None:
        """Take what arrived: a piece, or the node's wish for parts of the request again."""
        if isinstance(piece, Nack):
            self._send_parts(piece.seqs)
            return
        if piece.status == _INCOMPLETE and self._assembler.empty and self._begun_anew < _MAX_ANEW:
            self._begun_anew += 1  # parts got lost for so long that the node forgot the others
            self._send()
            return
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
                    self._send()
                await self._wait_for_news()
                if self._restarts != self._assembler.restarts:
                    self._restarts = self._assembler.restarts
                    if self._assembler.empty:  # the bytes were not those of the digest
                        self._send()
        except TimeoutError:
            raise ReplyTimeout(f"no complete reply within {self._timeout_s:g} s") from None
        if self._failure is not None:
            raise self._failure

    async def _wait_for_news(self) -> None:
        while not self._news.is_set():
            gap = bool(self._assembler.missing(1))
            if self._is_sending and not gap:  # silence counts from when the request is out
                self._heard_at = time.monotonic()
            wait_s = self._gap_s if gap else self._idle_s
            try:
                async with asyncio.timeout(self._heard_at + wait_s - time.monotonic()):
                    await self._news.wait()
            except TimeoutError:
                if gap or not self._is_sending:
                    self._ask_again()
        self._news.clear()

    @property
    def _is_sending(self) -> bool:
        return self._sending is not None and not self._sending.done()

    def _send(self) -> None:
        """Begin to send the request; the answer may come before every relay has said OK."""
        if not self._is_sending:
            self._taken.clear()
            self._sending = asyncio.create_task(self._send_all())

    async def _send_all(self) -> None:
        try:
            taken = await self._send_cut()
        except Exception as error:  # of the key or the headers: who waits is told
            self._failure = error
            self._news.set()
            return
        self._heard_at = time.monotonic()
        if not taken:
            self._idle_s = self._patience.gap_s
            self._news.set()  # whoever waits has to wait less

    async def _send_cut(self) -> bool:
        """Send all parts, cut smaller until they pass; whether relays took them all."""
        while True:
            self._contents = self._contents or self._cut()
            try:
                return await self._publish(self._contents, self._taken.add)
            except MessageTooLarge:
                self._contents = ()

    def _send_parts(self, indexes: Sequence[int]) -> None:
        """Send parts of the request again, but for those that are still on their way."""
        contents = [self._contents[index] for index in indexes if index < len(self._contents)]
        if self._is_sending:
            contents = [content for content in contents if content in self._taken]
        busy = self._resending is not None and not self._resending.done()
        if not contents or busy or self._closed or not self._assembler.empty:
            return
        self._heard_at = time.monotonic()
        self._resending = asyncio.create_task(self._publish_parts(contents))

    async def _publish_parts(self, contents: Sequence[str]) -> bool:
        try:
            return await self._publish(contents, _ignore)
        except MessageTooLarge:  # the relays have changed their mind; all of it comes when idle
            self._contents = ()
            return False

    def _say(self, content: str) -> None:
        """Send a control message, unless the last one is still on its way."""
        if self._saying is None or self._saying.done():
            self._saying = asyncio.create_task(self._publish_parts([content]))

    def _ask_again(self) -> None:
        """A gap is asked for by number; silence by the next number, then by the request."""
        patience = self._patience
        if missing := self._assembler.missing():
            self._gap_s = min(self._gap_s * 2, patience.max_gap_s)
            self._say(build_nack(self.id, missing))
            if self._gap_s < patience.max_gap_s:
                self._heard_at = time.monotonic()
                return
        elif not self._assembler.empty and self._idle_s == patience.idle_s:
            self._idle_s = min(self._idle_s * 2, patience.max_idle_s)
            self._say(build_nack(self.id, [self._assembler.expected]))
            self._heard_at = time.monotonic()
            return
        self._idle_s = min(self._idle_s * 2, patience.max_idle_s)
        self._send()


def _ignore(_content: str) -> None:
    """Nobody needs to know when a relay took it."""
