"""A client of nodes that are reached through relays only.

    async with NostrClient(["wss://relay.example.com"]) as client:
        reply = await client.request(npub, "POST", "/v1/chat/completions",
                                     headers={"x-cashu": token}, body=b"{…}")
        async with client.stream(npub, "POST", "/v1/chat/completions", body=b"{…}") as stream:
            async for data in stream: …
            change = stream.trailers.get("x-cashu")

Loss, reordering and repetition on the way are handled here: what is missing is asked for again,
and the request itself is sent again under the same id, which the node answers once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import Any, Self
from uuid import uuid4

import orjson

from discovery.errors import DiscoveryError
from discovery.nostr.event import Rumor
from discovery.nostr.giftwrap import (
    EPHEMERAL_GIFT_WRAP,
    GIFT_WRAP,
    MAX_BACKDATE_S,
    unwrap,
    wrap,
)
from discovery.nostr.keys import Keys, parse_pubkey
from discovery.nostr.pool import RelayPool, Subscription
from node.transport.dm.assembly import ReplyAssembler, ReplyError
from node.transport.dm.codec import (
    REPLY_KIND,
    REQUEST_KIND,
    BadMessage,
    ReplyPiece,
    build_cancel,
    build_nack,
    build_request,
    parse_reply,
)

_MAX_REPLY_RELAYS = 5
_MAX_LIFETIME_S = 86_400
_EPHEMERAL_OVERLAP_S = 300
_STORED_OVERLAP_S = MAX_BACKDATE_S + 900


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


class NostrClient:
    """Sends requests as gift wraps. ``async with``; one receiving loop serves all requests.

    Args:
        relays: ws:// or wss:// URLs where the nodes listen; the first five are named for replies.
        keys: the session's keys; fresh ones when omitted, which is what privacy asks for.
        stored: send stored wraps (1059), for nodes that may be offline; else ephemeral (21059).
        take_stored: also listen for stored copies, which carry change that got lost.
        max_reply_bytes: the longest reply taken.
    """

    def __init__(
        self,
        relays: Sequence[str],
        *,
        keys: Keys | None = None,
        stored: bool = False,
        take_stored: bool = True,
        max_reply_bytes: int = 64 * 2**20,
        patience: Patience | None = None,
    ) -> None:
        self._keys = keys or Keys.generate()
        self._patience = patience or Patience()
        self._kind = GIFT_WRAP if stored else EPHEMERAL_GIFT_WRAP
        self._kinds = [EPHEMERAL_GIFT_WRAP] if not (stored or take_stored) else _BOTH_KINDS
        self._max_reply_bytes = max_reply_bytes
        self._pool = RelayPool(
            relays, keys=self._keys, connect_timeout_s=self._patience.connect_timeout_s
        )
        self._streams: dict[tuple[str, str], ReplyStream] = {}
        self._loops: list[asyncio.Task[None]] = []

    @property
    def pubkey(self) -> str:
        """The session's public key, hex."""
        return self._keys.pubkey

    async def __aenter__(self) -> Self:
        await self._pool.start()
        subscriptions = [self._pool.subscribe(partial(self._filters, kind)) for kind in self._kinds]
        self._loops = [
            asyncio.create_task(self._listen(subscription)) for subscription in subscriptions
        ]
        # A request must not be answered before we listen; a relay without EOSE costs the deadline.
        await subscriptions[0].eose(self._patience.connect_timeout_s)
        return self

    async def __aexit__(self, *_: object) -> None:
        for stream in list(self._streams.values()):
            await stream.aclose()
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._pool.close()

    async def request(
        self,
        provider: str,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout_s: float = 120.0,
        plain: bool = False,
        message_id: str | None = None,
    ) -> ClientReply:
        """Send a request and wait for the whole answer; the arguments are those of ``stream``.

        Raises ReplyTimeout, ReplyError, ValueError, InvalidKey.
        """
        async with self.stream(
            provider,
            method,
            url,
            headers=headers,
            body=body,
            timeout_s=timeout_s,
            plain=plain,
            message_id=message_id,
        ) as stream:
            return await stream.read()

    def stream(
        self,
        provider: str,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout_s: float = 120.0,
        plain: bool = False,
        message_id: str | None = None,
    ) -> ReplyStream:
        """A request whose answer is read as it comes.

        Args:
            provider: the node's npub or hex public key.
            url: path and query, such as ``/v1/models``.
            timeout_s: for the whole answer.
            plain: ask for http2nostr's format, which comes only when the answer is complete.
            message_id: repeats an earlier request when given: same id, same answer.

        Raises InvalidKey; ValueError when headers are too large for an event or the id is in use.
        """
        pubkey = parse_pubkey(provider)
        message_id = message_id or uuid4().hex
        key = (pubkey, message_id)
        if key in self._streams:
            raise ValueError("a request of this id is under way")
        contents = build_request(
            message_id,
            method,
            url,
            headers or {},
            body,
            frames=not plain,
            expires=int(time.time()) + min(ceil(timeout_s), _MAX_LIFETIME_S),
            relays=self._pool.urls[:_MAX_REPLY_RELAYS],
            wrap=self._kinds,
        )
        stream = ReplyStream(self, key, contents, timeout_s, self._max_reply_bytes, self._patience)
        self._streams[key] = stream
        return stream

    async def publish(self, provider: str, contents: Sequence[str]) -> bool:
        """Send kind 80 rumors; True when of each at least one relay took the wrap."""
        taken = await asyncio.gather(*(self._publish(provider, content) for content in contents))
        return all(taken)

    def forget(self, key: tuple[str, str]) -> None:
        """No longer deliver replies to (provider, id)."""
        self._streams.pop(key, None)

    async def _publish(self, provider: str, content: str) -> bool:
        rumor = Rumor.new(self._keys.pubkey, REQUEST_KIND, content)
        stored = self._kind == GIFT_WRAP
        expiration = rumor.created_at + _MAX_LIFETIME_S if stored else None
        event = wrap(
            rumor, self._keys, provider, kind=self._kind, expiration=expiration, backdate=stored
        )
        results = await self._pool.publish(
            event, timeout_s=self._patience.publish_timeout_s, enough=1
        )
        return any(result.ok for result in results.values())

    def _filters(self, kind: int) -> list[dict[str, Any]]:
        overlap_s = _STORED_OVERLAP_S if kind == GIFT_WRAP else _EPHEMERAL_OVERLAP_S
        since = int(time.time()) - overlap_s
        return [{"kinds": [kind], "#p": [self._keys.pubkey], "since": since}]

    async def _listen(self, subscription: Subscription) -> None:
        async for event in subscription:
            try:
                rumor = unwrap(event, self._keys)
                if rumor.kind != REPLY_KIND:
                    continue
                piece = parse_reply(rumor.content)
            except (DiscoveryError, BadMessage):
                continue
            stream = self._streams.get((rumor.pubkey, piece.id))
            if stream is not None:
                stream.receive(piece)


