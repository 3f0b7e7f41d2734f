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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil
from typing import Any, Self
from uuid import uuid4

from discovery.errors import DiscoveryError
from discovery.nostr.event import Rumor
from discovery.nostr.giftwrap import (
    EPHEMERAL_GIFT_WRAP,
    GIFT_WRAP,
    MAX_BACKDATE_S,
    unwrap,
)
from discovery.nostr.keys import Keys, parse_pubkey
from discovery.nostr.pool import RelayLimits, RelayPool, Subscription
from discovery.nostr.relay import Guard
from node.client.stream import (
    ClientReply,
    MessageTooLarge,
    Patience,
    ReplyStream,
    ReplyTimeout,
)
from node.transport.dm.assembly import ReplyError
from node.transport.dm.codec import REPLY_KIND, REQUEST_KIND, BadMessage, parse_answer
from node.transport.dm.cutter import MIN_PART_BYTES, PART_BYTES
from node.transport.dm.publishing import Delivery, Publisher
from node.transport.dm.writing import build_request

__all__ = ["ClientReply", "NostrClient", "Patience", "ReplyError", "ReplyStream", "ReplyTimeout"]

_MAX_REPLY_RELAYS = 5
_MAX_LIFETIME_S = 86_400
_EPHEMERAL_OVERLAP_S = 300
_STORED_OVERLAP_S = MAX_BACKDATE_S + 900
_WINDOW = 32
"""Messages on their way to the relays at the same time."""
_BOTH_KINDS = [EPHEMERAL_GIFT_WRAP, GIFT_WRAP]


class NostrClient:
    """Sends requests as gift wraps. ``async with``; one receiving loop serves all requests.

    Args:
        relays: ws:// or wss:// URLs where the nodes listen; the first five are named for replies.
        keys: the session's keys; fresh ones when omitted, which is what privacy asks for.
        stored: send stored wraps (1059), for nodes that may be offline; else ephemeral (21059).
        take_stored: also listen for stored copies, which carry change that got lost.
        max_reply_bytes: the longest reply taken.
        guard: judges the relays' addresses before each connect; see ``RelayPool``.
        limits: what one relay may cost us.
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
        guard: Guard | None = None,
        limits: RelayLimits | None = None,
    ) -> None:
        self._keys = keys or Keys.generate()
        self._patience = patience or Patience()
        self._kinds = [EPHEMERAL_GIFT_WRAP] if not (stored or take_stored) else _BOTH_KINDS
        self._max_reply_bytes = max_reply_bytes
        self._pool = RelayPool(
            relays,
            keys=self._keys,
            guard=guard,
            connect_timeout_s=self._patience.connect_timeout_s,
            limits=limits,
        )
        preferred = GIFT_WRAP if stored else EPHEMERAL_GIFT_WRAP
        # Whoever listens to one kind only does not want to leave traces of the other.
        self._send_kinds = sorted(self._kinds, key=lambda kind: kind != preferred)
        self._publisher = Publisher(
            self._pool,
            self._keys,
            timeout_s=self._patience.publish_timeout_s,
            stored_lifetime_s=_MAX_LIFETIME_S,
        )
        self._window = asyncio.Semaphore(_WINDOW)
        self._part_bytes = PART_BYTES
        self._large_pass = False
        self._streams: dict[tuple[str, str], ReplyStream] = {}
        self._loops: list[asyncio.Task[None]] = []

    @property
    def pubkey(self) -> str:
        """The session's public key, hex."""
        return self._keys.pubkey

    @property
    def connected(self) -> bool:
        """Whether any relay is there."""
        return any(relay.connected for relay in self._pool.health().values())

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
        await self._publisher.close()
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
        cut = partial(
            build_request,
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
        cut()  # raises now rather than later
        stream = ReplyStream(
            message_id,
            lambda: cut(part_bytes=self._part_bytes),
            publish=partial(self._publish_all, pubkey),
            forget=partial(self._streams.pop, key, None),
            timeout_s=timeout_s,
            max_reply_bytes=self._max_reply_bytes,
            patience=self._patience,
        )
        self._streams[key] = stream
        return stream

    async def _publish_all(
        self, provider: str, contents: Sequence[str], taken: Callable[[str], object]
    ) -> bool:
        """Send kind 80 rumors; True when of each at least one relay took the wrap.

        ``taken`` is called with each of them then.

        Raises MessageTooLarge when the relays refuse the first for its size and smaller parts
        may pass: nothing of it is out then.
        """
        first, *others = contents
        if others and not self._large_pass:
            # One goes ahead, so that no part of a request that must be cut anew is out.
            delivery = await self._publish(provider, first, taken)
            if not delivery.taken:
                self._shrink(delivery)
                return False
            self._large_pass = True
            contents = others
        sent = await asyncio.gather(
            *(self._publish(provider, content, taken) for content in contents)
        )
        if len(contents) == 1 and first is contents[0]:
            self._shrink(sent[0])
        return all(delivery.taken for delivery in sent)

    def _shrink(self, delivery: Delivery) -> None:
        if delivery.too_large and self._part_bytes > MIN_PART_BYTES:
            self._part_bytes = max(self._part_bytes // 2, MIN_PART_BYTES)
            raise MessageTooLarge

    async def _publish(
        self, provider: str, content: str, taken: Callable[[str], object]
    ) -> Delivery:
        async with self._window:
            rumor = Rumor.new(self._keys.pubkey, REQUEST_KIND, content)
            delivery = await self._publisher.publish(rumor, provider, self._send_kinds)
        if delivery.taken:
            taken(content)
        return delivery

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
                message = parse_answer(rumor.content)
            except (DiscoveryError, BadMessage):
                continue
            stream = self._streams.get((rumor.pubkey, message.id))
            if stream is not None:
                stream.receive(message)
            await asyncio.sleep(0)  # decrypting takes milliseconds, and more may be waiting