_BOTH_KINDS = [EPHEMERAL_GIFT_WRAP, GIFT_WRAP]


class ReplyStream:
    """One request and its answer as it comes: iterate it for body bytes, in order.

    Made by ``NostrClient.stream``; the request is sent on the first wait. Leaving early with
    ``aclose`` (or the end of ``async with``) tells the node to stop.
    """

    def __init__(
        self,
        client: NostrClient,
        key: tuple[str, str],
        contents: list[str],
        timeout_s: float,
        max_reply_bytes: int,
        patience: Patience,
    ) -> None:
        self._client = client
        self._key = key
        self._contents = contents
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
    def id(self) -> str:
        """The message id: what asks for the same answer again."""
        return self._key[1]

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

    async def aclose(self) -> None:
        """Stop listening; tell the node to stop when the answer is not complete. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._client.forget(self._key)
        if self._deadline is not None and not self._assembler.complete:
            try:
                async with asyncio.timeout(self._patience.cancel_timeout_s):
                    await self._client.publish(self._key[0], [build_cancel(self.id)])
            except TimeoutError:
                return

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
        taken = await self._client.publish(self._key[0], self._contents)
        self._heard_at = time.monotonic()
        if not taken:
            self._idle_s = self._patience.gap_s

    async def _ask_again(self) -> None:
        """A gap is asked for by number; silence by the next number, then by the request."""
        provider, patience = self._key[0], self._patience
        if missing := self._assembler.missing():
            self._gap_s = min(self._gap_s * 2, patience.max_gap_s)
            await self._client.publish(provider, [build_nack(self.id, missing)])
            if self._gap_s < patience.max_gap_s:
                self._heard_at = time.monotonic()
                return
        elif not self._assembler.empty and self._idle_s == patience.idle_s:
            self._idle_s = min(self._idle_s * 2, patience.max_idle_s)
            await self._client.publish(provider, [build_nack(self.id, [self._assembler.expected])])
            self._heard_at = time.monotonic()
            return
        self._idle_s = min(self._idle_s * 2, patience.max_idle_s)
        await self._send()
